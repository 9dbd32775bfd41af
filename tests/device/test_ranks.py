"""Two ranks' updates on the stand-in device, whose sums go through the host, beside one rank's."""

import threading

import numpy as np
import pytest
from stand_in import cupy

from refimpl import model, optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.ranks import share

CONFIG = ModelConfig(vocabulary=9, width=8, heads=2, layers=2, span=12, memory=3, span_ramp=4, dropout=0.2)
TRAIN = TrainConfig(batch=3, block=7, updates=6, dtype="float64", learning_rate=1e-2, clip=1.0)
SIZE = 2


class Two:
    """Rank `rank` of two threads, which meet at each sum."""

    size, meet, vectors, numbers = SIZE, threading.Barrier(SIZE, timeout=60), [None] * SIZE, [None] * SIZE

    def __init__(self, rank):
        self.rank = rank

    def add(self, vector, numbers):
        """The sum in the ranks' order."""
        self.vectors[self.rank], self.numbers[self.rank] = vector.get(), numbers
        self.meet.wait()
        vector[...] = cupy.asarray(self.vectors[0] + self.vectors[1])
        every = np.array(self.numbers)
        self.meet.wait()
        return every


def trained(ranks):
    """Losses, what was told, and the parameters after some updates."""
    p = parameters.initialize(CONFIG, 1, TRAIN.dtype)
    p = p.with_vector(cupy.asarray(p.vector))
    state, own = optimizers.initialize(TRAIN, p), share(ranks, TRAIN.batch)
    past, told = model.initial_past(CONFIG, own.stop - own.start, p.vector), []
    for number in range(TRAIN.updates):
        tokens = map(cupy.asarray, np.random.default_rng(number).integers(0, 9, (2, TRAIN.batch, TRAIN.block)))
        result = training.update(p, state, CONFIG, TRAIN, *tokens, past, ranks, lambda: (float(ranks.rank),))
        past = result.past
        told.append((float(result.loss), float(result.gradient_norm), result.told.ravel().tolist()))
    return told, p.vector.get()


def of_two():
    """`trained` of each, in a thread of its own."""
    found = [None] * SIZE

    def run(rank):
        found[rank] = trained(Two(rank))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_two_ranks_do_what_one_does():
    (expected, vector), (first, second) = trained(training.ALONE), of_two()
    np.testing.assert_array_equal(first[1], second[1])
    np.testing.assert_allclose(first[1], vector, rtol=0, atol=1e-12)
    for here, there, alone in zip(first[0], second[0], expected, strict=True):
        assert here == there
        assert here[:2] == pytest.approx(alone[:2], rel=1e-12)
        assert here[2] == [0.0, 1.0]


def test_a_rank_that_draws_another_ones_dropout_is_seen(monkeypatch):
    vector = trained(training.ALONE)[1]
    masks = training.updates.keep_masks
    monkeypatch.setattr(training.updates, "keep_masks", lambda *given, now: masks(*given[:5], now=now))
    assert np.abs(of_two()[0][1] - vector).max() > 1e-6
