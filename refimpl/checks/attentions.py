"""Random arguments for the attentions and the sublayers around them; shapes as in pairs.py."""

from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.checks.pairs import Pair, Stream, normal, pair

Inputs = dict[str, Array]


def draw(rng: Stream, n: int, past: int = 2, queries: int = 2, memory: tuple[int, ...] | None = None) -> Inputs:
    """Random arguments; `queries` heads ask, two have keys."""
    arrays = normal(rng, {
        "queries": (2, n, queries, n), "keys": (2, past + n, 2, n), "values": (2, past + n, 2, n), "positions": (n + 2, n),
        "memory_keys": memory or (2, n, n), "memory_values": memory or (2, n, n)})
    return {**arrays, "rho": rng.uniform(0.1, 0.4, 2)}


def masks(rng: Stream, n: int, memory_heads: int = 2) -> Inputs:
    """Keep-masks of dropout, two heads with a context."""
    return {"keep": rng.random((2, 2, n, n + 2)) > 0.3, "keep_memory": rng.random((2, memory_heads, n, n)) > 0.3}


def of_attention(rng: Stream, n: int) -> Pair:
    """All-attention in the exact form, with dropout."""
    return pair("all-attention", {"span": n + 2, "ramp": 2, "dropout": 0.3}, {**draw(rng, n), **masks(rng, n)})


def of_attention_published(rng: Stream, n: int) -> Pair:
    """ε = 1e-8, an earlier position for every slot."""
    return pair("all-attention", {"span": n + 2, "ramp": 2, "normalizer_epsilon": 1e-8}, draw(rng, n, past=n + 2))


def of_attention_without_memory(rng: Stream, n: int) -> Pair:
    """The baseline's attention, each query among what it sees."""
    inputs = {name: array for name, array in draw(rng, n).items() if not name.startswith("memory")}
    return pair("all-attention", {"span": n + 2, "ramp": 2, "attend_self": True}, inputs)


def of_attention_tiny_mass(rng: Stream, n: int) -> Pair:
    """Nearly all of softmax's weight where the mask is nearly 0: only there a forgotten Σ a da of renormalisation shows."""
    inputs = {name: array for name, array in draw(rng, n, past=n + 2).items() if not name.startswith("memory")}
    inputs["keys"][:, : n + 1] += 6 * np.sign(inputs["queries"][:, -1:])
    inputs["rho"] = np.array([0.02, 0.03])
    return pair("all-attention", {"span": n + 2, "ramp": 2, "normalizer_epsilon": 1e-8}, inputs)


def of_attention_transformer_xl(rng: Stream, n: int) -> Pair:
    """A table for each head, u and v."""
    by_head = normal(rng, {"positions": (2, n + 2, n), "content_bias": (2, n), "position_bias": (2, n)})
    return pair("all-attention", {"span": n + 2, "ramp": 2}, {**draw(rng, n), **by_head})


def of_attention_split(rng: Stream, n: int) -> Pair:
    """Two softmaxes, with dropout; nothing comes before the first query. Spans end within what the others see."""
    inputs = {**draw(rng, n, past=0), **masks(rng, n), "rho": rng.uniform(0.2, 0.8, 2) / (n + 2)}
    return pair("attention-split", {"span": n + 2, "ramp": 2, "dropout": 0.3}, inputs)


def of_single_head(rng: Stream, n: int) -> Pair:
    """One head of persistent vectors."""
    return pair("single-head", {"span": n + 2, "ramp": 2}, draw(rng, n, memory=(1, n, 2 * n)))


def of_head_split(rng: Stream, n: int) -> Pair:
    """Two heads of the context, one of persistent vectors."""
    inputs = {**draw(rng, n, queries=3, memory=(1, n, n)), **masks(rng, n, 1)}
    return pair("head-split", {"span": n + 2, "ramp": 2, "dropout": 0.3}, inputs)


def of_attention_layer(rng: Stream, n: int) -> Pair:
    """All heads with their projections, and Transformer-XL's positions."""
    square = dict.fromkeys(("query", "key", "value", "output", "position_key"), (2 * n, 2 * n))
    by_head = {"memory_keys": (2, n, n), "memory_values": (2, n, n), "content_bias": (2, n), "position_bias": (2, n)}
    inputs = normal(rng, {"context": (2, n + 2, 2 * n), **square, **by_head})
    settings: dict[str, Any] = {"variant": "all-attention", "head_width": n, "block": n, "span": n + 2, "ramp": 2}
    return pair("attention-layer", settings, {**inputs, "span": rng.uniform(0.1, 0.4, 2)})


def of_transformer_layer(rng: Stream, n: int) -> Pair:
    """Pre-norm, with a feed-forward and with dropout in it; no gradient goes into the past."""
    wide = 2 * (n + 1)
    square = {f"attention.{kind}": (wide, wide) for kind in ("query", "key", "value", "output")}
    norms = {f"{name}.{kind}": (wide,) for name in ("attention_norm", "feed_forward_norm") for kind in ("gain", "bias")}
    inner = {"feed_forward.weight1": (n, wide), "feed_forward.bias1": (n,), "feed_forward.weight2": (wide, n),
             "feed_forward.bias2": (wide,), "attention.positions": (n + 2, n + 1)}
    inputs = normal(rng, {"h": (2, n, wide), "past": (2, 2, wide), **square, **norms, **inner})
    settings: dict[str, Any] = {"variant": "transformer", "head_width": n + 1, "span": n + 2, "ramp": 2, "dropout": 0.3,
                                "norm": "pre"}
    return pair("transformer-layer", settings, {**inputs, "keep_feed_forward": rng.random((2, n, n)) > 0.3})
