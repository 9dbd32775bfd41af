"""Matrix products on the GPU as cuBLAS has them: a batch of views, scaled, added to what is there, and copied nowhere."""

import numpy as np

from refimpl.arrays import Array, module_of_device


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
