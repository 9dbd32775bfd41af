"""Functions of one layer. Arrays without a gradient (tokens, masks) stay NumPy's, so that their values can be looked at.

Two of JAX's habits would be wrong here: the slope of jnp.clip at its ends is not that of the closed interval, and an index
beyond a table is no error.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Settings = Mapping[str, Any]
Arrays = dict[str, Any]


def linear(x: Any, weight: Any, bias: Any = 0) -> Any:
    """x Wᵀ + b."""
    return x @ weight.T + bias


def layer_norm(x: Any, gain: Any, bias: Any, epsilon: float = 1e-5) -> Any:
    """g x̂ + b, biased variance."""
    centred = x - x.mean(-1, keepdims=True)
    return gain * centred / jnp.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon) + bias


def drop(x: Any, keep: Any, rate: float) -> Any:
    """Dropout with a given mask."""
    return x if keep is None else jnp.where(keep, x / (1 - rate), 0)


def embedding(table: Any, tokens: np.ndarray) -> Any:
    """Rows by token. Raises ValueError for a token outside the table, where JAX would take the last row."""
    if (tokens < 0).any() or (tokens >= len(table)).any():
        raise ValueError(f"tokens: expected 0 to {len(table) - 1}, got {tokens.min()} to {tokens.max()}")
    return table[tokens]


def softmax_loss(logits: Any, targets: np.ndarray) -> Any:
    """-log p(target)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]


def feed_forward(settings: Settings, x: Arrays) -> Any:
    """W₂ dropout(relu(W₁ h + b₁)) + b₂, or without biases W₂ dropout(softmax(W₁ h)); jax.nn.relu has slope 0 at 0."""
    hidden = linear(x["h"], x["weight1"], x.get("bias1", 0))
    active = jax.nn.relu(hidden) if "bias1" in x else jax.nn.softmax(hidden)
    return linear(drop(active, x.get("keep"), settings.get("rate", 0.0)), x["weight2"], x.get("bias2", 0))


def span_mask(rho: Any, size: int, ramp: int) -> Any:
    """clamp((R + Sρ - x) / R, 0, 1), with the slope of the closed interval: (H) -> (H, S)."""
    fraction = (ramp + size * rho[:, None] - np.arange(size)) / ramp
    return jnp.where((fraction >= 0) & (fraction <= 1), fraction, fraction > 1)


def span_penalty(rho: Any, size: int, weight: float) -> Any:
    """λ S mean(ρ)."""
    return weight * size * rho.mean()


def waves(first: int, count: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Sines (count, ⌈D/2⌉) and cosines (count, ⌊D/2⌋) of x 10000^(-2i/D), x = first …, in float64."""
    angle = np.arange(first, first + count)[:, None] * 10000.0 ** (-np.arange(0, width, 2) / width)
    return np.sin(angle), np.cos(angle)[:, : width // 2]


def projected_positions(weight: Any, size: int, first: int, width: int) -> Any:
    """Transformer-XL's vectors by distance, W r_δ cut into heads: (H E, D) -> (H, S, E); sines before cosines."""
    table = linear(np.concatenate(waves(first, size, weight.shape[1]), 1).astype(weight.dtype), weight)
    return table.reshape(size, -1, width).swapaxes(0, 1)


def listed(x: Arrays, name: str) -> list[Any]:
    """name.0, name.1, … in order."""
    return [x[f"{name}.{i}"] for i in range(sum(given.startswith(f"{name}.") for given in x))]


def adaptive_input(tokens: np.ndarray, tables: Sequence[Any], projections: Sequence[Any]) -> Any:
    """√D P_i table_i[word]: all words' vectors, then the rows that are asked for."""
    rows = jnp.concatenate([linear(table, projection) for table, projection in zip(tables, projections, strict=True)])
    return math.sqrt(rows.shape[1]) * embedding(rows, tokens)


def adaptive_softmax(
    hidden: Any, targets: np.ndarray, tables: Sequence[Any], biases: Sequence[Any], projections: Sequence[Any],
    cluster_table: Any, cluster_bias: Any, order: str,
) -> Any:
    """-log p(target), from log p of all words; a tail without words has no share of the head."""
    scores = [linear(hidden @ projection, table, bias)
              for table, bias, projection in zip(tables, biases, projections, strict=True)]
    of_clusters = linear(hidden @ projections[0], cluster_table, cluster_bias)
    if order == "reversed":  # the head's last column stands for the first tail
        of_clusters = of_clusters[..., ::-1]
    empty = np.array([len(table) == 0 for table in tables[1:]], bool)
    head = jax.nn.log_softmax(jnp.concatenate([scores[0], jnp.where(empty, -jnp.inf, of_clusters)], -1))
    columns = [head[..., : len(tables[0])]]
    for i, score in enumerate(scores[1:], start=len(tables[0])):
        if score.shape[-1]:
            columns.append(head[..., i : i + 1] + jax.nn.log_softmax(score))
    return -jnp.take_along_axis(jnp.concatenate(columns, -1), targets[..., None], -1)[..., 0]


def _adaptive_softmax(settings: Settings, x: Arrays) -> Arrays:
    """Absent biases are 0, an absent projection of the head is the identity."""
    tables, width = listed(x, "tables"), x["hidden"].shape[-1]
    biases = [x.get(f"biases.{i}", 0) for i in range(len(tables))]
    projections = [x.get("projections.0", np.eye(width, dtype=x["hidden"].dtype)),
                   *(x[f"projections.{i}"] for i in range(1, len(tables)))]
    return {"loss": adaptive_softmax(x["hidden"], x["targets"], tables, biases, projections, x["cluster_table"],
                                     x.get("cluster_bias", 0), settings["cluster_order"])}


FUNCTIONS = {
    "linear": lambda settings, x: {"y": linear(x["x"], x["weight"], x["bias"])},
    "layer-norm": lambda settings, x: {"y": layer_norm(x["x"], x["gain"], x["bias"], settings["epsilon"])},
    "dropout": lambda settings, x: {"y": drop(x["x"], x["keep"], settings["rate"])},
    "embedding": lambda settings, x: {"x": embedding(x["table"], x["tokens"])},
    "softmax": lambda settings, x: {"attention": jax.nn.softmax(x["logits"])},
    "softmax-loss": lambda settings, x: {"loss": softmax_loss(x["logits"], x["targets"])},
    "relu": lambda settings, x: {"y": jax.nn.relu(x["x"])},
    "feed-forward": lambda settings, x: {"y": feed_forward(settings, x)},
    "ff-attention": lambda settings, x: {"y": feed_forward(settings, x)},
    "span-mask": lambda settings, x: {"mask": span_mask(x["rho"], settings["size"], settings["ramp"])},
    "span-penalty": lambda settings, x: {"penalty": span_penalty(x["rho"], settings["size"], settings["weight"])},
    "projected-positions": lambda settings, x: {
        "table": projected_positions(x["weight"], settings["size"], settings["first"], settings["width"])},
    "adaptive-input": lambda settings, x: {"x": adaptive_input(x["tokens"], listed(x, "tables"), listed(x, "projections"))},
    "adaptive-softmax": _adaptive_softmax,
}
