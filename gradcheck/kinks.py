"""Kinks: where the slopes to both sides of the point differ, no gradient is right, and the complex step would see one side.

Slopes are measured with real steps, so that a function of max, clamp or abs is seen as it is, whatever the method.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck import complex_step
from refimpl.gradcheck.differences import CURVATURE, ROUNDING, Line
from refimpl.gradcheck.experiment import Experiment

STEPS = (7e-6, 1e-6, 1.2e-7)  # relative: a kink farther from the point than the last one is no kink at the point
AGAIN = (1.6e-7, 2.1e-7, 2.9e-7)
SEARCH = 0  # the number of the random direction that is searched


class Sides(NamedTuple):
    """The slopes of each output to the left and to the right, and by how much they may differ without a kink."""

    left: Any
    right: Any
    tolerance: Any


class Kink(NamedTuple):
    """An element (its position in the flat argument) at a kink, the outputs that have one, and every output's slopes."""

    element: int
    outputs: list[int]
    sides: Sides


def slopes(line: Line, start: Any, noise: Any, step: float) -> Sides:
    """One-sided slopes at t = 0 from f(0), f(±t/2) and f(±t): 2 d(t/2) - d(t), in which f'' cancels.

    What f''' leaves is about 1e-10 at the first step. A slope that happens to be small is held to the others' size.
    """
    right, left = ((4 * (line(t / 2) - start) - (line(t) - start)) / t for t in (step, -step))
    largest = np.fmax(np.abs(left), np.abs(right))
    usual = 1e-3 * np.sqrt(np.mean(np.square(np.nan_to_num(largest))))
    return Sides(left, right, CURVATURE * np.fmax(largest, usual) + ROUNDING * noise / step)


def measure(line: Line, start: Any, noise: Any, size: float) -> tuple[Any, Sides]:
    """Which outputs' slopes jump at t = 0, and the slopes.

    A jump counts if it stays down to the last step: that of a smooth function vanishes with the step, that of a kink beside
    the point vanishes once the step no longer reaches it.
    """
    for step in STEPS:
        found = slopes(line, start, noise, step * size)
        jumps = ~(np.abs(found.right - found.left) <= found.tolerance)  # what is not finite jumps, too
        if not jumps.any():
            return jumps, found
    for step in AGAIN:  # what rounding makes of a slope by chance, it does not make of the next
        other = slopes(line, start, noise, step * size)
        before, now = found.right - found.left, other.right - other.left
        jumps = jumps & ~(np.abs(now - before) > np.abs(before) / 2)
    return jumps, found


def find(experiment: Experiment, number: int) -> list[Kink]:
    """An argument's elements at kinks of outputs that count.

    The whole argument is moved at once; only where that shows a jump are halves searched, down to single elements.
    """
    x = experiment.exact[number]
    direction = experiment.direction(number, SEARCH).reshape(-1)

    def jumps(low: int, high: int) -> bool:
        part = np.zeros(x.size, x.dtype)
        part[low:high] = direction[low:high]
        line = experiment.line(number, part.reshape(x.shape))
        return bool(measure(line, experiment.value, experiment.noise, experiment.size(number))[0].any())

    elements = _narrowed(jumps, 0, x.size) if x.size and jumps(0, x.size) else iter(())
    return [kink for element in elements if (kink := at(experiment, number, element)).outputs]


def at(experiment: Experiment, number: int, element: int) -> Kink:
    """The slopes of each output along one element; `outputs` is empty if none jumps."""
    x = experiment.exact[number]
    unit = np.zeros(x.size, x.dtype)
    unit[element] = 1
    line = experiment.line(number, unit.reshape(x.shape))
    jumps, found = measure(line, experiment.value, experiment.noise, experiment.size(number))
    return Kink(element, [int(i) for i in np.flatnonzero(jumps & experiment.counted)], found)


def closely(experiment: Experiment, number: int, element: int, noise: Any) -> Kink:
    """The slopes by complex steps beside the point: of a kink too small for real steps, where forward carries them.

    noise: of the derivatives of cotangents · forward, which must jump by more.
    """
    x = experiment.exact[number]
    unit = np.zeros(x.size, x.dtype)
    unit[element] = 1
    unit = unit.reshape(x.shape)

    def beside(t: float) -> Any:
        point = [a + t * unit if i == number else a for i, a in enumerate(experiment.exact)]
        return complex_step.along(experiment.line(number, unit, point))

    step = STEPS[-1] * experiment.size(number)
    right, left = (2 * beside(t / 2) - beside(t) for t in (step, -step))
    tolerance = CURVATURE * np.fmax(np.abs(left), np.abs(right))
    seen = np.abs(experiment.cotangents * (right - left)).max(0)
    over = np.abs(experiment.cotangents @ (right - left)) > ROUNDING * noise + np.abs(experiment.cotangents) @ tolerance
    jumps = over.any() & (np.abs(right - left) > tolerance) & (seen > 1e-3 * seen.max())
    return Kink(element, [int(i) for i in np.flatnonzero(jumps)], Sides(left, right, tolerance))


def _narrowed(jumps: Callable[[int, int], bool], low: int, high: int) -> Iterator[int]:
    """The positions in low … high - 1, known to hold a jump, that may have one; all of them if no half shows it."""
    if high - low == 1:
        yield low
        return
    middle = (low + high) // 2
    halves = [half for half in ((low, middle), (middle, high)) if jumps(*half)]
    for half in halves or [(i, i + 1) for i in range(low, high)]:
        yield from _narrowed(jumps, *half)
