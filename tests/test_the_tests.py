"""Tests of the tests: an error planted in any gradient, or in any value, must make the check that guards it fail."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from refimpl import model, parameters
from refimpl.checks import models
from refimpl.gradcheck.complex_step import gradient, norm_wise_error
from refimpl.layers import adaptive_softmax, attention, feed_forward, layer_norm, linear, positions, softmax_loss, span


def sibling(name):
    """Another test file as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gradients = sibling("test_model_gradients")
ONE_IN_A_MILLION, ONE_IN_A_THOUSAND = 1 + 1e-6, 1 + 1e-3


NAMES = [spec.name for spec in parameters.specification(gradients.BASE)]


@pytest.fixture(scope="module")
def whole_model():
    """The whole model's gradient by backward and by the complex step, as test_model_gradients computes them."""
    config = gradients.BASE
    p, (_, tokens), (_, targets) = gradients.draw(config)
    past = model.initial_past(config, 2, p.vector, zeros=True)

    def objective(vector):
        out = model.forward(p.with_vector(vector), config, tokens, targets, past.astype(vector.dtype))
        return out.loss + out.span_penalty

    g = model.backward(model.forward(p, config, tokens, targets, past).saved)
    return g, p.with_vector(gradient(objective, p.vector))


@pytest.mark.parametrize("name", NAMES)
def test_one_part_in_a_million_of_any_tensor_fails_the_whole_models_check(whole_model, name):
    g, expected = whole_model
    assert norm_wise_error(g[name], expected[name]) <= 1e-12
    assert norm_wise_error(g[name] * ONE_IN_A_MILLION, expected[name]) > 1e-12


@pytest.mark.parametrize("form", models.forms())
def test_a_thousandth_of_any_tensor_fails_the_check_of_every_form(errors_of_pair, form):
    """Every tensor's error is measured by itself, so all are spoilt at once; none may be a gradient that is 0."""
    pair = models.named(form, models.forms()[form], seed=0, size=2)

    def spoilt(dy, *given):
        return [d * ONE_IN_A_THOUSAND for d in pair.vjp(dy, *given)]

    errors = errors_of_pair(pair.forward, spoilt, list(pair.arguments.values()), seed=1)
    assert len(errors) == len(parameters.specification(models.forms()[form]))
    np.testing.assert_allclose(errors, 1e-3, rtol=1e-6)


@pytest.mark.parametrize("spoil", [
    lambda d: d * ONE_IN_A_MILLION, lambda d: -d, lambda d: np.zeros_like(d), lambda d: np.roll(d, 1), lambda d: d + np.nan,
])
def test_the_pairs_check_fails_on_a_spoilt_gradient(check_pair, spoil):
    x, weight = np.random.default_rng(0).standard_normal((2, 3, 3))

    def backward(dy, *arguments):
        dx, d_weight, _ = linear.backward(dy, linear.forward(*arguments)[1])
        return dx, spoil(d_weight)

    with pytest.raises(AssertionError):
        check_pair(lambda *arguments: linear.forward(*arguments)[0], backward, [x, weight])


def test_the_pairs_check_fails_when_a_gradient_is_missing_or_of_another_dtype(check_pair):
    x = np.ones((2, 3))
    for wrong in ([], [np.float32(x)]):
        with pytest.raises(AssertionError):
            check_pair(lambda x: x * 1.0, lambda dy, x, wrong=wrong: wrong, [x])


def test_the_complex_step_refuses_a_function_that_drops_the_imaginary_part():
    with pytest.raises(TypeError, match="complex result"):
        gradient(lambda x: x.real.sum(), np.ones(2))
    with pytest.raises(ValueError, match="shape"):
        norm_wise_error(np.ones(2), np.ones((2, 1)))
    assert norm_wise_error(np.ones(2), np.zeros(2)) == np.inf
    assert norm_wise_error(np.zeros(2), np.zeros(2)) == 0
    assert norm_wise_error(np.full(2, np.nan), np.ones(2)) == np.inf


PAIRS = {  # pair: its module, the backward to spoil, which of the results, and a test file's test that must then fail
    "linear": (linear, "backward", 1, "test_layers", "test_linear_gradient", {"seed": 0, "bias": True, "shape": (2, 3, 4)}),
    "layer norm": (layer_norm, "backward", 0, "test_layers", "test_layer_norm_gradient", {"seed": 0}),
    "positions": (positions, "relative_backward", 1, "test_layers", "test_relative_positions_gradient", {"seed": 0}),
    "softmax loss": (softmax_loss, "backward", None, "test_layers", "test_softmax_loss_gradient", {"seed": 0}),
    "span": (span, "mask_backward", None, "test_layers", "test_span_mask_gradient", {"seed": 0}),
    "feed-forward": (feed_forward, "relu_backward", None, "test_layers", "test_feed_forward_gradient",
                     {"seed": 0, "rate": 0.3}),
    "attention": (attention, "backward", 6, "test_attention", "test_gradient_with_dropout_and_without_positions",
                  {"positions": True, "epsilon": 1e-8}),
    "adaptive softmax": (adaptive_softmax, "backward", 0, "test_adaptive", "test_adaptive_softmax_gradient",
                         {"sizes": (2, 3, 2), "order": "reversed"}),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_a_thousandth_planted_in_a_pair_makes_its_test_fail(monkeypatch, check_pair, pair):
    module, function, index, file, test, arguments = PAIRS[pair]
    right = getattr(module, function)

    def wrong(*given):
        results = right(*given)
        if index is None:
            return results * ONE_IN_A_THOUSAND
        spoilt = list(results)
        spoilt[index] = spoilt[index] * ONE_IN_A_THOUSAND
        return type(results)(*spoilt) if hasattr(results, "_fields") else tuple(spoilt)

    guard = getattr(sibling(file), test)
    guard(check_pair, **arguments)
    monkeypatch.setattr(module, function, wrong)
    with pytest.raises(AssertionError):
        guard(check_pair, **arguments)


@pytest.mark.parametrize(("module", "function", "test"), [
    (attention, "square_root", "test_values_equal_loops_and_gradients_the_complex_step"),
    (span, "mask_forward", "test_values_equal_loops_and_gradients_the_complex_step"),
])
def test_a_thousandth_planted_in_a_value_is_seen_by_the_loops(monkeypatch, check_pair, module, function, test):
    right = getattr(module, function)

    def wrong(*arguments):
        result = right(*arguments)
        return result * ONE_IN_A_THOUSAND if not isinstance(result, tuple) else (result[0] * ONE_IN_A_THOUSAND, *result[1:])

    monkeypatch.setattr(module, function, wrong)
    with pytest.raises(AssertionError):
        getattr(sibling("test_attention"), test)(check_pair, {"past": 4}, 0.1, False)
