"""Each simple pair: its gradients against the complex step, its values against numbers worked out in another way."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl.layers import (
    dropout,
    embedding,
    feed_forward,
    layer_norm,
    linear,
    multi_head,
    positions,
    softmax_loss,
    span,
)

SEEDS = range(3)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 4), (5, 4)])
def test_linear_gradient(check_pair, seed, bias, shape):
    arguments = [normal(seed, *shape), normal(seed + 10, 6, 4)] + ([normal(seed + 20, 6)] if bias else [])

    def backward(dy, *arguments):
        gradients = linear.backward(dy, linear.forward(*arguments)[1])
        assert bias or gradients[2] is None
        return gradients[: len(arguments)]

    check_pair(lambda *a: linear.forward(*a)[0], backward, arguments, seed)


def test_linear_reads_rows_of_the_weight_as_outputs():
    y, _ = linear.forward(np.array([[1.0, 2.0]]), np.array([[3.0, 5.0], [7.0, 11.0], [0.0, 1.0]]), np.array([0.5, 0, 0]))
    np.testing.assert_array_equal(y, [[13.5, 29.0, 2.0]])


@pytest.mark.parametrize("seed", SEEDS)
def test_layer_norm_gradient(check_pair, seed):
    arguments = [normal(seed, 2, 3, 5), normal(seed + 1, 5), normal(seed + 2, 5)]
    check_pair(
        lambda *a: layer_norm.forward(*a)[0],
        lambda dy, *a: layer_norm.backward(dy, layer_norm.forward(*a)[1]),
        arguments, seed,
    )


def test_layer_norm_by_hand():
    """x = (1, 2, 3, 6): mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    y, _ = layer_norm.forward(np.array([1.0, 2, 3, 6]), np.array([2.0, 2, 2, 2]), np.array([0.0, 0, 0, 1]))
    deviation = math.sqrt(3.5 + 1e-5)
    np.testing.assert_allclose(y, [-4 / deviation, -2 / deviation, 0, 6 / deviation + 1], rtol=1e-15)


@given(st.integers(0, 2**32), st.floats(-50, 50), st.floats(0.1, 50))
def test_layer_norm_ignores_shift_and_scale_up_to_its_epsilon(seed, shift, scale):
    x, gain, bias = normal(seed, 3, 6), normal(seed, 6), normal(seed, 6)
    exact = layer_norm.forward(x, gain, bias, epsilon=0.0)[0]
    moved = layer_norm.forward(shift + scale * x, gain, bias, epsilon=0.0)[0]
    np.testing.assert_allclose(moved, exact, rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [None, 0.3])
def test_feed_forward_gradient(check_pair, seed, rate):
    shapes = [(2, 3, 4), (6, 4), (6,), (4, 6), (4,)]
    arguments = [normal(seed + i, *shape) for i, shape in enumerate(shapes)]
    keep = None if rate is None else normal(seed + 5, 2, 3, 6) > 0

    def run(h, *weights):
        return feed_forward.forward(h, feed_forward.Weights(*weights), keep, rate or 0.0)

    def backward(dy, *arguments):
        d_h, d_weights = feed_forward.backward(dy, run(*arguments)[1])
        return [d_h, *d_weights]

    check_pair(lambda *a: run(*a)[0], backward, arguments, seed)


