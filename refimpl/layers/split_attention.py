"""The ablations `attention-split` and `single-head` of Sukhbaatar et al. (arXiv 1907.01470), section 5.

Context and persistent vectors each under a softmax of their own, the outputs added. The persistent half has as many heads
as μ says: H of width E (`attention-split`), or one of width D (`single-head`).
"""

from types import ModuleType
from typing import Any, NamedTuple

from refimpl.arrays import Array
from refimpl.errors import InputError
from refimpl.layers import attention, persistent_attention
from refimpl.masks import Keep


class Saved(NamedTuple):
    """What the two halves saved; core: the module of the context's half."""

    core: ModuleType
    context: Any
    persistent: persistent_attention.Saved


def forward(
    arguments: attention.Arguments, options: attention.Options, keep: Keep = None, keep_memory: Keep = None,
    core: ModuleType = attention,
) -> tuple[Array, Saved]:
    """y_t = Σ_c a_tc v_c + Σ_n a_tn √N ν_n,  Σ_c a_tc = 1 (up to ε; 0 if nothing is there),  Σ_n a_tn = 1.

    Arguments as in attention.py, but μ, ν (G, N, K) with G K = H E; keep (B, H, T, S), keep_memory (B, G, T, N). core:
    attention.py, or another module of its form, for the context.
    """
    if arguments.memory_keys is None:
        raise InputError("memory_keys: expected persistent vectors, got none")
    groups, _, width = arguments.memory_keys.shape
    rows = arguments.queries.reshape(*arguments.queries.shape[:2], groups, width)
    y, context = core.attend(arguments._replace(memory_keys=None, memory_values=None), options, keep)
    from_memory, persistent = persistent_attention.forward(
        rows, arguments.memory_keys, arguments.memory_values, keep_memory, options.dropout
    )
    return y + from_memory.reshape(y.shape), Saved(core, context, persistent)


def backward(dy: Array, saved: Saved) -> attention.Arguments:
    """The gradient of every argument: both halves receive dy (B, T, H, E), and their query gradients add."""
    d: attention.Arguments = saved.core.backward(dy, saved.context)
    d_rows, d_memory_keys, d_memory_values = persistent_attention.backward(
        dy.reshape(saved.persistent.queries.shape), saved.persistent
    )
    d_queries = d.queries + d_rows.reshape(d.queries.shape)
    return d._replace(queries=d_queries, memory_keys=d_memory_keys, memory_values=d_memory_values)
