"""Products of queries and keys, of weights and values, over the S positions that each query sees.

[past ; block] is cut, or padded with rows that do not exist, to the S + T - 1 rows that the block's queries see among them.
Query t then sees rows t … t + S - 1, a diagonal band of one product over all rows.
"""

from types import ModuleType
from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, diagonals, module_of


class Saved(NamedTuple):
    """The two factors, heads first, and the rows of [past ; block] that the second was cut from."""

    left: Array
    window: Array
    shape: tuple[int, ...]
    first: int


def exists(xp: ModuleType, past: int, block: int, size: int, attend_self: bool) -> Array:
    """Which of the S positions of query t exist, nearest first: (T, S) boolean."""
    nearest = past + np.arange(block)[:, None] - (not attend_self)
    return xp.asarray(nearest - np.arange(size) >= 0)


def scores_forward(queries: Array, keys: Array, size: int, attend_self: bool) -> tuple[Array, Saved]:
    """q_t · k_c, c the x-th nearest position of t (0 if it does not exist).

    queries (B, T, H, E), keys (B, P + T, H, E) -> (B, H, T, S).
    """
    left, (window, first) = queries.transpose(0, 2, 1, 3), _window(keys, queries.shape[1], size, attend_self)
    scores = _band(left @ window.swapaxes(-1, -2), size)
    return scores, Saved(left, window, keys.shape, first)


def scores_backward(d_scores: Array, saved: Saved) -> tuple[Array, Array]:
    """dq_t = Σ_x ds_tx k_c,  dk_c = Σ_t ds_tx q_t;  d_scores (B, H, T, S) -> (B, T, H, E), (B, P + T, H, E)."""
    d_product = _spread(d_scores)
    d_keys = _unwindow(d_product.swapaxes(-1, -2) @ saved.left, saved)
    return (d_product @ saved.window).transpose(0, 2, 1, 3), d_keys


def mix_forward(weights: Array, values: Array, attend_self: bool) -> tuple[Array, Saved]:
    """y_t = Σ_x a_tx v_c, c the x-th nearest position of t.

    weights (B, H, T, S), values (B, P + T, H, E) -> (B, T, H, E).
    """
    window, first = _window(values, weights.shape[2], weights.shape[3], attend_self)
    product = _spread(weights)
    return (product @ window).transpose(0, 2, 1, 3), Saved(product, window, values.shape, first)


def mix_backward(dy: Array, saved: Saved) -> tuple[Array, Array]:
    """da_tx = dy_t · v_c,  dv_c = Σ_t a_tx dy_t;  dy (B, T, H, E) -> (B, H, T, S), (B, P + T, H, E)."""
    rows = dy.transpose(0, 2, 1, 3)
    size = saved.window.shape[2] - rows.shape[2] + 1
    d_values = _unwindow(saved.left.swapaxes(-1, -2) @ rows, saved)
    return _band(rows @ saved.window.swapaxes(-1, -2), size), d_values


def _window(rows: Array, block: int, size: int, attend_self: bool) -> tuple[Array, int]:
    """(B, P + T, H, E) -> (B, H, S + T - 1, E), and which row of [past ; block] it begins with (may be negative)."""
    xp = module_of(rows)
    batch, length, heads, width = rows.shape
    first = length - block - size + attend_self
    window = xp.zeros((batch, heads, size + block - 1, width), rows.dtype)
    here = rows[:, max(0, first) : first + size + block - 1]
    window[:, :, max(0, -first) : max(0, -first) + here.shape[1]] = here.transpose(0, 2, 1, 3)
    return window, first


def _unwindow(d_window: Array, saved: Saved) -> Array:
    """The gradient of _window: rows outside the window get 0."""
    d_rows = module_of(d_window).zeros(saved.shape, d_window.dtype)
    here = d_rows[:, max(0, saved.first) : saved.first + d_window.shape[2]]
    start = max(0, -saved.first)
    here[...] = d_window[:, :, start : start + here.shape[1]].transpose(0, 2, 1, 3)
    return d_rows


def _band(product: Array, size: int) -> Array:
    """(B, H, T, S + T - 1) -> (B, H, T, S): what each query sees, nearest first."""
    return module_of(product).ascontiguousarray(diagonals(product, size))


def _spread(band: Array) -> Array:
    """(B, H, T, S) -> (B, H, T, S + T - 1): the gradient of _band, 0 beside the band."""
    *outer, block, size = band.shape
    product = module_of(band).zeros((*outer, block, size + block - 1), band.dtype)
    diagonals(product, size)[...] = band
    return product
