"""Whether results are right: each element within the bound derived for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.golden.bounds import CHECKED, FACTOR, ROUNDOFF, SMALLEST
from refimpl.golden.vectors import Stored

DTYPES = tuple(ROUNDOFF)
PASS, MISMATCH, UNCHECKED, SKIPPED, CRASHED = "PASS", "MISMATCH", "UNCHECKED", "SKIPPED", "CRASHED"
"""CRASHED: the implementation under test ended without an answer that can be judged."""


class Difference(NamedTuple):
    """The element of a result that is farthest off, in units of its bound."""

    tensor: str
    where: tuple[int, ...]
    got: float
    expected: float
    off: float


class Verdict(NamedTuple):
    """One case's: what it is, the worst element of each result that came, elements not checked, and why."""

    id: str
    verdict: str
    worst: tuple[Difference, ...]
    unchecked: int
    elements: int
    reason: str

    @property
    def off(self) -> float:
        """The worst element's distance in units of its bound; infinite if what came can't be compared."""
        return max((difference.off for difference in self.worst), default=0.0 if self.verdict != MISMATCH else np.inf)


def tolerance(y: Array, limits: Array, dtype: str) -> tuple[Array, Array]:
    """c u B + η for every element, and whether the element is checked: c u B ≤ 0.1 |y|, or y = 0."""
    bound = FACTOR * ROUNDOFF[dtype] * limits.astype(np.float64)
    return bound + SMALLEST[dtype], (bound <= CHECKED * np.abs(y).astype(np.float64)) | (y == 0)


def judge(case: Stored, got: Mapping[str, Any], dtype: str) -> Verdict:
    """The verdict on the results of a valid case in a dtype."""
    differences, unchecked, whole = [], 0, []
    elements = sum(y.size for y in case.results.values())
    for name, y in case.results.items():
        if name not in got:
            return Verdict(case.id, MISMATCH, (), 0, elements, f"{name}: expected shape {y.shape}, got nothing; got "
                           f"{', '.join(sorted(got)) or 'no results'}")
        value = np.asarray(got[name])
        if value.shape != y.shape or value.dtype.kind not in "fiu":
            return Verdict(case.id, MISMATCH, (), 0, elements,
                           f"{name}: expected real numbers of shape {y.shape}, got {value.dtype} {value.shape}")
        limit, checked = tolerance(y, case.bounds[name], dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            off = np.abs(value.astype(np.float64) - y) / limit
        off = np.where(np.isnan(off), np.inf, off)
        unchecked += int((~checked).sum())
        if y.size and not checked.any():
            whole.append(name)
        if y.size:
            at = tuple(map(int, np.unravel_index(int(off.argmax()), y.shape)))
            differences.append(Difference(name, at, float(value[at]), float(y[at]), float(off[at])))
    worst = tuple(sorted(differences, key=lambda difference: -difference.off))
    if worst and worst[0].off > 1:
        return Verdict(case.id, MISMATCH, worst, unchecked, elements, "")
    if whole:
        return Verdict(case.id, UNCHECKED, worst, unchecked, elements, f"{dtype} is too coarse for {', '.join(whole)}")
    return Verdict(case.id, PASS, worst, unchecked, elements, "")


class Run(NamedTuple):
    """A whole verification, as reports tell it.

    entries: the selected cases' manifest entries by id; undeclared: cases left out because the implementation does not
    declare their function; matches: what a wrong result reproduces, by case, as diagnose.Match.
    """

    implementation: str
    dtype: str
    entries: Mapping[str, Mapping[str, Any]]
    verdicts: list[Verdict]
    undeclared: int
    matches: Mapping[str, list[Any]]
    seconds: float

    def counts(self) -> dict[str, int]:
        """How many cases have each verdict."""
        found = [verdict.verdict for verdict in self.verdicts]
        return {name: found.count(name) for name in (PASS, MISMATCH, UNCHECKED, SKIPPED, CRASHED)}
