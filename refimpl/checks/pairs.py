"""Random settings and arguments for every function below and beside the attention, as gradient checks take them.

Shapes grow with `size` n: B = 2, T = E = N = n, H = 2, S = n + 2, P = 2.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, to_library_of
from refimpl.functions import FUNCTIONS, TILED, Function, Results

Stream = np.random.Generator


class Pair(NamedTuple):
    """forward(*arguments) -> y; vjp(dy, *arguments) -> one gradient each; kinks, zeros as gradcheck.check_vjp has them.

    tiled: the vjp of the same function with its attention in tiles, its adaptive softmax in chunks; None where there is
    neither.
    """

    forward: Callable[..., Any]
    vjp: Callable[..., Any]
    arguments: Mapping[str, Array]
    kinks: str = "refuse"
    zeros: tuple[str, ...] = ()
    tiled: Callable[..., Any] | None = None


def pair(
    name: str, settings: Mapping[str, Any], inputs: Mapping[str, Array], kinks: str = "refuse", zeros: tuple[str, ...] = ()
) -> Pair:
    """A function of one output by those of its inputs that have gradients: the floating ones with elements, but no past."""
    arguments = {key: array for key, array in inputs.items() if array.dtype.kind == "f" and array.size and key != "past"}

    def evaluate(function: Function, given: Sequence[Array]) -> tuple[Results, Any]:
        dtype = given[0].real.dtype
        others = {key: to_library_of(given[0], array.astype(dtype) if array.dtype.kind == "f" else array)
                  for key, array in inputs.items() if key not in arguments}
        return function.forward(settings, {**others, **dict(zip(arguments, given, strict=True))})

    def forward(*given: Array) -> Any:
        (y,) = evaluate(FUNCTIONS[name], given)[0].values()
        return y

    def vjp(function: Function, dy: Any, *given: Array) -> tuple[Array, ...]:
        outputs, saved = evaluate(function, given)
        (output,) = outputs
        gradients = function.backward({output: dy}, saved)
        return tuple(gradients[key] for key in arguments)

    tiled = partial(vjp, TILED[name]) if TILED[name] is not FUNCTIONS[name] else None
    return Pair(forward, partial(vjp, FUNCTIONS[name]), arguments, kinks, zeros, tiled)


def with_tiles(of_pair: Pair) -> Pair:
    """A pair that has a vjp in tiles, with that one to be held to the derivatives of the textbook's forward."""
    return of_pair._replace(vjp=of_pair.tiled or of_pair.vjp)


