"""The tiled attention beside PyTorch, eager and compiled, JAX and the textbook, float32, forward and backward.

    python -m pip install torch==2.13.0 jax
    python benchmarks/attention.py --json attention.json

Each contender has a process of its own, and they take turns; y and every gradient are compared before anything is timed.
Beside the times: which share of the rate of large matrix products, measured in the same turns, the products that the
function needs would make. `--memory` tells what the first turn of each takes beside its arguments.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import measure
import numpy as np

from refimpl.arena import Arena, lent
from refimpl.arrays import available_cores, limit_threads, map_in_threads
from refimpl.layers import attention, tiled_attention

SHAPE = {"batch": 4, "heads": 8, "block": 512, "size": 1024, "slots": 1024, "width": 64}
CASES: dict[str, dict[str, Any]] = {  # and each head's z
    "spans full": {**SHAPE, "spans": (1024,) * 8},
    "spans uneven": {**SHAPE, "spans": (16, 16, 32, 32, 64, 64, 128, 1024)},
    "spans 64": {**SHAPE, "spans": (64,) * 8},
    "logits 30 times as wide": {**SHAPE, "spans": (1024,) * 8, "scale": 30},
    "S = 8192, one text": {**SHAPE, "batch": 1, "size": 8192, "spans": (8192,) * 8},
}
SMALL = {"quick": {"batch": 2, "heads": 2, "block": 8, "size": 64, "slots": 3, "width": 4, "spans": (5, 64)}}
USUAL = tuple(CASES)[:3]
RAMP = 32
TOLERANCE = 1e-4  # float32 sums over a few thousand terms, in different orders
FIELDS = ("queries", "keys", "values", "positions", "memory_keys", "memory_values", "rho")
PEERS = {"torch eager": "attention_torch:eager", "torch.compile": "attention_torch:compiled",
         "jax.jit": "attention_jax:Jitted", "textbook": "attention:Textbook"}


def draw(settings: Mapping[str, Any]) -> tuple[attention.Arguments, Any]:
    """Standard normal arguments with keys and values of unit scale, queries `scale` times that, and a cotangent; always the
    same.
    """
    batch, heads, block, size, slots, width = (settings[name] for name in SHAPE)
    rng = np.random.default_rng(0)
    shapes = [(batch, block, heads, width), *[(batch, size + block, heads, width)] * 2, (size, width),
              *[(heads, slots, width)] * 2]
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in shapes]
    arrays[0] *= np.float32(settings.get("scale", 1))
    arrays[4] /= np.sqrt(np.float32(width))
    arrays[5] /= np.sqrt(np.float32(slots))
    rho = np.array(settings["spans"], "float32") / size
    return attention.Arguments(*arrays, rho), rng.standard_normal(shapes[0], dtype="float32")


def heads_first(name: str, array: Any) -> Any:
    """(B, T, H, E) -> (B, H, T, E), for what has a batch; its own inverse."""
    return np.ascontiguousarray(array.swapaxes(1, 2)) if name in ("y", *FIELDS[:3]) else array


def named(results: Iterable[Any]) -> dict[str, Any]:
    """y and gradients, heads first, by name and in our layout."""
    return {name: heads_first(name, array) for name, array in zip(("y", *FIELDS), results, strict=True)}


def trimmed(rho: Any, size: int) -> int:
    """Positions that any head sees, a multiple of 64: what adaptive-span code trims its past to."""
    return min(size, -(-(int((rho * size).max()) + RAMP) // 64) * 64)


def operations(settings: Mapping[str, Any]) -> int:
    """In the matrix products that the function needs, without any beside the band: 5 forward and 13 backward."""
    batch, _, block, size, slots, width = (settings[name] for name in SHAPE)
    seen = [min(size, span + RAMP) for span in settings["spans"]]
    return 2 * batch * block * width * sum((3 + 8) * positions + (2 + 5) * slots for positions in seen)


class Ours:
    """layers/tiled_attention.py, its arrays in an arena, as in training."""

    core: Any = tiled_attention

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._limit = ExitStack()
        self._limit.enter_context(limit_threads())  # as long as the subject is there, as the commands do
        arguments, dy = draw(settings)
        self._arguments, self._dy, self._arena = attention.Arguments(*map(lent, arguments[:7])), lent(dy), Arena()
        self._options = attention.Options(settings["size"], RAMP)

    def run(self) -> float:
        """Seconds of both directions."""
        self._told: Any = None
        start = time.perf_counter()
        with self._arena:
            y, saved = self.core.forward(self._arguments, self._options)
            self._told = y, self.core.backward(self._dy, saved)
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """As they are."""
        self.run()
        y, gradients = self._told
        return {"y": y, **{name: getattr(gradients, name) for name in FIELDS}}

    def matrix_rate(self) -> float:
        """Operations per second of 1024 × 1024 products, one on each core at a time."""
        cores = available_cores()
        left, out = np.ones((cores, 1024, 1024), "float32"), np.empty((cores, 1024, 1024), "float32")
        start = time.perf_counter()
        map_in_threads(lambda i: [np.matmul(left[i], left[i], out=out[i]) for _ in range(8)], range(cores), cores)
        return 8 * cores * 2 * 1024**3 / (time.perf_counter() - start)


class Textbook(Ours):
    """layers/attention.py."""

    core = attention


def compare(
    settings: Mapping[str, Any], subjects: Mapping[str, str], repeats: int, threads: int, kernels: str
) -> dict[str, Any]:
    """The record of one case, as measure.compare's, with the best rate of products."""
    with ExitStack() as stack:
        contenders = measure.start(stack, subjects, settings, threads, kernels)
        errors, times, rates = measure.check_agreement(contenders, TOLERANCE), {}, []
        for _ in range(repeats):
            rates.append(contenders[0].answer("matrix_rate"))
            for name, seconds in measure.take_turns(contenders, 1, warm_up=not times).items():
                times.setdefault(name, []).extend(seconds)
        about = {contender.name: contender.about for contender in contenders}
    return {"settings": settings, "times": measure.summarize(times), "largest_errors": errors, "contenders": about,
            "matrix_rate": max(rates)}


