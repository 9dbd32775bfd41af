"""SGD with momentum, Adagrad and Adam as published, with clipping and warm-up: vector arithmetic on the flat vector.

Everything happens in place, in one pass: piece after piece, each small enough for a processor's cache, so that what stands
between an equation's operations never leaves it. Pieces are spread over threads; bits depend on neither.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from refimpl.arrays import Array, available_cores, is_device, map_in_threads, module_of
from refimpl.config import TrainConfig
from refimpl.parameters import Parameters

ACCUMULATORS = {"sgd": ("momentum",), "adagrad": ("squares",), "adam": ("mean", "squares")}
PIECE = 131_072  # elements; four such arrays of float32 stay in a second-level cache of 2 MiB
SHARE = 8_388_608  # elements for each thread: calling one for less is not worth it


@dataclass
class State:
    """Accumulators by name, each like the parameters and 0 at first; the count of updates.

    clipped: the share of tensors that the last update clipped; of all together 0 or 1. skipped: how many of the updates
    changed nothing, as they were not finite, and how many of them the last ones in a row.
    On a GPU, device: what a step keeps there; windows: how far heads reach, kept on the host; graph: an update's
    device.graphs.Graph, where it is to be computed from one.
    """

    updates: int
    accumulators: dict[str, Parameters]
    clipped: Array | float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    device: Any = None
    windows: Any = None
    graph: Any = None

    @property
    def steps(self) -> int:
        """How many updates have changed the parameters."""
        return self.updates - self.skipped


class Piece(NamedTuple):
    """A part of the flat vector, within one tensor where each is clipped; what its gradient is scaled by, if by anything."""

    here: slice
    factor: Array | None

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.here.stop - self.here.start)


def initialize(train_config: TrainConfig, p: Parameters) -> State:
    """The state before the first update."""
    return State(0, {name: p.zeros_like() for name in accumulators(train_config)})


def accumulators(train_config: TrainConfig) -> tuple[str, ...]:
    """What the optimiser keeps, each as large as the parameters; none for SGD without momentum."""
    plain = train_config.optimizer == "sgd" and not train_config.momentum
    return () if plain else ACCUMULATORS[train_config.optimizer]


def learning_rate(train_config: TrainConfig, update: int) -> float:
    """The rate of update u = 1, 2, …: rate · min(1, u / W), times last_factor during the last updates."""
    rate = train_config.learning_rate
    if train_config.warm_up:
        rate *= min(1.0, update / train_config.warm_up)
    if update > train_config.updates - train_config.last_updates:
        rate *= train_config.last_factor
    return rate


def gradient_norm(g: Parameters) -> Array:
    """√Σ g² over all parameters, a scalar."""
    return module_of(g.vector).sqrt(g.vector @ g.vector)


def update(p: Parameters, g: Parameters, state: State, train_config: TrainConfig) -> None:
    """One update of p and state by the gradients g, which stay as they are."""
    state.updates += 1
    state.skipped_in_a_row = 0
    rate, step = learning_rate(train_config, state.updates), STEPS[train_config.optimizer]
    # as published: clipping scales the tensor's rate, the accumulator sees the unclipped gradient
    as_published = train_config.optimizer == "adagrad" and train_config.clip_each
    pieces, state.clipped = _pieces(g, train_config)

    def change(pieces: list[Piece]) -> None:
        room = module_of(p.vector).empty((2, max(piece.size for piece in pieces)), p.vector.dtype)
        for piece in pieces:
            gradient, (scaled, out) = g.vector[piece.here], room[:, : piece.size]
            if piece.factor is not None and not as_published:
                gradient = module_of(gradient).multiply(gradient, piece.factor, out=scaled)
            step(out, gradient, [each.vector[piece.here] for each in state.accumulators.values()], state, train_config)
            if piece.factor is not None and as_published:
                out *= piece.factor
            out *= rate
            p.vector[piece.here] -= out

    threads = 1 if is_device(p.vector) else min(available_cores(), math.ceil(p.vector.size / SHARE))
    if threads == 1:
        change(pieces)
    else:
        map_in_threads(change, [pieces[first::threads] for first in range(threads)], threads)
    clamp_spans(p)


def clamp_spans(p: Parameters) -> None:
    """ρ ← clamp(ρ, 0, 1) in every layer."""
    for layer in range(p.config.layers if p.config.adaptive_span else 0):
        rho = p[f"layers.{layer}.attention.span"]
        rho.clip(0, 1, out=rho)


def _pieces(g: Parameters, train_config: TrainConfig) -> tuple[list[Piece], Array | float]:
    """The flat vector in pieces; the share of tensors that are clipped, of all together 0 or 1.

    What exceeds the limit c is scaled by c / norm, of each tensor or of all together; c = 0 leaves all.
    """
    xp, clip, size = module_of(g.vector), train_config.clip, g.vector.size
    if not clip:
        return _cut(g, 0, size, None), 0.0
    if not train_config.clip_each:
        factor = xp.minimum(1, clip / (gradient_norm(g) + 1e-6))
        return _cut(g, 0, size, factor), factor < 1
    pieces, over, start = [], 0.0, 0
    for tensor in g.values():
        norm = xp.sqrt(xp.vdot(tensor, tensor))
        factor = xp.where(norm > clip, clip / (norm + 1e-10), 1).astype(norm.dtype)
        pieces += _cut(g, start, start + tensor.size, factor)
        over, start = over + (norm > clip), start + tensor.size
    return pieces, over / len(g)


def _cut(g: Parameters, start: int, stop: int, factor: Array | None) -> list[Piece]:
    """A range of the flat vector, on a GPU in one piece."""
    most = g.vector.size if is_device(g.vector) else PIECE
    return [Piece(slice(low, min(low + most, stop)), factor) for low in range(start, stop, most)]


def _sgd_step(step: Array, g: Array, kept: list[Array], state: State, train_config: TrainConfig) -> None:
    """v ← m v + g; step v."""
    for velocity in kept:
        velocity *= train_config.momentum
        velocity += g
        g = velocity
    step[...] = g


def _adagrad_step(step: Array, g: Array, kept: list[Array], state: State, train_config: TrainConfig) -> None:
    """G ← G + g²; step g / (√G + 1e-10). Duchi, Hazan & Singer, JMLR 12 (2011) 2121, with ε outside the root."""
    xp, (squares,) = module_of(g), kept
    squares += xp.multiply(g, g, out=step)
    xp.sqrt(squares, out=step)
    step += 1e-10
    xp.divide(g, step, out=step)


def _adam_step(step: Array, g: Array, kept: list[Array], state: State, train_config: TrainConfig) -> None:
    """m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²; step m̂ / (√v̂ + 1e-8). Kingma & Ba (arXiv 1412.6980), algorithm 1."""
    xp, (mean, squares), (beta1, beta2) = module_of(g), kept, train_config.adam_betas
    mean *= beta1
    mean += xp.multiply(g, 1 - beta1, out=step)
    squares *= beta2
    xp.multiply(g, g, out=step)
    step *= 1 - beta2
    squares += step
    xp.sqrt(squares, out=step)
    step /= (1 - beta2**state.steps) ** 0.5
    step += 1e-8
    xp.divide(mean, step, out=step)
    step /= 1 - beta1**state.steps


STEPS: dict[str, Callable[[Array, Array, list[Array], State, TrainConfig], None]] = {
    "sgd": _sgd_step, "adagrad": _adagrad_step, "adam": _adam_step}
