"""One update, forward, backward, clipping per tensor and Adagrad: refimpl beside PyTorch, eager and compiled, and JAX.

    python -m pip install torch==2.13.0 jax
    python benchmarks/update.py --json update.json

The model is two layers of the published character-level runs, past full, in float32. Each repeat begins with the same
parameters and accumulators. Before anything is timed, loss, span penalty, every gradient, and every parameter and the past
after an update are compared. Each contender has a process of its own, and they take turns.
"""

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import measure
import numpy as np

from refimpl import model, optimizers, parameters, training
from refimpl.arena import Arena
from refimpl.arrays import limit_threads
from refimpl.config import ModelConfig, TrainConfig
from refimpl.layers import span
from refimpl.shared import plan
from refimpl.workers import Workers

MODEL = ModelConfig(vocabulary=256, width=512, heads=8, layers=2, span=1024, memory=1024, span_penalty=5e-7,
                    normalizer_epsilon=1e-8)
TRAIN = TrainConfig(optimizer="adagrad", learning_rate=0.07, clip=0.03, clip_each=True, batch=4, block=512, workers=0)
SMALL = ModelConfig(vocabulary=61, width=32, heads=4, layers=2, span=96, memory=24, span_penalty=1e-4,
                    normalizer_epsilon=1e-8)
SMALL_TRAIN = replace(TRAIN, batch=2, block=16)
SPANS = {"spans at 0": 0.0, "spans full": 1.0}  # z / S
SQUARES = 1e-3  # the accumulators at first: from 0 the first step would be the gradient's sign, which rounding may decide
TOLERANCE = 1e-4  # float32 sums over a few thousand terms in different orders, through two layers and back
PEERS = {"torch eager": "update_torch:eager", "torch.compile": "update_torch:compiled", "jax.jit": "update_jax:Jitted"}


class Case(NamedTuple):
    """What all contenders begin with: sizes, parameters by refimpl's names, tokens and targets (B, T), past (L, B, S, D)."""

    config: ModelConfig
    train: TrainConfig
    p: parameters.Parameters
    tokens: Any
    targets: Any
    past: Any


def settings_of(config: ModelConfig, train: TrainConfig, segments: int = 0) -> dict[str, Any]:
    """What a contender is started with; segments: how many the text has before, 0 = a past as long as the span, drawn."""
    return {"config": asdict(config), "train": asdict(train), "segments": segments}


def draw(settings: Mapping[str, Any]) -> Case:
    """The same for all who ask."""
    config, train = ModelConfig(**settings["config"]), TrainConfig(**settings["train"])
    rng, p = np.random.default_rng(0), parameters.initialize(config, 0, train.dtype)
    tokens, targets = rng.integers(0, config.vocabulary, (2, train.batch, train.block))
    past = rng.standard_normal((config.layers, train.batch, config.span, config.width)).astype(train.dtype)
    if settings["segments"]:
        past = model.initial_past(config, train.batch, p.vector)
        for _ in range(settings["segments"]):
            past = model.forward(p, config, tokens, targets, past).past
    return Case(config, train, p, tokens, targets, past)


def sizes_of(config: ModelConfig, p: Mapping[str, Any]) -> tuple[int, ...]:
    """How many positions of its past each layer needs."""
    reach = (float(span.reach(p[f"layers.{layer}.attention.span"], config.span, config.span_ramp).max())
             for layer in range(config.layers))
    return tuple(min(config.span, math.ceil(positions / 64) * 64) for positions in reach)


class Ours:
    """training.update, from the same parameters and accumulators each time."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._limit = ExitStack()
        self._limit.enter_context(limit_threads())  # as long as the subject is there, as the commands do
        self._case = draw(settings)
        self._state = optimizers.initialize(self._case.train, self._case.p)
        self._first = self._case.p.vector.copy()
        self._arena = Arena()
        self._workers = Workers(plan(self._case.config, self._case.train))

    def run(self) -> float:
        """Seconds of one update."""
        config, train, p, tokens, targets, past = self._case
        p.vector[...] = self._first
        self._state.updates = 0
        self._state.accumulators["squares"].vector[...] = SQUARES
        start = time.perf_counter()
        with self._arena:
            self._result = training.update(p, self._state, config, train, tokens, targets, past, workers=self._workers)
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """Of the first update; its gradients computed once more, as training.update keeps them to itself."""
        self.run()
        config, train, p, tokens, targets, past = self._case
        moved = {f"updated {name}": p[name].copy() for name in p}
        p.vector[...] = self._first
        g = model.backward(training.score(p, config, train, tokens, targets, past, 1, slice(0, train.batch)).saved)
        told = {"loss": self._result.loss, "span penalty": self._result.span_penalty, "past": self._result.past}
        return told | {f"gradient of {name}": g[name] for name in g} | moved


@click.command()
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), help="Repeatable.  [default: all]")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(SPANS)), help="Repeatable.  [default: all]")
@measure.repeats_option(7)
@measure.options()
def main(
    peers: tuple[str, ...], cases: tuple[str, ...], repeats: int, threads: int, kernels: str, quick: bool, path: Path | None
) -> None:
    """Prints the time of an update with spans at 0 and full."""
    config, train = (SMALL, SMALL_TRAIN) if quick else (MODEL, TRAIN)
    subjects = {measure.OURS: "update:Ours", **{name: PEERS[name] for name in peers or PEERS}}
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    for case in cases or SPANS:
        settings = settings_of(replace(config, span_initial=SPANS[case]), train)
        rows.append({"case": case, **measure.compare(subjects, settings, TOLERANCE, repeats, threads, kernels)})
        measure.print_times(case, rows[-1]["times"])
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
