"""A million tiny updates: memory must not grow in their second half.

python tests/faults/endurance.py [UPDATES] [FOLDER]
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from refimpl import jobs, running

UPDATES, LOOKS = 1_000_000, 40
GROWTH = 1 << 20  # bytes that the second half may add: one arena of Python's allocator
SETTINGS = ("model.width=4", "model.heads=1", "model.layers=1", "model.span=2", "model.span_ramp=2", "model.memory=1",
            "train.batch=1", "train.block=2", "train.warm_up=0", "train.last_updates=0", "train.workers=1",
            "train.evaluate_tokens=20")


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def endure(folder: Path, updates: int, looks: int = LOOKS) -> list[int]:
    """Memory at `looks` moments of a run with that many updates, logged, validated and saved as often as any other."""
    every = updates // looks
    times = (f"train.updates={updates}", f"train.log_every={every // 10}", f"train.evaluate_every={every}",
             f"train.checkpoint_every={every}")
    request = jobs.Request(None, None, "sample", None, (*SETTINGS, *times), folder / "run", folder / "store")
    run, _, evaluate = jobs.open_run(request, resume=False)
    found = []
    for record in running.train(run, evaluate, lambda: False):
        if "valid_bits" in record:
            found.append(resident())
            print(f"update {record['update']}: {found[-1]:,} bytes", file=sys.stderr, flush=True)
    run.held.close()
    return found


def growth(found: list[int]) -> int:
    """Bytes by which the last quarter's largest exceeds that of the quarter before: noise is in both."""
    quarter = len(found) // 4
    return max(found[-quarter:]) - max(found[-2 * quarter : -quarter])


def main(updates: int) -> dict[str, object]:
    """The figures, as the page tells them."""
    with tempfile.TemporaryDirectory() as folder:
        found = endure(Path(folder), updates)
    half = found[len(found) // 2]
    return {"updates": updates, "half": half, "end": found[-1], "growth": growth(found), "flat": growth(found) <= GROWTH}


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]) if len(sys.argv) > 1 else UPDATES)))
