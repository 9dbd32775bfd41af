"""A source encoded once, into a folder: a file of tokens for each split, what they are in JSON, and SHA-256 of each file."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl.config import DataConfig
from refimpl.datasets.counting import character_vocabulary, counted_vocabulary
from refimpl.datasets.first_numbers import number_words
from refimpl.datasets.prepared import FORMAT, LARGEST, MEANING, SUMS, sums_text, tokens_file
from refimpl.datasets.sources import Source, Split
from refimpl.datasets.text import END_OF_LINE, UNKNOWN, decoded, finished_lines, words_of
from refimpl.datasets.vocabulary import Tokens, Vocabulary, codes_of
from refimpl.errors import InputError


class Written(NamedTuple):
    """A split's file of tokens: how many, how many of each symbol, and SHA-256."""

    tokens: int
    counts: npt.NDArray[np.int64]
    sha256: str


def encode_source(
    source: Source, sha256: str, config: DataConfig, vocabulary: Vocabulary | None, folder: Path
) -> None:
    """Writes a prepared text into an empty folder, and waits until it is on the disk.

    Without a vocabulary the text's own is made. Raises InputError where the text does not fit it, leaves a split without
    tokens, or is no longer the text of that SHA-256.
    """
    digest = hashlib.sha256()
    train, *others = source.splits
    known, pieces = _train_pieces(source, config, vocabulary, _digested(train.chunks(), digest), folder / "first-numbers")
    written = {train.name: _write_tokens(pieces, known, train, folder)}
    for split in others:
        pieces = _pieces(known, _digested(split.chunks(), digest), split)
        written[split.name] = _write_tokens(pieces, known, split, folder)
    if digest.hexdigest() != sha256:
        raise InputError(f"{source.name}: expected a text that stays the same while it is read, got a change")
    number = known.symbols.index(UNKNOWN) if known.kind == "word" and UNKNOWN in known.symbols else None
    meaning = json.dumps({
        "format": FORMAT, "source": source.name, "sha256": sha256, "conventions": config.conventions,
        "bytes": source.sizes, "tokens": {name: split.tokens for name, split in written.items()},
        "unknown_tokens": {name: 0 if number is None else int(split.counts[number]) for name, split in written.items()},
        "dtype": known.dtype.str, "vocabulary": known.to_json(),
        "counts": {name: split.counts.tolist() for name, split in written.items()}}).encode()
    if len(meaning) > LARGEST:
        raise InputError(f"{source.name}: expected a vocabulary that takes at most {LARGEST:,} bytes, got {known.size:,} "
                         f"symbols in {len(meaning):,} (data.minimum_count leaves out rare words)")
    _write(folder / MEANING, meaning)
    sums = {MEANING: hashlib.sha256(meaning).hexdigest()}
    sums |= {tokens_file(name): split.sha256 for name, split in written.items()}
    _write(folder / SUMS, sums_text(sums))
    sync_folder(folder)


def encode_into(
    folder: Path, source: Source, sha256: str, config: DataConfig, vocabulary: Vocabulary | None = None,
    whole: Callable[[Path], bool] | None = None,
) -> None:
    """Encodes beside the folder and renames at the end: no one ever sees half a text.

    A folder that is there already must be empty; or, where `whole` can tell, it stays if it is whole and gives way if not.
    Raises InputError as `encode_source` does, and where the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="encoding-") as workplace:
            fresh = Path(workplace, "prepared")
            fresh.mkdir()
            encode_source(source, sha256, config, vocabulary, fresh)
            if whole and folder.exists() and not whole(folder):
                folder.rename(Path(workplace, "damaged"))
            try:
                fresh.rename(folder)
            except OSError:
                if not (whole and whole(folder)):  # else another process has put the same text there first
                    raise
            sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder.parent}: expected a folder that can be written, got {error.strerror}") from error


def source_vocabulary(source: Source, config: DataConfig) -> Vocabulary:
    """The bytes or characters of DataConfig's convention: published ones are of the training split alone.

    Raises InputError where the text is not UTF-8.
    """
    train = source.splits[0]
    if config.convention == "published":
        codes = codes_of(config.vocabulary, finished_lines(train.chunks()), train.where, train.start)
        return counted_vocabulary(config.vocabulary, codes, END_OF_LINE, config.ties, config.numbering)
    if config.convention == "transformer-xl":
        pieces = chain.from_iterable(codes_of(config.vocabulary, split.chunks(), split.where, split.start)
                                     for split in source.splits)
        return counted_vocabulary(config.vocabulary, pieces, "dropped", config.ties, config.numbering)
    if config.vocabulary == "byte":
        return Vocabulary("byte")
    texts = (decoded(split.chunks(), split.where, split.start) for split in source.splits)
    return character_vocabulary(chain.from_iterable(texts))


def sync_folder(folder: Path) -> None:
    """Waits until the names in the folder are on the disk, where the system can be asked for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _train_pieces(
    source: Source, config: DataConfig, vocabulary: Vocabulary | None, chunks: Iterable[bytes], aside: Path
) -> tuple[Vocabulary, Iterator[Tokens]]:
    """The vocabulary, the text's own unless another is given, and the training split's tokens; words are read but once."""
    train = source.splits[0]
    if vocabulary is None and config.vocabulary == "word":
        texts = decoded(finished_lines(chunks), train.where, train.start)
        return number_words(words_of(texts, train.where), config, aside)
    known = vocabulary or source_vocabulary(source, config)
    return known, _pieces(known, chunks, train)


def _pieces(vocabulary: Vocabulary, chunks: Iterable[bytes], split: Split) -> Iterator[Tokens]:
    whole = finished_lines(chunks) if vocabulary.newline == END_OF_LINE else chunks
    return vocabulary.encode_chunks(whole, split.where, split.start)


def _write_tokens(pieces: Iterable[Tokens], vocabulary: Vocabulary, split: Split, folder: Path) -> Written:
    digest, counts = hashlib.sha256(), np.zeros(vocabulary.size, np.int64)
    with (folder / tokens_file(split.name)).open("wb") as file:
        for tokens in _in_large_pieces(pieces):
            file.write(tokens.data)
            digest.update(tokens.data)
            counts += np.bincount(tokens, minlength=vocabulary.size)
        file.flush()
        os.fsync(file.fileno())
    if not counts.any():
        raise InputError(f"{split.where}: expected text, got nothing but what the convention drops")
    return Written(int(counts.sum()), counts, digest.hexdigest())


def _in_large_pieces(pieces: Iterable[Tokens], least: int = 1 << 20) -> Iterator[Tokens]:
    """The same tokens in fewer pieces: counting costs V for each."""
    waiting: list[Tokens] = []
    for piece in pieces:
        waiting.append(piece)
        if sum(map(len, waiting)) >= least:
            yield np.concatenate(waiting)
            waiting.clear()
    if waiting:
        yield np.concatenate(waiting)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digested(chunks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
