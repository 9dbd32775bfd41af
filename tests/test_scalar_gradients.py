"""Hand-written gradients against the complex step of the scalar model: a derivative of a forward that is not refimpl's."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from refimpl import inputs, model
from refimpl.gradcheck.complex_step import norm_wise_error


def sibling(name):
    """Another test file as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


values = sibling("test_scalar_model")
scalar = values.scalar

BATCH, BLOCK = 2, 3
TINY = {"vocabulary": 5, "heads": 2, "width": 4, "layers": 1, "span": 4, "span_ramp": 2, "span_penalty": 0.3}
THREE_HEADS = {"heads": 3, "width": 6}
# Both sides lose the rounding of a few hundred terms, about 1e-15 each; the step itself truncates nothing.
EXACT = 1e-12


def errors(config, seed, start=2, spans=None, dropping=False, mean=False):
    """Each parameter's norm-wise relative error of refimpl's gradient, after a past of `start` positions.

    Of the span penalty and the tokens' losses under a random cotangent, or of their mean.
    """
    rng = np.random.default_rng(seed)
    p = values.random_parameters(config, rng, spans)
    past = rng.standard_normal((config.layers, BATCH, start, config.width))
    tokens, targets = rng.integers(config.vocabulary, size=(2, BATCH, BLOCK))
    masks = inputs.draw_masks(config, BATCH, BLOCK, seed=5, update=0, like=p.vector) if dropping else {}
    d_token_loss = np.full((BATCH, BLOCK), 1 / (BATCH * BLOCK)) if mean else rng.standard_normal((BATCH, BLOCK))
    saved = model.forward(p, config, tokens, targets, past, masks, 3).saved
    found = model.backward(saved) if mean else model.backward(saved, d_token_loss)
    expected = scalar.gradients(values.as_lists(p), config, tokens.tolist(), targets.tolist(), past.tolist(),
                                values.as_lists(masks), 3, d_token_loss.tolist())
    assert set(found) == set(expected)
    return {name: norm_wise_error(found[name], np.array(expected[name])) for name in found}


def assert_exact(found):
    assert max(found.values()) <= EXACT, found


MEMORY = {"memory": 3}
VARIANTS = {
    "all-attention": MEMORY,
    "attention-split": {**MEMORY, "variant": "attention-split"},
    "head-split": {**MEMORY, **THREE_HEADS, "variant": "head-split"},
    "single-head": {**MEMORY, "variant": "single-head"},
    "ff-attention": {"variant": "ff-attention", "feed_forward": 5},
    "transformer": {"variant": "transformer", "feed_forward": 5},
}
FORMS = {
    "relative": {},
    "transformer-xl": {"positions": "transformer-xl", "norm": "pre", "attend_self": True, "normalizer_epsilon": 0.3},
    "transformer-xl, per layer": {"positions": "transformer-xl", "share_positions": False, "adaptive_span": False},
    "learned, dropout": {"positions": "learned", "norm": "pre", "dropout": 0.3, "embedding_dropout": 0.2},
    "sinusoid": {"positions": "sinusoid", "attend_self": True},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_gradient_of_every_variant(variant, form):
    config = values.ModelConfig(**{**TINY, **variant, **form})
    assert_exact(errors(config, 1, dropping=bool(config.dropout)))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_every_gradient_of_the_mean_loss(variant):
    assert_exact(errors(values.ModelConfig(**{**TINY, **variant}), 7, mean=True))


CLUSTERS = {"vocabulary": 7, "cutoffs": (3, 5), "divisor": 2, "memory": 3}
OUTPUTS = {
    "tied table": {**MEMORY, "tie_tables": True},
    "clusters": CLUSTERS,
    "clusters, reversed": {**CLUSTERS, "cluster_order": "reversed"},
    "clusters, tied tables": {**CLUSTERS, "tie_tables": True},
    "clusters, all tied": {**CLUSTERS, "tie_tables": True, "tie_projections": True, "embedding_dropout": 0.2},
    "clusters, learned positions": {**CLUSTERS, "positions": "learned", "norm": "pre"},
}


@pytest.mark.parametrize("output", OUTPUTS.values(), ids=OUTPUTS)
def test_every_gradient_of_every_input_and_output(output):
    config = values.ModelConfig(**{**TINY, **output})
    assert_exact(errors(config, 2, dropping=bool(config.embedding_dropout)))


@pytest.mark.parametrize("positions", ["relative", "transformer-xl"])
@pytest.mark.parametrize("shared", [True, False])
def test_gradients_through_two_layers_that_share_their_positions_or_do_not(positions, shared):
    config = values.ModelConfig(**{**TINY, **MEMORY, "layers": 2}, positions=positions, share_positions=shared)
    assert_exact(errors(config, 3))


@pytest.mark.parametrize("spans", [(0, 1), (0.25, 0.75), (0.5, 0)], ids=str)
@pytest.mark.parametrize("variant", ["all-attention", "attention-split"])
@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_gradients_exactly_on_the_mask_s_kinks(variant, spans, epsilon):
    """z is whole, so that distances lie on x = z and x = z + R: the closed interval's derivative on both. [AS]"""
    config = values.ModelConfig(**{**TINY, **VARIANTS[variant], "span": 4}, normalizer_epsilon=epsilon)
    assert_exact(errors(config, 4, start=6, spans=spans))


@pytest.mark.parametrize("start", [0, 1, 4, 6])
@pytest.mark.parametrize("variant", ["all-attention", "head-split", "single-head"])
def test_gradients_after_pasts_of_any_length(variant, start):
    assert_exact(errors(values.ModelConfig(**{**TINY, **VARIANTS[variant]}), 5, start))


@pytest.mark.parametrize("name", list(values.parameters.initialize(values.ModelConfig(**TINY, **MEMORY))))
def test_a_millionth_planted_in_any_gradient_is_seen(monkeypatch, name):
    right = model.backward

    def wrong(saved, d_token_loss):
        found = right(saved, d_token_loss)
        found[name] = found[name] * (1 + 1e-6)
        return found

    monkeypatch.setattr(model, "backward", wrong)
    found = errors(values.ModelConfig(**TINY, **MEMORY), 6)
    assert found.pop(name) > EXACT
    assert_exact(found)
