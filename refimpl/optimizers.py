"""SGD with momentum, Adagrad and Adam as published, with clipping and warm-up: vector arithmetic on the flat vector.

Everything happens in place; beyond the accumulators there are two scratch vectors, made once.
"""

from dataclasses import dataclass, field
from typing import Any

from refimpl.arrays import Array, module_of
from refimpl.config import TrainConfig
from refimpl.parameters import Parameters

ACCUMULATORS = {"sgd": ("momentum",), "adagrad": ("squares",), "adam": ("mean", "squares")}


@dataclass
class State:
    """Accumulators by name, each like the parameters and 0 at first; the count of updates; scratch, not worth saving.

    clipped: the share of tensors that the last update clipped; of all together 0 or 1. skipped: how many of the updates
    changed nothing, as they were not finite, and how many of them the last ones in a row.
    On a GPU, device: what a step keeps there; windows: how far heads reach, kept on the host; graph: an update's
    device.graphs.Graph, where it is to be computed from one.
    """

    updates: int
    accumulators: dict[str, Parameters]
    scratch: dict[str, Parameters] = field(repr=False)
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


def initialize(train_config: TrainConfig, p: Parameters) -> State:
    """The state before the first update."""
    return State(0, {name: p.zeros_like() for name in accumulators(train_config)},
                 {name: p.zeros_like() for name in ("gradient", "step")})


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
    state.clipped, state.skipped_in_a_row = 0.0, 0
    rate = learning_rate(train_config, state.updates)
    if train_config.optimizer == "adagrad" and train_config.clip_each:
        # as published: clipping scales the tensor's rate, the accumulator sees the unclipped gradient
        step = _adagrad_step(g, state, train_config)
        state.clipped = _scale_each(step, g, train_config.clip)
    else:
        step = STEPS[train_config.optimizer](_clipped(g, state, train_config), state, train_config)
    step.vector *= rate
    p.vector -= step.vector
    clamp_spans(p)


def clamp_spans(p: Parameters) -> None:
    """ρ ← clamp(ρ, 0, 1) in every layer."""
    for layer in range(p.config.layers if p.config.adaptive_span else 0):
        rho = p[f"layers.{layer}.attention.span"]
        rho.clip(0, 1, out=rho)


def _clipped(g: Parameters, state: State, train_config: TrainConfig) -> Parameters:
    """g, or where a norm exceeds the limit c its copy scaled by c / norm: of each tensor, or of all together."""
    if not train_config.clip:
        return g
    clipped = state.scratch["gradient"]
    clipped.vector[...] = g.vector
    if train_config.clip_each:
        state.clipped = _scale_each(clipped, g, train_config.clip)
    else:
        factor = module_of(g.vector).minimum(1, train_config.clip / (gradient_norm(g) + 1e-6))
        clipped.vector *= factor
        state.clipped = factor < 1
    return clipped


def _scale_each(scaled: Parameters, g: Parameters, clip: float) -> Array | float:
    """Each tensor of `scaled` times c / (norm + 1e-10) where the norm of g's tensor exceeds c; c = 0 leaves all.

    Returns the share of tensors whose norm does.
    """
    xp, over = module_of(g.vector), 0.0
    for name in g if clip else ():
        norm = xp.sqrt(xp.vdot(g[name], g[name]))
        scaled[name] *= xp.where(norm > clip, clip / (norm + 1e-10), 1).astype(norm.dtype)
        over = over + (norm > clip)
    return over / len(g)


def _sgd_step(g: Parameters, state: State, train_config: TrainConfig) -> Parameters:
    """v ← m v + g; step v."""
    step = state.scratch["step"]
    if "momentum" not in state.accumulators:
        step.vector[...] = g.vector
        return step
    velocity = state.accumulators["momentum"].vector
    velocity *= train_config.momentum
    velocity += g.vector
    step.vector[...] = velocity
    return step


def _adagrad_step(g: Parameters, state: State, train_config: TrainConfig) -> Parameters:
    """G ← G + g²; step g / (√G + 1e-10). Duchi, Hazan & Singer, JMLR 12 (2011) 2121, with ε outside the root."""
    xp, squares, step = module_of(g.vector), state.accumulators["squares"].vector, state.scratch["step"]
    xp.multiply(g.vector, g.vector, out=step.vector)
    squares += step.vector
    xp.sqrt(squares, out=step.vector)
    step.vector += 1e-10
    xp.divide(g.vector, step.vector, out=step.vector)
    return step


def _adam_step(g: Parameters, state: State, train_config: TrainConfig) -> Parameters:
    """m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²; step m̂ / (√v̂ + 1e-8). Kingma & Ba (arXiv 1412.6980), algorithm 1."""
    xp, step, (beta1, beta2) = module_of(g.vector), state.scratch["step"], train_config.adam_betas
    mean, squares = state.accumulators["mean"].vector, state.accumulators["squares"].vector
    mean *= beta1
    xp.multiply(g.vector, 1 - beta1, out=step.vector)
    mean += step.vector
    squares *= beta2
    xp.multiply(g.vector, g.vector, out=step.vector)
    step.vector *= 1 - beta2
    squares += step.vector
    xp.sqrt(squares, out=step.vector)
    step.vector /= (1 - beta2**state.steps) ** 0.5
    step.vector += 1e-8
    xp.divide(mean, step.vector, out=step.vector)
    step.vector /= 1 - beta1**state.steps
    return step


STEPS = {"sgd": _sgd_step, "adagrad": _adagrad_step, "adam": _adam_step}
