"""The ablation `head-split` of Sukhbaatar et al. (arXiv 1907.01470), section 5: some heads see the context, others memory.

The first heads, as many as the keys have, attend to the context alone; the rest to persistent vectors alone.
"""

from types import ModuleType

from refimpl.arrays import Array, module_of
from refimpl.layers import attention, persistent_attention
from refimpl.layers.split_attention import Saved
from refimpl.masks import Keep


def forward(
    arguments: attention.Arguments, options: attention.Options, keep: Keep = None, keep_memory: Keep = None,
    core: ModuleType = attention,
) -> tuple[Array, Saved]:
    """y of head h = Σ_c a_tc v_c for the first C heads, Σ_n a_tn √N ν_n for the others, side by side -> (B, T, H, E).

    queries (B, T, H, E); keys, values (B, P + T, C, E), rho (C), μ, ν (H - C, N, E); keep (B, C, T, S), keep_memory
    (B, H - C, T, N). core: attention.py, or another module of its form, for the context.
    """
    heads = arguments.keys.shape[2]
    of_context = arguments._replace(queries=arguments.queries[:, :, :heads], memory_keys=None, memory_values=None)
    y, context = core.attend(of_context, options, keep)
    from_memory, persistent = persistent_attention.forward(
        arguments.queries[:, :, heads:], arguments.memory_keys, arguments.memory_values, keep_memory, options.dropout
    )
    return module_of(y).concatenate([y, from_memory], axis=2), Saved(core, context, persistent)


def backward(dy: Array, saved: Saved) -> attention.Arguments:
    """The gradient of every argument: each group of heads takes its part of dy (B, T, H, E)."""
    heads = dy.shape[2] - saved.persistent.queries.shape[2]
    d: attention.Arguments = saved.core.backward(dy[:, :, :heads], saved.context)
    d_rest, d_memory_keys, d_memory_values = persistent_attention.backward(dy[:, :, heads:], saved.persistent)
    d_queries = module_of(dy).concatenate([d.queries, d_rest], axis=2)
    return d._replace(queries=d_queries, memory_keys=d_memory_keys, memory_values=d_memory_values)
