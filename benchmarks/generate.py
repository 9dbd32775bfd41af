"""One generated token: refimpl beside a plain PyTorch loop that keeps keys and values, as its users write it.

    python -m pip install torch==2.13.0
    python benchmarks/generate.py --json generate.json

Both read the same tokens with the same parameters, in float32 on the same threads; before anything is timed their
log-probabilities are compared. Runs alternate, so that what else the machine does slows both. Figures are medians over
repeats, each the median of some tokens, with the least and the largest; on one thread of the process's own time, which does
not count what others run in between.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import click
import numpy as np
import torch

from refimpl import parameters
from refimpl.arrays import limit_threads
from refimpl.computing import computing
from refimpl.config import ModelConfig
from refimpl.continuation import Continuation

BASE = ModelConfig(vocabulary=256, width=512, heads=8, layers=4, span=1024, memory=256, span_ramp=32, span_initial=0.25)
SMALL = ModelConfig(vocabulary=256, width=128, heads=4, layers=3, span=64, memory=64, span_ramp=32, span_initial=0.25)
LARGEST = 2e-4  # difference of log-probabilities of size 1 to 10 that float32 explains


class TorchLoop:
    """All-attention, post-norm, relative positions, plain output: one token at a time, past keys and values concatenated.

    Keys and values beyond the layer's largest span are cut off, in whole multiples of 64, as the published code does.
    """

    def __init__(self, p: parameters.Parameters, config: ModelConfig, pasts: int = 0) -> None:
        self.config, self.p = config, {name: torch.from_numpy(np.array(array)) for name, array in p.items()}
        heads, width, slots = config.heads, config.head_width, config.memory
        self.past, self.masks, self.memory = [], [], []
        for layer in range(config.layers):
            name = f"layers.{layer}.attention"
            reach = config.span * self.p[f"{name}.span"]
            size = min(config.span, -(-int(reach.max() + config.span_ramp) // 64) * 64)
            distance = torch.arange(size - 1, -1, -1)
            self.masks.append(((config.span_ramp + reach[:, None] - distance) / config.span_ramp).clamp(0, 1)[None])
            self.memory.append((self.p[f"{name}.memory_keys"] * width**0.5, self.p[f"{name}.memory_values"] * slots**0.5))
            # what the past holds makes no difference to the time that it takes
            self.past.append(tuple(torch.randn(1, heads, min(pasts, size), width) for _ in range(2)))
        self.positions = self.p["positions"].flip(0).T.contiguous()

    def add(self, token: int) -> torch.Tensor:
        """log p of the word after this token, (1, V)."""
        p, config = self.p, self.config
        h = p["input.table"][token][None]
        for layer in range(config.layers):
            name = f"layers.{layer}.attention"
            h = self._norm(h + self._attend(layer, h) @ p[f"{name}.output"].T, f"{name}_norm")
        return torch.log_softmax(h @ p["output.table"].T + p["output.bias"], -1)

    def _attend(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        config, name = self.config, f"layers.{layer}.attention"
        heads, width = config.heads, config.head_width
        query, key, value = ((h @ self.p[f"{name}.{kind}"].T).view(1, heads, 1, width) for kind in ("query", "key", "value"))
        (keys, values), mask, (memory_keys, memory_values) = self.past[layer], self.masks[layer], self.memory[layer]
        count, size = keys.shape[2], mask.shape[-1]
        positions = self.positions[:, self.positions.shape[1] - count :]
        logits = query @ keys.transpose(2, 3) + query @ positions
        logits = torch.cat([logits, query @ memory_keys.transpose(1, 2)], -1) / width**0.5
        weights = torch.softmax(logits, -1)
        seen = weights[..., :count] * mask[:, :, None, size - count :]
        weights = torch.cat([seen, weights[..., count:]], -1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = weights[..., :count] @ values + weights[..., count:] @ memory_values
        self.past[layer] = tuple(torch.cat(pair, 2)[:, :, -size:] for pair in ((keys, key), (values, value)))
        return y.view(1, -1)

    def _norm(self, h: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(h, h.shape[-1:], self.p[f"{name}.gain"], self.p[f"{name}.bias"], 1e-5)


def draw(config: ModelConfig) -> parameters.Parameters:
    """Parameters; span_initial is the mean of the heads' spans, which differ as learned ones do."""
    p = parameters.initialize(config, 0, "float32")
    for layer in range(config.layers):
        p[f"layers.{layer}.attention.span"] *= np.linspace(0.5, 1.5, config.heads, dtype="float32").clip(0, 1 / max(
            config.span_initial, 1e-9))
    return p


