"""The benchmarks run, at small sizes, and refuse a peer that computes something else; no time is judged."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import ablations
import attention
import measure
import numpy as np
import profile_update
import pytest
import scaling
import update
from allocations import sizes_allocated
from contender import Contender

FOLDER = Path(measure.__file__).parent


def run(folder, script, *options):
    """How a script ends, started as its docstring says."""
    line = [sys.executable, str(folder / script), "--quick", "--blas-kernels", "default", *options]
    return subprocess.run(line, capture_output=True, text=True)


SCRIPTS = [
    ("update.py", ["--case", "spans full", "--peer", "torch eager", "--peer", "jax.jit"], 1,
     {"refimpl", "torch eager", "jax.jit"}),
    ("attention.py", ["--peer", "torch eager", "--peer", "jax.jit", "--peer", "textbook"], 1,
     {"refimpl", "torch eager", "jax.jit", "textbook"}),
    ("adaptive_softmax.py", [], 2, {"refimpl", "refimpl's textbook", "AdaptiveLogSoftmaxWithLoss"}),
    ("generate.py", ["--tokens", "2"], 1, {"refimpl", "torch eager"}),
    ("optimizer.py", [], 3, {"refimpl", "torch", "torch, fused"}),
]


@pytest.mark.parametrize(("script", "options", "rows", "names"), SCRIPTS)
def test_it_compares_then_times_in_turn(tmp_path, script, options, rows, names):
    end = run(FOLDER, script, "--repeats", "1", *options, "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {"processor", "cores", "threads", "numpy", "blas", "load"} <= figures["made"].keys()
    assert len(figures["rows"]) == rows
    row = figures["rows"][0]
    assert set(row["times"]) == set(row["contenders"]) == names
    assert set(row["largest_errors"]) == names - {"refimpl"}
    for name, times in row["times"].items():
        assert len(times["seconds"]) == 1
        assert times["ratio"] == times["ratio_of_least"] == times["median"] / row["times"]["refimpl"]["median"]
        assert f" {name} " in end.stdout


def test_attention_tells_the_share_of_the_matrix_rate_or_peaks(tmp_path):
    settings = attention.SMALL["quick"]
    assert attention.operations(settings) == 2 * 2 * 8 * 4 * (11 * (5 + 32 + 64) + 7 * 2 * 3)
    row = {"settings": settings, "matrix_rate": attention.operations(settings), "times": {"refimpl": {"median": 4.0}}}
    assert attention.shares(row) == {"refimpl": 0.25}
    end = run(FOLDER, "attention.py", "--memory", "--peer", "textbook", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["rows"][0]["memory"].keys() == {"refimpl", "textbook"}


def test_ranks_take_turns_and_agree(tmp_path):
    end = run(FOLDER, "ranks.py", "--repeats", "1", "--updates", "2", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert set(row["times"]) == {"1 rank of 1 thread", "2 ranks of 1 thread", "1 rank of 2 threads",
                                 "1 rank of 2 processes"}
    for times in row["times"].values():
        assert times["speed_up"] == 1 / times["ratio"]
        assert 0 <= times["exchange"] < 1
    assert row["times"]["2 ranks of 1 thread"]["exchange"] > 0 == row["times"]["1 rank of 1 thread"]["exchange"]


def test_memory_is_told(tmp_path):
    end = run(FOLDER, "memory.py", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    *peaks, growth = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["case"] for row in peaks] == ["spans at 0", "spans full"]
    for row in peaks:
        assert set(row["memory"]) == {"refimpl", "torch eager"}
        assert all(told["peak"] >= told["before"] > 0 for told in row["memory"].values())
        assert row["large_allocations"] == {"count": 0, "bytes": 0}  # the small model has no array of 1 MB
    assert growth["growth"]["live"] < 20_000  # fewer than 100 bytes for each of 200 updates


def test_preparing_texts_is_measured(tmp_path):
    """At a thousandth of the published sizes: every case, its limits, and texts that are what they should be like."""
    end = run(FOLDER, "prepare.py", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["vocabulary"] for row in rows] == [256, 205, 28, 268]
    assert [row["bytes"] for row in rows[:3]] == [100_000] * 3
    assert 102_000 < rows[3]["tokens"] < 106_000
    for row in rows:
        assert 0 < row["prepare"]["peak"] < row["limits"]["bytes"]
        assert row["prepare"]["computing"] > 0
        assert f"{row['case']} " in end.stdout


def test_both_paths_of_small_models_are_timed(tmp_path):
    end = run(FOLDER, "small_models.py", "--repeats", "1", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert list(row["times"]) == ["textbook", "tiled", "tiled, on threads", "torch eager"]
    assert all(error < 1e-3 for error in row["largest_errors"].values())


def test_the_peers_are_given_the_positions_that_a_head_needs():
    """z + R = 64 is the ramp's end, whose weight is 0 but not its slope: 65 positions, in whole multiples of 64."""
    config = update.ModelConfig(vocabulary=7, width=8, heads=2, layers=2, span=256, memory=3)
    p = {f"layers.{layer}.attention.span": np.array(spans) for layer, spans in enumerate([[0.0, 0.125], [0.124, 1.0]])}
    assert update.sizes_of(config, p) == (128, 256)


