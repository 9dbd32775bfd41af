"""Memory of an update: its peak beside PyTorch eager, its large allocations, and what a thousand updates add.

    python -m pip install torch==2.13.0
    python benchmarks/memory.py --json memory.json

The model is that of update.py. Each figure comes from a fresh process. Peak: the first update's, above what was resident
before it, with inputs, parameters and accumulators in place. Large allocations: arrays of more than 1 MB that NumPy
allocates during one update after the first, told by its memory handler. Growth: what small updates that follow one another
add to live Python objects and arrays, and to resident bytes.
"""

import gc
import statistics
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import allocations
import click
import measure
import update
from contender import Contender, resident

from refimpl import training

LARGE = 1_000_000
UPDATES = 1000
SUBJECTS = {measure.OURS: "update:Ours", "torch eager": update.PEERS["torch eager"]}


class Ours(update.Ours):
    """With questions of its own."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._updates = settings.get("updates", 0)

    def large_allocations(self) -> dict[str, int]:
        """How many, and bytes of all together, of one update."""
        self.run()
        with allocations.sizes_allocated() as sizes:
            self.run()
        large = [size for size in sizes if size > LARGE]
        return {"count": len(large), "bytes": sum(large)}

    def growth(self) -> dict[str, float]:
        """Live and resident bytes that settings["updates"] updates add, after a tenth as many."""
        parts, readings = 10, []
        for _ in range(parts + 1):
            self._many(self._updates // parts)
            readings.append(self._bytes())
        live, resident_bytes = zip(*readings, strict=True)
        # by the median part: once in a while Python enlarges its table of interned strings, by half a megabyte
        return {"live": parts * statistics.median(after - before for before, after in pairwise(live)),
                "resident": resident_bytes[-1] - resident_bytes[0]}

    def _bytes(self) -> tuple[int, int]:
        gc.collect()  # which also gives back the interpreter's lists of free tuples
        return tracemalloc.get_traced_memory()[0], resident()["VmRSS"]

    def _many(self, count: int) -> None:
        config, train, p, tokens, targets, past = self._case
        for _ in range(count):
            with self._arena:
                past = training.update(p, self._state, config, train, tokens, targets, past).past


def ask(question: str, settings: Mapping[str, Any], threads: int, kernels: str) -> Any:
    """What a fresh process of ours, which traces Python's allocations from its start on, answers."""
    environment = {**measure.our_environments(kernels)[measure.OURS], "PYTHONTRACEMALLOC": "1"}
    with Contender(measure.OURS, "memory:Ours", settings, threads, environment) as ours:
        return ours.answer(question)


@click.command()
@measure.options()
def main(threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints peaks, large allocations and growth."""
    config, train = (update.SMALL, update.SMALL_TRAIN) if quick else (update.MODEL, update.TRAIN)
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    for case, share in update.SPANS.items():
        settings = update.settings_of(replace(config, span_initial=share), replace(train, parallel="threads"))
        memory = measure.first_memory(SUBJECTS, settings, threads, kernels)
        large = ask("large_allocations", settings, threads, kernels)
        rows.append({"case": case, "settings": settings, "memory": memory, "large_allocations": large})
        measure.print_memory(case, memory)
        click.echo(f"{case:<26}{measure.OURS:<30}{large['count']:>10} arrays above 1 MB, {large['bytes'] / 1e6:,.1f} MB")
    small = replace(update.SMALL_TRAIN, parallel="threads")
    settings = {**update.settings_of(update.SMALL, small), "updates": 200 if quick else UPDATES}
    added = ask("growth", settings, threads, kernels)
    case = f"{settings['updates']:,} small updates"
    rows.append({"case": case, "settings": settings, "growth": added})
    click.echo(f"{case:<26}{measure.OURS:<30}{added['live'] / 1e3:>10.1f} kB live, "
               f"{added['resident'] / 1e3:,.1f} kB resident")
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
