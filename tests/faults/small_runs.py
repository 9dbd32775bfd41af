"""A small run with dropout, a checkpoint every 3 updates, and what its end is held to: what the campaigns of kills share."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SETTINGS = ("model.width=8", "model.heads=2", "model.layers=1", "model.span=8", "model.span_ramp=4", "model.memory=2",
            "model.dropout=0.1", "train.block=8", "train.workers=1", "train.log_every=1", "train.evaluate_every=7",
            "train.checkpoint_every=3")


def arguments(run: Path, settings: Sequence[str]) -> list[str]:
    """The command's, after `refimpl`: to train from the start, or on from where a kill left the run."""
    if (run / "config.toml").exists():
        return ["train", "--out", str(run), "--resume"]
    values = (word for value in (*SETTINGS, *settings) for word in ("--set", value))
    return ["train", "--out", str(run), "--preset", "laptop", "--data", "sample", *values]


def start(words: Sequence[str], folder: Path) -> "subprocess.Popen[str]":
    """A process with the store of texts in the folder; its stderr is to be read, or the process comes to a standstill."""
    told = {**os.environ, "REFIMPL_STORE": str(folder / "store"), "REFIMPL_BLAS_KERNELS": "default"}
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=told, pipesize=4096)


def end_of(run: Path) -> dict[str, Any]:
    """All that must be the same: every tensor of the last checkpoint, its progress without times, losses logged."""
    newest = max((run / "checkpoints").glob("update-*"))
    progress = json.loads((newest / "checkpoint.json").read_text())["progress"]
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = [{key: record[key] for key in ("update", "loss", "valid_loss") if key in record} for record in records]
    return {"name": newest.name, "progress": {key: value for key, value in progress.items() if key != "seconds"},
            "log": told, **{path.name: path.read_bytes() for path in newest.glob("*.safetensors")}}
