"""attention.py on a GPU: products by cuBLAS, and one kernel for all that stands between them (kernels/attention.cu).

Queries are cut into tiles, each beside the window of keys that its queries see, heads and texts together as far as ELEMENTS
allows; nothing of size T × (S + N) outlives a tile. Forward keeps a shift and a total for each row, from which backward
computes the weights again. Nothing waits for the device, and sums have a fixed order.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, array_module, kernel, largest_exponent, module_of, purpose_number
from refimpl.device.products import product
from refimpl.device.randomness import packed, words_of
from refimpl.device.tiles import (
    THREADS,
    Cut,
    Part,
    Sizes,
    arranged,
    by_head,
    collected,
    flat,
    gathered,
    in_window,
    of_heads,
    window_of,
)
from refimpl.layers import attention
from refimpl.layers.attention import Arguments, Options
from refimpl.layers.one_query import alike
from refimpl.layers.span import TRIMMED_AT_ONCE
from refimpl.masks import Keep, Mask

ELEMENTS = 1 << 26  # of a tile's largest array, most: 256 MiB in float32
ROWS = 128  # queries of a tile, most, unless they see more positions than that


class Saved(NamedTuple):
    """What backward needs. arguments: rows in tiles; shapes: of the rows before that; shift, total: (tiles, H, B, rows)."""

    arguments: Arguments
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    options: Options
    keep: Keep
    keep_memory: Keep
    cut: Cut
    sizes: Sizes
    queries: "Queries"
    shift: Array
    total: Array


class Queries(NamedTuple):
    """Queries as each kind of slot sees them, (tiles, H, B, rows, E): with u, with v, as they are. Without biases one array.
    """

    content: Array
    position: Array
    memory: Array


def needed(rho: Array | None, options: Options) -> int:
    """How many positions before the block forward wants to be given: spans are not looked at, which would wait."""
    return options.span


def forward(arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None) -> tuple[Array, Saved]:
    """As attention.forward, for CuPy arrays of float32 or float64."""
    attention.check(arguments, options)
    attention.check_sight(arguments, options)
    return attend(arguments, options, keep, keep_memory)


def attend(
    arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None, reach: Sequence[int] = ()
) -> tuple[Array, Saved]:
    """As attention.attend, for CuPy arrays of float32 or float64.

    reach: for each head how many of the nearest positions it needs at most, where the host knows it; () = S.
    """
    attention.check_keep(keep, keep_memory, arguments.memory_keys)
    xp = array_module(arguments._asdict())
    arguments = Arguments(*(None if array is None else xp.ascontiguousarray(array) for array in arguments))
    shapes = arguments.queries.shape, arguments.keys.shape
    (batch, block, heads, width), length = shapes[0], shapes[1][1]
    sizes = [(group, max(reach[group])) for group in alike(list(reach))] or [(slice(0, heads), options.span)]
    at = cut(block, length - block, max(size for _, size in sizes), options.attend_self)
    plain = arranged(arguments.queries, at.tiles, at.rows, 0)
    content, position = (plain if bias is None else arranged(arguments.queries, at.tiles, at.rows, 0, bias)
                         for bias in (arguments.content_bias, arguments.position_bias))
    keys, values = (arranged(array, 1, at.keys, at.first)[0] for array in (arguments.keys, arguments.values))
    shift, total = (xp.empty((at.tiles, heads, batch, at.rows), keys.dtype) for _ in range(2))
    arguments = arguments._replace(queries=plain, keys=keys, values=values)
    saved = Saved(arguments, shapes, options, keep, keep_memory, at, sizes, Queries(content, position, plain), shift, total)
    y = xp.empty((at.tiles, heads, batch, at.rows, width), keys.dtype)
    for part in parts(saved):
        weights, at_distance = logits(saved, part)
        launch("weigh", saved, part, weights, at_distance, *streams(saved), shift[part.tile], total[part.tile])
        window = weights.shape[-1] - slots_of(arguments)
        here = y[part.tile, part.heads, part.texts]
        product(flat(weights[..., :window]), flat(in_window(values, part, window)), flat(here))
        if arguments.memory_values is not None:
            product(by_head(weights[..., window:]), arguments.memory_values[part.heads], by_head(here),
                    math.sqrt(slots_of(arguments)), add=True)
        del weights, at_distance  # before the next part has its own
    return collected(shapes[0], at.rows, 0, y), saved


def backward(dy: Array, saved: Saved) -> Arguments:
    """As attention.backward; dy (B, T, H, E)."""
    arguments, at, xp = saved.arguments, saved.cut, array_module({"dy": dy, "queries": saved.arguments.queries})
    d_rows = arranged(xp.ascontiguousarray(dy), at.tiles, at.rows, 0)
    d_keys, d_values = xp.zeros_like(arguments.keys), xp.zeros_like(arguments.values)
    biased = arguments.content_bias is not None or arguments.position_bias is not None
    d_queries = [xp.zeros_like(d_rows) for _ in range(3 if biased else 1)]
    d = Arguments(d_rows, d_keys, d_values, *(None if array is None else xp.zeros_like(array) for array in arguments[3:]))
    d_spans = None if arguments.rho is None else xp.empty_like(saved.shift)
    for part in parts(saved):
        weights, at_distance = logits(saved, part)
        d_weights = xp.empty_like(weights)
        window = weights.shape[-1] - slots_of(arguments)
        here = d_rows[part.tile, part.heads, part.texts]
        product(flat(here), flat(in_window(arguments.values, part, window)).swapaxes(1, 2), flat(d_weights[..., :window]))
        if arguments.memory_values is not None:
            product(by_head(here), arguments.memory_values[part.heads].swapaxes(1, 2), by_head(d_weights[..., window:]),
                    math.sqrt(slots_of(arguments)))
        launch("differentiate", saved, part, weights, d_weights, at_distance, *streams(saved), saved.shift[part.tile],
               saved.total[part.tile], None if d_spans is None else d_spans[part.tile], float(largest_exponent(dy.dtype)))
        _add_values(saved, part, weights, here, d_values, d.memory_values)
        _add_logits(saved, part, d_weights, at_distance, d_queries, d_keys, d)
        del weights, d_weights, at_distance  # before the next part has its own
    return d._replace(
        queries=collected(saved.shapes[0], at.rows, 0, *d_queries),
        keys=collected(saved.shapes[1], at.keys, at.first, d_keys[None]),
        values=collected(saved.shapes[1], at.keys, at.first, d_values[None]),
        rho=None if d_spans is None else d_spans.sum((0, 2, 3)),
        content_bias=None if arguments.content_bias is None else d_queries[0].sum((0, 2, 3)),
        position_bias=None if arguments.position_bias is None or arguments.positions is None
        else d_queries[1].sum((0, 2, 3)))


def _add_values(saved: Saved, part: Part, weights: Array, dy: Array, d_values: Array, d_memory: Array | None) -> None:
    window = weights.shape[-1] - slots_of(saved.arguments)
    product(flat(weights[..., :window]).swapaxes(1, 2), flat(dy), flat(in_window(d_values, part, window)), add=True)
    if d_memory is not None:
        product(by_head(weights[..., window:]).swapaxes(1, 2), by_head(dy), d_memory[part.heads],
                math.sqrt(d_memory.shape[1]), add=True)


def _add_logits(
    saved: Saved, part: Part, d_logits: Array, at_distance: Array | None, d_queries: list[Array], d_keys: Array, d: Arguments
) -> None:
    """The gradients of all that logits are made of; of queries into one array, or into one for each kind of slot."""
    window, arguments = d_logits.shape[-1] - slots_of(saved.arguments), saved.arguments
    root = 1 / math.sqrt(d_keys.shape[-1])
    content, position, memory = (rows[part.tile, part.heads, part.texts] for rows in saved.queries)
    d_content, *_ = here = [rows[part.tile, part.heads, part.texts] for rows in d_queries]
    d_position, d_memory = here[-2:] if len(here) > 1 else (d_content, d_content)
    of_context = flat(d_logits[..., :window])
    product(of_context.swapaxes(1, 2), flat(content), flat(in_window(d_keys, part, window)), root, add=True)
    product(of_context, flat(in_window(arguments.keys, part, window)), flat(d_content), root, add=True)
    if at_distance is not None:
        table, d_table = of_heads(arguments.positions, part), of_heads(d.positions, part)
        rows, of_position = (gathered(array, len(table)) for array in (at_distance, d_position))
        product(rows, table, of_position, root, add=True)
        product(rows.swapaxes(1, 2), gathered(position, len(table)), d_table, root, add=True)
    if d.memory_keys is not None and arguments.memory_keys is not None:
        of_memory = by_head(d_logits[..., window:])
        product(of_memory, arguments.memory_keys[part.heads], by_head(d_memory), add=True)
        product(of_memory.swapaxes(1, 2), by_head(memory), d.memory_keys[part.heads], add=True)


def cut(block: int, past: int, size: int, attend_self: bool) -> Cut:
    """Tiles no longer than the positions that their queries see: of size + rows columns a row uses `size`."""
    tiles = math.ceil(block / max(ROWS, size))
    rows = math.ceil(block / tiles)
    return Cut(tiles, rows, size, window_of(size, tiles * rows), past - size + attend_self)


def parts(saved: Saved) -> Iterator[Part]:
    """What is computed at once, one after another."""
    return parts_of(saved.cut, saved.sizes, saved.shapes[0][0], slots_of(saved.arguments))


def parts_of(at: Cut, sizes: Sizes, batch: int, slots: int) -> Iterator[Part]:
    """All texts and heads of one size at once, or as many as ELEMENTS allows: some heads, or some texts of one."""
    for heads, size in sizes:
        row = at.rows * (window_of(size, at.rows) + slots)
        texts = max(1, min(batch, ELEMENTS // row))
        together = max(1, ELEMENTS // (row * batch)) if texts == batch else 1
        for tile in range(at.tiles):
            for head in range(heads.start, heads.stop, together):
                for text in range(0, batch, texts):
                    yield Part(tile, slice(head, min(head + together, heads.stop)), slice(text, min(text + texts, batch)),
                               size, tile * at.rows, at.size - size + tile * at.rows)


def logits(saved: Saved, part: Part) -> tuple[Array, Array | None]:
    """(G, B', rows, window + N) of products with keys, and (G, B', rows, size) with position vectors, or None."""
    arguments, at = saved.arguments, saved.cut
    content, position, memory = (rows[part.tile, part.heads, part.texts] for rows in saved.queries)
    root, window, xp = 1 / math.sqrt(content.shape[-1]), window_of(part.size, at.rows), module_of(content)
    found = xp.empty((*content.shape[:3], window + slots_of(arguments)), content.dtype)
    product(flat(content), flat(in_window(arguments.keys, part, window)).swapaxes(1, 2), flat(found[..., :window]), root)
    if arguments.memory_keys is not None:
        product(by_head(memory), arguments.memory_keys[part.heads].swapaxes(1, 2), by_head(found[..., window:]))
    if arguments.positions is None:
        return found, None
    at_distance, table = xp.empty((*content.shape[:3], part.size), content.dtype), of_heads(arguments.positions, part)
    product(gathered(position, len(table)), table.swapaxes(1, 2), gathered(at_distance, len(table)), root)
    return found, at_distance


def slots_of(arguments: Arguments) -> int:
    """N."""
    return 0 if arguments.memory_keys is None else int(arguments.memory_keys.shape[1])


def streams(saved: Saved) -> tuple[Any, ...]:
    """Spans; dropout's words for context and memory; their masks where these are arrays; where the update's number is."""
    masks = saved.keep, saved.keep_memory
    return (saved.arguments.rho, *(packed(entropy_words(mask)) for mask in masks),
            *(None if mask is None or isinstance(mask, Mask) else module_of(mask).ascontiguousarray(mask) for mask in masks),
            next((mask.now for mask in masks if isinstance(mask, Mask)), None))


def entropy_words(keep: Keep) -> list[int]:
    """The words that a mask's streams begin with; none if it is an array, or nothing is dropped."""
    return words_of((keep.seed, purpose_number(keep.purpose), keep.update)) if isinstance(keep, Mask) else []


