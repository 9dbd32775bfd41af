"""Ranks: rows divided, sums in order, and what all do together; MPI itself is in test_mpi.py."""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl import evaluation, exits, model, optimizers, parameters, ranks, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.datasets.batches import Segment, every_token_once
from refimpl.errors import InputError, NonFiniteError
from refimpl.ranks import ALONE, Launched

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, span=6, memory=3, span_ramp=4, span_initial=0.5,
                     span_penalty=1e-3)
TRAIN = TrainConfig(optimizer="sgd", learning_rate=1.0, clip=0.0, batch=4, block=5, dtype="float64")
# a gradient is a sum over rows of terms of its own size: another order of adding them is a few roundings of that size
BOUND = 64 * np.finfo(np.float64).eps


class Meeting:
    """Where simulated ranks, threads of this process, leave what they have for one another."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)


class Simulated:
    """refimpl.ranks.Ranks among threads."""

    first_here, here = True, 1

    def __init__(self, meeting: Meeting, rank: int) -> None:
        self.meeting, self.rank, self.size = meeting, rank, len(meeting.slots)

    def exchange(self, mine: Any) -> list[Any]:
        self.meeting.slots[self.rank] = mine
        self.meeting.barrier.wait()
        found = list(self.meeting.slots)
        self.meeting.barrier.wait()
        return found

    def threads(self) -> int:
        return 1

    def stacked(self, numbers: Any) -> Any:
        return np.stack(self.exchange(np.array(numbers, np.float64)))

    def add(self, vector: Any, numbers: Any) -> Any:
        first, *others = self.exchange(np.array(vector))
        total = first.copy()
        for other in others:
            total += other
        vector[...] = total
        return self.stacked(numbers)

    def to_first(self, rows: Any) -> Any:
        found = self.exchange(rows)
        return None if self.rank else np.concatenate(found, axis=1)

    def abort(self, code: int) -> None:
        self.meeting.barrier.abort()


def together(size: int, function: Callable[[Any], Any]) -> list[Any]:
    """function(ranks) of `size` simulated ranks, each in its thread: what each returned, or the error that it raised."""
    meeting, found = Meeting(size), [None] * size

    def one(rank: int) -> None:
        try:
            found[rank] = function(Simulated(meeting, rank))
        except Exception as error:
            found[rank] = error
            if not isinstance(error, NonFiniteError):
                meeting.barrier.abort()

    workers = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    broken = [error for error in found if isinstance(error, Exception) and not isinstance(error, NonFiniteError)]
    if broken:
        raise next((error for error in broken if not isinstance(error, threading.BrokenBarrierError)), broken[0])
    return found


def updated(config: ModelConfig, train_config: TrainConfig, batch: int, seed: int, group: Any = ALONE) -> Any:
    """Parameters before and after two updates of one rank, its losses, and the past of all rows (on the first rank)."""
    rng = np.random.default_rng(seed)
    p = parameters.initialize(config, seed)
    first, state = p.vector.copy(), optimizers.initialize(train_config, p)
    own = ranks.share(group, batch)
    past, losses = model.initial_past(config, own.stop - own.start, p.vector), []
    for _ in range(2):
        tokens, targets = rng.integers(0, config.vocabulary, (2, batch, train_config.block))
        result = training.update(p, state, config, train_config, tokens, targets, past, group)
        past = result.past
        losses.append(float(result.loss))
    return first, p.vector, losses, group.to_first(past)


@settings(max_examples=25)
@given(size=st.integers(1, 6), more=st.integers(0, 5), dropout=st.sampled_from([0.0, 0.3]), workers=st.integers(1, 2),
       seed=st.integers(0, 2**16), cutoffs=st.sampled_from([(), (3, 7)]))
def test_an_update_of_several_ranks_is_that_of_one(size, more, dropout, workers, seed, cutoffs):
    """Whether the ranks divide the batch or not; the same bits on every rank, and once more."""
    batch = size + more
    config = replace(CONFIG, dropout=dropout, embedding_dropout=dropout, cutoffs=cutoffs, divisor=2)
    train_config = replace(TRAIN, batch=batch, workers=workers)
    first, expected, losses, past = updated(config, replace(train_config, workers=1), batch, seed)
    runs = [together(size, lambda group: updated(config, train_config, batch, seed, group)) for _ in range(2)]
    scale = np.linalg.norm(expected - first) + np.linalg.norm(first)
    for _, vector, found, _ in runs[0] + runs[1]:
        assert np.array_equal(vector, runs[0][0][1])
        assert found == runs[0][0][2]
        assert np.linalg.norm(vector - expected) <= BOUND * scale
        np.testing.assert_allclose(found, losses, rtol=BOUND)
    np.testing.assert_allclose(runs[0][0][3], past, rtol=0, atol=BOUND * np.abs(past).max())
    assert all(run[3] is None for run in runs[0][1:])


@pytest.mark.parametrize("spoil", [
    lambda g, w: g.__imul__(1 + 1e-6),
    lambda g, w: g.__iadd__(np.where(np.arange(len(g)) == 3, 1e-9, 0)),
])
def test_a_wrong_sum_would_be_seen(spoil, monkeypatch):
    first, expected, *_ = updated(CONFIG, TRAIN, 4, 0)
    add = Simulated.add

    def wrong(self, vector, numbers):
        every = add(self, vector, numbers)
        spoil(vector, self.size)
        return every

    monkeypatch.setattr(Simulated, "add", wrong)
    (_, vector, *_), _ = together(2, lambda group: updated(CONFIG, TRAIN, 4, 0, group))
    assert np.linalg.norm(vector - expected) > BOUND * (np.linalg.norm(expected - first) + np.linalg.norm(first))


def test_what_a_rank_has_to_tell_reaches_all_at_the_same_update():
    def loop(group):
        p = parameters.initialize(CONFIG, 0)
        state, rng = optimizers.initialize(TRAIN, p), np.random.default_rng(0)
        segments = (Segment(*rng.integers(0, CONFIG.vocabulary, (2, 4, 5)), restart=i == 1) for i in range(3))
        told = iter([(0, 0), (15 if group.rank == 2 else 0, 0), (0, group.rank)])
        past = model.initial_past(CONFIG, 4 // group.size, p.vector)
        results = list(training.run(p, state, CONFIG, replace(TRAIN, updates=3), segments, past, group, lambda: next(told)))
        assert [result.past.shape[1] for result in results] == [4 // group.size] * 3
        return [result.told.max(axis=0).tolist() for result in results], [float(result.loss) for result in results]

    found, (_, expected) = together(4, loop), loop(ALONE)
    assert [told for told, _ in found] == [[[0, 0], [15, 0], [0, 3]]] * 4
    assert [losses for _, losses in found] == [found[0][1]] * 4
    np.testing.assert_allclose(found[0][1], expected, rtol=1e-12)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_is_not_finite_on_one_rank_is_so_on_all_and_named_on_all(policy):
    """The past of the last rank's row is spoilt: no other rank has a tensor that is not finite before the gradients."""

    def spoilt(group):
        p, rng = parameters.initialize(CONFIG, 0), np.random.default_rng(0)
        before, state = p.vector.copy(), optimizers.initialize(TRAIN, p)
        past = np.full((CONFIG.layers, 1, 3, CONFIG.width), np.inf if group.rank == 2 else 0.5)
        tokens, targets = rng.integers(0, CONFIG.vocabulary, (2, 3, 5))
        try:
            settings_now = replace(TRAIN, on_nonfinite=policy)
            result = training.update(p, state, CONFIG, settings_now, tokens, targets, past, group)
            return result.skipped, result.past.shape
        finally:
            assert np.array_equal(p.vector, before)

    found = together(3, spoilt)
    if policy == "stop":
        assert {str(error) for error in found} == {str(found[0])}
        assert "not finite: input of layers.1" in str(found[0])
    else:
        assert len(set(found)) == 1
        assert "not finite: input of layers.1" in found[0][0]
        assert found[0][1] == (CONFIG.layers, 1, 0, CONFIG.width)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_an_evaluation_that_is_divided_is_the_same(size):
    """Eight streams of a text whose last segment has three rows; more ranks than streams, too."""
    p, tokens = parameters.initialize(CONFIG, 0), np.random.default_rng(1).integers(0, 11, 8 * 12 + 4)

    def score(group, weighted):
        return evaluation.evaluate(p, CONFIG, every_token_once(tokens, 8, 5), 4, weighted, group)

    for weighted in (True, False):
        expected = score(ALONE, weighted)
        for found in together(size, lambda group, weighted=weighted: score(group, weighted)):
            assert (found.tokens, found.line_ends) == (expected.tokens, expected.line_ends)
            assert found.loss == pytest.approx(expected.loss, rel=1e-14)


