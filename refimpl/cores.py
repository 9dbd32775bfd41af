"""How many cores this process may use: those that it may run on, and no more than its control groups allow."""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def available(root: Path = Path("/")) -> int:
    """Cores by affinity, or fewer where a quota of Linux's control groups says so, rounded up; `root` holds proc and sys."""
    runnable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([runnable, *(math.ceil(quota) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """The quotas from this process's control groups up to their roots, of both versions; a container may show roots only."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in {"cpu", controllers} if controllers else {"", "unified"}:
            top = root / "sys/fs/cgroup" / mount
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    """Cores that one group allows: cpu.max holds quota and period, in version 1 a file each; `max` or -1 is no limit."""
    words = _read(folder / "cpu.max").split() or [_read(folder / f"cpu.cfs_{kind}_us") for kind in ("quota", "period")]
    try:
        quota, period = map(int, words)
    except ValueError:
        return
    if quota > 0 and period > 0:
        yield quota / period


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
