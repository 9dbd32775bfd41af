"""WikiText-103's adaptive softmax, loss and gradients: refimpl in training, its textbook, and PyTorch's module of that name.

    python -m pip install torch==2.13.0
    python benchmarks/adaptive_softmax.py --json adaptive_softmax.json

Vocabulary of 267,735 in four clusters, width 512, 2048 tokens whose ranks follow Zipf's law; float32. torch.nn.
AdaptiveLogSoftmaxWithLoss has no biases in its tails and no projection of the head: beside it stands the same function as
ours in PyTorch, as its users write it. For the module ours has biases of 0 and the identity as the head's projection, which
it computes all the same. Loss, hidden state's gradient and those of the tables, the ones that a tied input adds to, are
compared before anything is timed; peak memory is what a turn of a fresh process adds to what stood there before it.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import click
import measure
import numpy as np

from refimpl.arrays import limit_threads
from refimpl.layers import adaptive_softmax, fused_softmax

SIZES = {"vocabulary": 267735, "cutoffs": [20000, 40000, 200000], "divisor": 4, "width": 512, "tokens": 2048}
SMALL = {"vocabulary": 600, "cutoffs": [50, 100, 300], "divisor": 2, "width": 32, "tokens": 40}
TOLERANCE = 1e-5  # float32 sums over the words of a cluster, in different orders
MODULE, SAME, TEXTBOOK = "AdaptiveLogSoftmaxWithLoss", "the same function in torch", "refimpl's textbook"
PEERS = {MODULE: "adaptive_softmax_torch:Module", SAME: "adaptive_softmax_torch:Same"}


class Case(NamedTuple):
    """hidden (tokens, D), targets (tokens), weights by refimpl's names, d_loss (tokens)."""

    hidden: Any
    targets: Any
    weights: adaptive_softmax.Weights
    d_loss: Any


def draw(settings: Mapping[str, Any]) -> Case:
    """The same for all who ask; settings["plain"]: no biases in the tails, the head not projected."""
    rng, width, rows = np.random.default_rng(0), settings["width"], settings["tokens"]
    bounds = [0, *settings["cutoffs"], settings["vocabulary"]]
    widths = [width // settings["divisor"] ** i for i in range(len(bounds) - 1)]

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return rng.standard_normal(shape, dtype="float32") * np.float32(scale)

    counts = np.diff(bounds).tolist()
    tables = [normal(count, inner, scale=inner**-0.5) for count, inner in zip(counts, widths, strict=True)]
    biases, projections = [normal(count) for count in counts], [normal(width, inner, scale=width**-0.5) for inner in widths]
    if settings["plain"]:
        biases, projections[0] = [biases[0], *map(np.zeros_like, biases[1:])], np.eye(width, dtype="float32")
    tails = len(counts) - 1
    weights = adaptive_softmax.Weights(tables, biases, projections, normal(tails, width, scale=width**-0.5), normal(tails))
    share = 1 / (np.arange(settings["vocabulary"]) + 2.7)  # Zipf's law as Mandelbrot corrected it
    targets = rng.choice(settings["vocabulary"], rows, p=share / share.sum())
    return Case(normal(rows, width), targets, weights, normal(rows))


class Ours:
    """layers/fused_softmax.py: the weights' gradients are added to arrays of zeros, as the model's are."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._limit = ExitStack()
        self._limit.enter_context(limit_threads())  # as long as the subject is there, as the commands do
        self._case, self._plain = draw(settings), settings["plain"]

    def run(self) -> float:
        """Seconds of loss and gradients."""
        self._told = None
        start = time.perf_counter()
        self._told = self.compute(*self._case)
        return time.perf_counter() - start

    def compute(self, hidden: Any, targets: Any, weights: adaptive_softmax.Weights, d_loss: Any) -> tuple[Any, Any, Any]:
        """loss, d_hidden, and the gradients of the weights."""
        lists = ([np.zeros(array.shape, array.dtype) for array in arrays] for arrays in weights[:3])
        d = adaptive_softmax.Weights(*lists, *map(np.zeros_like, weights[3:]))
        loss, d_hidden = fused_softmax.loss_and_gradients(hidden, targets, weights, "ascending", d_loss, d)
        return loss, d_hidden, d

    def results(self) -> dict[str, Any]:
        """What the module has too; else all."""
        self.run()
        loss, d_hidden, d = self._told
        return named(loss, d_hidden, d, self._plain)


class Textbook(Ours):
    """layers/adaptive_softmax.py."""

    def compute(self, hidden: Any, targets: Any, weights: adaptive_softmax.Weights, d_loss: Any) -> tuple[Any, Any, Any]:
        """The same."""
        loss, saved = adaptive_softmax.forward(hidden, targets, weights, "ascending")
        return loss, *adaptive_softmax.backward(d_loss, saved)


def named(loss: Any, d_hidden: Any, d: adaptive_softmax.Weights, plain: bool) -> dict[str, Any]:
    """Results by name, in a plain case those of weights that the module has."""
    told = {"loss": loss, "d_hidden": d_hidden, "d_cluster_table": d.cluster_table, "d_cluster_bias": d.cluster_bias,
            **{f"d_table {i}": table for i, table in enumerate(d.tables)}}
    told |= {f"d_bias {i}": bias for i, bias in enumerate(d.biases) if not (plain and i)}
    return told | {f"d_projection {i}": projection for i, projection in enumerate(d.projections) if not (plain and i == 0)}


@click.command()
@measure.repeats_option(7)
@measure.options()
def main(repeats: int, threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints time and peak memory."""
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    for peer, subject in PEERS.items():
        settings = {**(SMALL if quick else SIZES), "plain": peer == MODULE}
        subjects = {measure.OURS: "adaptive_softmax:Ours", TEXTBOOK: "adaptive_softmax:Textbook", peer: subject}
        memory = measure.first_memory(subjects, settings, threads, kernels)
        compared = measure.compare(subjects, settings, TOLERANCE, repeats, threads, kernels)
        rows.append({"case": peer, "memory": memory, **compared})
        measure.print_times("loss + gradients", compared["times"])
        measure.print_memory("peak memory", memory)
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
