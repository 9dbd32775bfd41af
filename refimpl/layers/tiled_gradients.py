"""The gradients of tiled_attention.py for one head and some texts.

With e = e^(s - shift) computed as forward did, to the bit, and da' = dy · v / Z from rows of dy divided by Z:

    r' = Σ w e da' / Z,  ds = e (w (da' - r') - ε r'),  dw = e (da' - r')

r' is not taken from dy · y: where one slot has all the weight, da' - r' must vanish to the last bit, whatever rounds.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, square_root
from refimpl.layers.attention import Arguments
from refimpl.layers.tiled_logits import Head, Problem, Rows, drop, exponentials, head, kept, logits, rows
from refimpl.layers.tiles import Block, Cut, block, padded, product, scratch, steps, transposed, turned_windows, unpad


class Saved(NamedTuple):
    """The problem, and each row's shift and Z (B, H, T): all that backward needs to compute the weights again."""

    problem: Problem
    shift: Array
    total: Array


class Task(NamedTuple):
    """One head, and the texts of the batch that it is computed for."""

    head: int
    texts: range

    def together(self, at: Cut) -> Iterator[range]:
        """The texts whose tiles stand in the same blocks."""
        return (self.texts[here] for here in steps(len(self.texts), at.texts))


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


class Texts(NamedTuple):
    """b texts: their rows; dy / ((1 - rate) Z), (b, T or more, E); each row's shift and Z, (b, T or more, 1); windows of
    values with E first, (b, tiles, E, width).

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
    given, of_head = saved.problem, head(saved.problem, task.head, len(task.texts))
    at, width, slots = of_head.cut, dy.shape[3], len(of_head.memory_keys)
    sums = Sums(*(np.zeros(shape, dy.dtype) for shape in (
        (at.size, width), len(of_head.ramp), (slots, width), (slots, width), width, width)))
    for numbers in task.together(at):
        texts, here = _texts(saved, dy, of_head, numbers), slice(numbers.start, numbers.stop)
        for tiles in at.stacks():
            _add_block(given, of_head, texts, tiles, sums)
        texts.d_keys[...] /= square_root(width, dy.dtype)
        unpad(texts.d_queries, 0, gradients.queries[here, :, task.head])
        unpad(texts.d_keys, -at.first, gradients.keys[here, :, task.head])
        unpad(texts.d_values, -at.first, gradients.values[here, :, task.head])
    return sums


def _texts(saved: Saved, dy: Array, of_head: Head, numbers: range) -> Texts:
    given, at, width, dtype = saved.problem, of_head.cut, dy.shape[3], dy.dtype
    here, one = slice(numbers.start, numbers.stop), of_head.number
    shift, total = saved.shift[here, one, :, None], saved.total[here, one, :, None]
    scale = total if given.keep is None else total * (1 - given.options.dropout)
    d_rows = padded("dy", dy[here, :, one], at.queries)
    d_rows[:, : scale.shape[1]] /= scale
    shift, total = padded("shift", shift, at.queries), padded("total", total, at.queries)
    total[:, scale.shape[1] :] = 1
    gradients = [scratch(f"d_{name}", (len(numbers), length, width), dtype) for name, length in (
        ("queries", at.queries), ("keys", at.length), ("values", at.length))]
    for gradient in gradients:
        gradient[...] = 0
    of_values = padded("values", given.arguments.values[here, :, one], at.length, -at.first)
    turned_values = turned_windows(transposed("turned values", of_values), at)
    return Texts(rows(given, of_head, numbers), d_rows, shift, total, turned_values, *gradients)


def _add_block(given: Problem, of_head: Head, texts: Texts, tiles: slice, sums: Sums) -> None:
    """Adds what some tiles give to every gradient."""
    at, dy = of_head.cut, texts.dy
    weights, d = (block(name, at, len(dy), tiles, len(of_head.memory_keys), dy.dtype) for name in ("weights", "free"))
    logits(weights, d, of_head, texts.rows, tiles)
    exponentials(weights, at.in_block(texts.shift, tiles), of_head.unweighted)

    keep = kept(texts.rows, of_head, given.arguments.queries.shape[1], tiles)
    np.matmul(at.by_tile(dy, tiles), texts.turned_values[:, tiles], out=d.context)
    np.matmul(at.in_block(dy, tiles), of_head.turned.memory_values, out=d.memory)
    drop(d, keep)
    total, epsilon = at.in_block(texts.total, tiles), given.options.normalizer_epsilon
    sums.mask[...] += _softmax_backward(d, weights, total, of_head.ramp, epsilon)

    weights.band[..., : len(of_head.ramp)] *= of_head.ramp
    drop(weights, keep)
    _add_values(weights, texts, tiles, at, sums)
    _add_logits(d, of_head, texts, tiles, sums)


def _softmax_backward(d: Block, exponentials: Block, total: Array, ramp: Array, epsilon: float) -> Array:
    """ds in place of da'; returns dw of the ramp's positions, summed over rows."""
    d_ramp = d.band[..., : len(ramp)].copy()
    d.band[..., : len(ramp)] *= ramp
    mean = np.vecdot(exponentials.whole, d.whole)[:, None] / total
    d.whole[...] -= mean
    d_ramp -= mean.reshape(*d_ramp.shape[:-1], 1)
    np.multiply(d_ramp, ramp, out=d.band[..., : len(ramp)])
    if epsilon:
        d.whole[...] -= epsilon * mean
    d.whole[...] *= exponentials.whole
    d_ramp *= exponentials.band[..., : len(ramp)]
    return d_ramp.sum((0, 1, 2))


def _add_values(weights: Block, texts: Texts, tiles: slice, at: Cut, sums: Sums) -> None:
    """The gradients of values, from w e."""
    _add_windows(texts.d_values, product(weights.context.mT, at.by_tile(texts.dy, tiles)), at.rows, tiles.start)
    sums.memory_values[...] += product(weights.memory.T, at.in_block(texts.dy, tiles))


def _add_logits(d: Block, of_head: Head, texts: Texts, tiles: slice, sums: Sums) -> None:
    """The gradients of all that logits are made of, from ds."""
    at, of_texts = of_head.cut, texts.rows
    d_queries = at.by_tile(texts.d_queries, tiles)
    _add_windows(texts.d_keys, product(d.context.mT, at.by_tile(of_texts.content, tiles)), at.rows, tiles.start)
    d_content = product(d.context, of_texts.keys[:, tiles])
    d_queries += d_content
    sums.content_bias[...] += d_content.sum((0, 1, 2))
    sums.memory_keys[...] += product(d.memory.T, at.in_block(of_texts.memory, tiles))
    at.in_block(texts.d_queries, tiles)[...] += product(d.memory, of_head.memory_keys)
    if of_head.table is None:
        return
    sums.table[...] += product(d.band.mT, at.by_tile(of_texts.position, tiles)).sum((0, 1))
    d_position = product(d.band, of_head.table)
    d_queries += d_position
    sums.position_bias[...] += d_position.sum((0, 1, 2))


def _add_windows(total: Array, products: Array, step: int, start: int) -> None:
    """The gradient of `windows`: adds products (b, n, width, E) of tiles from number `start` on to total (b, length, E)."""
    for tile in range(products.shape[1]):
        first = (start + tile) * step
        total[:, first : first + products.shape[2]] += products[:, tile]
