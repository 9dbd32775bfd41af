"""adaptive_softmax.py on a GPU, loss and gradients in one pass: no array of all rows by all words, no shape that depends on
data, nothing that waits.

The head scores every row: products by cuBLAS, some rows at a time, and a kernel on their logits (kernels/head.cu). A tail
scores the rows whose target it has; how many, the device alone knows. Its kernels (kernels/tail.cu) are launched for any
number, make logits tile by tile where they are used, forward and backward, and write none.

For WikiText-103, 16,384 rows, an H100 at its peak: all tails for all rows by cuBLAS would take 12 ms for operations and
24 ms for logits to come and go. Kernels at a fifth of the peak take 100 ms times the share of rows that are in tails: less,
up to a third of them; by Zipf's law it is a fifth. Rows sorted on the host would take less still, but their shapes would
change with every batch: no CUDA graph could hold them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from refimpl.arrays import Array, array_module, kernel, module_of
from refimpl.device.products import product
from refimpl.device.rows import THREADS, whole
from refimpl.errors import InputError
from refimpl.layers.adaptive_softmax import Weights

ELEMENTS = 1 << 26  # of the head's logits that exist at once: 256 MiB in float32
TILE = 64  # rows, and words, of a tail's tile
BLOCKS = 264  # that a tail's sums over words are cut for, at least: two for each of an H100's 132 processors


class Saved(NamedTuple):
    """forward's arguments."""

    hidden: Array
    targets: Array
    weights: Weights
    order: str


class Rows(NamedTuple):
    """hidden (R, D), targets (R), loss (R); of each tail the numbers of its rows, where each row stands among them, or -1,
    both (tails, R), and their count (tails).
    """

    hidden: Array
    targets: Array
    loss: Array
    numbers: Array
    at: Array
    counts: Array


class Slopes(NamedTuple):
    """d_loss (R), d_hidden (R, D), and the weights' gradients, to all of which is added."""

    loss: Array
    hidden: Array
    weights: Weights


def forward(hidden: Array, targets: Array, weights: Weights, order: str) -> tuple[Array, Saved]:
    """As adaptive_softmax.forward, for CuPy arrays of float32 or float64. Nothing is kept: backward makes the pass again."""
    return _computed(hidden, targets, weights, order).loss.reshape(targets.shape), Saved(hidden, targets, weights, order)


def backward(d_loss: Array, saved: Saved) -> tuple[Array, Weights]:
    """As adaptive_softmax.backward."""
    xp = module_of(d_loss)
    d = Weights(*([xp.zeros_like(array) for array in arrays] for arrays in saved.weights[:3]),
                *map(xp.zeros_like, saved.weights[3:]))
    return loss_and_gradients(*saved, d_loss, d)[1], d


def loss_and_gradients(
    hidden: Array, targets: Array, weights: Weights, order: str, d_loss: Array, d: Weights
) -> tuple[Array, Array]:
    """As fused_softmax.loss_and_gradients: loss (…), d_hidden (…, D), the weights' gradients added to the arrays of d."""
    xp = module_of(hidden)
    slopes = Slopes(xp.ascontiguousarray(d_loss).reshape(-1), xp.empty((targets.size, hidden.shape[-1]), hidden.dtype), d)
    at = _computed(hidden, targets, weights, order, slopes)
    return at.loss.reshape(targets.shape), slopes.hidden.reshape(hidden.shape)


def _computed(hidden: Array, targets: Array, weights: Weights, order: str, slopes: Slopes | None = None) -> Rows:
    at = _rows(hidden, targets, weights)
    if targets.size:
        _score_head(at, weights, order, slopes)
        for tail, table in enumerate(weights.tables[1:]):
            if len(table):
                _score_tail(at, weights, tail, slopes)
    return at


def _rows(hidden: Array, targets: Array, weights: Weights) -> Rows:
    """Raises InputError unless all are on the device, of one dtype, and each table has as many biases as rows."""
    arrays = {f"weight {number}": array for number, array in enumerate(weights.arrays())}
    xp = array_module({"hidden": hidden, "targets": targets, **arrays})
    for table, bias in zip((*weights.tables, weights.cluster_table), (*weights.biases, weights.cluster_bias), strict=True):
        if bias.shape != table.shape[:1] or {table.dtype, bias.dtype} != {hidden.dtype}:
            raise InputError(f"adaptive softmax: expected biases of shape {table.shape[:1]}, all of {hidden.dtype}, got "
                             f"{bias.shape} of {bias.dtype} beside {table.dtype}")
    words, tails, end = whole(targets).reshape(-1), len(weights.tables) - 1, len(weights.tables[0])
    numbers, at = xp.empty((2, tails, words.size), "int32")
    counts = xp.empty(tails, "int32")
    for tail, table in enumerate(weights.tables[1:]):
        first, end = end, end + len(table)
        if words.size:
            kernel("clusters", "list_rows", hidden.dtype)((1,), (THREADS,), (
                words, words.size, first, end, numbers[tail], at[tail], counts[tail:]))
    return Rows(xp.ascontiguousarray(hidden).reshape(-1, hidden.shape[-1]), words, xp.empty(words.size, hidden.dtype),
                numbers, at, counts)


