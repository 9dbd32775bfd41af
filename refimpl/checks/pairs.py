"""Every pair of layers/ with random arguments, as gradient checks take them: a forward, a vjp, the arguments by name.

Shapes grow with `size` n: B = 2, T = E = N = n, H = 2, S = n + 2, P = 2.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.layers import (
    adaptive_input,
    adaptive_softmax,
    dropout,
    embedding,
    feed_forward,
    ff_attention,
    layer_norm,
    linear,
    masked_softmax,
    persistent_attention,
    positions,
    softmax,
    softmax_loss,
    span,
    windows,
)

Stream = np.random.Generator


class Pair(NamedTuple):
    """forward(*arguments) -> y; vjp(dy, *arguments) -> one gradient each; `kinks` as gradcheck.check_vjp takes it."""

    forward: Callable[..., Any]
    vjp: Callable[..., Any]
    arguments: Mapping[str, Array]
    kinks: str = "refuse"


def pair(
    forward: Callable[..., Any], backward: Callable[..., Any], arguments: Mapping[str, Array], kinks: str = "refuse"
) -> Pair:
    """A Pair from y, saved = forward(…) and gradients = backward(dy, saved)."""

    def vjp(dy: Any, *given: Array) -> Any:
        gradients = backward(dy, forward(*given)[1])
        return gradients if isinstance(gradients, tuple) else (gradients,)

    return Pair(lambda *given: forward(*given)[0], vjp, arguments, kinks)


def normal(rng: Stream, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Standard normal arrays by name."""
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def of_linear(rng: Stream, n: int) -> Pair:
    """y = x Wᵀ + b."""
    return pair(linear.forward, linear.backward, normal(rng, {"x": (2, n, n), "weight": (n + 1, n), "bias": (n + 1,)}))


def of_layer_norm(rng: Stream, n: int) -> Pair:
    """Width n + 1: of width 2 and less, normalised vectors do not depend on x but for ε."""
    arguments = normal(rng, {"x": (2, n, n + 1), "gain": (n + 1,), "bias": (n + 1,)})
    return pair(layer_norm.forward, layer_norm.backward, arguments)


def of_dropout(rng: Stream, n: int) -> Pair:
    """A fixed mask that keeps about 0.6."""
    keep = rng.random((n, n + 1)) > 0.4
    return pair(lambda x: dropout.forward(x, keep, 0.4), dropout.backward, normal(rng, {"x": (n, n + 1)}))


def of_embedding(rng: Stream, n: int) -> Pair:
    """Twice as many tokens as rows, so that rows repeat."""
    tokens = rng.integers(0, n, 2 * n)
    return pair(lambda table: embedding.forward(table, tokens), embedding.backward, normal(rng, {"table": (n, n)}))


def of_softmax(rng: Stream, n: int) -> Pair:
    """Rows of n + 1."""
    return pair(softmax.forward, softmax.backward, normal(rng, {"logits": (n, n + 1)}))


def of_softmax_loss(rng: Stream, n: int) -> Pair:
    """Rows of n + 1, one target each."""
    targets = rng.integers(0, n + 1, n)
    arguments = normal(rng, {"logits": (n, n + 1)})
    return pair(lambda logits: softmax_loss.forward(logits, targets), softmax_loss.backward, arguments)


def of_relu(rng: Stream, n: int) -> Pair:
    """Away from its kink."""
    return pair(feed_forward.relu_forward, feed_forward.relu_backward, normal(rng, {"x": (n, n)}))


def of_feed_forward(rng: Stream, n: int) -> Pair:
    """With dropout."""
    keep = rng.random((2, n, 2 * n)) > 0.3
    arguments = normal(rng, {"h": (2, n, n), "weight1": (2 * n, n), "bias1": (2 * n,), "weight2": (n, 2 * n), "bias2": (n,)})
    return _inner(feed_forward, keep, arguments)


def of_ff_attention(rng: Stream, n: int) -> Pair:
    """With dropout."""
    keep = rng.random((2, n, 2 * n)) > 0.3
    return _inner(ff_attention, keep, normal(rng, {"h": (2, n, n), "weight1": (2 * n, n), "weight2": (n, 2 * n)}))


def _inner(module: ModuleType, keep: Array, arguments: Mapping[str, Array]) -> Pair:
    def backward(dy: Array, saved: Any) -> tuple[Array, ...]:
        d_h, of_weights = module.backward(dy, saved)
        return d_h, *of_weights

    return pair(lambda h, *weights: module.forward(h, module.Weights(*weights), keep, 0.3), backward, arguments)


def of_span(rng: Stream, n: int) -> Pair:
    """S = 4 n, R = n, no distance on a kink."""
    return pair(lambda rho: span.mask_forward(rho, 4 * n, n), span.mask_backward, {"rho": rng.uniform(0.1, 0.6, n)})


