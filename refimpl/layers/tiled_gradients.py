"""The gradients of tiled_attention.py for one head and some texts.

With e = e^(s - shift) computed as forward did, to the bit, and da' = dy · v / Z from rows of dy divided by Z:

    r' = Σ w e da' / Z,  ds = e (w (da' - r') - ε r'),  dw = e (da' - r')

r' is not taken from dy · y: where one slot has all the weight, da' - r' must vanish to the last bit, whatever rounds.
"""

from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, square_root
from refimpl.layers.attention import Arguments
from refimpl.layers.tiled_logits import Head, Problem, Rows, drop, exponentials, head, kept, logits, rows
from refimpl.layers.tiles import Block, Cut, block, padded, product, scratch, transposed, turned_windows, unpad


class Saved(NamedTuple):
    """The problem, and each row's shift and Z (B, H, T): all that backward needs to compute the weights again."""

    problem: Problem
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
    """One text: its rows; dy / ((1 - rate) Z), (T or more, E); each row's shift, Z; windows of
    values with E first, (tiles, E, width).

    d_queries, d_keys, d_values: where gradients of its rows are added up.
    """

    rows: Rows
    dy: Array
    shift: Array
    total: Array
    turned_values: Array
    d_queries: Array
    d_keys: Array
    d_values: Array


def backward_task(saved: Saved, dy: Array, gradients: Arguments, task: Task) -> Sums:
    """Fills in this head's gradients of queries, keys and values of some texts; returns what it added up over them."""
    given, of_head = saved.problem, head(saved.problem, task.head)
    at, width, slots = of_head.cut, dy.shape[3], len(of_head.memory_keys)
    sums = Sums(*(np.zeros(shape, dy.dtype) for shape in (
        (at.size, width), len(of_head.ramp), (slots, width), (slots, width), width, width)))
    for number in task.texts:
        text = _text(saved, dy, of_head, number)
        for tiles in at.stacks():
            _add_block(given, of_head, text, tiles, sums)
        text.d_keys[...] /= square_root(width, dy.dtype)
        unpad(text.d_queries, 0, gradients.queries[number, :, task.head])
        unpad(text.d_keys, -at.first, gradients.keys[number, :, task.head])
        unpad(text.d_values, -at.first, gradients.values[number, :, task.head])
    return sums


def _text(saved: Saved, dy: Array, of_head: Head, number: int) -> Text:
    given, at, width, dtype = saved.problem, of_head.cut, dy.shape[3], dy.dtype
    d_rows, total = dy[number, :, of_head.number], saved.total[number, of_head.number]
    scale = total if given.keep is None else total * (1 - given.options.dropout)
    d_rows = padded("dy", d_rows / scale[:, None], at.queries)
    shift = padded("shift", saved.shift[number, of_head.number, :, None], at.queries)
    total = padded("total", total[:, None], at.queries)
    total[len(scale) :] = 1
    gradients = [scratch(f"d_{name}", (length, width), dtype) for name, length in (
        ("queries", at.queries), ("keys", at.length), ("values", at.length))]
    for gradient in gradients:
        gradient[...] = 0
    of_values = padded("values", given.arguments.values[number, :, of_head.number], at.length, -at.first)
    turned_values = turned_windows(transposed("turned values", of_values), at)
    return Text(rows(given, of_head, number), d_rows, shift, total, turned_values, *gradients)


def _add_block(given: Problem, of_head: Head, text: Text, tiles: slice, sums: Sums) -> None:
    """Adds what some tiles give to every gradient."""
    at, here, slots = of_head.cut, of_head.cut.rows_of(tiles), len(of_head.memory_keys)
    weights, d = (block(name, at, tiles.stop - tiles.start, slots, text.dy.dtype) for name in ("weights", "free"))
    logits(weights, d, of_head, text.rows, tiles)
    exponentials(weights, text.shift[here], of_head.unweighted)

    keep = kept(text.rows, of_head, given.arguments.queries.shape[1], tiles)
    np.matmul(at.by_tile(text.dy[here]), text.turned_values[tiles], out=d.context)
    np.matmul(text.dy[here], of_head.turned.memory_values, out=d.memory)
    drop(d, keep)
    sums.mask[...] += _softmax_backward(d, weights, text.total[here], of_head.ramp, given.options.normalizer_epsilon)

    weights.band[..., : len(of_head.ramp)] *= of_head.ramp
    drop(weights, keep)
    _add_values(weights, text, here, at, sums)
    _add_logits(d, of_head, text, tiles, sums)


def _softmax_backward(d: Block, exponentials: Block, total: Array, ramp: Array, epsilon: float) -> Array:
    """ds in place of da'; returns dw of the ramp's positions, summed over rows."""
    d_ramp = d.band[..., : len(ramp)].copy()
    d.band[..., : len(ramp)] *= ramp
    mean = np.vecdot(exponentials.whole, d.whole)[:, None] / total
    d.whole[...] -= mean
    d_ramp -= mean.reshape(len(d_ramp), -1, 1)
    np.multiply(d_ramp, ramp, out=d.band[..., : len(ramp)])
    if epsilon:
        d.whole[...] -= epsilon * mean
    d.whole[...] *= exponentials.whole
    d_ramp *= exponentials.band[..., : len(ramp)]
    return d_ramp.sum((0, 1))


def _add_values(weights: Block, text: Text, here: slice, at: Cut, sums: Sums) -> None:
    """The gradients of values, from w e."""
    dy = text.dy[here]
    _add_windows(text.d_values, product(weights.context.mT, at.by_tile(dy)), at.rows, here.start)
    sums.memory_values[...] += product(weights.memory.T, dy)


def _add_logits(d: Block, of_head: Head, text: Text, tiles: slice, sums: Sums) -> None:
    """The gradients of all that logits are made of, from ds."""
    at, here = of_head.cut, of_head.cut.rows_of(tiles)
    d_queries = at.by_tile(text.d_queries[here])
    _add_windows(text.d_keys, product(d.context.mT, at.by_tile(text.rows.content[here])), at.rows, here.start)
    d_content = product(d.context, text.rows.keys[tiles])
    d_queries += d_content
    sums.content_bias[...] += d_content.sum((0, 1))
    sums.memory_keys[...] += product(d.memory.T, text.rows.memory[here])
    text.d_queries[here] += product(d.memory, of_head.memory_keys)
    if of_head.table is None:
        return
    for d_table in product(d.band.mT, at.by_tile(text.rows.position[here])):
        sums.table[...] += d_table
    d_position = product(d.band, of_head.table)
    d_queries += d_position
    sums.position_bias[...] += d_position.sum((0, 1))


def _add_windows(total: Array, products: Array, step: int, start: int) -> None:
    """The gradient of `windows`: adds products (n, width, E) to total (length, E), each `step` rows after the one before."""
    for first, window in zip(range(start, start + step * len(products), step), products, strict=True):
        total[first : first + len(window)] += window
