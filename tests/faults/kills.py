"""Runs killed at random moments and resumed, each held to the uninterrupted one: the same bits at the end, nothing lost.

python tests/faults/kills.py [COUNT] [SEED]: half of the kills at random events (updates, calls that change files), half
after random times. Figures as JSON.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import small_runs

SETTINGS = ("train.batch=2", "train.updates=120", "train.last_updates=40", "train.warm_up=10", "train.evaluate_tokens=64")
LAUNCHER = Path(__file__).with_name("launcher.py")


class Campaign:
    """Runs in one folder with one store of texts; settings: beside SETTINGS."""

    def __init__(self, folder: Path, plant: str = "", settings: tuple[str, ...] = ()) -> None:
        self.folder, self.told, self.settings = folder, {"plant": plant} if plant else {}, (*SETTINGS, *settings)

    def command(self, run: Path, told: dict[str, Any] | None) -> list[str]:
        """What trains: from the start, or on from where a kill left it; told: the launcher's, None = the command itself."""
        arguments = small_runs.arguments(run, self.settings)
        if told is None:
            return [sys.executable, "-m", "refimpl", *arguments]
        return [sys.executable, str(LAUNCHER), json.dumps({**self.told, **told}), *arguments]

    def start(self, run: Path, told: dict[str, Any] | None) -> "subprocess.Popen[str]":
        """The command in a process of its own."""
        return small_runs.start(self.command(run, told), self.folder)

    def whole(self) -> tuple[dict[str, Any], int]:
        """What the uninterrupted run ends with, and how many events it has."""
        count = self.folder / "events"
        with self.start(self.folder / "whole", {"count": str(count), "plant": ""}) as process:
            _, err = process.communicate()
        assert process.returncode == 0, err
        return small_runs.end_of(self.folder / "whole"), int(count.read_text())


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
        end = small_runs.end_of(run)
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
