"""The files of others: PyTorch's, of which nothing is run, and plain safetensors with our names."""

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import durable
from refimpl.arrays import Array, to_host
from refimpl.convert.names import listed
from refimpl.errors import InputError, OutsideError

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
        raise InputError(f"{path}: expected a PyTorch file of tensors and plain values alone, of which nothing is run; "
                         f"refused by torch.load(weights_only=True): {type(error).__name__}: {_reason(error)}") from error


def write_torch(path: Path, tensors: Mapping[str, Array]) -> None:
    """A state dict. Raises InputError if the file exists, OutsideError if it cannot be written."""
    torch = _torch()
    state = {name: torch.from_numpy(np.array(to_host(array), order="C")) for name, array in tensors.items()}

    def write(aside: Path) -> None:
        with aside.open("wb") as file:  # given a path, PyTorch would keep its name in the file
            try:
                torch.save(state, file)
            except RuntimeError as error:  # PyTorch's own, of a size, on top of the system's
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    _write_whole(path, write)


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
    """As write_torch raises. Views are copied: safetensors would write a strided one's memory as it lies."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    plain = {name: np.array(to_host(array), order="C") for name, array in tensors.items()}

    def write(aside: Path) -> None:
        try:
            save_file(plain, aside, dict(metadata))
        except SafetensorError as error:  # of the system's too
            raise OSError(" ".join(str(error).split())) from error

    _write_whole(path, write)


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


def _reason(error: Exception) -> str:
    """PyTorch's reason in a line, without its advice to read the file all the same, which would run what is in it."""
    lines = (line.strip().removeprefix("WeightsUnpickler error: ") for line in str(error).split("\n"))
    told = (line for line in lines if line and "weights_only" not in line and not line.startswith("Weights only load"))
    return next(told, "no reason told").partition(". Please ")[0][:200]


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
    """Writes beside the path and renames, so that the file is whole or absent, and on the disk when this returns."""
    if path.exists():
        raise InputError(f"{path}: expected a new file's name, got one that exists")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix="writing-") as workplace:
            aside = Path(workplace, "whole")
            write(aside)
            durable.sync(aside)
            aside.rename(path)
        durable.sync(path.parent)
    except OSError as error:
        raise OutsideError(f"{path}: expected a file that can be written, got {error.strerror or error}") from error
