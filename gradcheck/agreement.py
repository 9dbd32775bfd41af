"""Whether the complex step sees the function that real numbers see. If not, it is refused, never taken for a derivative."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np

from refimpl.gradcheck import complex_step, differences, kinks, tracing
from refimpl.gradcheck.differences import Line
from refimpl.gradcheck.errors import GradcheckError
from refimpl.gradcheck.experiment import Experiment
from refimpl.gradcheck.subject import Subject

CLEARLY = 8  # in units of the estimated error of a difference
INSTEAD = '; use method "richardson", which needs real numbers alone'


@contextmanager
def strict() -> Iterator[None]:
    """NumPy's warning that an imaginary part is dropped is an error; other floating-point warnings are not ours to give."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", np.exceptions.ComplexWarning)
        yield


def refuse_failure(subject: Subject) -> None:
    """Raises GradcheckError, with the place, if forward does not take complex128 arrays as it takes real ones."""
    random = np.random.default_rng(0)
    moved = [a + 1j * complex_step.STEP * random.standard_normal(a.shape) for a in subject.exact_point]
    with told():
        subject.outputs(moved)


@contextmanager
def told() -> Iterator[None]:
    """Turns an error of a function that was given complex numbers into one that says where, and what to do instead."""
    try:
        yield
    except GradcheckError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {error}{tracing.place_of(error.__traceback__)}"
        raise GradcheckError(f"forward: expected to carry complex numbers through, got {what}{INSTEAD}") from error


def refuse_disagreement(experiment: Experiment, number: int, direction: Any) -> None:
    """Raises GradcheckError, naming suspects, if complex step and real slopes disagree along a direction in one argument."""
    line, size = experiment.line(number, direction), experiment.size(number)
    found = disagreement(line, experiment.value, experiment.noise, size, experiment.counted)
    if found:
        refuse(experiment.subject.forward, experiment.exact, experiment.subject.names[number], found)


def arbitrate(experiment: Experiment, number: int, direction: Any, row: int, gradient: float, derivative: float) -> None:
    """Raises GradcheckError if a gradient is wrong by the complex step but right by real differences, closely measured."""
    line, rows = experiment.line(number, direction), experiment.cotangents[[row]]
    real = differences.best(line, rows, "richardson", experiment.noise, experiment.size(number))
    apart = abs(real.value[0] - derivative)
    if apart > CLEARLY * real.error[0] + 1e-12 * abs(derivative) and abs(real.value[0] - gradient) < apart / 2:
        refuse(experiment.subject.forward, experiment.exact, experiment.subject.names[number], (derivative, real.value[0]))


def disagreement(line: Line, start: Any, noise: Any, size: float, counted: Any = True) -> tuple[float, float] | None:
    """The complex step's derivative and the real one of the output where they differ most; None if they agree.

    Either one-sided slope will do, and any of the steps: only a disagreement that no step lifts counts.
    """
    derivative = complex_step.along(line)
    for step in kinks.STEPS:
        found = kinks.slopes(line, start, noise, step * size)
        off = np.fmin(np.abs(derivative - found.left), np.abs(derivative - found.right))
        excess = np.where(counted & (off > found.tolerance), off, 0)
        if not excess.any():
            return None
    worst = int(excess.argmax())
    return float(derivative[worst]), float(found.right[worst])


def refuse(forward: Callable[..., Any], point: list[Any], name: str, found: tuple[float, float]) -> NoReturn:
    """Raises GradcheckError that names what in forward may be at fault."""
    named = ", ".join(tracing.suspects(forward, point)) or "not found by name (numpy.absolute, numpy.conjugate, a cast?)"
    raise GradcheckError(
        f"forward: complex step and real differences disagree for {name} ({found[0]:.6g} and {found[1]:.6g}): some "
        f"operation drops or conjugates the imaginary part: {named}{INSTEAD}")
