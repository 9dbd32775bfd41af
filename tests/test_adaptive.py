"""Adaptive input and adaptive softmax: gradients, values worked out word by word, empty clusters, both cluster orders."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.layers import adaptive_input, adaptive_softmax, softmax_loss

# sizes of the clusters: one, several, one word each, empty ones in the middle, at the end
CLUSTERS = [(7,), (3, 4), (2, 3, 2), (1, 1, 1), (3, 0, 2), (2, 3, 0), (1, 0, 0, 1)]
ORDERS = ["ascending", "reversed"]


def draw_tables(sizes, seed, width=8):
    """Tables (V_i, D / 2^i) and projections (D, D / 2^i)."""
    rng = np.random.default_rng(seed)
    widths = [max(1, width >> i) for i in range(len(sizes))]
    tables = [rng.standard_normal((size, w)) for size, w in zip(sizes, widths, strict=True)]
    return tables, [rng.standard_normal((width, w)) for w in widths]


def draw_weights(sizes, seed, width=8):
    rng = np.random.default_rng(seed + 1)
    tables, projections = draw_tables(sizes, seed, width)
    tails = len(sizes) - 1
    return adaptive_softmax.Weights(
        tables, [rng.standard_normal(size) for size in sizes], projections,
        rng.standard_normal((tails, width)), rng.standard_normal(tails),
    )


def flattened(weights):
    return [*weights.tables, *weights.biases, *weights.projections, weights.cluster_table, weights.cluster_bias]


def gathered(arrays, n):
    return adaptive_softmax.Weights(arrays[:n], arrays[n : 2 * n], arrays[2 * n : 3 * n], *arrays[3 * n :])


def word_by_word(hidden, word, weights, order):
    """-log p(word) for one hidden state, from exponentials of scalars."""
    sizes = [len(table) for table in weights.tables]
    projected = [hidden @ projection for projection in weights.projections]
    head = [float(projected[0] @ row + bias) for row, bias in zip(weights.tables[0], weights.biases[0], strict=True)]
    slots = [float(projected[0] @ row + bias) for row, bias in zip(weights.cluster_table, weights.cluster_bias, strict=True)]
    if order == "reversed":  # the first tail's row is the last one
        slots = slots[::-1]
    used = [slot for slot, size in zip(slots, sizes[1:], strict=True) if size]
    total = math.fsum(math.exp(s) for s in head + used)
    if word < sizes[0]:
        return math.log(total) - head[word]
    cluster, first = 1, sizes[0]
    while word >= first + sizes[cluster]:
        first += sizes[cluster]
        cluster += 1
    rows = zip(weights.tables[cluster], weights.biases[cluster], strict=True)
    tail = [float(projected[cluster] @ row + b) for row, b in rows]
    inside = math.log(math.fsum(math.exp(s) for s in tail)) - tail[word - first]
    return math.log(total) - slots[cluster - 1] + inside


@pytest.mark.parametrize("sizes", CLUSTERS, ids=str)
def test_adaptive_input_gradient(check_pair, sizes):
    tables, projections = draw_tables(sizes, 1)
    tokens = np.random.default_rng(0).integers(0, sum(sizes), (3, 4))
    n = len(sizes)

    def forward(*arrays):
        return adaptive_input.forward(tokens, arrays[:n], arrays[n:])

    def backward(dy, *arrays):
        d_tables, d_projections = adaptive_input.backward(dy, forward(*arrays)[1])
        return [*d_tables, *d_projections]

    check_pair(lambda *arrays: forward(*arrays)[0], backward, [*tables, *projections])


def test_adaptive_input_by_hand():
    """D = 4: word 1 of a first cluster of 1 is row 0 of the second, times its projection, times √4."""
    tables = [np.array([[1.0, 0, 0, 0]]), np.array([[3.0]])]
    projections = [np.eye(4)[::-1], np.array([[1.0], [0], [2], [0]])]
    x, _ = adaptive_input.forward(np.array([[1, 0]]), tables, projections)
    np.testing.assert_array_equal(x, [[[6, 0, 12, 0], [0, 0, 0, 2]]])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", CLUSTERS, ids=str)
def test_adaptive_softmax_gradient(check_pair, sizes, order):
    weights, n = draw_weights(sizes, 2), len(sizes)
    rng = np.random.default_rng(0)
    hidden, targets = rng.standard_normal((2, 4, 8)), rng.integers(0, sum(sizes), (2, 4))

    def forward(hidden, *arrays):
        return adaptive_softmax.forward(hidden, targets, gathered(arrays, n), order)

    def backward(dy, *arguments):
        d_hidden, gradients = adaptive_softmax.backward(dy, forward(*arguments)[1])
        return [d_hidden, *flattened(gradients)]

    check_pair(lambda *arguments: forward(*arguments)[0], backward, [hidden, *flattened(weights)])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sizes", CLUSTERS, ids=str)
def test_adaptive_softmax_equals_exponentials_word_by_word(sizes, order):
    weights, vocabulary = draw_weights(sizes, 3), sum(sizes)
    hidden = np.random.default_rng(1).standard_normal((2, 8))
    expected = [[word_by_word(h, word, weights, order) for word in range(vocabulary)] for h in hidden]
    log_p = adaptive_softmax.log_probabilities(hidden, weights, order)
    # both sides subtract logits of up to 20 from a logarithm as large: 1e-14 is a few units of roundoff of those
    np.testing.assert_allclose(-log_p, expected, rtol=1e-13, atol=1e-14)
    rows, targets = np.repeat(hidden[:, None], vocabulary, 1), np.tile(np.arange(vocabulary), (2, 1))
    np.testing.assert_allclose(adaptive_softmax.forward(rows, targets, weights, order)[0], expected, rtol=1e-13, atol=1e-14)


def test_cluster_slots_in_the_head():
    """Shortlist of 5 and three tails: in order they take columns 5, 6, 7; reversed, cluster i takes column -i."""
    weights = draw_weights((5, 1, 1, 1), 0)
    assert adaptive_softmax.cluster_slots(weights, "ascending") == [5, 6, 7]
    assert adaptive_softmax.cluster_slots(weights, "reversed") == [7, 6, 5]


@given(st.integers(0, 2**32), st.lists(st.integers(0, 4), min_size=0, max_size=3), st.sampled_from(ORDERS))
@example(0, [0, 0, 0], "reversed")
def test_probabilities_sum_to_one_and_an_empty_tail_changes_nothing(seed, tails, order):
    weights = draw_weights((3, *tails), seed % 1000)
    hidden = np.random.default_rng(seed).standard_normal((3, 8))
    log_p = adaptive_softmax.log_probabilities(hidden, weights, order)
    np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-13)
    table, bias = [weights.cluster_table, np.full((1, 8), 7.0)], [weights.cluster_bias, [9.0]]
    step = 1 if order == "ascending" else -1
    more = weights._replace(
        tables=[*weights.tables, np.empty((0, 2))], biases=[*weights.biases, np.empty(0)],
        projections=[*weights.projections, np.ones((8, 2))],
        cluster_table=np.concatenate(table[::step]), cluster_bias=np.concatenate(bias[::step]),
    )
    np.testing.assert_allclose(adaptive_softmax.log_probabilities(hidden, more, order), log_p, rtol=0, atol=1e-12)


def test_the_orders_are_each_other_with_the_clusters_rows_turned_round():
    weights = draw_weights((3, 2, 2), 6)
    hidden = np.random.default_rng(0).standard_normal((4, 8))
    turned = weights._replace(cluster_table=weights.cluster_table[::-1], cluster_bias=weights.cluster_bias[::-1])
    ascending = adaptive_softmax.log_probabilities(hidden, weights, "ascending")
    np.testing.assert_allclose(adaptive_softmax.log_probabilities(hidden, turned, "reversed"), ascending, rtol=1e-13)
    assert np.abs(adaptive_softmax.log_probabilities(hidden, weights, "reversed") - ascending).max() > 0.1


def test_one_cluster_is_a_softmax():
    weights = draw_weights((6,), 4)
    rng = np.random.default_rng(0)
    hidden, targets = rng.standard_normal((5, 8)), rng.integers(0, 6, 5)
    logits = hidden @ weights.projections[0] @ weights.tables[0].T + weights.biases[0]
    loss, _ = adaptive_softmax.forward(hidden, targets, weights, "ascending")
    np.testing.assert_allclose(loss, softmax_loss.forward(logits, targets)[0], rtol=1e-13)


def test_a_tail_without_targets_has_no_gradient_but_its_slot_does():
    weights = draw_weights((3, 4), 5)
    hidden = np.random.default_rng(0).standard_normal((2, 8))
    _, saved = adaptive_softmax.forward(hidden, np.array([0, 2]), weights, "ascending")
    _, gradients = adaptive_softmax.backward(np.ones(2), saved)
    assert not gradients.tables[1].any()
    assert not gradients.projections[1].any()
    assert gradients.cluster_bias[0] > 0
