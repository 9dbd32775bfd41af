"""All-attention, Sukhbaatar et al. (arXiv 1907.01470), section 4: context and persistent vectors in one softmax.

As the equations read, every intermediate kept.
"""

from typing import NamedTuple

from refimpl.arrays import Array, array_module, square_root
from refimpl.errors import InputError
from refimpl.layers import dropout as drop
from refimpl.layers import masked_softmax, positions, span, windows
from refimpl.masks import Keep, drawn


class Options(NamedTuple):
    """The layer's constants: S, R, ε, whether a query sees its own position, and the rate of dropout."""

    span: int
    ramp: int = 32
    normalizer_epsilon: float = 0.0
    attend_self: bool = False
    dropout: float = 0.0


class Arguments(NamedTuple):
    """What the function takes, and in this order what backward returns gradients of; None = that part is absent.

    queries (B, T, H, E) · keys, values (B, P + T, H, E) of [past ; block] · positions (S, E), or (H, S, E) with a table for
    each head, nearest first, or None · memory_keys μ, memory_values ν (H, N, E) or None · rho (H) or None = no adaptive
    span · content_bias u, position_bias v (H, E) or None = 0.
    """

    queries: Array
    keys: Array
    values: Array
    positions: Array | None = None
    memory_keys: Array | None = None
    memory_values: Array | None = None
    rho: Array | None = None
    content_bias: Array | None = None
    position_bias: Array | None = None


class Saved(NamedTuple):
    """Every intermediate; context slots (S, nearest first) stand before persistent slots (N) in the last axis."""

    arguments: Arguments
    options: Options
    scores: windows.Saved
    position_scores: tuple[Array, Array] | None
    mask: span.MaskSaved | None
    exists: Array
    logits: Array
    softmax: masked_softmax.Saved
    dropped: drop.Saved
    mix: windows.Saved


def forward(
    arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None
) -> tuple[Array, Saved]:
    """y_t = Σ_c a_tc v_c + Σ_n a_tn √N ν_n,  a = w ⊙ e^s / Σ (w + ε) e^s jointly over S + N slots  -> (B, T, H, E).

    s_tc = ((q_t + u) · k_c + (q_t + v) · p_δ) / √E,  s_tn = q_t · (√E μ_n) / √E,  w_tc = m_z(δ),  w_tn = 1; positions that
    do not exist have w = 0. keep (B, H, T, S) and keep_memory (B, H, T, N) drop normalised weights. Raises InputError if
    shapes disagree or if the first query sees nothing.
    """
    check(arguments, options)
    check_sight(arguments, options)
    return attend(arguments, options, keep, keep_memory)


def needed(rho: Array | None, options: Options) -> int:
    """How many positions before the block forward wants to be given: whatever the spans, no more than S."""
    return options.span


def attend(
    arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None
) -> tuple[Array, Saved]:
    """The function itself: a query that sees nothing gives 0."""
    queries, keys, values, table, memory_keys, memory_values, _, content_bias, position_bias = arguments
    xp = array_module(arguments._asdict())
    block, width = queries.shape[1], queries.shape[3]
    root = square_root(width, queries.dtype)

    context, scores = windows.scores_forward(_biased(queries, content_bias), keys, options.span, options.attend_self)
    position_scores = None
    if table is not None:
        at_distance, position_scores = positions.relative_forward(_biased(queries, position_bias), table)
        context = context + at_distance
    logits = context / root
    if memory_keys is not None:
        persistent = queries.transpose(0, 2, 1, 3) @ (root * memory_keys).swapaxes(1, 2) / root
        logits = xp.concatenate([logits, persistent], axis=-1)

    exists = windows.exists(xp, keys.shape[1] - block, block, options.span, options.attend_self)
    weight, present, mask = _weights(arguments, options, exists)
    attention, softmax = masked_softmax.forward(logits, weight, present, options.normalizer_epsilon)
    kept, dropped = drop.forward(attention, _kept_slots(keep, keep_memory, memory_keys, queries), options.dropout)

    y, mix = windows.mix_forward(kept[..., : options.span], values, options.attend_self)
    if memory_values is not None:
        slots = memory_values.shape[1]
        unit_values = square_root(slots, queries.dtype) * memory_values
        y = y + (kept[..., options.span :] @ unit_values).transpose(0, 2, 1, 3)
    return y, Saved(arguments, options, scores, position_scores, mask, exists, logits, softmax, dropped, mix)


