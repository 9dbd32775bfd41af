"""Adaptive softmax, Grave et al. (arXiv 1609.04309), section 4: a head over frequent words and clusters of rarer ones."""

from collections.abc import Sequence
from typing import NamedTuple

from refimpl.arrays import Array, module_of
from refimpl.layers import linear, softmax_loss


class Weights(NamedTuple):
    """The arguments that have gradients, in the order in which backward returns them.

    tables[i] (V_i, D_i), biases[i] (V_i), projections[i] (D, D_i), for the shortlist i = 0 and the tails i ≥ 1;
    cluster_table (tails, D_0), cluster_bias (tails): the head's columns after the shortlist, in the head's order; which tail
    each stands for, `cluster_slots` says.
    """

    tables: Sequence[Array]
    biases: Sequence[Array]
    projections: Sequence[Array]
    cluster_table: Array
    cluster_bias: Array

    def arrays(self) -> list[Array]:
        """All of them, cluster by cluster, the head's columns for clusters last."""
        by_cluster = zip(self.tables, self.biases, self.projections, strict=True)
        return [*(array for arrays in by_cluster for array in arrays), self.cluster_table, self.cluster_bias]


class Part(NamedTuple):
    """One softmax, of the head or of a tail: the rows of hidden states it scored, and what its three steps saved."""

    rows: Array
    projected: linear.Saved
    scored: linear.Saved
    loss: softmax_loss.Saved


class Saved(NamedTuple):
    """Head first, then the tails in order."""

    parts: list[Part]
    weights: Weights
    shape: tuple[int, ...]


def forward(hidden: Array, targets: Array, weights: Weights, order: str) -> tuple[Array, Saved]:
    """loss = -log p(cluster of target) - log p(target | cluster);  hidden (…, D), targets (…) -> (…).

    Scores of a cluster: (h P_i) table_iᵀ + b_i; the head's table goes on with one row for each tail. A tail without words
    has no share of the head.
    """
    xp = module_of(hidden)
    # a narrow type of integers could not hold a cluster's end
    rows, words = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1).astype("int64")
    slots = cluster_slots(weights, order)
    table, bias = _head(weights, slots)
    head_targets, tails, first = words.copy(), [], len(weights.tables[0])
    for i, tail in enumerate(weights.tables[1:]):
        inside = (words >= first) & (words < first + len(tail))
        head_targets[inside] = slots[i]
        # which rows a cluster owns depends on the data: scoring every tail for every row would cost far more
        tails.append((xp.nonzero(inside)[0], first))
        first += len(tail)
    head_loss, part = _score(rows, xp.arange(len(rows)), head_targets, weights.projections[0], table, bias)
    parts, loss = [part], head_loss.astype(xp.result_type(head_loss, *weights.tables, *weights.biases, *weights.projections))
    for i, (here, first) in enumerate(tails, start=1):
        projection, table, bias = weights.projections[i], weights.tables[i], weights.biases[i]
        tail_loss, part = _score(rows, here, words[here] - first, projection, table, bias)
        loss[here] += tail_loss
        parts.append(part)
    return loss.reshape(targets.shape), Saved(parts, weights, hidden.shape)


def backward(d_loss: Array, saved: Saved) -> tuple[Array, Weights]:
    """d_hidden (…, D), summed over head and tail, and the gradients of the weights."""
    xp, weights = module_of(d_loss), saved.weights
    d_hidden = xp.zeros((d_loss.size, saved.shape[-1]), d_loss.dtype)
    d_tables, d_biases, d_projections = [], [], []
    for rows, projected, scored, loss in saved.parts:
        d_logits = softmax_loss.backward(d_loss.reshape(-1)[rows], loss)
        d_projected, d_table, d_bias = linear.backward(d_logits, scored)
        d_rows, d_projection, _ = linear.backward(d_projected, projected)
        d_hidden[rows] += d_rows
        d_tables.append(d_table)
        d_biases.append(d_bias)
        d_projections.append(d_projection.T)
    shortlist = len(weights.tables[0])
    d_cluster_table, d_cluster_bias = d_tables[0][shortlist:], d_biases[0][shortlist:]
    d_tables[0], d_biases[0] = d_tables[0][:shortlist], d_biases[0][:shortlist]
    gradients = Weights(d_tables, d_biases, d_projections, d_cluster_table, d_cluster_bias)
    return d_hidden.reshape(saved.shape), gradients


def log_probabilities(hidden: Array, weights: Weights, order: str) -> Array:
    """log p of every word: (…, D) -> (…, V)."""
    slots = cluster_slots(weights, order)
    table, bias = _head(weights, slots)
    head = softmax_loss.log_softmax(_logits(hidden, weights.projections[0], table, bias)[0])
    columns = [head[..., : len(weights.tables[0])]]
    for i, slot in enumerate(slots, start=1):
        if len(weights.tables[i]):
            scores, *_ = _logits(hidden, weights.projections[i], weights.tables[i], weights.biases[i])
            columns.append(head[..., slot : slot + 1] + softmax_loss.log_softmax(scores))
    return module_of(hidden).concatenate(columns, axis=-1)


def cluster_slots(weights: Weights, order: str) -> list[int]:
    """The head's column for each tail i = 1, 2, …: V_0 + i - 1 ("ascending", as in torch) or -i ("reversed", as published).

    Then the first tail's row of cluster_table is the first one, or the last.
    """
    shortlist, tails = len(weights.tables[0]), len(weights.tables) - 1
    ascending = [shortlist + i for i in range(tails)]
    return ascending if order == "ascending" else ascending[::-1]


def _head(weights: Weights, slots: list[int]) -> tuple[Array, Array]:
    """The head's table (V_0 + tails, D_0) and bias, -∞ at tails without words."""
    xp = module_of(weights.tables[0])
    table = xp.concatenate([weights.tables[0], weights.cluster_table])
    bias = xp.concatenate([weights.biases[0], weights.cluster_bias])
    for slot, tail in zip(slots, weights.tables[1:], strict=True):
        if len(tail) == 0:
            bias[slot] = -xp.inf
    return table, bias


def _logits(rows: Array, projection: Array, table: Array, bias: Array) -> tuple[Array, linear.Saved, linear.Saved]:
    projected, projection_saved = linear.forward(rows, projection.T)
    logits, scored = linear.forward(projected, table, bias)
    return logits, projection_saved, scored


def _score(
    hidden: Array, rows: Array, targets: Array, projection: Array, table: Array, bias: Array
) -> tuple[Array, Part]:
    logits, projected, scored = _logits(hidden[rows], projection, table, bias)
    if len(table) == 0:  # a cluster without words: softmax has nothing to normalise, and no target can be here
        return logits.sum(-1), Part(rows, projected, scored, softmax_loss.Saved(logits, targets))
    loss, saved = softmax_loss.forward(logits, targets)
    return loss, Part(rows, projected, scored, saved)
