"""The folders through which cases go out and results come back: what a program in any language reads and writes.

CASE/case.json and CASE/inputs.safetensors go out; OUT/results.safetensors comes back. Expected values never go out.
"""

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from refimpl.arrays import Array
from refimpl.errors import InputError
from refimpl.golden.vectors import Stored, tensors_to_bytes

DTYPES = ("float64", "float32", "float16", "bfloat16")
RESULTS = "results.safetensors"
LARGEST = 16 * 2**20  # bytes of a file of results: a thousand times what any case has


class BadResultsError(Exception):
    """What came back is no file of results that can be read."""


def inputs_in(case: Stored, dtype: str) -> dict[str, Array]:
    """A case's inputs in the dtype under test; NumPy has no bfloat16, so that those numbers, exact in it, go as float32."""
    real = "float32" if dtype == "bfloat16" else dtype
    return {name: array.astype(real) if array.dtype.kind == "f" else array for name, array in case.inputs.items()}


def write_case(folder: Path, case: Stored, dtype: str) -> None:
    """A case as a program gets it."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = inputs_in(case, dtype)
    told = {"id": case.id, "function": case.entry["function"], "settings": case.entry["settings"], "dtype": dtype,
            "inputs": {name: {"dtype": array.dtype.name, "shape": list(array.shape)} for name, array in inputs.items()},
            "results": case.entry.get("expected", {}).get("tensors", {})}
    told["results"] = {name: {"shape": tensor["shape"]} for name, tensor in told["results"].items() if name in case.results}
    (folder / "case.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "inputs.safetensors").write_bytes(tensors_to_bytes(inputs))


def read_case(folder: Path) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """(function, settings, inputs) of a case's folder. Raises InputError if it is none."""
    try:
        told = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        return told["function"], told["settings"], load((folder / "inputs.safetensors").read_bytes())
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{folder}: expected a case (case.json, inputs.safetensors), got {error}") from error


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Results as the reader expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_bytes(tensors_to_bytes({name: np.asarray(array) for name, array in results.items()}))


def read_results(path: Path) -> dict[str, Array]:
    """A file of results. Raises BadResultsError for a link, for what is no plain file, is too large, or can't be read."""
    try:
        # opened without following links, so that nobody can hand in a file from elsewhere
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BadResultsError(f"expected {path.name}, got no such file") from None
    except OSError as error:
        kind = "a symbolic link" if path.is_symlink() else error.strerror
        raise BadResultsError(f"expected {path.name} as a plain file, got {kind}") from None
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise BadResultsError(f"expected {path.name} as a plain file, got another kind")
        if found.st_size > LARGEST:
            raise BadResultsError(f"expected {path.name} of at most {LARGEST:,} bytes, got {found.st_size:,}")
        data = file.read()
    try:
        return dict(load(data))
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadResultsError(f"expected {path.name} in the safetensors format, got {error}") from None
