"""What the commands tell of a model or a text that is there: scores, passages, descriptions."""

import math
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from refimpl import checkpoint, generation, settings
from refimpl.arrays import Array, Place
from refimpl.checkpoint import Checkpoint
from refimpl.config import DataConfig, ModelConfig
from refimpl.datasets.batches import every_token_once, published_blocks
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.vocabulary import Tokens, Vocabulary
from refimpl.datasets.yardsticks import yardsticks
from refimpl.device import opening
from refimpl.device.opening import on_host
from refimpl.errors import InputError
from refimpl.evaluation import Evaluation, evaluate
from refimpl.parameters import Parameters

STREAMS = 8


def score(
    p: Parameters, config: ModelConfig, tokens: Tokens, vocabulary: Vocabulary, block: int, streams: int = STREAMS,
    protocol: str = "every-token",
) -> Evaluation:
    """A text's loss: every token once, or as published (whole blocks only, the mean of their means)."""
    cut = published_blocks if protocol == "published" else every_token_once
    return evaluate(p, config, cut(tokens, streams, block), vocabulary.end_of_line, protocol != "published")


def evaluate_run(
    path: Path, data_path: str | None, store: Path, split: str, block: int | None, streams: int, protocol: str,
    with_yardsticks: bool, place: Place = on_host,
) -> dict[str, Any]:
    """The result of `eval`: losses of a split in every unit that applies, what they were measured on, and how."""
    saved = checkpoint.load(path)
    saved.move(place)
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


class Passages(NamedTuple):
    """Prompts, the pieces of text that follow each of them as they are drawn, and the checkpoint that they come from."""

    prompts: list[str]
    pieces: Iterator[list[str]]
    saved: Checkpoint


def generate(
    path: Path, prompts: Sequence[str], count: int, temperature: float, top_k: int, seed: int, place: Place = on_host
) -> Passages:
    """Text from a run's model. Without a prompt it begins after a line's end. Raises InputError for unknown symbols."""
    saved = checkpoint.load(path)
    saved.move(place)
    vocabulary = _vocabulary(saved)
    tokens = [_encoded(vocabulary, prompt) for prompt in prompts] or [_line_start(vocabulary)]
    block = saved.train_config.block
    drawn = generation.generate(saved.parameters, saved.config, tokens, count, temperature, top_k, seed, block)
    told = list(prompts) or [""]
    return Passages(told, _pieces([Writer(vocabulary, prompt) for prompt in told], drawn), saved)


def read_prompts(given: Sequence[str], path: Path | None) -> list[str]:
    """The prompts that were given, or the lines of a file. Raises InputError if there are both, or if a line is empty."""
    if path is None:
        return list(given)
    if given:
        raise InputError("--prompt and --prompts: expected one of them, got both")
    lines = path.read_bytes().decode("utf-8", "surrogateescape").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip("\r"):
            raise InputError(f"{path}, line {number}: expected a prompt, got an empty line")
    return [line.removesuffix("\r") for line in lines]


def _vocabulary(saved: Checkpoint) -> Vocabulary:
    if saved.vocabulary is None:
        raise InputError(f"{saved.path}: expected a checkpoint with a vocabulary, got one without")
    return Vocabulary.from_json(saved.vocabulary)


def _line_start(vocabulary: Vocabulary) -> Array:
    """What a text without a prompt goes on from: a line's end, or the first symbol of characters that have none."""
    without = vocabulary.kind == "character" and "\n" not in vocabulary.symbols
    return _encoded(vocabulary, vocabulary.symbols[0] if without else "\n")


def _encoded(vocabulary: Vocabulary, prompt: str) -> Array:
    tokens = vocabulary.encode(prompt.encode("utf-8", "surrogateescape"))
    if not len(tokens):
        raise InputError(f"prompt: expected at least one {unit_of(vocabulary)}, got {prompt!r}")
    return tokens


def _pieces(writers: list["Writer"], drawn: Iterator[list[int]]) -> Iterator[list[str]]:
    for tokens in drawn:
        yield [writer.add(token) for writer, token in zip(writers, tokens, strict=True)]
    yield [writer.end() for writer in writers]


class Writer:
    """Tokens as text as soon as it is whole: words and lines one by one, bytes when they end a UTF-8 character."""

    def __init__(self, vocabulary: Vocabulary, prompt: str) -> None:
        """What is written follows the prompt."""
        self._vocabulary, self._decoder = vocabulary, getincrementaldecoder("utf-8")("replace")
        self._after_word = bool(prompt) and not prompt[-1].isspace()

    def add(self, token: int) -> str:
        """The text that this token completes, which may be none."""
        if self._vocabulary.kind == "byte":
            return self._decoder.decode(bytes([token]))
        text = self._vocabulary.decode([token])
        apart = self._vocabulary.kind == "word" and self._after_word and text != "\n"
        self._after_word = text != "\n"
        return f" {text}" if apart else text

    def end(self) -> str:
        """What is left of a character that did not end."""
        return self._decoder.decode(b"", True)


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


def describe_text(path: str, vocabulary: str, assignments: tuple[str, ...], store: Path) -> dict[str, Any]:
    """The result of `data info`."""
    tables = settings.override({"data": {"path": path, "vocabulary": vocabulary}}, assignments)
    return open_corpus(DataConfig(**tables["data"]), store).describe()


def describe_installation(kernels: str, store: Path) -> dict[str, Any]:
    """The result of `info`: versions, cores, matrix library and the kernels that commands will use, GPU library, presets."""
    import platform

    import numpy as np

    from refimpl import __version__, blas
    from refimpl.arrays import available_cores, blas_libraries

    libraries = [f"{lib['internal_api']} {lib['version']}, {lib['num_threads']} threads, "
                 f"{lib.get('architecture', 'unknown')}" for lib in blas_libraries()]
    return {
        "refimpl": __version__, "python": platform.python_version(), "numpy": np.__version__,
        "cores": str(available_cores()), "blas": libraries or ["unknown"],
        "kernels": blas.choose(kernels, blas.this_machine(store)).reason,
        "gpu": opening.report(),
        "presets": settings.preset_names(),
    }
