"""The attention sublayer: projections of [past ; block] to heads, all-attention, projection back. Spec: out = W_o [y]."""

from collections.abc import Mapping
from typing import NamedTuple

from refimpl.arrays import Array
from refimpl.layers import attention, linear


class Saved(NamedTuple):
    """What the four linear maps and the attention saved."""

    query: linear.Saved
    key: linear.Saved
    value: linear.Saved
    attention: attention.Saved
    output: linear.Saved


def project(x: Array, weight: Array, heads: int) -> tuple[Array, linear.Saved]:
    """W x cut into heads: (B, T, D) -> (B, T, H, E); head h is rows hE … (h+1)E of W."""
    y, saved = linear.forward(x, weight)
    return y.reshape(*y.shape[:-1], heads, y.shape[-1] // heads), saved


def forward(
    context: Array, block: int, weights: Mapping[str, Array | None], options: attention.Options, heads: int,
    keep: Array | None = None,
) -> tuple[Array, Saved]:
    """out_t = W_o [y_t of all heads] for the last `block` positions of context (B, P + T, D) -> (B, T, D).

    weights: query, key, value, output (D, D); positions, memory_keys, memory_values, span as in attention.Arguments.
    """
    queries, query = project(context[:, context.shape[1] - block :], weights["query"], heads)
    keys, key = project(context, weights["key"], heads)
    values, value = project(context, weights["value"], heads)
    y, attended = attention.forward(arguments(queries, keys, values, weights), options, keep)
    out, output = linear.forward(y.reshape(*y.shape[:2], -1), weights["output"])
    return out, Saved(query, key, value, attended, output)


def arguments(queries: Array, keys: Array, values: Array, weights: Mapping[str, Array | None]) -> attention.Arguments:
    """What the attention takes: the projections, and the weights that it uses itself."""
    return attention.Arguments(
        queries, keys, values, weights.get("positions"), weights.get("memory_keys"), weights.get("memory_values"),
        weights.get("span"),
    )


def backward(d_out: Array, saved: Saved) -> tuple[Array, dict[str, Array]]:
    """d_context (B, P + T, D), and gradients named as the weights are; those of absent weights are left out."""
    d_y, d_output, _ = linear.backward(d_out, saved.output)
    d = attention.backward(d_y.reshape(saved.attention.arguments.queries.shape), saved.attention)
    d_block, d_query, _ = linear.backward(d.queries.reshape(*d.queries.shape[:2], -1), saved.query)
    d_from_keys, d_key, _ = linear.backward(d.keys.reshape(*d.keys.shape[:2], -1), saved.key)
    d_from_values, d_value, _ = linear.backward(d.values.reshape(*d.values.shape[:2], -1), saved.value)
    d_context = d_from_keys + d_from_values
    d_context[:, d_context.shape[1] - d_block.shape[1] :] += d_block
    gradients = {"query": d_query, "key": d_key, "value": d_value, "output": d_output, "positions": d.positions,
                 "memory_keys": d.memory_keys, "memory_values": d.memory_values, "span": d.rho}
    return d_context, {name: gradient for name, gradient in gradients.items() if gradient is not None}
