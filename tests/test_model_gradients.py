"""The whole model's gradient of loss + span penalty against the complex step, tensor by tensor, in every form."""

from dataclasses import replace

import numpy as np
import pytest

from refimpl import model, parameters
from refimpl.config import ModelConfig
from refimpl.gradcheck.complex_step import gradient, norm_wise_error
from refimpl.inputs import draw_masks
from refimpl.layers import attention, tiled_attention

BASE = ModelConfig(vocabulary=7, width=4, heads=2, layers=2, span=5, memory=3, span_ramp=2, span_penalty=0.01)
BASELINE = {"memory": 0, "feed_forward": 5}
CLUSTERS = {"cutoffs": (2, 4), "divisor": 2}
TIED = {**CLUSTERS, "tie_tables": True, "tie_projections": True}
XL = {"positions": "transformer-xl"}
SELF = {"attend_self": True}
FORMS = {
    "all-attention": {},
    "baseline": BASELINE,
    "fixed span": {"adaptive_span": False},
    "fixed span, baseline": {**BASELINE, "adaptive_span": False},
    "epsilon": {"normalizer_epsilon": 1e-8},
    "epsilon, baseline": {**BASELINE, "normalizer_epsilon": 1e-8},
    "attend self": {"attend_self": True},
    "attend self, baseline": {**BASELINE, "attend_self": True, "normalizer_epsilon": 1e-8},
    "pre-norm": {"norm": "pre"},
    "pre-norm, baseline": {**BASELINE, "norm": "pre", "attend_self": True},
    "adaptive": CLUSTERS,
    "adaptive, reversed": {**CLUSTERS, "cluster_order": "reversed"},
    "adaptive, tables tied": {**CLUSTERS, "tie_tables": True},
    "adaptive, projections tied": {**CLUSTERS, "tie_projections": True},
    "adaptive, tied, baseline": {**TIED, **BASELINE, "cluster_order": "reversed"},
    "adaptive, empty cluster": {"cutoffs": (2, 2, 4), "divisor": 1, "tie_tables": True},
    "plain, tied": {"tie_tables": True},
    "dropout": {"dropout": 0.3, "embedding_dropout": 0.2},
    "dropout, baseline, pre-norm": {**BASELINE, "dropout": 0.3, "embedding_dropout": 0.2, "norm": "pre"},
    "dropout, epsilon, adaptive": {**TIED, "dropout": 0.3, "normalizer_epsilon": 1e-8},
    "positions of each layer": {"share_positions": False},
    "no positions": {"positions": "none"},
    "published": {"normalizer_epsilon": 1e-8, "zero_past": True},
    "attention-split": {"variant": "attention-split"},
    "attention-split, epsilon, dropout": {"variant": "attention-split", "normalizer_epsilon": 1e-8, "dropout": 0.3},
    "single-head": {"variant": "single-head", "norm": "pre"},
    "single-head, dropout, adaptive": {"variant": "single-head", "dropout": 0.3, **TIED},
    "head-split": {"variant": "head-split"},
    "head-split, three heads, dropout": {"variant": "head-split", "width": 6, "heads": 3, "dropout": 0.3, **SELF},
    "ff-attention": {**BASELINE, "variant": "ff-attention"},
    "ff-attention, dropout, pre-norm": {**BASELINE, "variant": "ff-attention", "dropout": 0.3, "norm": "pre"},
    "transformer-xl": XL,
    "transformer-xl of each layer, attend self": {**XL, "share_positions": False, **SELF},
    "transformer-xl, baseline": {**BASELINE, **XL, "normalizer_epsilon": 1e-8},
    "transformer-xl, attention-split": {**XL, "variant": "attention-split", "dropout": 0.3},
    "transformer-xl, single-head, odd width": {**XL, "variant": "single-head", "width": 5, "heads": 1},
    "transformer-xl, head-split": {**XL, "variant": "head-split", "width": 6, "heads": 3},
    "sinusoid": {"positions": "sinusoid", "width": 5, "heads": 1},
    "sinusoid, adaptive, ff-attention": {**BASELINE, "positions": "sinusoid", "variant": "ff-attention", **TIED},
    "learned": {"positions": "learned", "embedding_dropout": 0.2},
    "learned, shorter than a block, adaptive": {"positions": "learned", "span": 3, **CLUSTERS},
}


