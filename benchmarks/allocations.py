"""Counts what NumPy allocates for arrays: its memory handler's functions (NEP 49), each with a counter before it.

Only the handler that stands for all threads is of use, as worker threads do not inherit one set in another thread; NumPy
lets nobody replace it, so its functions are exchanged in place. BLAS's own buffers and Python's objects are not counted.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

DEFAULT_HANDLER = 306  # place of PyDataMem_DefaultHandler in NumPy's C interface, which keeps places between versions
FUNCTIONS = {  # arguments of each, the handler's context first
    "malloc": (ctypes.c_void_p, ctypes.c_size_t), "calloc": (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
    "realloc": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t),
}


class Allocator(ctypes.Structure):
    """PyDataMemAllocator."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("context", *FUNCTIONS, "free"))


class Handler(ctypes.Structure):
    """PyDataMem_Handler, version 1."""

    _fields_ = (("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("allocator", Allocator))


@contextmanager
def sizes_allocated() -> Iterator[list[int]]:
    """The bytes of every array allocated within it, in all threads, in order."""
    allocator, sizes = _default_handler().allocator, []
    before = {name: getattr(allocator, name) for name in FUNCTIONS}
    counting = {name: _counting(name, before[name], sizes) for name in FUNCTIONS}  # NumPy holds no reference to them
    for name, function in counting.items():
        setattr(allocator, name, ctypes.cast(function, ctypes.c_void_p).value)
    try:
        yield sizes
    finally:
        for name, address in before.items():
            setattr(allocator, name, address)


def _counting(name: str, address: int, sizes: list[int]) -> Any:
    """The function at the address, with the bytes that it is asked for noted first."""
    arguments = FUNCTIONS[name]
    original = ctypes.PYFUNCTYPE(ctypes.c_void_p, *arguments)(address)  # called with the GIL, as NumPy calls it

    def function(context: int, *rest: int) -> int:
        sizes.append(rest[0] * rest[1] if name == "calloc" else rest[-1])
        return original(context, *rest)

    return ctypes.CFUNCTYPE(ctypes.c_void_p, *arguments)(function)


def _default_handler() -> Handler:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    interface = ctypes.cast(pointer(np._core.multiarray._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    capsule = ctypes.cast(interface[DEFAULT_HANDLER], ctypes.POINTER(ctypes.py_object)).contents.value
    handler = Handler.from_address(pointer(capsule, b"mem_handler"))
    if handler.version != 1 or handler.name != b"default_allocator":
        raise RuntimeError(f"NumPy's memory handler: expected default_allocator of version 1, got {handler.name!r} of "
                           f"version {handler.version}")
    return handler
