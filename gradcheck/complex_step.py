"""The complex step: derivatives without cancellation, of functions that carry complex numbers through.

f(x + ih) = f(x) + ih f'(x) - h² f''(x)/2 - …, so f'(x) = Im f(x + ih) / h with an error of order h², and no difference of
nearly equal numbers: h = 1e-30 leaves only the rounding of f itself. Source: Squire & Trapp, SIAM Review 40 (1998) 110.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

STEP = 1e-30


def along(line: Callable[[Any], Any], step: float = STEP) -> Any:
    """d line(t) / dt at t = 0 from one evaluation at ih; `line` maps a complex number to an array."""
    return np.asarray(line(1j * step)).imag / step


def gradient(function: Callable[[Any], Any], x: Any, step: float = STEP) -> Any:
    """d function(x) / dx, shaped like x; `function` maps a complex128 array to a complex scalar.

    One evaluation per element. Raises TypeError if the result is real: then the function has dropped the imaginary part.
    """
    result = np.empty(np.shape(x))
    for index in np.ndindex(result.shape):
        moved = np.array(x, dtype=np.complex128)
        moved[index] += 1j * step
        value = np.asarray(function(moved))
        if not np.iscomplexobj(value):
            raise TypeError(f"expected a complex result from the function, got {value.dtype}: it is not differentiable so")
        result[index] = value.imag.item() / step
    return result


def norm_wise_error(computed: Any, expected: Any) -> float:
    """‖computed - expected‖ / ‖expected‖ in the 2-norm over all elements; 0 if both are 0, infinity if only expected is.

    Raises ValueError if the shapes differ: broadcasting would compare other numbers than those meant.
    """
    if np.shape(computed) != np.shape(expected):
        raise ValueError(f"expected the shape {np.shape(expected)}, got {np.shape(computed)}")
    distance = float(np.linalg.norm(np.ravel(np.asarray(computed) - np.asarray(expected))))
    size = float(np.linalg.norm(np.ravel(expected)))
    if not np.isfinite(distance):
        return float("inf")
    return distance / size if size else (float("inf") if distance else 0.0)
