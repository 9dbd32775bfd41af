"""Adaptive input, Baevski & Auli (arXiv 1809.10853), section 3.1: rarer words have narrower embeddings."""

from collections.abc import Sequence
from typing import NamedTuple

from refimpl.arrays import Array, has_kernels, module_of, square_root
from refimpl.device import adaptive_input as on_device
from refimpl.layers import embedding, linear


class Saved(NamedTuple):
    """For each cluster: which tokens (flat) fell into it, and what its two pairs saved."""

    rows: list[Array]
    embedded: list[embedding.Saved]
    projected: list[linear.Saved]
    shape: tuple[int, ...]


def forward(tokens: Array, tables: Sequence[Array], projections: Sequence[Array]) -> tuple[Array, Saved | on_device.Saved]:
    """x = √D P_i table_i[token - first_i] for a token of cluster i;  tokens (…) -> (…, D).

    tables[i] (V_i, D_i) hold consecutive words, projections[i] (D, D_i). Clusters may be empty.
    """
    if has_kernels(projections[0]) and tokens.size:
        return on_device.forward(tokens, tables, projections)
    xp, width = module_of(tables[0]), projections[0].shape[0]
    dtype = xp.result_type(*tables, *projections)
    flat, first = tokens.reshape(-1).astype("int64"), 0  # a narrow type could not hold a cluster's end
    x = xp.zeros((len(flat), width), dtype)
    saved = Saved([], [], [], (*tokens.shape, width))
    for table, projection in zip(tables, projections, strict=True):
        # which rows a cluster owns depends on the data: computing every cluster for every token would cost far more
        rows = xp.nonzero((flat >= first) & (flat < first + len(table)))[0]
        embedded, embedding_saved = embedding.forward(table, flat[rows] - first)
        projected, projection_saved = linear.forward(embedded, projection)
        x[rows] = projected * square_root(width, dtype)
        saved.rows.append(rows)
        saved.embedded.append(embedding_saved)
        saved.projected.append(projection_saved)
        first += len(table)
    return x.reshape(saved.shape), saved


def backward(dx: Array, saved: Saved | on_device.Saved) -> tuple[list[Array], list[Array]]:
    """Gradients of tables and projections: each cluster's own rows of √D dx through its projection and its table."""
    if isinstance(saved, on_device.Saved):
        return on_device.backward(dx, saved)
    d_rows = dx.reshape(-1, saved.shape[-1]) * square_root(saved.shape[-1], dx.dtype)
    d_tables, d_projections = [], []
    for rows, embedded, projected in zip(saved.rows, saved.embedded, saved.projected, strict=True):
        d_embedded, d_projection, _ = linear.backward(d_rows[rows], projected)
        d_tables.append(embedding.backward(d_embedded, embedded))
        d_projections.append(d_projection)
    return d_tables, d_projections
