"""Memory for an update's large arrays, kept for the next one: to clear fresh pages takes the system as long as to fill them.

Pairs know nothing of it. What NumPy computes from a `Lent` array within `with arena:` is Lent too, and stands in a block of
the arena, which comes back when the last view of that array is gone. Values are the same bits, in memory or in an arena.
"""

import math
import threading
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np

from refimpl.arrays import Array, is_device

SMALLEST = 1 << 16  # bytes of an array that a block is worth: the allocator keeps smaller ones itself
STEPS = 8  # sizes of blocks to each power of two: an eighth of a block lies idle at most
PATIENCE = 16  # updates: threads that meet otherwise once in a while need a block more or less
_current: ContextVar["Arena | None"] = ContextVar("arena", default=None)


class Arena:
    """Blocks of memory by size. What it holds for nothing during PATIENCE updates goes back to the system."""

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Array]] = defaultdict(list)
        self._idle: Counter[int] = Counter()  # blocks of a size that have been free during the last uses, PATIENCE at most
        self._uses = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """What this thread, and those it hands work to, compute from Lent arrays goes here."""
        if _current.get() is not None:
            raise RuntimeError("arena: expected one at a time, got a second")
        if self._uses % PATIENCE == 0:
            self._idle = Counter({size: len(blocks) for size, blocks in self._free.items()})
        _current.set(self)

    def __exit__(self, *_: object) -> None:
        """After PATIENCE of them, blocks that nobody needed go back to the system."""
        _current.set(None)
        self._uses += 1
        for size, count in self._idle.items() if self._uses % PATIENCE == 0 else ():
            del self._free[size][:count]

    def empty(self, shape: Sequence[int], dtype: Any) -> "Lent":
        """An array with undefined contents."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype).view(Lent)
        rounded = _rounded(size)
        with self._lock:
            free = self._free[rounded]
            block = free.pop() if free else np.empty(rounded, np.uint8)
            self._idle[rounded] = min(self._idle[rounded], len(free))
        # views of views refer to the first array whose memory is no array's: while this one lives, so does one of them
        first = np.frombuffer(block.data, np.uint8, size)
        weakref.finalize(first, free.append, block).atexit = False
        result: Lent = first.view(dtype).reshape(shape).view(Lent)
        return result


class Lent(np.ndarray[Any, Any]):
    """An array from which results in the arena are computed."""

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """The function on plain arrays; if it is a plain call with one result, that is in the arena."""
        given = [np.asarray(x) if isinstance(x, Lent) else x for x in inputs]
        function, arena = getattr(ufunc, method), _current.get()
        if "out" in options:
            function(*given, **{**options, "out": tuple(map(np.asarray, options["out"]))})
            return options["out"][0]
        shape = None if arena is None or method != "__call__" or options or ufunc.nout > 1 else _shape(ufunc, given)
        if arena is None or shape is None:
            return _lent(function(*given, **options))
        types = (x.dtype if hasattr(x, "dtype") else type(x) for x in given)
        result = arena.empty(shape, ufunc.resolve_dtypes((*types, None))[-1])
        ufunc(*given, out=np.asarray(result))
        return result

    def reshape(self, *shape: Any) -> Any:  # type: ignore[override]  # of NumPy's forms the one that the pairs use
        """The view, or the copy in the arena where strides allow none."""
        arena = _current.get()
        if arena is None or self.flags.c_contiguous or self.nbytes < SMALLEST:
            return super().reshape(*shape)
        try:
            return super().reshape(*shape, copy=False)
        except ValueError:  # NumPy's way to say that it needs a copy
            result = arena.empty(self.shape, self.dtype)
            np.copyto(np.asarray(result), np.asarray(self))
            return result.reshape(*shape)

    def __array_function__(self, function: Callable[..., Any], types: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Those that make new arrays make them in the arena; all others are NumPy's own."""
        arena = _current.get()
        if arena is None or function not in MAKERS or not kwargs.keys() <= ARGUMENTS:
            return super().__array_function__(function, types, args, kwargs)
        return MAKERS[function](arena, *args, **kwargs)


def lent(array: Array) -> Array:
    """The array as one from which results in an arena are computed, if it is NumPy's."""
    return array if is_device(array) else array.view(Lent)


def returned(array: Array) -> Array:
    """The array as a plain one, for those who know nothing of arenas. Its memory stays its own as long as it lives."""
    return np.asarray(array) if isinstance(array, Lent) else array


def _lent(result: Any) -> Any:
    return result.view(Lent) if isinstance(result, np.ndarray) else result


def _shape(ufunc: np.ufunc, given: Sequence[Any]) -> tuple[int, ...] | None:
    """The result's shape; None = NumPy makes the result: a scalar, a product with a vector, or in another order than C."""
    if ufunc is np.matmul:
        left, right = (x.shape for x in given)
        if min(len(left), len(right)) < 2:
            return None
        return (*np.broadcast_shapes(left[:-2], right[:-2]), left[-2], right[-1])
    shape = np.broadcast_shapes(*map(np.shape, given))
    whole = [x for x in given if np.shape(x) == shape]
    return shape if shape and not ufunc.signature and all(x.flags.c_contiguous for x in whole) else None


def _empty_like(arena: Arena, like: Array, dtype: Any = None, shape: Sequence[int] | None = None) -> Lent:
    return arena.empty(like.shape if shape is None else shape, like.dtype if dtype is None else dtype)


def _zeros_like(arena: Arena, like: Array, dtype: Any = None, shape: Sequence[int] | None = None) -> Lent:
    result = _empty_like(arena, like, dtype, shape)
    result[...] = 0
    return result


def _concatenate(arena: Arena, arrays: Sequence[Array], axis: int = 0) -> Lent:
    plain = [np.asarray(array) for array in arrays]
    shape = list(plain[0].shape)
    shape[axis] = sum(array.shape[axis] for array in plain)
    result = arena.empty(shape, np.result_type(*plain))
    np.concatenate(plain, axis, np.asarray(result))
    return result


MAKERS: Mapping[Callable[..., Any], Callable[..., Lent]] = {
    np.empty_like: _empty_like, np.zeros_like: _zeros_like, np.concatenate: _concatenate,
}
ARGUMENTS = {"dtype", "shape", "axis"}


def _rounded(size: int) -> int:
    """The next of STEPS sizes to each power of two."""
    step = (1 << (size.bit_length() - 1)) // STEPS
    return -(-size // step) * step
