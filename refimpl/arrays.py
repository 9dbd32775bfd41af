"""The one array module: which library an array belongs to, host and device, random streams, worker threads.

The only file that names CuPy. It is imported when a device is asked for by name; whoever holds one of its arrays has it.
"""

import math
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from refimpl import cores
from refimpl.errors import InputError
from refimpl.subnormals import as_wanted

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: there is no common type that both declare
Item = TypeVar("Item")
Result = TypeVar("Result")
Place: TypeAlias = Callable[[Array], Array]  # moves an array to where a command computes
KERNELS = Path(__file__).parent / "kernels"
WIDE = 96  # numbers of a row that are added faster by a call of their own than by `add.at`, measured


def is_device(array: Array) -> bool:
    """Whether the array is CuPy's and so lives on a GPU."""
    return type(array).__module__.partition(".")[0] == "cupy"


def array_module(arrays: Mapping[str, Array]) -> ModuleType:
    """The library, numpy or cupy, that all of the named arrays belong to; None values are passed over.

    Raises InputError, naming one argument of each kind, if host and device arrays are mixed.
    """
    first: dict[bool, str] = {}
    for name, array in arrays.items():
        if array is not None:
            first.setdefault(is_device(array), name)
    if len(first) == 2:
        raise InputError(f"expected all arrays on one device, got {first[True]} on the GPU and {first[False]} on the host")
    return module_of_device() if True in first else np


def module_of(array: Array) -> ModuleType:
    """The library, numpy or cupy, that one array belongs to."""
    return module_of_device() if is_device(array) else np


def module_of_device() -> ModuleType:
    """CuPy, which whoever holds one of its arrays has imported."""
    return sys.modules["cupy"]


def import_device_library() -> ModuleType:
    """CuPy, imported now. Raises ImportError if it is not there or does not load."""
    import cupy

    return cupy  # type: ignore[no-any-return]


def has_kernels(array: Array) -> bool:
    """Whether the array is where kernels/*.cu can be run, and of their dtypes."""
    return is_device(array) and array.dtype.char in "fd" and bool(array.size) and hasattr(module_of_device(), "RawKernel")


def kernel(file: str, name: str, dtype: Any) -> Callable[..., None]:
    """The function `name` of kernels/FILE.cu with float or double for REAL: f(grid, block, arguments), on this device."""
    return _kernel(file, name, np.dtype(dtype).char, module_of_device().cuda.Device().id)


def kernel_source(file: str) -> str:
    """kernels/FILE.cu, with what it includes in its place: libraries that keep compiled kernels look at no other file."""
    text = (KERNELS / f"{file}.cu").read_text(encoding="utf-8")
    return re.sub(r'^#include "(\w+)\.cu"$', lambda found: kernel_source(found[1]), text, flags=re.M)


@cache
def _kernel(file: str, name: str, kind: str, device: int) -> Callable[..., None]:
    # products and sums rounded one by one, as NumPy does it: a span's kinks stay where they are
    options = (f"-DREAL={'double' if kind == 'd' else 'float'}", "--fmad=false")
    return module_of_device().RawKernel(kernel_source(file), name, options=options)  # type: ignore[no-any-return]


def to_host(array: Array) -> Array:
    """A NumPy array with the same values; the array itself if it is one already. Waits for the device."""
    return array.get() if is_device(array) else array


def to_library_of(reference: Array, array: Array) -> Array:
    """`array` moved to where `reference` lives; the array itself if it is there already."""
    return module_of(reference).asarray(to_host(array)) if is_device(reference) != is_device(array) else array


def wait(array: Array) -> None:
    """Returns when all that was asked of the array's device is done."""
    if is_device(array):
        module_of_device().cuda.Device().synchronize()


def real_dtype(dtype: Any) -> np.dtype[Any]:
    """float64 for complex128, and so on; a real dtype is its own."""
    return np.empty(0, dtype).real.dtype


