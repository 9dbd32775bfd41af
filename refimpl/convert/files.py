"""The files of others: PyTorch's, of which nothing is run, and plain safetensors with our names."""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.arrays import Array, to_host
from refimpl.convert.names import listed
from refimpl.errors import InputError

DTYPES = ("float32", "float64")


def read_torch(path: Path) -> Any:
    """What torch.save wrote, each tensor a NumPy array; half precision becomes float32, which holds it exactly.

    Only tensors and plain containers are read (weights_only): a file that would call anything else is refused, and nothing
    is called. Raises InputError for a file that is none, and if PyTorch is not there.
    """
    torch = _torch()
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats that will be given up: what can be read is read
            return _to_arrays(torch, torch.load(path, map_location="cpu", weights_only=True), str(path))
    except InputError:
        raise
    except Exception as error:  # of any type, as what a damaged or hostile file leads to is not ours to foresee
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: expected a PyTorch file of tensors and plain values alone, of which nothing is run; "
                         f"refused by torch.load(weights_only=True): {type(error).__name__}: {reason[:200]}") from error


def write_torch(path: Path, tensors: Mapping[str, Array]) -> None:
    """A state dict. Raises InputError if the file exists."""
    torch = _torch()
    state = {name: torch.from_numpy(np.array(to_host(array), order="C")) for name, array in tensors.items()}
    _write_whole(path, lambda aside: torch.save(state, aside))


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Tensors by name and the metadata. Raises InputError for a file that is none, or one of other types than ours."""
    from safetensors import SafetensorError, safe_open

    check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names, metadata = list(file.keys()), file.metadata()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError, AttributeError, ValueError) as error:  # the last ones for types NumPy lacks
        came = " ".join(str(error).split())
        raise InputError(f"{path}: expected safetensors of {' or '.join(DTYPES)}, got {came}") from error
    other = sorted(f"{name} of {array.dtype}" for name, array in tensors.items() if array.dtype.name not in DTYPES)
    if other:
        raise InputError(f"{path}: expected tensors of {' or '.join(DTYPES)}, got {listed(other)}")
    return tensors, dict(metadata or {})


def write_safetensors(path: Path, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    """Raises InputError if the file exists. Views are copied: safetensors would write a strided one's memory as it lies."""
    from safetensors.numpy import save_file

    plain = {name: np.array(to_host(array), order="C") for name, array in tensors.items()}
    _write_whole(path, lambda aside: save_file(plain, aside, dict(metadata)))


def check_file(path: Path) -> None:
    """Raises InputError unless there is a file."""
    if not path.is_file():
        raise InputError(f"{path}: expected a file, got {'a folder' if path.is_dir() else 'nothing of that name'}")


def parsed(path: Path, metadata: Mapping[str, str], key: str) -> Any:
    """A JSON value of the metadata, None if it has none. Raises InputError if it is not JSON."""
    try:
        return json.loads(metadata[key]) if key in metadata else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected JSON as metadata {key}, got {error}") from error


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError("PyTorch files: expected PyTorch, got none installed (pip install 'refimpl[convert]')") from error
    return torch


def _to_arrays(torch: Any, content: Any, where: str) -> Any:
    """The same containers, with arrays for tensors."""
    if isinstance(content, torch.Tensor):
        if content.layout != torch.strided or content.is_quantized:
            raise InputError(f"{where}: expected dense tensors, got one of layout {content.layout}, {content.dtype}")
        if content.dtype in (torch.float16, torch.bfloat16):
            content = content.float()
        return content.detach().numpy()
    if isinstance(content, Mapping):
        return {key: _to_arrays(torch, value, f"{where}, {key}") for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_to_arrays(torch, value, where) for value in content]
    return content


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Writes beside the path and renames, so that the file is whole or absent."""
    if path.exists():
        raise InputError(f"{path}: expected a new file's name, got one that exists")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