def draw(config, seed=0, batch=2, block=4):
    """Parameters away from their first values, tokens and targets of two segments."""
    rng = np.random.default_rng(seed)
    p = parameters.initialize(config, seed)
    p.vector += 0.1 * rng.standard_normal(p.vector.size)
    for layer in range(config.layers if config.adaptive_span else 0):
        p[f"layers.{layer}.attention.span"] = rng.uniform(0.1, 0.5, config.context_heads)
    return p, *rng.integers(0, config.vocabulary, (2, 2, batch, block))


@pytest.mark.parametrize("segment", ["first", "second"])
@pytest.mark.parametrize("form", FORMS)
def test_gradient_equals_the_complex_step(form, segment):
    config = replace(BASE, **FORMS[form])
    p, (before, tokens), (_, targets) = draw(config)
    zeros = config.zero_past or not (config.memory or config.attend_self)
    past = model.initial_past(config, len(tokens), p.vector, zeros=zeros)
    if segment == "second":
        past = model.forward(p, config, before, tokens, past).past
    masks = draw_masks(config, *tokens.shape, seed=3, update=1, like=p.vector)

    def objective(vector):
        out = model.forward(p.with_vector(vector), config, tokens, targets, past.astype(vector.dtype), masks)
        return out.loss + out.span_penalty

    expected = p.with_vector(gradient(objective, p.vector))
    for core in (attention, tiled_attention):
        out = model.forward(p, config, tokens, targets, past, masks, core=core)
        g = model.backward(out.saved)
        errors = {name: norm_wise_error(g[name], expected[name]) for name in p}
        assert max(errors.values()) <= 1e-12, (core.__name__, errors)
        assert type(g) is type(p)
        assert list(g) == list(p)
        in_one, of_one = model.loss_and_gradients(p, config, tokens, targets, past, masks, core=core)
        np.testing.assert_array_equal(of_one.vector, g.vector)
        for found, expected_value in zip(in_one[:4], out[:4], strict=True):
            np.testing.assert_array_equal(found, expected_value)


@pytest.mark.parametrize("rho", [0.0, 0.2, 1.0])
def test_spans_exactly_on_kinks_have_the_closed_intervals_slope(rho):
    """S = 5, R = 2: at ρ = 0, 1/5 and 1 the mask has both kinks on whole positions. The complex step, whose comparisons look
    at the real part, follows the branch that forward takes, which is the closed interval."""
    p, (_, tokens), (_, targets) = draw(BASE)
    for layer in range(BASE.layers):
        p[f"layers.{layer}.attention.span"] = rho
    past = model.initial_past(BASE, 2, p.vector, zeros=True)

    def objective(vector):
        out = model.forward(p.with_vector(vector), BASE, tokens, targets, past.astype(vector.dtype))
        return out.loss + out.span_penalty

    expected = p.with_vector(gradient(objective, p.vector))
    for core in (attention, tiled_attention):
        g = model.backward(model.forward(p, BASE, tokens, targets, past, core=core).saved)
        assert norm_wise_error(g.vector, expected.vector) <= 1e-12, core.__name__


def test_a_given_cotangent_weighs_the_tokens():
    p, (_, tokens), (_, targets) = draw(BASE)
    past = model.initial_past(BASE, 2, p.vector)
    weights = np.random.default_rng(5).standard_normal(tokens.shape)
    saved = model.forward(p, BASE, tokens, targets, past).saved
    g = model.backward(saved, weights)

    def objective(vector):
        out = model.forward(p.with_vector(vector), BASE, tokens, targets, past.astype(vector.dtype))
        return (out.token_loss * weights).sum() + out.span_penalty

    assert norm_wise_error(g.vector, gradient(objective, p.vector)) <= 1e-12
    mean = model.backward(saved, np.full(tokens.shape, 1 / tokens.size))
    np.testing.assert_array_equal(mean.vector, model.backward(saved).vector)
