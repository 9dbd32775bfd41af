"""The model and its updates against a second one, written apart from it in Python numbers and loops (scalar_model/)."""

import importlib.util
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from refimpl import continuation, inputs, model, optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig


def scalar_package():
    """The package `scalar_model` beside this file, from its path: test files can't import one another by name."""
    place = Path(__file__).with_name("scalar_model") / "__init__.py"
    spec = importlib.util.spec_from_file_location("scalar_model", place)
    package = sys.modules["scalar_model"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


scalar = scalar_package()

BATCH, BLOCK = 2, 4
SIZES = {"vocabulary": 7, "width": 8, "heads": 2, "layers": 2, "span": 5, "span_ramp": 2, "span_penalty": 0.3}
MEMORY = {"memory": 3}
FEED_FORWARD = {"variant": "transformer", "feed_forward": 6}
# Relative to the largest value compared. 450 roundoffs of 2.2e-16; rounding alone was seen to reach 30 of them.
TOLERANCE = 1e-13


def configuration(**changes):
    return ModelConfig(**{**SIZES, **changes})


def random_parameters(config, rng, spans=None):
    p = parameters.initialize(config, seed=0, dtype="float64")
    p.vector[...] = 0.6 * rng.standard_normal(p.vector.shape)
    for name in p:
        if name.endswith(".gain"):
            p[name] = 1 + p[name]
        if name.endswith(".span"):
            p[name] = rng.random(config.context_heads) if spans is None else np.array(spans)
    return p


def starting_past(config, p, rng, start):
    """Of `start` random positions; or empty, or of S zero vectors; or as the configuration says."""
    if start == "as configured":
        return model.initial_past(config, batch=BATCH, like=p.vector)
    if start in ("empty", "zeros"):
        return model.initial_past(config, batch=BATCH, like=p.vector, zeros=start == "zeros")
    return rng.standard_normal((config.layers, BATCH, start, config.width))


def as_lists(p):
    return {name: p[name].tolist() for name in p}


def assert_close(name, value, expected, tolerance=TOLERANCE):
    value, expected = np.asarray(value), np.asarray(expected)
    assert value.shape == expected.shape, name
    if expected.size:
        error = np.abs(value - expected).max()
        assert error <= tolerance * np.abs(expected).max(), f"{name}: error {error}"


def compare(config, rng, start="empty", spans=None, block=BLOCK, segments=3, first_position=0, dropping=False):
    """Segment after segment; each of the two models carries its own past."""
    p = random_parameters(config, rng, spans)
    weights, masks = as_lists(p), {}
    past = starting_past(config, p, rng, start)
    scalar_past = past.tolist()
    for segment in range(segments):
        tokens, targets = rng.integers(config.vocabulary, size=(2, BATCH, block))
        if dropping:
            masks = inputs.draw_masks(config, BATCH, block, seed=3, update=segment, like=p.vector)
        out = model.forward(p, config, tokens, targets, past, masks, first_position)
        expected = scalar.forward(weights, config, tokens.tolist(), targets.tolist(), scalar_past, as_lists(masks),
                                  first_position)
        assert_close("loss", out.loss, expected.loss)
        assert_close("token_loss", out.token_loss, expected.token_loss)
        assert_close("span_penalty", out.span_penalty, expected.span_penalty)
        assert_close("past", out.past, expected.past)
        if not dropping:
            scores = model.log_probabilities(p, config, tokens, past, first_position)
            assert_close("log_probabilities", scores, expected.log_probabilities)
            assert_close("log_probabilities, word by word", np.exp(scores), np.exp(expected.log_probabilities))
        past, scalar_past, first_position = out.past, expected.past, first_position + block


POSITIONS = ({}, {"share_positions": False}, {"positions": "none"})


@pytest.mark.parametrize("sublayers", [MEMORY, FEED_FORWARD, {"variant": "transformer"}], ids=["memory", "ff", "neither"])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.3])
@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize("positions", POSITIONS, ids=["shared", "per-layer", "none"])
@pytest.mark.parametrize("adaptive_span", [True, False], ids=["adaptive", "fixed"])
def test_layers(sublayers, norm, epsilon, attend_self, positions, adaptive_span):
    config = configuration(**sublayers, **positions, norm=norm, normalizer_epsilon=epsilon, attend_self=attend_self,
                           adaptive_span=adaptive_span)
    compare(config, np.random.default_rng(1), "empty" if config.memory or attend_self else "zeros", segments=2)


