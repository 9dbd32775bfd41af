"""What the commands do: brings settings, a text and a model together. Below `datasets`, above `cli` alone."""

import math
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from refimpl import accounting, checkpoint, generation, runs, settings
from refimpl.arrays import Array
from refimpl.checkpoint import Checkpoint
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.datasets.batches import Batches, every_token_once, published_blocks
from refimpl.datasets.corpus import Corpus, open_corpus
from refimpl.datasets.vocabulary import Tokens, Vocabulary
from refimpl.datasets.yardsticks import yardsticks
from refimpl.errors import InputError
from refimpl.evaluation import Evaluation, evaluate
from refimpl.parameters import Parameters

PROTOCOLS = ("every-token", "published")
STREAMS = 8


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
    return _opened(run, corpus)


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
    return _opened(runs.resume(folder, saved, given, data, batches, corpus.sha256), corpus)


def _opened(run: runs.Run, corpus: Corpus) -> Opened:
    saved = run.saved

    def validate() -> Evaluation:
        start = corpus.valid[: saved.train_config.evaluate_tokens or None]
        return score(saved.parameters, saved.config, start, corpus.vocabulary, saved.train_config.block)

    return Opened(run, unit_of(corpus.vocabulary), validate)


def score(
    p: Parameters, config: ModelConfig, tokens: Tokens, vocabulary: Vocabulary, block: int, streams: int = STREAMS,
    protocol: str = "every-token",
) -> Evaluation:
    """A text's loss: every token once, or as published (whole blocks only, the mean of their means)."""
    cut = published_blocks if protocol == "published" else every_token_once
    return evaluate(p, config, cut(tokens, streams, block), vocabulary.end_of_line, protocol != "published")


def evaluate_run(
    path: Path, data_path: str | None, store: Path, split: str, block: int | None, streams: int, protocol: str,
    with_yardsticks: bool,
) -> dict[str, Any]:
    """The result of `eval`: losses of a split in every unit that applies, what they were measured on, and how."""
    saved = checkpoint.load(path)
    corpus = open_corpus(run_data(path, data_path), store, _vocabulary(saved))
    block = block or saved.train_config.block
    tokens = getattr(corpus, split)
    result = score(saved.parameters, saved.config, tokens, corpus.vocabulary, block, streams, protocol)
    unit, size = unit_of(corpus.vocabulary), corpus.sizes[split]
    report: dict[str, Any] = {
        "checkpoint": str(saved.path), "passed_over": saved.passed_over, "updates": saved.optimizer.updates,
        "source": corpus.source, "text_sha256": corpus.sha256, "split": split, "protocol": protocol, "streams": streams,
        "block": block, "tokens": result.tokens, "unit": unit, "loss": result.loss, f"bits_per_{unit}": result.bits,
    }
    if unit == "character":
        report["bits_per_byte"] = result.bits * len(tokens) / size
    if unit == "word":
        for name in ("perplexity", "perplexity_without_eos"):  # JSON has no infinity
            report[name] = getattr(result, name) if math.isfinite(getattr(result, name)) else None
    if with_yardsticks:
        report["yardsticks"] = yardsticks(corpus.train, tokens, corpus.vocabulary.size)
    return report


class Passage(NamedTuple):
    """A prompt, the pieces of text that follow it as they are drawn, and the checkpoint that they come from."""

    prompt: str
    pieces: Iterator[str]
    saved: Checkpoint


def generate(path: Path, prompt: str | None, count: int, temperature: float, top_k: int, seed: int) -> Passage:
    """Text from a run's model. Without a prompt it begins after a line's end. Raises InputError for unknown symbols."""
    saved = checkpoint.load(path)
    vocabulary = _vocabulary(saved)
    tokens = _prompt(vocabulary, prompt)
    drawn = generation.generate(saved.parameters, saved.config, tokens, count, temperature, top_k, seed)
    after_word = bool(prompt) and not str(prompt)[-1].isspace()
    return Passage(prompt or "", _pieces(vocabulary, drawn, after_word), saved)


def _vocabulary(saved: Checkpoint) -> Vocabulary:
    if saved.vocabulary is None:
        raise InputError(f"{saved.path}: expected a checkpoint with a vocabulary, got one without")
    return Vocabulary.from_json(saved.vocabulary)


def _prompt(vocabulary: Vocabulary, prompt: str | None) -> Array:
    if prompt is None and vocabulary.kind == "character" and "\n" not in vocabulary.symbols:
        prompt = vocabulary.symbols[0]
    tokens = vocabulary.encode(("\n" if prompt is None else prompt).encode("utf-8", "surrogateescape"))
    if not len(tokens):
        raise InputError(f"prompt: expected at least one {unit_of(vocabulary)}, got {prompt!r}")
    return tokens


def _pieces(vocabulary: Vocabulary, drawn: Iterator[int], after_word: bool) -> Iterator[str]:
    """Text as soon as it is whole: words and lines one by one, bytes when they end a UTF-8 character."""
    if vocabulary.kind == "byte":
        decoder = getincrementaldecoder("utf-8")("replace")
        for token in drawn:
            yield decoder.decode(bytes([token]))
        yield decoder.decode(b"", True)
        return
    for token in drawn:
        text = vocabulary.decode([token])
        apart = vocabulary.kind == "word" and after_word and text != "\n"
        after_word = text != "\n"
        yield f" {text}" if apart else text


def run_data(path: Path, data_path: str | None) -> DataConfig:
    """How a run's text was read: [data] of its config.toml, for a checkpoint's folder too, perhaps with another path."""
    for folder in (path, path.resolve().parent.parent):
        if (folder / "config.toml").is_file():
            data = DataConfig(**settings.read(folder / "config.toml")["data"])
            return replace(data, path=data_path) if data_path else data
    raise InputError(f"{path}: expected config.toml in the run's folder, got none")


def unit_of(vocabulary: Vocabulary) -> str:
    """What a token is called."""
    return vocabulary.kind


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


def describe_text(path: str, vocabulary: str, assignments: tuple[str, ...], store: Path) -> dict[str, Any]:
    """The result of `data info`."""
    tables = settings.override({"data": {"path": path, "vocabulary": vocabulary}}, assignments)
    return open_corpus(DataConfig(**tables["data"]), store).describe()


def describe_installation() -> dict[str, Any]:
    """The result of `info`: versions, cores, matrix library, GPU library, presets."""
    import platform
    from importlib.util import find_spec

    import numpy as np
    from threadpoolctl import threadpool_info

    from refimpl import __version__
    from refimpl.arrays import available_cores

    blas = [f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads, {lib.get('architecture', 'unknown')}"
            for lib in threadpool_info() if lib["user_api"] == "blas"]
    return {
        "refimpl": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "cores": str(available_cores()), "blas": blas or ["unknown"],
        "gpu": "CuPy is installed" if find_spec("cupy") else "CuPy is not installed (extras cuda12, cuda13)",
        "presets": settings.preset_names(),
    }
