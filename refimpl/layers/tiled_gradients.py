"""The gradients of tiled_attention.py for one head and some texts.

share = e / Z,  r = Σ a da = dy · y (with dropout too),  ds = share (w (da - r) - ε r),  dw = share (da - r). Column E of the
queries is -log Z and that of dy -r, so that the matrix products subtract them.
"""

from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, largest_exponent, square_root
from refimpl.layers.attention import Arguments
from refimpl.layers.tiled_logits import Head, Problem, Rows, context_logits, head, keep_context, keep_memory, rows
from refimpl.layers.tiles import block, padded, product, scratch, steps, unpad

MEMORY_ROWS, MEMORY_SLOTS = 512, 256  # of a block of persistent slots, most: tall ones make the fastest products


class Saved(NamedTuple):
    """The problem, y, and each row's shift and Z (B, H, T): all that backward needs to compute the weights again."""

    problem: Problem
    y: Array
    shift: Array
    total: Array


class Task(NamedTuple):
    """One head, and the texts of the batch that it is computed for."""

    head: int
    texts: range


class Sums(NamedTuple):
    """What a task adds up over its texts: gradients of the head's constants, table and mask farthest position first.

    Still to come: the factors 1/√E of the table and √N of the values.
    """

    table: Array
    mask: Array
    memory_keys: Array
    memory_values: Array
    content_bias: Array
    position_bias: Array


class Text(NamedTuple):
    """One text: its rows; dy / (1 - rate) beside -r (T or more, E + 1); log of the largest share that is let through.

    d_queries, d_keys, d_values: where gradients of its rows are added up.
    """

    number: int
    rows: Rows
    dy: Array
    most: Array
    d_queries: Array
    d_keys: Array
    d_values: Array


def backward_task(saved: Saved, dy: Array, gradients: Arguments, task: Task) -> Sums:
    """Fills in this head's gradients of queries, keys and values of some texts; returns what it added up over them."""
    given, of_head = saved.problem, head(saved.problem, task.head)
    at, width, slots = of_head.cut, dy.shape[3], 0 if of_head.memory_keys is None else len(of_head.memory_keys)
    sums = Sums(*(np.zeros(shape, dy.dtype) for shape in (
        (at.size, width), len(of_head.ramp), (slots, width), (slots, width), width, width)))
    for number in task.texts:
        text = _text(saved, dy, of_head, number)
        for tiles in at.stacks():
            _context(given, of_head, text, tiles, sums)
        for here in steps(dy.shape[1], MEMORY_ROWS):
            for some in steps(slots, MEMORY_SLOTS):
                _memory(given, of_head, text, here, some, sums)
        text.d_keys[...] /= square_root(width, dy.dtype)
        unpad(text.d_queries, 0, gradients.queries[number, :, task.head])
        unpad(text.d_keys, -at.first, gradients.keys[number, :, task.head])
        unpad(text.d_values, -at.first, gradients.values[number, :, task.head])
    return sums


def _text(saved: Saved, dy: Array, of_head: Head, number: int) -> Text:
    given, at, width, dtype = saved.problem, of_head.cut, dy.shape[3], dy.dtype
    log_total = np.log(saved.total[number, of_head.number])
    of_text = rows(given, of_head, number, -saved.shift[number, of_head.number] - log_total)
    d_rows = dy[number, :, of_head.number]
    mean = np.vecdot(d_rows, saved.y[number, :, of_head.number])
    d_rows = padded("dy", d_rows, at.queries, column=-mean)
    if given.keep is not None:
        d_rows[:, :width] /= 1 - given.options.dropout
    most = padded("most", largest_exponent(dtype) - log_total[:, None], at.queries)
    gradients = [scratch(f"d_{name}", (length, width), dtype) for name, length in (
        ("queries", at.queries), ("keys", at.length), ("values", at.length))]
    for gradient in gradients:
        gradient[...] = 0
    return Text(number, of_text, d_rows, most, *gradients)


