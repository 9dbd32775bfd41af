"""Kinks: where the slopes to both sides of the point differ, no gradient is right, and the complex step would see one side.

Slopes are measured with real steps, so that a function of max, clamp or abs is seen as it is, whatever the method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck.differences import Line
from refimpl.gradcheck.experiment import Experiment

STEPS = (2.0**-17, 2.0**-20, 2.0**-23)
CURVATURE = 1e-6  # relative: slopes of second order differ by h² f''', about 1e-10 f''' at the first step
ROUNDING = 32  # in units of noise over step: each slope takes five values of f


SEARCH = 0  # the number of the random direction that is searched


class Sides(NamedTuple):
    """The slopes of each component to the left and to the right, and by how much they may differ without a kink."""

    left: Any
    right: Any
    tolerance: Any


class Kink(NamedTuple):
    """An element (its position in the flat argument) at a kink, the outputs that have one, and every output's slopes."""

    element: int
    outputs: list[int]
    sides: Sides


def slopes(line: Line, start: Any, noise: Any, step: float, scale: Any = 0.0) -> Sides:
    """One-sided slopes at t = 0 from f(0), f(±t/2) and f(±t): 2 d(t/2) - d(t), in which f'' cancels."""
    right, left = ((4 * (line(t / 2) - start) - (line(t) - start)) / t for t in (step, -step))
    largest = np.maximum(np.maximum(np.abs(left), np.abs(right)), scale)
    return Sides(left, right, CURVATURE * largest + ROUNDING * noise / step)


def measure(line: Line, start: Any, noise: Any, size: float, scale: Any = 0.0) -> tuple[bool, Sides]:
    """Whether the slopes jump at t = 0, and the slopes.

    A jump counts if it stays as the step shrinks: that of a smooth function vanishes with the step, that of a kink beside
    the point vanishes once the step no longer reaches it.
    """
    before = np.inf
    for step in STEPS:
        found = slopes(line, start, noise, step * size, scale)
        jump = np.abs(found.right - found.left)
        over = ~(jump <= found.tolerance)  # what is not finite is over, too
        if not over.any():
            return False, found
        largest = float(np.where(np.isnan(jump), np.inf, jump)[over].max())
        if np.isfinite(before) and largest >= before / 2:
            return True, found
        before = largest
    return True, found


def find(experiment: Experiment, number: int) -> list[Kink]:
    """An argument's elements at kinks.

    The whole argument is moved at once; only where that shows a jump are halves searched, down to single elements.
    """
    x = experiment.exact[number]
    direction = experiment.direction(number, SEARCH).reshape(-1)
    start = experiment.cotangents @ experiment.value
    along = experiment.gradients[number].reshape(len(start), -1) * direction

    def jumps(low: int, high: int) -> bool:
        part = np.zeros(x.size, x.dtype)
        part[low:high] = direction[low:high]
        scale = np.linalg.norm(np.nan_to_num(along[:, low:high].astype(np.float64)), axis=1)
        line = experiment.line(number, part.reshape(x.shape))
        return measure(line, start, experiment.value_noise, experiment.size(number), scale)[0]

    elements = _narrowed(jumps, 0, x.size) if x.size and jumps(0, x.size) else ()
    return [at(experiment, number, element) for element in elements]


def _narrowed(jumps: Callable[[int, int], bool], low: int, high: int) -> Any:
    """The positions in low … high - 1, known to hold a jump, that have one; all of them if no half shows it."""
    if high - low == 1:
        yield low
        return
    middle = (low + high) // 2
    halves = [half for half in ((low, middle), (middle, high)) if jumps(*half)]
    if not halves:
        yield from range(low, high)
    for half in halves:
        yield from _narrowed(jumps, *half)


def at(experiment: Experiment, number: int, element: int) -> Kink:
    """The slopes of each output along one element; `outputs` is empty if none jumps."""
    x, value = experiment.exact[number], experiment.value
    unit = np.zeros(x.size, x.dtype)
    unit[element] = 1
    line = experiment.outputs_line(number, unit.reshape(x.shape))
    _, found = measure(line, value, experiment.output_noise, experiment.size(number))
    jumps = ~(np.abs(found.right - found.left) <= found.tolerance)
    return Kink(element, [int(i) for i in np.flatnonzero(jumps)], found)
