"""A run told: as a table for the terminal, as JSON, JUnit XML, Markdown, and one HTML file."""

import html as markup
import math
from collections.abc import Mapping
from typing import Any, NamedTuple
from xml.etree import ElementTree

from refimpl.golden.findings import Finding, findings
from refimpl.golden.verdicts import CRASHED, MISMATCH, PASS, SKIPPED, UNCHECKED, Run, Verdict
from refimpl.golden.verify import exit_code

ROWS, CLOSEST = 25, 5  # of the terminal's table: cases that did not pass; those nearest to their bounds if all pass
WORDS = {PASS: "pass", MISMATCH: "wrong", UNCHECKED: "not checked", SKIPPED: "skipped", CRASHED: "crashed"}


class Section(NamedTuple):
    """A table of a report."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]


def worst_first(run: Run) -> list[Verdict]:
    """The verdicts: those that did not pass before those that did, and the farthest off first."""
    order = [CRASHED, MISMATCH, UNCHECKED, SKIPPED, PASS]
    return sorted(run.verdicts, key=lambda verdict: (verdict.verdict == PASS, -verdict.off, order.index(verdict.verdict)))


def plain(text: str) -> str:
    """What an implementation said, in one line, without characters that steer a terminal or that XML can't hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def where(verdict: Verdict) -> str:
    """What is wrong with a case, in words: the tensor, the element, what came and what was expected."""
    if verdict.reason or not verdict.worst:
        return plain(verdict.reason)
    worst = verdict.worst[0]
    others = [difference.tensor for difference in verdict.worst[1:] if difference.off > 1]
    at = f"{worst.tensor}[{', '.join(map(str, worst.where))}]" if worst.where else worst.tensor
    also = f"; wrong too: {', '.join(others)}" if others else ""
    return f"{at}: expected {worst.expected:.9g}, got {worst.got:.9g}{also}"


def summary(run: Run) -> list[str]:
    """The run in a few sentences: how many are wrong, where it is worst, and what that looks like."""
    counts = ", ".join(f"{count} {WORDS[name]}" for name, count in run.counts().items() if count)
    left = f"; left out: {run.undeclared} of functions that it does not declare" if run.undeclared else ""
    said = [f"{plain(run.implementation)} in {run.dtype}: {len(run.verdicts)} cases, {counts}{left} ({run.seconds:.1f} s)"]
    first = worst_first(run)[0]
    if first.verdict == MISMATCH:
        said.append(f"Worst: {first.id}, {where(first)} ({_off(first)} bounds off)" if first.worst
                    else f"Worst: {first.id}, {where(first)}")
    bugs, conventions = findings(run, "bug"), findings(run, "convention")
    said += [_sentence(finding, run) for finding in (*telling(conventions), *telling(bugs))]
    return said


def telling(found: list[Finding]) -> list[Finding]:
    """Those that explain a case that none before them explains, and those that can't be told from one of these."""
    kept: list[Finding] = []
    for finding in found:
        covered = {case for other in kept for case in other.cases}
        same = any(other.cases == finding.cases and other.outputs == finding.outputs and other.against == finding.against
                   for other in kept)
        if same or not set(finding.cases) <= covered:
            kept.append(finding)
    return kept if not kept or kept[0].exact else kept[:1]


def _sentence(finding: Finding, run: Run) -> str:
    cases = f"{len(finding.cases)} of {finding.failing} wrong cases"
    if not finding.exact:
        return (f"No known bug gives these values. The nearest in {cases}: {finding.name}, off by {finding.distance:.1g} of "
                f"their size. {finding.sentence}")
    doubt = f" (but {finding.against} cases passed that it would fail)" if finding.against else ""
    some = "" if finding.outputs == len(finding.cases) else f" of {finding.outputs}"
    doubt += f", the gradients{some} apart" if finding.outputs else ""
    closely = f"{finding.distance:.0e}".replace("e-0", "e-").replace("0e+00", "the last digit")
    if finding.kind == "convention":
        asked = sorted({run.entries[case]["convention"] for case in finding.cases} - {"any"})
        instead = f", not {' or '.join(asked)}," if asked else ""
        return f"{cases} follow the convention {finding.name}{instead} to {closely}{doubt}. {finding.sentence}"
    return f"{cases} match {finding.name} to {closely}{doubt}. {finding.sentence}"


def sections(run: Run, limit: int | None = None) -> list[Section]:
    """The cases that did not pass, or those nearest to their bounds if all did; and what their flags say."""
    listed = worst_first(run)
    failed = [verdict for verdict in listed if verdict.verdict != PASS]
    shown = failed[:limit] if failed else listed[:CLOSEST]
    rows: list[tuple[str, ...]] = [(verdict.id, verdict.verdict, _off(verdict), where(verdict)) for verdict in shown]
    title = "Cases, the worst first" if failed else "All pass; the nearest to their bounds"
    if len(failed) > len(shown):
        rows.append((f"and {len(failed) - len(shown)} more", "", "", "(--json lists all)"))
    found = [Section(title, ("case", "verdict", "error / bound", "where"), rows)]
    notes = {flag: note for verdict in failed for flag, note in run.entries[verdict.id]["notes"].items()}
    if notes:
        found.append(Section("What the flags of these cases say", ("flag", "kind", "effect"), [
            (flag, note["kind"], note["effect"]) for flag, note in sorted(notes.items())]))
    return found


