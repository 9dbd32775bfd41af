"""The model and its optimisers once more, in Python numbers and loops alone: slow, and written from the equations only.

Vectors are lists, matrices lists of rows, parameters {name: nested lists}. One function for each equation; a row of the
batch is computed by itself, a position by itself, a head by itself. Every number may be complex, so that the complex step
differentiates the same equations (derivative.py). Sources: [AA] 1907.01470, [AS] 1905.07799, [XL] 1901.02860,
[AI] 1809.10853, [GS] 1609.04309, Vaswani et al. 1706.03762.
"""

from .derivative import gradients
from .forward import Result, forward, initial_past
from .optimizers import ScalarOptimizer, clip_scales

__all__ = ["Result", "ScalarOptimizer", "clip_scales", "forward", "gradients", "initial_past"]