@given(count=st.integers(0, 300), size=st.integers(1, 40))
def test_shares_are_all_there_is_in_order_and_nearly_equal(count, size):
    meeting = Meeting(size)
    shares = [ranks.share(Simulated(meeting, rank), count) for rank in range(size)]
    assert [i for each in shares for i in range(count)[each]] == list(range(count))
    sizes = [each.stop - each.start for each in shares]
    assert sizes == ranks.sizes(count, size)
    assert max(sizes) - min(sizes) <= 1


def test_every_rank_needs_a_row():
    ranks.check_rows(Simulated(Meeting(3), 0), 3)
    with pytest.raises(InputError, match="a row for each of the 3 ranks, got 2"):
        ranks.check_rows(Simulated(Meeting(3), 0), 2)


def test_what_differs_is_told_alike_on_all_ranks():
    def ask(values):
        return together(3, lambda group: ranks.differences(group, {"blas": values[group.rank], "ünchanged": [1]}))

    assert ask(["a", "a", "a"]) == [""] * 3
    assert ask(["a", "a", "longer"]) == ["blas a on rank 0, longer on rank 2"] * 3
    assert ask(["a", "b", "c"]) == ["blas a on rank 0, b on rank 1"] * 3


def test_what_mpi_fails_with_is_no_bug_of_ours():
    """As mpi4py's errors look where a rank is gone before the launcher has ended the others."""
    error = type("Exception", (RuntimeError,), {"__module__": "mpi4py.MPI"})("MPI_ERR_PROC_FAILED")
    assert exits._verdict(error) == ("MPI: MPI_ERR_PROC_FAILED", exits.OUTSIDE)


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, None),
    ({"PMI_RANK": "1", "PMI_SIZE": "4"}, Launched(1, 4)),
    ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, Launched(0, 2)),
    ({"PMIX_RANK": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "16"}, Launched(3, 8)),
    ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, None),  # a batch script, or srun without MPI: nobody to meet
    ({"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "PMIX_RANK": "0"}, Launched(0, 1)),
    ({"PMI_RANK": "0"}, None),
    ({"PMI_RANK": "", "PMI_SIZE": "x"}, None),
])
def test_a_launcher_is_known_by_what_it_tells(environment, expected):
    assert ranks.launched(environment) == expected
