"""Attention of every variant: each query's slots, the weights over them, the outputs of all heads."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from refimpl.config import ModelConfig

from .arithmetic import (
    Number,
    Vector,
    Weights,
    add,
    beside,
    clamp,
    cut,
    dot,
    dropped,
    exp,
    log_softmax,
    product,
    scaled,
    total,
)
from .positions import context_logit, nearest_first


class Slot(NamedTuple):
    """What a query may attend to: its logit s, its weight w, its value, and whether dropout keeps it (None: no dropout)."""

    logit: Number
    weight: Number
    value: Vector
    keep: bool | None


def attention(
    p: Weights, config: ModelConfig, layer: int, seen: list[Vector], block: int, keep: Mapping[str, Any]
) -> list[Vector]:
    """out_t = W_o [y_t of all heads] for the last `block` positions of g = [past ; h]. [AA]"""
    name, E = f"layers.{layer}.attention", config.head_width
    keys, values = ([cut(product(p[f"{name}.{kind}"], g), E) for g in seen] for kind in ("key", "value"))
    outputs = []
    for t in range(len(seen) - block, len(seen)):
        query = product(p[f"{name}.query"], seen[t])
        context = context_slots(p, config, layer, query, keys[: t + 1], values[: t + 1])
        persistent = persistent_slots(p, config, layer, query)
        context = kept(context, keep.get(f"layers.{layer}.attention"), t - len(seen) + block)
        persistent = kept(persistent, keep.get(f"layers.{layer}.memory"), t - len(seen) + block)
        outputs.append(product(p[f"{name}.output"], head_outputs(config, context, persistent)))
    return outputs


def head_outputs(config: ModelConfig, context: list[list[Slot]], persistent: list[list[Slot]]) -> Vector:
    """y of all heads side by side, from each head's slots. [AA, section 5 for all but the first]

    All slots of a head in one softmax; attention-split: in two, added; head-split: heads of the one kind, then heads of
    the other; single-head: persistent attention of width D, added to the context heads side by side. A softmax over
    persistent slots alone has nothing masked to renormalise, so it has no ε.
    """
    if config.variant in ("all-attention", "transformer", "ff-attention"):
        return beside(attend(config, [*c, *n]) for c, n in zip(context, persistent, strict=True))
    exact = replace(config, normalizer_epsilon=0.0)
    contexts, persistents = [attend(config, slots) for slots in context], [attend(exact, slots) for slots in persistent]
    if config.variant == "head-split":
        return beside([*contexts, *persistents])
    return add(beside(contexts), beside(persistents))


def context_slots(
    p: Weights, config: ModelConfig, layer: int, query: Vector, keys: list[list[Vector]], values: list[list[Vector]]
) -> list[list[Slot]]:
    """Each context head's slots, nearest first: δ = 1..S, or 0..S-1 if it attends to itself; only what exists. [AA]

    keys and values: [position][head], the query's own position last.
    """
    first = 0 if config.attend_self else 1
    distances = range(first, min(first + config.span, len(keys)))
    heads = []
    for head, head_query in enumerate(cut(query, config.head_width)[: config.context_heads]):
        slots = []
        for distance in distances:
            logit = context_logit(p, config, layer, head, head_query, keys[-1 - distance][head], distance)
            weight: Number = 1.0
            if config.adaptive_span:
                rho = p[f"layers.{layer}.attention.span"][head]
                weight = span_mask(config, rho, nearest_first(config, distance))
            slots.append(Slot(logit, weight, values[-1 - distance][head], None))
        heads.append(slots)
    return heads


def persistent_slots(p: Weights, config: ModelConfig, layer: int, query: Vector) -> list[list[Slot]]:
    """Each persistent head's slots: key √E μ_n, value √N ν_n, weight 1, for the last heads of the query. [AA]

    As many heads, of the width, as the persistent keys have: single-head's one has the whole query and E = D.
    """
    if not config.memory:
        return [[] for _ in range(config.heads)]
    memory_keys, memory_values = (p[f"layers.{layer}.attention.memory_{kind}"] for kind in ("keys", "values"))
    N, E = len(memory_keys[0]), len(memory_keys[0][0])
    queries = cut(query, E)[-len(memory_keys) :]
    return [[Slot(dot(q, scaled(math.sqrt(E), mu)) / math.sqrt(E), 1.0, scaled(math.sqrt(N), nu), None)
             for mu, nu in zip(head_keys, head_values, strict=True)]
            for q, head_keys, head_values in zip(queries, memory_keys, memory_values, strict=True)]


def kept(heads: list[list[Slot]], keep: Any, t: int) -> list[list[Slot]]:
    """The slots with the keep-mask's (heads, T, slots) decision at query t; as they are without a mask."""
    if keep is None:
        return heads
    return [[slot._replace(keep=decision) for slot, decision in zip(slots, head[t], strict=False)]
            for slots, head in zip(heads, keep, strict=True)]


def attend(config: ModelConfig, slots: list[Slot]) -> Vector:
    """y = Σ_j a_j value_j, a dropped after normalisation; 0 for a context head that sees nothing beside memory.

    Raises ValueError if no slot has weight and the model has no memory.
    """
    if not any(slot.weight.real > 0 for slot in slots):
        if not config.memory:
            raise ValueError("attention: expected a slot with a weight above 0, got none")
        return [0.0] * config.head_width
    logits, mask = [slot.logit for slot in slots], [slot.weight for slot in slots]
    epsilon = config.normalizer_epsilon
    weights = published_weights(logits, mask, epsilon) if epsilon > 0 else exact_weights(logits, mask)
    if slots[0].keep is not None:
        weights = dropped(weights, [bool(slot.keep) for slot in slots], config.dropout)
    return [total(a * value for a, value in zip(weights, column, strict=True))
            for column in zip(*(slot.value for slot in slots), strict=True)]


def span_mask(config: ModelConfig, rho: Number, x: int) -> Number:
    """m_z(x) = clamp((R + z - x) / R, 0, 1), z = S ρ. [AS]"""
    return clamp((config.span_ramp + config.span * rho - x) / config.span_ramp)


def exact_weights(logits: Vector, mask: Vector) -> Vector:
    """a = w exp(s) / Σ w exp(s). A w that is 0 to all orders is left out: its exp(s) may overflow. [AS, equation 5]"""
    top = max(s.real for s, w in zip(logits, mask, strict=True) if w.real > 0)
    terms = [w * exp(s - top) if w else 0.0 for s, w in zip(logits, mask, strict=True)]
    normalizer = total(terms)
    return [term / normalizer for term in terms]


def published_weights(logits: Vector, mask: Vector, epsilon: float) -> Vector:
    """a = w π / (Σ w π + ε), π = softmax(s) over every slot that exists: the three steps of the published code."""
    masked = [w * exp(log_share) for w, log_share in zip(mask, log_softmax(logits), strict=True)]
    normalizer = total(masked) + epsilon
    return [weight / normalizer for weight in masked]


def span_penalty(p: Weights, config: ModelConfig) -> Number:
    """λ S mean_heads(ρ), summed over layers. [AS]"""
    if not config.adaptive_span:
        return 0.0
    spans = [p[f"layers.{layer}.attention.span"] for layer in range(config.layers)]
    return total(config.span_penalty * config.span * total(rho) / len(rho) for rho in spans)
