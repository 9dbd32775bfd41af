"""What both directions of tiled_attention.py begin with: one head's constants, one text's rows, the logits of a block."""

from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, square_root
from refimpl.layers import span
from refimpl.layers.attention import Arguments, Options
from refimpl.layers.tiles import Block, Cut, Tiling, cut, padded, windows


class Problem(NamedTuple):
    """What forward was given; w by distance (H, S) with what its pair saved, None without adaptive span; p / √E.

    table: as arguments.positions, farthest position first.
    """

    arguments: Arguments
    options: Options
    keep: Array | None
    keep_memory: Array | None
    tiling: Tiling
    mask: Array | None
    mask_saved: span.MaskSaved | None
    table: Array | None


class Head(NamedTuple):
    """One head's constants, farthest position first.

    ramp: w of the farthest positions, up to the last where it is not 1 or has a slope; the first `unweighted` have w + ε = 0
    · table p / √E (size, E) · memory_keys μ and memory_values √N ν (N, E + 1) with a column of ones.
    """

    number: int
    cut: Cut
    ramp: Array
    unweighted: int
    table: Array | None
    memory_keys: Array | None
    memory_values: Array | None


class Rows(NamedTuple):
    """One text's rows for a head, 0 where they are padded; maybe with a column E that adds to every logit.

    Queries as each kind of slot sees them, (T or more, E): content q + u, position q + v, memory q. Windows (tiles, width,
    E + 1) of keys k / √E and of values, whose column E holds ones.
    """

    content: Array
    position: Array
    memory: Array
    keys: Array
    values: Array


def problem(
    arguments: Arguments, options: Options, keep: Array | None, keep_memory: Array | None, tiling: Tiling
) -> Problem:
    """The arguments, and what all heads share."""
    mask, mask_saved, table = None, None, None
    if arguments.rho is not None:
        mask, mask_saved = span.mask_forward(arguments.rho, options.span, options.ramp)
    if arguments.positions is not None:
        far_first = arguments.positions[..., ::-1, :]
        table = np.ascontiguousarray(far_first / square_root(far_first.shape[-1], far_first.dtype))
    return Problem(arguments, options, keep, keep_memory, tiling, mask, mask_saved, table)


def reach(given: Problem, number: int) -> int:
    """How many of the nearest positions a head needs: those with a weight, and at the ramp's end with a slope.

    All S with ε > 0, where each of them counts in the normaliser.
    """
    if given.mask is None or given.mask_saved is None or given.options.normalizer_epsilon:
        return given.options.span
    return max(1, int(((given.mask[number] > 0) | given.mask_saved.on_ramp[number]).sum()))


def head(given: Problem, number: int) -> Head:
    """The constants of head `number`."""
    queries, keys, _, _, memory_keys, memory_values = given.arguments[:6]
    size, epsilon = reach(given, number), given.options.normalizer_epsilon
    ramp, unweighted, table, slots = np.ones(0, queries.dtype), 0, given.table, 0
    if given.mask is not None and given.mask_saved is not None:
        mask, on_ramp = given.mask[number, size - 1 :: -1], given.mask_saved.on_ramp[number, size - 1 :: -1]
        ramp = mask[: int(((mask < 1) | on_ramp).sum())]
        unweighted = int((ramp + epsilon == 0).sum())
    if table is not None:
        table = (table[number] if table.ndim == 3 else table)[given.options.span - size :]
    if memory_keys is not None and memory_values is not None:
        slots = memory_keys.shape[1]
        memory_keys = padded("memory keys", memory_keys[number], slots, column=1)
        memory_values = padded("memory values", memory_values[number], slots, column=1)
        memory_values[:, :-1] *= square_root(slots, queries.dtype)
    past = keys.shape[1] - queries.shape[1]
    of_head = cut(queries.shape[1], past, size, slots, given.options.attend_self, given.tiling)
    return Head(number, of_head, ramp, unweighted, table, memory_keys, memory_values)


def rows(given: Problem, of_head: Head, text: int, column: Array | None = None) -> Rows:
    """One text's rows; column (T) adds to every logit of a query."""
    arguments, at, number = given.arguments, of_head.cut, of_head.number
    queries, width = arguments.queries[text, :, number], arguments.queries.shape[3]
    content = memory = padded("queries", queries, at.queries, column=column)
    if arguments.content_bias is not None:
        content = padded("content", queries + arguments.content_bias[number], at.queries, column=column)
    position = memory[:, :width]
    if arguments.position_bias is not None:
        position = padded("position", queries + arguments.position_bias[number], at.queries)
    keys = padded("keys", arguments.keys[text, :, number], at.length, -at.first, 1)
    keys[:, :width] /= square_root(width, keys.dtype)
    values = padded("values", arguments.values[text, :, number], at.length, -at.first, 1)
    return Rows(content, position, memory, windows(keys, at), windows(values, at))


def context_logits(out: Block, free: Block, of_head: Head, of_text: Rows, tiles: slice) -> None:
    """s_tc = ((q + u) · k_c + (q + v) · p_δ) / √E of some tiles into `out`, -∞ beside the band; `free` is overwritten.

    One product for the keys, and one for the positions, which goes where the other's diagonal band will be added.
    """
    at, here = of_head.cut, of_head.cut.rows_of(tiles)
    content = at.by_tile(of_text.content[here])
    np.matmul(content, of_text.keys[tiles, :, : content.shape[2]].mT, out=free.context)
    out.context[..., : at.rows - 1] = -np.inf
    out.context[..., at.size :] = -np.inf
    if of_head.table is None:
        out.band[...] = free.band
    else:
        np.matmul(at.by_tile(of_text.position[here]), of_head.table.T, out=out.band)
        out.band[...] += free.band
    for tile in range(tiles.start, tiles.stop):
        missing = -at.first - tile * at.rows
        if missing > 0:
            out.context[tile - tiles.start, :, :missing] = -np.inf


def keep_context(given: Problem, of_head: Head, text: int, tiles: slice) -> Array | None:
    """Dropout's keep-mask of the context of some tiles, (n, rows, size) farthest first; None if nothing is dropped."""
    if given.keep is None:
        return None
    at, here = of_head.cut, of_head.cut.rows_of(tiles)
    kept = given.keep[text, of_head.number, here, at.size - 1 :: -1]
    return at.by_tile(padded("keep", kept, here.stop - here.start))


def keep_memory(given: Problem, of_head: Head, text: int, here: slice, slots: slice) -> Array | None:
    """Dropout's keep-mask of some queries and persistent slots; None if nothing is dropped."""
    if given.keep_memory is None:
        return None
    kept = given.keep_memory[text, of_head.number, here, slots]
    return padded("keep memory", kept, here.stop - here.start)
