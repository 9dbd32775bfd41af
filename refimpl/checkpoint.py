"""Checkpoints: a folder of safetensors and JSON, written aside, synced to disk and renamed, so that one is whole or absent.

checkpoint.json lists every other file with its SHA-256, and holds its own; nothing in a checkpoint can run code.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import __version__, optimizers
from refimpl.arrays import Array, Place, is_device, to_host
from refimpl.config import ModelConfig, TrainConfig
from refimpl.errors import InputError
from refimpl.parameters import Parameters, specification

FORMAT = 1
MANIFEST = "checkpoint.json"
OLD = ".old"


@dataclass
class Checkpoint:
    """Everything that a run needs to go on, or a model to be used.

    progress: plain JSON (updates, position in the data, …); past (L, B, P, D) or None; vocabulary: plain JSON or None;
    passed_over: why newer checkpoints of the run were not taken.
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
        if is_device(self.parameters.vector):
            self.optimizer.scratch = {}  # a step there needs none
        if self.past is not None:
            self.past = place(self.past)


def save(run: Path, saved: Checkpoint, keep: int = 2) -> Path:
    """Writes run/checkpoints/update-N, then deletes all but the newest `keep` up to N; returns its path.

    On any error (no room, no permission) what was written is removed and older checkpoints are as before. Checkpoints of
    later updates are deleted too: a run that went on from before them has passed them over as damaged.
    """
    parent = run / "checkpoints"
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / f"update-{saved.optimizer.updates:08d}"
    aside, old = parent / f".{final.name}.{os.getpid()}", parent / f"{final.name}{OLD}"
    shutil.rmtree(aside, ignore_errors=True)  # a killed writer may have had this number
    try:
        aside.mkdir()
        _write_files(aside, saved)
        _sync(aside)
        if final.exists():  # the same update again: the old one steps aside only now that the new one is whole
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        aside.rename(final)
        _sync(parent)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    kept = [folder for folder in folders(run) if folder.name <= final.name][-keep:]
    # beside what is no longer kept, what writers that were killed have left
    for folder in [*(set(folders(run)) - set(kept)), *parent.glob(".update-*")]:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def load(path: str | Path) -> Checkpoint:
    """A checkpoint's folder, or a run's: then its newest whole checkpoint.

    Raises InputError if the folder is neither, or if a file is missing, truncated or altered (by its SHA-256).
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        return _load(path)
    found = folders(path)
    if not found:
        came = "no folder" if not path.is_dir() else "neither"
        if (path / "config.toml").is_file():
            came = "a run that has no checkpoint yet"
        raise InputError(f"{path}: expected a checkpoint's folder (with {MANIFEST}) or a run's (with checkpoints/), got "
                         f"{came}")
    passed_over: list[str] = []
    for folder in reversed(found):
        try:
            saved = _load(folder)
        except InputError as error:
            passed_over.append(str(error))
        else:
            saved.passed_over = passed_over
            return saved
    raise InputError(passed_over[0])


def folders(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first; one that a writer moved out of its way stands before the one in its place."""
    found = [folder for folder in (run / "checkpoints").glob("update-*") if folder.is_dir()]
    return sorted(found, key=lambda folder: (folder.name.removesuffix(OLD), not folder.name.endswith(OLD)))


def _write_files(folder: Path, saved: Checkpoint) -> None:
    from safetensors.numpy import save as to_bytes

    tensors = {"parameters": _named(saved.parameters)}
    tensors["optimizer"] = {f"{kind}/{name}": array for kind, p in saved.optimizer.accumulators.items()
                            for name, array in _named(p).items()}
    if saved.past is not None:
        tensors["past"] = {"past": np.ascontiguousarray(to_host(saved.past))}
    files = {}
    for name, group in tensors.items():
        files[f"{name}.safetensors"] = _write(folder / f"{name}.safetensors", to_bytes(group))
    if saved.vocabulary is not None:
        content = json.dumps(saved.vocabulary, ensure_ascii=False).encode()
        files["vocabulary.json"] = _write(folder / "vocabulary.json", content)
    manifest = {
        "format": FORMAT, "refimpl": __version__, "model": asdict(saved.config), "train": asdict(saved.train_config),
        "updates": saved.optimizer.updates, "progress": saved.progress, "files": files,
    }
    manifest["sha256"] = _digest_of(manifest)
    _write(folder / MANIFEST, _manifest_bytes(manifest))


