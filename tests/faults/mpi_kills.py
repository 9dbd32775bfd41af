"""One rank of several killed at random moments, the run resumed each time, and held to the run without a kill.

python tests/faults/mpi_kills.py [KILLS] [SEED] [RANKS]: a third of the kills comes while the ranks start, the others after a
random number of updates and a random part of one. Figures as JSON; exit code 1 if a run was lost or ended otherwise.
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

import small_runs

UPDATES, LEG, LINES = 40, 25, 12  # updates beyond those of legs that a kill ends; of a leg at most; lines until a kill
LIMIT = 120.0  # seconds in which what is left of a killed run must be gone
SETTINGS = ("train.batch=3", "train.last_updates=0", "train.warm_up=0", "train.evaluate_tokens=300")


class Campaign:
    """Runs of so many ranks in one folder with one store of texts."""

    def __init__(self, folder: Path, ranks: int, updates: int) -> None:
        self.folder, self.ranks, self.updates = folder, ranks, updates

    def start(self, run: Path) -> "subprocess.Popen[str]":
        """mpiexec and the command: from the start, or on from where a kill left it."""
        wait_for_lock(run)
        mpiexec = str(Path(sys.executable).with_name("mpiexec"))
        words = small_runs.arguments(run, (*SETTINGS, f"train.updates={self.updates}"))
        return small_runs.start([mpiexec, "-n", str(self.ranks), sys.executable, "-m", "refimpl", *words, "--threads", "1"],
                                self.folder)

    def killed(self, run: Path, draw: random.Random) -> dict[str, Any]:
        """A leg that a kill ends: whether it came in time, seconds until nothing was left, the exit status."""
        victim, at_start = draw.randrange(self.ranks), draw.random() < 1 / 3
        delay, lines = draw.uniform(0, 1.5) if at_start else draw.uniform(0, 0.02), draw.randint(1, LINES)
        with self.start(run) as process:
            if not at_start:
                for _ in range(lines):
                    process.stderr.readline()
            time.sleep(delay)
            found = processes_of(process.pid, victim)
            for pid in found:
                os.kill(pid, signal.SIGKILL)
            start = time.monotonic()
            process.communicate(timeout=LIMIT)
        return {"hit": bool(found), "seconds": time.monotonic() - start, "code": process.returncode}

    def ended(self, run: Path) -> str:
        """The run to its end; "" or what went wrong."""
        with self.start(run) as process:
            _, err = process.communicate()
        return err if process.returncode else ""


def wait_for_lock(run: Path) -> None:
    """Until nobody has the run's folder: mpiexec may be gone a moment before the ranks that it has killed."""
    import fcntl

    if (run / ".lock").exists():
        with (run / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)


def processes_of(mpiexec: int, rank: int) -> list[int]:
    """The process, below mpiexec, that is this rank; none if there is none yet or any more."""
    found, seen = [], [mpiexec]
    for parent in seen:
        try:
            children = [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
            mine = [pid for pid in children if f"PMI_RANK={rank}".encode() in environment(pid)]
        except OSError:
            continue
        found += mine
        seen += [pid for pid in children if pid not in mine]
    return found


def environment(pid: int) -> list[bytes]:
    """A process's variables as it was started with them."""
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def campaign(folder: Path, kills: int, seed: int, ranks: int = 2) -> dict[str, Any]:
    """Figures: kills that hit a rank, runs lost (can't go on), tensors or losses that differ, seconds until all was over."""
    draw, trial = random.Random(seed), Campaign(folder, ranks, UPDATES + kills * LEG)
    lost = trial.ended(folder / "whole")
    assert not lost, lost
    found: dict[str, Any] = {"ranks": ranks, "updates": trial.updates, "kills": 0, "lost": 0, "different": []}
    seconds, reached = [], []
    while found["kills"] < kills:
        leg = trial.killed(folder / "run", draw)
        if leg["hit"]:
            found["kills"] += 1
            seconds.append(leg["seconds"])
            assert leg["code"] != 0, "mpiexec ended as if nothing had happened"
        reached.append(len(list((folder / "run").glob("checkpoints/update-*"))))
    problem = trial.ended(folder / "run")
    found["lost"] = int(bool(problem))
    if problem:
        return {**found, "problem": problem}
    expected, came = (small_runs.end_of(folder / name) for name in ("whole", "run"))
    found["different"] = [name for name in expected if came.get(name) != expected[name]]
    return {**found, "seconds_until_over": {"median": sorted(seconds)[len(seconds) // 2], "largest": max(seconds)},
            "before_a_checkpoint": sum(count == 0 for count in reached)}


def measure(kills: int = 20, seed: int = 0, ranks: int = 2) -> dict[str, Any]:
    """The figures of a campaign in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return campaign(Path(folder), kills, seed, ranks)


def main() -> None:
    """Prints the figures."""
    found = measure(*map(int, sys.argv[1:]))
    print(json.dumps(found, indent=1))
    sys.exit(bool(found["lost"] or found["different"]))


if __name__ == "__main__":
    main()