def _context(given: Problem, of_head: Head, text: Text, tiles: slice, sums: Sums) -> None:
    """The context's part of all gradients, for some tiles."""
    at, here, epsilon = of_head.cut, of_head.cut.rows_of(tiles), given.options.normalizer_epsilon
    width, keep = text.d_queries.shape[1], keep_context(given, of_head, text.number, tiles)
    share, d = (block(name, at, tiles.stop - tiles.start, 0, text.dy.dtype) for name in ("weights", "free"))
    context_logits(share, d, of_head, text.rows, tiles)
    foot = share.band[..., : of_head.unweighted]
    np.minimum(foot, at.by_tile(text.most[here]), out=foot)
    np.exp(share.whole, out=share.whole)

    dy, values, mean = at.by_tile(text.dy[here]), text.rows.values[tiles], at.by_tile(text.dy[here, width:])
    if keep is None:
        np.matmul(dy, values.mT, out=d.context)
    else:
        np.matmul(dy[..., :width], values[..., :width].mT, out=d.context)
        d.band[...] *= keep
        d.band[...] += mean
    ramp = len(of_head.ramp)
    sums.mask[...] += (share.band[..., :ramp] * d.band[..., :ramp]).sum((0, 1))
    d.band[..., :ramp] *= of_head.ramp
    if epsilon:
        d.band[...] += epsilon * mean
    d.whole[...] *= share.whole
    share.band[..., :ramp] *= of_head.ramp
    if keep is not None:
        share.band[...] *= keep
    _add_windows(text.d_values, product(share.context.mT, dy[..., :width]), at.rows, here.start)
    content = at.by_tile(text.rows.content[here])[..., :width]
    _add_windows(text.d_keys, product(d.context.mT, content), at.rows, here.start)
    d_content = product(d.context, text.rows.keys[tiles, :, :width])
    at.by_tile(text.d_queries[here])[...] += d_content
    if given.arguments.content_bias is not None:
        sums.content_bias[...] += d_content.sum((0, 1))
    if of_head.table is None:
        return
    for d_table in product(d.band.mT, at.by_tile(text.rows.position[here])):
        sums.table[...] += d_table
    d_position = product(d.band, of_head.table)
    at.by_tile(text.d_queries[here])[...] += d_position
    if given.arguments.position_bias is not None:
        sums.position_bias[...] += d_position.sum((0, 1))


def _memory(given: Problem, of_head: Head, text: Text, here: slice, some: slice, sums: Sums) -> None:
    """The persistent slots' part of all gradients, for some queries and slots."""
    keys, values, queries, dy = of_head.memory_keys[some], of_head.memory_values[some], text.rows.memory[here], text.dy[here]
    width, epsilon = dy.shape[1] - 1, given.options.normalizer_epsilon
    keep = keep_memory(given, of_head, text.number, here, some)
    share, d = (scratch(name, (len(queries), len(keys)), dy.dtype) for name in ("weights", "free"))
    np.exp(np.matmul(queries, keys.T, out=share), out=share)
    if keep is None:
        np.matmul(dy, values.T, out=d)
    else:
        np.matmul(dy[:, :width], values[:, :width].T, out=d)
        d *= keep
        d += dy[:, width:]
    if epsilon:
        d += epsilon * dy[:, width:]
    d *= share
    if keep is not None:
        share *= keep
    sums.memory_values[some] += product(share.T, dy[:, :width])
    sums.memory_keys[some] += product(d.T, queries[:, :width])
    text.d_queries[here] += product(d, keys[:, :width])


def _add_windows(total: Array, products: Array, step: int, start: int) -> None:
    """The gradient of `windows`: adds products (n, width, E) to total (length, E), each `step` rows after the one before."""
    for first, window in zip(range(start, start + step * len(products), step), products, strict=True):
        total[first : first + len(window)] += window
