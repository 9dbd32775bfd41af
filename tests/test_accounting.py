"""What a dry run tells: memory beside what a run takes, operations beside those that are done, and what does not fit."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import estimate
import numpy as np
import pytest

from refimpl import accounting, model, operations, parameters, ram, room, settings
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import sizes
from refimpl.errors import InputError
from refimpl.layers import windows

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, span=6, memory=3, span_ramp=2)
TRAIN = TrainConfig(batch=1, block=1, attention="textbook")
FORMS = {
    "all-attention": {}, "transformer": {"memory": 0, "feed_forward": 12, "attend_self": True}, "pre-norm": {"norm": "pre"},
    "attention-split": {"variant": "attention-split"}, "single-head": {"variant": "single-head"},
    "head-split": {"variant": "head-split"}, "no positions": {"positions": "none"},
    "ff-attention": {"variant": "ff-attention", "memory": 0, "feed_forward": 12},
}


@pytest.mark.parametrize("case", estimate.QUICK)
def test_the_estimate_is_within_15_per_cent_of_what_updates_allocate(case):
    """In a process of its own, by the allocations that Python and NumPy make."""
    with estimate.start(estimate.QUICK[case], 2, "default") as run:
        told, peak = run.answer("estimate"), run.answer("traced")
    total = sum(told.values()) - told["validation"] - told["checkpoint"]
    assert total == pytest.approx(peak, rel=0.15)
    assert total - told["saved"] < 0.85 * peak  # it would be seen if that were left out
    assert total - told["scratch"] < 0.85 * peak


class Counting(np.ndarray):
    """Counts the multiplications of matrix products that it is part of."""

    done = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(x) if isinstance(x, Counting) else x for x in inputs]
        if "out" in options:
            options["out"] = tuple(np.asarray(x) for x in options["out"])
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counting.done += np.asarray(result).size * np.shape(plain[0])[-1]
        return counting(result)

    def __array_function__(self, function, types, given, options):
        return counting(super().__array_function__(function, types, given, options))


def counting(made):
    """The same, as an array that counts, or a tuple of which the first is one."""
    if isinstance(made, tuple):
        return (counting(made[0]), *made[1:])
    return made.view(Counting) if isinstance(made, np.ndarray) else made


@pytest.mark.parametrize("form", FORMS)
def test_operations_are_those_that_a_model_of_one_token_does(form, monkeypatch):
    """A block of one token beside a full past: no query sees fewer positions, and nothing is computed beside the band."""
    for name in ("_window", "_spread", "_unwindow"):  # which make new arrays
        made = getattr(windows, name)
        monkeypatch.setattr(windows, name, lambda *given, made=made: counting(made(*given)))
    config = replace(CONFIG, **FORMS[form])
    p = parameters.initialize(config, dtype="float64")
    p = p.with_vector(p.vector.view(Counting))
    past = np.ones((config.layers, 1, config.span, config.width)).view(Counting)
    tokens = np.ones((1, 1), int)
    told = operations.per_token(config, TRAIN, config.span)
    Counting.done = 0
    out = model.forward(p, config, tokens, tokens, past)
    forward, Counting.done = Counting.done, 0
    model.backward(out.saved)
    assert 2 * forward == told["forward"]
    # of the present position alone that the band leaves out
    assert 2 * Counting.done == pytest.approx(told["backward"], rel=0.02)


def test_tiles_do_scores_once_more_in_backward_and_follow_the_span():
    config, tiled = replace(CONFIG, span=100), replace(TRAIN, attention="tiled", block=50)
    textbook = replace(tiled, attention="textbook")
    by_tiles, by_book = (operations.per_token(config, each, 100) for each in (tiled, textbook))
    scores = config.layers * config.width * (2 * 100 + config.memory)
    assert by_tiles["backward"] - by_book["backward"] == 2 * scores
    assert by_tiles["forward"] == by_book["forward"]
    short = operations.per_token(config, tiled, 10)
    # keys and values of 90 positions for 50 queries; two scores and a mix of 90 for each
    assert by_tiles["forward"] - short["forward"] == round(2 * config.layers * (2 * 64 * 90 / 50 + 3 * 8 * 90))
    assert [operations.window(replace(config, span_ramp=32), share) for share in (0, 0.5, 1)] == [33, 83, 100]
    assert operations.window(replace(config, span_ramp=32, normalizer_epsilon=1e-8), 0) == 36
    assert operations.window(replace(config, adaptive_span=False), 0) == 100


def test_an_update_costs_each_parameter_its_steps():
    of = operations.per_token(CONFIG, replace(TRAIN, optimizer="adagrad", clip=0.0), 6)
    assert of["update"] == operations.STEPS["adagrad"] * parameters.total(CONFIG)


@pytest.mark.parametrize("name", settings.preset_names())
def test_every_preset_is_told_without_allocating_it(name):
    tables = settings.preset(name)
    told = accounting.describe(settings.model_config({"vocabulary": 256, **tables["model"]}), TrainConfig(**tables["train"]))
    for key in ("memory", "memory_at_first"):
        purposes = told[key]["by_purpose"]
        assert {"parameters", "gradients", "optimizer", "past", "saved", "scratch"} <= purposes.keys()
        assert sum(purposes.values()) == told[key]["total"]
    for when in ("full_span", "span_initial"):
        forward, backward, _ = told["operations_per_token"][when].values()
        assert 0 < 1.5 * forward < backward < 3 * forward
    assert told["memory_at_first"]["total"] <= told["memory"]["total"]


def enwik8():
    tables = settings.preset("enwik8")
    return settings.model_config(tables["model"]), TrainConfig(**{**tables["train"], "workers": 2, "parallel": "threads"})


def test_what_does_not_fit_is_told_with_settings_that_do():
    config, train = enwik8()
    available = 24_000_000_000
    told = room.shortage(config, train, 0.0, available)
    assert told.startswith("expected 24.0 GB of memory to be enough, got an estimate of ")
    found = dict(each.split("=") for each in room.suggestions(config, train, 0.0, available))
    assert found.keys() <= {"train.batch", "train.block", "model.span", "train.workers"}
    for name, value in found.items():
        assert f"{name}={value}" in told
        table, key = name.split(".")
        changed = [replace(each, **{key: int(value)}) if where == table else each
                   for where, each in (("model", config), ("train", train))]
        assert not room.shortage(*changed, 0.0, available)
    more = replace(train, batch=int(found["train.batch"]) + 1)
    assert room.shortage(config, more, 0.0, available)
    with pytest.raises(InputError, match=r"this run: expected 24\.0 GB of memory"):
        room.check(config, train, 0.0, available)


def test_ranks_share_a_machine_and_have_a_gpu_each():
    """Four ranks, two of them here: each has all parameters, a quarter of the rows, and what gradients arrive in."""
    config, train = enwik8()
    train = replace(train, batch=22)
    rows = replace(train, batch=6, parallel="threads")
    ranks = SimpleNamespace(size=4, here=2)
    _, count = room.of("cpu", ranks)
    own = accounting.bytes_by_purpose(config, rows, 0.5)
    own["sums"] = own["parameters"]
    assert count(config, train, 0.5) == {purpose: 2 * size for purpose, size in own.items()}
    own = sizes.bytes_by_purpose(config, rows, 0.5)
    assert room.of_ranks(sizes.bytes_by_purpose, 4, 1, config, train, 0.5) == {**own, "sums": own["parameters"]}
    assert room.of("cpu")[1](config, train, 0.5) == accounting.bytes_by_purpose(config, train, 0.5)


def test_what_fits_or_nobody_knows_is_no_shortage():
    config, train = enwik8()
    assert room.shortage(config, train, 1.0, None) == ""
    assert room.shortage(config, train, 1.0, 10**12) == ""
    assert "alone makes it fit" in room.shortage(config, train, 0.0, 10_000_000)


@pytest.fixture
def machine(tmp_path):
    """machine({path: content}): a root with proc and sys."""

    def make(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


MEMINFO = {"proc/meminfo": "MemTotal:  9000 kB\nMemAvailable:  5000 kB\n"}
GROUP = "sys/fs/cgroup/a/b/"


@pytest.mark.parametrize(("files", "expected"), [
    ({}, None),
    (MEMINFO, 5_120_000),
    ({**MEMINFO, "proc/self/cgroup": "0::/a/b\n", f"{GROUP}memory.max": "max", f"{GROUP}memory.current": "7"}, 5_120_000),
    ({**MEMINFO, "proc/self/cgroup": "0::/a/b\n", f"{GROUP}memory.max": "1000000",
      f"{GROUP}memory.current": "400000", f"{GROUP}memory.stat": "anon 1\ninactive_file 50000\n"}, 650_000),
    ({**MEMINFO, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "10",
      "sys/fs/cgroup/a/memory.current": "40"}, 0),
    ({**MEMINFO, "proc/self/cgroup": "4:memory:/c\n", "sys/fs/cgroup/memory/c/memory.limit_in_bytes": "3000000",
      "sys/fs/cgroup/memory/c/memory.usage_in_bytes": "1000000",
      "sys/fs/cgroup/memory/c/memory.stat": "inactive_file 1\ntotal_inactive_file 5\n"}, 2_000_005),
    ({**MEMINFO, "proc/self/cgroup": "4:cpu:/c\n", "sys/fs/cgroup/memory/c/memory.limit_in_bytes": "3",
      "sys/fs/cgroup/memory/c/memory.usage_in_bytes": "1"}, 5_120_000),
])
def test_available_memory_is_the_least_of_machine_and_groups(machine, files, expected):
    assert ram.available(machine(files)) == expected


def test_this_machine_has_memory_left():
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 1_000_000 < ram.available() <= total
    assert ram.available(Path("/")) is not None


def test_a_run_that_cannot_fit_is_refused_before_it_starts(command, text, tiny, tmp_path):
    out = tmp_path / "big"
    given = ["train", "--data", text, "--out", out, *tiny, "--set", "model.zero_past=true"]
    end = command(*given, "--set", "model.span=100000000000")
    assert (end.code, end.out, end.err.count("\n")) == (2, "", 1)
    assert "of memory to be enough, got an estimate of" in end.err
    assert "it fits with model.span=" in end.err
    assert not out.exists()
    end = command(*given, "--set", "model.span=100000000000", "--dry-run")
    assert end.code == 0
    assert "spans at first: expected" in end.out


def test_a_resumed_run_is_held_to_the_memory_too(command, trained, monkeypatch):
    monkeypatch.setattr(ram, "available", lambda: 1000)
    end = command("train", "--resume", "--out", trained, "--set", "train.updates=9")
    assert (end.code, "expected 0.0 MB of memory to be enough" in end.err) == (2, True)


def test_a_run_whose_spans_may_outgrow_the_memory_is_told_so(command, text, tiny, tmp_path, monkeypatch):
    arguments = ["train", "--data", text, "--out", tmp_path / "a", *tiny, "--set", "train.attention=tiled",
                 "--set", "model.span=200000"]
    config = ModelConfig(vocabulary=256, width=8, heads=2, layers=1, span=200_000, memory=2, span_ramp=4)
    train = TrainConfig(batch=2, block=8, workers=1, attention="tiled")
    low, high = (sum(accounting.bytes_by_purpose(config, train, share).values()) for share in (0.3, 1.0))
    monkeypatch.setattr(ram, "available", lambda: (low + high) // 2)
    end = command(*arguments)
    assert end.code == 0, end.err
    assert "should every span grow to its end: expected" in end.err
