"""What `convert` does: a run's folder from other implementations' files, and such files from a run."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl import __version__, checkpoint, durable, optimizers, runs, settings
from refimpl.checkpoint import Checkpoint
from refimpl.computing import computing
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.convert import files, from_adaptive_span, sizes, to_adaptive_span, torch_state
from refimpl.convert.names import listed
from refimpl.datasets.corpus import absolute, open_corpus
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError
from refimpl.parameters import Parameters, specification
from refimpl.results import run_data

ASSUMED = ("span_ramp", "span_penalty", "attend_self", "normalizer_epsilon", "zero_past", "dropout", "embedding_dropout")


@dataclass(frozen=True)
class Request:
    """What `convert` was asked for; None = not said."""

    source: Path
    out: Path
    preset: str | None = None
    assignments: tuple[str, ...] = ()
    data_path: str | None = None
    with_optimizer: bool = True
    store: Path = Path()


class Taken(NamedTuple):
    """A model that was read: its parameters, settings and, where the file holds one, optimiser's state.

    report: what the result says of where the settings come from.
    """

    parameters: Parameters
    tables: settings.Tables
    optimizer: torch_state.OptimizerState | None
    vocabulary: dict[str, Any] | None
    report: dict[str, Any]


def to_run(kind: str, request: Request) -> dict[str, Any]:
    """A new run's folder from a file, "adaptive-span" or "safetensors", for eval, generate and train --resume.

    Raises InputError, before anything is written, for what does not fit.
    """
    runs.check_free(request.out)
    taken = _published(request) if kind == "adaptive-span" else _plain(request)
    p, tables = taken.parameters, taken.tables
    train_config, data = TrainConfig(**tables["train"]), DataConfig(**tables["data"])
    state, vocabulary, text = optimizers.initialize(train_config, p), taken.vocabulary, ""
    if taken.optimizer is not None:
        state = replace(state, updates=taken.optimizer.updates, accumulators=taken.optimizer.accumulators)
    if request.data_path:
        data = replace(data, path=request.data_path)
        corpus = open_corpus(data, request.store)
        if corpus.vocabulary.size != p.config.vocabulary:
            raise InputError(f"{corpus.source}: expected a vocabulary of {p.config.vocabulary}, as the model has, got one "
                             f"of {corpus.vocabulary.size} (--set data.vocabulary=… and the like say how it is read)")
        data, vocabulary, text = absolute(data), corpus.vocabulary.to_json(), corpus.sha256
    progress = {"tokens": 0, "seconds": 0.0, "batches": {"position": 0, "passes": 0}, "text_sha256": text,
                "computing": computing()}
    saved = Checkpoint(p.config, train_config, p, state, progress, None, vocabulary)
    path = _write_run(request.out, saved, data)
    return {"source": str(request.source), "run": str(request.out), "checkpoint": str(path), "parameters": p.vector.size,
            **taken.report, "optimizer": taken.optimizer and {"kind": taken.optimizer.kind, "updates": state.updates},
            "vocabulary": None if vocabulary is None else p.config.vocabulary}


def from_run(kind: str, request: Request) -> dict[str, Any]:
    """A file of that kind from a checkpoint or a run's newest one. Raises InputError for settings, which it has."""
    if request.preset or request.assignments or request.data_path or not request.with_optimizer:
        raise InputError(f"{request.source} is a run: expected --out alone with it, got settings for a file")
    saved = checkpoint.load(request.source)
    p = saved.parameters
    if kind == "adaptive-span":
        tensors = to_adaptive_span(p)
        files.write_torch(request.out, tensors)
    else:
        tensors = dict(p)
        files.write_safetensors(request.out, tensors, _metadata(saved, run_data(request.source, saved, None)))
    return {"source": str(saved.path), "passed_over": saved.passed_over, "file": str(request.out),
            "parameters": p.vector.size, "tensors": len(tensors)}


def _published(request: Request) -> Taken:
    """From a state dict of the published code, alone or as `model` of a checkpoint."""
    content = files.read_torch(request.source)
    if not isinstance(content, dict):
        raise InputError(f"{request.source}: expected a dict of tensors or with `model`, got {type(content).__name__}")
    model = content["model"] if isinstance(content.get("model"), dict) else content
    tensors = {str(name).removeprefix("module."): value for name, value in model.items()}
    other = [f"{name} ({type(value).__name__})" for name, value in tensors.items() if not hasattr(value, "dtype")]
    if other or len(tensors) < len(model):
        came = listed(other) if other else "names both with and without `module.`"
        raise InputError(f"{request.source}: expected nothing but tensors by name, got also {came}")
    wanted = request.with_optimizer and model is not content and content.get("optimizer") is not None
    try:
        tables, report = _settled(request, sizes.model_table(tensors))
        config = settings.model_config(tables["model"])
        p = from_adaptive_span(tensors, config)
        state = torch_state.read(content["optimizer"], tensors, config) if wanted else None
    except InputError as error:
        raise InputError(f"{request.source}: {error}") from error
    if state is not None:
        asked = settings.override({}, request.assignments)["train"]
        tables["train"] |= {key: value for key, value in state.train.items() if key not in asked}
        if asked.get("optimizer", state.kind) != state.kind:
            raise InputError(f"train.optimizer: expected {state.kind}, whose state the file holds, got "
                             f"{asked['optimizer']} (--no-optimizer leaves it)")
    tables["train"]["dtype"] = p.vector.dtype.name
    used = {"model", "optimizer"} if state else {"model"}
    passed_over = [] if model is content else sorted(str(key) for key in content if key not in used)
    return Taken(p, tables, state, None, {**report, "passed_over": passed_over})


