"""Which known bug, or which other convention, wrong results reproduce."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.functions import evaluate
from refimpl.golden import planted
from refimpl.golden.bounds import ROUNDOFF, in_dtype
from refimpl.golden.conventions import CONVENTIONS, in_convention
from refimpl.golden.margins import may_see
from refimpl.golden.vectors import Stored
from refimpl.golden.verdicts import tolerance

NEAREST = 3  # how many are named where none matches
SIDES = 2  # bounds: one for what came, one for the bug's own values
STEPS = 64  # units of roundoff allowed to a bug's value where the right one is 0, or has another shape


class Match(NamedTuple):
    """A bug or a convention, and how far its values are from what came: ‖difference‖ / ‖values‖ over all results of a case.

    `kind`: "bug" or "convention". `matches`: every element is within its bound. `outputs`: those of the outputs are, which
    are wrong, but the gradients are others; then the distance is that of the outputs.
    """

    kind: str
    name: str
    sentence: str
    distance: float
    matches: bool
    outputs: bool


class Row(NamedTuple):
    """All results of a case one after another."""

    shapes: tuple[tuple[int, ...], ...]
    values: Array


class Candidate(NamedTuple):
    """What a bug or a convention gives for each case; None if it gives no results."""

    kind: str
    name: str
    sentence: str
    rows: Mapping[str, Row | None]


class Failure(NamedTuple):
    """The wrong results of a case, and for each element the right one and its bound; 0 and no bound in another shape.

    forward: which elements are outputs, not gradients.
    """

    id: str
    got: Row
    right: Array
    limit: Array
    forward: Array


def diagnose(
    wrong: Sequence[tuple[Stored, Mapping[str, Any]]], dtype: str, known: Iterable[Candidate] | None = None
) -> dict[str, list[Match]]:
    """What reproduces the wrong results of each case, nearest first: all that match; else in the outputs; else the nearest.

    known: candidates computed before; without them each bug is planted once, for all cases together.
    """
    failures = [failure for case, got in wrong if (failure := _failure(case, got, dtype)) is not None]
    found: dict[str, list[Match]] = {failure.id: [] for failure in failures}
    if not failures:
        return found
    for candidate in known if known is not None else candidates([case for case, _ in wrong], dtype):
        for failure in failures:
            row = candidate.rows.get(failure.id)
            if row is None or row.shapes != failure.got.shapes or _same(row.values, failure.right, failure.limit).all():
                continue  # nothing to compare, or nothing changed
            found[failure.id].append(_match(candidate, row.values, failure, dtype))
    for name, matches in found.items():
        near = sorted((match for match in matches if np.isfinite(match.distance)), key=lambda match: match.distance)
        found[name] = ([match for match in near if match.matches] or [match for match in near if match.outputs]
                       or near[:NEAREST])
    return found


def candidates(cases: Sequence[Stored], dtype: str) -> Iterator[Candidate]:
    """What every other convention and every planted bug gives for the cases; what overflows does so in the dtype."""
    for name, convention in CONVENTIONS.items():
        changed = {case.id: in_convention(case.entry, name) for case in cases}
        rows = {case.id: _computed(case, changed[case.id], dtype) for case in cases
                if changed[case.id] != case.entry["settings"]}
        yield Candidate("convention", name, convention.sentence, rows)
    for bug in planted.bugs().values():
        seeing = [case for case in cases if may_see(case.entry["function"], bug)]
        if seeing:
            with planted.planted(bug):
                rows = {case.id: _computed(case, case.entry["settings"], dtype) for case in seeing}
            yield Candidate("bug", bug.id, bug.sentence, rows)


def _computed(case: Stored, settings: Mapping[str, Any], dtype: str) -> Row | None:
    """What the package computes now; None if it does not."""
    single = "overflow" in case.entry["flags"] and dtype != "float64"
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            inputs = in_dtype(case.inputs, "float32") if single else case.inputs
            return _row(case, evaluate(case.entry["function"], settings, inputs))
    except Exception:  # a planted bug may crash
        return None


def _row(case: Stored, results: Mapping[str, Any]) -> Row | None:
    """In the manifest's order; None if one is missing."""
    if not case.results or not case.results.keys() <= results.keys():
        return None
    arrays = [np.asarray(results[name], np.float64) for name in case.results]
    return Row(tuple(array.shape for array in arrays), np.concatenate([array.reshape(-1) for array in arrays]))


def _failure(case: Stored, got: Mapping[str, Any], dtype: str) -> Failure | None:
    row = _row(case, got)
    if row is None:
        return None
    right, limits, forward = [], [], []
    for shape, (name, y) in zip(row.shapes, case.results.items(), strict=True):
        same = shape == y.shape
        right.append(y.reshape(-1) if same else np.zeros(math.prod(shape)))
        limits.append(tolerance(y, case.bounds[name], dtype)[0].reshape(-1) if same else np.zeros(math.prod(shape)))
        forward.append(np.full(math.prod(shape), not name.startswith("d_")))
    return Failure(case.id, row, np.concatenate(right), np.concatenate(limits), np.concatenate(forward))


def _match(candidate: Candidate, values: Array, failure: Failure, dtype: str) -> Match:
    """A bug's values may be larger than the right ones, and so may their bounds be."""
    got, right, forward = failure.got.values, failure.right, failure.forward
    with np.errstate(all="ignore"):
        grown = np.maximum(1, np.where(right == 0, 1, np.abs(values) / np.abs(right)))
        room = SIDES * failure.limit * grown + np.where(right == 0, STEPS * ROUNDOFF[dtype] * np.abs(values), 0)
    within = _same(got, values, room)
    matches = bool(within.all())
    outputs = not matches and bool(within[forward].all() and not _same(got, right, failure.limit)[forward].all())
    distance = _distance(got[forward], values[forward]) if outputs else _distance(got, values)
    return Match(candidate.kind, candidate.name, candidate.sentence, distance, matches, outputs)


def _distance(got: Array, values: Array) -> float:
    """‖got - values‖ / ‖values‖, where the same infinities and what is not a number in both are no difference."""
    with np.errstate(all="ignore"):
        difference = float(np.linalg.norm(np.where(_same(got, values, 0), 0, np.abs(got - values))))
        size = float(np.linalg.norm(np.where(np.isfinite(values), values, 0)))
    return difference / size if size else difference


def _same(a: Array, b: Array, room: Array | float) -> Array:
    """Where two are no farther apart than that, or the same infinity, or both not a number."""
    with np.errstate(all="ignore"):
        return (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= room)
