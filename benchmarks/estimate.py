"""The memory that a dry run tells beside the memory that a run takes: updates, validation and a checkpoint.

    python benchmarks/estimate.py --json estimate.json

Each run has a fresh process; measured is the peak of what is resident above what was before the run, when Python and NumPy
had been loaded, and that of its worker process, less what the two share. The past is full from the first update on. The
estimate is `train --dry-run`'s, with spans as they begin.
"""

import resource
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np
from contender import Contender

from refimpl import accounting, optimizers, parameters, running, runs, settings, training
from refimpl.arrays import limit_threads
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.datasets.batches import Batches, every_token_once
from refimpl.evaluation import evaluate
from refimpl.inputs import initial_past
from refimpl.shared import plan

UPDATES, BLOCKS = 3, 2
TRAIN = {"optimizer": "adagrad", "learning_rate": 0.07, "clip": 0.03, "clip_each": True, "workers": 0}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "laptop": ({"vocabulary": 256, **settings.preset("laptop")["model"]}, settings.preset("laptop")["train"]),
    "laptop, textbook": ({"vocabulary": 256, **settings.preset("laptop")["model"]},
                         {**settings.preset("laptop")["train"], "attention": "textbook"}),
    "tiles, spans full": ({"vocabulary": 256, "width": 512, "heads": 8, "layers": 4, "span": 1024, "memory": 512,
                           "span_initial": 1.0}, {**TRAIN, "batch": 8, "block": 256}),
    "cutoffs": ({"vocabulary": 60000, "width": 256, "heads": 4, "layers": 4, "span": 512, "memory": 256, "span_initial": 0.5,
                 "cutoffs": [4000, 20000], "tie_tables": True, "tie_projections": True},
                {"optimizer": "adam", "workers": 0, "batch": 8, "block": 128}),
}
QUICK = {
    "textbook": ({"vocabulary": 256, "width": 64, "heads": 4, "layers": 3, "span": 64, "memory": 64, "span_initial": 0.5},
                 {"optimizer": "adam", "workers": 0, "batch": 16, "block": 64, "attention": "textbook"}),
    "tiles": ({"vocabulary": 256, "width": 128, "heads": 4, "layers": 3, "span": 512, "memory": 128, "span_initial": 1.0},
              {**TRAIN, "batch": 8, "block": 128}),
    "cutoffs": ({"vocabulary": 9000, "width": 128, "heads": 4, "layers": 3, "span": 256, "memory": 128, "span_initial": 0.5,
                 "cutoffs": [1000, 3000], "tie_tables": True, "tie_projections": True},
                {"optimizer": "adam", "workers": 0, "batch": 8, "block": 128}),
}


class Run:
    """A short run on tokens that are drawn."""

    def __init__(self, asked: Mapping[str, Any]) -> None:
        self._limit = ExitStack()
        self._limit.enter_context(limit_threads())
        self._config, updates = ModelConfig(**{**asked["model"], "zero_past": True}), asked["updates"]
        self._train = TrainConfig(**{**asked["train"], "updates": updates, "last_updates": 0, "evaluate_every": updates - 1,
                                     "checkpoint_every": updates - 1, "parallel": asked["parallel"]})
        count = (updates + 1) * self._train.batch * self._train.block + self._train.batch
        self._tokens = np.random.default_rng(0).integers(0, self._config.vocabulary, count).astype("uint16")

    def run(self) -> None:
        """From the first update to the last checkpoint."""
        train, tokens = self._train, self._tokens
        batches = Batches(tokens, train.batch, train.block, train.seed)
        with tempfile.TemporaryDirectory() as folder:
            run = runs.begin(Path(folder, "run"), self._config, train, DataConfig(), batches, {}, "0")
            some = tokens[: BLOCKS * 8 * train.block + 1]

            def validate(stop: Callable[[], bool]) -> Any:
                return evaluate(run.saved.parameters, self._config, every_token_once(some, 8, train.block))

            for _ in running.train(run, validate, lambda: False):
                pass

    def estimate(self) -> dict[str, int]:
        """Bytes by purpose."""
        return accounting.bytes_by_purpose(self._config, self._train, self._config.span_initial)

    def beside(self) -> int:
        """Peak bytes resident in the worker process of the run before, less what it shared with this one."""
        shared = plan(self._config, self._train)
        largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return largest - shared.bytes() if shared.processes > 1 else 0

    def traced(self) -> int:
        """Peak bytes that Python and NumPy allocate in this process for the first updates alone.

        In tiles as many as a run makes; of the textbook, whose workers meet at their peaks but now and then, twice as many.
        """
        tiled = accounting.Sizes(self._config, self._train, 1.0).tiled
        train = replace(self._train, updates=self._train.updates * (1 if tiled else 2))
        tracemalloc.start()
        p = parameters.initialize(self._config, 0, self._train.dtype)
        state, past = optimizers.initialize(self._train, p), initial_past(self._config, self._train.batch, p.vector)
        batches = Batches(self._tokens, self._train.batch, self._train.block, 0)
        for _ in training.run(p, state, self._config, train, batches, past):
            pass
        return tracemalloc.get_traced_memory()[1]


def start(
    case: tuple[dict[str, Any], dict[str, Any]], threads: int, kernels: str, updates: int = UPDATES,
    parallel: str = "threads",
) -> Contender:
    """A run of that case in a process of its own, with worker processes if so asked."""
    environment = measure.our_environments(kernels)[measure.OURS]
    settings_of_run = {"model": case[0], "train": case[1], "updates": updates, "parallel": parallel}
    return Contender(measure.OURS, "estimate:Run", settings_of_run, threads, environment)


@click.command()
@click.option("--updates", type=click.IntRange(2), default=UPDATES, show_default=True,
              help="Of each run; the more, the more ways its workers meet in.")
@measure.options()
def main(updates: int, threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints estimate, measured peak and their ratio for three sizes."""
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    for name, case in (QUICK if quick else CASES).items():
        for parallel in ("threads", "processes"):
            with start(case, threads, kernels, updates, parallel) as run:
                estimate, memory, beside = run.answer("estimate"), run.memory(), run.answer("beside")
            told, peak = sum(estimate.values()), memory["peak"] - memory["before"] + beside
            rows.append({"case": name, "model": asdict(ModelConfig(**case[0])), "train": case[1], "parallel": parallel,
                         "estimate": estimate, "measured": peak})
            click.echo(f"{name + ', ' + parallel:<30}estimate {told / 1e6:>8.1f} MB   measured {peak / 1e6:>8.1f} MB   "
                       f"{told / peak:.2f} x")
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
