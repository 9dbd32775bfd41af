"""How progress and results look on a terminal: one line that renews itself, or plain lines when piped; tables."""

import json
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

import click

UNITS = ("B", "kB", "MB", "GB", "TB")
PARTS = {"forward": "forward", "backward": "backward", "optimizer": "optimiser", "update": "whole update",
         "token": "one generated token"}


def show(result: Mapping[str, Any], text: str, as_json: bool) -> None:
    """A result on stdout: the text, or the result itself as JSON."""
    click.echo(json.dumps(result, indent=1) if as_json else text)


def note(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    click.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Escapes in place of characters that a terminal obeys: names that come from files and servers may have any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows in columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    lines = []
    for row in rows:
        columns = enumerate(zip(row, widths, strict=False))
        cells = [cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in columns]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def amount(count: float) -> str:
    """Bytes with a unit: 1500 -> 1.5 kB."""
    for unit in UNITS[:-1]:
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {UNITS[-1]}"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def dry_run_text(result: Mapping[str, Any]) -> str:
    """Parameters by group; memory by purpose and operations per token, with spans full and as they begin; what is short."""
    rows: list[tuple[str, ...]] = [(group.replace("_", " "), f"{count:,}")
                                   for group, count in result["parameters"]["by_group"].items()]
    rows.append(("parameters", f"{result['parameters']['total']:,}"))
    memory, first = result["memory"], result["memory_at_first"]
    rows.append(("", "spans full", "spans at first"))
    rows += [(f"memory, {purpose}", amount(size), amount(first["by_purpose"][purpose]))
             for purpose, size in memory["by_purpose"].items()]
    rows.append(("memory", amount(memory["total"]), amount(first["total"])))
    of = result["operations_per_token"]
    rows += [(f"operations per token, {part}", f"{count:,}", f"{of['span_initial'][part]:,}")
             for part, count in of["full_span"].items()]
    rows.append(("tokens per update", f"{result['tokens_per_update']:,}"))
    if result["available_memory"] is not None:
        rows.append(("memory available", amount(result["available_memory"])))
    told = (("at first", result["shortage"]["span_initial"]), ("full", result["shortage"]["full_span"]))
    short = [f"spans {when}: {shortage}" for when, shortage in told if shortage]
    return "\n".join([table(rows), *short])


def bench_text(result: Mapping[str, Any]) -> str:
    """Times of an update's parts, tokens per second, and what the machine does at best."""
    title = f"{result['name']}, {result['parameters']:,} parameters, {result['dtype']}"
    rows: list[tuple[str, ...]] = [(title, "median ms", "least", "largest")]
    rows += [(PARTS[name], *(f"{1e3 * row[kind]:,.3f}" for kind in ("median", "least", "largest")))
             for name, row in result["seconds"].items()]
    pace = result["tokens_per_second"]
    told = [(f"training, {result['tokens_per_update']:,} tokens an update", f"{pace['update']:,.0f} tokens/s"),
            ("generation, one text", f"{pace['generation']:,.0f} tokens/s"),
            (f"matrix products, threads: {result['threads']}", f"{result['matrix_rate'] / 1e9:,.0f} GFLOP/s"),
            ("memory, read and written", f"{result['memory_rate'] / 1e9:,.1f} GB/s")]
    asked = [name for key, name in (("tf32", "; TF32"), ("cuda_graph", "; updates from a CUDA graph")) if result[key]]
    last = "".join((f"{result['processor']}; {result['blas']}; NumPy {result['numpy']}", *asked))
    return "\n".join((table(rows), table(told), last))


def ledger_text(result: Mapping[str, Any]) -> str:
    """An update's parts and the bounds by device, with spans as they begin and full, and what is sent."""
    named = {"spans as they begin": result["span_initial"], "spans full": result["full_span"]}
    if result["span_initial"] == result["full_span"]:
        named = {"one update": result["full_span"]}
    tables = [_entries(f"{result['name']}, {when}", counted, result["tokens_per_update"]) for when, counted in named.items()]
    told = [("sent to the device", f"{result['sent_bytes']:,} bytes, the tokens"), ("read back, waited for", "nothing"),
            ("attention", f"{result['attention']}, whichever is set")]
    if result["spans_read_every"]:
        told.append(("spans are read", f"before every {result['spans_read_every']} updates"))
    if result["uncounted"]:
        told.append((result["uncounted"], "not counted: the text decides"))
    notes = "\n".join(result["sources"].values())
    return "\n".join((*tables, table(told), f"A bound is {result['bound']}.", notes))


def _entries(title: str, counted: Mapping[str, Any], tokens: int) -> str:
    rows: list[tuple[str, ...]] = [(title, "launches", "products", "GFLOP", "MB read", "MB written")]
    for name, entry in {**counted["parts"], "all": counted["total"]}.items():
        numbers = entry["operations"] / 1e9, entry["read"] / 1e6, entry["written"] / 1e6
        rows.append((name, f"{entry['launches']:,}", f"{entry['products']:,}", *(f"{number:,.1f}" for number in numbers)))
    bounds = [(f"bound, {name}", f"{1e3 * seconds:,.2f} ms, {tokens / seconds:,.0f} tokens/s at most")
              for name, seconds in counted["seconds"].items()]
    return "\n".join((table(rows), table(bounds)))


def evaluation_text(result: Mapping[str, Any]) -> str:
    """A model's score in the units of its vocabulary, each with its interval, how it was measured, then the yardsticks."""
    unit, interval = result["unit"], result["interval"] or {}
    how = f"{result['protocol']}: {result['streams']} streams, blocks of {result['block']}, past {result['past']}"
    rows: list[tuple[str, ...]] = [
        (f"{result['source']}, {result['split']}", f"{result['tokens']:,} {unit}s scored"),
        (how + (f", clamped to {result['clamp']}" if result["clamp"] else ""), f"update {result['updates']}")]
    per_token = "bits_per_character" if unit == "byte" else f"bits_per_{unit}"
    # of bytes the two are one, unless the text's line ends are dropped
    same = unit == "byte" and result[per_token] == result["bits_per_byte"]
    for name in ["bits_per_byte"] if same else [per_token, "bits_per_byte"]:
        rows.append(("this model", f"{result[name]:.4f} {name.replace('_', ' ')}", *_ends(interval.get(name), ".4f")))
    if unit == "word":
        labels = {"perplexity": "perplexity, <eos> counted", "perplexity_without_eos": "perplexity per word without <eos>"}
        rows += [(label, _number(result[name], ".3f"), *_ends(interval.get(name), ".3f")) for name, label in labels.items()]
    rows += [(name, f"{bits:.4f} bits per {unit}") for name, bits in result.get("yardsticks", {}).items()]
    return table(rows)


def _ends(interval: Sequence[float | None] | None, form: str) -> list[str]:
    return [f"95 %: {' to '.join(_number(end, form) for end in interval)}"] if interval else []


def _number(value: float | None, form: str) -> str:
    return "infinite" if value is None else format(value, form)


def gradcheck_text(kind: str, name: str, report: Any) -> str:
    """A gradient check: its verdict, and a row for each gradient."""
    title, rest = (f"model {name}" if kind == "model" else name), str(report).partition("\n")[2]
    return f"{title}: {report.verdict}\n{rest}\n"


def corpus_text(result: Mapping[str, Any]) -> str:
    """A text's vocabulary, hash, and sizes by split."""
    shares = result.get("unknown_share")
    rows: list[tuple[str, ...]] = [("split", "bytes", "tokens", *(["<unk>"] if shares else []))]
    for split, size in result["bytes"].items():
        rows.append((split, f"{size:,}", f"{result['tokens'][split]:,}", *([f"{shares[split]:.2%}"] if shares else [])))
    vocabulary = f"{result['vocabulary']['kind']} vocabulary of {result['vocabulary']['size']:,}"
    conventions = ", ".join(str(value) if name == "name" else f"{name.replace('_', ' ')} {value}"
                            for name, value in result["conventions"].items())
    checked = "\nits splits have the published checksums" if "checksums" in result else ""
    return (f"{result['source']}: {vocabulary}, conventions: {conventions}\nSHA-256 {result['sha256']}{checked}\n"
            f"{table(rows)}")


def fetched_text(result: Mapping[str, Any]) -> str:
    """Where a text is, its files, and what to do next."""
    rows = [("split", "bytes"), *((name, f"{size:,}") for name, size in result["bytes"].items())]
    decimal = f"\nas the published preparation writes it: {result['decimal']}" if "decimal" in result else ""
    return f"{result['name']}: in {result['folder']}, from {result['from']}, checksums as published{decimal}\n{table(rows)}"


def progress_text(record: Mapping[str, Any], unit: str) -> str:
    """A training record as one line; unit: what a token is."""
    if "valid_bits" in record:
        return f"update {record['update']:>6}  validation {record['valid_bits']:.3f} bits per {unit}"
    if "not_finite" in record:
        return f"update {record['update']:>6}  skipped, {record['skipped']} so far: {record['not_finite']}"
    if "lost" in record:
        return f"update {record['update']:>6}  {record['lost']}: its part is computed on a thread from here on"
    parts = [f"update {record['update']:>6}/{record['updates']}", f"loss {record['loss']:.4f}",
             f"{record['bits']:.3f} bits per {unit}", f"{record['tokens_per_second']:,.0f} tokens/s",
             f"rate {record['learning_rate']:.2g}"]
    if "span_mean" in record:
        parts.append(f"span {record['span_mean']:.1f} mean, {record['span_max']:.1f} largest")
    if "skipped" in record:
        parts.append(f"{record['skipped']} skipped")
    return "  ".join([*parts, f"{duration(record['seconds_left'])} left"])


def write_passages(
    prompts: Sequence[str], pieces: Iterable[Sequence[str]], length: int, checkpoint: str, as_json: bool
) -> None:
    """Passages of `length` tokens each on stdout: a single one as it is drawn, several one after another, or JSON.

    JSON lists them as `passages`; `prompt` and `text` are the first one's. The pace goes to stderr.
    """
    alone, start = len(prompts) == 1 and not as_json, time.monotonic()
    written: list[Sequence[str]] = []
    if alone:
        click.echo(prompts[0], nl=False)
    for row in pieces:
        written.append(row)
        if alone:
            click.echo(row[0], nl=False)
    seconds, tokens = max(time.monotonic() - start, 1e-9), length * len(prompts)
    texts = ["".join(column) for column in zip(*written, strict=True)]
    passages = [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]
    show({"checkpoint": checkpoint, **passages[0], "passages": passages},
         "" if alone else "\n\n".join(prompt + text for prompt, text in zip(prompts, texts, strict=True)), as_json)
    if tokens:
        note(f"{tokens:,} tokens, {tokens / seconds:,.0f} tokens/s")


class ProgressLine:
    """Shows training records on stderr: one line that renews itself on a terminal, a line each otherwise."""

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self._live: Any = None

    def __enter__(self) -> "ProgressLine":
        if sys.stderr.isatty():
            from rich.console import Console  # 125 ms: only where it shows
            from rich.live import Live

            self._live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def show(self, record: Mapping[str, Any]) -> None:
        """The next record; validation results and what was skipped stay on the terminal."""
        line = progress_text(record, self._unit)
        if self._live is None:
            note(line)
        elif not record.keys().isdisjoint(("valid_bits", "not_finite", "lost")):
            self._live.console.print(line, soft_wrap=True)
        else:
            from rich.text import Text

            self._live.update(Text(line, overflow="ellipsis", no_wrap=True), refresh=True)
