"""The stand-in device beside the host: every pair and form of the model, golden vectors, text; what an update asks."""

from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import cupy

from refimpl import checkpoint, model, optimizers, parameters, settings, training
from refimpl.arrays import to_host
from refimpl.checks import run
from refimpl.config import TrainConfig
from refimpl.continuation import Continuation
from refimpl.device import graphs
from refimpl.golden.adapters import Reference
from refimpl.golden.verify import Selection, select, verify

LAUNCHES, PRODUCTS = 150, 93  # of an update of `laptop`: fewer is welcome, more must be meant
GRAPH_LAUNCHES, GRAPH_COPIES = 2, 60  # with a graph; of its nodes, those that clear and copy
README = Path(__file__).resolve().parents[2] / "README.md"
CHECKS = run.select(run.ALL)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: f"{check.kind}-{check.name}")
def test_gradients_of_every_pair_and_form_are_the_hosts(check, dtype):
    """The gradients that `gradcheck` holds to numerical derivatives, here to those of the host: within roundoff."""
    pair = check.build(run.Options(size=2))
    given = [np.asarray(array, dtype) for array in pair.arguments.values()]
    y = pair.forward(*given)
    dy = np.random.default_rng(1).standard_normal(np.shape(y)).astype(dtype)
    expected = pair.vjp(dy, *given)
    found = pair.vjp(cupy.asarray(dy), *map(cupy.asarray, given))
    for name, here, there in zip(pair.arguments, expected, found, strict=True):
        scale = max(float(np.abs(here).max()), 1e-3)
        assert there.dtype == here.dtype == dtype, name
        within = 1e-11 if dtype == "float64" else 5e-4
        np.testing.assert_allclose(to_host(there) / scale, here / scale, atol=within, rtol=0, err_msg=name)


@pytest.mark.parametrize("attention", ["textbook", "tiled"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_vectors(attention, dtype):
    found = verify(Reference(attention, cupy.asarray), select(Selection()), dtype)
    assert [verdict.case for verdict in found.verdicts if verdict.verdict != "PASS"] == []


def laptop(batch=2, **train):
    """The preset's model with 64 symbols, and its parameters on the device."""
    tables = settings.preset("laptop")
    config = settings.model_config({**tables["model"], "vocabulary": 64})
    train_config = TrainConfig(**{**tables["train"], "batch": batch, **train})
    return config, train_config, parameters.initialize(config, 0, "float32")


def updates(config, train_config, p, count, graph=False):
    """Results of updates, parameters changing in place."""
    state, past = optimizers.initialize(train_config, p), model.initial_past(config, train_config.batch, p.vector)
    state.graph = graphs.Graph() if graph else None
    up = cupy.asarray if isinstance(p.vector, cupy.ndarray) and not graph else np.asarray
    for number in range(count):
        tokens, targets = np.random.default_rng(number).integers(0, config.vocabulary, (2, train_config.batch, 64))
        result = training.update(p, state, config, train_config, up(tokens), up(targets), past)
        past = result.past
        yield result


def test_what_an_update_of_the_laptop_asks_of_a_device():
    cupy.get_default_memory_pool().free_all_blocks()  # pieces that other tests left would be used up first
    config, train_config, p = laptop()
    results = updates(config, train_config, p.with_vector(cupy.asarray(p.vector)), 8)
    for _ in range(6):
        next(results)
    cuda_on_cpu.reset_counters()
    next(results)
    counted = cuda_on_cpu.counters()
    assert counted["synchronizations"] == counted["device_to_host_copies"] == counted["mallocs"] == 0
    assert counted["host_to_device_copies"] == 2
    assert counted["host_to_device_bytes"] == 2 * 2 * 64 * 8
    assert (counted["launches"], counted["gemms"]) <= (LAUNCHES, PRODUCTS)
    assert f"in {LAUNCHES + PRODUCTS} launches for `laptop`" in README.read_text(encoding="utf-8")
    before = counted["launches"]
    cuda_on_cpu.reset_counters()
    next(results)
    assert cuda_on_cpu.counters()["launches"] == before


def test_with_a_graph_it_asks_for_two_launches():
    config, train_config, p = laptop(batch=1)
    there = p.with_vector(cupy.asarray(p.vector))
    results = updates(config, train_config, there, 6, graph=True)
    for _ in range(5):
        next(results)
    cuda_on_cpu.reset_counters()
    next(results)
    counted = cuda_on_cpu.counters()
    assert counted["synchronizations"] == counted["device_to_host_copies"] == counted["mallocs"] == counted["gemms"] == 0
    assert counted["graph_launches"] + counted["launches"] == GRAPH_LAUNCHES
    assert LAUNCHES + PRODUCTS <= counted["graph_nodes"] <= LAUNCHES + PRODUCTS + GRAPH_COPIES
    assert f"in {GRAPH_LAUNCHES} launches for `laptop`" in README.read_text(encoding="utf-8")


def test_twenty_updates_of_the_laptop_and_the_text_after_them():
    config, train_config, p = laptop(batch=1)
    there = p.with_vector(cupy.asarray(p.vector))
    pairs = zip(updates(config, train_config, p, 20), updates(config, train_config, there, 20), strict=True)
    for here, on_the_device in pairs:
        np.testing.assert_allclose(on_the_device.loss.get(), here.loss, rtol=2e-4)
    prompts = [np.arange(5), np.arange(9)]
    texts = [Continuation(q, config, prompts) for q in (p, there)]
    for token in ((1, 2), (3, 4), (5, 6)):
        for text in texts:
            text.add(token)
        np.testing.assert_allclose(texts[1].log_p.get(), texts[0].log_p, atol=2e-2)


def test_a_checkpoint_goes_to_the_device_and_back(tmp_path):
    config, train_config, p = laptop(batch=1)
    saved = checkpoint.Checkpoint(config, train_config, p, optimizers.initialize(train_config, p), {},
                                  model.initial_past(config, 1, p.vector))
    before = p.vector.copy()
    saved.move(cupy.asarray)
    assert isinstance(saved.parameters.vector, cupy.ndarray)
    checkpoint.save(tmp_path, saved)
    np.testing.assert_array_equal(checkpoint.load(tmp_path).parameters.vector, before)
