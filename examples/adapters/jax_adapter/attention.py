"""All-attention and its ablations: the positions that each query sees are gathered by index."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .layers import Arrays, Settings, drop, span_mask


def window(rows: Any, block: int, size: int, attend_self: bool) -> tuple[Any, np.ndarray]:
    """The S rows that each query sees, nearest first, (B, P + T, H, E) -> (B, T, S, H, E), and which there are (T, S)."""
    where = (rows.shape[1] - block + attend_self - 1 + np.arange(block))[:, None] - np.arange(size)
    return rows[:, np.maximum(where, 0)], where >= 0


def context_scores(queries: Any, keys: Any, size: int, attend_self: bool) -> Any:
    """q_t · k_c, 0 where there is no position: (B, T, H, E), (B, P + T, H, E) -> (B, H, T, S)."""
    rows, exists = window(keys, queries.shape[1], size, attend_self)
    return jnp.where(exists, jnp.einsum("bthe,btshe->bhts", queries, rows), 0)


def context_mix(weights: Any, values: Any, attend_self: bool) -> Any:
    """Σ_c a_tc v_c: (B, H, T, S), (B, P + T, H, E) -> (B, T, H, E)."""
    rows, exists = window(values, *weights.shape[2:], attend_self)
    return jnp.einsum("bhts,btshe->bthe", jnp.where(exists, weights, 0), rows)


def position_scores(queries: Any, table: Any) -> Any:
    """q_t · p_δ with one table (S, E) for all heads, or one for each (H, S, E) -> (B, H, T, S)."""
    return jnp.einsum("bthe,hse->bhts", queries, jnp.broadcast_to(table, (queries.shape[2], *table.shape[-2:])))


def masked_softmax(logits: Any, weight: Any, present: Any, epsilon: float) -> Any:
    """w e^s / Σ (w + ε) e^s over the slots that exist; 0 in a row where none counts."""
    logits, counted = jnp.where(present, logits, -jnp.inf), (weight + epsilon) * present
    largest = jax.lax.stop_gradient(jnp.where(counted > 0, logits, -jnp.inf).max(-1, keepdims=True))
    some = largest > -jnp.inf
    # a slot of weight 0 may lie far above those that count: held finite, so that 0 times it is 0
    limit = 0.75 * math.log(jnp.finfo(logits.dtype).max)
    exponentials = jnp.exp(jnp.minimum(logits - jnp.where(some, largest, 0), limit))
    return weight * (exponentials / jnp.where(some, (counted * exponentials).sum(-1, keepdims=True), 1))


def attend(settings: Settings, x: Arrays) -> Any:
    """y (B, T, H, E): one softmax over S positions of the context and, if there are any, N persistent vectors."""
    queries, size, attend_self = x["queries"], settings["span"], settings["attend_self"]
    block, heads, root = *queries.shape[1:3], math.sqrt(queries.shape[3])
    exists = window(x["keys"], block, size, attend_self)[1]
    logits = context_scores(queries + x.get("content_bias", 0), x["keys"], size, attend_self)
    if "positions" in x:
        logits = logits + position_scores(queries + x.get("position_bias", 0), x["positions"])
    mask = span_mask(x["rho"], size, settings["ramp"]) if "rho" in x else np.ones((heads, size), queries.dtype)
    present, weight, keep = np.broadcast_to(exists, (heads, block, size)), mask[:, None] * exists, x.get("keep")
    if "memory_keys" in x:
        slots = x["memory_keys"].shape[1]
        logits = jnp.concatenate([logits, jnp.einsum("bthe,hne->bhtn", queries, root * x["memory_keys"])], -1)
        present, weight = (jnp.pad(a, ((0, 0), (0, 0), (0, slots)), constant_values=1) for a in (present, weight))
        keep = None if keep is None else np.concatenate([keep, x["keep_memory"]], -1)
    weights = masked_softmax(logits / root, weight, present, settings["normalizer_epsilon"])
    weights = drop(weights, keep, settings.get("dropout", 0.0))
    y = context_mix(weights[..., :size], x["values"], attend_self)
    if "memory_values" in x:
        y = y + jnp.einsum("bhtn,hne->bthe", weights[..., size:], math.sqrt(slots) * x["memory_values"])
    return y


def persistent(queries: Any, keys: Any, values: Any, keep: Any, rate: float) -> Any:
    """y (B, T, G, K): softmax over persistent vectors alone; μ, ν (G, N, K)."""
    weights = drop(jax.nn.softmax(jnp.einsum("bthe,hne->bhtn", queries, keys)), keep, rate)
    return jnp.einsum("bhtn,hne->bthe", weights, math.sqrt(values.shape[1]) * values)


def all_attention(settings: Settings, x: Arrays) -> Any:
    """The layer of the paper. Raises ValueError if arguments don't fit, or if the first query sees nothing."""
    check(settings, x)
    return attend(settings, x)