def test_the_ablation_trains_each_variant_once_and_tells_of_it(tmp_path):
    """A second call repeats nothing; a run that was stopped goes on; the page keeps what stands around the table."""
    page, runs = tmp_path / "page.md", tmp_path / "runs"
    page.write_text("before <!-- table --> old <!-- end of table --> after")
    line = [sys.executable, str(FOLDER / "ablations.py"), "--quick", "--out", str(runs), "--page", str(page),
            "--variant", "head-split", "--variant", "transformer"]
    end = subprocess.run(line, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    first = page.read_text()
    assert first.startswith("before <!-- table -->\n|")
    assert first.endswith("<!-- end of table --> after")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in end.stdout.splitlines()[2:]]
    assert {row[0] for row in rows} == set(ablations.SIZES)
    means = [float(row[2]) for row in rows if row[2] != "–"]
    assert means == sorted(means)
    assert len(means) == 2
    assert {row[0]: int(row[1].replace(",", "")) for row in rows} == ablations.budgets()
    (runs / "transformer-0" / ablations.EVALUATION).unlink()
    shutil.rmtree(runs / "head-split-0" / "checkpoints")
    (runs / "head-split-0" / ablations.EVALUATION).unlink()
    end = subprocess.run(line, capture_output=True, text=True)
    assert (end.returncode, page.read_text()) == (0, first)
    assert end.stderr.count("validation") == 1  # head-split's: the transformer had only its evaluation to do


def test_the_ablation_refuses_unequal_budgets_and_protocols(monkeypatch):
    same = {"text_sha256": "a", "split": "valid", "protocol": "every-token", "streams": 8, "block": 64, "tokens": 9,
            "updates": 2, "bits_per_byte": 2.0}
    counts = dict.fromkeys(ablations.SIZES, 1000)
    told = ablations.table({"transformer": [same, {**same, "bits_per_byte": 3.0}], "single-head": []}, counts)
    assert "| transformer | 1,000 | 2.5000 | 0.7071 | 2.0000 3.0000 |" in told  # s = √((½² + ½²) / 1)
    with pytest.raises(SystemExit, match="under one protocol"):
        ablations.table({"transformer": [same, {**same, "block": 8}]}, counts)
    monkeypatch.setitem(ablations.SIZES, "transformer", (0, 264))
    with pytest.raises(SystemExit, match="within 1% of each other"):
        ablations.budgets()


