"""adaptive_softmax.py for training on CPUs, loss and gradients in one pass: no array of all rows by all words ever exists.

Rows are taken in chunks. In one buffer a chunk's logits become exponentials and then gradients; their share of each weight's
gradient is added at once. Nothing is kept for backward, nothing computed twice. Within a chunk threads share the words, the
rows, and the words again: no two write to one array, sums have a fixed order, and bits don't depend on the threads.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, available_cores, is_device, map_in_threads
from refimpl.errors import InputError
from refimpl.layers.adaptive_softmax import Weights, cluster_slots
from refimpl.layers.tiles import product, scratch, steps


class Chunking(NamedTuple):
    """Most logits of a chunk; tasks that its rows, and those of a table, are cut into; threads (0 = one for each core).

    Results are the same bits for any number of threads; the other numbers change roundoff.
    """

    logits: int = 8_000_000
    tasks: int = 8
    workers: int = 0


CHUNKING = Chunking()


class Cluster(NamedTuple):
    """One softmax's weights, or their gradients; its columns are the rows of its tables: the head has two, a tail one."""

    projection: Array
    tables: Sequence[Array]
    biases: Sequence[Array]


class Block(NamedTuple):
    """Some rows of one table, their biases, or the gradients of both; and which columns they are."""

    table: Array
    bias: Array
    columns: slice


class Chunk(NamedTuple):
    """n rows of one softmax: rows (n), their numbers; targets (n), columns; hidden (n, D); and what is computed of them.

    projected (n, D_i); logits (n, V_i), after _score exponentials; total (n), their sums.
    """

    chunking: Chunking
    cluster: Cluster
    rows: Array
    targets: Array
    hidden: Array
    projected: Array
    logits: Array
    total: Array


class Saved(NamedTuple):
    """forward's arguments."""

    hidden: Array
    targets: Array
    weights: Weights
    order: str
    chunking: Chunking


def forward(
    hidden: Array, targets: Array, weights: Weights, order: str, chunking: Chunking = CHUNKING
) -> tuple[Array, Saved]:
    """As adaptive_softmax.forward, for real NumPy arrays. Of the pass nothing is kept: backward makes it again."""
    saved = Saved(hidden, targets, weights, order, chunking)
    loss = np.zeros(targets.size, _dtype(hidden, weights))
    for _, chunk in _chunks(saved, loss.dtype):
        _score(loss, chunk)
    return loss.reshape(targets.shape), saved


def backward(d_loss: Array, saved: Saved) -> tuple[Array, Weights]:
    """As adaptive_softmax.backward."""
    lists = ([np.zeros_like(array) for array in arrays] for arrays in saved.weights[:3])
    d = Weights(*lists, *map(np.zeros_like, saved.weights[3:]))
    _, d_hidden = loss_and_gradients(*saved[:4], d_loss, d, saved.chunking)
    return d_hidden, d


def loss_and_gradients(
    hidden: Array, targets: Array, weights: Weights, order: str, d_loss: Array, d: Weights, chunking: Chunking = CHUNKING
) -> tuple[Array, Array]:
    """forward and backward in one pass, for a d_loss (…) that is known before it: loss (…), d_hidden (…, D).

    The weights' gradients are added to the arrays of d.
    """
    loss = np.zeros(targets.size, _dtype(hidden, weights))
    d_hidden = np.zeros_like(hidden, loss.dtype, shape=(targets.size, hidden.shape[-1]))
    gradients = _clusters(d)
    for number, chunk in _chunks(Saved(hidden, targets, weights, order, chunking), loss.dtype):
        _score(loss, chunk)
        _differentiate(d_loss.reshape(-1), d_hidden, gradients[number], chunk)
    return loss.reshape(targets.shape), d_hidden.reshape(hidden.shape)


def _score(loss: Array, chunk: Chunk) -> None:
    """Adds log Z - s_target, s less the row's maximum; leaves e = exp(s) in place of the logits, and Z = Σ e."""
    (_, tasks, workers), numbers, logits = chunk.chunking, np.arange(len(chunk.rows)), chunk.logits

    def project(here: slice) -> None:
        np.matmul(chunk.hidden[here], chunk.cluster.projection, out=chunk.projected[here])

    def score(block: Block) -> None:
        np.matmul(chunk.projected, block.table.T, out=logits[:, block.columns])
        logits[:, block.columns] += block.bias

    def normalize(here: slice) -> None:
        logits[here] -= logits[here].max(1, keepdims=True)
        loss[chunk.rows[here]] -= logits[numbers[here], chunk.targets[here]]
        np.exp(logits[here], out=logits[here])
        logits[here].sum(1, out=chunk.total[here])

    map_in_threads(project, _parts(len(numbers), tasks), workers)
    map_in_threads(score, _blocks(chunk.cluster, tasks), workers)
    map_in_threads(normalize, _parts(len(numbers), tasks), workers)
    loss[chunk.rows] += np.log(chunk.total)