def _settled(request: Request, told: Mapping[str, Any]) -> tuple[settings.Tables, dict[str, Any]]:
    """Settings: what the tensors tell, which nothing may contradict; then --set; then the preset, named or the nearest.

    A preset that was named is held to the tensors too.
    """
    nearest = ("wikitext103-all-attention" if told["cutoffs"] else
               "enwik8-all-attention-small" if told["memory"] else "enwik8")
    name = request.preset or nearest
    base, asked = settings.preset(name), settings.override({}, request.assignments)
    for key, value in (base["model"] if request.preset else {}).items() | asked["model"].items():
        value = tuple(value) if isinstance(value, list) else value
        if key in told and value != told[key]:
            raise InputError(f"model.{key}: expected {told[key]!r}, as the tensors say, got {value!r}")
    absent = [key for key in ("heads", "span") if key not in told]
    for key in absent:
        if key not in asked["model"] and not request.preset:
            raise InputError(f"model.{key}: nothing in the tensors tells it; expected --set model.{key}=…")
    model = {**base["model"], **asked["model"], **told}
    tables = {"model": model, "train": {**base["train"], **asked["train"]}, "data": {**base["data"], **asked["data"]}}
    config = ModelConfig(**model)
    assumed = {key: getattr(config, key) for key in (*absent, *ASSUMED)}
    return tables, {"told": dict(told), "assumed": assumed, "preset": name}


def _plain(request: Request) -> Taken:
    """From a safetensors file with our names and settings."""
    where = request.source
    tensors, metadata = files.read_safetensors(where)
    found, vocabulary = (files.parsed(where, metadata, key) for key in ("config", "vocabulary"))
    if not isinstance(found, dict) or not all(isinstance(found.get(table), dict) for table in settings.TABLES):
        raise InputError(f"{where}: expected metadata `config`, JSON of the tables {', '.join(settings.TABLES)}, got "
                         f"{'none' if found is None else 'something else'}")
    tables = settings.override(found, request.assignments)
    for table, keys in tables.items():
        for key in keys:
            settings.check_key(table, key, f"{where}: ")
    config = settings.model_config(tables["model"])
    if vocabulary is not None and Vocabulary.from_json(vocabulary).size != config.vocabulary:
        raise InputError(f"{where}: expected a vocabulary of {config.vocabulary}, as the model has, got another size")
    expected = {spec.name: spec.shape for spec in specification(config)}
    if expected.keys() != tensors.keys():
        raise InputError(f"{where}: expected also {listed(sorted(expected.keys() - tensors.keys()))}; got, not expected, "
                         f"{listed(sorted(tensors.keys() - expected.keys()))}")
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise InputError(f"{where}, {name}: expected shape {shape}, got {tensors[name].shape}")
    p = Parameters(config, np.concatenate([tensors[name].ravel() for name in expected]))
    tables["train"]["dtype"] = p.vector.dtype.name
    return Taken(p, tables, None, vocabulary, {"passed_over": []})


def _metadata(saved: Checkpoint, data: DataConfig) -> dict[str, str]:
    """Where the text lay is left out: it says nothing to anyone else."""
    tables = {"model": asdict(saved.config), "train": asdict(saved.train_config),
              "data": asdict(replace(data, path=DataConfig().path))}
    found = {"format": "refimpl", "refimpl": __version__, "updates": str(saved.optimizer.updates),
             "config": json.dumps(tables)}
    return found if saved.vocabulary is None else {**found, "vocabulary": json.dumps(saved.vocabulary)}


def _write_run(folder: Path, saved: Checkpoint, data: DataConfig) -> Path:
    """config.toml and one checkpoint, or nothing."""
    there = folder.exists()
    try:
        path = checkpoint.save(folder, saved)
        durable.replace(folder / "config.toml", settings.to_toml(saved.config, saved.train_config, data))
    except BaseException:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "config.toml").unlink(missing_ok=True)
        if not there:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return path