def _score_head(at: Rows, weights: Weights, order: str, slopes: Slopes | None) -> None:
    """at.loss becomes the head's; its gradients are added but for d_hidden, which becomes its own."""
    xp, words, tails = module_of(at.hidden), len(weights.tables[0]), len(weights.cluster_table)
    count, columns, dtype = len(at.hidden), words + tails, at.hidden.dtype
    projected = _projected(at, weights, 0)
    d_projected = xp.empty_like(projected)
    logits, bias = xp.empty((max(1, min(count, ELEMENTS // columns)), columns), dtype), _bias_of_tails(weights, order)
    for first in range(0, count, len(logits)):
        rows, scored = projected[first : first + len(logits)], logits[: count - first]
        halves = [(scored[:, :words], weights.tables[0], 0), (scored[:, words:], weights.cluster_table, 1)]
        for part, table, _ in halves[: 1 + (tails > 0)]:
            product(rows[None], table.T[None], part[None])
        kernel("head", "score", dtype)((len(rows),), (THREADS,), (
            scored, weights.biases[0], bias, at.targets, at.at, slopes and slopes.loss, at.loss, words, tails,
            int(order != "ascending"), count, first))
        if slopes is None:
            continue
        d_rows, d = d_projected[first : first + len(logits)], slopes.weights
        for part, table, place in halves[: 1 + (tails > 0)]:
            product(part[None], table[None], d_rows[None], add=place > 0)
            product(part.T[None], rows[None], (d.tables[0] if place == 0 else d.cluster_table)[None], add=True)
        kernel("head", "add_columns", dtype)((-(-columns // 32),), (32, 8), (
            scored, d.biases[0], d.cluster_bias, len(rows), words, tails))
    _add_projection(at, weights, 0, d_projected, slopes)


def _score_tail(at: Rows, weights: Weights, tail: int, slopes: Slopes | None) -> None:
    """Adds the tail's loss, and its gradients."""
    xp, number, dtype = module_of(at.hidden), tail + 1, at.hidden.dtype
    table, bias, count = weights.tables[number], weights.biases[number], len(at.hidden)
    (words, width), first = table.shape, sum(map(len, weights.tables[:number]))
    rows, counts, projected = at.numbers[tail], at.counts[tail:], _projected(at, weights, number)
    blocks = max(-(-count // TILE), BLOCKS)
    most, sums = xp.empty((2, blocks, TILE), dtype)
    scores, shifts, totals = xp.empty((3, count), dtype)
    given = projected, table, bias, at.targets, rows, counts, width, words, first

    def launch(name: str, blocks: int, *arguments: object) -> None:
        kernel("tail", name, dtype)((blocks,), (THREADS,), arguments)

    launch("score", blocks, *given, most, sums, scores)
    launch("add_loss", -(-count // THREADS), rows, counts, words, blocks, most, sums, scores, shifts, totals, at.loss)
    if slopes is None:
        return
    parts, d_projected = xp.empty((blocks, TILE, width), dtype), xp.empty_like(projected)
    launch("differentiate_rows", blocks, *given, shifts, totals, slopes.loss, parts)
    launch("collect", -(-d_projected.size // THREADS), at.at[tail], counts, words, width, blocks, parts, d_projected,
           d_projected.size)
    launch("differentiate_words", -(-words // TILE), *given, shifts, totals, slopes.loss, slopes.weights.tables[number],
           slopes.weights.biases[number])
    _add_projection(at, weights, number, d_projected, slopes)


def _projected(at: Rows, weights: Weights, number: int) -> Array:
    """h P_i of all rows, (R, D_i): what that costs for rows of other clusters is little, and the shape is fixed."""
    projection = weights.projections[number]
    projected = module_of(at.hidden).empty((len(at.hidden), projection.shape[1]), at.hidden.dtype)
    product(at.hidden[None], projection[None], projected[None])
    return projected


def _add_projection(at: Rows, weights: Weights, number: int, d_projected: Array, slopes: Slopes | None) -> None:
    if slopes is not None:
        projection = weights.projections[number]
        product(d_projected[None], projection.T[None], slopes.hidden[None], add=number > 0)
        product(at.hidden.T[None], d_projected[None], slopes.weights.projections[number][None], add=True)


def _bias_of_tails(weights: Weights, order: str) -> Array:
    """The head's biases after the shortlist's, -∞ at tails without words."""
    empty = [slot for slot, table in zip(_slots(weights, order), weights.tables[1:], strict=True) if not len(table)]
    bias = weights.cluster_bias.copy() if empty else weights.cluster_bias
    for slot in empty:
        bias[slot] = -float("inf")
    return bias


def _slots(weights: Weights, order: str) -> Sequence[int]:
    tails = range(len(weights.cluster_table))
    return tails if order == "ascending" else tails[::-1]
