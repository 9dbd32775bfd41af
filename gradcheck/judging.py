"""When a gradient passes: relative error within a limit that follows from the method, the dtype, and the noise measured."""

from typing import Any, NamedTuple

import numpy as np

PASS, FAIL, KINK, UNCHECKED = "PASS", "FAIL", "KINK", "UNCHECKED"
METHODS = ("complex-step", "richardson", "central")
FLOOR = 8  # multiple of the noise floor that a relative error may reach: the floor is the largest of a few repeats
NOTHING = "gradient and derivative are exactly 0: nothing of vjp was seen at work (name it in zeros if it must be so)"
SMALL = "an element much smaller than the others is wrong"
EXCUSED = "an element is off by more than its own noise, but by no more than rounding of the largest could explain"
EXCUSE = 8  # units of roundoff of the largest element
OWN_NOISE = 64  # the same of one element, whose few repeats may all be small by chance


class Limits(NamedTuple):
    """norm: of the relative error; element: of each element's own; cap: where noise leaves the check no meaning;
    factor: the smallest scaling of a gradient that a check with power must reject; roundoff: of the gradient's dtype."""

    norm: float
    element: float
    cap: float
    factor: float
    roundoff: float


def limits(method: str, dtype: Any) -> Limits:
    """Of a method for gradients of a dtype.

    Right gradients in float64 show errors of 1e-15 against the complex step, 4e-12 against Richardson's extrapolation and
    1e-10 against central differences; in float32, whose roundoff is 6e-8, some of these units whatever the method.
    """
    eps = float(np.finfo(dtype).eps)
    if dtype == np.float32:
        return Limits(4e-6, 1e-2, 1e-3, 1e-2, eps)
    if method in ("richardson", "central"):
        norm, element = (1e-9, 1e-6) if method == "richardson" else (5e-8, 1e-5)
        return Limits(norm, element, 1e-7, 1e-6, eps)
    in_float64 = eps / float(np.finfo(np.float64).eps)  # the complex step and jvp go as far as roundoff
    return Limits(1e-12 * in_float64, 1e-8, 1e-7, 1e-6, eps)


class Judgement(NamedTuple):
    """worst: (row, column) of what decided, None if there was nothing. limit: of relative_error, as used."""

    verdict: str
    relative_error: float
    noise_floor: float
    limit: float
    worst: tuple[int, int] | None
    reason: str


def judge(gradient: Any, derivative: Any, noise: Any, limit: Limits) -> Judgement:
    """The verdict on (rows, columns): a row for each cotangent, or for all directions together; a column for each element.

    Norm-wise relative error decides, row by row; beside it each element is held to its own size and noise, so that none
    hides behind larger ones. What noise could explain is excused as UNCHECKED, never certified.
    """
    if not gradient.size:
        return Judgement(UNCHECKED, 0.0, 0.0, limit.norm, None, "no elements to check")
    distance = np.abs(gradient - derivative)
    if not np.isfinite(gradient).all():
        return Judgement(FAIL, np.inf, 0.0, limit.norm, _at(~np.isfinite(gradient)), "the gradient is not finite")
    if not np.isfinite(derivative).all():
        where = _at(~np.isfinite(derivative))
        return Judgement(UNCHECKED, np.inf, np.inf, limit.norm, where, "the derivative is not finite")
    sizes, errors, floors = (np.linalg.norm(a.astype(np.float64), axis=1) for a in (derivative, distance, noise))
    if not sizes.any() and not errors.any():
        return Judgement(UNCHECKED, 0.0, 0.0, limit.norm, None, NOTHING)
    allowed = np.fmax(limit.norm * sizes, FLOOR * floors)
    row = int(_over(errors, allowed).argmax())
    off, floor, most = (float(_over(a, sizes)[row]) for a in (errors, floors, np.where(sizes > 0, allowed, 0)))
    numbers = off, floor, max(most, limit.norm)
    excess = _over(distance, np.fmax(limit.element * np.abs(derivative), OWN_NOISE * noise))
    worst = row, int(distance[row].argmax())
    if errors[row] > allowed[row]:
        return Judgement(FAIL, *numbers, worst, "")
    gross = np.where(distance > EXCUSE * limit.roundoff * np.abs(derivative).max(1, keepdims=True), excess, 0)
    if gross.max() > 1:
        return Judgement(FAIL, *numbers, _at(gross == gross.max()), SMALL)
    if (allowed > limit.cap * sizes).any():
        floor = float(_over(floors, sizes).max())
        return Judgement(UNCHECKED, *numbers, worst, f"noise floor {floor:.1e}: too high to tell right from wrong")
    if excess.max() > 1:
        return Judgement(UNCHECKED, *numbers, _at(excess == excess.max()), EXCUSED)
    return Judgement(PASS, *numbers, worst, "")


def _over(above: Any, below: Any) -> Any:
    """above / below, 0 where above is 0, infinite where only below is."""
    return np.where(above == 0, 0, above / np.where(below == 0, np.where(above == 0, 1, 0), below))


def _at(where: Any) -> tuple[int, int]:
    row, column = np.unravel_index(int(np.argmax(where)), where.shape)
    return int(row), int(column)