def test_parts_of_an_update_are_told(tmp_path):
    end = run(FOLDER, "profile_update.py", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["case"] for row in rows] == ["spans at 0", "spans full"]
    for row in rows:
        assert all(seconds > 0 for seconds in row["parts"].values())
        assert sum(row["parts"].values()) < 2.1 * row["seconds"]  # no time of two threads is counted twice
        assert set(row["rates"]) == {"large products", "products of a tile", "exp", "copying"}


def test_a_parts_own_time_is_without_that_of_others(monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(profile_update.time, "thread_time", lambda: next(now))
    clock = profile_update.Clock()
    inner = clock.timed("inner", lambda: None)
    clock.timed("outer", lambda: (inner(), inner()))()
    assert clock.seconds == {"inner": 2, "outer": 3}  # of 0 … 5 the outer one's are 0-1, 2-3 and 4-5


def test_operations_by_hand():
    """B T = 6 queries, E = 4, N = 3, two heads of 3 and 5 positions; D = 8, V = 7, a past of 5 for each of 2 texts."""
    config = update.ModelConfig(vocabulary=7, width=8, heads=2, layers=1, span=9, memory=3)
    train = update.TrainConfig(batch=2, block=3)
    assert profile_update.operations(config, train, [[3, 5]]) == {
        "attention, forward": 2 * 6 * 4 * (3 * 8 + 2 * 6), "attention, backward": 2 * 6 * 4 * (8 * 8 + 5 * 6),
        "projections": 2 * 8 * 8 * (2 * (6 + 6 + 16 + 16) + 4 * 6) + 3 * 2 * 6 * 8 * 7,
    }


def test_exponents_are_told(tmp_path):
    end = run(FOLDER, "scaling.py", "--repeats", "2", "--json", str(tmp_path / "figures.json"))
    assert end.returncode == 0, end.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["varied"] for row in rows] == ["update, text", "update, T", "update, span", "update, N", "token, text",
                                               "token, span", "token, N"]
    assert all(set(row["exponents"]) == {"of_time", "of_growth"} for row in rows)


@pytest.mark.parametrize(("file", "old", "new", "script", "options", "told"), [
    ("attention_torch.py", "width**-0.5", "width**-1", "update.py", ["--peer", "torch eager"], "torch eager: expected loss"),
    ("attention_torch.py", "width**-0.5", "width**-1", "attention.py", ["--peer", "torch eager"], "torch eager: expected y"),
    ("update_torch.py", "norm > self._train.clip else 1", "norm < 0 else 1", "update.py", ["--peer", "torch eager"],
     "torch eager: expected updated"),
    ("update_torch.py", "h.detach()", "0 * h.detach()", "update.py", ["--peer", "torch eager"], "expected past"),
    ("attention_jax.py", "jnp.where(x < 0, 0, ", "jnp.where(x <= 0, 0, ", "update.py", ["--peer", "jax.jit"],
     "jax.jit: expected gradient of layers.0.attention.span"),
    ("generate_torch.py", "weights.sum(-1, keepdim=True)", "(weights.sum(-1, keepdim=True) + 1e-4)", "generate.py",
     ["--tokens", "1"], "torch eager: expected log p"),
    ("adaptive_softmax_torch.py", "shortlist + i - 1", "shortlist + i % 3", "adaptive_softmax.py", [],
     "the same function in torch: expected loss"),
])
def test_a_peer_that_computes_something_else_is_refused(tmp_path, file, old, new, script, options, told):
    shutil.copytree(FOLDER, tmp_path / "with_an_error", ignore=shutil.ignore_patterns("__pycache__"))
    path = tmp_path / "with_an_error" / file
    assert path.read_text(encoding="utf-8").count(old) == 1
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    case = ["--case", "spans at 0"] if script == "update.py" else []
    end = run(path.parent, script, "--repeats", "1", *options, *case)
    assert end.returncode == 1
    assert told in end.stderr
    assert "nothing was timed" in end.stderr


class Stub:
    """A contender that answers from lists."""

    def __init__(self, name, results=None, seconds=()):
        self.name, self.results, self._turns = name, lambda: results, iter(seconds)

    def seconds(self):
        return next(self._turns)


