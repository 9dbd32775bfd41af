"""One generated token: refimpl beside a plain PyTorch loop that keeps keys and values, as its users write it.

    python -m pip install torch==2.13.0
    python benchmarks/generate.py --json generate.json

Both read the same tokens with the same parameters, in float32 on as many threads; before anything is timed their
log-probabilities are compared, over a text long enough to fill the spans. Each has a process of its own, and they take
turns. A turn's figure is the median of some tokens; on one thread it is of the process's own time, which does not count
what others run in between.
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np

from refimpl import parameters
from refimpl.arrays import limit_threads
from refimpl.config import ModelConfig
from refimpl.continuation import Continuation

BASE = ModelConfig(vocabulary=256, width=512, heads=8, layers=4, span=1024, memory=256, span_ramp=32, span_initial=0.25)
SMALL = ModelConfig(vocabulary=256, width=128, heads=4, layers=3, span=64, memory=64, span_ramp=32, span_initial=0.25)
TEXT = 150  # tokens that are compared
TOLERANCE = 1e-5  # float32 through a few layers; log-probabilities are of size 1 to 10
SUBJECTS = {measure.OURS: "generate:Ours", "torch eager": "generate_torch:Torch"}


def draw(config: ModelConfig) -> parameters.Parameters:
    """Parameters; span_initial is the mean of the heads' spans, which differ as learned ones do.

    Projections are three times their first values, with which attention would add so little that mistakes in it would hide.
    """
    p = parameters.initialize(config, 0, "float32")
    spread = np.linspace(0.5, 1.5, config.heads, dtype="float32").clip(0, 1 / max(config.span_initial, 1e-9))
    for layer in range(config.layers):
        p[f"layers.{layer}.attention.span"] *= spread
        for kind in ("query", "key", "value", "output"):
            p[f"layers.{layer}.attention.{kind}"] *= 3
    return p


def settings_of(config: ModelConfig, length: int, count: int, threads: int) -> dict[str, Any]:
    """What a contender is started with: the model, the text's length before the first token, tokens of a turn."""
    return {"config": asdict(config), "length": length, "count": count, "own_time": threads == 1}


class Subject:
    """A turn is the median over `count` tokens, as now and then the machine does something else."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.config, self._count = ModelConfig(**settings["config"]), settings["count"]
        self._clock = time.process_time if settings["own_time"] else time.perf_counter
        self._rng = np.random.default_rng(0)

    def add(self, token: int) -> None:
        """Reads one token."""
        raise NotImplementedError

    def after_each(self, tokens: Any) -> list[Any]:
        """log p after each token of a text."""
        raise NotImplementedError

    def run(self) -> float:
        """Seconds of a token."""
        taken = []
        for token in self._rng.integers(0, self.config.vocabulary, self._count).tolist():
            start = self._clock()
            self.add(token)
            taken.append(self._clock() - start)
        return statistics.median(taken)

    def results(self) -> dict[str, Any]:
        """log p (text, V), less each row's mean, beside which differences between words are small."""
        tokens = np.random.default_rng(1).integers(0, self.config.vocabulary, TEXT)
        log_p = np.stack(self.after_each(tokens))
        return {"log p": log_p - log_p.mean(-1, keepdims=True)}


class Ours(Subject):
    """A Continuation."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self._limit = ExitStack()
        self._limit.enter_context(limit_threads())  # as long as the subject is there, as the commands do
        prompt = np.random.default_rng(2).integers(0, self.config.vocabulary, settings["length"])
        self._text = Continuation(draw(self.config), self.config, [prompt])

    def add(self, token: int) -> None:
        """Reads one token."""
        self._text.add([token])

    def after_each(self, tokens: Any) -> list[Any]:
        """log p after each token of a text."""
        text = Continuation(draw(self.config), self.config, [tokens[:1]])
        found = [text.log_p[0].copy()]
        for token in tokens[1:]:
            text.add([int(token)])
            found.append(text.log_p[0].copy())
        return found


def cases(quick: bool) -> list[tuple[str, ModelConfig, int]]:
    """What is varied: the text's length, the span used, N."""
    if quick:
        return [("small model", SMALL, 64)]
    return [("small model", SMALL, 256), *((f"text of {length:,}", BASE, length) for length in (64, 512, 2048, 8192)),
            *((f"mean span {int(1024 * rho)} of 1024", replace(BASE, span_initial=rho), 1536)
              for rho in (0.03125, 0.125, 0.25, 0.5, 1.0)),
            *((f"N = {memory}", replace(BASE, memory=memory), 1536) for memory in (64, 256, 1024, 2048))]


@click.command()
@click.option("--tokens", "count", type=click.IntRange(1), default=60, show_default=True, help="Of each turn.")
@measure.repeats_option(9)
@measure.options()
def main(count: int, repeats: int, threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints the time of one token."""
    clock = "process_time" if threads == 1 else "perf_counter"
    made, rows = {**measure.machine(threads, kernels), "clock": clock}, []
    measure.print_machine(made)
    for case, config, length in cases(quick):
        settings = settings_of(config, length, count, threads)
        rows.append({"case": case, **measure.compare(SUBJECTS, settings, TOLERANCE, repeats, threads, kernels)})
        measure.print_times(case, rows[-1]["times"], 1e-6, "µs")
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
