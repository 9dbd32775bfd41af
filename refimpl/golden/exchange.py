"""The folders through which cases go out and results come back: what a program in any language reads and writes.

CASE/case.json and CASE/inputs.safetensors go out; OUT/results.safetensors comes back. Expected values never go out.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import load

from refimpl.arrays import Array
from refimpl.errors import InputError
from refimpl.golden.vectors import Stored, tensors_to_bytes

DIGITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}  # binary, of the dtypes that can be tested
RESULTS = "results.safetensors"
LARGEST = 16 * 2**20  # bytes of a file of results: a thousand times what any case has
STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
          "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"}


class BadResultsError(Exception):
    """What came back is no file of results that can be read."""


class WrongNumbersError(Exception):
    """Results came, but of numbers that can't be those of the dtype under test."""


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
            "results": {name: {"shape": list(y.shape)} for name, y in case.results.items()}}
    (folder / "case.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "inputs.safetensors").write_bytes(tensors_to_bytes(inputs))


def read_case(folder: Path) -> tuple[str, dict[str, Any], dict[str, Array]]:
    """(function, settings, inputs) of a case's folder. Raises InputError if it is none."""
    try:
        told = json.loads((folder / "case.json").read_text(encoding="utf-8"))
        return told["function"], told["settings"], load((folder / "inputs.safetensors").read_bytes())
    except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        told = " ".join(str(error)[:500].split())
        raise InputError(f"{folder}: expected a case (case.json, inputs.safetensors), got {told}") from error


def write_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Results as the reader expects them. Raises WrongNumbersError for complex ones, TypeError for what is no numbers."""
    if not isinstance(results, Mapping):
        raise TypeError("a list does not say which array is which" if isinstance(results, list | tuple) else "no mapping")
    arrays = {name: np.asarray(array) for name, array in results.items()}
    for name, array in arrays.items():
        if array.dtype.kind == "c":
            raise WrongNumbersError(f"{name}: expected real numbers, got {array.dtype} of shape {array.shape}")
        if array.dtype.kind not in "fiub":
            raise TypeError(f"{name}: expected real numbers, got {array.dtype} of shape {array.shape}")
    wide = {name: array.astype(np.float64) if array.dtype == np.longdouble else array for name, array in arrays.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RESULTS).write_bytes(tensors_to_bytes(wide))


def read_results(path: Path, dtype: str) -> dict[str, Array]:
    """A file of results in a dtype under test; more digits than it has are welcome.

    Raises BadResultsError for a link, for what is no plain file, is too large, or can't be read; WrongNumbersError for
    numbers of fewer digits.
    """
    data = _plain_file(path)
    try:
        tensors: list[tuple[str, dict[str, Any]]] = deserialize(data)  # type: ignore[no-untyped-call]
        return {name: _array(name, tensor, dtype) for name, tensor in sorted(tensors, key=lambda named: named[0])}
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BadResultsError(f"expected {path.name} in the safetensors format, got {error}") from None


def _plain_file(path: Path) -> bytes:
    """Its content. Neither the file nor its folder may be a link, so that nobody can hand in a file from elsewhere."""
    if path.parent.is_symlink():
        raise BadResultsError(f"expected {path.name} in a plain folder, got a symbolic link to one")
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        raise BadResultsError(f"expected {path.name}, got no such file") from None
    except OSError as error:
        kind = "a symbolic link" if path.is_symlink() else error.strerror
        raise BadResultsError(f"expected {path.name} as a plain file, got {kind}") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise BadResultsError(f"expected {path.name} as a plain file, got "
                                  f"{'a folder' if stat.S_ISDIR(found.st_mode) else 'another kind'}")
        if found.st_size > LARGEST:
            raise BadResultsError(f"expected {path.name} of at most {LARGEST:,} bytes, got {found.st_size:,}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read(LARGEST)
    finally:
        os.close(handle)


def _array(name: str, tensor: Mapping[str, Any], dtype: str) -> Array:
    """One tensor of a file, bfloat16 as the float32 of the same value."""
    kind, shape = STORED.get(tensor["dtype"]), tensor["shape"]
    if kind is None:
        raise WrongNumbersError(f"{name}: expected {dtype}, got safetensors' {tensor['dtype']}")
    if DIGITS.get(kind, 64) < DIGITS[dtype]:
        raise WrongNumbersError(f"{name}: expected {dtype}, got {kind} (--dtype {kind} holds it to the bound of that)")
    if kind == "bfloat16":
        return (np.frombuffer(tensor["data"], "<u2").astype("<u4") << 16).view("<f4").reshape(shape)
    return np.frombuffer(tensor["data"], kind, math.prod(shape)).reshape(shape)
