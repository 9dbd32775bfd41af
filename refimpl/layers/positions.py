"""Relative positions on the keys, Shaw, Uszkoreit & Vaswani (arXiv 1803.02155), eq. 4, one vector per distance."""

from refimpl.arrays import Array


def relative_forward(queries: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    """q_t · p_x for every query and distance;  queries (B, T, H, E), table (S, E), nearest first -> (B, H, T, S)."""
    return queries.transpose(0, 2, 1, 3) @ table.T, (queries, table)


def relative_backward(d_scores: Array, saved: tuple[Array, Array]) -> tuple[Array, Array]:
    """dq_t = Σ_x ds_tx p_x,  dp_x = Σ_bht ds_tx q_t;  d_scores (B, H, T, S) -> (B, T, H, E), (S, E)."""
    queries, table = saved
    d_queries = (d_scores @ table).transpose(0, 2, 1, 3)
    rows = queries.transpose(0, 2, 1, 3).reshape(-1, queries.shape[-1])
    return d_queries, d_scores.reshape(-1, d_scores.shape[-1]).T @ rows
