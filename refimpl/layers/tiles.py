"""How the tiled attention cuts its work: windows of keys, blocks of logits, and each thread's scratch arrays.

A tile is some queries beside the window of keys that they see. In their product query i's positions are columns
i … i + size - 1: a diagonal band, farthest position first.
"""

import math
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, diagonals

TOGETHER = 8192  # elements of a tile's band
ALIGNMENT = 64  # bytes: a cache line, and the widest vector that a processor loads
_scratch = threading.local()


class Tiling(NamedTuple):
    """Most queries of a tile, most elements of a block of tiles, threads (0 = one for each core), least tasks to share, but
    none of fewer elements than `task`.

    Results are the same bits for any number of threads; the other numbers change roundoff.
    """

    rows: int = 128
    elements: int = 1_200_000
    workers: int = 0
    tasks: int = 16
    task: int = 150_000

    def parts(self, texts: int, heads: int, elements: int) -> int:
        """How many tasks share a head's texts, whose logits are so many elements."""
        return min(texts, math.ceil(self.tasks / heads), max(1, elements // self.task))


TILING = Tiling()


class Cut(NamedTuple):
    """How one head's T queries and their `size` nearest positions are cut: `tiles` tiles of `rows`, `stack` in a block.

    texts: whole ones that a block takes; several only if all of a text's tiles stand in one. first: the row of
    [past ; block] that the first window begins with (may be negative).
    """

    rows: int
    tiles: int
    stack: int
    texts: int
    size: int
    first: int

    @property
    def width(self) -> int:
        """Keys of a window: those that its queries see, and a few more for the sake of alignment."""
        return _rounded(self.size + self.rows - 1)

    @property
    def length(self) -> int:
        """Keys of all windows together."""
        return (self.tiles - 1) * self.rows + self.width

    @property
    def queries(self) -> int:
        """Queries of all tiles: T, or a few more, whose rows are 0."""
        return self.tiles * self.rows

    def stacks(self) -> Iterator[slice]:
        """The tiles of one block after another."""
        return steps(self.tiles, self.stack)

    def rows_of(self, tiles: slice) -> slice:
        """The queries of some tiles of a text."""
        return slice(tiles.start * self.rows, tiles.stop * self.rows)

    def in_block(self, rows: Array, tiles: slice) -> Array:
        """View (b n rows, E) of the queries (b, T or more, E) in a block: all tiles of several texts, or some of one."""
        return rows[:, self.rows_of(tiles)].reshape(-1, rows.shape[2], copy=False)

    def by_tile(self, rows: Array, tiles: slice) -> Array:
        """View (b, n, rows, E) of the same."""
        return rows[:, self.rows_of(tiles)].reshape(len(rows), -1, self.rows, rows.shape[2], copy=False)


class Block(NamedTuple):
    """An array (b n rows, width + N) for the queries of n tiles of b texts, and views of its parts.

    context (b, n, rows, width) · band (b, n, rows, size) · memory (b n rows, N).
    """

    whole: Array
    context: Array
    band: Array
    memory: Array


def cut(block: int, past: int, size: int, slots: int, attend_self: bool, tiling: Tiling, texts: int) -> Cut:
    """Short spans get short tiles: for `size` positions that a query sees, size + rows are computed."""
    rows = min(tiling.rows, max(32, _rounded(size // 2)))
    tiles = math.ceil(block / rows)
    rows = math.ceil(block / tiles)
    most = max(1, tiling.elements // (rows * (_rounded(size + rows - 1) + slots)))
    together = math.ceil(texts / math.ceil(texts / max(1, most // tiles)))
    return Cut(rows, tiles, math.ceil(tiles / math.ceil(tiles / most)), together, size, past - size + attend_self)


def block(name: str, cut: Cut, texts: int, tiles: slice, slots: int, dtype: Any) -> Block:
    """This thread's block of that name for some tiles of some texts; contents undefined."""
    count = tiles.stop - tiles.start
    whole = scratch(name, (texts * count * cut.rows, cut.width + slots), dtype)
    context = whole.reshape(texts, count, cut.rows, -1)[..., : cut.width]
    band = diagonals(context, cut.size)[..., ::-1]
    return Block(whole, context, band, whole[:, cut.width :])


def parts(band: Array) -> Iterable[Array]:
    """A band (b, n, rows, size) that something is added to, tile by tile: of several NumPy can't tell that they do not
    overlap, and copies what it adds to. Where tiles are small that costs less than more calls would, and all are one part.
    """
    return [band] if band.shape[2] * band.shape[3] < TOGETHER else band.reshape(-1, *band.shape[2:])


def scratch(name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """This thread's array of that name: kept from call to call, contents undefined."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    held = _scratch.__dict__
    if name not in held or held[name].size < size:
        raw = np.empty(size + ALIGNMENT, np.uint8)
        held[name] = raw[-raw.ctypes.data % ALIGNMENT :][:size]
    return held[name][:size].view(dtype).reshape(shape)


def padded(name: str, rows: Array, length: int, start: int = 0) -> Array:
    """Scratch (b, length, E): rows (b, L, E) from row `start` on, 0 elsewhere.

    start may be negative, and rows may reach beyond the end: what lies outside is left out.
    """
    texts, count, width = rows.shape
    result = scratch(name, (texts, length, width), rows.dtype)
    low, high = max(0, start), max(0, min(length, start + count))
    result[:, :low] = 0
    result[:, high:] = 0
    result[:, low:high] = rows[:, low - start : high - start]
    return result


def unpad(total: Array, start: int, result: Array) -> None:
    """The gradient of `padded`: the rows of total (b, length, E) that are rows of result (b, L, E); the others are 0."""
    low, high = max(0, start), max(0, min(total.shape[1], start + result.shape[1]))
    result[:, : low - start] = 0
    result[:, low - start : high - start] = total[:, low:high]
    result[:, high - start :] = 0


def windows(rows: Array, cut: Cut) -> Array:
    """View (b, tiles, width, E) of (b, length, E): each tile's window; neighbours overlap."""
    text, step, item = rows.strides
    shape = (len(rows), cut.tiles, cut.width, rows.shape[2])
    return np.lib.stride_tricks.as_strided(rows, shape, (text, cut.rows * step, step, item))


def transposed(name: str, rows: Array) -> Array:
    """Scratch (b, E, length) of (b, length, E): a right factor in this order makes a product up to twice as fast."""
    texts, length, width = rows.shape
    result = scratch(name, (texts, width, length), rows.dtype)
    result[...] = rows.mT
    return result


def turned_windows(columns: Array, cut: Cut) -> Array:
    """View (b, tiles, E, width) of (b, E, length): each tile's window of columns."""
    text, step, item = columns.strides
    shape = (len(columns), cut.tiles, columns.shape[1], cut.width)
    return np.lib.stride_tricks.as_strided(columns, shape, (text, cut.rows * item, step, item))


def product(left: Array, right: Array) -> Array:
    """left @ right in scratch, gone with the next one."""
    return np.matmul(left, right, out=scratch("product", (*left.shape[:-1], right.shape[-1]), left.dtype))


def steps(count: int, step: int) -> Iterator[slice]:
    """0 … count in slices of `step`."""
    return (slice(low, min(low + step, count)) for low in range(0, count, step))


def _rounded(number: int) -> int:
    """The next multiple of 16: a row of float32 that ends with a cache line."""
    return math.ceil(number / 16) * 16
