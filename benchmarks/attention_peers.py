"""The function of refimpl's attention written for PyTorch and JAX as their users do: whole rows of logits, one softmax.

Each runner returns run() -> (seconds forward, seconds backward, [y and gradients as NumPy arrays in our layout]).
"""

import time

import numpy as np

FIELDS = ("queries", "keys", "values", "positions", "memory_keys", "memory_values", "rho")


def heads_first(name, array):
    """(B, T, H, E) -> (B, H, T, E), for what has a batch; its own inverse."""
    return np.ascontiguousarray(array.swapaxes(1, 2)) if name in ("y", *FIELDS[:3]) else array


def trimmed(spans, size, ramp):
    """Positions that any head sees, a multiple of 64: what adaptive-span code trims its past to."""
    return min(size, -(-(int(spans.max()) + ramp) // 64) * 64)


def torch_attention(queries, keys, values, positions, memory_keys, memory_values, rho, ramp, size):
    """queries (B, H, T, E), keys and values (B, H, S + T, E), positions nearest first, `size` trimmed -> (B, H, T, E)."""
    import torch
    from torch.nn.functional import pad

    batch, heads, block, width = queries.shape
    keys, values = (rows[:, :, -size - block :] for rows in (keys, values))
    far_first = positions[:size].flip(0)
    # row t of q k is wanted from column t on: with one column more, rows of one column less begin there
    square = pad((queries @ keys.mT).flatten(2), (0, block)).view(batch, heads, block, size + block + 1)
    context = (square[..., :size] + queries @ far_first.T) * width**-0.5
    logits = torch.cat([context, queries @ memory_keys.mT], -1)
    distance = torch.arange(size - 1, -1, -1, dtype=queries.dtype)
    mask = ((ramp + rho[:, None, None] * len(positions) - distance) / ramp).clamp(0, 1)
    weights = torch.softmax(logits, -1)
    weights = torch.cat([weights[..., :size] * mask, weights[..., size:]], -1)
    weights = weights / weights.sum(-1, keepdim=True)
    skewed = pad(weights[..., :size], (0, block + 1)).flatten(2)[..., :-block].view(batch, heads, block, size + block)
    return skewed @ values + weights[..., size:] @ (memory_values * memory_values.shape[1] ** 0.5)


def torch_runner(arguments, ramp, dy, compiled):
    """Autograd, eager or through torch.compile."""
    import torch

    attend = torch.compile(torch_attention, dynamic=False) if compiled else torch_attention
    leaves = [torch.tensor(heads_first(name, getattr(arguments, name)), requires_grad=True) for name in FIELDS]
    cotangent = torch.from_numpy(heads_first("y", dy))

    def run():
        start = time.perf_counter()
        y = attend(*leaves, ramp, trimmed(leaves[-1].detach() * len(arguments.positions), len(arguments.positions), ramp))
        middle = time.perf_counter()
        gradients = torch.autograd.grad(y, leaves, cotangent)
        end = time.perf_counter()
        found = zip(("y", *FIELDS), (y, *gradients), strict=True)
        return middle - start, end - middle, [heads_first(name, tensor.detach().numpy()) for name, tensor in found]

    return run


def jax_runner(arguments, ramp, dy):
    """jax.jit of the function with its vector-Jacobian product, in one program; its time counts as backward's."""
    import jax
    import jax.numpy as jnp

    size = trimmed(arguments.rho * len(arguments.positions), len(arguments.positions), ramp)

    def attention(queries, keys, values, positions, memory_keys, memory_values, rho):
        batch, heads, block, width = queries.shape
        keys, values = (rows[:, :, -size - block :] for rows in (keys, values))
        square = jnp.pad((queries @ keys.mT).reshape(batch, heads, -1), ((0, 0), (0, 0), (0, block)))
        context = square.reshape(batch, heads, block, size + block + 1)[..., :size] + queries @ positions[:size][::-1].T
        logits = jnp.concatenate([context * width**-0.5, queries @ memory_keys.mT], -1)
        distance = jnp.arange(size - 1, -1, -1, dtype=queries.dtype)
        ramps = (ramp + rho[:, None, None] * len(positions) - distance) / ramp
        mask = jnp.where(ramps > 1, 1, jnp.where(ramps < 0, 0, ramps))  # clip would halve the slope on a kink
        weights = jax.nn.softmax(logits, -1)
        weights = jnp.concatenate([weights[..., :size] * mask, weights[..., size:]], -1)
        weights = weights / weights.sum(-1, keepdims=True)
        skewed = jnp.pad(weights[..., :size], ((0, 0), (0, 0), (0, 0), (0, block + 1))).reshape(batch, heads, -1)
        skewed = skewed[..., :-block].reshape(batch, heads, block, size + block)
        return skewed @ values + weights[..., size:] @ (memory_values * memory_values.shape[1] ** 0.5)

    @jax.jit
    def both(leaves, cotangent):
        y, backward = jax.vjp(attention, *leaves)
        return y, *backward(cotangent)

    leaves = [jnp.asarray(heads_first(name, getattr(arguments, name))) for name in FIELDS]
    cotangent = jnp.asarray(heads_first("y", dy))

    def run():
        start = time.perf_counter()
        results = jax.block_until_ready(both(leaves, cotangent))
        end = time.perf_counter()
        found = zip(("y", *FIELDS), results, strict=True)
        return 0.0, end - start, [heads_first(name, np.asarray(array)) for name, array in found]

    return run
