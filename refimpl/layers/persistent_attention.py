"""Attention to persistent vectors alone, for the ablations of Sukhbaatar et al. (arXiv 1907.01470), section 5.

The persistent half of all-attention with a softmax of its own; G heads of width K.
"""

from typing import NamedTuple

from refimpl.arrays import Array, square_root
from refimpl.errors import InputError
from refimpl.layers import dropout, softmax
from refimpl.masks import Keep


class Saved(NamedTuple):
    """The arguments, and the weights a (B, G, T, N) before and after dropout."""

    queries: Array
    memory_keys: Array
    memory_values: Array
    attention: Array
    kept: Array
    dropped: dropout.Saved


def forward(
    queries: Array, memory_keys: Array, memory_values: Array, keep: Keep = None, rate: float = 0.0
) -> tuple[Array, Saved]:
    """y_t = Σ_n a_tn √N ν_n,  a = softmax(s),  s_tn = q_t · (√K μ_n) / √K;  queries (B, T, G, K), μ and ν (G, N, K).

    keep (B, G, T, N) drops weights. -> (B, T, G, K). Raises InputError if shapes disagree.
    """
    groups, width = queries.shape[2:]
    expected = (groups, memory_keys.shape[1], width)
    for name, array in (("memory_keys", memory_keys), ("memory_values", memory_values)):
        if array.shape != expected:
            raise InputError(f"{name}: expected (G, N, K) = {expected}, got {array.shape}")
    root = square_root(width, queries.dtype)
    logits = queries.transpose(0, 2, 1, 3) @ (root * memory_keys).swapaxes(1, 2) / root
    attention, _ = softmax.forward(logits)
    kept, dropped = dropout.forward(attention, keep, rate)
    y = (kept @ _unit_values(memory_values)).transpose(0, 2, 1, 3)
    return y, Saved(queries, memory_keys, memory_values, attention, kept, dropped)


def backward(dy: Array, saved: Saved) -> tuple[Array, Array, Array]:
    """dq, dμ, dν: the equations above in reverse order; dy (B, T, G, K)."""
    queries, memory_keys, memory_values = saved[:3]
    rows, d_rows = queries.transpose(0, 2, 1, 3), dy.transpose(0, 2, 1, 3)
    root = square_root(queries.shape[3], queries.dtype)
    d_unit_values = (saved.kept.swapaxes(-1, -2) @ d_rows).sum(0)
    d_attention = dropout.backward(d_rows @ _unit_values(memory_values).swapaxes(1, 2), saved.dropped)
    d_products = softmax.backward(d_attention, saved.attention) / root
    d_queries = (d_products @ (root * memory_keys)).transpose(0, 2, 1, 3)
    d_memory_keys = root * (d_products.swapaxes(-1, -2) @ rows).sum(0)
    return d_queries, d_memory_keys, square_root(memory_values.shape[1], queries.dtype) * d_unit_values


def _unit_values(memory_values: Array) -> Array:
    """√N ν."""
    return square_root(memory_values.shape[1], memory_values.dtype) * memory_values
