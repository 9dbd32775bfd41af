"""What both directions of tiled_attention.py begin with: one head's constants, one text's rows, the logits of a block."""

from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, largest_exponent, square_root
from refimpl.layers import span
from refimpl.layers.attention import Arguments, Options
from refimpl.layers.tiles import Block, Cut, Tiling, cut, padded, parts, scratch, transposed, turned_windows, windows
from refimpl.masks import Keep, Mask, Row


class Problem(NamedTuple):
    """What forward was given; w by distance (H, S) with what its pair saved, None without adaptive span; p / √E.

    table: as arguments.positions, farthest position first.
    """

    arguments: Arguments
    options: Options
    keep: Keep
    keep_memory: Keep
    tiling: Tiling
    mask: Array | None
    mask_saved: span.MaskSaved | None
    table: Array | None


class Head(NamedTuple):
    """One head's constants, farthest position first.

    ramp: w of the farthest positions, up to the last where it is not 1 or has a slope; the first `unweighted` have w + ε = 0
    · table p / √E (size, E) · memory_keys μ and memory_values √N ν (N, E). turned: the same three with E first.
    """

    number: int
    cut: Cut
    ramp: Array
    unweighted: int
    table: Array | None
    memory_keys: Array
    memory_values: Array
    turned: "Turned"


class Turned(NamedTuple):
    """A head's table (E, size), or None, memory_keys and memory_values (E, N)."""

    table: Array | None
    memory_keys: Array
    memory_values: Array


class Rows(NamedTuple):
    """The rows of b texts for a head, 0 where they are padded.

    Queries as each kind of slot sees them, (b, T or more, E): content q + u, position q + v, memory q · windows of keys
    k / √E and of values, (b, tiles, width, E), and of keys with E first, turned_keys (b, tiles, E, width) · for each text
    dropout's masks of all heads, none = nothing is dropped: keep (H, T, S) nearest first and keep_memory (H, T, N), or where
    they are drawn from.
    """

    content: Array
    position: Array
    memory: Array
    keys: Array
    values: Array
    turned_keys: Array
    keep: list[Array | Row]
    keep_memory: list[Array | Row]


class Kept(NamedTuple):
    """Keep-masks of a block, None = nothing is dropped: context (b, n, rows, size) farthest first, memory (b n rows, N)."""

    context: Array | None
    memory: Array | None


def problem(arguments: Arguments, options: Options, keep: Keep, keep_memory: Keep, tiling: Tiling) -> Problem:
    """The arguments, and what all heads share."""
    mask, mask_saved, table = None, None, None
    if arguments.rho is not None:
        mask, mask_saved = span.mask_forward(arguments.rho, options.span, options.ramp)
    if arguments.positions is not None:
        far_first = arguments.positions[..., ::-1, :]
        table = np.ascontiguousarray(far_first / square_root(far_first.shape[-1], far_first.dtype))
    return Problem(arguments, options, keep, keep_memory, tiling, mask, mask_saved, table)


def reach(given: Problem, number: int) -> int:
    """How many of the nearest positions a head computes: S without adaptive span; with ε > 0 all that are not trimmed."""
    options, rho = given.options, given.arguments.rho
    if rho is None:
        return options.span
    if options.normalizer_epsilon:
        return int(span.untrimmed(rho, options.span, options.ramp))
    return int(span.reach(rho, options.span, options.ramp)[number])


def head(given: Problem, number: int, texts: int) -> Head:
    """The constants of head `number`, to be computed for so many texts."""
    queries, keys, _, _, memory_keys, memory_values = given.arguments[:6]
    size, epsilon = reach(given, number), given.options.normalizer_epsilon
    ramp, unweighted, table, slots = np.ones(0, queries.dtype), 0, given.table, 0
    unit_keys = unit_values = np.empty((0, queries.shape[3]), queries.dtype)
    if given.mask is not None and given.mask_saved is not None:
        mask, on_ramp = given.mask[number, size - 1 :: -1], given.mask_saved.on_ramp[number, size - 1 :: -1]
        ramp = mask[: int(((mask < 1) | on_ramp).sum())]
        unweighted = int((ramp + epsilon == 0).sum())
    if table is not None:
        table = (table[number] if table.ndim == 3 else table)[given.options.span - size :]
    if memory_keys is not None and memory_values is not None:
        slots = memory_keys.shape[1]
        unit_keys, unit_values = memory_keys[number], memory_values[number] * square_root(slots, queries.dtype)
    past = keys.shape[1] - queries.shape[1]
    of_head = cut(queries.shape[1], past, size, slots, given.options.attend_self, given.tiling, texts)
    turned_table = None if table is None else np.ascontiguousarray(table.T)
    turned = Turned(turned_table, np.ascontiguousarray(unit_keys.T), np.ascontiguousarray(unit_values.T))
    return Head(number, of_head, ramp, unweighted, table, unit_keys, unit_values, turned)


