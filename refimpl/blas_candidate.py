"""A program, started by blas.py: are this process's BLAS kernels right, and how fast? Prints JSON on stdout.

A process of its own, because OpenBLAS chooses its kernels once, when NumPy is imported, and wrong ones may crash.
"""

import json
import time
from typing import Any

import numpy as np

ROWS, INNER, COLUMNS = 509, 512, 521  # blocks of every kernel, and edges left over
REPEATS, SECONDS = 30, 0.08


def main() -> None:
    """Prints library, architecture, whether products are right, and GFLOP/s of float32 on one thread."""
    from threadpoolctl import threadpool_info, threadpool_limits

    (library, *_) = [found for found in threadpool_info() if found["user_api"] == "blas"] or [{}]
    result = {"library": library.get("internal_api"), "architecture": library.get("architecture"), "right": right(np.matmul)}
    with threadpool_limits(limits=1, user_api="blas"):
        print(json.dumps({**result, "speed": speed()}))


def operands(dtype: str) -> tuple[Any, Any]:
    """Whole numbers from -8 to 8, whose sums of products any order of addition gives exactly, in float32 too."""
    rng = np.random.default_rng(0)
    return rng.integers(-8, 9, (ROWS, INNER)).astype(dtype), rng.integers(-8, 9, (INNER, COLUMNS)).astype(dtype)


def right(matmul: Any) -> bool:
    """Whether float32 and float64 products are exact, of plain and of transposed operands.

    Freivalds' check in integers: (A B) r = A (B r) for a random r, without a second product of matrices.
    """
    for dtype in ("float32", "float64"):
        a, b = operands(dtype)
        r = np.random.default_rng(1).integers(1, 100, COLUMNS)
        expected = a.astype(np.int64) @ (b.astype(np.int64) @ r)
        products = (matmul(a, b), matmul(b.T, a.T).T, matmul(a, np.ascontiguousarray(b.T).T))
        if not all(np.isfinite(c).all() and (c.astype(np.int64) @ r == expected).all() for c in products):
            return False
    return True


def speed() -> float:
    """GFLOP/s, by the fastest of some repeats: what else the machine does only slows."""
    a, b = operands("float32")
    out, fastest, start = a @ b, float("inf"), time.perf_counter()
    for _ in range(REPEATS):
        before = time.perf_counter()
        np.matmul(a, b, out=out)
        now = time.perf_counter()
        fastest = min(fastest, now - before)
        if now - start > SECONDS:
            break
    return 2e-9 * ROWS * INNER * COLUMNS / fastest


if __name__ == "__main__":
    main()
