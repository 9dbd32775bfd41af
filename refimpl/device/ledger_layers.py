"""What an update's layers ask of a GPU, one function for each file of layers/, in its order: forward, then backward.

Each counts what that file launches for one layer. A copy that CuPy makes only of views that are not contiguous is counted
where the shape makes them so.
"""

from collections.abc import Sequence
from typing import NamedTuple

from refimpl.config import ModelConfig
from refimpl.device import attention, tiles
from refimpl.device.counts import Sum
from refimpl.layers.one_query import alike

BROADCAST = 6  # launches by which CuPy's product of matrices makes pointers where one factor has fewer of them


class Shape(NamedTuple):
    """An update's (B, T), and how many of the nearest positions each context head computes; () = all S."""

    config: ModelConfig
    batch: int
    block: int
    reach: Sequence[int]

    @property
    def rows(self) -> int:
        """B T."""
        return self.batch * self.block

    @property
    def past(self) -> int:
        """Positions before the block that the layer takes."""
        return max(self.reach, default=self.config.span)

    @property
    def context(self) -> int:
        """Rows of [past ; block]."""
        return self.batch * (self.past + self.block)

    @property
    def by_head(self) -> int:
        """Width of keys and values."""
        return self.config.context_heads * self.config.head_width


def layer(found: dict[str, Sum], shape: Shape) -> None:
    """transformer_layer.py, into entries by name."""
    config, rows, width = shape.config, shape.rows, shape.config.width
    pre = config.norm == "pre"
    found["past"].kernel(shape.context * width, shape.context * width, 2)
    _norm(found["norms and residuals"], shape.context if pre else rows, width)
    _multi_head(found["projections"], shape, pre)
    _attention(found["attention"], shape)
    if config.variant in ("attention-split", "single-head", "head-split"):
        _beside_persistent(found["persistent attention"], shape)
    found["norms and residuals"].each(rows * width, read=2, times=2)
    if config.feed_forward:
        _norm(found["norms and residuals"], rows, width)
        found["norms and residuals"].each(rows * width, read=2, times=2)
        _feed_forward(found["feed-forward"], shape)


def _norm(found: Sum, rows: int, width: int) -> None:
    """Forward reads x and writes y and x̂; backward reads both for dx, and again for the weights."""
    found.kernel(rows * width, 2 * rows * width)
    found.kernel(4 * rows * width, rows * width, 2)


norm = _norm


def linear(found: Sum, rows: int, inner: int, outer: int, bias: bool = False) -> None:
    """linear.py."""
    found.product(rows, inner, outer)
    found.product(rows, outer, inner)
    found.product(outer, rows, inner)
    if bias:
        found.each(rows * outer)
        found.kernel(rows * outer, outer)


def _multi_head(found: Sum, shape: Shape, pre: bool) -> None:
    """Queries from the block, keys and values from the context, whose gradients go no further than the layer's input."""
    config, rows, width = shape.config, shape.rows, shape.config.width
    if shape.batch > 1:  # the block is a view of the context, where T = 1 for a second time in backward
        found.each(rows * width, times=2 if shape.block == 1 else 1)
    linear(found, rows, width, width)
    for _ in range(2):
        needed = shape.context if pre else rows
        found.product(shape.context, width, shape.by_head)
        found.each(0 if pre or shape.batch == 1 else rows * shape.by_head)
        found.product(needed, shape.by_head, width)
        found.product(shape.by_head, shape.context, width)
    linear(found, rows, width, width)
    found.each((shape.context if pre else rows) * width, read=2)
    found.each(rows * width, read=2)
    found.each(rows * width * (shape.batch == 1), times=2)  # CuPy writes back what it has added in place
    if config.positions == "transformer-xl":
        sinusoid(found, config.span, width)
        found.kernel(config.span * width, config.span * width, 2)
        linear(found, config.span, width, shape.by_head)
        found.each(_turned(config) * config.span * shape.by_head, times=2)


def _turned(config: ModelConfig) -> bool:
    """Whether a table by position is another order of memory than one by head."""
    return config.context_heads > 1 and config.span > 1


def sinusoid(found: Sum, count: int, width: int) -> None:
    """positions.sinusoid: frequencies, angles, sines and cosines."""
    found.kernel(4 * width + 6 * count * width, 3 * width + 3 * count * width, 11)