def attention_split(settings: Settings, x: Arrays) -> Any:
    """Two softmaxes, outputs added; as many persistent heads as μ says (`single-head`: one of width D)."""
    y, (groups, _, width) = attend(settings, without_memory(x)), x["memory_keys"].shape
    queries = x["queries"].reshape(*y.shape[:2], groups, width)
    rate = settings.get("dropout", 0.0)
    return y + persistent(queries, x["memory_keys"], x["memory_values"], x.get("keep_memory"), rate).reshape(y.shape)


def head_split(settings: Settings, x: Arrays) -> Any:
    """The first heads, as many as the keys have, see the context alone, the others persistent vectors alone."""
    heads = x["keys"].shape[2]
    y = attend(settings, without_memory(x) | {"queries": x["queries"][:, :, :heads]})
    of_memory = persistent(x["queries"][:, :, heads:], x["memory_keys"], x["memory_values"], x.get("keep_memory"),
                           settings.get("dropout", 0.0))
    return jnp.concatenate([y, of_memory], 2)


def without_memory(x: Arrays) -> Arrays:
    """The arguments of plain attention."""
    return {name: array for name, array in x.items() if not name.startswith("memory_")}


def check(settings: Settings, x: Arrays) -> None:
    """Raises ValueError unless shapes fit and the first query sees something: JAX would clip and broadcast silently."""
    (batch, block, heads, width), length = x["queries"].shape, x["keys"].shape[1]
    in_memory = (heads, x["memory_keys"].shape[1] if "memory_keys" in x else 0, width)
    shapes = {"keys": (batch, length, heads, width), "values": (batch, length, heads, width), "rho": (heads,),
              "memory_keys": in_memory, "memory_values": in_memory}
    if "positions" in x:
        shapes["positions"] = (*x["positions"].shape[:-2], settings["span"], width)
    for name in shapes.keys() & x.keys():
        if x[name].shape != shapes[name]:
            raise ValueError(f"{name}: expected {shapes[name]}, got {x[name].shape}")
    if length < block or (length == block and "memory_keys" not in x and not settings["attend_self"]):
        raise ValueError(f"keys: expected more than {length} positions for {block} queries")


CORES = {"attention-split": attention_split, "single-head": attention_split, "head-split": head_split}
FUNCTIONS = {
    "context-scores": lambda settings, x: {
        "scores": context_scores(x["queries"], x["keys"], settings["size"], settings["attend_self"])},
    "context-mix": lambda settings, x: {"y": context_mix(x["weights"], x["values"], settings["attend_self"])},
    "relative-positions": lambda settings, x: {"scores": position_scores(x["queries"], x["table"])},
    "masked-softmax": lambda settings, x: {
        "attention": masked_softmax(x["logits"], x["weight"] * x["present"], x["present"], settings["epsilon"])},
    "persistent-attention": lambda settings, x: {
        "y": persistent(x["queries"], x["memory_keys"], x["memory_values"], x.get("keep"), settings.get("rate", 0.0))},
    "all-attention": lambda settings, x: {"y": all_attention(settings, x)},
    "attention-split": lambda settings, x: {"y": attention_split(settings, x)},
    "single-head": lambda settings, x: {"y": attention_split(settings, x)},
    "head-split": lambda settings, x: {"y": head_split(settings, x)},
}
