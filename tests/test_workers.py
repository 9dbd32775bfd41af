"""Processes that compute parts of a batch: the same bits as threads, whatever happens to them."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refimpl import accounting, console, model, optimizers, parameters, room, settings, shared, training, workers
from refimpl.arrays import limit_threads
from refimpl.config import ModelConfig, TrainConfig
from refimpl.errors import InputError, NonFiniteError
from refimpl.ranks import ALONE

CONFIG = ModelConfig(vocabulary=16, width=16, heads=2, layers=2, span=12, memory=4, span_ramp=4, span_penalty=1e-4)
TRAIN = TrainConfig(optimizer="adam", learning_rate=3e-3, batch=5, block=8, updates=6, workers=2, dtype="float64")
FORMS = {
    "plain": ({}, {}),
    "single precision": ({}, {"dtype": "float32"}),
    "dropout": ({"dropout": 0.3, "embedding_dropout": 0.2}, {}),
    "tied clusters": ({"cutoffs": (4, 9), "divisor": 2, "tie_tables": True, "tie_projections": True}, {}),
    "tiles": ({"zero_past": True}, {"attention": "tiled", "optimizer": "adagrad", "clip": 0.03, "clip_each": True}),
    "more parts than processes": ({}, {"workers": 4}),
    "a part for each thread": ({"norm": "pre"}, {"workers": 0, "optimizer": "sgd"}),
    "transformer": ({"memory": 0, "feed_forward": 8, "attend_self": True, "adaptive_span": False}, {}),
}


before = []  # processes that this one had started before the test


@pytest.fixture(autouse=True)
def two_cores():
    before[:] = children(every=True)
    with limit_threads(2):
        yield


def segments(train, restarts=(0, 4)):
    rng = np.random.default_rng(0)
    for number in range(train.updates):
        tokens, targets = rng.integers(0, 16, (2, train.batch, train.block))
        yield SimpleNamespace(tokens=tokens, targets=targets, restart=number in restarts)


def begun(config, train, parallel, given=None, ranks=ALONE):
    """Parameters, optimiser's state and a run that has not begun yet."""
    p = parameters.initialize(config, 1, train.dtype)
    state, train = optimizers.initialize(train, p), replace(train, parallel=parallel)
    return p, state, training.run(p, state, config, train, given or segments(train), None, ranks)


def children(every=False):
    """The processes that this one has started since the test began, and not waited for."""
    found = [int(number) for task in Path("/proc/self/task").iterdir()
             for number in task.joinpath("children").read_text().split()]
    return [number for number in found if every or number not in before]