@pytest.mark.parametrize("start", ["empty", "zeros", 1, 3, 4, 5, 6, 8, 12])
@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("attend_self", [False, True])
def test_pasts_of_any_length(start, norm, attend_self):
    compare(configuration(**MEMORY, norm=norm, attend_self=attend_self), np.random.default_rng(2), start)


@pytest.mark.parametrize(("span", "block"), [(1, 1), (1, 4), (2, 7), (5, 1), (5, 13), (9, 2)])
@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize("start", ["empty", "zeros"])
def test_spans_and_blocks_of_any_length(span, block, attend_self, start):
    compare(configuration(**MEMORY, span=span, attend_self=attend_self), np.random.default_rng(3), start, block=block)


SHAPES = [{"heads": 1}, {"heads": 8}, {"layers": 1}, {"layers": 4}, {"width": 4}, {"memory": 1}, {"memory": 9},
          {"vocabulary": 1}, {"heads": 4, "width": 12}]


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_other_sizes(changes):
    compare(configuration(**{**MEMORY, **changes}), np.random.default_rng(4))


@pytest.mark.parametrize("spans", [(0, 0), (0, 1), (1, 1), (0.4, 0.6), (0.2, 0.8), (0.1, 0.9), (0.5, 0)], ids=str)
@pytest.mark.parametrize("ramp", [1, 2, 3, 32])
@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.3])
def test_spans_on_and_off_the_kinks(spans, ramp, attend_self, epsilon):
    config = configuration(**MEMORY, span_ramp=ramp, attend_self=attend_self, normalizer_epsilon=epsilon)
    compare(config, np.random.default_rng(5), "zeros", spans, segments=2)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["post", "pre"])
def test_plain_input_and_output(tied, norm):
    compare(configuration(**MEMORY, tie_tables=tied, norm=norm), np.random.default_rng(6))


CUTOFFS = [(3,), (3, 5), (1, 2, 6), (3, 3, 5), (3, 5, 5), (2, 7), (7,), (7, 7), (4, 4, 4)]


@pytest.mark.parametrize("cutoffs", CUTOFFS, ids=str)
@pytest.mark.parametrize("order", ["ascending", "reversed"])
@pytest.mark.parametrize(("tie_tables", "tie_projections"), list(product([False, True], repeat=2)))
def test_adaptive_input_and_softmax(cutoffs, order, tie_tables, tie_projections):
    config = configuration(**MEMORY, cutoffs=cutoffs, divisor=2, cluster_order=order, tie_tables=tie_tables,
                           tie_projections=tie_projections)
    compare(config, np.random.default_rng(7), segments=2)


def test_adaptive_softmax_over_the_baseline_before_its_norm():
    compare(configuration(**FEED_FORWARD, cutoffs=(2, 5), divisor=1, norm="pre", tie_tables=True, attend_self=True),
            np.random.default_rng(8))


THREE_HEADS = {**MEMORY, "heads": 3, "width": 12}
VARIANTS = {
    "all-attention": THREE_HEADS,
    "attention-split": {**THREE_HEADS, "variant": "attention-split"},
    "head-split": {**THREE_HEADS, "variant": "head-split"},
    "single-head": {**THREE_HEADS, "variant": "single-head"},
    "ff-attention": {"variant": "ff-attention", "feed_forward": 6, "heads": 3, "width": 12},
    "transformer": {**FEED_FORWARD, "heads": 3, "width": 12},
}
KINDS = {
    "relative": {}, "relative, per layer": {"share_positions": False},
    "transformer-xl": {"positions": "transformer-xl"},
    "transformer-xl, per layer": {"positions": "transformer-xl", "share_positions": False},
    "sinusoid": {"positions": "sinusoid"}, "learned": {"positions": "learned"}, "none": {"positions": "none"},
}
SAMPLED = [{"norm": "post", "attend_self": False, "normalizer_epsilon": 0.0, "adaptive_span": True},
           {"norm": "pre", "attend_self": True, "normalizer_epsilon": 0.3, "adaptive_span": True},
           {"norm": "pre", "attend_self": False, "normalizer_epsilon": 1e-8, "adaptive_span": False},
           {"norm": "post", "attend_self": True, "normalizer_epsilon": 0.0, "adaptive_span": False}]


