"""What the commands tell of a model or a text that is there: scores, passages, descriptions."""

import math
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl import checkpoint, generation, intervals, protocols, settings
from refimpl.arrays import Array, Place
from refimpl.checkpoint import Checkpoint
from refimpl.config import DataConfig, ModelConfig
from refimpl.datasets.batches import every_token_once, published_blocks, transformer_xl_blocks
from refimpl.datasets.corpus import Corpus, open_corpus
from refimpl.datasets.vocabulary import Tokens, Vocabulary
from refimpl.datasets.yardsticks import yardsticks
from refimpl.device import opening
from refimpl.device.opening import on_host
from refimpl.errors import InputError
from refimpl.evaluation import Evaluation, evaluate, until
from refimpl.parameters import Parameters
from refimpl.ranks import ALONE, Ranks

CUTS = {"every-token": every_token_once, "published": published_blocks, "transformer-xl": transformer_xl_blocks}


def score(
    p: Parameters, config: ModelConfig, tokens: Tokens, vocabulary: Vocabulary, protocol: protocols.Protocol,
    stop: Callable[[], bool] = lambda: False, ranks: Ranks = ALONE,
) -> Evaluation:
    """A text's loss under a protocol. Raises StoppedError once stop() says so."""
    blocks = until(stop, CUTS[protocol.name](tokens, protocol.streams, protocol.block))
    return evaluate(*protocols.prepared(p, config, protocol), blocks, vocabulary.end_of_line, protocol.weighted, ranks)


class HowToScore(NamedTuple):
    """What `eval` was asked for: a protocol's name, and what differs from its own values; None = not said."""

    protocol: str = "every-token"
    streams: int | None = None
    block: int | None = None
    past: int | None = None
    clamp: int | None = None


def evaluate_run(
    path: Path, data_path: str | None, store: Path, split: str, how: HowToScore, with_yardsticks: bool,
    which: str = "latest", place: Place = on_host,
) -> dict[str, Any]:
    """The result of `eval`: losses of a split in every unit that applies, what they were measured on, and how."""
    saved = checkpoint.load(path, which, to_train=False)
    saved.move(place)
    corpus = _corpus(saved, run_data(path, saved, data_path), store, data_path is not None)
    tokens, unit = getattr(corpus, split), unit_of(corpus.vocabulary)
    name, *given = how
    protocol = protocols.settle(name, unit, saved.config, saved.train_config.block, *given)
    result = score(saved.parameters, saved.config, tokens, corpus.vocabulary, protocol)
    report: dict[str, Any] = {
        "checkpoint": str(saved.path), "passed_over": saved.passed_over, "updates": saved.optimizer.updates,
        "source": corpus.source, "text_sha256": corpus.sha256, "conventions": corpus.named_conventions(),
        "split": split, "protocol": name, "streams": protocol.streams, "block": protocol.block, "past": protocol.past,
        "clamp": protocol.farthest, "tokens": result.tokens, "line_ends": result.line_ends, "unit": unit,
    }
    per_byte = len(tokens) / corpus.sizes[split]
    report |= measures(result, unit, per_byte)
    report["interval"] = interval_of(result, unit, per_byte)
    if with_yardsticks:
        report["yardsticks"] = yardsticks(corpus.train, tokens, corpus.vocabulary.size)
    return report


def measures(result: Evaluation, unit: str, per_byte: float) -> dict[str, float | None]:
    """A loss in every unit that applies; per_byte: the text's tokens for each of its bytes. JSON has no infinity: None.

    Bytes are the literature's characters; where line ends are dropped, they are more than the tokens.
    """
    found = {"loss": result.loss, f"bits_per_{'character' if unit == 'byte' else unit}": result.bits,
             "bits_per_byte": result.bits * per_byte}
    if unit == "word":
        found |= {"perplexity": result.perplexity, "perplexity_without_eos": result.perplexity_without_eos}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def interval_of(result: Evaluation, unit: str, per_byte: float) -> dict[str, Any] | None:
    """The 95 % interval of every measure, how it came about; None of a text too short for one."""
    found = intervals.interval(result.cells) if result.cells else None
    if found is None:
        return None
    low, high = (measures(result.at(end), unit, per_byte) for end in (found.low, found.high))
    return {"level": intervals.LEVEL, "method": "circular block bootstrap", "block_tokens": found.block,
            "resamples": intervals.RESAMPLES, "seed": found.seed, **{name: [low[name], high[name]] for name in low}}


