"""The same code on NumPy and on a stand-in for CuPy (cupy_standin.py): the same bits, and nothing read back on the way."""

import importlib.util
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given

from refimpl import model
from refimpl.errors import InputError


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws, standin = sibling("strategies"), sibling("cupy_standin")
examples, configuration = draws.examples, draws.configuration
FULL = draws.ModelCase(
    configuration(vocabulary=9, width=6, heads=3, layers=2, span=5, memory=2, span_penalty=0.3, dropout=0.3,
                  embedding_dropout=0.3, cutoffs=(2, 2, 5), divisor=1, norm="pre", span_ramp=2),
    seed=1, batch=2, block=4, past=3, spans="random",
)

@contextmanager
def device():
    """The stand-in as `cupy` among the modules; gives its asarray, with nothing counted yet."""
    before, sys.modules["cupy"] = sys.modules.get("cupy"), standin.module()
    standin.events.clear()
    try:
        yield sys.modules["cupy"].asarray
    finally:
        sys.modules.pop("cupy")
        if before is not None:
            sys.modules["cupy"] = before


def host(values):
    """Arrays by name, copied from the device if they are there."""
    return {name: np.asarray(value.get() if isinstance(value, standin.DeviceArray) else value)
            for name, value in values.items()}


def results(out, gradients):
    return {"loss": out.loss, "token_loss": out.token_loss, "span_penalty": out.span_penalty, "past": out.past, **gradients}


def waits():
    """What waited for the device, without copies to it, which do not."""
    return {name: count for name, count in standin.events.items() if name != "asarray"}


def waits_of_clusters(config):
    """Adaptive input and softmax look up which rows a cluster owns: its size is what the host must know to go on."""
    clusters = len(config.clusters)
    if not clusters:
        return {}
    found = {"nonzero": 2 * clusters - 1, "boolean mask": clusters - 1}
    return {name: count for name, count in found.items() if count}


@given(draws.model_cases())
@example(draws.ModelCase(configuration()))
@example(FULL)
@examples
def test_the_model_on_the_device_gives_the_same_bits(case):
    """28. Forward, backward and log-probabilities; but for the rows of clusters, nothing waits."""
    p, (tokens, targets), dy = case.parameters(), case.text(), case.cotangent()
    expected = case.run()
    log_p = model.log_probabilities(p, case.config, tokens, case.before())
    with device() as up:
        there = p.with_vector(up(p.vector))
        arguments = up(tokens), up(targets), up(case.before()), {name: up(mask) for name, mask in case.masks().items()}
        found = case.run(there, *arguments, up(dy))
        assert waits() == waits_of_clusters(case.config)
        log_p_found = model.log_probabilities(there, case.config, arguments[0], arguments[2])
        draws.assert_identical(host(results(found.y, found.gradients)), host(results(expected.y, expected.gradients)))
        draws.assert_identical(host({"log_p": log_p_found}), {"log_p": log_p})


def test_a_model_whose_arrays_are_not_all_there_is_told_which_are_not():
    """In place of an error in the depths of a layer."""
    p, (tokens, targets), past = FULL.parameters(), FULL.text(), FULL.before()
    with device() as up:
        there = p.with_vector(up(p.vector))
        with pytest.raises(InputError, match="one device, got parameters on the GPU and past on the host"):
            model.forward(there, FULL.config, up(tokens), up(targets), past)
        with pytest.raises(InputError, match="one device, got past on the GPU and parameters on the host"):
            model.forward(p, FULL.config, tokens, targets, up(past))


def test_the_first_past_is_made_on_the_device():
    """28. What the library makes itself lies where the parameters are."""
    with device() as up:
        past = model.initial_past(replace(FULL.config, zero_past=True), 2, up(np.zeros(1)))
        assert isinstance(past, standin.DeviceArray)
    assert past.shape == (2, 2, 5, 6)


def test_the_stand_in_refuses_what_cupy_refuses_and_counts_what_waits():
    """What CuPy refuses must not pass here, or the properties above would say nothing."""
    before = sys.modules.get("cupy")
    with device() as up:
        cupy, x = sys.modules["cupy"], up(np.arange(3.0))
        for refused in (
            lambda: np.asarray(x), lambda: np.exp(x), lambda: np.sum(x), lambda: np.add(x, x), lambda: np.stack([x, x]),
            lambda: x + np.ones(3), lambda: np.ones(3) + x, lambda: x * np.array(2.0), lambda: cupy.exp(np.ones(3)),
            lambda: cupy.where(x > 1, np.ones(3), x), lambda: x[np.array([0])], lambda: x.sum(where=x > 1),
            lambda: x.max(initial=0), lambda: x.__setitem__(0, np.ones(1)), lambda: x.__iadd__(np.ones(3)),
        ):
            with pytest.raises(TypeError):
                refused()
        for missing in ("errstate", "block", "vecdot", "random"):
            assert not hasattr(cupy, missing)
        assert not waits()
        x[up(np.array([4]))] += np.float64(1)  # out of range: wraps to 1
        np.testing.assert_array_equal(x.get(), [0, 2, 2])
        assert isinstance(np.float64(2) * x, standin.DeviceArray)
        assert float(x[1]) == 2.0
        assert bool(x[0] == 0)
        assert x[x > 1].shape == (2,)
        assert waits() == {"get": 1, "float": 1, "bool": 1, "boolean mask": 1}
    assert sys.modules.get("cupy") is before
