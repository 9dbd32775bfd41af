"""The vectors as files: a folder for each group with a manifest and, for each case, inputs and expected values."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from safetensors.numpy import load, save

from refimpl import durable
from refimpl.arrays import Array
from refimpl.errors import InputError

SCHEMA, VERSION = 1, "v1"
FOLDER = Path(__file__).with_name("vectors") / VERSION
SUM = "manifest.sha256"  # as `sha256sum -c` reads it
LARGEST = 16 * 2**20  # bytes of a file: many times what any has
BOUND = "bound of "  # before a result's name: the tensor of its bounds


class Stored(NamedTuple):
    """A case as it is stored: its manifest entry, its inputs, the expected results, and B for each of them."""

    entry: Mapping[str, Any]
    inputs: Mapping[str, Array]
    results: Mapping[str, Array]
    bounds: Mapping[str, Array]

    @property
    def id(self) -> str:
        """Its name, which never changes its meaning."""
        return str(self.entry["id"])


def stem(case_id: str) -> str:
    """The files' name of a case: what stands behind its group."""
    return case_id.partition("/")[2]


def tensors_to_bytes(tensors: Mapping[str, Array]) -> bytes:
    """A .safetensors file. Arrays are made contiguous first: a transposed view would be stored in another order."""
    return bytes(save({name: np.array(array, order="C", copy=True) for name, array in tensors.items()}))


def described(data: bytes, tensors: Mapping[str, Array]) -> dict[str, Any]:
    """A file in the manifest: its checksum, and each tensor's type and shape; bounds have the shape of their result."""
    listed = {name: [array.dtype.name, list(array.shape)] for name, array in tensors.items() if not name.startswith(BOUND)}
    return {"sha256": hashlib.sha256(data).hexdigest(), "tensors": listed}


def manifest_text(content: Mapping[str, Any]) -> str:
    """A manifest with one line for each entry and one for each case, so that a difference reads as what it is."""
    line = json.JSONEncoder(ensure_ascii=False, separators=(", ", ": ")).encode
    head = [f" {line(key)}: {line(value)}," for key, value in content.items() if key != "cases"]
    cases = ",\n".join(f"  {line(case)}" for case in content["cases"])
    return "\n".join(["{", *head, ' "cases": [', cases, " ]", "}", ""])


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """manifest.json, and beside it the checksum that it is held to."""
    text = manifest_text(content)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    (folder / SUM).write_text(_sum(text.encode()), encoding="utf-8")


def _sum(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()}  manifest.json\n"


@functools.cache
def _validator() -> Callable[[Any], Any]:
    """Of manifest.schema.json."""
    import fastjsonschema  # only where a manifest is read

    schema = json.loads(Path(__file__).with_name("manifest.schema.json").read_text(encoding="utf-8"))
    return cast(Callable[[Any], Any], fastjsonschema.compile(schema))


def groups(folder: Path = FOLDER) -> list[str]:
    """The groups that there are. Raises InputError if the folder holds none."""
    found = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    if not found:
        raise InputError(f"{folder}: expected golden vectors (folders with a manifest.json), got none")
    return found


def manifest(group: str, folder: Path = FOLDER) -> dict[str, Any]:
    """A group's manifest. Raises InputError if it is not JSON of the schema, or not the one that its checksum is of."""
    path = folder / group / "manifest.json"
    data = durable.read(path, LARGEST, "a golden manifest")
    try:
        content: dict[str, Any] = json.loads(data)
        _validator()(content)
    except (ValueError, RecursionError) as error:  # fastjsonschema's error is a ValueError
        raise InputError(f"{path}: expected a golden manifest, got {' '.join(str(error)[:500].split())}") from error
    if durable.read(path.with_name(SUM), len(_sum(b"")), "a checksum of the golden manifest") != _sum(data).encode():
        raise InputError(f"{path}: expected the SHA-256 that {SUM} holds, got another: one of them was altered")
    return content


def entries(folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """Every case's manifest entry, its group and the notes on its flags among it."""
    for group in groups(folder):
        content = manifest(group, folder)
        for entry in content["cases"]:
            yield {**entry, "group": group, "notes": {flag: content["notes"][flag] for flag in entry["flags"]}}


def load_case(entry: Mapping[str, Any], folder: Path = FOLDER) -> Stored:
    """A case's tensors, checked against the manifest. Raises InputError for a file that is missing or altered."""
    loaded: dict[str, dict[str, Array]] = {"inputs": {}, "expected": {}}
    for kind in loaded.keys() & entry.keys():
        path = folder / entry["group"] / f"{stem(entry['id'])}.{kind}.safetensors"
        data = durable.read(path, LARGEST, "a file of the golden vectors")
        if hashlib.sha256(data).hexdigest() != entry[kind]["sha256"]:
            raise InputError(f"{path}: expected SHA-256 {entry[kind]['sha256']}, got another: the file was altered")
        loaded[kind] = load(data)
    results = entry.get("expected", {}).get("tensors", {})  # the library's own order changes from call to call
    return Stored(
        entry, {name: loaded["inputs"][name] for name in entry["inputs"]["tensors"]},
        {name: loaded["expected"][name] for name in results},
        {name: loaded["expected"][BOUND + name] for name in results})
