"""Attention that computes no more than heads reach: the same numbers, with fewer operations."""

from dataclasses import replace

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import cupy

from refimpl import model, optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import windows
from refimpl.errors import NonFiniteError

CONFIG = ModelConfig(vocabulary=9, width=8, heads=4, layers=2, span=300, memory=3, span_ramp=8, span_penalty=1e-4)
TRAIN = TrainConfig(learning_rate=1e-3, batch=2, block=7, updates=20, clip=1.0, log_every=5)


def trained(up, config, train, updates, spans=(0.0, 0.02, 0.3, 1.0)):
    """Parameters, state and the losses after some updates with a full past."""
    p = parameters.initialize(config, 1, "float64")
    for layer in range(config.layers):
        p[f"layers.{layer}.attention.span"] = np.array(spans)
    p, rng = p.with_vector(up(p.vector)), np.random.default_rng(2)
    state = optimizers.initialize(train, p)
    past = up(rng.standard_normal((config.layers, 2, config.span, config.width)))
    losses = []
    for _ in range(updates):
        tokens, targets = map(up, rng.integers(0, 9, (2, 2, 7)))
        result = training.update(p, state, config, train, tokens, targets, past)
        past = result.past
        losses.append(float(result.loss))
    return p, state, losses


@pytest.mark.parametrize("changes", [{}, {"normalizer_epsilon": 1e-4}, {"memory": 0}, {"norm": "pre"}, {"span_initial": 1.0},
                                     {"variant": "head-split", "span_ramp": 4}, {"positions": "transformer-xl"}], ids=str)
def test_updates_are_the_hosts(changes):
    config = replace(CONFIG, **changes)
    spans = np.linspace(0, 1, config.context_heads) if changes else (0.0, 0.02, 0.3, 1.0)
    here, there = (trained(up, config, TRAIN, 4, spans) for up in (np.asarray, cupy.asarray))
    np.testing.assert_allclose(there[2], here[2], rtol=1e-11)
    np.testing.assert_allclose(there[0].vector.get(), here[0].vector, rtol=1e-9, atol=1e-11)
    assert there[1].windows is not None


def test_short_spans_cost_less():
    operations = []
    for spans in ((1.0,) * 4, (0.0,) * 4, (0.0, 0.0, 0.0, 1.0)):
        *_, = trained(cupy.asarray, CONFIG, TRAIN, 1, spans)
        cuda_on_cpu.reset_counters()
        trained(cupy.asarray, CONFIG, TRAIN, 1, spans)
        operations.append(cuda_on_cpu.counters()["gemm_operations"])
    full, none, one = operations
    assert none < one < full
    assert none < full / 3


def test_spans_are_read_once_in_an_interval():
    every = windows.interval(TRAIN)
    assert 1 < every <= TRAIN.log_every
    p, state, _ = trained(cupy.asarray, CONFIG, TRAIN, 1)
    looks = []
    for number in range(2, 2 + 2 * every):
        state.windows = windows.kept(state.windows, p, TRAIN, number)
        looks.append(state.windows[0])
    assert looks == [1 + (number - 1) // every * every for number in range(2, 2 + 2 * every)]


@pytest.mark.parametrize(("train", "least", "most"), [
    (TrainConfig(), 1.0, 8.0), (TrainConfig(optimizer="adagrad", learning_rate=0.07), 0.07, 0.07),
    (TrainConfig(optimizer="sgd", learning_rate=0.1, clip=0.5, momentum=0.5), 0.1, 0.1),
    (TrainConfig(optimizer="sgd", clip=0), np.inf, np.inf), (TrainConfig(adam_betas=(0.99, 0.9)), np.inf, np.inf),
])
def test_the_most_that_a_span_can_grow(train, least, most):
    scale = train.learning_rate if train.optimizer == "adam" else 1
    assert least * scale - 1e-15 <= windows.growth(train) <= most * scale + 1e-15


def test_no_gradients_move_adam_further_than_that():
    """Cauchy and Schwarz's bound is reached by gradients that grow by β₂ / β₁ each update, and by no others."""
    train, steps = TrainConfig(learning_rate=1.0), []
    beta1, beta2 = train.adam_betas
    for ratio in (1.0, 1.05, beta2 / beta1, 1.2, 3.0):
        mean = square = 0.0
        for number in range(1, 300):
            mean, square = beta1 * mean + (1 - beta1) * ratio**number, beta2 * square + (1 - beta2) * ratio ** (2 * number)
            steps.append(mean / (1 - beta1**number) / np.sqrt(square / (1 - beta2**number)))
    assert 0.45 * windows.growth(train) < max(steps) <= windows.growth(train)


def test_a_span_that_was_changed_behind_its_back_is_not_computed_with():
    p, state, _ = trained(cupy.asarray, CONFIG, TRAIN, 1, spans=(0.0,) * 4)
    p["layers.0.attention.span"].fill(0.9)
    tokens = cupy.zeros((2, 7), int)
    past = model.initial_past(CONFIG, 2, p.vector, zeros=True)
    training.update(p, state, CONFIG, TRAIN, tokens, tokens, past)
    with pytest.raises(NonFiniteError):
        training.optimizer.check(state)


def test_small_spans_are_never_read():
    config = replace(CONFIG, span=100)
    _, state, _ = trained(cupy.asarray, config, TRAIN, 1)
    assert state.windows is None
