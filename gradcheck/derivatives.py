"""One derivative alone, with the estimate of its error: to look at a method, or to use it for something else."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck import agreement, complex_step, differences
from refimpl.gradcheck.differences import Estimate
from refimpl.gradcheck.errors import GradcheckError
from refimpl.gradcheck.experiment import size_of
from refimpl.gradcheck.judging import METHODS
from refimpl.gradcheck.subject import named_arrays


class Derivative(NamedTuple):
    """A derivative, shaped like the function's result, and the estimate of its absolute error, of the same shape."""

    value: Any
    error: Any


def derivative(
    f: Callable[[Any], Any], x: Any, direction: Any = None, method: str = "complex-step", step: float | None = None
) -> Derivative:
    """d f(x + t direction) / dt at t = 0; without a direction x is one number.

    method: "complex-step", "richardson" or "central". step: this one, as it is, in place of the method's own choice (the
    error then tells what it costs). Raises GradcheckError for input that cannot be differentiated, and where the complex
    step meets an operation that drops an imaginary part.
    """
    _, (given,) = named_arrays([x])
    point, toward = given.astype(np.result_type(np.float64, given.dtype)), direction
    size = size_of(point)
    if method not in METHODS:
        raise GradcheckError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    if step is not None and not 0 < step < np.inf:
        raise GradcheckError(f"step: expected a number above 0, got {step}")
    if toward is None and point.ndim:
        raise GradcheckError(f"direction: expected one of shape {point.shape}, got none")
    toward = np.asarray(1 if toward is None else toward, point.dtype)
    if toward.shape != point.shape:
        raise GradcheckError(f"direction: expected shape {point.shape}, got {toward.shape}")

    def line(t: Any) -> Any:
        return np.asarray(f(point + t * toward)).reshape(-1)

    with agreement.strict():
        start = line(0.0)
        noise = differences.noise_of(lambda t: line(t * size), start)
        if method == "complex-step":
            with agreement.told():
                found = _complex(line, step or complex_step.STEP)
            if step is None and (apart := agreement.disagreement(line, start, noise, size)):
                agreement.refuse(f, [point], "x", apart)
        elif step is None:
            found = differences.best(line, None, method, noise, size)
        else:
            rule = differences.richardson if method == "richardson" else differences.central
            found = rule(line, step, noise).projected(None)
    shape = np.shape(f(point))
    return Derivative(*(part.reshape(shape)[()] for part in found))


def _complex(line: Callable[[Any], Any], step: float) -> Estimate:
    """The complex step; its error is of order h², as a second step tells."""
    value = complex_step.along(line, step)
    wider = complex_step.along(line, 2 * step)
    return Estimate(value, np.abs(wider - value) / 3 + np.finfo(value.dtype).eps * np.abs(value))
