"""The baseline's feed-forward sublayer: two linear maps around a relu, Vaswani et al. (arXiv 1706.03762), eq. 2."""

from typing import NamedTuple

from refimpl.arrays import Array, module_of
from refimpl.layers import dropout, linear
from refimpl.masks import Keep


class Saved(NamedTuple):
    """What the pairs it is made of saved, in order."""

    first: linear.Saved
    positive: Array
    dropped: dropout.Saved
    second: linear.Saved


class Weights(NamedTuple):
    """W₁ (F, D), b₁ (F), W₂ (D, F), b₂ (D); their gradients have the same form."""

    weight1: Array
    bias1: Array
    weight2: Array
    bias2: Array


def relu_forward(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0); saves where x > 0. A complex x is judged by its real part."""
    positive = x.real > 0
    return module_of(x).where(positive, x, 0), positive


def relu_backward(dy: Array, positive: Array) -> Array:
    """dx = dy where x > 0, else 0: at the kink x = 0 the slope is 0."""
    return dy * positive


def forward(h: Array, weights: Weights, keep: Keep = None, rate: float = 0.0) -> tuple[Array, Saved]:
    """y = W₂ dropout(relu(W₁ h + b₁)) + b₂;  h (B, T, D), keep (B, T, F) or None."""
    hidden, first = linear.forward(h, weights.weight1, weights.bias1)
    active, positive = relu_forward(hidden)
    kept, dropped = dropout.forward(active, keep, rate)
    y, second = linear.forward(kept, weights.weight2, weights.bias2)
    return y, Saved(first, positive, dropped, second)


def backward(dy: Array, saved: Saved) -> tuple[Array, Weights]:
    """The chain of the four backwards: d_h (B, T, D) and the gradients of the weights."""
    d_kept, d_weight2, d_bias2 = linear.backward(dy, saved.second)
    d_active = dropout.backward(d_kept, saved.dropped)
    d_h, d_weight1, d_bias1 = linear.backward(relu_backward(d_active, saved.positive), saved.first)
    return d_h, Weights(d_weight1, d_bias1, d_weight2, d_bias2)
