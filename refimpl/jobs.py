"""What `train` was asked for becomes a run: settings, a text and a model brought together."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from refimpl import accounting, checkpoint, runs, settings
from refimpl.arrays import Place
from refimpl.bench import bench as measure
from refimpl.blas import this_machine
from refimpl.config import DataConfig, TrainConfig
from refimpl.datasets.batches import Batches
from refimpl.datasets.corpus import Corpus, open_corpus
from refimpl.device.ledger import ledger as count
from refimpl.device.opening import on_host
from refimpl.errors import InputError
from refimpl.evaluation import Evaluation
from refimpl.results import run_data, score, unit_of

BYTES = 256


@dataclass(frozen=True)
class Request:
    """What `train` was asked for; None = not said."""

    preset: str | None
    config_file: Path | None
    data_path: str | None
    vocabulary: str | None
    assignments: tuple[str, ...]
    out: Path | None
    store: Path
    device: str = "cpu"
    place: Place = on_host


class Opened(NamedTuple):
    """A run ready to train, the name of its tokens, and the validation that it does along the way."""

    run: runs.Run
    unit: str
    evaluate: Callable[[], Evaluation]


def dry_run(request: Request) -> dict[str, Any]:
    """What the run would take. The vocabulary's size is the data's where data is named, else the settings'."""
    tables = _tables(request)
    if request.data_path or "vocabulary" not in tables["model"]:
        corpus = open_corpus(DataConfig(**tables["data"]), request.store)
        tables["model"]["vocabulary"] = corpus.vocabulary.size
    config, train_config = settings.model_config(tables["model"]), TrainConfig(**tables["train"])
    return {"name": _name(request), **accounting.describe(config, train_config)}


def bench(request: Request, repeats: int) -> dict[str, Any]:
    """The result of `bench`: a vocabulary of 256 where the settings name none, and no text is read."""
    tables = _given(request)
    tables["model"].setdefault("vocabulary", BYTES)
    config, train_config = settings.model_config(tables["model"]), TrainConfig(**tables["train"])
    processor = this_machine(request.store).processor
    return {"name": _name(request), "processor": processor, **measure(config, train_config, repeats, request.place)}


def ledger(request: Request) -> dict[str, Any]:
    """The result of `bench --ledger`: what an update asks of a GPU."""
    tables = _given(request)
    tables["model"].setdefault("vocabulary", BYTES)
    config, train_config = settings.model_config(tables["model"]), TrainConfig(**tables["train"])
    return {"name": _name(request), **count(config, train_config)}


def open_run(request: Request, resume: bool) -> Opened:
    """The run, begun or resumed. Raises InputError, before anything is written, for whatever does not fit."""
    if resume:
        return _resumed(request)
    tables = _tables(request)
    folder = request.out or Path("runs") / _name(request)
    runs.check_free(folder)
    if request.preset and "vocabulary" in tables["model"] and "path" not in tables["data"]:
        raise InputError(f"preset {request.preset}: expected --data with its text, got none (`--data sample` is built in)")
    asked = settings.override({}, request.assignments)["model"].get("vocabulary")
    train_config, data = TrainConfig(**tables["train"]), _absolute(DataConfig(**tables["data"]))
    # wrong settings are told before a long text is read; cutoffs must wait for its vocabulary
    settings.model_config({**tables["model"], "vocabulary": 2**31})
    corpus = open_corpus(data, request.store)
    size = corpus.vocabulary.size
    if asked not in (None, size):
        raise InputError(f"model.vocabulary: expected {size}, the size of the text's vocabulary, got {asked}")
    config = settings.model_config({**tables["model"], "vocabulary": size})
    batches = Batches(corpus.train, train_config.batch, train_config.block, train_config.seed)
    _check_validation(corpus)
    run = runs.begin(folder, config, train_config, data, batches, corpus.vocabulary.to_json(), corpus.sha256)
    return _opened(run, corpus, request)


def _check_validation(corpus: Corpus) -> None:
    if len(corpus.valid) < 2:
        raise InputError(f"{corpus.source}, valid: expected 2 tokens or more to validate on, got {len(corpus.valid)}")


def _resumed(request: Request) -> Opened:
    folder = request.out or Path("runs") / _name(request)
    if (folder / checkpoint.MANIFEST).exists():
        raise InputError(f"{folder}: expected a run's folder to go on with, got a checkpoint's")
    saved, data = checkpoint.load(folder), _absolute(run_data(folder, request.data_path))
    given = _given(request) if request.preset or request.config_file else settings.override({}, request.assignments)
    if request.preset and not settings.override({}, request.assignments)["model"].get("vocabulary"):
        given["model"].pop("vocabulary", None)  # a preset's gives way to the text's
    if request.vocabulary:
        given["data"]["vocabulary"] = request.vocabulary
    given["data"].pop("path", None)  # the text may have moved: it is held to its SHA-256
    runs.changed(saved, data, given)
    corpus = open_corpus(data, request.store)
    batches = Batches(corpus.train, saved.train_config.batch, saved.train_config.block, saved.train_config.seed)
    before = saved.progress.get("computing", {}).get("device", "cpu")
    run = runs.resume(folder, saved, given, data, batches, corpus.sha256)
    if before != request.device:
        run.moved = "; ".join(filter(None, (run.moved, f"device {before} before, {request.device} now")))
    return _opened(run, corpus, request)


def _opened(run: runs.Run, corpus: Corpus, request: Request) -> Opened:
    saved = run.saved
    saved.move(request.place)
    if request.device != "cpu":
        saved.progress["computing"]["device"] = request.device

    def validate() -> Evaluation:
        start = corpus.valid[: saved.train_config.evaluate_tokens or None]
        return score(saved.parameters, saved.config, start, corpus.vocabulary, saved.train_config.block)

    return Opened(run, unit_of(corpus.vocabulary), validate)


def _given(request: Request) -> settings.Tables:
    """The settings of the file or the preset, the default one if neither was named, and the assignments."""
    if request.preset and request.config_file:
        raise InputError("--preset and --config: expected one of them, got both")
    base = settings.read(request.config_file) if request.config_file else settings.preset(request.preset or "laptop")
    return settings.override(base, request.assignments)


def _tables(request: Request) -> settings.Tables:
    """All that was asked for, in the form of a settings file."""
    tables = _given(request)
    if request.data_path:
        tables["data"]["path"] = request.data_path
    if request.vocabulary:
        tables["data"]["vocabulary"] = request.vocabulary
    return tables


def _name(request: Request) -> str:
    return request.config_file.stem if request.config_file else request.preset or "laptop"


def _absolute(data: DataConfig) -> DataConfig:
    """A path that still holds when the run is resumed from another folder."""
    return data if data.path == "sample" else replace(data, path=str(Path(data.path).resolve()))
