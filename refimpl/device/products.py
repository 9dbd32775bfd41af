"""Matrix products on the GPU as cuBLAS has them: a batch of views, scaled, added to what is there, and copied nowhere."""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from refimpl.arrays import Array, module_of_device

DEFAULT_MATH, TF32_MATH = 0, 3  # cublasMath_t, of cublas_api.h
DEFAULT_TYPE, TF32_TYPE = 1, 7  # of CuPy's own products: COMPUTE_TYPE_DEFAULT and _TF32, which Python has no names for
KINDS = {"p": ctypes.c_void_p, "i": ctypes.c_int, "l": ctypes.c_longlong}
FUNCTIONS = {  # of cuBLAS, by their names in CuPy: its name, and what its arguments are, the same in both
    "gemmEx": ("cublasGemmEx", "piiiiippiipiippiiii"),
    "gemmStridedBatchedEx": ("cublasGemmStridedBatchedEx", "piiiiippiilpiilppiiliii"),
    "sgemmStridedBatched": ("cublasSgemmStridedBatched", "piiiiippilpilppili"),
    "dgemmStridedBatched": ("cublasDgemmStridedBatched", "piiiiippilpilppili"),
    "sgemmBatched": ("cublasSgemmBatched", "piiiiippipippii"),
    "dgemmBatched": ("cublasDgemmBatched", "piiiiippipippii"),
}
COMPUTE_TYPES = {0: 68, 1: 70}  # of cublasComputeType_t, for the cudaDataType that CuPy still gives for stacks


@contextmanager
def captured(stream: Any) -> Iterator[None]:
    """Within it products asked of CuPy on `stream` can be captured: they go to cuBLAS past CuPy's own call of it.

    CuPy 14 refuses every product on a stream that captures; cuBLAS allows them (its manual, "CUDA Graphs Support").
    """
    cublas, handle = module_of_device().cuda.cublas, module_of_device().cuda.get_cublas_handle()
    library = ctypes.CDLL(f"libcublas.so.{cublas.getVersion(handle) // 10000}")  # the one that CuPy has loaded
    before = {name: getattr(cublas, name) for name in FUNCTIONS}
    _succeed("cublasSetStream", library.cublasSetStream_v2(ctypes.c_void_p(handle), ctypes.c_void_p(stream.ptr)))
    for name in FUNCTIONS:
        setattr(cublas, name, _direct(library, *FUNCTIONS[name]))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(cublas, name, function)


def _direct(library: ctypes.CDLL, name: str, kinds: str) -> Callable[..., None]:
    function, types = library[name], [KINDS[kind] for kind in kinds]

    def call(*arguments: int) -> None:
        given = [*arguments]
        if name.endswith("Ex"):
            given[-2] = COMPUTE_TYPES.get(given[-2], given[-2])
        _succeed(name, function(*(kind(value) for kind, value in zip(types, given, strict=True))))

    return call


def _succeed(name: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{name}: status {status} of cuBLAS")


def set_tf32(on: bool) -> None:
    """Whether float32 products on this device may round their factors to 10 bits after the point, for tensor cores.

    Either way it is told to cuBLAS, for `product`, and to CuPy, for its products of two matrices. Stacks that CuPy
    multiplies (persistent vectors of the split variants) name float32 and no more: cuBLAS decides by what it was told.
    """
    cuda = module_of_device().cuda
    cuda.cublas.setMathMode(cuda.get_cublas_handle(), TF32_MATH if on else DEFAULT_MATH)
    module_of_device()._core.set_compute_type(np.dtype("float32"), TF32_TYPE if on else DEFAULT_TYPE)


def product(left: Array, right: Array, out: Array, scale: float = 1.0, add: bool = False) -> None:
    """out = scale left @ right, or out + that: (n, I, K) by (n, K, J) to (n, I, J), in one launch.

    Of left and right one of the last two axes must be contiguous in memory, of out the last; n = 1 is broadcast.
    """
    cuda, dtype = module_of_device().cuda, out.dtype
    function = getattr(cuda.cublas, "sgemmStridedBatched" if dtype.char == "f" else "dgemmStridedBatched")
    alpha, beta = np.array(scale, dtype), np.array(float(add), dtype)
    batch, rows, columns = out.shape
    of_right, of_left = _operand(right, batch), _operand(left, batch)
    *_, row_step, _ = (step // dtype.itemsize for step in out.strides)
    function(  # its matrices lie by columns: the product of the transposes, in the other order
        cuda.get_cublas_handle(), of_right[0], of_left[0], columns, rows, left.shape[2], alpha.ctypes.data, right.data.ptr,
        *of_right[1:], left.data.ptr, *of_left[1:], beta.ctypes.data, out.data.ptr, max(row_step, columns),
        out.strides[0] // dtype.itemsize, batch)


def _operand(array: Array, batch: int) -> tuple[int, int, int]:
    """Whether cuBLAS transposes it, the distance of its lines, and of its matrices."""
    step, row, column = (step // array.itemsize for step in array.strides)
    _, rows, columns = array.shape
    step = 0 if array.shape[0] < batch else step
    if column == 1 or columns == 1:
        return 0, max(row, columns), step
    return 1, max(column, rows), step
