"""The optimiser's step, clipping included, beside PyTorch's, plain and fused: parameters of a word-level model, float32.

    python -m pip install torch==2.13.0
    python benchmarks/optimizer.py --json optimizer.json

60,000 words, width 512, four layers: 67 million parameters, with gradients that exceed the clipping limit. Parameters and
accumulators after the first step are compared before anything is timed.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np

from refimpl import optimizers, parameters
from refimpl.arrays import limit_threads
from refimpl.config import ModelConfig, TrainConfig
from refimpl.parameters import Parameters

SIZES = {"vocabulary": 60_000, "width": 512, "heads": 8, "layers": 4, "span": 256, "memory": 256}
SMALL = {"vocabulary": 60, "width": 16, "heads": 2, "layers": 2, "span": 8, "memory": 4}
CASES: dict[str, dict[str, Any]] = {
    "Adagrad, each clipped": {"optimizer": "adagrad", "clip": 0.03, "clip_each": True},
    "Adam, clipped": {"optimizer": "adam", "clip": 0.03},
    "SGD with momentum": {"optimizer": "sgd", "clip": 0.0, "momentum": 0.9},
}
PEERS = {"torch": "optimizer_torch:plain", "torch, fused": "optimizer_torch:fused"}
TOLERANCE = 1e-5  # a float32 norm over all parameters, in different orders
FIRST = 0.25  # what every accumulator begins with


def draw(settings: Mapping[str, Any]) -> tuple[TrainConfig, Parameters, Parameters]:
    """Settings, parameters and gradients, the same for all who ask."""
    p = parameters.initialize(ModelConfig(**settings["model"]), dtype="float32")
    g = p.with_vector(np.random.default_rng(0).standard_normal(p.vector.size, dtype="float32"))
    return TrainConfig(learning_rate=0.07, **settings["train"]), p, g


class Ours:
    """optimizers.py."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._limit = ExitStack()
        self._limit.enter_context(limit_threads())  # as long as the subject is there, as the commands do
        self._train, self._p, self._g = draw(settings)
        self._first, self._state = self._p.vector.copy(), optimizers.initialize(self._train, self._p)

    def run(self) -> float:
        """Seconds of the first step."""
        self._p.vector[...], self._state.updates = self._first, 0
        for kept in self._state.accumulators.values():
            kept.vector[...] = FIRST
        start = time.perf_counter()
        optimizers.update(self._p, self._g, self._state, self._train)
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """Parameters, and accumulators by our names."""
        self.run()
        return {"parameters": self._p.vector, **{name: kept.vector for name, kept in self._state.accumulators.items()}}


@click.command()
@measure.repeats_option(15)
@measure.options()
def main(repeats: int, threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints the time of a step."""
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    for case, train in CASES.items():
        settings = {"model": SMALL if quick else SIZES, "train": train}
        compared = measure.compare({measure.OURS: "optimizer:Ours", **PEERS}, settings, TOLERANCE, repeats, threads, kernels)
        rows.append({"case": case, **compared})
        measure.print_times(case, compared["times"])
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
