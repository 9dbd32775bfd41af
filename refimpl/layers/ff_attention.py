"""The ablation `ff-attention` of Sukhbaatar et al. (arXiv 1907.01470): a feed-forward sublayer with softmax for relu."""

from typing import NamedTuple

from refimpl.arrays import Array
from refimpl.layers import dropout, linear, softmax
from refimpl.masks import Keep


class Saved(NamedTuple):
    """What the pairs it is made of saved, in order."""

    first: linear.Saved
    attention: Array
    dropped: dropout.Saved
    second: linear.Saved


class Weights(NamedTuple):
    """W₁ (F, D) and W₂ (D, F): the keys and values of F vectors; their gradients have the same form."""

    weight1: Array
    weight2: Array


def forward(h: Array, weights: Weights, keep: Keep = None, rate: float = 0.0) -> tuple[Array, Saved]:
    """y = W₂ dropout(softmax(W₁ h));  h (B, T, D), keep (B, T, F) or None."""
    logits, first = linear.forward(h, weights.weight1)
    attention, _ = softmax.forward(logits)
    kept, dropped = dropout.forward(attention, keep, rate)
    y, second = linear.forward(kept, weights.weight2)
    return y, Saved(first, attention, dropped, second)


def backward(dy: Array, saved: Saved) -> tuple[Array, Weights]:
    """The chain of the four backwards: d_h (B, T, D) and the gradients of the weights."""
    d_kept, d_weight2, _ = linear.backward(dy, saved.second)
    d_logits = softmax.backward(dropout.backward(d_kept, saved.dropped), saved.attention)
    d_h, d_weight1, _ = linear.backward(d_logits, saved.first)
    return d_h, Weights(d_weight1, d_weight2)
