"""Holds an implementation to the vectors, case by case."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refimpl.errors import InputError
from refimpl.functions import Results
from refimpl.golden import vectors, verdicts
from refimpl.golden.adapters import Adapter, Answer
from refimpl.golden.conventions import CONVENTIONS
from refimpl.golden.diagnose import diagnose
from refimpl.golden.verdicts import CRASHED, MISMATCH, PASS, SKIPPED, UNCHECKED, Run, Verdict


class Selection(NamedTuple):
    """Which cases: of these groups, with these flags, of these conventions (with those on which all agree); () = all."""

    groups: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    conventions: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()


def select(selection: Selection, folder: Path = vectors.FOLDER) -> list[dict[str, Any]]:
    """The manifest entries. Raises InputError for a name that there is not, or if nothing is left."""
    entries = list(vectors.entries(folder))
    known = {"group": {e["group"] for e in entries}, "flag": {flag for e in entries for flag in e["flags"]},
             "convention": set(CONVENTIONS), "case": {e["id"] for e in entries}}
    for (kind, names), asked in zip(known.items(), selection, strict=True):
        for name in asked:
            if name not in names:
                listed = f"one of {', '.join(sorted(names))}" if kind != "case" else "an id that `golden list` prints"
                raise InputError(f"--{kind}: expected {listed}, got {name!r}")
    chosen = [entry for entry in entries if (not selection.groups or entry["group"] in selection.groups)
              and (not selection.flags or set(entry["flags"]) & set(selection.flags))
              and (not selection.conventions or entry["convention"] in {"any", *selection.conventions})
              and (not selection.ids or entry["id"] in selection.ids)]
    if not chosen:
        raise InputError("golden: expected a selection with cases in it, got none")
    return chosen


def verify(
    adapter: Adapter, entries: Iterable[Mapping[str, Any]], dtype: str, folder: Path = vectors.FOLDER,
    tell: Callable[[Verdict], Any] = lambda verdict: None,
) -> Run:
    """Every case's verdict; wrong results are diagnosed. Cases of functions that are not declared are left out."""
    start, found, wrong, undeclared = time.perf_counter(), [], [], 0
    by_id = {entry["id"]: entry for entry in entries}
    for entry in by_id.values():
        if adapter.functions is not None and entry["function"] not in adapter.functions:
            undeclared += 1
            continue
        case = vectors.load_case(entry, folder)
        verdict, results = judged(adapter, case, dtype)
        found.append(verdict)
        if verdict.verdict == MISMATCH:
            wrong.append((case, results))
        tell(verdict)
    if not found:
        raise InputError(f"golden verify: expected {adapter.name} to declare a function of the chosen cases, got "
                         f"{', '.join(sorted(adapter.functions or ())) or 'none'}")
    return Run(adapter.name, dtype, by_id, found, undeclared, diagnose(wrong, dtype), time.perf_counter() - start)


def judged(adapter: Adapter, case: vectors.Stored, dtype: str) -> tuple[Verdict, Results]:
    """One case's verdict, and the results that came."""
    answer = adapter.answer(case, dtype)
    return _verdict(case, answer, dtype), answer.results


def _verdict(case: vectors.Stored, answer: Answer, dtype: str) -> Verdict:
    refused = case.entry["result"] == "invalid"
    if answer.kind in ("skipped", "crashed"):
        return Verdict(case.id, SKIPPED if answer.kind == "skipped" else CRASHED, (), 0, 0, answer.message)
    if answer.kind == "wrong":
        return Verdict(case.id, MISMATCH, (), 0, 0, answer.message)
    if answer.kind == "refused":
        return Verdict(case.id, PASS if refused else CRASHED, (), 0, 0, answer.message)
    if refused:
        return Verdict(case.id, MISMATCH, (), 0, 0, "expected an error, since the arguments don't fit; got results")
    return verdicts.judge(case, answer.results, dtype)


def exit_code(run: Run) -> int:
    """0 all pass; 1 a mismatch; 3 a crash; 4 something was skipped without being declared, or could not be checked."""
    counts = run.counts()
    if counts[MISMATCH]:
        return 1
    if counts[CRASHED]:
        return 3
    return 4 if counts[SKIPPED] or counts[UNCHECKED] else 0