def rows(given: Problem, of_head: Head, texts: range) -> Rows:
    """The rows of some texts."""
    arguments, at, number, here = given.arguments, of_head.cut, of_head.number, slice(texts.start, texts.stop)
    queries = arguments.queries[here, :, number]
    content = position = memory = padded("queries", queries, at.queries)
    if arguments.content_bias is not None:
        content = padded("content", queries + arguments.content_bias[number], at.queries)
    if arguments.position_bias is not None:
        position = padded("position", queries + arguments.position_bias[number], at.queries)
    keys = padded("keys", arguments.keys[here, :, number], at.length, -at.first)
    keys /= square_root(keys.shape[2], keys.dtype)
    values = padded("values", arguments.values[here, :, number], at.length, -at.first)
    keep, keep_memory = ([] if mask is None else [mask.row(text) if isinstance(mask, Mask) else mask[text] for text in texts]
                         for mask in (given.keep, given.keep_memory))
    turned_keys = turned_windows(transposed("turned keys", keys), at)
    return Rows(content, position, memory, windows(keys, at), windows(values, at), turned_keys, keep, keep_memory)


def logits(out: Block, free: Block, of_head: Head, of_texts: Rows, tiles: slice) -> None:
    """The logits of some tiles into `out`, -∞ beside the band; `free` is overwritten.

    s_tc = ((q + u) · k_c + (q + v) · p_δ) / √E: one product for the keys, and one for the positions, which goes where the
    other's diagonal band will be added. s_tn = q · μ_n.
    """
    at = of_head.cut
    np.matmul(at.by_tile(of_texts.content, tiles), of_texts.turned_keys[:, tiles], out=free.context)
    out.context[..., : at.rows - 1] = -np.inf
    out.context[..., at.size :] = -np.inf
    if of_head.turned.table is None:
        out.band[...] = free.band
    else:
        np.matmul(at.by_tile(of_texts.position, tiles), of_head.turned.table, out=out.band)
        for band, part in zip(parts(out.band), parts(free.band), strict=True):
            band += part
    for tile in range(tiles.start, tiles.stop):
        missing = -at.first - tile * at.rows
        if missing > 0:
            out.context[:, tile - tiles.start, :, :missing] = -np.inf
    np.matmul(at.in_block(of_texts.memory, tiles), of_head.turned.memory_keys, out=out.memory)


def exponentials(weights: Block, shift: Array, unweighted: int) -> None:
    """e^(s - shift) in place of the logits s, shift (n rows, 1); held finite where w + ε = 0, which no shift looks at."""
    weights.whole[...] -= shift
    foot = weights.band[..., :unweighted]
    np.minimum(foot, largest_exponent(foot.dtype), out=foot)
    np.exp(weights.whole, out=weights.whole)


def kept(of_texts: Rows, of_head: Head, length: int, tiles: slice) -> Kept:
    """Dropout's keep-masks of some tiles; T = length."""
    at, slots = of_head.cut, len(of_head.memory_keys)
    context = _kept("keep", of_texts.keep, of_head, length, tiles, at.size)
    memory = _kept("keep memory", of_texts.keep_memory, of_head, length, tiles, slots)
    return Kept(None if context is None else context.reshape(len(context), -1, at.rows, at.size)[..., ::-1],
                None if memory is None else memory.reshape(-1, slots))


def drop(weights: Block, keep: Kept) -> None:
    """What is not kept becomes 0."""
    if keep.context is not None:
        for band, of_band in zip(parts(weights.band), parts(keep.context), strict=True):
            band *= of_band
    if keep.memory is not None:
        weights.memory[...] *= keep.memory


def _kept(name: str, keep: list[Array | Row], of_head: Head, length: int, tiles: slice, count: int) -> Array | None:
    """Of a head's queries in some tiles, T = length of which exist, the first `count` slots, (b, n rows, count)."""
    if not keep:
        return None
    here, number = of_head.cut.rows_of(tiles), of_head.number
    there = slice(here.start, min(here.stop, length))
    result = scratch(name, (len(keep), here.stop - here.start, count), getattr(keep[0], "dtype", bool))
    for of_text, mask in zip(result, keep, strict=True):
        exist = there.stop - there.start
        of_text[:exist] = mask.slots(number, there, count) if isinstance(mask, Row) else mask[number, there, :count]
        of_text[exist:] = 0
    return result
