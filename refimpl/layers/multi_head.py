"""The attention sublayer: projections of [past ; block] to heads, attention, projection back. Spec: out = W_o [y]."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from refimpl.arrays import Array
from refimpl.layers import attention, linear, positions

Weights = Mapping[str, Array]


class Core(NamedTuple):
    """An attention of attention.py's form."""

    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[[Array, Any], attention.Arguments]
    needed: Callable[[Array | None, attention.Options], int]


class Options(NamedTuple):
    """Which attention (attention.py, or another of its form), head width E, and the attention's constants."""

    core: ModuleType | Core
    head_width: int
    attention: attention.Options


class Saved(NamedTuple):
    """What the four linear maps, the projected positions and the attention saved."""

    options: Options
    query: linear.Saved
    key: linear.Saved
    value: linear.Saved
    positions: positions.ProjectedSaved | None
    attention: Any
    output: linear.Saved


def project(x: Array, weight: Array, head_width: int) -> tuple[Array, linear.Saved]:
    """W x cut into heads: (B, T, D) -> (B, T, H, E); head h is rows hE … (h+1)E of W."""
    y, saved = linear.forward(x, weight)
    return y.reshape(*y.shape[:-1], y.shape[-1] // head_width, head_width), saved


def project_backward(d_heads: Array, saved: linear.Saved, first: int) -> tuple[Array, Array]:
    """dx = dy W of the positions from `first` on;  dW = Σ dyᵀ x over all of them."""
    d_rows = d_heads.reshape(*d_heads.shape[:2], -1)
    d_x = d_rows[:, first:].reshape(-1, d_rows.shape[2]) @ saved.weight
    d_weight = d_rows.reshape(-1, d_rows.shape[2]).T @ saved.x.reshape(-1, saved.x.shape[2])
    return d_x.reshape(len(d_rows), -1, d_x.shape[1]), d_weight


def forward(
    context: Array, block: int, weights: Weights, options: Options, masks: Mapping[str, Array]
) -> tuple[Array, Saved]:
    """out_t = W_o [y_t of all heads] for the last `block` positions of context (B, P + T, D) -> (B, T, D).

    weights: query, key, value, output; positions or position_key, content_bias, position_bias, memory_keys,
    memory_values, span as in attention.Arguments. masks: attention, memory.
    """
    queries, query = project(context[:, context.shape[1] - block :], weights["query"], options.head_width)
    keys, key = project(context, weights["key"], options.head_width)
    values, value = project(context, weights["value"], options.head_width)
    table, projected = position_table(weights, options)
    given = arguments(queries, keys, values, table, weights)
    y, attended = options.core.forward(given, options.attention, masks.get("attention"), masks.get("memory"))
    out, output = linear.forward(y.reshape(*y.shape[:2], -1), weights["output"])
    return out, Saved(options, query, key, value, projected, attended, output)


def position_table(weights: Weights, options: Options) -> tuple[Array | None, positions.ProjectedSaved | None]:
    """The vectors by distance: a table of their own, Transformer-XL's projected sinusoid, or None."""
    if "position_key" not in weights:
        return weights.get("positions"), None
    nearest = 0 if options.attention.attend_self else 1
    return positions.projected_forward(weights["position_key"], options.attention.span, nearest, options.head_width)


def arguments(queries: Array, keys: Array, values: Array, table: Array | None, weights: Weights) -> attention.Arguments:
    """What the attention takes: the projections, and the weights that it uses itself."""
    return attention.Arguments(
        queries, keys, values, table, weights.get("memory_keys"), weights.get("memory_values"), weights.get("span"),
        weights.get("content_bias"), weights.get("position_bias"),
    )


def backward(d_out: Array, saved: Saved, first: int = 0) -> tuple[Array, dict[str, Array]]:
    """d_context (B, P + T - first, D) of the positions from `first` ≤ P on, and gradients named as the weights are.

    Those of absent weights are left out.
    """
    d_y, d_output, _ = linear.backward(d_out, saved.output)
    d = saved.options.core.backward(d_y.reshape(*d_y.shape[:2], -1, saved.options.head_width), saved.attention)
    d_block, d_query = project_backward(d.queries, saved.query, 0)
    d_from_keys, d_key = project_backward(d.keys, saved.key, first)
    d_from_values, d_value = project_backward(d.values, saved.value, first)
    d_context = d_from_keys + d_from_values
    d_context[:, d_context.shape[1] - d_block.shape[1] :] += d_block
    gradients = {"query": d_query, "key": d_key, "value": d_value, "output": d_output, "positions": d.positions,
                 "memory_keys": d.memory_keys, "memory_values": d.memory_values, "span": d.rho,
                 "content_bias": d.content_bias, "position_bias": d.position_bias}
    if saved.positions is not None:
        gradients["position_key"] = positions.projected_backward(gradients.pop("positions"), saved.positions)
    return d_context, {name: gradient for name, gradient in gradients.items() if gradient is not None}