def _differentiate(d_loss: Array, d_hidden: Array, d: Cluster, chunk: Chunk) -> None:
    """Adds the gradients of a chunk that _score has left: ds = (e - [target] Z) d_loss / Z.

    The last factor is of the row: on the narrow side of each product it costs least.
    """
    _, tasks, workers = chunk.chunking
    scale = d_loss[chunk.rows] / chunk.total
    blocks = list(zip(_blocks(chunk.cluster, tasks), _blocks(d, tasks), strict=True))
    shares = scratch("shares", (len(blocks), *chunk.projected.shape), chunk.projected.dtype)
    chunk.logits[np.arange(len(scale)), chunk.targets] -= chunk.total
    chunk.projected[...] *= scale[:, None]

    def add_words(number: int) -> None:
        block, d_block = blocks[number]
        d_logits = chunk.logits[:, block.columns]
        d_block.table[...] += product(d_logits.T, chunk.projected)
        d_block.bias[...] += scale @ d_logits
        np.matmul(d_logits, block.table, out=shares[number])

    map_in_threads(add_words, range(len(blocks)), workers)
    d_projected = shares.sum(0) * scale[:, None]

    def add_hidden(here: slice) -> None:
        d_hidden[chunk.rows[here]] += d_projected[here] @ chunk.cluster.projection.T

    def add_projection(here: slice) -> None:
        d.projection[here] += chunk.hidden[:, here].T @ d_projected

    map_in_threads(add_hidden, _parts(len(scale), tasks), workers)
    map_in_threads(add_projection, _parts(len(d.projection), tasks), workers)


def _dtype(hidden: Array, weights: Weights) -> Any:
    """The results'. Raises InputError unless all are real NumPy arrays, and each table has as many biases as rows."""
    arrays = [hidden, *weights.arrays()]
    for array in arrays:
        if is_device(array) or array.dtype.kind != "f":
            came = f"{type(array).__name__} of {array.dtype}"
            raise InputError(f"adaptive softmax: expected real NumPy arrays for a pass in chunks, got {came}")
    for cluster in _clusters(weights):
        for table, bias in zip(cluster.tables, cluster.biases, strict=True):
            if bias.shape != table.shape[:1]:
                raise InputError(f"adaptive softmax: expected biases of shape {table.shape[:1]}, got {bias.shape}")
    return np.result_type(*arrays)


def _clusters(weights: Weights) -> list[Cluster]:
    """The head first, whose columns are the shortlist's and then the tails'."""
    (table, *tables), (bias, *biases), (projection, *projections), cluster_table, cluster_bias = weights
    tails = zip(projections, tables, biases, strict=True)
    return [Cluster(projection, [table, cluster_table], [bias, cluster_bias]),
            *(Cluster(projection, [table], [bias]) for projection, table, bias in tails)]


def _chunks(saved: Saved, dtype: Any) -> Iterator[tuple[int, Chunk]]:
    """One after another, each with its cluster's number; they share their room. Clusters without targets have none."""
    hidden = saved.hidden.reshape(-1, saved.hidden.shape[-1])
    chunking = saved.chunking._replace(workers=saved.chunking.workers or available_cores())
    for number, (cluster, rows, targets) in enumerate(_softmaxes(saved)):
        words, width = sum(map(len, cluster.tables)), cluster.projection.shape[1]
        for here in steps(len(rows), max(1, chunking.logits // max(1, words))):
            n = here.stop - here.start
            room = (scratch(name, shape, dtype) for name, shape in
                    {"projected": (n, width), "logits": (n, words), "total": (n,)}.items())
            yield number, Chunk(chunking, cluster, rows[here], targets[here], hidden[rows[here]], *room)


def _softmaxes(saved: Saved) -> list[tuple[Cluster, Array, Array]]:
    """Head and tails, each with the rows that it scores and the columns of their targets."""
    weights, tails = saved.weights, []
    end = shortlist = len(weights.tables[0])
    # a narrow type of integers could not hold a cluster's end
    words = saved.targets.reshape(-1).astype("int64")
    columns, bias = words.copy(), weights.cluster_bias.copy()
    head, *clusters = _clusters(weights._replace(cluster_bias=bias))
    slots = cluster_slots(weights, saved.order)
    for slot, cluster, table in zip(slots, clusters, weights.tables[1:], strict=True):
        first, end = end, end + len(table)
        rows = np.flatnonzero((words >= first) & (words < end))
        columns[rows] = slot
        tails.append((cluster, rows, words[rows] - first))
        if first == end:  # no words, no share of the head
            bias[slot - shortlist] = -np.inf
    return [(head, np.arange(len(words)), columns), *tails]


def _blocks(cluster: Cluster, tasks: int) -> list[Block]:
    """Each of the cluster's tables in blocks, one for each task."""
    found, first = [], 0
    for table, bias in zip(cluster.tables, cluster.biases, strict=True):
        found += [Block(table[here], bias[here], slice(first + here.start, first + here.stop))
                  for here in _parts(len(table), tasks)]
        first += len(table)
    return found


def _parts(count: int, tasks: int) -> list[slice]:
    """0 … count in nearly equal slices, one for each task."""
    bounds = [count * i // tasks for i in range(tasks + 1)]
    return [slice(low, high) for low, high in pairwise(bounds)]
