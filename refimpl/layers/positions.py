"""Where a token stands: vectors by distance for the keys, and sinusoids, by distance or absolute."""

from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, module_of, real_dtype
from refimpl.layers import linear


class ProjectedSaved(NamedTuple):
    """What the linear map saved, and how many heads it was cut into."""

    linear: linear.Saved
    heads: int


def relative_forward(queries: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    """q_t · p_x for every query and distance;  queries (B, T, H, E) -> (B, H, T, S), nearest first.

    table (S, E), one for all heads: Shaw, Uszkoreit & Vaswani (arXiv 1803.02155), eq. 4, with a vector for each distance;
    or (H, S, E), one for each head.
    """
    return queries.transpose(0, 2, 1, 3) @ table.swapaxes(-1, -2), (queries, table)


def relative_backward(d_scores: Array, saved: tuple[Array, Array]) -> tuple[Array, Array]:
    """dq_t = Σ_x ds_tx p_x,  dp_x = Σ_bt ds_tx q_t, and Σ_h where heads share p;  d_scores (B, H, T, S)."""
    queries, table = saved
    d_queries = (d_scores @ table).transpose(0, 2, 1, 3)
    tables, (size, width) = table.shape[0] if table.ndim == 3 else 1, table.shape[-2:]
    rows = queries.transpose(2, 0, 1, 3).reshape(tables, -1, width)
    d_rows = d_scores.transpose(1, 0, 2, 3).reshape(tables, -1, size)
    return d_queries, (d_rows.swapaxes(-1, -2) @ rows).reshape(table.shape)


def projected_forward(weight: Array, size: int, first: int, width: int) -> tuple[Array, ProjectedSaved]:
    """Transformer-XL's table, Dai et al. (arXiv 1901.02860), section 3.3: W_kR r_δ for δ = first … first + S - 1.

    weight (H E, D), size S, width E -> (H, S, E). r_δ holds all sines, then all cosines, as the published code does.
    """
    waves = module_of(weight).concatenate(sinusoid(first, size, weight.shape[1], weight), axis=-1)
    table, saved = linear.forward(waves, weight)
    heads = len(weight) // width
    return table.reshape(size, heads, width).swapaxes(0, 1), ProjectedSaved(saved, heads)


def projected_backward(d_table: Array, saved: ProjectedSaved) -> Array:
    """dW = Σ_δ d_table_δ r_δᵀ;  d_table (H, S, E) -> (H E, D)."""
    rows = d_table.swapaxes(0, 1).reshape(d_table.shape[1], -1)
    return linear.backward(rows, saved.linear)[1]


def absolute(first: int, block: int, width: int, like: Array) -> Array:
    """Vaswani et al. (arXiv 1706.03762), section 3.5: sine and cosine of one frequency side by side -> (T, D)."""
    sines, cosines = sinusoid(first, block, width, like)
    rows = module_of(like).empty((block, width), sines.dtype)
    rows[:, 0::2], rows[:, 1::2] = sines, cosines
    return rows


def sinusoid(first: int, count: int, width: int, like: Array) -> tuple[Array, Array]:
    """sin(x ω_i) and cos(x ω_i), ω_i = 10000^(-2i/D), x = first … first + count - 1: (count, ⌈D/2⌉) and (count, ⌊D/2⌋).

    Angles are taken in float64 at least, and rounded once to the real dtype of `like`.
    """
    xp, dtype = module_of(like), real_dtype(like.dtype)
    exact = np.promote_types(dtype, np.float64)
    frequency = xp.asarray(10000, exact) ** (-xp.arange(0, width, 2, dtype=exact) / width)
    angle = xp.arange(first, first + count, dtype=exact)[:, None] * frequency
    return xp.sin(angle).astype(dtype), xp.cos(angle[:, : width // 2]).astype(dtype)
