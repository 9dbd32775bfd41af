"""Numbers and vectors: sums rounded once, and functions that take the complex numbers of a derivative along.

A complex number stands for its real part and carries a derivative as imaginary part; comparisons look at the real part.
"""

import cmath
import math
from collections.abc import Iterable, Mapping
from typing import Any

Number = float | complex
Vector = list[Number]
Weights = Mapping[str, Any]


def exp(x: Number) -> Number:
    """eˣ."""
    return cmath.exp(x) if isinstance(x, complex) else math.exp(x)


def log(x: Number) -> Number:
    """Natural logarithm."""
    return cmath.log(x) if isinstance(x, complex) else math.log(x)


def root(x: Number) -> Number:
    """√x."""
    return cmath.sqrt(x) if isinstance(x, complex) else math.sqrt(x)


def clamp(x: Number) -> Number:
    """x where 0 ≤ x ≤ 1, both ends included (they pass a derivative on); else the nearer end."""
    return x if 0 <= x.real <= 1 else float(x.real > 1)


def relu(x: Number) -> Number:
    """x above 0, else 0."""
    return x if x.real > 0 else 0.0


def total(numbers: Iterable[Number]) -> Number:
    """Σ, rounded once."""
    numbers = list(numbers)
    real = math.fsum(x.real for x in numbers)
    if any(isinstance(x, complex) for x in numbers):
        return complex(real, math.fsum(x.imag for x in numbers))
    return real


def dot(left: Vector, right: Vector) -> Number:
    """Σ left · right."""
    return total(a * b for a, b in zip(left, right, strict=True))


def add(left: Vector, right: Vector) -> Vector:
    """left + right."""
    return [a + b for a, b in zip(left, right, strict=True)]


def scaled(factor: float, vector: Vector) -> Vector:
    """factor · vector."""
    return [factor * value for value in vector]


def product(matrix: Any, vector: Vector) -> Vector:
    """Matrix (outputs, inputs) times vector."""
    return [dot(row, vector) for row in matrix]


def cut(vector: Vector, width: int) -> list[Vector]:
    """Pieces of one width, in order: what the heads of a vector are."""
    return [vector[start : start + width] for start in range(0, len(vector), width)]


def beside(vectors: Iterable[Vector]) -> Vector:
    """One vector of all, in order."""
    return [value for vector in vectors for value in vector]


def log_softmax(logits: Vector) -> Vector:
    """s - log Σ exp(s)."""
    top = max(s.real for s in logits)
    logarithm = log(total(exp(s - top) for s in logits))
    return [s - top - logarithm for s in logits]


def dropped(vector: Vector, keep: list[bool] | None, rate: float) -> Vector:
    """x / (1 - rate) where keep says so, else 0; without a keep-mask x."""
    if keep is None:
        return vector
    return [value / (1 - rate) if kept else 0.0 for value, kept in zip(vector, keep, strict=True)]