def square_root(number: int, dtype: Any) -> Any:
    """√number as a scalar rounded once to the real dtype of `dtype`: a Python float would spoil longdouble."""
    return np.sqrt(np.asarray(number, real_dtype(dtype)))[()]


def largest_exponent(dtype: Any) -> float:
    """x with exp(x) finite in this dtype and far enough below its largest number to be divided by a small weight."""
    return math.floor(0.75 * float(np.log(np.finfo(real_dtype(dtype)).max)))


def diagonals(product: Array, size: int) -> Array:
    """View (..., T, size) of (..., T, size + T - 1): row t, element x is column t + size - 1 - x (nearest first)."""
    xp = module_of(product)
    *outer, row, step = product.strides
    shape = (*product.shape[:-1], size)
    return xp.lib.stride_tricks.as_strided(product, shape, (*outer, row + step, step))[..., ::-1]


def scatter_add(total: Array, index: Array, rows: Array) -> None:
    """total[index] += rows, where an index that stands several times adds up all of its rows, in their order.

    total (V, …), index (…) of whole numbers, rows (…, …). The sums of `add.at`, to the bit; of long rows in a fraction of
    its time, which sums of rows sorted by index would only match where few indices repeat often.
    """
    if is_device(total) or total[:1].size < WIDE:
        module_of(total).add.at(total, index, rows)
        return
    total, rows = total.view(np.ndarray), rows.view(np.ndarray)
    for place, row in zip(index.reshape(-1).tolist(), rows.reshape(-1, *total.shape[1:]), strict=True):
        total[place] += row


def random_stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Host random numbers that depend on seed, purpose and indices alone, not on what was drawn before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, purpose_number(purpose), *indices])))


def purpose_number(purpose: str) -> int:
    """The number that a stream's seed has of its purpose."""
    return zlib.crc32(purpose.encode())


def quiet() -> AbstractContextManager[Any]:
    """No floating-point warnings from NumPy, for callers that look for NaN and infinity themselves."""
    return np.errstate(all="ignore")


@lru_cache(maxsize=1)
def _blas() -> Any:
    from threadpoolctl import ThreadpoolController  # 21 ms: only when threads are asked for

    return ThreadpoolController()


def blas_libraries() -> list[dict[str, Any]]:
    """What threadpoolctl tells of each BLAS that is loaded: internal_api, version, architecture, num_threads, …"""
    return [library for library in _blas().info() if library["user_api"] == "blas"]


@lru_cache(maxsize=4)
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="refimpl")


_limits: list[int] = []  # of the `limit_threads` that this process is within, the innermost last


def available_cores() -> int:
    """How many threads this process may compute on: as `limit_threads` says, else one for each core that it may use."""
    return _limits[-1] if _limits else cores.available()


@contextmanager
def limit_threads(count: int | None = None) -> Iterator[None]:
    """Within it the process computes on `count` threads, BLAS's and workers' alike.

    None: as many as there are cores, and BLAS on fewer where the environment has told it so.
    """
    threads = count or available_cores()
    told = [] if count else [library["num_threads"] for library in blas_libraries()]
    with _blas().limit(limits=min([threads, *told]), user_api="blas"):
        _limits.append(threads)
        try:
            yield
        finally:
            _limits.pop()


_in_worker: ContextVar[bool] = ContextVar("in_worker", default=False)


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item] | Iterable[Item], workers: int) -> list[Result]:
    """[function(item), ...] in order, `workers` at a time, the matrix products of each on a thread of its own.

    Each runs under the caller's floating-point settings. Called by a worker, it runs them one by one in that worker's
    thread: whoever splits the work first has the cores.
    """
    if _in_worker.get():
        return [function(item) for item in items]

    def run(item: Item) -> Result:
        _in_worker.set(True)
        with as_wanted():
            return function(item)

    tasks = [(copy_context(), item) for item in items]
    with _blas().limit(limits=1, user_api="blas"):
        return list(_pool(workers).map(lambda task: task[0].run(run, task[1]), tasks))
