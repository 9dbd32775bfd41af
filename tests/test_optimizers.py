"""Rates, clipping and memory of the optimisers; their arithmetic is held against scalar loops in test_scalar_model.py."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from refimpl import optimizers, parameters
from refimpl.arrays import map_in_threads
from refimpl.config import ModelConfig, TrainConfig

CONFIG = ModelConfig(vocabulary=200, width=64, heads=4, layers=2, span=32, memory=64)
KINDS = [("sgd", False), ("sgd", True), ("adagrad", False), ("adagrad", True), ("adam", False), ("adam", True)]


def draw(optimizer="adam", config=CONFIG, **settings):
    train_config = TrainConfig(optimizer=optimizer, **settings)
    p = parameters.initialize(config)
    g = p.with_vector(np.random.default_rng(0).standard_normal(p.vector.size))
    return train_config, p, g, optimizers.initialize(train_config, p)


def test_the_rate_warms_up_from_the_first_update_and_falls_for_the_last():
    train_config = TrainConfig(learning_rate=0.8, warm_up=4, updates=10, last_updates=2)
    rates = [optimizers.learning_rate(train_config, u) for u in range(1, 11)]
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.08, 0.08], rtol=1e-15)


@pytest.mark.parametrize(("optimizer", "clip_each"), KINDS)
def test_an_update_allocates_no_vector_and_leaves_the_gradient(monkeypatch, optimizer, clip_each):
    monkeypatch.setattr(optimizers, "PIECE", 10_000)
    large = replace(CONFIG, vocabulary=10_000)
    train_config, p, g, state = draw(optimizer, large, clip=0.5, clip_each=clip_each, momentum=0.9)
    before = g.vector.copy()
    optimizers.update(p, g, state, train_config)
    tracemalloc.start()
    optimizers.update(p, g, state, train_config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < p.vector.nbytes / 20
    np.testing.assert_array_equal(g.vector, before)
    assert state.updates == 2


@pytest.mark.parametrize(("optimizer", "clip_each"), KINDS)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_pieces_and_threads_do_not_change_a_bit(monkeypatch, optimizer, clip_each, clip):
    """Once in one piece, once in some of which tensors are no multiples, on three threads."""
    train_config, p, g, state = draw(optimizer, clip=clip, clip_each=clip_each, momentum=0.9)
    whole, of_whole, threads = p.copy(), optimizers.initialize(train_config, p), []
    optimizers.update(whole, g, of_whole, train_config)
    optimizers.update(whole, g, of_whole, train_config)

    def mapped(function, items, workers):
        threads.append(workers)
        return map_in_threads(function, items, workers)

    monkeypatch.setattr(optimizers, "PIECE", 1000)
    monkeypatch.setattr(optimizers, "SHARE", p.vector.size // 3 + 1)
    monkeypatch.setattr(optimizers, "available_cores", lambda: 4)
    monkeypatch.setattr(optimizers, "map_in_threads", mapped)
    optimizers.update(p, g, state, train_config)
    optimizers.update(p, g, state, train_config)
    np.testing.assert_array_equal(p.vector, whole.vector)
    assert state.clipped == of_whole.clipped
    for name, kept in state.accumulators.items():
        np.testing.assert_array_equal(kept.vector, of_whole.accumulators[name].vector)
    assert threads == [3, 3]


def test_adagrad_as_published_accumulates_the_unclipped_gradient():
    train_config, p, g, state = draw("adagrad", clip=1e-3, clip_each=True)
    optimizers.update(p, g, state, train_config)
    np.testing.assert_allclose(state.accumulators["squares"].vector, g.vector**2, rtol=1e-15)


def test_adagrad_with_global_clipping_accumulates_the_clipped_gradient():
    train_config, p, g, state = draw("adagrad", clip=1e-3)
    optimizers.update(p, g, state, train_config)
    assert np.sqrt(state.accumulators["squares"].vector.sum()) == pytest.approx(1e-3, rel=1e-6)


@pytest.mark.parametrize("clip_each", [True, False])
def test_small_gradients_are_not_clipped(clip_each):
    results = []
    for clip in (0.0, 1e6):
        train_config, p, g, state = draw("sgd", clip=clip, clip_each=clip_each)
        optimizers.update(p, g, state, train_config)
        results.append(p.vector)
    np.testing.assert_array_equal(*results)


def test_each_tensor_is_clipped_by_its_own_norm():
    train_config, p, g, state = draw("sgd", clip=0.5, clip_each=True, learning_rate=1.0)
    g["layers.0.attention_norm.gain"] = 1e-3
    before = p.copy()
    optimizers.update(p, g, state, train_config)
    for name in set(p) - {"layers.0.attention.span", "layers.1.attention.span"}:
        step = np.linalg.norm(before[name] - p[name])
        assert step == pytest.approx(min(0.5, np.linalg.norm(g[name])), rel=1e-6), name


@pytest.mark.parametrize("direction", [-1, 1])
def test_spans_stay_between_zero_and_one(direction):
    train_config, p, g, state = draw("sgd", clip=0.0, learning_rate=100.0)
    for layer in range(2):
        g[f"layers.{layer}.attention.span"] = direction
    optimizers.update(p, g, state, train_config)
    for layer in range(2):
        np.testing.assert_array_equal(p[f"layers.{layer}.attention.span"], 0 if direction > 0 else 1)


def test_state_is_what_the_optimizer_needs():
    for optimizer, momentum, names in [("sgd", 0.0, []), ("sgd", 0.9, ["momentum"]), ("adagrad", 0.0, ["squares"]),
                                       ("adam", 0.0, ["mean", "squares"])]:
        _, _, _, state = draw(optimizer, momentum=momentum)
        assert list(state.accumulators) == names
        assert state.updates == 0
        assert replace(state, updates=3).updates == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_the_share_of_clipped_tensors_is_told(optimizer):
    """Norms at the limit itself count as within it, and the next update's share is its own."""
    train_config, p, g, state = draw(optimizer, clip=2.0, clip_each=True)
    norms = {name: 1 + number for number, name in enumerate(g)}
    for name, norm in norms.items():
        g[name] = 0
        g[name].flat[0] = norm
    optimizers.update(p, g, state, train_config)
    assert float(state.clipped) == sum(norm > 2 for norm in norms.values()) / len(norms) == 1 - 2 / len(g)
    for name in g:
        g[name].flat[0] = 3 if name == "output.bias" else 0
    optimizers.update(p, g, state, train_config)
    assert float(state.clipped) == 1 / len(g)


@pytest.mark.parametrize(("clip", "clipped"), [(0.0, 0), (4.9, 1), (5.0, 1), (5.1, 0)])
def test_clipping_of_all_tensors_together_is_told_as_all_or_none(clip, clipped):
    """At the limit itself the gradient is scaled too, by what 1e-6 in the denominator makes."""
    train_config, p, g, state = draw("sgd", clip=clip)
    g.vector[...] = 0
    g.vector[:2] = 3, 4
    optimizers.update(p, g, state, replace(train_config, clip=1e-3))
    optimizers.update(p, g, state, train_config)
    assert float(state.clipped) == clipped


def test_without_a_limit_no_tensor_counts_as_clipped():
    train_config, p, g, state = draw("adagrad", clip=0.0, clip_each=True)
    optimizers.update(p, g, state, train_config)
    assert float(state.clipped) == 0


def test_an_update_that_changes_something_ends_a_row_of_skipped_ones():
    train_config, p, g, state = draw()
    state.updates = state.skipped = state.skipped_in_a_row = 7
    optimizers.update(p, g, state, train_config)
    assert (state.skipped, state.skipped_in_a_row, state.updates, state.steps) == (7, 0, 8, 1)
