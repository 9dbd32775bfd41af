"""What one check measures with: cotangents, the gradients that vjp returns for them, and how far rounding moves both."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refimpl.gradcheck.differences import Line, noise_of
from refimpl.gradcheck.subject import Subject, shaken

COTANGENTS = 2  # of a check of every element: a vjp that is right for one of them only is wrong
REPEATS = 4
SAME = 1e3  # units of roundoff by which two runs may differ (sums of threads or devices in another order)


@dataclass(frozen=True)
class Experiment:
    """A point, K cotangents (K, outputs), scaled so that the largest gradient is about 1, and the gradients there.

    exact: the point in the dtype in which derivatives are taken; value, noise: forward's outputs there, and how far rounding
    moves them. moves: a direction of all arguments together, in which no element stands nearly still. gradients: for each
    argument (K, *shape). spread: for each of some repeats with everything moved by roundoff, how far the gradients moved.
    unsteady: what differs from run to run.
    """

    subject: Subject
    exact: list[Any]
    value: Any
    noise: Any
    moves: list[Any]
    cotangents: Any
    gradients: list[Any]
    spread: list[list[Any]]
    unsteady: tuple[str, ...]
    seed: int

    @property
    def counted(self) -> Any:
        """Which outputs the cotangents see."""
        return (self.cotangents != 0).any(0)

    def line(self, number: int, direction: Any, point: list[Any] | None = None) -> Line:
        """t -> forward(…, x + t direction, …) as a vector, for one argument x; t real or complex."""
        return _line(self.subject, self.exact if point is None else point, {number: direction})

    def size(self, number: int) -> float:
        """The root mean square of an argument's elements, 1 if they are all 0, rounded to a power of two."""
        return size_of(self.exact[number])

    def direction(self, number: int, which: int) -> Any:
        """A random direction of length 1 for an argument: signed Gaussian."""
        x = self.exact[number]
        direction = stream(self.seed, 3, number, which).standard_normal(x.shape).astype(x.dtype)
        return direction / max(float(np.linalg.norm(direction.astype(np.float64))), 1e-300)

    def rescaled(self, factors: Any) -> "Experiment":
        """The same experiment with each cotangent times a power of two."""
        rows = self.cotangents * factors[:, None]
        gradients, spread = measured(self.subject, rows, self.seed)
        return replace(self, cotangents=rows, gradients=gradients, spread=spread)


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
    given = given / np.array([[power_of_two(size)] for size in largest], given.dtype)
    gradients, spread = measured(subject, given, seed)
    moves = [size_of(a) * stream(seed, 1, i).uniform(0.7, 1.3, a.shape) for i, a in enumerate(exact)]
    noise = noise_of(_line(subject, exact, dict(enumerate(moves))), value)
    for i in range(REPEATS):
        noise = np.fmax(noise, np.abs(subject.outputs(shaken(exact, stream(seed, 1, i, 1), subject.work)) - value))
    unsteady = _unsteady(subject, value, given, gradients)
    return Experiment(subject, exact, value, noise, moves, given, gradients, spread, unsteady, seed)


def _line(subject: Subject, point: list[Any], moves: Mapping[int, Any]) -> Line:
    def at(t: Any) -> Any:
        dtype = np.result_type(subject.work, np.complex64) if isinstance(t, complex) else subject.work
        arguments = [argument.astype(dtype) for argument in point]
        for number, direction in moves.items():
            arguments[number] = arguments[number] + t * direction
        return subject.outputs(arguments)

    return at


def measured(subject: Subject, rows: Any, seed: int) -> tuple[list[Any], list[list[Any]]]:
    """The gradients for each row, (K, *shape) by argument, and how far they move in repeats at places moved by roundoff."""

    def at(rows: Any, point: list[Any]) -> list[Any]:
        found = [subject.gradients(row, point) for row in rows]
        return [np.stack(gradients).astype(subject.work) for gradients in zip(*found, strict=True)]

    gradients = at(rows, subject.point)
    dtypes = [argument.dtype for argument in subject.point]
    spread = []
    for i in range(REPEATS):
        moves = {}
        for dtype in dict.fromkeys(dtypes):  # a gradient in float64 may not be as rough as an argument beside it in float32
            random = stream(seed, 2, i)
            moves[dtype] = at([subject.shaken(row, random, dtype) for row in rows], shaken(subject.point, random, dtype))
        spread.append([moves[dtype][n] - gradients[n] for n, dtype in enumerate(dtypes)])
    return gradients, spread


def stream(seed: int, *purpose: int) -> np.random.Generator:
    """Random numbers that depend on seed and purpose alone."""
    return np.random.default_rng([seed, *purpose])


def size_of(x: Any) -> float:
    """The root mean square of an array's elements, 1 if they are all 0, rounded to a power of two."""
    return power_of_two(float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0)


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
