"""Updates of one run over 1, 2, … ranks of one thread each, beside one process with as many threads or worker processes.

    python -m pip install 'refimpl[mpi]'
    python benchmarks/ranks.py --json ranks.json

The model is the laptop preset, float32. All take turns of the same updates from the same start, and their losses must agree.
`exchange` is the share of the time that rank 0 spends adding gradients, waiting for slower ranks included: nothing that is
done beside backward could gain more. A rank that has no turn sleeps: MPI's own waiting would take a core from the others.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np

from refimpl import model, optimizers, parameters, settings, training
from refimpl.arrays import limit_threads
from refimpl.config import ModelConfig, TrainConfig
from refimpl.datasets.batches import Segment
from refimpl.ranks import ALONE, join, launched, share
from refimpl.starts import kernels_option

TOLERANCE = 1e-4  # float32 sums in another order, through some tens of updates of Adam
NAP = 0.002  # seconds


def laptop(quick: bool) -> tuple[ModelConfig, TrainConfig]:
    """The preset, for bytes."""
    tables = settings.preset("laptop")
    config, train = settings.model_config({**tables["model"], "vocabulary": 256}), TrainConfig(**tables["train"])
    train = replace(train, updates=10**9, last_updates=0, workers=0)
    return (replace(config, width=16, span=16, memory=8), replace(train, batch=4, block=8)) if quick else (config, train)


class Counted:
    """Ranks that count the seconds of their sums."""

    def __init__(self, ranks: Any) -> None:
        self._ranks, self.seconds = ranks, 0.0
        self.rank, self.size, self.stacked = ranks.rank, ranks.size, ranks.stacked

    def add(self, vector: Any, numbers: Any) -> Any:
        """As theirs."""
        start = time.perf_counter()
        every = self._ranks.add(vector, numbers)
        self.seconds += time.perf_counter() - start
        return every


def serve(threads: int, updates: int, quick: bool, parallel: str) -> None:
    """A rank: for each line on rank 0's stdin some updates, answered with seconds, those of the sums, and losses."""
    told = launched(os.environ)
    ranks = Counted(join(told) if told and told.size > 1 else ALONE)
    (config, train), rng = laptop(quick), np.random.default_rng(0)
    train = replace(train, parallel=parallel)
    p = parameters.initialize(config, 0, train.dtype)
    own = share(ranks, train.batch)
    past, shape = model.initial_past(config, own.stop - own.start, p.vector), (2, train.batch, train.block)
    segments = (Segment(*rng.integers(0, 256, shape), restart=False) for _ in itertools.count())
    with limit_threads(threads):
        results = training.run(p, optimizers.initialize(train, p), config, train, segments, past, ranks)
        while turn(ranks):
            ranks.stacked([0])
            start, ranks.seconds = time.perf_counter(), 0.0
            losses = [float(result.loss) for result in itertools.islice(results, updates)]
            ranks.stacked([0])
            if ranks.rank == 0:
                print(json.dumps([time.perf_counter() - start, ranks.seconds, losses]), flush=True)


def turn(ranks: Counted) -> bool:
    """Waits for the next turn; False after the last one."""
    if ranks.rank == 0:
        goes_on = bool(sys.stdin.readline())
    if ranks.size > 1:
        from mpi4py import MPI

        world = MPI.COMM_WORLD
        if ranks.rank == 0:
            for rank in range(1, ranks.size):
                world.send(goes_on, rank)
        else:
            while not world.Iprobe(0):
                time.sleep(NAP)
            goes_on = world.recv(source=0)
    return goes_on


class Group:
    """So many ranks of so many threads, started and asked for turns."""

    def __init__(
        self, ranks: int, threads: int, parallel: str, updates: int, quick: bool, environment: Mapping[str, str]
    ) -> None:
        unit = parallel.removesuffix("es" if parallel == "processes" else "s")
        self.name = f"{ranks} rank{'s' * (ranks > 1)} of {threads} {parallel if threads > 1 else unit}"
        mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
        line = [*mpiexec, sys.executable, __file__, "--serve", str(threads), "--parallel", parallel, "--updates",
                str(updates)]
        self.process = subprocess.Popen(line + ["--quick"] * quick, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, **environment})
        self.sums: list[float] = []
        self.losses: list[float] = []

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def seconds(self) -> float:
        """Of one turn."""
        self.process.stdin.write("turn\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name}: it ended with {self.process.wait()}")
        seconds, summing, losses = json.loads(answer)
        self.sums.append(summing / seconds)
        self.losses += losses
        return seconds


@click.command()
@click.option("--ranks", "counts", multiple=True, type=click.IntRange(2), default=(2,), show_default=True)
@click.option("--updates", type=click.IntRange(1), default=10, show_default=True, help="Of a turn.")
@measure.repeats_option(15)
@kernels_option
@click.option("--quick", is_flag=True, help="Small sizes: whether it runs, not how fast.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every figure here.")
@click.option("--serve", "threads", type=int, hidden=True)
@click.option("--parallel", default="threads", hidden=True)
def main(
    counts: tuple[int, ...], updates: int, repeats: int, kernels: str, quick: bool, path: Path | None, threads: int | None,
    parallel: str,
) -> None:
    """Prints the times of a turn, how many times faster than one rank it is, and the share of the sums."""
    if threads:
        serve(threads, updates, quick, parallel)
        return
    made = measure.machine(1, kernels)
    measure.print_machine(made)
    environment = measure.our_environments(kernels)[measure.OURS]
    with ExitStack() as stack:
        alone = [(1, max(counts), parallel) for parallel in ("threads", "processes")]
        kinds = [(1, 1, "threads"), *((count, 1, "threads") for count in counts), *alone]
        groups = [stack.enter_context(Group(*kind, updates, quick, environment)) for kind in kinds]
        times = measure.take_turns(groups, repeats)
    error = max(measure.relative_error(np.array(group.losses), np.array(groups[0].losses)) for group in groups)
    if not error <= TOLERANCE:
        raise SystemExit(f"losses: expected them within {TOLERANCE:.0e} of one rank's, got {error:.1e}")
    summary = measure.summarize(times)
    for group in groups:
        row, exchange = summary[group.name], statistics.median(group.sums[1:])
        row.update(speed_up=1 / row["ratio"], speed_up_of_least=1 / row["ratio_of_least"], exchange=exchange)
        click.echo(f"{group.name:<24}{1e3 * row['median'] / updates:>8.1f} ms an update   {row['speed_up']:.2f} x  "
                   f"({row['speed_up_of_least']:.2f} x of the least)   sums {exchange:.1%}")
    measure.write(path, made, [{"case": "laptop", "updates": updates, "times": summary, "largest_error": error}])


if __name__ == "__main__":
    main()
