"""What one check measures with: cotangents, the gradients that vjp returns for them, and how far rounding moves both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refimpl.gradcheck.subject import Subject, shaken

COTANGENTS = 2  # of a check of every element: a vjp that is right for one of them only is wrong
REPEATS = 4
SAME = 1e3  # units of roundoff by which two runs may differ (sums of threads or devices in another order)


@dataclass(frozen=True)
class Experiment:
    """A point, K cotangents (K, outputs), scaled so that the largest gradient is about 1, and the gradients there.

    gradients: for each argument (K, *shape). spread: for each of some repeats with everything moved by roundoff, how far the
    gradients moved. output_noise (outputs), value_noise (K): the same of the outputs, and of cotangents · outputs. unsteady:
    what differs from run to run.
    """

    subject: Subject
    exact: list[Any]
    value: Any
    cotangents: Any
    gradients: list[Any]
    spread: list[list[Any]]
    output_noise: Any
    value_noise: Any
    unsteady: tuple[str, ...]
    seed: int

    @cached_property
    def wider_spread(self) -> list[list[Any]]:
        """The spread over more repeats, for a closer look where a check fails."""
        return self.spread + measured(self.subject, self.cotangents, self.seed, 3 * REPEATS)[1]

    def outputs_line(self, number: int, direction: Any, point: list[Any] | None = None) -> Callable[[Any], Any]:
        """t -> forward(…, x + t direction, …) as a vector, for one argument x; t real or complex."""
        start = self.exact if point is None else point

        def at(t: Any) -> Any:
            dtype = np.result_type(self.subject.work, np.complex64) if isinstance(t, complex) else self.subject.work
            arguments = [argument.astype(dtype) for argument in start]
            arguments[number] = arguments[number] + t * direction
            return self.subject.outputs(arguments)

        return at

    def line(self, number: int, direction: Any, rows: Any = None, point: list[Any] | None = None) -> Callable[[Any], Any]:
        """The same, projected: rows, by default the cotangents, times forward."""
        rows, outputs = self.cotangents if rows is None else rows, self.outputs_line(number, direction, point)
        return lambda t: rows @ outputs(t)

    def size(self, number: int) -> float:
        """The root mean square of an argument's elements, 1 if they are all 0, rounded to a power of two."""
        return power_of_two(float(np.sqrt(np.mean(np.square(self.exact[number])))))

    def direction(self, number: int, which: int) -> Any:
        """A random direction of length 1 for an argument: signed Gaussian."""
        x = self.exact[number]
        direction = stream(self.seed, 3, number, which).standard_normal(x.shape).astype(x.dtype)
        return direction / max(float(np.linalg.norm(direction.astype(np.float64))), 1e-300)

    def rescaled(self, factors: Any) -> "Experiment":
        """The same experiment with each cotangent times a power of two."""
        rows = self.cotangents * factors[:, None]
        gradients, spread = measured(self.subject, rows, self.seed)
        return replace(self, cotangents=rows, gradients=gradients, spread=spread, value_noise=self.value_noise * factors)


def prepare(subject: Subject, cotangent: Any, count: int, seed: int) -> Experiment:
    """Draws `count` signed Gaussian cotangents, or takes the one given, and measures with them."""
    exact = subject.exact_point
    value = subject.outputs(exact)
    if cotangent is None:
        rows = [subject.flat(subject.structured(stream(seed, 0, i).standard_normal(value.size))) for i in range(count)]
    else:
        rows = [subject.flat(cotangent)]
    given = np.stack(rows)
    first = [subject.gradients(row, subject.point) for row in given]
    largest = [max((float(np.abs(g).max(initial=0)) for g in found), default=0.0) for found in first]
    given = given / np.array([[power_of_two(size)] for size in largest])
    gradients, spread = measured(subject, given, seed)
    moves = np.stack([subject.outputs(shaken(exact, stream(seed, 1, i))) - value for i in range(REPEATS)])
    eps = np.finfo(subject.work).eps
    of_outputs = np.fmax(eps * np.abs(value), np.abs(moves).max(0))
    of_values = np.fmax(eps * np.abs(given @ value), np.abs(moves @ given.T).max(0))
    unsteady = _unsteady(subject, value, given, gradients)
    return Experiment(subject, exact, value, given, gradients, spread, of_outputs, of_values, unsteady, seed)


def measured(subject: Subject, rows: Any, seed: int, repeats: int = REPEATS) -> tuple[list[Any], list[list[Any]]]:
    """The gradients for each row, (K, *shape) by argument, and how far they move in repeats at places moved by roundoff."""

    def at(rows: Any, point: list[Any]) -> list[Any]:
        found = [subject.gradients(row, point) for row in rows]
        return [np.stack(gradients).astype(subject.work) for gradients in zip(*found, strict=True)]

    gradients = at(rows, subject.point)
    spread = []
    for i in range(repeats):
        random = stream(seed, 2, i, repeats)
        moved = at([subject.shaken(row, random) for row in rows], shaken(subject.point, random))
        spread.append([new - old for new, old in zip(moved, gradients, strict=True)])
    return gradients, spread


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers that depend on seed and purpose alone."""
    return np.random.default_rng([seed, *purpose])


def power_of_two(size: float) -> float:
    """The power of two nearest to a size; 1 for 0 and what is not finite."""
    return float(2.0 ** round(np.log2(size))) if 0 < size < np.inf else 1.0


def _unsteady(subject: Subject, value: Any, rows: Any, gradients: list[Any]) -> tuple[str, ...]:
    """What differs by more than rounding when it is computed again at the same place."""
    found = []
    again = subject.outputs(subject.exact_point)
    pairs = [(f"{subject.name}'s result", value, again, np.finfo(subject.work).eps)]
    for i, new in enumerate(subject.gradients(rows[0], subject.point)):
        pairs.append((f"vjp's gradient of {subject.names[i]}", gradients[i][0], new, np.finfo(new.dtype).eps))
    for name, old, new, eps in pairs:
        off, size = np.abs(new - old).max(initial=0), np.abs(old).max(initial=0)
        if off > SAME * eps * size:
            found.append(f"{name} differs from run to run by {off / size:.1g} relative")
    return tuple(found)
