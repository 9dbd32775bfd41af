"""Runs killed at random moments and resumed, each held to the uninterrupted one: the same bits at the end, nothing lost.

python tests/faults/kills.py [COUNT] [SEED]: half of the kills at random events (updates, calls that change files), half
after random times. Figures as JSON.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UPDATES = 120
SETTINGS = ("model.width=8", "model.heads=2", "model.layers=1", "model.span=8", "model.span_ramp=4", "model.memory=2",
            "model.dropout=0.1", "train.batch=2", "train.block=8", f"train.updates={UPDATES}", "train.last_updates=40",
            "train.warm_up=10", "train.workers=1", "train.log_every=1", "train.evaluate_every=7", "train.evaluate_tokens=64",
            "train.checkpoint_every=3")
LAUNCHER = Path(__file__).with_name("launcher.py")


class Campaign:
    """Runs in one folder with one store of texts."""

    def __init__(self, folder: Path, plant: str = "") -> None:
        self.folder, self.told = folder, {"plant": plant} if plant else {}

    def command(self, run: Path, told: dict[str, Any] | None) -> list[str]:
        """What trains: from the start, or on from where a kill left it; told: the launcher's, None = the command itself."""
        begin = ["--preset", "laptop", "--data", "sample", *(word for s in SETTINGS for word in ("--set", s))]
        arguments = ["train", "--out", str(run), *(["--resume"] if (run / "config.toml").exists() else begin)]
        if told is None:
            return [sys.executable, "-m", "refimpl", *arguments]
        return [sys.executable, str(LAUNCHER), json.dumps({**self.told, **told}), *arguments]

    def start(self, run: Path, told: dict[str, Any] | None) -> "subprocess.Popen[str]":
        """The command in a process of its own."""
        environment = {**os.environ, "REFIMPL_STORE": str(self.folder / "store"), "REFIMPL_BLAS_KERNELS": "default"}
        return subprocess.Popen(self.command(run, told), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                                env=environment)

    def whole(self) -> tuple[dict[str, Any], int]:
        """What the uninterrupted run ends with, and how many events it has."""
        count = self.folder / "events"
        with self.start(self.folder / "whole", {"count": str(count), "plant": ""}) as process:
            _, err = process.communicate()
        assert process.returncode == 0, err
        return end_of(self.folder / "whole"), int(count.read_text())


def end_of(run: Path) -> dict[str, Any]:
    """All that must be the same: every tensor of the last checkpoint, its progress without times, losses logged."""
    newest = max((run / "checkpoints").glob("update-*"))
    progress = json.loads((newest / "checkpoint.json").read_text())["progress"]
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    told = [{key: record[key] for key in ("update", "loss", "valid_loss") if key in record} for record in records]
    return {"name": newest.name, "progress": {key: value for key, value in progress.items() if key != "seconds"},
            "log": told, **{path.name: path.read_bytes() for path in newest.glob("*.safetensors")}}


def campaign(folder: Path, count: int, seed: int, by_time: bool = False, plant: str = "") -> dict[str, Any]:
    """Kills `count` processes, in as many runs as it takes; figures: kills, runs, lost (can't be resumed), different."""
    draw, trial = random.Random(seed), Campaign(folder, plant)
    start = time.monotonic()
    expected, events = trial.whole()
    longest = time.monotonic() - start
    found: dict[str, Any] = {"kills": 0, "runs": 0, "lost": 0, "different": 0, "events": events}
    while found["kills"] < count:
        run = folder / f"run-{found['runs']}"
        found["runs"] += 1
        while True:
            if by_time:
                process = trial.start(run, None)
                try:
                    _, err = process.communicate(timeout=draw.uniform(0, longest) if found["kills"] < count else None)
                except subprocess.TimeoutExpired:
                    process.kill()
                    _, err = process.communicate()
            else:
                process = trial.start(run, {"kill": draw.randint(1, events // 4)} if found["kills"] < count else {})
                _, err = process.communicate()
            if process.returncode != -signal.SIGKILL:
                break
            found["kills"] += 1
        if process.returncode:
            found["lost"] += 1
            found["why"] = err.splitlines()[-1]
            continue
        end = end_of(run)
        if end != expected:
            found["different"] += 1
            found["why"] = [name for name in expected if end.get(name) != expected[name]]
    return found


def main(count: int = 100, seed: int = 0) -> dict[str, Any]:
    """Both halves."""
    figures = {}
    for kind in ("event", "time"):
        with tempfile.TemporaryDirectory() as folder:
            figures[kind] = campaign(Path(folder), count // 2, seed, by_time=kind == "time")
    return figures


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
