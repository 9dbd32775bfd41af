"""`refimpl bench`: what it measures and tells; no time is judged."""

import json
from itertools import count

import numpy as np
import pytest

from refimpl import bench, model, optimizers, parameters, settings, training
from refimpl.arrays import available_cores
from refimpl.config import ModelConfig, TrainConfig
from refimpl.workers import in_parts

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=1, span=8, memory=2, dropout=0.25)
TRAIN = TrainConfig(batch=3, block=4, workers=2)


@pytest.fixture
def one_second_each(monkeypatch):
    """A clock that moves by a second with every look at it."""
    ticks = count()
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(ticks)))
    monkeypatch.setattr(bench, "SIZE", 8)


def test_rates_are_amounts_by_seconds(one_second_each):
    result = bench.bench(CONFIG, TRAIN, 2)
    second = {"median": 1.0, "least": 1.0, "largest": 1.0}
    assert result["seconds"] == dict.fromkeys(("forward", "backward", "optimizer", "update", "token"), second)
    assert result["tokens_per_second"] == {"update": 12.0, "generation": 1.0}
    assert result["matrix_rate"] == available_cores() * bench.PRODUCTS * 2 * 8**3
    assert result["memory_rate"] == 3 * bench.MOVED
    assert result["parameters"] == parameters.total(CONFIG)


def test_the_first_turn_is_not_counted(monkeypatch, one_second_each):
    turns = iter([50.0, 1.0, 3.0, 8.0])
    monkeypatch.setattr(bench, "_addition", lambda place: next(turns))
    monkeypatch.setattr(bench, "_generation", lambda *_: iter([50.0, 1.0, 3.0, 8.0]).__next__)
    result = bench.bench(CONFIG, TRAIN, 3)
    assert result["seconds"]["token"] == {"median": 3.0, "least": 1.0, "largest": 8.0}
    assert result["memory_rate"] == 3 * bench.MOVED / 1.0  # the machine's best


def test_forward_and_backward_are_those_of_an_update():
    rng = np.random.default_rng(3)
    p = parameters.initialize(CONFIG, 0)
    tokens, targets = rng.integers(0, 11, (2, 3, 4))
    past = rng.standard_normal((1, 3, 8, 8))
    given = p, CONFIG, TRAIN, tokens, targets, past

    def score(rows):
        out = training.score(*given, 1, rows)
        return (rows.stop - rows.start) / 3, out.loss, model.backward(out.saved).vector

    parts = in_parts(score, 3, TRAIN.workers)
    assert len(parts) == 2
    state, before = optimizers.initialize(TRAIN, p), p.vector.copy()
    result = training.update(p, state, CONFIG, TRAIN, tokens, targets, past)
    assert result.loss == sum(share * loss for share, loss, _ in parts)
    gradient = sum(share * g for share, _, g in parts)
    assert result.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-14)
    assert not np.array_equal(p.vector, before)


@pytest.mark.parametrize(("rows", "workers", "expected"), [
    (5, 2, [(0, 2), (2, 5)]), (2, 4, [(0, 1), (1, 2)]), (4, 1, [(0, 4)]),
])
def test_parts_are_all_rows_in_order(rows, workers, expected):
    assert in_parts(lambda part: (part.start, part.stop), rows, workers) == expected


def test_the_command_tells_a_preset(command, tiny):
    end = command("bench", "--repeats", 1, *tiny, "--json")
    assert end.code == 0, end.err
    result = json.loads(end.out)
    assert (result["name"], result["dtype"], result["tokens_per_update"]) == ("laptop", "float32", 16)
    tables = settings.override(settings.preset("laptop"), tiny[1::2])
    config = settings.model_config({**tables["model"], "vocabulary": 256})
    assert result["parameters"] == parameters.total(config)
    assert min(row["least"] for row in result["seconds"].values()) > 0
    assert result["processor"]
    assert result["blas"] != "unknown"


def test_the_command_tells_people(command, tiny, tmp_path):
    (tmp_path / "mine.toml").write_text("[model]\nvocabulary = 5\nwidth = 8\nheads = 2\nlayers = 1\nspan = 8\nmemory = 2\n"
                                        "[train]\nbatch = 2\nblock = 4\n")
    end = command("bench", "--repeats", 1, "--config", tmp_path / "mine.toml", "--threads", 1)
    assert end.code == 0, end.err
    assert end.out.startswith("mine, ")
    for words in ("forward", "backward", "optimiser", "whole update", "8 tokens an update", "threads: 1", "GFLOP/s", "GB/s"):
        assert words in end.out


def test_a_preset_and_a_file_are_too_much(command, tmp_path):
    end = command("bench", "--preset", "laptop", "--config", tmp_path / "mine.toml")
    assert (end.code, end.out) == (2, "")
    assert "expected one of them, got both" in end.err
