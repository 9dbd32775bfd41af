"""What a dry run says of a GPU's memory, beside what arrays hold there at the peak of updates."""

import json

import numpy as np
import pytest
from stand_in import cupy

from refimpl import optimizers, parameters, room, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import attention, sizes

MODEL = {"vocabulary": 64, "width": 64, "heads": 4, "layers": 3, "span": 64, "memory": 32, "span_initial": 1.0}
TRAIN = {"optimizer": "adagrad", "batch": 4, "block": 32}
FORMS = {
    "all-attention": ({}, {}),
    "a short block beside a long past": ({"span": 192}, {"optimizer": "adam"}),
    "as laptop": ({"vocabulary": 256, "span": 32, "embedding_dropout": 0.1}, {"optimizer": "adam", "batch": 16}),
    "logits that outweigh the rest": ({"vocabulary": 4000, "layers": 2}, {"batch": 8}),
    "feed-forward": ({"memory": 0, "feed_forward": 256, "dropout": 0.1, "attend_self": True}, {}),
    "pre-norm": ({"norm": "pre", "span": 128}, {"optimizer": "sgd"}),
    "Transformer-XL's positions": ({"positions": "transformer-xl"}, {"block": 64}),
    "spans as they begin": ({"span": 256, "span_initial": 0.1}, {}),
    "attention-split": ({"variant": "attention-split"}, {}),
    "head-split": ({"variant": "head-split"}, {}),
    "single-head": ({"variant": "single-head", "dropout": 0.1}, {}),
    "ff-attention": ({"variant": "ff-attention", "memory": 0, "feed_forward": 128, "dropout": 0.1}, {}),
    "cutoffs": ({"vocabulary": 5000, "cutoffs": (1000, 3000), "tie_tables": True, "tie_projections": True}, {"batch": 8}),
    "a wide head": ({"vocabulary": 3000, "cutoffs": (2000,), "span": 32}, {"batch": 16}),
    "in parts": ({"span": 256, "memory": 64}, {"batch": 8}),
}


class Held(cupy.cuda.MemoryHook):
    """Bytes that arrays hold, and the most that they held."""

    name = "held"

    def __init__(self):
        self.now = self.most = 0

    def malloc_postprocess(self, device_id, size, mem_size, mem_ptr, pmem_id):
        """After an array got its memory."""
        self.now += mem_size
        self.most = max(self.most, self.now)

    def free_postprocess(self, device_id, mem_size, mem_ptr, pmem_id):
        """After it gave it back."""
        self.now -= mem_size


@pytest.mark.parametrize("form", FORMS)
def test_the_estimate_is_within_10_per_cent_of_what_updates_hold(form, monkeypatch):
    config, train = (Config(**base, **changed) for Config, base, changed in (
        (ModelConfig, {key: value for key, value in MODEL.items() if key not in FORMS[form][0]}, FORMS[form][0]),
        (TrainConfig, {key: value for key, value in TRAIN.items() if key not in FORMS[form][1]}, FORMS[form][1])))
    if form == "in parts":
        monkeypatch.setattr(attention, "ELEMENTS", 1 << 16)
    told = sizes.bytes_by_purpose(config, train, config.span_initial)
    p = parameters.initialize(config, 0, "float32")
    state, rng, held = optimizers.initialize(train, p), np.random.default_rng(1), Held()
    state.scratch = {}
    with held:
        p = p.with_vector(cupy.asarray(p.vector))
        state.accumulators = {name: p.with_vector(cupy.asarray(each.vector)) for name, each in state.accumulators.items()}
        past = cupy.zeros((config.layers, train.batch, config.span, config.width), "float32")
        for _ in range(2):
            tokens = map(cupy.asarray, rng.integers(0, config.vocabulary, (2, train.batch, train.block)))
            past = training.update(p, state, config, train, *tokens, past).past
    total = sum(told.values())
    assert total == pytest.approx(held.most, rel=0.1)
    for purpose in ("parameters", "past", "saved", "scratch"):  # each would be missed
        assert told[purpose] > 0.01 * total
    assert total - told["saved"] < 0.9 * held.most
    assert total - told["scratch"] < 0.9 * held.most


def test_a_dry_run_tells_the_devices_memory(command, tiny):
    found = json.loads(command("train", *tiny, "--set", "model.vocabulary=64", "--dry-run", "--device", "gpu", "--json").out)
    purposes = found["memory"]["by_purpose"].keys()
    assert purposes == {"parameters", "gradients", "optimizer", "past", "saved", "scratch", "pool"}
    assert found["memory"]["total"] == sum(found["memory"]["by_purpose"].values())
    assert found["available_memory"] > 0
    nowhere = command("train", *tiny, "--set", "model.vocabulary=64", "--dry-run", "--device", "gpu:9", "--json")
    assert json.loads(nowhere.out)["available_memory"] is None
    host = json.loads(command("train", *tiny, "--set", "model.vocabulary=64", "--dry-run", "--json").out)
    assert "pool" not in host["memory"]["by_purpose"]


def test_a_run_that_the_device_has_no_room_for_is_refused(command, text, tiny, tmp_path, monkeypatch):
    given = ["train", "--data", text, "--out", tmp_path / "run", *tiny, "--device", "gpu"]
    monkeypatch.setattr(room, "free_bytes", lambda name: 100_000 if name == "gpu" else None)
    end = command(*given)
    assert (end.code, end.out, end.err.count("\n")) == (2, "", 1)
    assert "expected 0.1 MB of memory to be enough, got an estimate of" in end.err
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(room, "free_bytes", lambda name: 10**9)
    assert command(*given).code == 0