@pytest.mark.parametrize("conventions", SAMPLED, ids=["post", "pre, self, published", "pre, fixed", "post, self, fixed"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_and_positions(variant, kind, conventions):
    compare(configuration(**variant, **kind, **conventions), np.random.default_rng(11), 2, segments=2, first_position=3)


DROPOUT = {"dropout": 0.3, "embedding_dropout": 0.4}


@pytest.mark.parametrize("conventions", [SAMPLED[0], SAMPLED[1]], ids=["post", "pre, self, published"])
@pytest.mark.parametrize("positions", ["relative", "transformer-xl", "sinusoid", "learned"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_dropout_by_its_keep_masks(variant, positions, conventions):
    config = configuration(**variant, **conventions, **DROPOUT, positions=positions)
    compare(config, np.random.default_rng(12), 2, segments=2, dropping=True)


@pytest.mark.parametrize("changes", [{"dropout": 0.3}, {"embedding_dropout": 0.4}], ids=str)
@pytest.mark.parametrize("variant", ["all-attention", "transformer"])
def test_dropout_of_one_kind(variant, changes):
    compare(configuration(**VARIANTS[variant], **changes), np.random.default_rng(13), "zeros", dropping=True)


@pytest.mark.parametrize("start", ["empty", "zeros", 1, 4, 5, 6, 12])
@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize("positions", ["transformer-xl", "learned"])
@pytest.mark.parametrize("variant", ["attention-split", "head-split", "single-head"])
def test_pasts_of_any_length_beside_memory_in_a_softmax_of_its_own(variant, positions, attend_self, start):
    """Without a past the first query's context softmax is empty: memory alone answers it."""
    config = configuration(**VARIANTS[variant], positions=positions, attend_self=attend_self)
    compare(config, np.random.default_rng(14), start, segments=2)


@pytest.mark.parametrize("variant", ["attention-split", "head-split", "single-head"])
@pytest.mark.parametrize("spans", [(0, 1, 0.4), (0.2, 0.8, 0.6)], ids=str)
def test_spans_on_and_off_the_kinks_of_context_heads(variant, spans):
    config = configuration(**VARIANTS[variant])
    compare(config, np.random.default_rng(15), 7, spans[: config.context_heads])


@pytest.mark.parametrize("variant", ["attention-split", "head-split", "single-head"])
@pytest.mark.parametrize("heads", [2, 3, 4])
def test_any_number_of_heads(variant, heads):
    compare(configuration(**{**VARIANTS[variant], "heads": heads}), np.random.default_rng(16), 2)


@pytest.mark.parametrize("first_position", [0, 3, 5, 1234])
@pytest.mark.parametrize("changes", [{}, {"cutoffs": (3, 5), "divisor": 2}, {"tie_tables": True}, {"width": 9, "heads": 3}],
                         ids=str)
@pytest.mark.parametrize("positions", ["sinusoid", "learned", "transformer-xl"])
def test_positions_anywhere_at_any_width(positions, changes, first_position):
    config = configuration(**MEMORY, positions=positions, **changes)
    compare(config, np.random.default_rng(17), first_position=first_position)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_a_text_that_starts_with_zero_vectors(variant):
    config = configuration(**variant, zero_past=True)
    past = model.initial_past(config, batch=BATCH, like=np.zeros(0))
    assert past.tolist() == scalar.initial_past(config, BATCH)
    compare(config, np.random.default_rng(18), "as configured")
    assert scalar.initial_past(replace(config, zero_past=False), BATCH) == config.layers * [BATCH * [[]]]


@pytest.mark.parametrize("conventions", SAMPLED, ids=["post", "pre, self, published", "pre, fixed", "post, self, fixed"])
@pytest.mark.parametrize("positions", ["relative", "transformer-xl", "sinusoid", "learned", "none"])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_texts_that_go_on_token_by_token(variant, positions, conventions):
    """From prompts of 2 and 7 tokens to 9 and 14, spans of 5: the same words as of each whole text at once."""
    config = configuration(**variant, **conventions, positions=positions, zero_past="memory" not in variant)
    rng = np.random.default_rng(19)
    p, prompts, added = random_parameters(config, rng), (2, 7), 7
    texts = [rng.integers(config.vocabulary, size=prompt + added) for prompt in prompts]
    expected = [scalar.forward(as_lists(p), config, [text.tolist()], [text.tolist()], scalar.initial_past(config, 1), {}, 0)
                for text in texts]
    going_on = continuation.Continuation(p, config, [text[:prompt] for text, prompt in zip(texts, prompts, strict=True)])
    for read in range(added + 1):
        scores = [out.log_probabilities[0][prompt + read - 1] for out, prompt in zip(expected, prompts, strict=True)]
        assert_close(f"{read} added", going_on.log_p, scores)
        if read < added:
            going_on.add([int(text[prompt + read]) for text, prompt in zip(texts, prompts, strict=True)])


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_a_query_without_a_slot_is_an_error(epsilon):
    config = configuration(**FEED_FORWARD, normalizer_epsilon=epsilon)
    with pytest.raises(ValueError, match="sees nothing"):
        compare(config, np.random.default_rng(9))


UPDATES = {
    "sgd": {"optimizer": "sgd", "learning_rate": 0.5, "clip": 0.0},
    "sgd, momentum": {"optimizer": "sgd", "learning_rate": 0.5, "clip": 0.0, "momentum": 0.9},
    "sgd, momentum, all clipped": {"optimizer": "sgd", "learning_rate": 2.0, "clip": 0.7, "momentum": 0.9},
    "adagrad, each clipped": {"optimizer": "adagrad", "learning_rate": 0.2, "clip": 0.6, "clip_each": True},
    "adagrad": {"optimizer": "adagrad", "learning_rate": 0.2, "clip": 0.0},
    "adam": {"optimizer": "adam", "learning_rate": 0.05, "clip": 0.0},
    "adam, all clipped": {"optimizer": "adam", "learning_rate": 0.05, "clip": 0.7},
    "adam, none above the clip": {"optimizer": "adam", "learning_rate": 0.05, "clip": 70.0},
    "adam, each clipped": {"optimizer": "adam", "learning_rate": 0.05, "clip": 0.6, "clip_each": True},
    "adam, other betas": {"optimizer": "adam", "learning_rate": 0.05, "clip": 0.7, "adam_betas": (0.6, 0.8)},
}
SCHEDULES = {"constant": {}, "warm-up": {"warm_up": 3}, "last": {"last_updates": 2}, "long warm-up": {"warm_up": 40},
             "both": {"warm_up": 2, "last_updates": 2}}


def flat(p):
    return {name: p[name].ravel().tolist() for name in p}


@pytest.mark.parametrize("schedule", list(SCHEDULES.values()), ids=list(SCHEDULES))
@pytest.mark.parametrize("method", list(UPDATES.values()), ids=list(UPDATES))
def test_updates(method, schedule):
    """Gradients are refimpl's own, at refimpl's own parameters, so that the optimiser's arithmetic alone is compared."""
    rng = np.random.default_rng(10)
    config = configuration(**MEMORY)
    train_config = TrainConfig(batch=BATCH, block=BLOCK, updates=5, dtype="float64", **method, **schedule)
    p = random_parameters(config, rng, spans=(0.02, 0.97))
    expected, reference = flat(p), scalar.ScalarOptimizer(train_config, flat(p))
    state = optimizers.initialize(train_config, p)
    past, spans_at_bounds = model.initial_past(config, batch=BATCH, like=p.vector), 0
    for update in range(1, 6):
        tokens, targets = rng.integers(config.vocabulary, size=(2, BATCH, BLOCK))
        out = model.forward(p, config, tokens, targets, past)
        gradients = flat(model.backward(out.saved))
        if method["clip"] in (0.6, 0.7):
            scales = set(scalar.clip_scales(train_config, gradients).values())
            assert min(scales) < 1
            assert (1.0 in scales) == train_config.clip_each
        reference.update(expected, gradients)
        result = training.update(p, state, config, train_config, tokens, targets, past)
        assert_close("loss", result.loss, out.loss, 1e-12)
        assert_close("past", result.past, out.past, 1e-12)
        for name, values in flat(p).items():
            assert_close(f"update {update}, {name}", values, expected[name], 1e-12)
        spans_at_bounds += sum(rho in (0.0, 1.0) for name in p if name.endswith(".span") for rho in p[name].tolist())
        past = result.past
    assert spans_at_bounds > 0 or "warm_up" in schedule
