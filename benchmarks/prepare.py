"""`refimpl data prepare`: seconds and peak memory for texts as large as the published ones, and what opening them costs.

    python benchmarks/prepare.py --json prepare.json

The texts are made here, in a folder that is removed afterwards (2 GB of room). Words are drawn by Zipf's law from as many
types as WikiText-103 has, each of which occurs; a tenth is drawn and repeated. The others are 100 MB of such words, with
every byte value that enwik8 has, or of letters and spaces alone. Each command is a process of its own, and its peak is the
system's figure for it. Opening: `refimpl data info` on what was prepared, which reads and checks every token.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import measure
import numpy as np

TYPES = 267_735
WORDS = {"train": 103_227_021, "valid": 217_646, "test": 245_569}
LINE = 57  # words of a line, WikiText-103's mean
BYTES = 100_000_000
REPEATED = 10
AT_ONCE = 1 << 18
LETTERS = "etaoinshrdlcumwfgypbvkjxqz"
LETTERS_4 = 26 + 26**2 + 26**3 + 1  # the first word of four letters: so long, the text has WikiText-103's bytes too


class Case(NamedTuple):
    """A text and how it is prepared; the limits that are promised for the full size."""

    name: str
    text: str
    options: tuple[str, ...]
    seconds: float
    megabytes: float


CASES = (
    Case("100 MB, bytes", "bytes", ("--vocabulary", "byte"), 60, 300),
    Case("100 MB, bytes as published", "bytes", ("--vocabulary", "byte", "--set", "data.convention=published"), 60, 300),
    Case("100 MB, characters as published", "letters",
         ("--vocabulary", "character", "--set", "data.convention=published"), 60, 300),
    Case("WikiText-103's size, words", "words", ("--vocabulary", "word", "--set", "data.convention=published"), 180, 1500),
)


def spelled(rank: int) -> str:
    """A word for each rank, short for the frequent ones: its bijective base-26 digits as letters."""
    word = ""
    while rank > 0:
        rank, digit = divmod(rank - 1, len(LETTERS))
        word += LETTERS[digit]
    return word


def make_words(folder: Path, shrink: int) -> None:
    """train, valid and test files of so many words, line ends included."""
    types = max(TYPES // shrink, 100)
    rng, names = np.random.default_rng(0), [spelled(LETTERS_4 + rank) for rank in range(types)]
    chances = np.cumsum(1 / np.arange(1, types + 1))
    every = rng.permutation(types)  # all types once: none of them is missing
    folder.mkdir()
    for split, count in WORDS.items():
        repeats = REPEATED if split == "train" else 1
        left, first = count // shrink // repeats, split == "train"
        with (folder / f"wiki.{split}.tokens").open("w", encoding="ascii") as file:
            while left > 0:
                drawn = np.searchsorted(chances, rng.random(min(AT_ONCE, left)) * chances[-1])
                drawn = every if first else drawn
                left, first = left - len(drawn) - len(drawn) // LINE, False
                lines = (drawn[start : start + LINE].tolist() for start in range(0, len(drawn), LINE))
                file.writelines(f" {' '.join(map(names.__getitem__, line))} \n" for line in lines)
        repeat(folder / f"wiki.{split}.tokens", repeats)


def make_bytes(path: Path, shrink: int) -> None:
    """Words in lines, as many bytes as enwik8, and each of 205 values among them."""
    values = bytes(value for value in range(256) if value not in range(128, 179))
    make_text(path, shrink, lambda words: values + b"\n" + b" ".join(words) + b"\n")


def make_letters(path: Path, shrink: int) -> None:
    """The 27 symbols of text8, in one line."""
    make_text(path, shrink, lambda words: b" ".join(words) + b" ")


def make_text(path: Path, shrink: int, form: Callable[[Sequence[bytes]], bytes]) -> None:
    """A tenth of the bytes, repeated, from words that are drawn."""
    rng, names = np.random.default_rng(0), [spelled(rank).encode() for rank in range(1, 50_000)]
    size, written = BYTES // shrink // REPEATED, 0
    with path.open("wb") as file:
        while written < size:
            piece = form([names[rank] for rank in rng.zipf(1.3, 10_000) % len(names)])[: size - written]
            written += file.write(piece)
    repeat(path, REPEATED)


def repeat(path: Path, times: int) -> None:
    """The file's content, so many times."""
    content = path.read_bytes()
    with path.open("ab") as file:
        for _ in range(times - 1):
            file.write(content)


MAKERS = {"bytes": make_bytes, "letters": make_letters, "words": make_words}


def run(arguments: Sequence[str], threads: int) -> dict[str, Any]:
    """A command's seconds, those that it computed, its largest resident memory in bytes, and what it printed as JSON."""

    def hold() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])

    start = time.monotonic()
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([sys.executable, "-m", "refimpl", "data", *arguments, "--json"], stdout=out,
                                   preexec_fn=hold)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"refimpl data {' '.join(arguments)}: ended with {process.returncode}")
        out.seek(0)
        result = json.loads(out.read())
    unit = 1 if sys.platform == "darwin" else 1024
    return {"seconds": time.monotonic() - start, "computing": usage.ru_utime + usage.ru_stime,
            "peak": usage.ru_maxrss * unit, "result": result}


def measured(case: Case, folder: Path, threads: int) -> dict[str, Any]:
    """One case's record: the text prepared, then opened again."""
    place = str(folder / "prepared" / case.text / str(len(case.options)))
    prepared = run(["prepare", str(folder / case.text), *case.options, "--out", place], threads)
    opened = run(["info", place], threads)
    told = prepared.pop("result")
    if opened.pop("result")["sha256"] != told["sha256"]:
        raise SystemExit(f"{case.name}: expected the text that was prepared, got another")
    return {"case": case.name, "bytes": sum(told["bytes"].values()), "tokens": sum(told["tokens"].values()),
            "vocabulary": told["vocabulary"]["size"], "prepare": prepared, "open": opened,
            "limits": {"seconds": case.seconds, "bytes": case.megabytes * 1e6}}


@click.command()
@measure.options()
def main(threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints seconds and peak memory of preparing and of opening again, and the limits promised."""
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    with tempfile.TemporaryDirectory() as name:
        for case in CASES:
            if not (Path(name) / case.text).exists():  # in a process of its own: what it holds is not to be counted here
                maker = multiprocessing.get_context("spawn").Process(
                    target=MAKERS[case.text], args=(Path(name) / case.text, 1000 if quick else 1))
                maker.start()
                maker.join()
                if maker.exitcode:
                    raise SystemExit(f"{case.text}: the text was not made")
            row = measured(case, Path(name), threads)
            rows.append(row)
            prepare, opened = row["prepare"], row["open"]
            click.echo(f"{case.name:<34}{row['tokens']:>12,} tokens of {row['vocabulary']:>7,}  "
                       f"{prepare['seconds']:6.1f} s (limit {case.seconds:g}; {prepare['computing']:.1f} s of a core)  "
                       f"{prepare['peak'] / 1e6:6.0f} MB (limit {case.megabytes:g})  opened in {opened['seconds']:.1f} s, "
                       f"{opened['peak'] / 1e6:.0f} MB")
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