def launch(name: str, saved: Saved, part: Part, *arrays: Any) -> None:
    """One block for each row of the part's arrays; after Tile come the kernel's own arguments."""
    at, options, (batch, block, heads, _) = saved.cut, saved.options, saved.shapes[0]
    shape = [part.heads.stop - part.heads.start, part.texts.stop - part.texts.start, at.rows]
    counts = [len(words) + 1 if words else 0 for words in map(entropy_words, (saved.keep, saved.keep_memory))]
    drawn = saved.keep if isinstance(saved.keep, Mask) else None
    least = np.array(drawn.least if drawn else 0, "uint32").view("int32").item()
    trims = TRIMMED_AT_ONCE if options.normalizer_epsilon and options.span > TRIMMED_AT_ONCE else 0
    rate = options.dropout if saved.keep is not None else 0.0
    tile = np.array([*shape, window_of(part.size, at.rows), slots_of(saved.arguments), part.size, part.heads.start,
                     part.texts.start, heads, batch, part.first_query, block, options.span, options.ramp,
                     -(at.first + part.start), trims, *counts, drawn.first_row if drawn else 0, least],
                    "int32").tobytes() + np.array([options.normalizer_epsilon, rate]).tobytes()
    packed_tile = np.frombuffer(tile, f"V{len(tile)}")[0]
    kernel("attention", name, saved.shift.dtype)((math.prod(shape),), (THREADS,), (packed_tile, *arrays))
