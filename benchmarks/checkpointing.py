"""What a checkpoint costs training: updates alone, beside a checkpoint's writing, and before one that training waits for.

python benchmarks/checkpointing.py [--quick] [--case NAME] [--repeats N] [--json FILE]. The three take turns; a checkpoint
is written every INTERVAL seconds, of which the share is told. The folder is a temporary one: TMPDIR says on which disk.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from refimpl import checkpoint, jobs, training
from refimpl.arrays import limit_threads
from refimpl.runs import Run

INTERVAL = 600  # seconds
CASES = {"laptop": ("laptop", ()),
         "enwik8-all-attention-small": ("enwik8-all-attention-small", ("train.batch=1", "train.block=64", "model.span=256"))}


def contenders(run: Run, results: Iterator[training.Result], updates: int) -> dict[str, Callable[[], None]]:
    """What takes turns, each with so many updates."""

    def alone() -> training.Result:
        for _ in range(updates):
            result = next(results)
        run.saved.past = result.past
        return result

    def beside() -> None:
        training.check_finite(run.saved.parameters, run.saved.config, next(results))
        run.writer.begin(run.folder, run.saved, 2)
        alone()
        run.writer.wait()

    def waiting() -> None:
        training.check_finite(run.saved.parameters, run.saved.config, next(results))
        run.writer.write(run.folder, run.saved, 2)
        alone()

    def nothing() -> None:
        next(results)
        alone()

    return {"alone": nothing, "beside": beside, "waiting": waiting}


def measure(name: str, quick: bool, repeats: int) -> dict[str, Any]:
    """Seconds that a checkpoint adds, median of the turns' differences, and its share of the interval."""
    preset, changes = CASES[name]
    small = ("model.layers=1", "model.width=16", "model.heads=2", "train.batch=2", "train.block=8") if quick else ()
    assignments = (*changes, *small, "train.updates=1000000", "train.warm_up=0", "train.last_updates=0")
    with tempfile.TemporaryDirectory() as folder, limit_threads(None):
        request = jobs.Request(preset, None, "sample", None, assignments, Path(folder, "run"), Path(folder, "store"))
        run, _, _ = jobs.open_run(request, resume=False)
        saved = run.saved
        results = training.run(saved.parameters, saved.optimizer, saved.config, saved.train_config, iter(run.batches),
                               saved.past)
        start = time.perf_counter()
        for _ in range(3):
            saved.past = next(results).past
        update = (time.perf_counter() - start) / 3
        start = time.perf_counter()
        size = sum(path.stat().st_size for path in checkpoint.save(run.folder, saved).iterdir())
        write = time.perf_counter() - start
        updates = max(2, round(2 * write / update))  # longer than the writing: none of it is hidden at the end
        turns: dict[str, list[float]] = {}
        for _ in range(repeats):
            for way, work in contenders(run, results, updates).items():
                start = time.perf_counter()
                work()
                turns.setdefault(way, []).append(time.perf_counter() - start)
        run.held.close()
    added = {way: statistics.median(a - b for a, b in zip(turns[way], turns["alone"], strict=True))
             for way in ("beside", "waiting")}
    return {"case": name, "parameters": saved.parameters.vector.size, "bytes": size, "write": write, "update": update,
            "added": added, "share": {way: seconds / INTERVAL for way, seconds in added.items()}, "turns": turns}


def main() -> None:
    """Prints a row for each model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny models, to try the script out")
    parser.add_argument("--case", action="append", choices=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []
    for name in asked.case or CASES:
        row = measure(name, asked.quick, asked.repeats)
        rows.append(row)
        print(f"{row['case']}: {row['parameters']:,} parameters, a checkpoint of {row['bytes'] / 1e6:.1f} MB every "
              f"{INTERVAL} s adds {row['added']['beside']:.3f} s while training goes on ({row['share']['beside']:.2%}), "
              f"{row['added']['waiting']:.3f} s where it waits ({row['share']['waiting']:.2%})", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps({"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
