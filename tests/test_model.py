"""What the model promises: segments, causality, independence of the batch's rows, its past, and clear refusals."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import model, parameters
from refimpl.arrays import random_stream
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.inputs import draw_masks

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=3, span=6, memory=3, span_ramp=4, span_initial=0.3)
FORMS = [
    {}, {"attend_self": True}, {"norm": "pre"}, {"normalizer_epsilon": 1e-8}, {"adaptive_span": False},
    {"memory": 0, "feed_forward": 9, "attend_self": True}, {"cutoffs": (3, 6), "divisor": 2, "tie_tables": True},
]


def draw(config, seed, batch, length):
    p = parameters.initialize(config, seed)
    tokens = np.random.default_rng(seed).integers(0, config.vocabulary, (batch, length + 1))
    return p, tokens[:, :-1], tokens[:, 1:]


def in_segments(p, config, tokens, targets, cuts):
    """Token losses (B, T) of the text fed in pieces, the past carried over."""
    past, losses = model.initial_past(config, len(tokens), p.vector), []
    for low, high in zip([0, *cuts], [*cuts, tokens.shape[1]], strict=True):
        out = model.forward(p, config, tokens[:, low:high], targets[:, low:high], past)
        past = out.past
        losses.append(out.token_loss)
    return np.concatenate(losses, axis=1)


@pytest.mark.parametrize("form", FORMS, ids=str)
@given(seed=st.integers(0, 2**20), cuts=st.sets(st.integers(1, 19)))
def test_segments_equal_one_long_text(form, seed, cuts):
    """Any cutting: the past holds S positions, all that any query may see."""
    config = replace(CONFIG, **form)
    p, tokens, targets = draw(config, seed, 2, 20)
    whole = in_segments(p, config, tokens, targets, [])
    np.testing.assert_allclose(in_segments(p, config, tokens, targets, sorted(cuts)), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_changing_a_token_leaves_everything_before_it_bit_for_bit(form, dtype):
    """To the next word of its cluster: a matrix product of another height may round its other rows otherwise."""
    config = replace(CONFIG, **form)
    ends = [0, *config.cutoffs, config.vocabulary]
    following = np.concatenate([np.roll(np.arange(low, high), -1) for low, high in pairwise(ends)])
    p, tokens, _ = draw(config, 0, 2, 12)
    p = p.astype(dtype)
    past = model.initial_past(config, 2, p.vector)
    before = model.log_probabilities(p, config, tokens, past)
    for t in range(12):
        moved = tokens.copy()
        moved[:, t] = following[moved[:, t]]
        after = model.log_probabilities(p, config, moved, past)
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        assert (after[:, t] != before[:, t]).any()


def test_rows_of_the_batch_are_independent():
    p, tokens, targets = draw(CONFIG, 1, 3, 7)
    past = model.initial_past(CONFIG, 3, p.vector)
    together = model.forward(p, CONFIG, tokens, targets, past).token_loss
    for row in range(3):
        alone = model.forward(p, CONFIG, tokens[[row]], targets[[row]], past[:, [row]]).token_loss
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-13)


def test_log_probabilities_are_the_losses_and_sum_to_one():
    for form in FORMS:
        config = replace(CONFIG, **form)
        p, tokens, targets = draw(config, 2, 2, 5)
        past = model.initial_past(config, 2, p.vector)
        log_p = model.log_probabilities(p, config, tokens, past)
        assert log_p.shape == (2, 5, 11)
        np.testing.assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-13)
        out = model.forward(p, config, tokens, targets, past)
        chosen = np.take_along_axis(log_p, targets[..., None], -1)[..., 0]
        np.testing.assert_allclose(out.token_loss, -chosen, rtol=1e-13)
        assert out.loss == pytest.approx(out.token_loss.mean(), rel=1e-15)


def test_the_past_is_the_layers_input_at_most_span_positions():
    p, tokens, targets = draw(CONFIG, 3, 2, 4)
    first = model.forward(p, CONFIG, tokens, targets, model.initial_past(CONFIG, 2, p.vector))
    assert first.past.shape == (3, 2, 4, 8)
    np.testing.assert_array_equal(first.past[0], p["input.table"][tokens])
    np.testing.assert_array_equal(first.past[2], first.saved.hidden[2])
    second = model.forward(p, CONFIG, tokens, targets, first.past)
    assert second.past.shape == (3, 2, 6, 8)
    np.testing.assert_array_equal(second.past[:, :, :2], first.past[:, :, 2:])


def test_a_block_longer_than_the_span_leaves_its_own_end_as_past():
    p, tokens, targets = draw(CONFIG, 3, 2, 9)
    out = model.forward(p, CONFIG, tokens, targets, model.initial_past(CONFIG, 2, p.vector))
    np.testing.assert_array_equal(out.past[0], p["input.table"][tokens[:, 3:]])


def test_zero_past_counts_as_positions_and_empty_past_does_not():
    p, tokens, targets = draw(CONFIG, 4, 2, 4)
    empty, zeros = (model.initial_past(CONFIG, 2, p.vector, zeros=zeros) for zeros in (False, True))
    assert empty.shape == (3, 2, 0, 8)
    assert zeros.shape == (3, 2, 6, 8)
    assert model.initial_past(replace(CONFIG, zero_past=True), 2, p.vector).shape == zeros.shape
    losses = [model.forward(p, CONFIG, tokens, targets, past).loss for past in (empty, zeros)]
    assert losses[0] != losses[1]


def test_a_past_longer_than_the_span_is_cut():
    p, tokens, targets = draw(CONFIG, 5, 2, 4)
    past = np.random.default_rng(0).standard_normal((3, 2, 9, 8))
    long, cut = (model.forward(p, CONFIG, tokens, targets, given) for given in (past, past[:, :, 3:]))
    np.testing.assert_array_equal(long.token_loss, cut.token_loss)
    np.testing.assert_array_equal(long.past, cut.past)


def test_the_span_penalty_by_hand():
    """λ S mean(ρ) = 0.01 · 6 · 0.3 in each of three layers."""
    config = replace(CONFIG, span_penalty=0.01)
    p, tokens, targets = draw(config, 6, 1, 3)
    out = model.forward(p, config, tokens, targets, model.initial_past(config, 1, p.vector))
    assert out.span_penalty == pytest.approx(0.054, rel=1e-14)


def test_arguments_stay_as_they_are_and_results_repeat():
    config = replace(CONFIG, dropout=0.5)
    p, tokens, targets = draw(config, 7, 2, 5)
    past = np.random.default_rng(0).standard_normal((3, 2, 4, 8))
    masks = draw_masks(config, 2, 5, 0, 1, p.vector)
    arguments = [p.vector, tokens, targets, past, *masks.values()]
    copies = [array.copy() for array in arguments]
    first = model.forward(p, config, tokens, targets, past, masks)
    gradients = [model.backward(first.saved).vector, model.backward(first.saved).vector]
    second = model.forward(p, config, tokens, targets, past, masks)
    np.testing.assert_array_equal(*gradients)
    np.testing.assert_array_equal(first.token_loss, second.token_loss)
    for array, copy in zip(arguments, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_dropout_masks_depend_on_seed_update_and_row_alone():
    config = replace(CONFIG, dropout=0.5, embedding_dropout=0.25, memory=0, feed_forward=5)
    like = np.empty(0)
    masks = draw_masks(config, 4, 3, seed=1, update=2, like=like)
    of_layers = {f"layers.{i}.{kind}" for i in range(3) for kind in ("attention", "feed_forward")}
    assert set(masks) == {"embedding", "hidden"} | of_layers
    part = draw_masks(config, 2, 3, seed=1, update=2, like=like, first_row=2)
    other = draw_masks(config, 4, 3, seed=1, update=3, like=like)
    for name, keep in masks.items():
        np.testing.assert_array_equal(keep[2:], part[name])
        assert (keep != other[name]).any()
    big = draw_masks(replace(config, layers=1), 64, 50, 0, 1, like)
    assert big["embedding"].mean() == pytest.approx(0.75, abs=0.01)
    assert big["layers.0.attention"].mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("form", "shapes"), [
    ({}, {"attention": (2, 4, 6), "memory": (2, 4, 3)}),
    ({"variant": "head-split", "width": 9, "heads": 3}, {"attention": (2, 4, 6), "memory": (1, 4, 3)}),
    ({"variant": "single-head"}, {"attention": (2, 4, 6), "memory": (1, 4, 3)}),
    ({"memory": 0, "feed_forward": 5}, {"attention": (2, 4, 6), "feed_forward": (4, 5)}),
], ids=str)
def test_every_row_of_every_mask_has_a_stream_of_its_own(form, shapes):
    config = replace(CONFIG, dropout=0.5, embedding_dropout=0.25, **form)
    masks = draw_masks(config, 2, 4, 7, 5, np.empty(0), 3)
    expected = dict.fromkeys(("embedding", "hidden"), ((4, config.width), 0.25))
    expected |= {f"layers.{layer}.{kind}": (shape, 0.5) for layer in range(3) for kind, shape in shapes.items()}
    assert list(masks) == list(expected)
    for name, (shape, rate) in expected.items():
        rows = [random_stream(7, f"dropout {name}", 5, row).random(shape, "float32") >= rate for row in (3, 4)]
        np.testing.assert_array_equal(masks[name], rows)
        assert masks[name].dtype == bool


def test_a_draw_that_equals_the_rate_keeps():
    """The rate is the probability of [0, rate)."""
    draws = random_stream(7, "dropout hidden", 5, 0).random((4, CONFIG.width), "float32")
    masks = draw_masks(replace(CONFIG, embedding_dropout=float(draws[1, 2])), 1, 4, 7, 5, np.empty(0))
    assert masks["hidden"][0, 1, 2]


@pytest.mark.parametrize(("tokens", "message"), [
    (np.array([[0, 11]]), r"tokens: expected ids from 0 to 10 \(vocabulary of 11\), got 11 at row 0, position 1"),
    (np.array([[3, 0], [-1, 2]]), "got -1 at row 1, position 0"),
    (np.array([[0.0, 1.0]]), r"tokens: expected integers of shape \(B, T\), got float64 \(1, 2\)"),
    (np.array([0, 1]), r"got int64 \(2,\)"),
    (np.empty((0, 2), int), r"got int64 \(0, 2\)"),
    ([[0, 1]], "got list"),
])
def test_tokens_that_cannot_be_are_named(tokens, message):
    p = parameters.initialize(CONFIG)
    with pytest.raises(InputError, match=message):
        model.log_probabilities(p, CONFIG, tokens, model.initial_past(CONFIG, 1, p.vector))


@pytest.mark.parametrize("cutoffs", [(), (100,), (100, 256)])
def test_any_integer_type_holds_tokens(cutoffs):
    config = replace(CONFIG, vocabulary=256, cutoffs=cutoffs, divisor=2)
    p, tokens, targets = draw(config, 0, 2, 40)
    past = model.initial_past(config, 2, p.vector)
    losses = []
    for dtype in ("uint8", "int16", "int64"):
        out = model.forward(p, config, tokens.astype(dtype), targets.astype(dtype), past)
        losses.append(out.loss)
        assert model.backward(out.saved).vector.any()
    assert losses[0] == losses[1] == losses[2]


def test_tokens_targets_and_past_that_do_not_fit_are_named():
    p, tokens, targets = draw(CONFIG, 0, 2, 4)
    past = model.initial_past(CONFIG, 2, p.vector)
    with pytest.raises(InputError, match=r"^tokens: expected ids from 0 to 10"):
        model.forward(p, CONFIG, tokens - 11, targets, past)
    with pytest.raises(InputError, match=r"targets: expected the tokens' shape \(2, 4\), got \(2, 3\)"):
        model.forward(p, CONFIG, tokens, targets[:, :3], past)
    with pytest.raises(InputError, match="targets: expected ids from 0 to 10"):
        model.forward(p, CONFIG, tokens, targets + 11, past)
    with pytest.raises(InputError, match=r"past: expected \(L, B, P, D\) = \(3, 2, P, 8\), got \(3, 1, 0, 8\)"):
        model.forward(p, CONFIG, tokens, targets, past[:, :1])
    baseline = replace(CONFIG, memory=0, feed_forward=5)
    with pytest.raises(InputError, match="the first query sees nothing"):
        model.forward(parameters.initialize(baseline), baseline, tokens, targets, past)


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble", "complex128"])
def test_every_dtype_is_kept(dtype):
    for form in FORMS:
        config = replace(CONFIG, **form)
        p = parameters.initialize(config, 0, dtype)
        _, tokens, targets = draw(config, 0, 2, 4)
        out = model.forward(p, config, tokens, targets, model.initial_past(config, 2, p.vector))
        assert {out.loss.dtype, out.token_loss.dtype, out.past.dtype} == {np.dtype(dtype)}
        if dtype != "complex128":
            assert model.backward(out.saved).vector.dtype == dtype
