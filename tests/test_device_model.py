"""Training on the stand-in device of tests/cuda_on_cpu: the host's numbers, and what an update asks of a device."""

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import cupy

from refimpl import arrays, model, optimizers, parameters, training, variants
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import attention as device_attention
from refimpl.device import optimizer
from refimpl.errors import InputError, NonFiniteError
from refimpl.inputs import draw_masks
from refimpl.layers import attention, tiled_attention

CONFIG = ModelConfig(vocabulary=9, width=8, heads=2, layers=2, span=6, memory=3, span_penalty=0.01, span_initial=0.4,
                     span_ramp=3, dropout=0.2, embedding_dropout=0.3)
WAYS = {"sgd": {"optimizer": "sgd", "momentum": 0.9, "clip": 1.0}, "adam": {"clip": 0.5, "warm_up": 2},
        "adagrad": {"optimizer": "adagrad", "clip_each": True, "clip": 0.03}}
WITHIN = {"float32": 2e-4, "float64": 1e-11}


class Segment:
    """Tokens and targets drawn by number."""

    def __init__(self, number):
        self.tokens, self.targets = np.random.default_rng(number).integers(0, CONFIG.vocabulary, (2, 3, 4))
        self.restart = number == 5


def trained(up, name, dtype, updates=8, **settings):
    """Parameters, state and results of updates on the host or the device; waits for nothing."""
    train = TrainConfig(**{**WAYS[name], "updates": updates, "learning_rate": 0.05, "workers": 2, "seed": 3, **settings})
    p = parameters.initialize(CONFIG, 1, dtype)
    p = p.with_vector(up(p.vector))
    state, past = optimizers.initialize(train, p), model.initial_past(CONFIG, 3, p.vector)
    results = training.run(p, state, CONFIG, train, map(Segment, range(updates)), past)
    return p, state, results


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("name", WAYS)
def test_updates_are_the_hosts(name, dtype):
    p, state, results = trained(np.asarray, name, dtype)
    there, state_there, results_there = trained(cupy.asarray, name, dtype)
    close = {"rtol": WITHIN[dtype], "atol": WITHIN[dtype]}
    for here, result in zip(results, results_there, strict=True):
        for name in ("loss", "span_penalty", "past", "gradient_norm"):
            np.testing.assert_allclose(getattr(result, name).get(), getattr(here, name), err_msg=name, **close)
        assert result.learning_rate == here.learning_rate
    np.testing.assert_allclose(there.vector.get(), p.vector, **close)
    for kind, accumulated in state.accumulators.items():
        np.testing.assert_allclose(state_there.accumulators[kind].vector.get(), accumulated.vector, **close)


def test_an_update_sends_its_tokens_and_waits_for_nothing():
    cupy.get_default_memory_pool().free_all_blocks()  # pieces that other tests left would be used up first
    _, _, results = trained(cupy.asarray, "adam", "float32", log_every=100)
    for _ in range(3):  # what is made once
        next(results)
    for number in range(3):
        cuda_on_cpu.reset_counters()
        next(results)
        counted = cuda_on_cpu.counters()
        assert counted["synchronizations"] == counted["device_to_host_copies"] == 0, number
        assert (counted["host_to_device_copies"], counted["host_to_device_bytes"]) == (2, 2 * 3 * 4 * 8)
        assert counted["mallocs"] == 0


def test_what_is_not_finite_is_told_when_it_is_logged_and_nothing_has_changed():
    p, state, results = trained(cupy.asarray, "adam", "float32", log_every=4)
    before = [next(results), next(results)] and p.vector.get()
    p.vector[0] = np.nan
    next(results)
    np.testing.assert_array_equal(p.vector.get()[1:], before[1:])
    with pytest.raises(NonFiniteError, match=r"update 3: loss nan.*\(seen after update 4\)"):
        next(results)
    assert state.updates == 2
    optimizer.check(state)


def test_masks_are_made_on_the_device():
    masks = draw_masks(CONFIG, 2, 4, seed=1, update=1, like=cupy.zeros(1))
    for name, mask in draw_masks(CONFIG, 2, 4, seed=1, update=1, like=np.zeros(1)).items():
        assert isinstance(masks[name], cupy.ndarray)
        np.testing.assert_array_equal(masks[name].get(), mask)


def test_which_attention_computes_there():
    real, small = cupy.zeros(2), np.zeros((3, 4), int)
    for name, there, here in (("auto", device_attention, attention), ("tiled", device_attention, tiled_attention),
                              ("textbook", attention, attention)):
        assert variants.core_for(name, CONFIG, small, real) is there
        assert variants.core_for(name, CONFIG, small, np.zeros(2)) is here
    assert variants.attention_core("tiled", real, np.zeros(2)) is device_attention  # which tells what is not there
    assert variants.attention_core("tiled", real, real + 1j) is attention


def test_arrays_of_both_places_are_told_by_name():
    arguments = attention.Arguments(*(cupy.zeros((1, 2, 1, 2)) for _ in range(3)), positions=np.zeros((3, 2)))
    with pytest.raises(InputError, match="one device, got queries on the GPU and positions on the host"):
        device_attention.forward(arguments, attention.Options(3, attend_self=True))


def test_where_kernels_are():
    assert arrays.has_kernels(cupy.zeros(2))
    assert arrays.has_kernels(cupy.zeros(2, "float32"))
    for other in (cupy.zeros(2, complex), cupy.zeros(2, int), cupy.zeros(0), np.zeros(2)):
        assert not arrays.has_kernels(other)
