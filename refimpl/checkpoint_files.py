"""What stands in one checkpoint's folder: safetensors and JSON, nothing that can run code.

checkpoint.json lists every other file with its SHA-256, and holds its own.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import __version__, durable, optimizers
from refimpl.arrays import Array, Place, to_host
from refimpl.config import ModelConfig, TrainConfig
from refimpl.errors import InputError
from refimpl.parameters import Parameters, specification

FORMAT = 1
MANIFEST = "checkpoint.json"
LARGEST_MANIFEST = 1 << 20  # bytes: some thousand times what one has
FOR_TRAINING = ("optimizer.safetensors", "past.safetensors")  # what nothing but training needs
DTYPES = {"float32": "F32", "float64": "F64"}


@dataclass
class Checkpoint:
    """Everything that a run needs to go on, or a model to be used.

    progress: plain JSON (updates, position in the data, best validation, …); past (L, B, P, D) or None; vocabulary: plain
    JSON or None; passed_over: why newer checkpoints of the run were not taken.
    """

    config: ModelConfig
    train_config: TrainConfig
    parameters: Parameters
    optimizer: optimizers.State
    progress: dict[str, Any]
    past: Array | None = None
    vocabulary: dict[str, Any] | None = None
    path: Path | None = None
    passed_over: list[str] = field(default_factory=list)

    def move(self, place: Place) -> None:
        """Moves parameters, accumulators and past to where a command computes."""
        self.parameters = self.parameters.with_vector(place(self.parameters.vector))
        for kind, accumulated in self.optimizer.accumulators.items():
            self.optimizer.accumulators[kind] = accumulated.with_vector(place(accumulated.vector))
        if self.past is not None:
            self.past = place(self.past)


def write_files(folder: Path, saved: Checkpoint) -> None:
    """Fills an empty folder, each file synced to the disk, the manifest last."""
    tensors: dict[str, dict[str, Array]] = {"parameters": dict(saved.parameters)}
    tensors["optimizer"] = {f"{kind}/{name}": array for kind, p in saved.optimizer.accumulators.items()
                            for name, array in p.items()}
    if saved.past is not None:
        tensors["past"] = {"past": saved.past}
    files = {}
    for name, group in tensors.items():
        files[f"{name}.safetensors"] = durable.write(folder / f"{name}.safetensors", _safetensors(group))
    if saved.vocabulary is not None:
        content = json.dumps(saved.vocabulary, ensure_ascii=False).encode()
        files["vocabulary.json"] = durable.write(folder / "vocabulary.json", [content])
    state = saved.optimizer
    manifest = {
        "format": FORMAT, "refimpl": __version__, "model": asdict(saved.config), "train": asdict(saved.train_config),
        "updates": state.updates, "skipped": state.skipped, "skipped_in_a_row": state.skipped_in_a_row,
        "progress": saved.progress, "files": files,
    }
    manifest["sha256"] = _digest_of(manifest)
    durable.write(folder / MANIFEST, [_manifest_bytes(manifest)])


def _safetensors(tensors: Mapping[str, Array]) -> Iterator[bytes | memoryview]:
    """The bytes of a .safetensors file: the header's length, the header, the numbers as they lie in memory.

    The library's own writer copies them twice, and holds Python's lock meanwhile: training could not go on beside it.
    """
    arrays = {name: np.ascontiguousarray(to_host(array)) for name, array in tensors.items()}
    header, end = {}, 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for array in arrays.values():
        yield array.reshape(-1).view(np.uint8).data


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The one way in which a manifest is written, so that any other byte in its file shows."""
    return json.dumps(manifest, indent=1).encode()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's content without its own."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_folder(folder: Path, to_train: bool = True) -> Checkpoint:
    """The checkpoint in a folder. Raises InputError if a file is missing, truncated, altered, or not of this format.

    to_train False: past and accumulators, many times the model's size, are held to their SHA-256 and left on the disk.
    """
    manifest = read_manifest(folder)
    try:
        return _assembled(folder, manifest, to_train)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:  # whole by its checksum, but another writer's
        raise InputError(f"{folder}: expected a checkpoint of format {FORMAT}, got one with {_one_line(error)}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """checkpoint.json, held to its own SHA-256. Raises InputError."""
    content = durable.read(folder / MANIFEST, LARGEST_MANIFEST, f"a checkpoint's JSON of at most {LARGEST_MANIFEST} bytes")
    try:
        manifest = json.loads(content)
        altered = manifest.get("sha256") != _digest_of(manifest) or content != _manifest_bytes(manifest)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{folder / MANIFEST}: expected a checkpoint's JSON, got {_one_line(error)}") from error
    if altered:
        raise InputError(f"{folder / MANIFEST}: expected the SHA-256 that it holds, {str(manifest.get('sha256'))[:64]!r}, "
                         f"got {_digest_of(manifest)} or other spacing: the file was altered")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST}: expected format {FORMAT}, got {manifest.get('format')}")
    return dict(manifest)


def _assembled(folder: Path, manifest: Mapping[str, Any], to_train: bool) -> Checkpoint:
    config, train_config = ModelConfig(**manifest["model"]), TrainConfig(**manifest["train"])
    content = {}
    for name, listed in manifest["files"].items():
        if to_train or name not in FOR_TRAINING:
            content[name] = _read(folder / name, listed)
        else:
            _held(folder / name, listed, *durable.digest(folder / name, listed["bytes"], _sized(listed)))
    p = _parameters(folder, config, train_config, content.pop("parameters.safetensors"), "")
    state = optimizers.initialize(train_config, p) if to_train else optimizers.State(0, {})
    state.updates = manifest["updates"]
    state.skipped, state.skipped_in_a_row = manifest.get("skipped", 0), manifest.get("skipped_in_a_row", 0)
    for kind in state.accumulators:
        state.accumulators[kind] = _parameters(folder, config, train_config, content["optimizer.safetensors"], f"{kind}/")
    past = _tensors(folder, content.pop("past.safetensors"))["past"] if "past.safetensors" in content else None
    try:
        vocabulary = json.loads(content["vocabulary.json"]) if "vocabulary.json" in content else None
    except ValueError as error:
        raise InputError(f"{folder / 'vocabulary.json'}: expected JSON, got {_one_line(error)}") from error
    return Checkpoint(config, train_config, p, state, manifest["progress"], past, vocabulary, folder)


def _read(path: Path, listed: Mapping[str, Any]) -> bytes:
    content = durable.read(path, listed["bytes"], _sized(listed))
    _held(path, listed, len(content), hashlib.sha256(content).hexdigest())
    return content


def _sized(listed: Mapping[str, Any]) -> str:
    return f"a file of {listed['bytes']} bytes"


def _held(path: Path, listed: Mapping[str, Any], size: int, sha256: str) -> None:
    """Raises InputError unless the file is the one that the manifest lists."""
    if size != listed["bytes"]:
        raise InputError(f"{path}: expected {listed['bytes']} bytes, got {size}: the file was truncated or altered")
    if sha256 != listed["sha256"]:
        raise InputError(f"{path}: expected SHA-256 {listed['sha256']}, got {sha256}: the file was altered")


def _tensors(folder: Path, content: bytes) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        return dict(from_bytes(content))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{folder}: expected safetensors, got {_one_line(error)}") from error


def _parameters(folder: Path, config: ModelConfig, train_config: TrainConfig, content: bytes, prefix: str) -> Parameters:
    tensors = _tensors(folder, content)
    if config.layers > len(tensors):  # before a specification is made of what no file can hold
        raise InputError(f"{folder}: expected parameters of {config.layers} layers, got {len(tensors)} tensors")
    specs = specification(config)
    dtype = np.dtype(train_config.dtype)
    for spec in specs:
        tensor = tensors.get(prefix + spec.name)
        if tensor is None or tensor.shape != spec.shape or tensor.dtype != dtype:
            came = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise InputError(f"{folder}: {prefix}{spec.name}: expected {dtype} {spec.shape}, got {came}")
    p = Parameters(config, np.empty(sum(math.prod(spec.shape) for spec in specs), dtype))
    for spec in specs:
        p[spec.name] = tensors[prefix + spec.name]
    return p


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
