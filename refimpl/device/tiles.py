"""How device/attention.py sees its arrays: cut into tiles, and as the batches of matrices that cuBLAS takes."""

from collections.abc import Sequence
from typing import NamedTuple

from refimpl.arrays import Array, kernel, module_of

THREADS = 256


Sizes = Sequence[tuple[slice, int]]
"""Neighbouring heads, and how many of the nearest positions are computed for them."""


class Cut(NamedTuple):
    """T queries in `tiles` of `rows`; `keys` rows of [past ; block] from row `first` on hold what they see, at most `size`.
    """

    tiles: int
    rows: int
    size: int
    keys: int
    first: int


class Part(NamedTuple):
    """What is computed at once: a tile of the queries of some heads and texts, whose `size` nearest positions count.

    first_query of the tile; the window of keys begins with row `start`.
    """

    tile: int
    heads: slice
    texts: slice
    size: int
    first_query: int
    start: int


def window_of(size: int, rows: int) -> int:
    """Keys that `rows` queries see, and up to three more: products are faster where rows begin at multiples of 16 bytes."""
    return -(-(size + rows - 1) // 4) * 4


def of_heads(table: Array, part: Part) -> Array:
    """A part's tables (G, size, E), or the one for all heads (1, size, E)."""
    return (table[part.heads] if table.ndim == 3 else table[None])[:, : part.size]


def in_window(rows: Array, part: Part, window: int) -> Array:
    """The view (G, B', window, E) of (H, B, keys, E)."""
    return rows[part.heads, part.texts, part.start : part.start + window]


def flat(array: Array) -> Array:
    """The view (G B', rows, …) of (G, B', rows, …): all heads have all texts, or there is one head."""
    steps = array.strides[1 if array.shape[1] > 1 else 0]
    return module_of(array).lib.stride_tricks.as_strided(
        array, (array.shape[0] * array.shape[1], *array.shape[2:]), (steps, *array.strides[2:]))


def by_head(array: Array) -> Array:
    """The view (G, B' rows, …) of (G, B', rows, …), whose rows lie at equal distances."""
    return gathered(array, len(array))


def gathered(array: Array, matrices: int) -> Array:
    """The view (matrices, all rows of each, …) of (G, B', rows, …); matrices = G or 1."""
    heads, texts, rows, columns = array.shape
    shape = matrices, heads * texts * rows // matrices, columns
    return module_of(array).lib.stride_tricks.as_strided(array, shape, (array.strides[0], *array.strides[2:]))


def arranged(rows: Array, tiles: int, each: int, first: int, bias: Array | None = None) -> Array:
    """(B, L, H, E) as (tiles, H, B, each, E): row i of the tiles is row first + i, plus its head's bias; 0 where none is."""
    batch, length, heads, width = rows.shape
    result = module_of(rows).empty((tiles, heads, batch, each, width), rows.dtype)
    kernel("attention", "arrange", rows.dtype)((-(-result.size // THREADS),), (THREADS,), (
        result, rows, bias, result.size, heads, batch, each, width, length, first))
    return result


def collected(shape: tuple[int, ...], each: int, first: int, *tiles: Array) -> Array:
    """The way back to (B, L, H, E), for the sum of one to three arrays; 0 for rows that no tile has."""
    result, (batch, length, heads, width) = module_of(tiles[0]).empty(shape, tiles[0].dtype), shape
    kernel("attention", "collect", result.dtype)((-(-result.size // THREADS),), (THREADS,), (
        result, *tiles, *[None] * (3 - len(tiles)), result.size, heads, batch, each, width, length, first, len(tiles[0])))
    return result
