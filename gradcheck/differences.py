"""Central differences and their Richardson extrapolation, each with an estimate of its own error.

A line is a function of one real number t: f(x + t u), as a vector of outputs. Differences are taken output by output and
projected afterwards, so that outputs that do not move leave no rounding behind. Source of the extrapolation: Ridders,
Advances in Engineering Software 4 (1982) 75; of the noise estimate: Moré & Wild, SIAM J. Sci. Comput. 33 (2011) 1292.
"""

from collections.abc import Callable
from itertools import pairwise
from math import comb
from typing import Any, NamedTuple

import numpy as np

Line = Callable[[Any], Any]
LEVELS = 4
STEPS = {"richardson": (1.2e-1, 1.5e-2, 1e-3, 6e-5, 4e-6, 2.5e-7), "central": (7e-6, 1e-6, 1.2e-7)}
"""First step and what follows where it does not do, relative to the size of what moves."""
NEAR = 1.2e-7  # the smallest step, at which every estimate must hold: else a kink lies between
CURVATURE, ROUNDING = 1e-6, 32  # how far two differences may be apart: relative, and in units of noise over step
SPACING, ORDER, POINTS = 1e-6, 5, 12  # of the differences that show noise: a smooth function has none of fifth order there


class Estimate(NamedTuple):
    """A derivative and the estimate of its error, of the same shape."""

    value: Any
    error: Any


class Raw(NamedTuple):
    """By output: a derivative, what its last refinement changed, and what rounding may do to it."""

    value: Any
    correction: Any
    rounding: Any

    def projected(self, rows: Any) -> Estimate:
        """rows · derivative; None for rows stands for each output by itself."""
        if rows is None:
            return Estimate(self.value, np.abs(self.correction) + self.rounding)
        rounding = np.sqrt(np.square(rows) @ np.square(self.rounding))
        return Estimate(rows @ self.value, np.abs(rows @ self.correction) + rounding)


def central(line: Line, step: float, noise: Any) -> Raw:
    """(f(t) - f(-t)) / 2t; its error from h² (compared with 2t) and from the noise of f over t."""
    value, wider = difference(line, step), difference(line, 2 * step)
    return _raw(value, (wider - value) / 3, noise / step, noise / (2 * step))


def richardson(line: Line, step: float, noise: Any, levels: int = LEVELS) -> Raw:
    """Central differences at t, t/2, … with h², h⁴, … eliminated; its error from what the last elimination changed."""
    table = [difference(line, step / 2**level) for level in range(levels)]
    for order in range(1, levels):
        before = table[-1]
        table = [(4**order * fine - coarse) / (4**order - 1) for coarse, fine in pairwise(table)]
    return _raw(table[0], table[0] - before, noise * 2 ** (levels - 1) / step, noise / (2 * step))


def best(line: Line, rows: Any, method: str, noise: Any, size: float) -> Estimate:
    """rows · the method's derivative at t = 0, at the largest of its steps at which rounding, not f's shape, limits it.

    noise: of each output. size: of what u moves, steps are relative to it. Where f is not finite or has a kink between the
    points, smaller steps follow; the estimate with the smallest error is kept.
    """
    rule = richardson if method == "richardson" else central
    near = difference(line, NEAR * size)
    found: Estimate | None = None
    for step in STEPS[method]:
        raw = rule(line, step * size, noise)
        estimate = _held_against(near, noise / (NEAR * size), raw, rows)
        if found is None or _largest(estimate.error) < _largest(found.error):
            found = estimate
        if (estimate.error <= ROUNDING * raw._replace(correction=0 * raw.correction).projected(rows).error).all():
            break
    assert found is not None
    return found


def noise_of(line: Line, value: Any, spacing: float = SPACING) -> Any:
    """How far rounding moves each output, from fifth differences along a line to the quieter side of t = 0.

    A few differences may be small by chance: no output is taken for quieter, relative to its size, than half of all are.
    """
    sides = []
    for step in (spacing, -spacing):
        table = np.stack([line(i * step) for i in range(POINTS)])
        fifth = np.diff(table, ORDER, axis=0)
        sides.append(3 * np.sqrt(np.square(fifth).mean(0) / comb(2 * ORDER, ORDER)))
    found, size = np.fmin(*sides), np.abs(value)
    usual = np.nanmedian(found[size > 0] / size[size > 0]) if size.any() else 0.0
    return np.fmax(found, np.fmax(usual, np.finfo(value.dtype).eps) * size)


def difference(line: Line, step: float) -> Any:
    """(f(t) - f(-t)) / 2t."""
    return (line(step) - line(-step)) / (2 * step)


def _raw(value: Any, correction: Any, rounding: Any, unmoved: Any) -> Raw:
    """Of an output that did not move at all, no more is unknown than what would not have moved it."""
    return Raw(value, correction, np.where((value == 0) & (correction == 0), unmoved, rounding))


def _held_against(near: Any, rounding: Any, raw: Raw, rows: Any) -> Estimate:
    """The estimate, with an error as large as its distance from the difference nearest to the point, if that is too far."""
    estimate = raw.projected(rows)
    other = Raw(near, 0 * near, ROUNDING * rounding).projected(rows)
    off = np.abs(other.value - estimate.value)
    allowed = other.error + CURVATURE * np.abs(estimate.value) + estimate.error
    return Estimate(estimate.value, np.where(off <= allowed, estimate.error, np.fmax(off, estimate.error)))


def _largest(error: Any) -> float:
    return float(np.where(np.isnan(error), np.inf, error).max())
