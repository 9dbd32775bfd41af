"""How far each head reaches, kept on the host, so that attention on a GPU computes no more than that.

Spans are read every k updates, k so small that none can outgrow its window before the next look: a window has room for the
most that the optimiser can change a span by.
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from refimpl.arrays import Array, module_of, to_host
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import attention
from refimpl.layers import span
from refimpl.layers.attention import Arguments, Options, check, check_sight
from refimpl.masks import Keep
from refimpl.parameters import Parameters

ROOM = 1 / 16  # of S, most, that a window may have for growth
SMALL = 128  # positions: up to this S all heads compute S, and nothing is read


class Core:
    """attention.py's form. Where a head's reach is known, by the place of its layer's spans on the device, no more is done.
    """

    def __init__(self, reaches: Mapping[int, tuple[int, ...]]) -> None:
        """reaches: by the address of the layer's ρ."""
        self.reaches = reaches

    def _reach(self, rho: Array | None) -> tuple[int, ...]:
        return () if rho is None else self.reaches.get(rho.data.ptr, ())

    def needed(self, rho: Array | None, options: Options) -> int:
        """How many positions before the block have an effect."""
        return max(self._reach(rho), default=options.span)

    def forward(
        self, arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None
    ) -> tuple[Array, attention.Saved]:
        """As device.attention.forward."""
        check(arguments, options)
        check_sight(arguments, options)
        return self.attend(arguments, options, keep, keep_memory)

    def attend(
        self, arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None
    ) -> tuple[Array, attention.Saved]:
        """As device.attention.attend."""
        return attention.attend(arguments, options, keep, keep_memory, self._reach(arguments.rho))

    def backward(self, dy: Array, saved: attention.Saved) -> Arguments:
        """As device.attention.backward."""
        return attention.backward(dy, saved)


def growth(train_config: TrainConfig) -> float:
    """The most that one update can add to ρ; infinity where nothing bounds it.

    Adam: |m̂| / √v̂ ≤ (1 - β₁) / √((1 - β₂)(1 - β₁² / β₂)), by Cauchy and Schwarz, times what bias correction may add.
    Adagrad: |g| / √G ≤ 1. SGD: the clipped norm, and what momentum adds up.
    """
    rate = train_config.learning_rate * max(1.0, train_config.last_factor)
    if train_config.optimizer == "adagrad":
        return rate
    if train_config.optimizer == "sgd":
        return rate * train_config.clip / (1 - train_config.momentum) if train_config.clip else math.inf
    beta1, beta2 = train_config.adam_betas
    if beta1**2 >= beta2:
        return math.inf
    correction = max(1.0, math.sqrt(1 - beta2) / (1 - beta1))
    return rate * correction * (1 - beta1) / math.sqrt((1 - beta2) * (1 - beta1**2 / beta2))


def interval(train_config: TrainConfig) -> int:
    """How many updates one look at the spans serves, at least 1: the last of them comes after one step less."""
    each = growth(train_config)
    return max(1, min(train_config.log_every, 1 + int(min(ROOM / each, 1e6)) if each else train_config.log_every))


def room(train_config: TrainConfig) -> float:
    """What ρ can grow by before the next look."""
    every = interval(train_config)
    return growth(train_config) * (every - 1) if every > 1 else 0.0


def look(p: Parameters, room: float) -> Core:
    """Reads all spans at once; each head gets what it needs now, and room · S positions more. Waits for the device."""
    config = p.config
    names = [f"layers.{layer}.attention.span" for layer in range(config.layers)]
    held = to_host(module_of(p.vector).concatenate([p[name] for name in names]))
    heads = config.context_heads
    return Core({p[name].data.ptr: reach_of(held[layer * heads : (layer + 1) * heads], config, room)
                 for layer, name in enumerate(names)})


def reach_of(rho: Array, config: ModelConfig, room: float) -> tuple[int, ...]:
    """What each head of a layer computes: what its ρ, on the host, needs now, and room · S positions more."""
    more = math.ceil(room * config.span)
    reach = [min(config.span, int(n) + more) for n in span.reach(rho, config.span, config.span_ramp)]
    if config.normalizer_epsilon:  # positions that are not trimmed count for every head
        beyond = config.span - max(reach)
        reach = [config.span - beyond // span.TRIMMED_AT_ONCE * span.TRIMMED_AT_ONCE] * len(reach)
    return tuple(reach)


def narrowed(core: ModuleType, held: Any) -> Any:
    """The attention that does no more than heads reach, in place of the device's own, where that is known."""
    return held[1] if core is attention and held is not None else core


def kept(held: Any, p: Parameters, train_config: TrainConfig, number: int) -> Any:
    """(update of the last look, core): as held, or looked at anew before update `number`; None = all heads compute S."""
    if not p.config.adaptive_span or p.config.span <= SMALL:
        return None
    every = interval(train_config)
    if held is not None and number - held[0] < every:
        return held
    return number, look(p, room(train_config))