def _off(verdict: Verdict) -> str:
    return f"{verdict.off:.3g}" if verdict.worst else ""


def terminal(run: Run) -> str:
    """For people at a terminal."""
    parts = ["\n".join(summary(run))]
    for title, columns, rows in sections(run, ROWS):
        widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                 for row in (columns, *rows)]
        parts.append("\n".join([title, *lines]))
    return "\n\n".join(parts)


def as_json(run: Run) -> dict[str, Any]:
    """Everything, for programs. A number that JSON does not have is null."""
    return {
        "implementation": run.implementation, "dtype": run.dtype, "exit_code": exit_code(run), "seconds": run.seconds,
        "counts": run.counts(), "undeclared": run.undeclared, "summary": summary(run),
        "bugs": [_plain(finding) for finding in findings(run, "bug")],
        "conventions": [_plain(finding) for finding in findings(run, "convention")],
        "cases": [_case(run, verdict) for verdict in worst_first(run)]}


def _case(run: Run, verdict: Verdict) -> dict[str, Any]:
    entry = run.entries[verdict.id]
    return {**_plain(verdict), "worst": [_plain(difference) for difference in verdict.worst],
            "off": verdict.off if math.isfinite(verdict.off) else None, "where": where(verdict),
            "flags": entry["flags"], "convention": entry["convention"],
            "matches": [_plain(match) for match in run.matches.get(verdict.id, [])]}


def _plain(record: Any) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record._asdict().items()}


def junit(run: Run) -> str:
    """JUnit XML: a wrong case is a failure, a crash an error."""
    counts = run.counts()
    suite = ElementTree.Element("testsuite", {
        "name": f"refimpl golden: {plain(run.implementation)}", "time": f"{run.seconds:.3f}",
        "tests": str(len(run.verdicts)), "failures": str(counts[MISMATCH]), "errors": str(counts[CRASHED]),
        "skipped": str(counts[SKIPPED] + counts[UNCHECKED])})
    kinds = {MISMATCH: "failure", CRASHED: "error", SKIPPED: "skipped", UNCHECKED: "skipped"}
    for verdict in run.verdicts:
        group, _, name = verdict.id.partition("/")
        case = ElementTree.SubElement(suite, "testcase", {"classname": f"golden.{group}", "name": name})
        if verdict.verdict in kinds:
            told = [where(verdict), *(f"{match.name} is off by {match.distance:.1g}: {match.sentence}"
                                      for match in run.matches.get(verdict.id, []))]
            said = ElementTree.SubElement(case, kinds[verdict.verdict], {"message": told[0]})
            said.text = "\n".join(told)
    ElementTree.SubElement(suite, "system-out").text = "\n".join(summary(run))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def markdown(run: Run) -> str:
    """For a pull request or a wiki: what came from the implementation can't end a cell or begin markup."""
    lines = ["# Golden vectors", "", *(f"- {_inert(sentence)}" for sentence in summary(run))]
    for title, columns, rows in sections(run):
        lines += ["", f"## {title}", "", f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
        lines += [f"| {' | '.join(_inert(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _inert(text: str) -> str:
    escaped = markup.escape(text, quote=False)
    return "".join(f"\\{c}" if c in "\\`*_[]|#~" else c for c in escaped)


STYLE: Mapping[str, str] = {
    "body": "font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #1c1c1c",
    "table": "border-collapse: collapse; width: 100%",
    "th, td": "text-align: left; padding: .3rem .6rem; vertical-align: top",
    "tr": "border-bottom: 1px solid #ddd", "td": "overflow-wrap: anywhere", ".PASS": "color: #14692b",
    ".MISMATCH, .CRASHED": "color: #a51d1d", ".UNCHECKED, .SKIPPED": "color: #7a5b00"}


def html(run: Run) -> str:
    """One file without anything from outside; what came from the implementation is escaped."""
    style = "\n".join(f"{selector} {{{rules}}}" for selector, rules in STYLE.items())
    body = ["<h1>Golden vectors</h1>", *(f"<p>{markup.escape(sentence)}</p>" for sentence in summary(run))]
    for title, columns, rows in sections(run):
        head = "".join(f"<th>{markup.escape(column)}</th>" for column in columns)
        body += [f"<h2>{markup.escape(title)}</h2>", f"<table>\n<tr>{head}</tr>"]
        body += [f"<tr{_class(row)}>{''.join(f'<td>{markup.escape(cell)}</td>' for cell in row)}</tr>" for row in rows]
        body.append("</table>")
    title = markup.escape(f"Golden vectors: {plain(run.implementation)}")
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f"<style>\n{style}\n</style>\n</head>\n<body>\n{chr(10).join(body)}\n</body>\n</html>\n")


def _class(row: tuple[str, ...]) -> str:
    return f' class="{row[1]}"' if row[1] in WORDS else ""