@pytest.mark.parametrize(("theirs", "agree"), [
    ([3.0, 4.0], True), ([3.0, 4.0 + 4e-5], True), ([3.0, 4.0 + 6e-5], False), ([3.0, np.nan], False), ([3.0], False),
])
def test_agreement_is_relative_to_the_norm(theirs, agree):
    contenders = [Stub("ours", {"y": np.array([3.0, 4.0])}), Stub("theirs", {"y": np.array(theirs)})]
    if agree:
        assert measure.check_agreement(contenders, 1e-5)["theirs"] == pytest.approx(abs(theirs[1] - 4) / 5)
    else:
        with pytest.raises(SystemExit, match="theirs: expected y within 1e-05 of ours"):
            measure.check_agreement(contenders, 1e-5)


def test_a_result_that_is_missing_is_no_agreement():
    with pytest.raises(SystemExit, match="theirs: expected results"):
        measure.check_agreement([Stub("ours", {"y": np.ones(1), "dx": np.ones(1)}), Stub("theirs", {"y": np.ones(1)})], 1)


def test_they_take_turns_and_the_first_warms_up(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0)
    times = measure.take_turns([Stub("a", seconds=[9, 1, 4, 2]), Stub("b", seconds=[9, 4, 4, 6])], 3)
    assert times == {"a": [1, 4, 2], "b": [4, 4, 6]}
    summary = measure.summarize(times)
    assert summary["b"] == {"seconds": [4, 4, 6], "median": 4, "least": 4, "largest": 6, "ratio_of_least": 4.0, "ratio": 3.0}
    assert summary["a"]["ratio"] == 1


def test_a_contender_that_ends_is_told():
    with pytest.raises(SystemExit, match="mine: its process ended with 1"):
        Contender("mine", "generate:Nothing", {}, 1, {})


def test_a_contender_keeps_to_its_threads():
    settings = {"vocabulary": 12, "cutoffs": [3, 5], "divisor": 2, "width": 8, "tokens": 6, "plain": False}
    with Contender("mine", "adaptive_softmax:Ours", settings, 1, {}) as mine:
        assert mine.about["threads"] == mine.about["blas_threads"] == 1
        assert mine.seconds() > 0
        assert mine.results()["loss"].shape == (6,)
        assert mine.memory()["page_faults"] >= 0


@pytest.mark.parametrize(("cost", "expected"), [
    (lambda x: 5 + 2 * x, 1), (lambda x: 5 + x**2, 2), (lambda x: 5 + 0 * x, None),
])
def test_the_exponent_of_the_growth_leaves_the_constant_out(cost, expected):
    sizes = [0.0, 1.0, 2.0, 3.0, 4.0]
    times = [[cost(x) - 0.01, cost(x), cost(x) + 0.01] for x in sizes]
    found = scaling.exponents(sizes, times)["of_growth"]
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_the_exponent_of_the_time_is_the_slope_of_logarithms():
    assert scaling.exponents([1, 2, 4], [[3.0], [6.0], [12.0]])["of_time"] == pytest.approx(1, abs=1e-12)
    assert scaling.exponents([1, 2, 4], [[3.0], [3.0], [3.0]])["of_time"] == pytest.approx(0, abs=1e-12)


def test_every_allocation_of_an_array_is_counted_in_all_threads():
    before = np.ones(1000)
    with sizes_allocated() as sizes:
        first, second = np.empty(1_000_003, "int8"), np.zeros(2_000_003, "int8")
        worker = threading.Thread(target=lambda: np.empty(3_000_017, "int8"))
        worker.start()
        worker.join()
        first.resize(4_000_037, refcheck=False)
        np.add(before, 1, out=before)
    np.empty(5_000_011, "int8")
    assert [size for size in sizes if size > 1_000_000] == [1_000_003, 2_000_003, 3_000_017, 4_000_037]
    assert second.sum() == 0
