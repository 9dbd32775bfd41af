"""`bench --ledger`: its products and operations are those that the stand-in device counts."""

import json
from dataclasses import replace

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import cupy

from refimpl import optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import attention, ledger
from refimpl.errors import InputError

BASE = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, span=6, memory=3)
FORMS = {
    "all-attention": BASE, "pre-norm": replace(BASE, norm="pre"), "no positions": replace(BASE, positions="none"),
    "feed-forward": replace(BASE, memory=0, feed_forward=5, attend_self=True), "one layer": replace(BASE, layers=1),
}


@pytest.mark.parametrize("elements", [1 << 26, 200, 1])
@pytest.mark.parametrize("form", FORMS)
def test_products_and_operations_are_counted_ones(monkeypatch, form, elements):
    monkeypatch.setattr(attention, "ELEMENTS", elements)
    monkeypatch.setattr(attention, "ROWS", 6)
    config, train = FORMS[form], TrainConfig(batch=3, block=8, updates=3)
    told = ledger.ledger(config, train)
    p = parameters.initialize(config, 0, "float32")
    p = p.with_vector(cupy.asarray(p.vector))
    state, rng = optimizers.initialize(train, p), np.random.default_rng(1)
    tokens, targets = map(cupy.asarray, rng.integers(0, 11, (2, 3, 8)))
    past = cupy.asarray(rng.standard_normal((config.layers, 3, 6, 8)), "float32")
    training.update(p, state, config, train, tokens, targets, past)
    cuda_on_cpu.reset_counters()
    training.update(p, state, config, train, *map(cupy.asarray, rng.integers(0, 11, (2, 3, 8))), past)
    counted = cuda_on_cpu.counters()
    assert told["total"]["products"] == counted["gemms"]
    assert told["total"]["operations"] == counted["gemm_operations"]
    assert told["sent_bytes"] == counted["host_to_device_bytes"]
    assert told["read_back_bytes"] == counted["device_to_host_bytes"]
    assert told["synchronizations"] == counted["synchronizations"]


def test_a_bound_is_the_longer_of_both_times(monkeypatch):
    monkeypatch.setattr(ledger, "PEAKS", {"slow": ledger.Peak(10.0, 100.0, "a test")})
    parts = {"products": ledger.Entry(1, 50, 100, 100), "memory": ledger.Entry(0, 0, 300, 100)}
    assert ledger._least(parts, ledger.PEAKS["slow"]) == 5 + 4


def test_the_command_says_that_it_is_a_bound(command):
    end = command("bench", "--ledger")
    assert end.code == 0
    for words in ("bound, A100", "bound, H100", "bound, RTX 4090", "not a measurement", "datasheet", "nothing"):
        assert words in end.out
    result = json.loads(command("bench", "--ledger", "--json").out)
    assert sum(part["operations"] for part in result["parts"].values()) == result["total"]["operations"]
    assert result["read_back_bytes"] == 0


def test_models_that_it_does_not_know_are_refused():
    with pytest.raises(InputError, match="without cutoffs, got head-split"):
        ledger.ledger(replace(BASE, variant="head-split"), TrainConfig())
    with pytest.raises(InputError, match="got cutoffs"):
        ledger.ledger(replace(BASE, cutoffs=(2, 4), divisor=1), TrainConfig())
