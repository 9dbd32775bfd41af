"""Central differences and their Richardson extrapolation, each with an estimate of its own error.

A line is a function of one real number t: f(x + t u), as a vector. Source of the extrapolation: Ridders, Advances in
Engineering Software 4 (1982) 75.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

Line = Callable[[Any], Any]
LEVELS = 4
STEPS = {"richardson": (2.0**-6, 2.0**-10, 2.0**-14, 2.0**-18), "central": (2.0**-17, 2.0**-20, 2.0**-23)}
"""First step and what follows where it does not do, relative to the argument's size; powers of two move x exactly."""


class Estimate(NamedTuple):
    """A derivative and the estimate of its error, of the same shape."""

    value: Any
    error: Any


def central(line: Line, step: float, noise: Any) -> Estimate:
    """(f(t) - f(-t)) / 2t, its error from h² (compared with 2t) and from the noise of f over t."""
    value, wider = _difference(line, step), _difference(line, 2 * step)
    return Estimate(value, np.abs(wider - value) / 3 + noise / step)


def richardson(line: Line, step: float, noise: Any, levels: int = LEVELS) -> Estimate:
    """Central differences at t, t/2, … with h², h⁴, … eliminated; its error from what the last elimination changed."""
    table = [_difference(line, step / 2**level) for level in range(levels)]
    for order in range(1, levels):
        before = table[-1]
        table = [(4**order * fine - coarse) / (4**order - 1) for coarse, fine in pairwise(table)]
    return Estimate(table[0], np.abs(table[0] - before) + noise * 2 ** (levels - 1) / step)


def best(line: Line, method: str, noise: Any, size: float) -> Estimate:
    """The method's derivative at t = 0 with the largest of its steps at which rounding, not f's shape, limits it.

    noise: of the values of f. size: of what u moves, steps are relative to it. Where f is not finite or has a kink between
    the points, smaller steps follow; the estimate with the smallest error is kept.
    """
    found: Estimate | None = None
    rule = richardson if method == "richardson" else central
    for step in STEPS[method]:
        estimate = rule(line, step * size, noise)
        rounding = noise / (step * size) + np.finfo(np.asarray(noise).dtype).eps * np.abs(estimate.value)
        if found is None or _largest(estimate.error) < _largest(found.error):
            found = estimate
        if (estimate.error <= 32 * rounding).all():
            break
    assert found is not None
    return found


def _largest(error: Any) -> float:
    return float(np.where(np.isnan(error), np.inf, error).max())


def _difference(line: Line, step: float) -> Any:
    return (line(step) - line(-step)) / (2 * step)
