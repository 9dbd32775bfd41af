"""adaptive_input.py on a GPU: every cluster for every token, 0 where the token is another's (kernels/clusters.cu).

So no shape depends on the tokens and nothing waits for the device. Of WikiText-103's products, widths 512, 128, 32 and 8,
that is a third more than each token's own: for 16,384 tokens at an H100's float32 peak 0.04 ms a product.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from refimpl.arrays import Array, kernel, module_of
from refimpl.device.products import product
from refimpl.device.rows import THREADS, embedding_backward, whole


class Saved(NamedTuple):
    """The tokens, flat, and each cluster's arguments and embeddings (tokens, D_i); a cluster without words has no rows."""

    tokens: Array
    tables: Sequence[Array]
    projections: Sequence[Array]
    rows: list[Array]
    shape: tuple[int, ...]


def forward(tokens: Array, tables: Sequence[Array], projections: Sequence[Array]) -> tuple[Array, Saved]:
    """As adaptive_input.forward, for CuPy arrays of float32 or float64."""
    xp, width, first = module_of(projections[0]), len(projections[0]), 0
    saved = Saved(whole(tokens).reshape(-1), tables, projections, [], (*tokens.shape, width))
    x = xp.empty((tokens.size, width), projections[0].dtype)
    for table, projection in zip(tables, projections, strict=True):
        words, narrow = table.shape
        rows = xp.empty((tokens.size if words else 0, narrow), x.dtype)
        if words:
            kernel("clusters", "embed", x.dtype)((-(-rows.size // THREADS),), (THREADS,), (
                saved.tokens, table, rows, rows.size, first, words, narrow))
            product(rows[None], projection.T[None], x[None], math.sqrt(width), add=first > 0)
        saved.rows.append(rows)
        first += words
    return x.reshape(saved.shape), saved


def backward(dx: Array, saved: Saved) -> tuple[list[Array], list[Array]]:
    """As adaptive_input.backward."""
    xp, root, first = module_of(dx), math.sqrt(saved.shape[-1]), 0
    d_x = xp.ascontiguousarray(dx).reshape(-1, saved.shape[-1])
    d_tables, d_projections = [], []
    for table, projection, rows in zip(saved.tables, saved.projections, saved.rows, strict=True):
        if not len(table):
            d_tables.append(xp.zeros_like(table))
            d_projections.append(xp.zeros_like(projection))
            continue
        d_rows, d_projection = xp.empty_like(rows), xp.empty_like(projection)
        product(d_x[None], projection[None], d_rows[None], root)
        product(d_x.T[None], rows[None], d_projection[None], root)
        d_tables.append(embedding_backward(d_rows, saved.tokens, table, first))
        d_projections.append(d_projection)
        first += len(table)
    return d_tables, d_projections
