"""Linear map: y = x Wᵀ + b."""

from typing import Any, NamedTuple

from refimpl.arrays import Array


class Saved(NamedTuple):
    """What backward needs."""

    x: Array
    weight: Array
    has_bias: bool


def forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Saved]:
    """y = x Wᵀ + b;  x (…, I), W (O, I), b (O) or None -> y (…, O)."""
    rows = x.reshape(-1, x.shape[-1])  # a copy, of use to backward, where x is a part of an array
    y = (rows @ weight.T).reshape(*x.shape[:-1], weight.shape[0])
    if bias is not None:
        y = y + bias
    return y, Saved(rows.reshape(x.shape), weight, bias is not None)


def backward(dy: Array, saved: Saved) -> tuple[Array, Array, Any]:
    """dx = dy W,  dW = dyᵀ x,  db = Σ dy over rows (None without a bias)."""
    rows = saved.x.reshape(-1, saved.x.shape[-1])
    d_rows = dy.reshape(len(rows), dy.shape[-1])
    dx = (d_rows @ saved.weight).reshape(saved.x.shape)
    return dx, d_rows.T @ rows, d_rows.sum(0) if saved.has_bias else None