def same(results, others):
    for one, other in zip(results, others, strict=True):
        for name in ("loss", "span_penalty", "past", "gradient_norm", "learning_rate", "skipped"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_processes_give_the_bits_that_threads_give(form):
    config, train = replace(CONFIG, **FORMS[form][0]), replace(TRAIN, **FORMS[form][1])
    p, state, run = begun(config, train, "threads")
    q, other, run_beside = begun(config, train, "processes")
    results, beside, started = list(run), [], []
    for result in run_beside:
        beside.append(result)
        started.append(len(children()))
    same(results, beside)
    np.testing.assert_array_equal(p.vector, q.vector)
    for name, accumulator in state.accumulators.items():
        np.testing.assert_array_equal(accumulator.vector, other.accumulators[name].vector)
    assert started == [1] * train.updates
    assert (children(), {result.lost for result in results + beside}) == ([], {""})


@pytest.mark.parametrize("wide", ["parameters", "past"])
def test_no_precision_is_lost_that_the_settings_do_not_tell_of(wide):
    """They say float32, and threads compute with what they are given."""
    found = []
    for parallel in ("threads", "processes"):
        train = replace(TRAIN, dtype="float32", parallel=parallel, updates=2)
        p = parameters.initialize(CONFIG, 1, "float64" if wide == "parameters" else "float32")
        past = np.random.default_rng(1).standard_normal((2, 5, 12, 16), "float64" if wide == "past" else "float32")
        found.append(list(training.run(p, optimizers.initialize(train, p), CONFIG, train, segments(train, ()), past)))
    same(*found)
    assert {result.loss.dtype for result in found[1][:1]} == {np.dtype("float64")}
    assert {result.lost for result in found[1]} == {""}


def test_what_one_part_computes_is_not_what_another_does():
    """That a row or an update of the wrong number would be seen: each draws other masks."""
    config = replace(CONFIG, embedding_dropout=0.4)
    given = replace(TRAIN, batch=2)
    first = SimpleNamespace(tokens=np.ones((2, 8), int), targets=np.ones((2, 8), int), restart=True)
    p = parameters.initialize(config, 1)
    losses = {(row, number): training.score(p, config, given, first.tokens, first.targets,
                                            model.initial_past(config, 2, p.vector), number, slice(row, row + 1)).loss
              for row in (0, 1) for number in (1, 2)}
    assert len(set(losses.values())) == 4


@pytest.mark.parametrize("when", [1, 3])
def test_if_a_process_is_lost_threads_go_on_with_the_same_update(when):
    p, _, run = begun(CONFIG, TRAIN, "threads")
    q, _, run_beside = begun(CONFIG, TRAIN, "processes")
    beside = []
    for result in run_beside:
        beside.append(result)
        if len(beside) == when:
            os.kill(*children(), signal.SIGKILL)
    same(list(run), beside)
    np.testing.assert_array_equal(p.vector, q.vector)
    lost = [result.lost for result in beside]
    assert lost[when] == "a worker process was ended by SIGKILL"
    assert lost.count("") == TRAIN.updates - 1
    assert children() == []


def test_a_process_that_can_not_start_is_done_without(monkeypatch, capfd):
    p, _, run = begun(CONFIG, TRAIN, "threads")
    expected = list(run)
    for program, told in (("raise SystemExit(3)", "a worker process ended with status 3"),
                          (None, "a worker process could not start, [Errno 2] No such file")):
        monkeypatch.setattr(workers, "PROGRAM", program or workers.PROGRAM)
        if program is None:
            monkeypatch.setattr(sys, "executable", "/no/such/python")
        q, _, run = begun(CONFIG, TRAIN, "processes")
        results = list(run)
        same(expected, results)
        np.testing.assert_array_equal(p.vector, q.vector)
        assert told in results[0].lost
        assert [result.lost for result in results[1:]] == [""] * (TRAIN.updates - 1)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("row", [0, 4])
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_what_is_not_finite_in_one_part_is_told_as_threads_tell_it(row, policy):
    """The first row is this process's, the last one the other's."""
    train, told = replace(TRAIN, on_nonfinite=policy), []
    for parallel in ("threads", "processes"):
        p, state, run = begun(CONFIG, train, parallel)
        found = [next(run), next(run)]
        found[-1].past[0, row, -1] = np.nan
        try:
            found += run
        except NonFiniteError as error:
            found.append(str(error))
        told.append((found, p.vector.copy(), state.skipped, found.pop() if policy == "stop" else found[2].skipped))
    (results, vector, skipped, reason), (others, other_vector, other_skipped, other_reason) = told
    same(results, others)
    np.testing.assert_array_equal(vector, other_vector)
    assert (skipped, reason) == (other_skipped, other_reason)
    assert (skipped, "first tensor that is not finite: " in reason) == (int(policy == "skip"), True)
    assert children() == []


@pytest.mark.parametrize("row", [0, 4])
def test_a_wrong_token_is_the_same_error_whoever_meets_it(row):
    given = list(segments(TRAIN))
    given[2].tokens[row, 3] = 16
    _, state, run = begun(CONFIG, TRAIN, "processes", iter(given))
    next(run), next(run)
    with pytest.raises(InputError, match="tokens: expected"):
        next(run)
    assert (state.updates, children()) == (2, [])


def test_a_run_that_is_left_leaves_no_process():
    _, _, run = begun(CONFIG, TRAIN, "processes")
    next(run)
    assert len(children()) == 1
    run.close()
    assert children() == []


def test_processes_outlive_signals_to_a_job_but_not_the_run(tmp_path):
    """Slurm sends SIGTERM to every process of a step; a run that is killed can tell nobody."""
    program = ("import sys, time; sys.path.insert(0, sys.argv[1]); import test_workers as t\n"
               "with t.limit_threads(2):\n"
               "    p, state, run = t.begun(t.CONFIG, t.TRAIN, 'processes')\n"
               "    next(run)\n"
               "    print(*t.children(), flush=True)\n"
               "    sys.stdin.readline()\n"
               "    print(repr(next(run).lost), flush=True)\n"
               "    time.sleep(60)\n")
    with subprocess.Popen([sys.executable, "-c", program, str(Path(__file__).parent)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, number)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "''\n"
        process.kill()
    status = Path(f"/proc/{child}/status")
    for _ in range(200):
        try:
            if "\nState:\tZ" in status.read_text():  # where nobody waits for orphans it stays so
                return
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} goes on")


@pytest.mark.parametrize(("size", "on_device", "expected"), [
    (1, False, "processes"), (2, False, "threads"), (1, True, "threads"), (2, True, "threads"),
])
def test_ranks_and_gpus_take_threads(monkeypatch, size, on_device, expected):
    """Before the first segment, of which there is none here."""
    asked, planned = [], training.plan
    monkeypatch.setattr(training, "plan", lambda config, train: asked.append(train.parallel) or planned(config, train))
    monkeypatch.setattr(training, "is_device", lambda array: on_device)
    _, _, run = begun(CONFIG, TRAIN, "processes", iter([]), SimpleNamespace(rank=0, size=size))
    with pytest.raises(RuntimeError, match="StopIteration"):
        next(run)
    assert (asked, children()) == ([expected], [])


def test_one_part_or_one_core_takes_threads():
    assert shared.plan(CONFIG, replace(TRAIN, parallel="processes", workers=1)).processes == 1
    with limit_threads(1):
        assert shared.plan(CONFIG, replace(TRAIN, parallel="processes")).processes == 1
    assert shared.plan(CONFIG, replace(TRAIN, parallel="processes")).processes == 2


def test_auto_takes_processes_for_long_runs_of_small_models_alone():
    tables = settings.preset("laptop")
    config, train = ModelConfig(vocabulary=256, **tables["model"]), TrainConfig(**tables["train"])
    assert shared.plan(config, train).processes == 2
    assert shared.plan(config, replace(train, parallel="threads")).processes == 1
    assert shared.plan(config, replace(train, updates=30, last_updates=0)).processes == 1
    many = replace(train, updates=10**6)
    for width, processes in ((512, 2), (2048, 1)):
        assert shared.plan(replace(config, width=width), many).processes == processes
    assert shared.plan(CONFIG, TRAIN).processes == 1


@given(batch=st.integers(2, 7), workers_=st.integers(2, 5), processes=st.integers(2, 3), layers=st.integers(1, 3),
       span=st.integers(1, 9), dtype=st.sampled_from(["float32", "float64"]))
def test_every_array_has_a_place_of_its_own(batch, workers_, processes, layers, span, dtype):
    """What is written through one view is read through it alone, by whoever lays the memory out."""
    config = replace(CONFIG, layers=layers, span=span)
    plan = shared.Plan(config, replace(TRAIN, batch=batch, workers=workers_, dtype=dtype), processes)
    memory = bytearray(plan.bytes())
    vector, parts = plan.lay_out(memory)
    arrays = {"vector": vector}
    for number, part in parts.items():
        arrays |= {(number, name): array for name, array in zip(part._fields[1:], part[1:], strict=True)
                   if name != "gradients"} | {(number, "gradients"): part.gradients.vector}
        assert part.past(span).shape == (layers, part.rows.stop - part.rows.start, span, config.width)
        assert part.tokens.shape == part.targets.shape == (part.rows.stop - part.rows.start, TRAIN.block)
        assert part.tokens.dtype == np.int64
    for number, array in enumerate(arrays.values()):
        array[...] = number
    for number, array in enumerate(arrays.values()):
        assert (array == number).all()
    assert {array.dtype for name, array in arrays.items() if name == "vector" or name[1] not in ("tokens", "targets")} == {
        np.dtype(dtype)}
    covered = sorted(number for process in range(processes) for number in plan.of(process))
    assert covered == list(range(len(plan.parts)))
    assert parts.keys() == {number for process in range(1, processes) for number in plan.of(process)}


def test_memory_of_processes_is_told_and_auto_does_without_where_there_is_none():
    tables = settings.preset("laptop")
    config, train = ModelConfig(vocabulary=256, **tables["model"]), TrainConfig(**tables["train"])
    threads = sum(accounting.bytes_by_purpose(config, replace(train, parallel="threads"), 1.0).values())
    memory = accounting.bytes_by_purpose(config, train, 1.0)
    assert memory["processes"] == shared.plan(config, train).bytes() + accounting.OF_A_PROCESS
    assert sum(memory.values()) == threads + memory["processes"]
    assert room.settled(config, train, None) == train
    assert room.settled(config, train, threads + memory["processes"]) == train
    assert room.settled(config, train, threads + memory["processes"] - 1) == replace(train, parallel="threads")
    assert room.shortage(config, train, 1.0, threads) == ""
    asked = replace(train, parallel="processes")
    assert room.settled(config, asked, 1) == asked
    assert "it fits with train.parallel=threads or " in room.shortage(config, asked, 1.0, threads)


def test_a_run_tells_of_a_lost_process_and_ends_as_if_nothing_had_happened(command, text, tiny, tmp_path, monkeypatch):
    arguments = ["train", "--data", text, *tiny, "--threads", "2", "--set", "train.workers=2"]
    assert command(*arguments, "--out", tmp_path / "threads").code == 0
    compute, calls = workers.Workers.compute, []

    def killing(self, *given):
        calls.append(children())
        if len(calls) == 3:
            os.kill(*calls[-1], signal.SIGKILL)
        return compute(self, *given)

    monkeypatch.setattr(workers.Workers, "compute", killing)
    end = command(*arguments, "--out", tmp_path / "processes", "--set", "train.parallel=processes")
    assert (end.code, len(calls)) == (0, 3)
    line = "update      3  a worker process was ended by SIGKILL: its part is computed on a thread from here on"
    assert line in end.err.splitlines()
    records = [json.loads(each) for each in (tmp_path / "processes/log.jsonl").read_text().splitlines()]
    assert [each for each in records if "lost" in each] == [
        {"update": 3, "lost": "a worker process was ended by SIGKILL"}]
    assert console.progress_text(records[[*map(set, records)].index({"update", "lost"})], "byte") == line
    for name in ("parameters", "optimizer", "past"):
        threads, processes = (max((tmp_path / run / "checkpoints").iterdir()) for run in ("threads", "processes"))
        assert (threads / f"{name}.safetensors").read_bytes() == (processes / f"{name}.safetensors").read_bytes()
