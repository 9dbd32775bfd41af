"""Layer normalisation, Ba, Kiros & Hinton (arXiv 1607.06450), with the biased variance."""

from typing import NamedTuple

from refimpl.arrays import Array, has_kernels, module_of
from refimpl.device import rows as on_device


class Saved(NamedTuple):
    """What backward needs."""

    normalized: Array
    inverse_deviation: Array
    gain: Array


def forward(x: Array, gain: Array, bias: Array, epsilon: float = 1e-5) -> tuple[Array, Saved]:
    """y = g x̂ + b,  x̂ = (x - mean) / √(variance + ε), over the last axis;  x (…, D), g and b (D) -> y (…, D)."""
    if has_kernels(x):
        y, normalized, inverse_deviation = on_device.norm_forward(x, gain, bias, epsilon)
        return y, Saved(normalized, inverse_deviation, gain)
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    inverse_deviation = 1 / module_of(x).sqrt(variance + epsilon)
    normalized = centred * inverse_deviation
    return gain * normalized + bias, Saved(normalized, inverse_deviation, gain)


def backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """dx = (dx̂ - mean(dx̂) - x̂ mean(dx̂ x̂)) / deviation with dx̂ = g dy;  dg = Σ dy x̂,  db = Σ dy."""
    if has_kernels(dy):
        return on_device.norm_backward(dy, *saved)
    normalized, inverse_deviation, gain = saved
    d_normalized = gain * dy
    mean = d_normalized.mean(-1, keepdims=True)
    projection = (d_normalized * normalized).mean(-1, keepdims=True)
    dx = (d_normalized - mean - normalized * projection) * inverse_deviation
    rows = tuple(range(dy.ndim - 1))
    return dx, (dy * normalized).sum(rows), dy.sum(rows)
