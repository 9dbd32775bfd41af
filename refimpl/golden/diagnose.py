"""Which known bug, or which other convention, wrong results reproduce."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.functions import evaluate
from refimpl.golden import planted
from refimpl.golden.bounds import ROUNDOFF
from refimpl.golden.conventions import CONVENTIONS, in_convention
from refimpl.golden.vectors import Stored
from refimpl.golden.verdicts import tolerance

NEAREST = 3  # how many are named where none matches
SIDES = 2  # bounds: one for what came, one for the bug's own values
STEPS = 16  # units of roundoff allowed to a bug's value where the right one is 0


class Match(NamedTuple):
    """A bug or a convention, and how far its values are from what came: ‖difference‖ / ‖values‖ over all results of a case.

    `matches`: every element is within its bound. `kind`: "bug" or "convention".
    """

    kind: str
    name: str
    sentence: str
    distance: float
    matches: bool


class Candidate(NamedTuple):
    """What a bug or a convention gives: for each case all results in a row, or None if it gives none."""

    kind: str
    name: str
    sentence: str
    values: Mapping[str, Array | None]


class Failure(NamedTuple):
    """The wrong results of a case in a row, the right ones, and the bound of each element."""

    id: str
    got: Array
    right: Array
    limit: Array


def diagnose(
    wrong: Sequence[tuple[Stored, Mapping[str, Any]]], dtype: str, known: Iterable[Candidate] | None = None
) -> dict[str, list[Match]]:
    """What reproduces the wrong results of each case, nearest first: all that match, or else the three nearest.

    known: candidates computed before; without them each bug is planted once, for all cases together.
    """
    failures = [failure for case, got in wrong if (failure := _failure(case, got, dtype)) is not None]
    found: dict[str, list[Match]] = {failure.id: [] for failure in failures}
    if not failures:
        return found
    for candidate in known if known is not None else candidates([case for case, _ in wrong]):
        for failure in failures:
            values = candidate.values.get(failure.id)
            if values is not None and not _same(values, failure.right, failure.limit).all():  # it changes something
                found[failure.id].append(_match(candidate, values, failure, dtype))
    for name, matches in found.items():
        near = sorted((match for match in matches if np.isfinite(match.distance)), key=lambda match: match.distance)
        found[name] = [match for match in near if match.matches] or near[:NEAREST]
    return found


def candidates(cases: Sequence[Stored]) -> Iterator[Candidate]:
    """What every other convention and every planted bug gives for the cases."""
    for name, convention in CONVENTIONS.items():
        changed = {case.id: in_convention(case.entry, name) for case in cases}
        values = {case.id: _values(case, changed[case.id]) for case in cases
                  if changed[case.id] != case.entry["settings"]}
        yield Candidate("convention", name, convention.sentence, values)
    for bug in planted.bugs().values():
        with planted.planted(bug):
            values = {case.id: _values(case, case.entry["settings"]) for case in cases}
        yield Candidate("bug", bug.id, bug.sentence, values)


def _values(case: Stored, settings: Mapping[str, Any]) -> Array | None:
    """What the package computes now; None if it does not."""
    try:
        with np.errstate(all="ignore"):
            return _row(case, evaluate(case.entry["function"], settings, case.inputs))
    except Exception:  # a planted bug may crash
        return None


def _row(case: Stored, results: Mapping[str, Any]) -> Array | None:
    """All results in the manifest's order in one vector; None unless their shapes are the right ones."""
    if any(name not in results or np.shape(results[name]) != y.shape for name, y in case.results.items()):
        return None
    return np.concatenate([np.asarray(results[name], np.float64).reshape(-1) for name in case.results])


def _failure(case: Stored, got: Mapping[str, Any], dtype: str) -> Failure | None:
    row, right = _row(case, got), _row(case, case.results)
    if row is None or right is None:
        return None
    limits = [tolerance(y, case.bounds[name], dtype)[0].reshape(-1) for name, y in case.results.items()]
    return Failure(case.id, row, right, np.concatenate(limits))


def _match(candidate: Candidate, values: Array, failure: Failure, dtype: str) -> Match:
    """A bug's values may be larger than the right ones, and so may their bounds be."""
    got, right = failure.got, failure.right
    with np.errstate(all="ignore"):
        grown = np.maximum(1, np.where(right == 0, 1, np.abs(values) / np.abs(right)))
        room = SIDES * failure.limit * grown + np.where(right == 0, STEPS * ROUNDOFF[dtype] * np.abs(values), 0)
        matches = bool(_same(got, values, room).all())
        difference = np.where(_same(got, values, 0), 0, np.abs(got - values))
        size = np.linalg.norm(np.where(np.isfinite(values), values, 0))
        distance = float(np.linalg.norm(difference) / size) if size else float(np.linalg.norm(difference))
    return Match(candidate.kind, candidate.name, candidate.sentence, distance, matches)


def _same(a: Array, b: Array, room: Array | float) -> Array:
    """Where two are no farther apart than that, or the same infinity, or both not a number."""
    with np.errstate(invalid="ignore"):
        return (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= room)
