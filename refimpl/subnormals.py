"""Numbers below the smallest normal one, for which processors of x86 take a hundred times as long as for others.

In float32 e^(s - shift) is such a number for each slot whose logit lies 87 to 104 below its row's largest; where many are
spread so widely, an update would take up to ten times as long. Within `flushed` they are 0.
"""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from typing import Any

import numpy as np

REGISTER, BITS = 7, 0x8040  # MXCSR's place in C's fenv_t of Linux on x86-64, in words; flush to zero, denormals are zero
_wanted: ContextVar[bool] = ContextVar("flushed", default=False)


@contextmanager
def flushed(dtype: Any = np.float32) -> Iterator[None]:
    """Within it this thread, and what `map_in_threads` has others do, take 0 for subnormal numbers, if dtype is float32.

    In double precision logits would have to be 700 apart. Elsewhere than on Linux on x86-64 nothing changes.
    """
    if np.dtype(dtype) != np.float32:
        yield
        return
    token, before = _wanted.set(True), _set(BITS)
    try:
        yield
    finally:
        _set(before)
        _wanted.reset(token)


@contextmanager
def as_wanted() -> Iterator[None]:
    """Within it this thread is as the thread whose context it runs in."""
    before = _set(BITS if _wanted.get() else 0)
    try:
        yield
    finally:
        _set(before)


def _set(bits: int) -> int:
    """Sets this thread's two bits to those given, and returns what they were."""
    library = _library()
    if library is None:
        return 0
    environment = (ctypes.c_uint32 * 8)()
    library.fegetenv(environment)
    before = environment[REGISTER] & BITS
    if before != bits:
        environment[REGISTER] = environment[REGISTER] & ~BITS | bits
        library.fesetenv(environment)
    return before


@cache
def _library() -> Any:
    """C's mathematics, None where its fenv_t is another one."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    for name in (None, "libm.so.6"):
        with suppress(OSError, AttributeError):
            library = ctypes.PyDLL(name)  # keeps Python's lock, for which another thread could only make it wait
            return library if library.fegetenv and library.fesetenv else None
    return None
