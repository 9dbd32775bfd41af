"""attention.py in tiles that a processor's cache holds, for training on CPUs: nothing of size T × (S + N) outlives a tile.

Context and persistent slots stand side by side in one block, so that one exponential and one row sum serve both. Forward
keeps a shift and a total for each row; from them backward (tiled_gradients.py) computes the weights again. A head computes
its own ⌊z⌋ + R + 1 positions (all S with ε > 0, where each of them counts). Tasks, one head with some texts each, are spread
over threads. No two write to one array, and their sums are added in a fixed order: bits don't depend on the threads.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from refimpl.arrays import Array, available_cores, is_device, largest_exponent, map_in_threads, square_root
from refimpl.errors import InputError
from refimpl.layers import attention, span
from refimpl.layers.attention import Arguments, Options
from refimpl.layers.tiled_gradients import Saved, Task, backward_task
from refimpl.layers.tiled_logits import Head, Problem, context_logits, head, keep_context, keep_memory, problem, reach, rows
from refimpl.layers.tiles import TILING, Block, Tiling, block, product, scratch

Result = TypeVar("Result")


def forward(
    arguments: Arguments, options: Options, keep: Array | None = None, keep_memory: Array | None = None,
    tiling: Tiling = TILING,
) -> tuple[Array, Saved]:
    """As attention.forward, for real NumPy arrays."""
    attention.check(arguments, options)
    attention.check_sight(arguments, options)
    return attend(arguments, options, keep, keep_memory, tiling)


def attend(
    arguments: Arguments, options: Options, keep: Array | None = None, keep_memory: Array | None = None,
    tiling: Tiling = TILING,
) -> tuple[Array, Saved]:
    """As attention.attend, for real NumPy arrays."""
    queries = arguments.queries
    if is_device(queries) or queries.dtype.kind != "f":
        raise InputError(f"tiled attention: expected real NumPy arrays, got {type(queries).__name__} of {queries.dtype}")
    attention.check_keep(keep, keep_memory, arguments.memory_keys)
    given = problem(arguments, options, keep, keep_memory, tiling)
    batch, length, heads, _ = queries.shape
    shift, total = np.empty((2, batch, heads, length), queries.dtype)
    saved = Saved(given, np.empty(queries.shape, queries.dtype), shift, total)
    _in_tasks(partial(_forward_task, saved), given)
    return saved.y, saved


def _in_tasks(function: Callable[[Task], Result], given: Problem) -> list[tuple[Task, Result]]:
    """Every task with its result, by head and then by text; those of the longest spans are computed first."""
    batch, _, heads, _ = given.arguments.queries.shape
    parts = min(batch, math.ceil(given.tiling.tasks / heads))
    tasks = [Task(number, range(batch * part // parts, batch * (part + 1) // parts))
             for number in range(heads) for part in range(parts)]
    tasks.sort(key=lambda task: -reach(given, task.head))
    results = map_in_threads(function, tasks, given.tiling.workers or available_cores())
    return sorted(zip(tasks, results, strict=True), key=lambda pair: (pair[0].head, pair[0].texts.start))


def _forward_task(saved: Saved, task: Task) -> None:
    """Fills in y, shift and total of one head and some texts."""
    given, of_head = saved.problem, head(saved.problem, task.head)
    at, (_, length, _, width), dtype = of_head.cut, saved.y.shape, saved.y.dtype
    slots = 0 if of_head.memory_keys is None else len(of_head.memory_keys)
    for text in task.texts:
        of_text = rows(given, of_head, text)
        y, shift, total = scratch("y", (at.queries, width), dtype), *scratch("totals", (2, at.queries), dtype)
        for tiles in at.stacks():
            weights, free = (block(name, at, tiles.stop - tiles.start, slots, dtype) for name in ("weights", "free"))
            here = at.rows_of(tiles)
            context_logits(weights, free, of_head, of_text, tiles)
            if of_head.memory_keys is not None:
                np.matmul(of_text.memory[here], of_head.memory_keys[:, :width].T, out=weights.memory)
            shift[here], total[here] = _exponentials(weights, of_head, given.options.normalizer_epsilon)
            if given.keep is not None:
                weights.band[...] *= keep_context(given, of_head, text, tiles)
            np.matmul(weights.context, of_text.values[tiles, :, :width], out=at.by_tile(y[here]))
            if of_head.memory_values is not None:
                if given.keep_memory is not None:
                    weights.memory[...] *= keep_memory(given, of_head, text, here, slice(slots))
                y[here] += product(weights.memory, of_head.memory_values[:, :width])
        y /= (total if given.keep is None else total * (1 - given.options.dropout))[:, None]
        saved.y[text, :, task.head] = y[:length]
        saved.shift[text, task.head], saved.total[text, task.head] = shift[:length], total[:length]


def _exponentials(logits: Block, of_head: Head, epsilon: float) -> tuple[Array, Array]:
    """w e^(s - shift) in place of the logits s; returns each row's shift and Z = Σ (w + ε) e^(s - shift).

    The shift is the row's largest logit with w + ε > 0; none where all of a block's are small and exp needs none.
    """
    weights, ones = logits.whole, np.ones(logits.whole.shape[1], logits.whole.dtype)
    logits.band[..., : of_head.unweighted] = -np.inf
    shift = weights.max(-1)
    shift[np.isneginf(shift)] = 0
    if (np.abs(shift) < largest_exponent(shift.dtype) / 2).all():
        shift[...] = 0
    else:
        weights -= shift[:, None]
    np.exp(weights, out=weights)
    total = epsilon * (weights @ ones) if epsilon else 0
    logits.band[..., : len(of_head.ramp)] *= of_head.ramp
    total = total + weights @ ones
    total[total == 0] = 1
    return shift, total


def backward(dy: Array, saved: Saved) -> Arguments:
    """As attention.backward; dy (B, T, H, E)."""
    given, arguments = saved.problem, saved.problem.arguments
    by_row = Arguments(*(np.empty_like(array) for array in arguments[:3]))
    sums = _in_tasks(partial(backward_task, saved, dy, by_row), given)
    d = by_row._replace(**{name: np.zeros_like(array) for name, array in arguments._asdict().items()
                           if array is not None and name not in ("queries", "keys", "values")})
    d_mask = None if given.mask is None else np.zeros_like(given.mask)
    for task, of_task in sums:
        number, size = task.head, reach(given, task.head)
        if d.positions is not None:
            (d.positions[number] if d.positions.ndim == 3 else d.positions)[:size] += of_task.table[::-1]
        if d_mask is not None:
            d_mask[number, size - len(of_task.mask) : size] += of_task.mask[::-1]
        for name in ("memory_keys", "memory_values", "content_bias", "position_bias"):
            if getattr(d, name) is not None:
                getattr(d, name)[number] += getattr(of_task, name)
    if d.positions is None:
        d = d._replace(position_bias=None)
    else:
        d.positions[...] /= square_root(dy.shape[3], dy.dtype)
    if d.memory_values is not None:
        d.memory_values[...] *= square_root(d.memory_values.shape[1], dy.dtype)
    return d if given.mask_saved is None else d._replace(rho=span.mask_backward(d_mask, given.mask_saved))