def _corpus(saved: Checkpoint, data: DataConfig, store: Path, named: bool) -> Corpus:
    """The text in the checkpoint's vocabulary; in its own, if that is as large, where a converted checkpoint has none."""
    if saved.vocabulary is not None:
        return open_corpus(data, store, vocabulary_of(saved))
    if not named:
        raise InputError(f"{saved.path}: expected --data with a text, as the checkpoint has no vocabulary, got none")
    corpus = open_corpus(data, store)
    if corpus.vocabulary.size != saved.config.vocabulary:
        raise InputError(f"{corpus.source}: expected a vocabulary of {saved.config.vocabulary}, as the model has, got one "
                         f"of {corpus.vocabulary.size}")
    return corpus


class Passages(NamedTuple):
    """Prompts, the pieces of text that follow each of them as they are drawn, and the checkpoint that they come from."""

    prompts: list[str]
    pieces: Iterator[list[str]]
    saved: Checkpoint


def generate(
    path: Path, prompts: Sequence[str], count: int, temperature: float, top_k: int, seed: int, which: str = "latest",
    place: Place = on_host,
) -> Passages:
    """Text from a run's model. Without a prompt it begins after a line's end. Raises InputError for unknown symbols."""
    saved = checkpoint.load(path, which, to_train=False)
    saved.move(place)
    vocabulary = vocabulary_of(saved)
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


def vocabulary_of(saved: Checkpoint) -> Vocabulary:
    """The vocabulary that a checkpoint's model was trained with. Raises InputError if it holds none."""
    if saved.vocabulary is None:
        raise InputError(f"{saved.path}: expected a checkpoint with a vocabulary, got one without (refimpl convert … --data "
                         "gives it one)")
    return Vocabulary.from_json(saved.vocabulary)


def _line_start(vocabulary: Vocabulary) -> Array:
    """What a text without a prompt goes on from: a line's end, or the first symbol where there is none."""
    if vocabulary.newline == "dropped" or (vocabulary.kind == "character" and "\n" not in vocabulary.symbols
                                           and vocabulary.end_of_line is None):
        return np.zeros(1, vocabulary.dtype)
    return _encoded(vocabulary, "\n")


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
            return self._decoder.decode(self._vocabulary.to_bytes([token]))
        text = self._vocabulary.decode([token])
        apart = self._vocabulary.kind == "word" and self._after_word and text != "\n"
        self._after_word = text != "\n"
        return f" {text}" if apart else text

    def end(self) -> str:
        """What is left of a character that did not end."""
        return self._decoder.decode(b"", True)


def run_data(path: Path, saved: Checkpoint, data_path: str | None) -> DataConfig:
    """How a run's text was read, perhaps with another path: as the checkpoint says, else [data] of the run's config.toml."""
    if "data" in saved.progress:
        data = DataConfig(**saved.progress["data"])
        return replace(data, path=data_path) if data_path else data
    for folder in (path, path.resolve().parent.parent):
        if (folder / "config.toml").is_file():
            data = DataConfig(**settings.read(folder / "config.toml")["data"])
            return replace(data, path=data_path) if data_path else data
    raise InputError(f"{path}: expected config.toml in the run's folder, got none")


def unit_of(vocabulary: Vocabulary) -> str:
    """What a token is called."""
    return vocabulary.kind


def describe_installation(kernels: str, store: Path) -> dict[str, Any]:
    """The result of `info`: versions, cores, matrix library and the kernels that commands will use, GPU library, presets."""
    import platform

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