def backward(dy: Array, saved: Saved) -> Arguments:
    """The gradient of every argument: the equations above in reverse order; dy (B, T, H, E)."""
    queries, _, _, _, memory_keys, memory_values, _, content_bias, position_bias = saved.arguments
    size = saved.options.span
    root = square_root(queries.shape[3], queries.dtype)
    xp = array_module({"dy": dy, "queries": queries})

    d_kept, d_values = windows.mix_backward(dy, saved.mix)
    d_memory_keys = d_memory_values = d_table = d_rho = d_content_bias = d_position_bias = None
    if memory_values is not None:
        d_rows = dy.transpose(0, 2, 1, 3)
        root_slots = square_root(memory_values.shape[1], queries.dtype)
        d_kept = xp.concatenate([d_kept, d_rows @ (root_slots * memory_values).swapaxes(1, 2)], axis=-1)
        kept, _ = drop.forward(saved.softmax.attention, *saved.dropped)
        d_memory_values = root_slots * (kept[..., size:].swapaxes(-1, -2) @ d_rows).sum(0)

    d_attention = drop.backward(d_kept, saved.dropped)
    d_logits, d_weight = masked_softmax.backward(d_attention, saved.softmax)
    if saved.mask is not None:
        d_mask = (d_weight[..., :size] * saved.exists).sum((0, 2))
        d_rho = span.mask_backward(d_mask, saved.mask)

    d_context = d_logits[..., :size] / root
    d_queries, d_keys = windows.scores_backward(d_context, saved.scores)
    if content_bias is not None:
        d_content_bias = d_queries.sum((0, 1))
    if saved.position_scores is not None:
        d_at_distance, d_table = positions.relative_backward(d_context, saved.position_scores)
        d_queries = d_queries + d_at_distance
        if position_bias is not None:
            d_position_bias = d_at_distance.sum((0, 1))
    if memory_keys is not None:
        d_persistent, rows = d_logits[..., size:] / root, queries.transpose(0, 2, 1, 3)
        d_queries = d_queries + (d_persistent @ (root * memory_keys)).transpose(0, 2, 1, 3)
        d_memory_keys = root * (d_persistent.swapaxes(-1, -2) @ rows).sum(0)
    return Arguments(
        d_queries, d_keys, d_values, d_table, d_memory_keys, d_memory_values, d_rho, d_content_bias, d_position_bias
    )


def _biased(queries: Array, bias: Array | None) -> Array:
    """q + u, for every query of a head."""
    return queries if bias is None else queries + bias


def _kept_slots(keep: Keep, keep_memory: Keep, memory: Array | None, queries: Array) -> Array | None:
    """One keep-mask over all slots; None if nothing is dropped."""
    check_keep(keep, keep_memory, memory)
    keep, keep_memory = drawn(keep, queries), drawn(keep_memory, queries)
    if keep is None or memory is None:
        return keep
    return array_module({"keep": keep, "keep_memory": keep_memory}).concatenate([keep, keep_memory], axis=-1)


def _weights(arguments: Arguments, options: Options, exists: Array) -> tuple[Array, Array, span.MaskSaved | None]:
    """w (H, T, S + N), which slots are present (T, S + N), and what the span mask saved."""
    xp = array_module({"exists": exists})
    mask, heads, dtype = None, arguments.queries.shape[2], arguments.queries.dtype
    if arguments.rho is None:
        weight = xp.broadcast_to(exists.astype(dtype), (heads, *exists.shape))
    else:
        by_distance, mask = span.mask_forward(arguments.rho, options.span, options.ramp)
        weight = by_distance[:, None] * exists
        if options.normalizer_epsilon and options.span > span.TRIMMED_AT_ONCE:
            exists = exists & (xp.arange(options.span) < span.untrimmed(arguments.rho, options.span, options.ramp))
    present = exists
    if arguments.memory_keys is not None:
        slots = arguments.memory_keys.shape[1]
        weight = xp.concatenate([weight, xp.ones((*weight.shape[:2], slots), dtype)], axis=-1)
        present = xp.concatenate([exists, xp.ones((len(exists), slots), bool)], axis=-1)
    return weight, present, mask


def check(arguments: Arguments, options: Options) -> None:
    """Raises InputError, naming the argument and both shapes, unless the arguments fit together."""
    if arguments.queries.ndim != 4 or arguments.keys.ndim != 4:
        raise InputError(f"queries and keys: expected (B, T, H, E) and (B, P+T, H, E), got {arguments.queries.shape} and "
                         f"{arguments.keys.shape}")
    batch, block, heads, width = arguments.queries.shape
    length = arguments.keys.shape[1]
    slots = 0 if arguments.memory_keys is None else arguments.memory_keys.shape[1]
    in_keys, in_memory = (batch, length, heads, width), (heads, slots, width)
    by_head = arguments.positions is not None and arguments.positions.ndim == 3
    table = (heads, options.span, width) if by_head else (options.span, width)
    expected = Arguments(
        arguments.queries.shape, in_keys, in_keys, table, in_memory, in_memory, (heads,), (heads, width), (heads, width)
    )
    for name, array, shape in zip(Arguments._fields, arguments, expected, strict=True):
        if array is not None and array.shape != shape:
            raise InputError(f"{name}: expected {shape}, got {array.shape}")
    if length < block:
        raise InputError(f"keys: expected at least the block's {block} positions, got {length}")
    if (arguments.memory_keys is None) != (arguments.memory_values is None):
        raise InputError("memory_keys and memory_values: expected both or neither")


def check_sight(arguments: Arguments, options: Options) -> None:
    """Raises InputError if the first query sees nothing."""
    if arguments.memory_keys is None and not (arguments.keys.shape[1] > arguments.queries.shape[1] or options.attend_self):
        raise InputError("the first query sees nothing: expected a past (zero_past gives one of zeros), persistent "
                         "vectors, or attend_self")


def check_keep(keep: Keep, keep_memory: Keep, memory: Array | None) -> None:
    """Raises InputError unless the keep-masks are those of all slots, or none."""
    if (keep is None and keep_memory is not None) or (keep is not None and (keep_memory is None) != (memory is None)):
        raise InputError("keep and keep_memory: expected one for the context and one for the persistent vectors, or neither")