def test_relu_at_zero_has_value_and_slope_zero():
    y, positive = feed_forward.relu_forward(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(y, [0, 0, 2])
    np.testing.assert_array_equal(feed_forward.relu_backward(np.array([5.0, 5.0, 5.0]), positive), [0, 0, 5])


def test_dropout_scales_what_it_keeps():
    keep = np.array([True, False, True])
    y, saved = dropout.forward(np.array([3.0, 3.0, -6.0]), keep, 0.25)
    np.testing.assert_allclose(y, [4, 0, -8], rtol=1e-15)
    np.testing.assert_allclose(dropout.backward(np.array([1.0, 1.0, 3.0]), saved), [4 / 3, 0, 4], rtol=1e-15)


def test_dropout_without_a_mask_is_the_identity():
    x = normal(0, 4)
    y, saved = dropout.forward(x, None, 0.5)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(dropout.backward(x, saved), x)


@pytest.mark.parametrize("seed", SEEDS)
def test_dropout_gradient(check_pair, seed):
    keep = normal(seed, 3, 4) > 0
    check_pair(
        lambda x: dropout.forward(x, keep, 0.4)[0],
        lambda dy, x: [dropout.backward(dy, dropout.forward(x, keep, 0.4)[1])],
        [normal(seed + 1, 3, 4)], seed,
    )


def test_embedding_adds_the_gradients_of_repeated_tokens():
    table, tokens = np.arange(6.0).reshape(3, 2), np.array([[2, 0, 2]])
    x, saved = embedding.forward(table, tokens)
    np.testing.assert_array_equal(x, [[[4, 5], [0, 1], [4, 5]]])
    d_table = embedding.backward(np.array([[[1.0, 2], [10, 20], [100, 200]]]), saved)
    np.testing.assert_array_equal(d_table, [[10, 20], [0, 0], [101, 202]])


@pytest.mark.parametrize("seed", SEEDS)
def test_relative_positions_gradient(check_pair, seed):
    check_pair(
        lambda *a: positions.relative_forward(*a)[0],
        lambda dy, *a: positions.relative_backward(dy, positions.relative_forward(*a)[1]),
        [normal(seed, 2, 3, 2, 4), normal(seed + 1, 5, 4)], seed,
    )


@pytest.mark.parametrize("first", [0, 1, 3])
def test_a_projections_gradient_from_a_position_on(first):
    """dx of rows that nobody reads is not computed; dW is that of all rows."""
    x, weight, d_heads = normal(0, 2, 5, 6), normal(1, 4, 6), normal(2, 2, 5, 2, 2)
    _, saved = multi_head.project(x, weight, 2)
    d_x, d_weight = multi_head.project_backward(d_heads, saved, first)
    np.testing.assert_allclose(d_x, np.einsum("bto,oi->bti", d_heads.reshape(2, 5, 4), weight)[:, first:], rtol=1e-13)
    np.testing.assert_allclose(d_weight, np.einsum("bto,bti->oi", d_heads.reshape(2, 5, 4), x), rtol=1e-13, atol=1e-14)


def test_span_mask_by_hand():
    """S = 6, R = 2, ρ = 1/4: z = 1.5, so m = clamp((3.5 - x) / 2): 1 at x ≤ 1.5, then 0.75, 0.25, 0."""
    mask, _ = span.mask_forward(np.array([0.25]), 6, 2)
    np.testing.assert_allclose(mask, [[1, 1, 0.75, 0.25, 0, 0]], rtol=1e-15)


def test_span_mask_gradient_takes_the_closed_interval():
    """S = 8, R = 2, ρ = 1/4: z = 2 lies on both kinks, x = 2 and x = 4; each counts with slope S/R = 4."""
    mask, saved = span.mask_forward(np.array([0.25]), 8, 2)
    np.testing.assert_array_equal(mask, [[1, 1, 1, 0.5, 0, 0, 0, 0]])
    for x, slope in enumerate([0, 0, 4, 4, 4, 0, 0, 0]):
        d_mask = np.zeros((1, 8))
        d_mask[0, x] = 1
        np.testing.assert_array_equal(span.mask_backward(d_mask, saved), [slope])


@pytest.mark.parametrize("seed", SEEDS)
def test_span_mask_gradient(check_pair, seed):
    rho = np.random.default_rng(seed).uniform(0.02, 0.98, 4)
    check_pair(
        lambda rho: span.mask_forward(rho, 9, 4)[0],
        lambda dy, rho: [span.mask_backward(dy, span.mask_forward(rho, 9, 4)[1])],
        [rho], seed,
    )


@pytest.mark.parametrize(("rho", "size", "reach", "untrimmed"), [
    ([0.25], 6, [4], 6),  # z = 1.5, R = 2: x = 3 is the last on the ramp
    ([0.25], 8, [5], 8),  # z = 2: x = 4 is on the kink, with weight 0 and a slope
    ([0.0, 1.0], 8, [3, 8], 8),  # never more than S
    ([0.0], 66, [3], 66), ([0.0], 67, [3], 3), ([0.0], 68, [3], 4), ([0.0], 131, [3], 3), ([0.0], 130, [3], 66),
    ([0.125, 0.5], 128, [19, 67], 128), ([0.125, 0.484375], 128, [19, 65], 128), ([0.125, 0.4765625], 128, [19, 64], 64),
    ([1.0, 0.0], 1024, [1024, 3], 1024),
])
def test_what_spans_reach_by_hand(rho, size, reach, untrimmed):
    """R = 2: ⌊S ρ⌋ + 3, at most S; and S less whole multiples of 64 beyond the farthest of these."""
    np.testing.assert_array_equal(span.reach(np.array(rho), size, 2), reach)
    assert span.untrimmed(np.array(rho), size, 2) == untrimmed


@given(st.integers(1, 300), st.integers(1, 40), st.floats(0, 1, width=32), st.sampled_from(["float32", "float64"]))
def test_beyond_the_reach_there_is_neither_weight_nor_slope(size, ramp, rho, dtype):
    rho = np.array([rho], dtype)
    mask, saved = span.mask_forward(rho, size, ramp)
    needed = (mask > 0) | saved.on_ramp
    reach = int(span.reach(rho, size, ramp)[0])
    assert needed[0, :reach].all()
    assert not needed[0, reach:].any()


def test_span_mask_passes_over_an_infinite_gradient_off_the_ramp():
    _, saved = span.mask_forward(np.array([0.0]), 6, 2)
    np.testing.assert_array_equal(span.mask_backward(np.array([[1.0, 1, 1, np.inf, 0, 0]]), saved), [9.0])


@given(st.integers(1, 20), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
def test_span_mask_falls_with_distance_and_grows_with_the_span(size, ramp, low, high):
    narrow, wide = span.mask_forward(np.array(sorted((low, high))), size, ramp)[0]
    assert (np.diff(narrow) <= 0).all()
    assert (narrow <= wide).all()
    assert narrow[0] == 1


def test_span_penalty_by_hand():
    """λ S mean(ρ) = 0.5 · 8 · 0.25 = 1; each of two heads has the slope 0.5 · 8 / 2 = 2."""
    penalty, saved = span.penalty_forward(np.array([0.1, 0.4]), 8, 0.5)
    assert penalty == pytest.approx(1.0, rel=1e-15)
    np.testing.assert_array_equal(span.penalty_backward(3.0, saved), [6.0, 6.0])


@pytest.mark.parametrize("seed", SEEDS)
def test_softmax_loss_gradient(check_pair, seed):
    targets = np.array([[0, 4, 2], [1, 1, 3]])
    check_pair(
        lambda x: softmax_loss.forward(x, targets)[0],
        lambda dy, x: [softmax_loss.backward(dy, softmax_loss.forward(x, targets)[1])],
        [normal(seed, 2, 3, 5)], seed,
    )


def test_softmax_loss_by_hand():
    """Odds 1 : 3 : 4 give the losses log 8, log 8/3, log 2."""
    logits = np.log(np.array([[1.0, 3.0, 4.0]] * 3))
    loss, _ = softmax_loss.forward(logits, np.array([0, 1, 2]))
    np.testing.assert_allclose(loss, [math.log(8), math.log(8 / 3), math.log(2)], rtol=1e-15)


def test_softmax_loss_survives_logits_that_overflow_a_naive_softmax():
    loss, saved = softmax_loss.forward(np.array([[1000.0, 0.0], [0.0, -1000.0]], np.float32), np.array([1, 0]))
    np.testing.assert_array_equal(loss, [1000, 0])
    assert np.isfinite(softmax_loss.backward(np.ones(2, np.float32), saved)).all()
