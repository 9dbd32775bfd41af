"""The attentions and the sublayers around them, as gradient checks take them; shapes as in pairs.py."""

from types import ModuleType
from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.checks.pairs import Pair, Stream, normal, pair
from refimpl.layers import attention, feed_forward, head_split, multi_head, split_attention, transformer_layer


def of_attention(rng: Stream, n: int) -> Pair:
    """All-attention in the exact form, with dropout."""
    return _core(attention, rng, n, attention.Options(n + 2, 2, dropout=0.3), draw(rng, n), (2, 2))


def of_attention_published(rng: Stream, n: int) -> Pair:
    """ε = 1e-8, an earlier position for every slot."""
    return _core(attention, rng, n, attention.Options(n + 2, 2, 1e-8), draw(rng, n, past=n + 2))


def of_attention_without_memory(rng: Stream, n: int) -> Pair:
    """The baseline's attention, each query among what it sees."""
    options = attention.Options(n + 2, 2, attend_self=True)
    return _core(attention, rng, n, options, draw(rng, n)._replace(memory_keys=None, memory_values=None))


def of_attention_tiny_mass(rng: Stream, n: int) -> Pair:
    """Nearly all of softmax's weight where the mask is nearly 0: only there a forgotten Σ a da of renormalisation shows."""
    arguments = draw(rng, n, past=n + 2)
    keys = arguments.keys.copy()
    keys[:, : n + 1] += 6 * np.sign(arguments.queries[:, -1:])
    arguments = arguments._replace(keys=keys, memory_keys=None, memory_values=None, rho=np.array([0.02, 0.03]))
    return _core(attention, rng, n, attention.Options(n + 2, 2, 1e-8), arguments)


def of_attention_transformer_xl(rng: Stream, n: int) -> Pair:
    """A table for each head, u and v."""
    by_head = normal(rng, {"positions": (2, n + 2, n), "content_bias": (2, n), "position_bias": (2, n)})
    return _core(attention, rng, n, attention.Options(n + 2, 2), draw(rng, n)._replace(**by_head))


def of_attention_split(rng: Stream, n: int) -> Pair:
    """Two softmaxes, with dropout; nothing comes before the first query."""
    return _core(split_attention, rng, n, attention.Options(n + 2, 2, dropout=0.3), draw(rng, n, past=0), (2, 2))


def of_single_head(rng: Stream, n: int) -> Pair:
    """One head of persistent vectors."""
    return _core(split_attention, rng, n, attention.Options(n + 2, 2), draw(rng, n, memory=(1, n, 2 * n)))


def of_head_split(rng: Stream, n: int) -> Pair:
    """Two heads of the context, one of persistent vectors."""
    options = attention.Options(n + 2, 2, dropout=0.3)
    return _core(head_split, rng, n, options, draw(rng, n, queries=3, memory=(1, n, n)), (2, 1))


def draw(
    rng: Stream, n: int, past: int = 2, queries: int = 2, memory: tuple[int, ...] | None = None
) -> attention.Arguments:
    """Random arguments; `queries` heads ask, two have keys."""
    arrays = normal(rng, {"queries": (2, n, queries, n), "keys": (2, past + n, 2, n), "values": (2, past + n, 2, n),
                    "positions": (n + 2, n), "memory_keys": memory or (2, n, n), "memory_values": memory or (2, n, n)})
    return attention.Arguments(**arrays, rho=rng.uniform(0.1, 0.4, 2))


def _core(
    core: ModuleType, rng: Stream, n: int, options: attention.Options, arguments: attention.Arguments,
    heads: tuple[int, int] | None = None,
) -> Pair:
    """One of the attentions; with `heads` of context and memory, dropout's masks are drawn."""
    given = {name: array for name, array in arguments._asdict().items() if array is not None}
    keep: list[Array] = []
    if heads is not None:
        slots = n + 2, given["memory_keys"].shape[1]
        keep = [rng.random((2, count, n, size)) > 0.3 for count, size in zip(heads, slots, strict=True)]

    def backward(dy: Array, saved: Any) -> tuple[Array, ...]:
        gradients = core.backward(dy, saved)
        return tuple(getattr(gradients, name) for name in given)

    def forward(*arrays: Array) -> Any:
        return core.forward(attention.Arguments(**dict(zip(given, arrays, strict=True))), options, *keep)

    return pair(forward, backward, given)


def of_multi_head(rng: Stream, n: int) -> Pair:
    """With Transformer-XL's positions."""
    square = dict.fromkeys(("query", "key", "value", "output", "position_key"), (2 * n, 2 * n))
    in_memory = {"memory_keys": (2, n, n), "memory_values": (2, n, n)}
    weights = normal(rng, {**square, **in_memory, "content_bias": (2, n), "position_bias": (2, n)})
    weights["span"] = rng.uniform(0.1, 0.4, 2)
    options = multi_head.Options(attention, n, attention.Options(n + 2, 2))
    return _sublayer(
        lambda context, given: multi_head.forward(context, n, given, options, {}), multi_head.backward,
        normal(rng, {"context": (2, n + 2, 2 * n)}), weights)


def of_transformer_layer(rng: Stream, n: int) -> Pair:
    """Pre-norm, with a feed-forward and with dropout in it; no gradient goes into the past."""
    wide = 2 * (n + 1)
    square = {f"attention.{kind}": (wide, wide) for kind in ("query", "key", "value", "output")}
    norms = {f"{name}.{kind}": (wide,) for name in ("attention_norm", "feed_forward_norm") for kind in ("gain", "bias")}
    inner = {"feed_forward.weight1": (n, wide), "feed_forward.bias1": (n,), "feed_forward.weight2": (wide, n),
             "feed_forward.bias2": (wide,)}
    weights = normal(rng, {**square, **norms, **inner, "attention.positions": (n + 2, n + 1)})
    past, masks = rng.standard_normal((2, 2, wide)), {"feed_forward": rng.random((2, n, n)) > 0.3}
    of_heads = multi_head.Options(attention, n + 1, attention.Options(n + 2, 2, dropout=0.3))
    options = transformer_layer.Options(of_heads, feed_forward, pre_norm=True)
    return _sublayer(
        lambda h, given: transformer_layer.forward(h, past.astype(h.dtype), given, options, masks),
        transformer_layer.backward, normal(rng, {"h": (2, n, wide)}), weights)


def _sublayer(forward: Any, backward: Any, inputs: dict[str, Array], weights: dict[str, Array]) -> Pair:
    """A forward of one input and a dictionary of weights."""

    def of_all(dy: Array, saved: Any) -> tuple[Array, ...]:
        d_input, gradients = backward(dy, saved)
        return d_input, *(gradients[name] for name in weights)

    return pair(lambda x, *given: forward(x, dict(zip(weights, given, strict=True))), of_all, inputs | weights)
