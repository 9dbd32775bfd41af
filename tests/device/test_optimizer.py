"""The optimiser's step and the keep-masks of the GPU beside the host's."""

import numpy as np
import pytest
from stand_in import cupy

from refimpl import optimizers, parameters
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import optimizer
from refimpl.errors import NonFiniteError
from refimpl.masks import Mask

CONFIG = ModelConfig(vocabulary=700, width=8, heads=2, layers=2, span=6, memory=3, span_initial=0.4)
WAYS = {
    "sgd": {}, "plain sgd": {"optimizer": "sgd", "clip": 0.0}, "momentum": {"optimizer": "sgd", "momentum": 0.9},
    "adagrad": {"clip": 0.5}, "adagrad, each clipped": {"optimizer": "adagrad", "clip_each": True, "clip": 0.03},
    "adam": {"clip": 0.5, "warm_up": 2}, "adam, each clipped": {"optimizer": "adam", "clip_each": True, "clip": 0.1},
}
WITHIN = {"float32": 2e-6, "float64": 1e-14}


def start(name, dtype):
    train = TrainConfig(**{"optimizer": name, **WAYS[name]}, updates=9, last_updates=2, learning_rate=0.1)
    p = parameters.initialize(CONFIG, 1, dtype)
    gradients = [np.random.default_rng(i).standard_normal(p.vector.size).astype(dtype) for i in range(4)]
    return train, p, gradients


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("name", WAYS)
def test_updates_are_the_hosts(name, dtype):
    train, p, gradients = start(name, dtype)
    there = p.with_vector(cupy.asarray(p.vector))
    state, state_there = optimizers.initialize(train, p), optimizers.initialize(train, there)
    for g in gradients:
        expected = optimizers.gradient_norm(p.with_vector(g))
        optimizers.update(p, p.with_vector(g), state, train)
        norm = optimizer.update(there, there.with_vector(cupy.asarray(g)), state_there, train, cupy.ones((), dtype))
        np.testing.assert_allclose(norm.get(), expected, rtol=WITHIN[dtype])
    assert state.updates == state_there.updates == 4
    np.testing.assert_allclose(there.vector.get(), p.vector, rtol=WITHIN[dtype], atol=WITHIN[dtype])
    for kind, accumulated in state.accumulators.items():
        np.testing.assert_allclose(state_there.accumulators[kind].vector.get(), accumulated.vector, rtol=10 * WITHIN[dtype],
                                   atol=WITHIN[dtype])
    optimizer.check(state_there)


@pytest.mark.parametrize(("loss", "element"), [(np.nan, 1.0), (1.0, np.inf), (np.inf, np.nan)])
@pytest.mark.parametrize("name", ["momentum", "adam", "adagrad, each clipped"])
def test_an_update_that_is_not_finite_changes_nothing_and_neither_do_those_after_it(name, loss, element):
    train, p, gradients = start(name, "float32")
    there = p.with_vector(cupy.asarray(p.vector))
    state = optimizers.initialize(train, there)
    optimizer.update(there, there.with_vector(cupy.asarray(gradients[0])), state, train, cupy.ones((), "float32"))
    held = [there.vector, *(a.vector for a in state.accumulators.values())]
    before = [array.get() for array in held]
    spoilt = cupy.asarray(gradients[1])
    spoilt[5] *= element
    optimizer.update(there, there.with_vector(spoilt), state, train, cupy.asarray(loss, "float32"))
    optimizer.update(there, there.with_vector(cupy.asarray(gradients[2])), state, train, cupy.ones((), "float32"))
    for array, expected in zip(held, before, strict=True):
        np.testing.assert_array_equal(array.get(), expected)
    with pytest.raises(NonFiniteError, match=r"update 2: loss .* \(seen after update 3\)"):
        optimizer.check(state)
    assert state.updates == 1
    optimizer.update(there, there.with_vector(cupy.asarray(gradients[2])), state, train, cupy.ones((), "float32"))
    assert (there.vector.get() != before[0]).any()
    optimizer.check(state)


def test_a_stream_of_a_number_below_0_is_refused_as_on_the_host():
    for like in (np.zeros(1), cupy.zeros(1)):
        with pytest.raises(ValueError, match=r"non-negative|0 or more"):
            Mask(0, "hidden", -1, 0, 1, (3,), 0.5).whole(like)


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**40 + 3, 2**70])
@pytest.mark.parametrize("shape", [(5,), (3, 7), (2, 40, 33)])
def test_keep_masks_are_the_hosts_to_the_bit(seed, shape):
    mask = Mask(seed, "layers.1.attention", 12, 3, 4, shape, 0.3)
    expected = mask.whole(np.zeros(1))
    assert 0 < expected.mean() < 1
    found = mask.whole(cupy.zeros(1))
    assert found.dtype == bool
    np.testing.assert_array_equal(found.get(), expected)
