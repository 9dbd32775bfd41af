"""The attention core as one jitted JAX program, as JAX's users write it: whole rows of logits, one softmax."""

import time
from collections.abc import Mapping
from typing import Any

import attention
import jax
import jax.numpy as jnp
import numpy as np


def core(
    queries: Any, keys: Any, values: Any, positions: Any, memory_keys: Any, memory_values: Any, rho: Any, ramp: int,
    epsilon: float = 0.0,
) -> Any:
    """As in attention_torch.py."""
    batch, heads, block, width = queries.shape
    size = keys.shape[2] - block
    product = jnp.pad((queries @ keys.mT).reshape(batch, heads, -1), ((0, 0), (0, 0), (0, block)))
    product = product.reshape(batch, heads, block, size + block + 1)
    context = (product[..., :size] + queries @ positions[:size][::-1].T) * width**-0.5
    weights = jax.nn.softmax(jnp.concatenate([context, queries @ memory_keys.mT], -1), -1)
    distance = jnp.arange(size - 1, -1, -1, dtype=queries.dtype)
    mask = closed_clip((ramp + len(positions) * rho[:, None, None] - distance) / ramp)
    weights = jnp.concatenate([weights[..., :size] * mask, weights[..., size:]], -1)
    weights = weights / (weights.sum(-1, keepdims=True) + epsilon)
    skewed = jnp.pad(weights[..., :size], ((0, 0), (0, 0), (0, 0), (0, block + 1))).reshape(batch, heads, -1)[..., :-block]
    skewed = skewed.reshape(batch, heads, block, size + block)
    return skewed @ values + weights[..., size:] @ (memory_values * memory_values.shape[1] ** 0.5)


def closed_clip(x: Any) -> Any:
    """x between 0 and 1 with slope 1 at both ends too, as PyTorch's clamp has it; jnp.clip has less there."""
    return jnp.where(x < 0, 0, jnp.where(x > 1, 1, x))


class Jitted:
    """The function and its vector-Jacobian product in one program."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        arguments, dy = attention.draw(settings)
        self._leaves = [jnp.asarray(attention.heads_first(name, getattr(arguments, name))) for name in attention.FIELDS]
        self._cotangent = jnp.asarray(attention.heads_first("y", dy))
        self._size = attention.trimmed(arguments.rho, len(arguments.positions))
        self._both = jax.jit(self._compute)

    def _compute(self, leaves: Any, cotangent: Any) -> Any:
        def function(queries: Any, keys: Any, values: Any, *others: Any) -> Any:
            keys, values = (rows[:, :, -self._size - queries.shape[2] :] for rows in (keys, values))
            return core(queries, keys, values, *others, attention.RAMP)

        y, backward = jax.vjp(function, *leaves)
        return y, *backward(cotangent)

    def run(self) -> float:
        """Seconds of both directions."""
        start = time.perf_counter()
        self._told = jax.block_until_ready(self._both(self._leaves, self._cotangent))
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """In our layout."""
        self.run()
        return attention.named(map(np.asarray, self._told))
