"""attention.py in tiles that a processor's cache holds, for training on CPUs: nothing of size T × (S + N) outlives a tile.

Context and persistent slots stand side by side in one block, so that one exponential and one row sum serve both. Forward
keeps a shift and a total for each row; from them backward (tiled_gradients.py) computes the weights again. A head computes
its own ⌊z⌋ + R + 1 positions; with ε > 0 those of the layer's longest head, see span.untrimmed. Tasks, one head with some
texts each, are spread over threads. No two write to one array, and their sums are added in a fixed order: bits don't depend
on the threads. In float32 what would be smaller than the smallest normal number is 0 (subnormals.py).
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np

from refimpl.arrays import Array, available_cores, is_device, map_in_threads, square_root
from refimpl.errors import InputError
from refimpl.layers import attention, span
from refimpl.layers.attention import Arguments, Options
from refimpl.layers.tiled_gradients import Saved, Task, backward_task
from refimpl.layers.tiled_logits import Head, Problem, drop, exponentials, head, kept, logits, problem, reach, rows
from refimpl.layers.tiles import TILING, Block, Tiling, block, product, scratch
from refimpl.masks import Keep
from refimpl.subnormals import flushed

Result = TypeVar("Result")


def forward(
    arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None,
    tiling: Tiling = TILING,
) -> tuple[Array, Saved]:
    """As attention.forward, for real NumPy arrays."""
    attention.check(arguments, options)
    attention.check_sight(arguments, options)
    return attend(arguments, options, keep, keep_memory, tiling)


def needed(rho: Array | None, options: Options) -> int:
    """How many positions before the block have an effect."""
    if rho is None:
        return options.span
    return int(span.untrimmed(rho, options.span, options.ramp) if options.normalizer_epsilon
               else span.reach(rho, options.span, options.ramp).max())


def attend(
    arguments: Arguments, options: Options, keep: Keep = None, keep_memory: Keep = None,
    tiling: Tiling = TILING,
) -> tuple[Array, Saved]:
    """As attention.attend, for real NumPy arrays."""
    for name, array in arguments._asdict().items():
        if array is not None and (is_device(array) or array.dtype.kind != "f"):
            came = f"{type(array).__name__} of {array.dtype}"
            raise InputError(f"{name}: expected a real NumPy array for attention in tiles, got {came}")
    attention.check_keep(keep, keep_memory, arguments.memory_keys)
    plain = Arguments(*(None if array is None else np.asarray(array) for array in arguments))
    given = problem(plain, options, keep, keep_memory, tiling)
    batch, length, heads, _ = plain.queries.shape
    shift, total = np.empty((2, batch, heads, length), plain.queries.dtype)
    y, saved = np.empty_like(arguments.queries), Saved(given, shift, total)
    _in_tasks(partial(_forward_task, np.asarray(y), saved), given)
    return y, saved


def _in_tasks(function: Callable[[Task], Result], given: Problem) -> list[tuple[Task, Result]]:
    """Every task with its result, by head and then by text; those of the longest spans are computed first."""
    batch, length, heads, _ = given.arguments.queries.shape
    slots = 0 if given.arguments.memory_keys is None else given.arguments.memory_keys.shape[1]
    tasks = []
    for number in range(heads):
        parts = given.tiling.parts(batch, heads, batch * length * (reach(given, number) + slots))
        tasks += [Task(number, range(batch * part // parts, batch * (part + 1) // parts)) for part in range(parts)]
    tasks.sort(key=lambda task: -reach(given, task.head))
    with flushed(given.arguments.queries.dtype):
        results = map_in_threads(function, tasks, given.tiling.workers or available_cores())
    return sorted(zip(tasks, results, strict=True), key=lambda pair: (pair[0].head, pair[0].texts.start))


def _forward_task(outputs: Array, saved: Saved, task: Task) -> None:
    """Fills in the outputs, shift and total of one head and some texts."""
    given, of_head = saved.problem, head(saved.problem, task.head, len(task.texts))
    at, (_, length, _, width), dtype, slots = of_head.cut, outputs.shape, outputs.dtype, len(of_head.memory_keys)
    for texts in task.together(at):
        of_texts, count = rows(given, of_head, texts), len(texts)
        y, shift, total = (scratch(name, (count, at.queries, size), dtype) for name, size in (
            ("y", width), ("shift", 1), ("total", 1)))
        for tiles in at.stacks():
            weights, free = (block(name, at, count, tiles, slots, dtype) for name in ("weights", "free"))
            logits(weights, free, of_head, of_texts, tiles)
            at.in_block(shift, tiles)[...] = _shift(weights, of_head.unweighted)
            exponentials(weights, at.in_block(shift, tiles), of_head.unweighted)
            at.in_block(total, tiles)[...] = _weigh(weights, of_head, given.options.normalizer_epsilon)
            drop(weights, kept(of_texts, of_head, length, tiles))
            np.matmul(weights.context, of_texts.values[:, tiles], out=at.by_tile(y, tiles))
            at.in_block(y, tiles)[...] += product(weights.memory, of_head.memory_values)
        y /= total if given.keep is None else total * (1 - given.options.dropout)
        here = slice(texts.start, texts.stop)
        outputs[here, :, task.head] = y[:, :length]
        saved.shift[here, task.head], saved.total[here, task.head] = shift[:, :length, 0], total[:, :length, 0]


def _shift(logits: Block, unweighted: int) -> Array:
    """Each row's largest logit with w + ε > 0, 0 if there is none, (b n rows, 1); those with w + ε = 0 become -∞."""
    logits.band[..., :unweighted] = -np.inf
    shift: Array = logits.whole.max(-1, keepdims=True)
    shift[np.isneginf(shift)] = 0
    return shift


def _weigh(exponentials: Block, of_head: Head, epsilon: float) -> Array:
    """w e in place of e = e^(s - shift); returns each row's Z = Σ (w + ε) e, (b n rows, 1), 1 where nothing counts."""
    weights, ones = exponentials.whole, np.ones(exponentials.whole.shape[1], exponentials.whole.dtype)
    total = epsilon * (weights @ ones) if epsilon else 0
    exponentials.band[..., : len(of_head.ramp)] *= of_head.ramp
    total = total + weights @ ones
    total[total == 0] = 1
    return total[:, None]


def backward(dy: Array, saved: Saved) -> Arguments:
    """As attention.backward; dy (B, T, H, E)."""
    given, arguments = saved.problem, saved.problem.arguments
    d = Arguments(*(np.empty_like(dy, array.dtype, shape=array.shape) for array in arguments[:3]))
    by_row = Arguments(*map(np.asarray, d[:3]))
    sums = _in_tasks(partial(backward_task, saved, np.asarray(dy), by_row), given)
    d = d._replace(**{name: np.zeros_like(dy, array.dtype, shape=array.shape) for name, array in arguments._asdict().items()
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
