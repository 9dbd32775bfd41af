"""How much memory this process may still take: what the machine has left, and no more than its control groups allow."""

import os
from collections.abc import Iterator
from pathlib import Path

from refimpl.cores import groups, read


def available(root: Path = Path("/")) -> int | None:
    """Bytes, by Linux's /proc and control groups; elsewhere the machine's memory, or None if nothing tells it.

    Memory that holds parts of files counts as free: the system gives it away when it is asked. `root` holds proc and sys.
    """
    free = _numbers(root / "proc/meminfo", ":").get("MemAvailable")
    known = [*([free * 1024] if free is not None else []), *_left(root)]
    if known:
        return max(0, min(known))
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if root == Path("/") else None
    except (AttributeError, ValueError, OSError):
        return None


def _left(root: Path) -> Iterator[int]:
    """What each control group up to the root has left, of both versions; `max`, or more than all memory, is no limit."""
    for folder in groups(root, "memory"):
        for limit, used, of_files in (("memory.max", "memory.current", "inactive_file"),
                                      ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):
            try:
                allowed, taken = int(read(folder / limit)), int(read(folder / used))
            except ValueError:
                continue
            yield allowed - taken + min(taken, _numbers(folder / "memory.stat", " ").get(of_files, 0))


def _numbers(path: Path, separator: str) -> dict[str, int]:
    """Lines of a name and a number."""
    found = {}
    for line in read(path).splitlines():
        name, _, rest = line.partition(separator)
        if rest.split() and rest.split()[0].isdigit():
            found[name.strip()] = int(rest.split()[0])
    return found