def normal(rng: Stream, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """Standard normal arrays by name."""
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def of_linear(rng: Stream, n: int) -> Pair:
    """y = x Wᵀ + b."""
    return pair("linear", {}, normal(rng, {"x": (2, n, n), "weight": (n + 1, n), "bias": (n + 1,)}))


def of_layer_norm(rng: Stream, n: int) -> Pair:
    """Width n + 2: of width 2 and less, normalised vectors do not depend on x but for ε."""
    return pair("layer-norm", {}, normal(rng, {"x": (2, n, n + 2), "gain": (n + 2,), "bias": (n + 2,)}))


def of_dropout(rng: Stream, n: int) -> Pair:
    """A fixed mask that keeps about 0.6."""
    return pair("dropout", {"rate": 0.4}, {"x": rng.standard_normal((n, n + 1)), "keep": rng.random((n, n + 1)) > 0.4})


def of_embedding(rng: Stream, n: int) -> Pair:
    """Twice as many tokens as rows, so that rows repeat."""
    return pair("embedding", {}, {"table": rng.standard_normal((n, n)), "tokens": rng.integers(0, n, 2 * n)})


def of_softmax(rng: Stream, n: int) -> Pair:
    """Rows of n + 1."""
    return pair("softmax", {}, normal(rng, {"logits": (n, n + 1)}))


def of_softmax_loss(rng: Stream, n: int) -> Pair:
    """Rows of n + 1, one target each."""
    return pair("softmax-loss", {}, {**normal(rng, {"logits": (n, n + 1)}), "targets": rng.integers(0, n + 1, n)})


def of_relu(rng: Stream, n: int) -> Pair:
    """Away from its kink."""
    return pair("relu", {}, normal(rng, {"x": (n, n)}))


def of_feed_forward(rng: Stream, n: int) -> Pair:
    """With dropout."""
    inputs = normal(rng, {"h": (2, n, n), "weight1": (2 * n, n), "bias1": (2 * n,), "weight2": (n, 2 * n), "bias2": (n,)})
    return pair("feed-forward", {"rate": 0.3}, {**inputs, "keep": rng.random((2, n, 2 * n)) > 0.3})


def of_ff_attention(rng: Stream, n: int) -> Pair:
    """With dropout."""
    inputs = normal(rng, {"h": (2, n, n), "weight1": (2 * n, n), "weight2": (n, 2 * n)})
    return pair("ff-attention", {"rate": 0.3}, {**inputs, "keep": rng.random((2, n, 2 * n)) > 0.3})


def of_span(rng: Stream, n: int) -> Pair:
    """S = 4 (n + 1), R = n + 1, no distance on a kink, some on the ramp."""
    return pair("span-mask", {"size": 4 * (n + 1), "ramp": n + 1}, {"rho": rng.uniform(0.1, 0.6, n)})


def of_span_at_kinks(rng: Stream, n: int) -> Pair:
    """z = 0, a whole number, and S: distances stand exactly on both kinks of the mask."""
    return pair("span-mask", {"size": 4 * n, "ramp": n}, {"rho": np.array([0.0, 0.5, 1.0])}, "bracket")


def of_span_penalty(rng: Stream, n: int) -> Pair:
    """λ = 0.01."""
    return pair("span-penalty", {"size": 4 * n, "weight": 0.01}, {"rho": rng.uniform(0, 1, n)})


def of_positions(rng: Stream, n: int) -> Pair:
    """One table for all heads."""
    return pair("relative-positions", {}, normal(rng, {"queries": (2, n, 2, n), "table": (n + 2, n)}))


def of_positions_by_head(rng: Stream, n: int) -> Pair:
    """A table for each head."""
    return pair("relative-positions", {}, normal(rng, {"queries": (2, n, 2, n), "table": (2, n + 2, n)}))


def of_projected_positions(rng: Stream, n: int) -> Pair:
    """Transformer-XL's table."""
    return pair("projected-positions", {"size": n + 2, "first": 1, "width": n}, normal(rng, {"weight": (2 * n, 2 * n)}))


def of_scores(rng: Stream, n: int) -> Pair:
    """Some positions do not exist."""
    inputs = normal(rng, {"queries": (2, n, 2, n), "keys": (2, n + 2, 2, n)})
    return pair("context-scores", {"size": n + 2, "attend_self": False}, inputs)


def of_mix(rng: Stream, n: int) -> Pair:
    """Some positions do not exist."""
    inputs = normal(rng, {"weights": (2, 2, n, n + 2), "values": (2, n + 2, 2, n)})
    return pair("context-mix", {"attend_self": True}, inputs)


def of_masked_softmax(rng: Stream, n: int) -> Pair:
    """ε = 0.1; a slot of weight 0 among others, and one that is absent."""
    weight = rng.uniform(0.2, 1, (n, n + 2))
    weight[:, 1] = 0
    return pair("masked-softmax", {"epsilon": 0.1},
                {"logits": rng.standard_normal((n, n + 2)), "weight": weight, "present": np.arange(n + 2) > 0})


def of_persistent_attention(rng: Stream, n: int) -> Pair:
    """With dropout."""
    inputs = normal(rng, {"queries": (2, n, 2, n), "memory_keys": (2, n + 1, n), "memory_values": (2, n + 1, n)})
    return pair("persistent-attention", {"rate": 0.3}, {**inputs, "keep": rng.random((2, 2, n, n + 1)) > 0.3})


def of_adaptive_input(rng: Stream, n: int) -> Pair:
    """Clusters of n, 0 and 2 words, D = 4, and words that repeat; a cluster without words uses no projection."""
    inputs = normal(rng, {"tables.0": (n, 4), "tables.1": (0, 2), "tables.2": (2, 1),
                          "projections.0": (4, 4), "projections.1": (4, 2), "projections.2": (4, 1)})
    tokens = rng.permutation(np.resize(np.arange(n + 2), 4 * n)).reshape(2, 2 * n)
    return pair("adaptive-input", {}, {**inputs, "tokens": tokens}, zeros=("projections.1",))


def of_adaptive_softmax(rng: Stream, n: int) -> Pair:
    """Clusters of n, 2 and 1 words, D = 4, in reversed order; of one word the probability in its cluster is always 1."""
    inputs = normal(rng, {
        "hidden": (2 * n + 3, 4), "tables.0": (n, 4), "tables.1": (2, 2), "tables.2": (1, 1), "biases.0": (n,),
        "biases.1": (2,), "biases.2": (1,), "projections.0": (4, 4), "projections.1": (4, 2), "projections.2": (4, 1),
        "cluster_table": (2, 4), "cluster_bias": (2,)})
    targets = np.resize(np.arange(n + 3), 2 * n + 3)
    never = ("tables.2", "biases.2", "projections.2")
    return pair("adaptive-softmax", {"cluster_order": "reversed"}, {**inputs, "targets": targets}, zeros=never)
