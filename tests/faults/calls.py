"""Every system call of a checkpoint's writing fails once, in each way, or is the last before a SIGKILL: by strace.

python tests/faults/calls.py [STEP]: every STEP-th call only. Needs strace; a full and a read-only disk need root. Figures
as JSON.
"""

import collections
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import writing

from refimpl import checkpoint

CALLS = ("openat", "write", "fsync", "rename", "mkdir", "unlinkat", "unlink", "rmdir", "getdents64", "newfstatat", "fstat",
         "close", "lseek")
WAYS = ("error=ENOSPC", "error=EIO", "error=EROFS", "error=EACCES", "signal=KILL")
SETTINGS = ("model.width=8", "model.heads=2", "model.layers=1", "model.span=8", "model.span_ramp=4", "model.memory=2",
            "train.batch=2", "train.block=8", "train.updates=3", "train.last_updates=0", "train.warm_up=0",
            "train.log_every=1", "train.evaluate_every=0", "train.checkpoint_every=1")


def command(folder: Path, *arguments: str, limit: int | None = None) -> "subprocess.CompletedProcess[str]":
    """The command in a process of its own, where no file may be larger than `limit` bytes."""
    environment = {**os.environ, "REFIMPL_STORE": str(folder / "store"), "REFIMPL_BLAS_KERNELS": "default"}
    return subprocess.run(
        [sys.executable, "-m", "refimpl", *arguments], capture_output=True, text=True, env=environment, check=False,
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit is not None else None)


def small_run(folder: Path, run: Path) -> None:
    """Three updates, the last two of which stand in checkpoints."""
    end = command(folder, "train", "--out", str(run), *(word for value in SETTINGS for word in ("--set", value)))
    assert end.returncode == 0, end.stderr


def traced(run: Path, *options: str) -> tuple[int, list[str]]:
    """The exit status of a writing under strace, and its calls."""
    log = run.with_suffix(".trace")
    line = ["strace", "-o", str(log), "-e", f"trace=access,{','.join(CALLS)}", *options, sys.executable, writing.__file__]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    end = subprocess.run([*line, str(run)], env=environment, capture_output=True, check=False)
    return end.returncode, log.read_text(errors="replace").splitlines()


def places(lines: list[str]) -> list[tuple[str, int, str]]:
    """(call, its number among calls of that name since the process began, its line) for each call of the writing."""
    count: collections.Counter[str] = collections.Counter()
    found, inside = [], False
    for line in lines:
        name = line.partition("(")[0]
        count[name] += 1
        if name == "access":
            inside = writing.BEGIN in line
        elif inside:
            found.append((name, count[name], line))
    return found


def unsynced(lines: list[str]) -> list[str]:
    """What a writing made visible, or deleted, before what it stands on was on the disk."""
    names: dict[str, str] = {}
    written, found = set(), []
    for line in lines:
        opened = re.match(r'openat\(\w+, "([^"]+)", ([^)]*)\) += (\d+)', line)
        if opened:
            names[opened[3]] = opened[1]
            if "O_CREAT" in opened[2]:
                written.add(opened[1])
        synced = re.match(r"fsync\((\d+)\) += 0", line)
        if synced:
            written.discard(names[synced[1]])
        made = re.match(r'mkdir\("([^"]+)"', line)
        if made:
            written.add(made[1])
        renamed = re.match(r'rename\("([^"]+)", "([^"]+)"', line)
        if renamed and not renamed[2].endswith(".removed"):
            found += [path for path in written if path.startswith(renamed[1])]
            written.add(str(Path(renamed[2]).parent))
        elif renamed or line.startswith(("unlink", "rmdir")):
            found += list(written)
    return sorted(set(found))


def campaign(folder: Path, step: int = 1) -> dict[str, Any]:
    """Figures: calls, faults, refused (the writer said so), killed, whole (it could go on), lost."""
    small_run(folder, folder / "run")
    shutil.copytree(folder / "run", folder / "traced")
    status, lines = traced(folder / "traced")
    assert status == 0
    targets = [place for place in places(lines) if place[0] != "access"]
    assert len(targets) > 50, targets
    figures: dict[str, Any] = {"calls": len(targets), "faults": 0, "refused": 0, "killed": 0, "whole": 0, "lost": 0,
                               "unsynced": unsynced([line for _, _, line in targets])}
    run = folder / "trial"
    for name, number, line in targets[::step]:
        for way in WAYS:
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(folder / "run", run)
            status, _ = traced(run, "-e", f"inject={name}:{way}:when={number}")
            figures["faults"] += 1
            figures["killed" if status < 0 or status == 137 else "refused" if status else "whole"] += 1
            if not survives(run):
                figures["lost"] += 1
                figures.setdefault("where", []).append(f"{way}: {line}")
    return figures


def survives(run: Path) -> bool:
    """Whether a checkpoint can be loaded, and the next one written and loaded."""
    try:
        saved = checkpoint.load(run)
        saved.optimizer.updates += 1
        checkpoint.save(run, saved)
        return checkpoint.load(run).optimizer.updates == saved.optimizer.updates
    except (OSError, ValueError):
        return False


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disks(folder: Path, step: int = 1) -> dict[str, int]:
    """A run on disks with room for 0, 1, … pages more: where it ends, a checkpoint is whole, and more room helps."""
    figures = {"disks": 0, "full": 0, "lost": 0, "unclear": 0}
    pages = [-(-path.stat().st_size // 4096) for path in (folder / "run").rglob("*") if path.is_file()]
    for size in range(4 * sum(pages) + 4, 4 * sum(pages) + 150, 4 * step):
        with disk(folder / f"disk-{size}", f"size={size}k") as mounted:
            shutil.copytree(folder / "run", mounted / "run")
            end = command(folder, "train", "--out", str(mounted / "run"), "--resume", "--set", "train.updates=9")
            figures["disks"] += 1
            figures["full"] += end.returncode != 0
            clear = end.returncode in (0, 2, 3) and "Traceback" not in end.stderr
            figures["unclear"] += not (clear and (end.returncode == 0 or "No space left" in end.stderr.splitlines()[-1]))
            subprocess.run(["mount", "-o", "remount,size=100m", str(mounted)], check=True)
            figures["lost"] += not survives(mounted / "run")
    return figures


def read_only_disk(folder: Path) -> dict[str, Any]:
    """A run whose disk turns read-only between two commands: training is refused in one line, eval works."""
    with disk(folder / "read-only", "size=10m") as mounted:
        shutil.copytree(folder / "run", mounted / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)
        trained = command(folder, "train", "--out", str(mounted / "run"), "--resume", "--set", "train.updates=9")
        scored = command(folder, "eval", str(mounted / "run"))
    return {"refused": trained.returncode == 2, "lines": len(trained.stderr.splitlines()), "read": scored.returncode == 0}


def main(step: int = 1) -> dict[str, Any]:
    """All of it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        figures = {"calls": campaign(folder, step)}
        if os.geteuid() == 0:
            figures["full"] = full_disks(folder, step)
            figures["read-only"] = read_only_disk(folder)
    return figures


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:]))))
