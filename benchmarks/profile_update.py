"""Where an update's time goes: processor time of its parts, their operations, and the rates that this machine reaches.

    python benchmarks/profile_update.py --json profile.json

The model is that of update.py, one worker for each thread. A part's time is that of its own functions in all threads,
without what they call of other parts. Operations are those of its matrix products, counted from the sizes; the rate is that
of one thread. Beside it stand the rates of large products, of products as the attention needs them, of exp and of copying.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import measure
import numpy as np
import update
from contender import Contender

from refimpl import model, optimizers, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.layers import embedding, layer_norm, linear, multi_head, softmax_loss, span, tiled_attention

PARTS: Mapping[str, list[tuple[ModuleType, str]]] = {
    "attention, forward": [(tiled_attention, "attend")],
    "attention, backward": [(tiled_attention, "backward")],
    "projections": [(linear, "forward"), (linear, "backward"), (multi_head, "project_backward")],
    "layer norm": [(layer_norm, "forward"), (layer_norm, "backward")],
    "loss": [(softmax_loss, "forward"), (softmax_loss, "backward")],
    "embedding": [(embedding, "forward"), (embedding, "backward")],
    "optimiser, clipping": [(optimizers, "update"), (optimizers, "gradient_norm")],
    "past": [(model, "extend_past")],
    "the rest": [(training, "on_rows"), (training, "_combine")],
}
UPDATES, REPEATS = 9, 40


class Clock:
    """Processor seconds by part."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner = threading.local()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its own time counted."""
        @wraps(function)
        def run(*given: Any, **named: Any) -> Any:
            outer, self._inner.seconds = getattr(self._inner, "seconds", 0.0), 0.0
            start = time.thread_time()
            try:
                return function(*given, **named)
            finally:
                taken = time.thread_time() - start
                self.seconds[part] += taken - self._inner.seconds
                self._inner.seconds = outer + taken

        return run


@contextmanager
def watched(clock: Clock) -> Any:
    """The parts' functions counted by the clock."""
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for module, name in functions:
                original = getattr(module, name)
                setattr(module, name, clock.timed(part, original))
                stack.callback(setattr, module, name, original)
        yield


class Ours(update.Ours):
    """With questions of its own."""

    def profile(self) -> dict[str, Any]:
        """Seconds of an update by the clock, and processor seconds by part: means after the first two updates."""
        self.run(), self.run()
        clock, seconds = Clock(), 0.0
        with watched(clock):
            for _ in range(UPDATES):
                seconds += self.run()
        return {"seconds": seconds / UPDATES, "parts": {part: clock.seconds[part] / UPDATES for part in PARTS}}

    def operations(self) -> dict[str, float]:
        """Of the products of an update, by part."""
        config, train, p, *_ = self._case
        return operations(config, train, [reached(config, p[f"layers.{layer}.attention.span"])
                                          for layer in range(config.layers)])

    def rates(self) -> dict[str, float]:
        """What one thread reaches: 10⁹ operations of products in float32, 10⁹ exp, 10⁹ bytes read and written, a second."""
        large, rows, wide = (np.full(shape, 0.01, "float32") for shape in ((1024, 1024), (128, 64), (64, 1024)))
        out, block, copied = np.empty_like(large), np.empty((128, 1024), "float32"), np.ones(1 << 24, "float32")
        target = np.empty_like(copied)
        with update.limit_threads(1):
            return {"large products": 2 * 1024**3 / fastest(lambda: np.matmul(large, large, out=out)),
                    "products of a tile": 2 * 128 * 64 * 1024 / fastest(lambda: np.matmul(rows, wide, out=block)),
                    "exp": block.size / fastest(lambda: np.exp(out[:128], out=block)),
                    "copying": 2 * copied.nbytes / fastest(lambda: np.copyto(target, copied))}


def fastest(function: Callable[[], Any]) -> float:
    """Seconds of the fastest of REPEATS calls, in units of 10⁻⁹, so that counts divided by it are in 10⁹ a second."""
    least = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        least = min(least, time.perf_counter() - start)
    return 1e9 * least


def reached(config: ModelConfig, rho: Any) -> list[int]:
    """Positions that each head computes."""
    if config.normalizer_epsilon:
        return [int(span.untrimmed(rho, config.span, config.span_ramp))] * len(rho)
    return [int(reach) for reach in span.reach(rho, config.span, config.span_ramp)]


def operations(config: ModelConfig, train: TrainConfig, reaches: list[list[int]]) -> dict[str, float]:
    """Two for each product of two numbers. n positions and N vectors: 3 n + 2 N forward, 8 n + 5 N backward, of width E.

    Projections: queries and output of the block, keys and values of the past that is reached, too; backward the weights'
    gradients as many again, and the input's for the block.
    """
    rows = train.batch * train.block
    forward = backward = projections = 0.0
    for layer in reaches:
        for n in layer:
            forward += 2 * rows * config.head_width * (3 * n + 2 * config.memory)
            backward += 2 * rows * config.head_width * (8 * n + 5 * config.memory)
        context = rows + train.batch * min(config.span, max(layer))
        projections += 2 * config.width**2 * (2 * (2 * rows + 2 * context) + 4 * rows)
    output = 3 * 2 * rows * config.width * config.vocabulary
    return {"attention, forward": forward, "attention, backward": backward, "projections": projections + output}


@click.command()
@measure.options()
def main(threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints the parts of an update with spans full and at 0, then the rates."""
    config, train = (update.SMALL, update.SMALL_TRAIN) if quick else (update.MODEL, update.TRAIN)
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    environment = measure.our_environments(kernels)[measure.OURS]
    for case, share in update.SPANS.items():
        settings = update.settings_of(replace(config, span_initial=share),
                                      replace(train, attention="tiled", parallel="threads"))
        with Contender(measure.OURS, "profile_update:Ours", settings, threads, environment) as ours:
            found, counted, rates = ours.answer("profile"), ours.answer("operations"), ours.answer("rates")
        rows.append({"case": case, "settings": settings, **found, "operations": counted, "rates": rates})
        total = sum(found["parts"].values())
        click.echo(f"{case}: {1e3 * found['seconds']:.0f} ms, {1e3 * total:.0f} ms of {threads} threads")
        for part, seconds in found["parts"].items():
            billions = counted.get(part, 0) / 1e9
            done = f"{billions:>10.1f} GFLOP {billions / seconds:>6.0f} GFLOP/s" if billions else ""
            click.echo(f"  {part:<22}{1e3 * seconds:>8.1f} ms {100 * seconds / total:>5.1f} %{done}")
    click.echo("one thread: " + ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items()) + " · 10⁹ a second")
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
