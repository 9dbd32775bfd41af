"""A text ready for training: found and encoded once into a store, or prepared before."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refimpl.config import DataConfig
from refimpl.datasets.encoding import encode_into
from refimpl.datasets.fetch import check_splits
from refimpl.datasets.prepared import FORMAT, conventions_of, is_prepared, read_prepared
from refimpl.datasets.prepared import Corpus as Corpus
from refimpl.datasets.published import ITEMS, fetched_folder
from refimpl.datasets.sources import Source, find_source
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError


def open_corpus(config: DataConfig, store: Path, vocabulary: Vocabulary | None = None) -> Corpus:
    """The text that `config` names, encoded into a folder of `store` unless the same text is there already.

    With a vocabulary, another text's or a trained model's, its tokens are that one's in place of the text's own.
    Later changes to the source's files do not reach the corpus. Nothing stays in the store when the text is refused.
    Raises InputError if the text cannot be found, read, cut into splits or encoded, or the store not be written, and for a
    prepared text of other conventions or another vocabulary.
    """
    if _names_prepared(config.path):
        return _as_asked(Path(config.path), config, vocabulary)
    source = named_source(config, store)
    sha256 = source.sha256()
    own = _read(store / _key(source, sha256, config, None), source)
    if own is not None and own.vocabulary == vocabulary:
        return own  # the model's own text is not encoded a second time
    folder = store / _key(source, sha256, config, vocabulary)
    found = own if vocabulary is None else _read(folder, source)
    if found is not None:
        return found
    encode_into(folder, source, sha256, config, vocabulary, lambda place: _read(place, source) is not None)
    return read_prepared(folder, source.name)


def prepare(config: DataConfig, store: Path, folder: Path) -> Corpus:
    """The text that `config` names, encoded into a new or empty folder. Raises InputError as `open_corpus` does."""
    if _names_prepared(config.path):
        raise InputError(f"{config.path}: expected a text to prepare, got one that is prepared already")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder for the prepared text, got one that holds something")
    source = named_source(config, store)
    encode_into(folder, source, source.sha256(), config)
    return read_prepared(folder)


def named_source(config: DataConfig, store: Path) -> Source:
    """The text's place, or that of one that was fetched, which is held to its published checksums.

    Raises InputError if there is no such text, or one under a published name that is another.
    """
    if config.path not in ITEMS:
        return find_source(config.path, config.vocabulary)
    folder = fetched_folder(config.path, store)
    if not folder.is_dir():
        raise InputError(f"{config.path}: expected its text in {folder}, got nothing there "
                         f"(`refimpl data fetch {config.path}` brings it)")
    check_splits(ITEMS[config.path], folder)
    return replace(find_source(str(folder), config.vocabulary), name=config.path)


def absolute(data: DataConfig) -> DataConfig:
    """The same text by a path that holds in any folder; names of texts stay names."""
    return data if data.path in ("sample", *ITEMS) else replace(data, path=str(Path(data.path).resolve()))


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """A [data] table, what it leaves open as a prepared text has it, or as suits one of the published texts."""
    path = str(values.get("path", ""))
    if path in ITEMS:
        return {"vocabulary": ITEMS[path].vocabulary, **values}
    held = conventions_of(Path(path)) if path and _names_prepared(path) else {}
    if values.get("vocabulary", held.get("vocabulary")) != held.get("vocabulary"):
        held = {}  # another vocabulary is told by that name, not by a convention that does not go with it
    return {**held, **values}


def _names_prepared(path: str) -> bool:
    """Names of texts are no folders: ./enwik8 is one."""
    return path != "sample" and path not in ITEMS and is_prepared(Path(path))


def _as_asked(folder: Path, config: DataConfig, vocabulary: Vocabulary | None) -> Corpus:
    corpus = read_prepared(folder, config.path)
    for name, held in corpus.conventions.items():
        asked = getattr(config, name)
        if asked != held:
            raise InputError(f"{folder}: expected data.{name} {held!r}, as the text was prepared, got {asked!r}")
    if vocabulary is not None and vocabulary != corpus.vocabulary:
        raise InputError(f"{folder}: expected a text with the model's vocabulary of {vocabulary.size}, got one prepared "
                         f"with its own of {corpus.vocabulary.size} (name the text itself, not what was prepared from it)")
    return corpus


def _key(source: Source, sha256: str, config: DataConfig, vocabulary: Vocabulary | None) -> str:
    """Sizes are part of it: the same bytes as one file and as three are cut differently."""
    parts = [FORMAT, sha256, list(source.sizes.values()), config.conventions, vocabulary and vocabulary.to_json()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _read(folder: Path, source: Source) -> Corpus | None:
    """The corpus in that folder; None if there is none or it is damaged."""
    try:
        return read_prepared(folder, source.name)
    except InputError:
        return None
