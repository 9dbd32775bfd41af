"""Embedding: a table's rows by token."""

from typing import NamedTuple

from refimpl.arrays import Array, has_kernels, module_of, scatter_add
from refimpl.device import rows as on_device


class Saved(NamedTuple):
    """What backward needs."""

    tokens: Array
    table: Array


def forward(table: Array, tokens: Array) -> tuple[Array, Saved]:
    """x = table[token];  table (V, D), tokens (…) -> x (…, D)."""
    return table[tokens], Saved(tokens, table)


def backward(dx: Array, saved: Saved) -> Array:
    """d_table[v] = Σ dx over the places where v stands."""
    if has_kernels(dx):
        return on_device.embedding_backward(dx, *saved)
    d_table = module_of(dx).zeros_like(saved.table)
    scatter_add(d_table, saved.tokens, dx)
    return d_table