def of_span_at_kinks(rng: Stream, n: int) -> Pair:
    """z = 0, a whole number, and S: distances stand exactly on both kinks of the mask."""
    rho = np.array([0.0, 0.5, 1.0])
    return pair(lambda rho: span.mask_forward(rho, 4 * n, n), span.mask_backward, {"rho": rho}, "bracket")


def of_span_penalty(rng: Stream, n: int) -> Pair:
    """λ = 0.01."""
    return pair(lambda rho: span.penalty_forward(rho, 4 * n, 0.01), span.penalty_backward, {"rho": rng.uniform(0, 1, n)})


def of_positions(rng: Stream, n: int) -> Pair:
    """One table for all heads."""
    arguments = normal(rng, {"queries": (2, n, 2, n), "table": (n + 2, n)})
    return pair(positions.relative_forward, positions.relative_backward, arguments)


def of_positions_by_head(rng: Stream, n: int) -> Pair:
    """A table for each head."""
    arguments = normal(rng, {"queries": (2, n, 2, n), "table": (2, n + 2, n)})
    return pair(positions.relative_forward, positions.relative_backward, arguments)


def of_projected_positions(rng: Stream, n: int) -> Pair:
    """Transformer-XL's table."""
    return pair(lambda weight: positions.projected_forward(weight, n + 2, 1, n), positions.projected_backward,
                normal(rng, {"weight": (2 * n, 2 * n)}))


def of_scores(rng: Stream, n: int) -> Pair:
    """Some positions do not exist."""
    return pair(lambda queries, keys: windows.scores_forward(queries, keys, n + 2, False), windows.scores_backward,
                normal(rng, {"queries": (2, n, 2, n), "keys": (2, n + 2, 2, n)}))


def of_mix(rng: Stream, n: int) -> Pair:
    """Some positions do not exist."""
    return pair(lambda weights, values: windows.mix_forward(weights, values, True), windows.mix_backward,
                normal(rng, {"weights": (2, 2, n, n + 2), "values": (2, n + 2, 2, n)}))


def of_masked_softmax(rng: Stream, n: int) -> Pair:
    """ε = 0.1; a slot of weight 0 among others, and one that is absent."""
    present = np.arange(n + 2) > 0
    weight = rng.uniform(0.2, 1, (n, n + 2)) * present
    weight[:, 1] = 0
    return pair(
        lambda logits, weight: masked_softmax.forward(logits, weight * present, present, 0.1),
        lambda da, saved: (lambda d_logits, d_weight: (d_logits, d_weight * present))(*masked_softmax.backward(da, saved)),
        {"logits": rng.standard_normal((n, n + 2)), "weight": weight})


def of_persistent_attention(rng: Stream, n: int) -> Pair:
    """With dropout."""
    keep = rng.random((2, 2, n, n + 1)) > 0.3
    arguments = normal(rng, {"queries": (2, n, 2, n), "memory_keys": (2, n + 1, n), "memory_values": (2, n + 1, n)})
    return pair(lambda q, *memory: persistent_attention.forward(q, memory[0], memory[1], keep, 0.3),
                persistent_attention.backward, arguments)


def of_adaptive_input(rng: Stream, n: int) -> Pair:
    """Clusters of n, 0 and 2 words, D = 4, and words that repeat."""
    tokens = rng.integers(0, n + 2, (2, 2 * n))
    arguments = normal(rng, {"table0": (n, 4), "table1": (0, 2), "table2": (2, 1),
                             "projection0": (4, 4), "projection1": (4, 2), "projection2": (4, 1)})

    def backward(dx: Array, saved: Any) -> tuple[Array, ...]:
        tables, projections = adaptive_input.backward(dx, saved)
        return *tables, *projections

    return pair(lambda *given: adaptive_input.forward(tokens, given[:3], given[3:]), backward, arguments)


def of_adaptive_softmax(rng: Stream, n: int) -> Pair:
    """Clusters of n, 2 and 1 words, D = 4, in reversed order."""
    targets = np.resize(np.arange(n + 3), 2 * n + 3)
    arguments = normal(rng, {
        "hidden": (2 * n + 3, 4), "table0": (n, 4), "table1": (2, 2), "table2": (1, 1), "bias0": (n,), "bias1": (2,),
        "bias2": (1,), "projection0": (4, 4), "projection1": (4, 2), "projection2": (4, 1), "cluster_table": (2, 4),
        "cluster_bias": (2,)})

    def forward(hidden: Array, *w: Array) -> tuple[Array, Any]:
        weights = adaptive_softmax.Weights(list(w[:3]), list(w[3:6]), list(w[6:9]), *w[9:])
        return adaptive_softmax.forward(hidden, targets, weights, "reversed")

    def backward(d_loss: Array, saved: Any) -> tuple[Array, ...]:
        d_hidden, d = adaptive_softmax.backward(d_loss, saved)
        return d_hidden, *d.tables, *d.biases, *d.projections, d.cluster_table, d.cluster_bias

    return pair(forward, backward, arguments)
