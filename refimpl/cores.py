"""How many cores this process may use: those that it may run on, and no more than its control groups allow."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Cores by affinity, or fewer where a quota of Linux's control groups says so, rounded up; `root` holds proc and sys."""
    runnable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([runnable, *(math.ceil(quota) for folder in groups(root, "cpu") for quota in _quota(folder))])


def groups(root: Path, controller: str) -> Iterator[Path]:
    """This process's control groups up to their roots, of both versions, that have the controller; maybe roots only."""
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for mount in {controller, controllers} if controllers else {"", "unified"}:
            top = root / "sys/fs/cgroup" / mount
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _quota(folder: Path) -> Iterator[float]:
    """Cores that one group allows: cpu.max holds quota and period, in version 1 a file each; `max` or -1 is no limit."""
    words = read(folder / "cpu.max").split() or [read(folder / f"cpu.cfs_{kind}_us") for kind in ("quota", "period")]
    try:
        quota, period = map(int, words)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota / period


def read(path: Path) -> str:
    """A small file's text, "" if there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