def _named(p: Parameters) -> dict[str, Array]:
    """Host arrays by name, each contiguous: safetensors would write a strided view's memory as it lies."""
    return {name: np.ascontiguousarray(to_host(p[name])) for name in p}


def _write(path: Path, content: bytes) -> dict[str, Any]:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync(folder: Path) -> None:
    """Makes a folder's own entries durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The one way in which a manifest is written, so that any other byte in its file shows."""
    return json.dumps(manifest, indent=1).encode()


def _digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of the manifest's content without its own."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _load(folder: Path) -> Checkpoint:
    manifest = _read_manifest(folder)
    try:
        return _assembled(folder, manifest)
    except (KeyError, TypeError, AttributeError) as error:  # whole by its checksum, but not as this version writes it
        raise InputError(f"{folder}: expected a checkpoint of format {FORMAT}, got one with {_one_line(error)}") from error


def _assembled(folder: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    config, train_config = ModelConfig(**manifest["model"]), TrainConfig(**manifest["train"])
    content = {name: _read(folder / name, listed) for name, listed in manifest["files"].items()}
    p = _parameters(folder, config, train_config, content["parameters.safetensors"], "")
    state = optimizers.initialize(train_config, p)
    state.updates = manifest["updates"]
    for kind in state.accumulators:
        state.accumulators[kind] = _parameters(folder, config, train_config, content["optimizer.safetensors"], f"{kind}/")
    past = _tensors(folder, content["past.safetensors"])["past"] if "past.safetensors" in content else None
    vocabulary = json.loads(content["vocabulary.json"]) if "vocabulary.json" in content else None
    return Checkpoint(config, train_config, p, state, manifest["progress"], past, vocabulary, folder)


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = (folder / MANIFEST).read_bytes()
        manifest = json.loads(content)
        altered = manifest.get("sha256") != _digest_of(manifest) or content != _manifest_bytes(manifest)
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise InputError(f"{folder / MANIFEST}: expected a checkpoint's JSON, got {_one_line(error)}") from error
    if altered:
        raise InputError(f"{folder / MANIFEST}: expected the SHA-256 that it holds, {manifest.get('sha256')}, got "
                         f"{_digest_of(manifest)} or other spacing: the file was altered")
    if manifest.get("format") != FORMAT:
        raise InputError(f"{folder / MANIFEST}: expected format {FORMAT}, got {manifest.get('format')}")
    return dict(manifest)


def _read(path: Path, listed: Mapping[str, Any]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: expected a file of {listed['bytes']} bytes, got {_one_line(error)}") from error
    found = hashlib.sha256(content).hexdigest()
    if len(content) != listed["bytes"]:
        raise InputError(f"{path}: expected {listed['bytes']} bytes, got {len(content)}: the file was truncated or altered")
    if found != listed["sha256"]:
        raise InputError(f"{path}: expected SHA-256 {listed['sha256']}, got {found}: the file was altered")
    return content


def _tensors(folder: Path, content: bytes) -> dict[str, Array]:
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    try:
        return dict(from_bytes(content))
    except SafetensorError as error:
        raise InputError(f"{folder}: expected safetensors, got {_one_line(error)}") from error


def _parameters(folder: Path, config: ModelConfig, train_config: TrainConfig, content: bytes, prefix: str) -> Parameters:
    tensors, specs = _tensors(folder, content), specification(config)
    p = Parameters(config, np.empty(sum(spec.size for spec in specs), train_config.dtype))
    for spec in specs:
        tensor = tensors.get(prefix + spec.name)
        if tensor is None or tensor.shape != spec.shape or tensor.dtype != p.vector.dtype:
            came = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
            raise InputError(f"{folder}: {prefix}{spec.name}: expected {p.vector.dtype} {spec.shape}, got {came}")
        p[spec.name] = tensor
    return p


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
