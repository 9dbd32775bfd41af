"""A text ready for training: three memory-mapped arrays of tokens and their vocabulary, encoded once into a store."""

import hashlib
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.config import DataConfig
from refimpl.datasets.encoding import FORMAT, encode_source, sync_folder
from refimpl.datasets.sources import SPLITS, Source, find_source
from refimpl.datasets.vocabulary import Tokens, Vocabulary
from refimpl.errors import InputError


@dataclass(frozen=True, eq=False)
class Corpus:
    """(n,) tokens of each split, memory-mapped read-only, and where they came from.

    `source`: the path, or "sample". `sha256`: of the source's text, train, valid and test in order. `sizes`: bytes of
    text in each split. `unknown_tokens`: how many tokens of each split are `<unk>`.
    """

    train: Tokens
    valid: Tokens
    test: Tokens
    vocabulary: Vocabulary
    source: str
    sha256: str
    sizes: dict[str, int]
    unknown_tokens: dict[str, int]
    ties: str
    minimum_count: int

    def describe(self) -> dict[str, Any]:
        """What a result must name about its text, as plain values for JSON; conventions are those of words."""
        tokens = {name: len(getattr(self, name)) for name in SPLITS}
        description: dict[str, Any] = {
            "source": self.source, "sha256": self.sha256, "bytes": dict(self.sizes), "tokens": tokens,
            "vocabulary": {"kind": self.vocabulary.kind, "size": self.vocabulary.size}, "conventions": {}}
        if self.vocabulary.kind == "word":
            description["conventions"] = {
                "ties": self.ties, "minimum_count": self.minimum_count, "unknown": self.vocabulary.unknown}
            description["unknown_share"] = {name: self.unknown_tokens[name] / tokens[name] for name in SPLITS}
        return description


def open_corpus(config: DataConfig, store: Path, vocabulary: Vocabulary | None = None) -> Corpus:
    """The text that `config` names, encoded into a folder of `store` unless the same text is there already.

    With a vocabulary, another text's or a trained model's, its tokens are that one's in place of the text's own.
    Later changes to the source's files do not reach the corpus. Nothing stays in the store when the text is refused.
    Raises InputError if the text cannot be found, read, cut into splits or encoded, or the store not be written.
    """
    source = find_source(config.path, config.vocabulary)
    sha256 = source.sha256()
    own = _read(store / _key(source, sha256, config, None), source)
    if own is not None and own.vocabulary == vocabulary:
        return own  # the model's own text is not encoded a second time
    folder = store / _key(source, sha256, config, vocabulary)
    corpus = _read(folder, source)
    if corpus is None:
        _encode(source, sha256, config, vocabulary, folder)
        corpus = _read(folder, source)
    if corpus is None:
        raise InputError(f"{folder}: expected the text that was just encoded, got a damaged folder")
    return corpus


def _key(source: Source, sha256: str, config: DataConfig, vocabulary: Vocabulary | None) -> str:
    """Sizes are part of it: the same bytes as one file and as three are cut differently."""
    conventions = [config.vocabulary, config.ties, config.minimum_count, config.unknown]
    parts = [FORMAT, sha256, list(source.sizes.values()), conventions, vocabulary and vocabulary.to_json()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _encode(source: Source, sha256: str, config: DataConfig, vocabulary: Vocabulary | None, folder: Path) -> None:
    """Encodes beside the folder and renames at the end, so that no one ever sees half a corpus."""
    store = folder.parent
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store, prefix="encoding-") as workplace:
            fresh = Path(workplace, "corpus")
            fresh.mkdir()
            encode_source(source, sha256, config, vocabulary, fresh)
            if folder.exists() and _read(folder, source) is None:
                folder.rename(Path(workplace, "damaged"))
            try:
                fresh.rename(folder)
            except OSError:
                if _read(folder, source) is None:  # else another process has put the same corpus there first
                    raise
            sync_folder(store)
    except OSError as error:
        raise InputError(f"{store}: expected a folder that can be written, got {error.strerror}") from error


def _read(folder: Path, source: Source) -> Corpus | None:
    """The corpus in that folder; None if there is none or it is damaged."""
    try:
        meaning = json.loads((folder / "corpus.json").read_text("utf-8"))
        vocabulary = Vocabulary.from_json(meaning["vocabulary"])
        files = {name: folder / f"{name}.bin" for name in SPLITS}
        for name, file in files.items():
            if file.stat().st_size != meaning["tokens"][name] * vocabulary.dtype.itemsize:
                return None
        train, valid, test = (np.memmap(file, vocabulary.dtype, "r") for file in files.values())
        return Corpus(train, valid, test, vocabulary, source.name, meaning["sha256"], meaning["bytes"],
                      meaning["unknown_tokens"], meaning["ties"], meaning["minimum_count"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