def _attention(found: Sum, shape: Shape) -> None:
    """device/attention.py as it cuts: logits, weights and what they weigh; once more in backward, with their gradients."""
    config, heads = shape.config, shape.config.context_heads
    slots = config.memory if config.variant == "all-attention" else 0
    reach = list(shape.reach)
    sizes = [(group, max(reach[group])) for group in alike(reach)] or [(slice(0, heads), config.span)]
    at = attention.cut(shape.block, shape.past, max(size for _, size in sizes), config.attend_self)
    queries, keys = (heads * shape.batch * rows * config.head_width for rows in (at.tiles * at.rows, at.keys))
    if config.variant == "head-split" and shape.rows > 1:  # queries of the first heads, and what comes back to them
        found.each(shape.rows * shape.by_head, times=2)
    # queries, where u and v are as three kinds of slots see them; y; back: dy, d_queries
    found.each(queries, times=6 if config.positions == "transformer-xl" else 4)
    found.each(keys, times=4)
    for _ in range(2):
        found.cleared(queries + keys)
    for part in attention.parts_of(at, sizes, shape.batch, slots):
        _part(found, shape, part, at.rows, slots)
    if config.adaptive_span:
        found.kernel(heads * shape.batch * at.tiles * at.rows, heads)
    if config.positions == "transformer-xl":
        found.kernel(2 * queries, 2 * shape.by_head, 2)


def _part(found: Sum, shape: Shape, part: tiles.Part, each: int, slots: int) -> None:
    config, width = shape.config, shape.config.head_width
    n, texts = part.heads.stop - part.heads.start, part.texts.stop - part.texts.start
    rows, window = texts * each, tiles.window_of(part.size, each)
    placed = config.positions in ("relative", "transformer-xl")
    whole, near = n * rows * (window + slots), n * rows * part.size * placed
    for backward in (False, True):
        found.product(each, width, window, n * texts)
        if slots:
            found.product(rows, width, slots, n)
        if placed:
            found.product(n * rows, width, part.size)
        for _ in range(3 if backward else 1):  # y; or d of values, keys, queries
            found.product(each, window, width, n * texts, add=backward)
            if slots:
                found.product(rows, slots, width, n, add=True)
    found.product(each, width, window, n * texts)
    if slots:
        found.product(rows, width, slots, n)
    for _ in range(2 if placed else 0):
        found.product(n * rows, part.size, width, add=True)
    found.kernel(whole + near, whole)
    found.kernel(2 * whole + near, 2 * whole + near)


def _beside_persistent(found: Sum, shape: Shape) -> None:
    """split_attention.py and head_split.py, around persistent_attention.py."""
    config, rows = shape.config, shape.rows
    groups, slots, width = config.memory_shape
    split = config.variant == "head-split"
    logits, memory, sides = rows * groups * slots, groups * slots * width, rows * groups * width
    # CuPy copies what is not contiguous before it multiplies
    turned = (split and rows > 1) or (groups > 1 and shape.block > 1)
    one = int(turned) + (slots > 1 and width > 1) + BROADCAST * (shape.batch > 1)
    both = int(turned) + (slots > 1 and shape.block > 1)
    for inner, outer in ((width, slots), (slots, width), (width, slots), (slots, width)):  # s, y; da, dq
        found.product(shape.block, inner, outer, shape.batch * groups, shared=True)
    for _ in range(2):  # dν, dμ
        found.product(slots, shape.block, width, shape.batch * groups)
        found.kernel(shape.batch * memory, memory)
    found.kernel(4 * sides, 4 * sides, 2 * (one + both) + 2 * BROADCAST * (shape.batch > 1))
    found.each(memory, times=6)
    found.each(logits, times=2)  # by the root of the width
    _softmax(found, logits)
    _dropout(found, logits, bool(config.dropout))
    if split:
        found.kernel(2 * rows * config.width, 2 * rows * config.width, 4)
    else:
        found.each(rows * config.width, read=2, times=2)


def _softmax(found: Sum, size: int) -> None:
    """softmax.py."""
    found.kernel(5 * size, 3 * size, 5)
    found.kernel(6 * size, 3 * size, 4)


def _dropout(found: Sum, size: int, drops: bool) -> None:
    """dropout.py with a mask drawn on the way, of a byte for each element."""
    if drops:
        found.kernel(0, size // 4, 1)
        found.each(size, read=1, times=4)


dropout = _dropout


def _feed_forward(found: Sum, shape: Shape) -> None:
    """feed_forward.py, or ff_attention.py."""
    config, rows = shape.config, shape.rows
    plain, size = config.variant != "ff-attention", rows * config.feed_forward
    linear(found, rows, config.width, config.feed_forward, plain)
    linear(found, rows, config.feed_forward, config.width, plain)
    if plain:
        found.each(size, times=2)
        found.each(size, read=2)
    else:
        _softmax(found, size)
    _dropout(found, size, bool(config.dropout))
