"""The commands with `--device gpu`, on the stand-in device."""

import json

import numpy as np
import pytest
from stand_in import cupy

from refimpl import checkpoint, exits


def close(command, *arguments):
    """JSON of a command on the device and on the host."""
    found = []
    for device in ("gpu", "cpu"):
        end = command(*arguments, "--device", device, "--json")
        assert end.code == 0, end.err
        found.append(json.loads(end.out))
    return found


@pytest.fixture
def run_there(tmp_path, text, tiny, command):
    """The folder of a run of six updates on the device."""
    end = command("train", "--data", text, "--out", tmp_path / "there", *tiny, "--device", "gpu:0")
    assert end.code == 0, end.err
    return tmp_path / "there"


def test_a_run_is_the_hosts_and_goes_on_anywhere(run_there, trained, command):
    here, there = checkpoint.load(trained), checkpoint.load(run_there)
    assert there.progress["computing"]["device"] == "gpu:0"
    np.testing.assert_allclose(there.parameters.vector, here.parameters.vector, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(there.past, here.past, rtol=1e-4, atol=1e-5)
    for kind, accumulated in here.optimizer.accumulators.items():
        np.testing.assert_allclose(there.optimizer.accumulators[kind].vector, accumulated.vector, rtol=1e-3, atol=1e-6)
    for folder, device in ((run_there, "cpu"), (trained, "gpu")):
        end = command("train", "--out", folder, "--resume", "--device", device, "--set", "train.updates=8")
        assert end.code == 0, end.err
        assert "device" in end.err
        assert checkpoint.load(folder).optimizer.updates == 8
    here, there = checkpoint.load(trained), checkpoint.load(run_there)
    np.testing.assert_allclose(there.parameters.vector, here.parameters.vector, rtol=1e-4, atol=1e-5)


def test_scores_and_passages_are_the_hosts(trained, command):
    there, here = close(command, "eval", trained)
    assert there["loss"] == pytest.approx(here["loss"], rel=1e-5)
    there, here = close(command, "generate", trained, "--length", 20, "--prompt", "the ", "--prompt", "cat", "--seed", 3)
    assert there["passages"] == here["passages"]


def test_gradients_golden_vectors_and_times(command, tiny):
    end = command("gradcheck", "layer-norm", "--device", "gpu", "--json")
    assert json.loads(end.out)["exit_code"] == end.code == 0
    assert command("gradcheck", "all-attention", "--device", "gpu", "--directions", 2).code == 0
    end = command("gradcheck", "layer-norm", "--device", "gpu", "--dtype", "longdouble")
    assert (end.code, "float64 or float32" in end.err) == (2, True)
    assert command("golden", "verify", "--group", "embedding", "--device", "gpu").code == 0
    end = command("golden", "verify", "--device", "gpu", "--adapter", "a:b")
    assert (end.code, "with refimpl itself" in end.err) == (2, True)
    end = command("bench", *tiny, "--repeats", 1, "--device", "gpu", "--json")
    assert end.code == 0, end.err
    assert min(row["least"] for row in json.loads(end.out)["seconds"].values()) > 0


def test_what_is_usable_is_told(command):
    end = command("info", "--json")
    assert json.loads(end.out)["gpu"].startswith("usable: gpu:0 ")
    assert "CuPy 14" in json.loads(end.out)["gpu"]


def test_a_loss_that_is_not_finite_ends_the_run_at_its_last_good_state(tmp_path, text, tiny, command):
    out = tmp_path / "wild"
    end = command("train", "--data", text, "--out", out, *tiny, "--device", "gpu", "--set", "train.learning_rate=1e30",
                  "--set", "train.checkpoint_every=1", "--set", "train.log_every=100")
    assert end.code == exits.PROBLEM
    assert "not finite" in end.err or "loss nan" in end.err
    assert len(end.err.strip().splitlines()[-1]) < 400


def test_memory_that_is_full_is_told_with_what_to_reduce(tmp_path, text, tiny, command, monkeypatch):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--device", "gpu", "--set", "train.updates=3")
    assert end.code == 0, end.err
    before = checkpoint.load(tmp_path / "run")
    monkeypatch.setattr("refimpl.model.loss_and_gradients", lambda *_, **__: cupy.empty(1 << 40))
    end = command("train", "--out", tmp_path / "run", "--resume", "--device", "gpu", "--set", "train.updates=9")
    assert end.code == exits.USAGE
    assert "the GPU's memory is full: Out of memory" in end.err
    assert "reduce train.batch" in end.err
    after = checkpoint.load(tmp_path / "run")
    assert after.optimizer.updates == before.optimizer.updates == 3
    np.testing.assert_array_equal(after.parameters.vector, before.parameters.vector)
