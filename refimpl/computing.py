"""What the last bits of a result depend on beside its settings: NumPy, BLAS with its kernels, threads, ranks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.arrays import available_cores, blas_libraries


def computing(ranks: int = 1) -> dict[str, Any]:
    """This process's, one of so many, as plain JSON: numpy, blas, threads, ranks."""
    blas = [f"{library['internal_api']} {library['version']} {library.get('architecture', '')}".strip()
            for library in blas_libraries()]
    return {"numpy": np.__version__, "blas": ", ".join(blas) or "unknown", "threads": available_cores(), "ranks": ranks}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two of them, in words; "" if nothing does."""
    before = {"ranks": 1, **before}  # a run of one process had no need to tell
    return "; ".join(f"{name} {before.get(name)} before, {now[name]} now" for name in now if now[name] != before.get(name))


def device_of(computing: Mapping[str, Any]) -> str:
    """Where a run computes, as it records that beside these, and whether in TF32."""
    return str(computing.get("device", "cpu")) + (" in TF32" if computing.get("tf32") else "")
