"""Controls: wrong gradients made from the user's own, which a check with any power must reject."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck.judging import FAIL


class Outcome(NamedTuple):
    """How many controls were rejected, of how many that changed the gradient, and the names of the others."""

    caught: int
    planted: int
    missed: tuple[str, ...]


NONE = Outcome(0, 0, ())


def disturbed(gradient: Any, factor: float) -> dict[str, Any]:
    """The wrong gradients (K, elements) by name."""
    if gradient.size and not gradient.any():
        return {"one element set to 1": np.eye(1, gradient.size, dtype=gradient.dtype).reshape(gradient.shape)}
    return {"sign flipped": -gradient, "zeroed": 0 * gradient, "rolled by one": np.roll(gradient, 1, axis=-1),
            f"times 1 + {factor:g}": gradient * (1 + factor)}


def outcome(gradient: Any, factor: float, project: Callable[[Any], Any], verdict: Callable[[Any], str]) -> Outcome:
    """Judges each wrong gradient, projected, as the right one was.

    A gradient of equal elements is the same when rolled: what changes less than half of what scaling does is no control.
    """
    right = project(gradient)
    size = np.linalg.norm(right.astype(np.float64))
    caught, missed = 0, []
    for name, wrong in disturbed(gradient, factor).items():
        found = project(wrong)
        if np.linalg.norm((found - right).astype(np.float64)) > factor / 2 * size:
            if verdict(found) == FAIL:
                caught += 1
            else:
                missed.append(name)
    return Outcome(caught, caught + len(missed), tuple(missed))
