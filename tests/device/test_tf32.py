"""`--tf32`: every float32 product is asked of cuBLAS in TF32 where it is on, and none where it is off."""

import json
import subprocess
import sys
from dataclasses import replace

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import BUILD, cupy

from refimpl import checkpoint, model, optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import graphs, opening, products
from refimpl.errors import InputError

CONFIG = ModelConfig(vocabulary=9, width=8, heads=2, layers=2, span=12, memory=3, span_ramp=4)
TRAIN = TrainConfig(batch=2, block=7, updates=9)
FORMS = {
    "all-attention": CONFIG, "pre-norm": replace(CONFIG, norm="pre"),
    "transformer-xl": replace(CONFIG, positions="transformer-xl"),
    "feed-forward": replace(CONFIG, memory=0, feed_forward=9, attend_self=True),
    "ff-attention": replace(CONFIG, memory=0, feed_forward=9, attend_self=True, variant="ff-attention"),
}


@pytest.fixture(autouse=True)
def _off_again():
    yield
    products.set_tf32(False)


def updated(config, graph=False, updates=2, dtype="float32"):
    """Parameters after some updates, and what was counted: products in TF32, and all that can be."""
    p = parameters.initialize(config, 1, dtype)
    p = p.with_vector(cupy.asarray(p.vector))
    state = optimizers.initialize(TRAIN, p)
    state.graph = graphs.Graph() if graph else None
    past, rng = model.initial_past(config, 2, p.vector, zeros=True), np.random.default_rng(1)
    cuda_on_cpu.reset_counters()
    for _ in range(updates):
        tokens, targets = map(cupy.asarray, rng.integers(0, 9, (2, 2, 7)))
        past = training.update(p, state, config, TRAIN, tokens, targets, past).past
    counted = cuda_on_cpu.counters()
    return p.vector.get(), counted["tf32_gemms"], counted["gemms"]


@pytest.mark.parametrize("form", FORMS)
def test_all_products_of_an_update_are_asked_for_in_tf32_or_none(form):
    found = {}
    for on in (True, False):
        products.set_tf32(on)
        found[on], rounded, all_of_them = updated(FORMS[form])
        assert all_of_them > 20
        assert rounded == (all_of_them if on else 0)
    assert (found[True] != found[False]).any()
    np.testing.assert_allclose(found[True], found[False], atol=2 * 2 * TRAIN.learning_rate)


def test_float64_is_left_as_it_is():
    products.set_tf32(True)
    assert updated(CONFIG, dtype="float64")[1] == 0
    opening.placed_in_tf32(np.zeros(2, "float32"))
    with pytest.raises(InputError, match=r"^--tf32: expected float32 .* got float64"):
        opening.placed_in_tf32(np.zeros(2))


def test_a_graph_keeps_it():
    products.set_tf32(True)
    expected, each, _ = updated(CONFIG, updates=6)
    found, rounded, _ = updated(CONFIG, graph=True, updates=6)
    np.testing.assert_array_equal(found, expected)
    assert rounded == each


def test_the_numbers_are_those_that_cupy_means():
    from cupy._core._routines_linalg import compute_type_to_str

    assert compute_type_to_str(products.TF32_TYPE) == "COMPUTE_TYPE_TF32"
    assert compute_type_to_str(products.DEFAULT_TYPE) == "COMPUTE_TYPE_DEFAULT"


ENVIRONMENT = """
import cuda_on_cpu
cuda_on_cpu.activate({build!r})
import numpy as np
from refimpl.device.opening import opened
place = opened("gpu")
cuda_on_cpu.reset_counters()
ones = place(np.ones((3, 3), "float32"))
ones @ ones
print(cuda_on_cpu.counters()["tf32_gemms"], cuda_on_cpu.counters()["gemms"])
"""


def test_off_is_off_whatever_the_environment_tells_cupy():
    code = ENVIRONMENT.format(build=str(BUILD))
    end = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=cuda_on_cpu.asan_environment(BUILD) | {"LD_PRELOAD": "", "CUPY_TF32": "1", "PYTHONPATH": str(
                             BUILD.parents[1] / "tests" / "cuda_on_cpu")})
    assert end.stdout == "0 1\n"


def test_where_it_means_nothing_it_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"^--tf32: expected a GPU with it"):
        opening.opened("cpu", tf32=True)
    monkeypatch.setattr(opening, "has_tf32", lambda *_: False)
    with pytest.raises(InputError, match=r"^--tf32: expected a GPU of compute capability 8.0 or more, got .* 8.0$"):
        opening.opened("gpu", tf32=True)


def test_a_run_records_it_and_one_that_goes_on_without_says_so(tmp_path, text, tiny, command):
    run, on = tmp_path / "run", ("--device", "gpu", "--tf32", "--cuda-graph")
    end = command("train", "--data", text, "--out", run, *tiny, *on)
    assert end.code == 0, end.err
    assert checkpoint.load(run).progress["computing"]["tf32"] is True
    assert json.loads((run / "log.jsonl").read_text().splitlines()[0])["tf32"] is True
    end = command("train", "--out", run, "--resume", *on, "--set", "train.updates=7")
    assert (end.code, "same bits" in end.err) == (0, False), end.err
    end = command("train", "--out", run, "--resume", "--device", "gpu", "--set", "train.updates=8")
    assert (end.code, "device gpu in TF32 before, gpu now" in end.err) == (0, True), end.err
    assert "tf32" not in checkpoint.load(run).progress["computing"]


@pytest.mark.parametrize(("arguments", "message"), [
    (("--tf32",), "--tf32: expected a GPU with it"), (("--cuda-graph",), "--cuda-graph: expected a GPU with it"),
    (("--device", "gpu", "--tf32", "--set", "train.dtype=float64"), "--tf32: expected train.dtype float32, got float64"),
    (("--device", "gpu", "--cuda-graph", "--set", "train.attention=textbook"), "expected train.attention auto or tiled"),
])
def test_what_a_command_refuses_before_it_begins(tmp_path, text, tiny, command, arguments, message):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, *arguments)
    assert (end.code, message in end.err, end.err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "run").exists()
    assert command("bench", *tiny, *arguments).code == 2


def test_bench_and_info_tell_it(tiny, command):
    end = command("bench", *tiny, "--repeats", 1, "--device", "gpu", "--tf32", "--cuda-graph")
    assert (end.code, "; TF32; updates from a CUDA graph" in end.out) == (0, True), end.err
    assert "capability 8.0, TF32" in command("info").out
