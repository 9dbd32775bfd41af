"""Lines of a run's log: means since the line before, and spans of every head as often as a log can hold them."""

import numpy as np
import pytest

from refimpl import optimizers, parameters, records, training
from refimpl.checkpoint import Checkpoint
from refimpl.config import ModelConfig, TrainConfig

CONFIG = ModelConfig(vocabulary=9, width=8, heads=2, layers=3, span=16, memory=2, span_initial=0.25)


def record(number, updates=1000, log_every=10, last=False, clipped=(0.0,), config=CONFIG):
    """What a run of that many updates logs at one of them."""
    train = TrainConfig(updates=updates, log_every=log_every)
    p = parameters.initialize(config)
    for layer in range(config.layers if config.adaptive_span else 0):
        p[f"layers.{layer}.attention.span"] = np.array([0.25, 0.5]) + 0.01 * layer
    state = optimizers.initialize(train, p)
    state.updates = number
    saved = Checkpoint(config, train, p, state, {"tokens": 0, "seconds": 1.0, "computing": {}})
    one = np.float32(1)
    result = training.Result(one, one, one, one, 0.1, one, one)
    return records.of_update(saved, result, [one] * len(clipped), list(clipped), records.Clock(0.0, 0), None, last)


def test_spans_are_told_by_layer_and_head_in_positions():
    assert record(10)["spans"] == [[4.0, 8.0], [4.2, 8.2], [4.3, 8.3]]
    assert record(10)["span_max"] == pytest.approx(16 * 0.52, rel=1e-6)
    assert "spans" not in record(10, config=ModelConfig(vocabulary=9, width=8, heads=2, layers=3, span=16, memory=2,
                                                        adaptive_span=False))


@pytest.mark.parametrize(("updates", "log_every"), [(1000, 10), (9000, 10), (3200, 20), (5000, 7), (10, 1)])
def test_a_long_run_tells_them_no_more_than_200_times_and_evenly(updates, log_every):
    told = [n for n in range(log_every, updates + 1, log_every) if "spans" in record(n, updates, log_every)]
    assert min(100, updates // log_every) <= len(told) <= records.SPANS_AT_MOST
    assert max(np.diff([0, *told, updates])) <= max(2 * log_every, updates / records.SPANS_AT_MOST + log_every)


def test_the_last_record_tells_them_whenever_it_comes():
    assert "spans" not in record(13, 9000)
    assert "spans" in record(13, 9000, last=True)


def test_the_share_of_clipped_tensors_is_the_mean_since_the_record_before():
    assert record(10, clipped=(1.0, 0.0, np.float32(0.5), np.bool_(True)))["clipped"] == 0.625
