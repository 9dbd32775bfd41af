"""A source encoded once, into a folder: a file of tokens for each split, and corpus.json, which says what they are."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.config import DataConfig
from refimpl.datasets.counting import character_vocabulary, word_vocabulary
from refimpl.datasets.sources import Source, Split
from refimpl.datasets.text import UNKNOWN, decoded, finished_lines, words_of
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError

FORMAT = 1


def encode_source(
    source: Source, sha256: str, config: DataConfig, vocabulary: Vocabulary | None, folder: Path
) -> None:
    """Writes train.bin, valid.bin, test.bin and corpus.json into an empty folder, and waits until they are on the disk.

    Without a vocabulary the text's own is made. Raises InputError where the text does not fit it, or is no longer the
    text of that SHA-256.
    """
    vocabulary = vocabulary or source_vocabulary(source, config)
    digest = hashlib.sha256()
    tokens, unknown = {}, {}
    for split in source.splits:
        chunks = _digested(split.chunks(), digest)
        tokens[split.name], unknown[split.name] = _write_tokens(vocabulary, chunks, split, folder / f"{split.name}.bin")
    if digest.hexdigest() != sha256:
        raise InputError(f"{source.name}: expected a text that stays the same while it is read, got a change")
    meaning = {"format": FORMAT, "sha256": sha256, "ties": config.ties, "minimum_count": config.minimum_count,
               "bytes": source.sizes, "tokens": tokens, "unknown_tokens": unknown, "vocabulary": vocabulary.to_json()}
    with open(folder / "corpus.json", "w", encoding="utf-8") as file:
        json.dump(meaning, file)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def source_vocabulary(source: Source, config: DataConfig) -> Vocabulary:
    """The vocabulary of DataConfig's kind: characters of all splits, words of the training split alone.

    Raises InputError where the text is not UTF-8.
    """
    if config.vocabulary == "byte":
        return Vocabulary("byte")
    if config.vocabulary == "character":
        texts = (decoded(split.chunks(), split.where, split.start) for split in source.splits)
        return character_vocabulary(chain.from_iterable(texts))
    train = source.splits[0]
    texts_of_train = decoded(finished_lines(train.chunks()), train.where, train.start)
    return word_vocabulary(words_of(texts_of_train), config.ties, config.minimum_count, config.unknown)


def sync_folder(folder: Path) -> None:
    """Waits until the names in the folder are on the disk, where the system can be asked for that."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _write_tokens(vocabulary: Vocabulary, chunks: Iterable[bytes], split: Split, path: Path) -> tuple[int, int]:
    """How many tokens were written, and how many of them are `<unk>`."""
    if vocabulary.kind == "word":
        chunks = finished_lines(chunks)
    number = vocabulary.symbols.index(UNKNOWN) if UNKNOWN in vocabulary.symbols else -1
    written = unknown = 0
    with path.open("wb") as file:
        for tokens in vocabulary.encode_chunks(chunks, split.where, split.start):
            file.write(tokens.data)
            written += tokens.size
            unknown += int(np.count_nonzero(tokens == number)) if number >= 0 else 0
        file.flush()
        os.fsync(file.fileno())
    return written, unknown


def _digested(chunks: Iterable[bytes], digest: Any) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk
