"""A million tiny updates: memory must not grow in their second half.

python tests/faults/endurance.py [UPDATES] [TRACED]: what the system has given the process alone, over UPDATES; and, to the
byte, what Python and NumPy hold, over TRACED updates, a hundredth. Figures as JSON; exit code 1 if either grows.
"""

import gc
import json
import sys
import tempfile
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

from refimpl import jobs, running

UPDATES, LOOKS = 1_000_000, 40
ROOM = 1 << 20  # bytes: one arena of Python's allocator; over 500,000 updates 2.1 for each, where a list's slot has 8
KEPT = 4  # bytes for each update of the second half: half a list's slot, the least that Python can keep of anything
LARGE = 1 << 16  # bytes: Python's own tables are larger, and are made anew at moments of their own
SETTINGS = ("model.width=4", "model.heads=1", "model.layers=1", "model.span=2", "model.span_ramp=2", "model.memory=1",
            "train.batch=1", "train.block=2", "train.warm_up=0", "train.last_updates=0", "train.workers=1",
            "train.evaluate_tokens=20")


def private() -> int:
    """Bytes of memory that are this process's alone: a text that is mapped belongs to the system, which may take it back."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssAnon:")[2].split()[0])


def held() -> int:
    """Bytes in blocks that Python and NumPy hold, without what they would also find again: caches are emptied first."""
    gc.collect()
    with warnings.catch_warnings():  # newer Pythons have another name for it
        warnings.simplefilter("ignore", DeprecationWarning)
        getattr(sys, "_clear_internal_caches", sys._clear_type_cache)()
    return sum(trace.size for trace in tracemalloc.take_snapshot().traces if trace.size < LARGE)


def endure(folder: Path, updates: int, look: Callable[[], int] = private, looks: int = LOOKS) -> list[int]:
    """Memory at `looks` moments of a run with that many updates, logged, validated and saved as often as any other."""
    every = updates // looks
    times = (f"train.updates={updates}", f"train.log_every={max(1, every // 10)}", f"train.evaluate_every={every}",
             f"train.checkpoint_every={every}")
    request = jobs.Request(None, None, "sample", None, (*SETTINGS, *times), folder / "run", folder / "store")
    run, _, evaluate = jobs.open_run(request, resume=False)
    if look is held:
        tracemalloc.start()
    found = []
    for record in running.train(run, evaluate, lambda: False):
        if "valid_bits" in record:
            run.writer.wait()
            found.append(look())
            print(f"update {record['update']}: {found[-1]:,} bytes", file=sys.stderr, flush=True)
    tracemalloc.stop()
    run.held.close()
    return found


def growth(found: list[int]) -> int:
    """Bytes by which the largest of the second half exceeds what there was at half."""
    half = len(found) // 2
    return max(found[half:]) - found[half - 1]


def flat(found: list[int], traced: list[int], traced_updates: int) -> bool:
    """Whether neither the process nor what it holds grows in its second half."""
    return growth(found) < ROOM and growth(traced) < KEPT * traced_updates / 2


def main(updates: int = UPDATES, traced_updates: int = 0) -> dict[str, object]:
    """The figures, as the page tells them."""
    traced_updates = traced_updates or max(2 * LOOKS, updates // 100)
    with tempfile.TemporaryDirectory() as folder:
        found = endure(Path(folder), updates)
    with tempfile.TemporaryDirectory() as folder:
        traced = endure(Path(folder), traced_updates, held, looks=LOOKS // 2)
    return {"updates": updates, "half": found[len(found) // 2 - 1], "end": found[-1], "growth": growth(found),
            "traced_updates": traced_updates, "held": traced[-1], "kept": growth(traced),
            "flat": flat(found, traced, traced_updates)}


if __name__ == "__main__":
    figures = main(*map(int, sys.argv[1:]))
    print(json.dumps(figures))
    sys.exit(not figures["flat"])