def shares(row: Mapping[str, Any]) -> dict[str, float]:
    """What share of the rate of products each makes."""
    needed = operations(row["settings"]) / row["matrix_rate"]
    return {name: needed / times["median"] for name, times in row["times"].items()}


@click.command()
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(PEERS)), help="Repeatable.  [default: all]")
@click.option("--case", "cases", multiple=True, type=click.Choice(list(CASES)),
              help=f"Repeatable.  [default: {', '.join(USUAL)}]")
@click.option("--memory", is_flag=True, help="Tell peaks in place of times.")
@measure.repeats_option(9)
@measure.options()
def main(
    peers: Sequence[str], cases: Sequence[str], memory: bool, repeats: int, threads: int, kernels: str, quick: bool,
    path: Path | None,
) -> None:
    """Prints the time, or the peak, of forward and backward for each case."""
    made, rows = measure.machine(threads, kernels), []
    subjects = {measure.OURS: "attention:Ours", **{name: PEERS[name] for name in peers or PEERS}}
    measure.print_machine(made)
    for case, settings in SMALL.items() if quick else [(case, CASES[case]) for case in cases or USUAL]:
        if memory:
            peaks = measure.first_memory(subjects, settings, threads, kernels)
            measure.print_memory(case, peaks)
            rows.append({"case": case, "settings": settings, "memory": peaks})
            continue
        rows.append({"case": case, **compare(settings, subjects, repeats, threads, kernels)})
        measure.print_times(case, rows[-1]["times"])
        told = ", ".join(f"{name} {share:.0%}" for name, share in shares(rows[-1]).items())
        click.echo(f"{case:<26}of {rows[-1]['matrix_rate'] / 1e9:.0f} GFLOP/s: {told}")
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
