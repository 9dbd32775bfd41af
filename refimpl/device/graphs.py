"""An update kept as a CUDA graph: launched as one, where the host would ask for each of its kernels again.

A graph repeats its launches with the arguments that they had. So what every update has anew stands in one buffer on the
device, filled before the launch; temporaries come from a pool that nothing else takes from; and what outlasts an update,
the past and three numbers, is copied out of it. The first update of a kind is computed as without a graph, the second is
captured: windows that change, or another length of the past, begin anew.
"""

from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, is_device, module_of_device
from refimpl.config import TrainConfig
from refimpl.device.opening import first_line
from refimpl.device.products import captured
from refimpl.errors import InputError

NUMBERS = 4  # device.optimizer.numbers


class Given(NamedTuple):
    """What an update is computed from, on the device: its numbers (None = as the host has them), tokens, targets, the past.
    """

    now: Array | None
    tokens: Array
    targets: Array
    past: Array


class Made(NamedTuple):
    """What comes of it: loss, span penalty (a float where there is none to compute), gradient norm, the new past."""

    loss: Array
    span_penalty: Any
    norm: Array
    past: Array


Compute = Callable[[Given], Made]


def check(train_config: TrainConfig, device: str = "gpu") -> None:
    """Raises InputError without a GPU, and for updates that wait for it."""
    if device == "cpu":
        raise InputError("--cuda-graph: expected a GPU with it (--device gpu), got --device cpu")
    if train_config.attention == "textbook":
        raise InputError("--cuda-graph: expected train.attention auto or tiled, got textbook, which waits for spans")


class Graph:
    """The graph of the last kind of update, and what it computes with. For one run: its state and parameters."""

    def __init__(self) -> None:
        """Nothing is captured yet."""
        cuda = module_of_device().cuda
        self._stream = cuda.Stream(non_blocking=True)
        self._pool = cuda.MemoryPool()
        self._before, self._after = (cuda.Event(disable_timing=True) for _ in range(2))
        self._kind: Hashable = None
        self._captured: Any = None
        self._computed = False  # whether an update of this kind was computed
        self._buffer: Array = None  # numbers, tokens, targets, 8 bytes each
        self._past: Array = None
        self._told: Array = None
        self._penalty: Any = None

    def update(
        self, compute: Compute, kind: Hashable, numbers: tuple[float, ...], tokens: Array, targets: Array, past: Array
    ) -> tuple[Made, Given]:
        """`compute`, as it is or from the graph; host tokens and the numbers are sent in one piece.

        kind: all that decides what compute does, but shapes. The past that is returned is overwritten by the next update,
        and so are the tokens.
        """
        caller = module_of_device().cuda.get_current_stream()
        self._before.record(caller)
        self._stream.wait_event(self._before)
        with self._stream:
            self._begin(kind, tokens, past)
            given = self._filled(numbers, tokens, targets, past)
            if self._captured is None and self._computed:
                self._captured = self._capture(compute, given)
            if self._captured is not None:
                self._captured.launch()
            else:
                self._past = self._kept(compute, given)
                self._computed = self._past is given.past
            loss, norm, penalty = self._told.copy()
        self._after.record(self._stream)
        caller.wait_event(self._after)
        return Made(loss, penalty if is_device(self._penalty) else self._penalty, norm, self._past), given

    def _begin(self, kind: Hashable, tokens: Array, past: Array) -> None:
        """Forgets the graph if the update is of another kind than the last."""
        whole = kind, tokens.shape, past.shape, past.dtype.char
        if whole == self._kind:
            return
        if self._captured is not None:
            self._stream.synchronize()  # what is still being computed must not be taken away
        self._kind, self._captured, self._computed = whole, None, False
        xp, size = module_of_device(), NUMBERS + 2 * tokens.size
        if self._buffer is None or self._buffer.size != size:
            self._buffer, self._told = xp.empty(size, "int64"), xp.empty(3, past.dtype)

    def _filled(self, numbers: tuple[float, ...], tokens: Array, targets: Array, past: Array) -> Given:
        xp, buffer, shape = module_of_device(), self._buffer, tokens.shape
        now = np.array(numbers, "float64").view("int64")
        if is_device(tokens):
            buffer[:NUMBERS] = xp.asarray(now)
            buffer[NUMBERS:].reshape(2, *shape)[...] = xp.stack((tokens, targets))
        else:
            buffer[...] = xp.asarray(np.concatenate((now, tokens, targets), axis=None, dtype="int64", casting="same_kind"))
        if self._past is None or self._past.shape != past.shape:
            self._past = past.copy()
        elif self._past is not past:
            self._past[...] = past
        of_tokens, of_targets = buffer[NUMBERS:].reshape(2, *shape)
        return Given(buffer[:NUMBERS].view("float64"), of_tokens, of_targets, self._past)

    def _kept(self, compute: Compute, given: Given) -> Array:
        """Computes, in the pool, and copies out what lasts; returns the past: in its place, unless it has another shape."""
        with module_of_device().cuda.using_allocator(self._pool.malloc):
            made = compute(given)
            self._penalty = made.span_penalty
            for place, number in enumerate((made.loss, made.norm, made.span_penalty)):
                self._told[place] = number
            if made.past.shape == given.past.shape:
                given.past[...] = made.past
                return given.past
        return made.past.copy()

    def _capture(self, compute: Compute, given: Given) -> Any:
        """The graph. Nothing is computed yet."""
        self._stream.begin_capture()
        try:
            with captured(self._stream):
                self._kept(compute, given)
            return self._stream.end_capture()
        except Exception as error:
            with suppress(Exception):
                self._stream.end_capture()
            reason = first_line(error)
            raise InputError(f"--cuda-graph: this update can't be captured: {reason}; leave the option out") from error
