"""The model and its update as one jitted JAX program, written as JAX's users do: whole rows of logits, one softmax.

Cut past, relative positions, post-norm, plain output, names of parameters: as in update_torch.py.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import update
from attention_jax import core

from refimpl.config import ModelConfig


def attention(p: Mapping[str, Any], name: str, config: ModelConfig, size: int, h: Any, past: Any) -> Any:
    """(B, T, D), past (B, size, D) -> (B, T, D)."""
    batch, block, _ = h.shape
    heads, width = config.heads, config.head_width
    context = jnp.concatenate([past, h], 1)
    queries, keys, values = ((x @ p[f"{name}.{kind}"].T).reshape(batch, -1, heads, width).swapaxes(1, 2)
                             for x, kind in ((h, "query"), (context, "key"), (context, "value")))
    y = core(queries, keys, values, p["positions"], p[f"{name}.memory_keys"], p[f"{name}.memory_values"], p[f"{name}.span"],
             config.span_ramp, config.normalizer_epsilon)
    return y.swapaxes(1, 2).reshape(batch, block, -1) @ p[f"{name}.output"].T


def loss(
    p: Mapping[str, Any], config: ModelConfig, sizes: tuple[int, ...], tokens: Any, targets: Any, past: Any
) -> tuple[Any, tuple[Any, Any, Any]]:
    """What is differentiated, and beside it mean loss, span penalty and new past."""
    h, new_past, penalty = p["input.table"][tokens], [], 0.0
    for layer, size in enumerate(sizes):
        name = f"layers.{layer}.attention"
        new_past.append(jnp.concatenate([past[layer], jax.lax.stop_gradient(h)], 1)[:, -config.span :])
        h = h + attention(p, name, config, size, h, past[layer][:, past.shape[2] - size :])
        centred = h - h.mean(-1, keepdims=True)
        unit = centred / jnp.sqrt((centred * centred).mean(-1, keepdims=True) + 1e-5)
        h = unit * p[f"{name}_norm.gain"] + p[f"{name}_norm.bias"]
        penalty = penalty + config.span_penalty * config.span * p[f"{name}.span"].mean()
    log_p = jax.nn.log_softmax(h @ p["output.table"].T + p["output.bias"])
    mean = -jnp.take_along_axis(log_p, targets[..., None], -1).mean()
    return mean + penalty, (mean, penalty, jnp.stack(new_past))


class Jitted:
    """The whole update as one jitted program."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        config, self._train, first, tokens, targets, past = update.draw(settings)
        self._p = {name: jnp.asarray(array) for name, array in first.items()}
        self._squares = {name: jnp.full_like(array, update.SQUARES) for name, array in self._p.items()}
        self._given = tuple(map(jnp.asarray, (tokens, targets, past)))
        self._gradient = jax.value_and_grad(partial(loss, config=config, sizes=update.sizes_of(config, first)), has_aux=True)
        self._update = jax.jit(self._step)

    def _step(self, p: Any, squares: Any, tokens: Any, targets: Any, past: Any) -> Any:
        (_, told), g = self._gradient(p, tokens=tokens, targets=targets, past=past)
        moved, sums = {}, {}
        for name, d in g.items():
            norm = jnp.sqrt((d * d).sum())
            rate = self._train.learning_rate * jnp.where(norm > self._train.clip, self._train.clip / (norm + 1e-10), 1)
            sums[name] = squares[name] + d * d
            moved[name] = p[name] - rate * d / (jnp.sqrt(sums[name]) + 1e-10)
            if name.endswith(".span"):
                moved[name] = moved[name].clip(0, 1)
        return told, moved, sums

    def run(self) -> float:
        """Seconds of one update."""
        start = time.perf_counter()
        jax.block_until_ready(self._update(self._p, self._squares, *self._given))
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """Of the first update; gradients from a program of their own."""
        (mean, penalty, past), moved, _ = self._update(self._p, self._squares, *self._given)
        tokens, targets, before = self._given
        _, g = jax.jit(self._gradient)(self._p, tokens=tokens, targets=targets, past=before)
        told = {"loss": mean, "span penalty": penalty, "past": past}
        told |= {f"updated {name}": array for name, array in moved.items()}
        return {name: np.asarray(array) for name, array in (told | {f"gradient of {name}": g[name] for name in g}).items()}