def difference(config: ModelConfig) -> float:
    """The largest difference of log-probabilities over a text long enough to fill the small model's spans."""
    p, tokens = draw(config), np.random.default_rng(0).integers(0, 256, 150)
    ours, theirs, worst = Continuation(p, config, [tokens[:1]]), TorchLoop(p, config), 0.0
    theirs.add(int(tokens[0]))
    for token in tokens[1:]:
        ours.add([int(token)])
        worst = max(worst, float(np.abs(ours.log_p - theirs.add(int(token)).numpy()).max()))
    return worst


def seconds(add: Callable[[int], object], tokens: list[int], clock: Callable[[], float]) -> float:
    """Seconds of one token: the median, as now and then the machine does something else."""
    taken = []
    for token in tokens:
        start = clock()
        add(token)
        taken.append(clock() - start)
    return statistics.median(taken)


def measure(config: ModelConfig, length: int, repeats: int, count: int, clock: Callable[[], float]) -> dict[str, object]:
    """Microseconds of one token after a text of `length` tokens, ours and theirs in turn."""
    p, rng = draw(config), np.random.default_rng(0)
    ours, theirs = Continuation(p, config, [rng.integers(0, 256, length)]), TorchLoop(p, config, length)
    found: dict[str, list[float]] = {"refimpl": [], "torch": []}
    for repeat in range(-1, repeats):
        tokens = [int(token) for token in rng.integers(0, 256, count)]
        for name, add in (("refimpl", lambda token: ours.add([token])), ("torch", theirs.add)):
            taken = seconds(add, tokens, clock)
            if repeat >= 0:  # the first turn warms up
                found[name].append(1e6 * taken)
    summary = {name: {"median": statistics.median(values), "least": min(values), "largest": max(values)}
               for name, values in found.items()}
    return {**summary, "ratio": summary["torch"]["median"] / summary["refimpl"]["median"]}


def cases(quick: bool) -> list[tuple[str, ModelConfig, int]]:
    """What is varied: the text's length, the span used, N."""
    lengths = (64, 1024) if quick else (64, 512, 2048, 8192)
    spans = (0.03125, 0.25) if quick else (0.03125, 0.125, 0.25, 0.5, 1.0)
    memories = (64, 1024) if quick else (64, 256, 1024, 2048)
    return [("small model", SMALL, 256), *((f"text of {length:,}", BASE, length) for length in lengths),
            *((f"mean span {int(1024 * rho)} of 1024", replace(BASE, span_initial=rho), 1536) for rho in spans),
            *((f"N = {memory}", replace(BASE, memory=memory), 1536) for memory in memories)]


@click.command()
@click.option("--repeats", default=9, show_default=True)
@click.option("--tokens", "count", default=60, show_default=True, help="Tokens of each repeat.")
@click.option("--threads", default=1, show_default=True)
@click.option("--quick", is_flag=True, help="Fewer sizes.")
@click.option("--json", "path", type=click.Path(path_type=Path), help="Write every figure here.")
def main(repeats: int, count: int, threads: int, quick: bool, path: Path | None) -> None:
    """Prints a table of microseconds per token."""
    torch.set_num_threads(threads)
    rows, clock = [], time.process_time if threads == 1 else time.perf_counter
    with limit_threads(threads), torch.inference_mode():
        for config in (SMALL, replace(BASE, layers=2, span=64)):
            worst = difference(config)
            if not worst < LARGEST:
                raise SystemExit(f"the two differ by {worst:.1e}: nothing was timed")
        made = {**computing(), "torch": torch.__version__, "clock": clock.__name__, "repeats": repeats, "tokens": count}
        click.echo("  ".join(f"{name} {value}" for name, value in made.items()))
        click.echo(f"{'microseconds per token':<26}{'refimpl':>9}{'(least-largest)':>18}{'torch':>9}{'(least-largest)':>18}"
                   f"{'ratio':>8}")
        for name, config, length in cases(quick):
            result = measure(config, length, repeats, count, clock)
            rows.append({"case": name, "length": length, "config": asdict(config), **result})
            cells = [f"{result[who]['median']:>9.0f}{'({least:.0f}-{largest:.0f})'.format(**result[who]):>18}"
                     for who in ("refimpl", "torch")]
            click.echo(f"{name:<26}{''.join(cells)}{result['ratio']:>8.2f}")
    if path:
        path.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
