"""Numbers below the smallest normal one: 0 where float32 is trained and scored, themselves everywhere else."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from refimpl import evaluation, model, parameters, subnormals, training
from refimpl.arrays import map_in_threads
from refimpl.config import ModelConfig, TrainConfig
from refimpl.datasets.batches import Segment
from refimpl.layers import attention, tiled_attention
from refimpl.subnormals import flushed

TINY = np.float32(1.5e-38)  # normal, if hardly
HERE = subnormals._library() is not None  # Linux on x86-64; elsewhere nothing changes
CONFIG = ModelConfig(vocabulary=7, width=8, heads=2, layers=1, span=12, memory=300)
TRAIN = TrainConfig(batch=2, block=6, workers=2, attention="tiled")


def flushes(_=None):
    """Whether this thread takes subnormal results, and subnormal operands, for 0: NumPy's and BLAS's. Told by their bits."""
    tiny = np.full((8, 8), TINY)
    operand = (tiny.view(np.int32) // 4).view(np.float32)
    results = tiny * np.float32(0.1), tiny @ np.full((8, 8), np.float32(0.01)), operand * np.float32(2**20)
    found = {bool((result.view(np.int32) == 0).all()) for result in results}
    assert len(found) == 1
    return found.pop()


def test_this_thread_flushes_within_and_not_after():
    assert not flushes()
    with flushed():
        assert flushes() == HERE
        with flushed():
            assert flushes() == HERE
        assert flushes() == HERE
        with flushed(np.float64):
            assert flushes() == HERE
    assert not flushes()
    with flushed(np.float64):
        assert not flushes()
    with pytest.raises(KeyError), flushed():
        raise KeyError
    assert not flushes()


def test_double_precision_and_longer_keep_their_smallest_numbers():
    with flushed(np.float64):
        assert np.full(8, 1e-308) * 0.1 != pytest.approx(0, abs=0)


def test_threads_that_compute_for_one_that_flushes_do_so_too_and_no_others():
    assert map_in_threads(flushes, range(4), 2) == [False] * 4
    with flushed():
        assert map_in_threads(flushes, range(4), 2) == [HERE] * 4
        other = []
        thread = threading.Thread(target=lambda: other.append(map_in_threads(flushes, range(4), 2)))
        thread.start()
        thread.join()
    assert other == [[False] * 4]
    assert map_in_threads(flushes, range(4), 2) == [False] * 4


def subnormal(array):
    """How many numbers are."""
    return int(((array != 0) & (np.abs(array) < np.finfo(array.dtype).smallest_normal)).sum())


@pytest.fixture
def widely_spread():
    """widely_spread(dtype): what gradients of one query are computed from, whose logits lie up to some 200 apart."""

    def make(dtype):
        p, rng = parameters.initialize(CONFIG, 0, dtype), np.random.default_rng(0)
        p["layers.0.attention.memory_keys"] *= 60
        tokens, targets = rng.integers(0, 7, (2, 1, 1))
        return p, tokens, targets, rng.standard_normal((1, 1, 12, 8)).astype(dtype)

    return make


def both(given, path, dtype):
    """Loss and gradients as training computes them, and as nothing but the model does, as the equations read."""
    p, tokens, targets, past = given
    train = replace(TRAIN, attention=path, dtype=dtype)
    out, g = training.on_rows(model.loss_and_gradients, p, CONFIG, train, tokens, targets, past, 1, slice(0, 1), 0)
    plain, h = model.loss_and_gradients(p, CONFIG, tokens, targets, past)
    return (out.loss, g.vector), (plain.loss, h.vector)


@pytest.mark.parametrize("path", ["tiled", "textbook"])
def test_training_in_float32_makes_no_subnormal_gradient(widely_spread, path):
    """The same to the last normal digits as without, where there are some."""
    (loss, g), (plain_loss, h) = both(widely_spread("float32"), path, "float32")
    assert subnormal(h) > 10
    assert (subnormal(g) == 0) == HERE
    assert loss == pytest.approx(plain_loss, rel=1e-6)
    np.testing.assert_allclose(g, h, rtol=1e-4, atol=1e-30)


def test_tiles_flush_by_themselves_whoever_calls_them(widely_spread):
    p, tokens, targets, past = widely_spread("float32")
    for core, some in ((attention, True), (tiled_attention, not HERE)):
        _, g = model.loss_and_gradients(p, CONFIG, tokens, targets, past, core=core)
        assert bool(subnormal(g["layers.0.attention.memory_values"])) == some
    assert not flushes()


def test_training_in_float64_keeps_what_float32_would_not(widely_spread):
    (loss, g), (plain_loss, h) = both(widely_spread("float64"), "textbook", "float64")
    assert (loss, g.tolist()) == (plain_loss, h.tolist())
    assert ((h != 0) & (np.abs(h) < 1e-38)).sum() > 10


def test_scoring_flushes_as_training_does(monkeypatch):
    found, forward = [], model.forward
    monkeypatch.setattr(evaluation.model, "forward", lambda *given, **options: (
        found.append(flushes()), forward(*given, **options))[1])
    for dtype in ("float32", "float64"):
        block = Segment(np.zeros((2, 6), int), np.zeros((2, 6), int), restart=True)
        evaluation.evaluate(parameters.initialize(CONFIG, 0, dtype), CONFIG, [block])
    assert found == [HERE, False]
