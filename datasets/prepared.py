"""A text that was encoded before: a folder whose every byte is checked whenever it is opened."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import durable
from refimpl.config import DataConfig
from refimpl.datasets.sources import SPLITS
from refimpl.datasets.text import CHUNK
from refimpl.datasets.vocabulary import Tokens, Vocabulary
from refimpl.errors import InputError

FORMAT = 2
MEANING, SUMS = "prepared.json", "SHA256SUMS"
LARGEST = 1 << 26  # bytes of prepared.json: some millions of words
FIELDS = {"format", "source", "sha256", "conventions", "bytes", "tokens", "unknown_tokens", "dtype", "vocabulary", "counts"}


@dataclass(frozen=True, eq=False)
class Corpus:
    """(n,) tokens of each split, memory-mapped read-only, and where they came from.

    `source`: the path, or a name as "sample". `sha256`: of the source's text, train, valid and test in order. `sizes`:
    bytes of text in each split. `unknown_tokens`: how many tokens of each split are `<unk>`. `conventions`: those of
    DataConfig. `counts`: how often each symbol occurs in the training split. `folder`: where all this is kept.
    """

    train: Tokens
    valid: Tokens
    test: Tokens
    vocabulary: Vocabulary
    source: str
    sha256: str
    sizes: dict[str, int]
    unknown_tokens: dict[str, int]
    conventions: dict[str, str | int]
    counts: tuple[int, ...]
    folder: Path

    def describe(self) -> dict[str, Any]:
        """What a result must name about its text, as plain values for JSON."""
        tokens = {name: len(getattr(self, name)) for name in SPLITS}
        description: dict[str, Any] = {
            "source": self.source, "sha256": self.sha256, "bytes": dict(self.sizes), "tokens": tokens,
            "vocabulary": {"kind": self.vocabulary.kind, "size": self.vocabulary.size},
            "conventions": self.named_conventions()}
        if self.vocabulary.kind == "word":
            description["unknown_share"] = {name: self.unknown_tokens[name] / tokens[name] for name in SPLITS}
        return description

    def named_conventions(self) -> dict[str, str | int]:
        """The convention's name, and the settings that it leaves open."""
        others = {key: value for key, value in self.conventions.items() if key not in ("vocabulary", "convention")}
        if self.vocabulary.kind == "word":
            others["unknown"] = self.vocabulary.unknown
        return {"name": self.conventions["convention"], **others}


def tokens_file(split: str) -> str:
    """The name of a split's file: one that no folder of texts takes for a split."""
    return f"{split}-tokens.bin"


def sums_text(sums: Mapping[str, str]) -> bytes:
    """SHA256SUMS: what `sha256sum --check` reads."""
    return "".join(f"{value}  {name}\n" for name, value in sums.items()).encode()


def is_prepared(folder: Path) -> bool:
    """Whether the folder is, or is what is left of, a prepared text."""
    return any(os.path.exists(folder / name) for name in (MEANING, *map(tokens_file, SPLITS)))


def read_prepared(folder: Path, source: str = "") -> Corpus:
    """The prepared text in that folder; `source`: what to call it, else the folder's path.

    Every file is read once and held to its SHA-256, and every token to the vocabulary. Raises InputError where a file is
    missing, changed, or not what a prepared text consists of.
    """
    sums = _sums(folder)
    content = _held_to(folder / MEANING, sums[MEANING])
    try:
        meaning = json.loads(content)
        if not isinstance(meaning, dict) or meaning.keys() != FIELDS or meaning["format"] != FORMAT:
            raise InputError(f"expected fields {', '.join(sorted(FIELDS))} and format {FORMAT}")
        vocabulary = Vocabulary.from_json(meaning["vocabulary"])
        conventions = DataConfig(**meaning["conventions"]).conventions
        numbers = {name: _numbers(meaning, name) for name in ("bytes", "tokens", "unknown_tokens")}
        counts = {name: _natural(meaning["counts"][name], "counts") for name in SPLITS}
        if vocabulary.kind != conventions["vocabulary"] or any(
                len(counts[name]) != vocabulary.size or sum(counts[name]) != numbers["tokens"][name] for name in SPLITS):
            raise InputError("expected counts of every symbol of the vocabulary")
        if meaning["dtype"] != vocabulary.dtype.str:
            raise InputError(f"expected dtype {vocabulary.dtype.str}")
        texts = {name: str(meaning[name]) for name in ("source", "sha256")}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / MEANING}: expected a prepared text, format {FORMAT}, got another ({error})") from error
    for name in SPLITS:
        _check_tokens(folder / tokens_file(name), sums[tokens_file(name)], vocabulary, numbers["tokens"][name])
    train, valid, test = (np.memmap(folder / tokens_file(name), vocabulary.dtype, "r") for name in SPLITS)
    return Corpus(train, valid, test, vocabulary, source or str(folder), texts["sha256"], numbers["bytes"],
                  numbers["unknown_tokens"], conventions, counts["train"], folder)


def conventions_of(folder: Path) -> dict[str, str | int]:
    """The conventions of a prepared text, its tokens not looked at. Raises InputError unless they can be read."""
    content = _held_to(folder / MEANING, _sums(folder)[MEANING])
    try:
        return DataConfig(**json.loads(content)["conventions"]).conventions
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{folder / MEANING}: expected a prepared text's conventions, got others ({error})") from error


def _sums(folder: Path) -> dict[str, str]:
    path, names = folder / SUMS, [MEANING, *map(tokens_file, SPLITS)]
    content = durable.read(path, 1 << 12, "a prepared text's file")
    lines = [line.partition("  ") for line in content.decode("utf-8", "replace").splitlines()]
    sums = {name: value for value, _, name in lines}
    if [*sums] != names or sums_text(sums) != content:
        raise InputError(f"{path}: expected a line with SHA-256 for each of {', '.join(sorted(names))}, got others: the "
                         "prepared text is damaged")
    return sums


def _held_to(path: Path, sha256: str) -> bytes:
    content = durable.read(path, LARGEST, "a prepared text's file")
    _check_sum(path, sha256, hashlib.sha256(content).hexdigest())
    return content


def _check_sum(path: Path, expected: str, found: str) -> None:
    if found != expected:
        raise InputError(f"{path}: expected SHA-256 {expected}, got {found}: the prepared text is damaged")


def _check_tokens(path: Path, sha256: str, vocabulary: Vocabulary, count: int) -> None:
    """In chunks that are read, not mapped: pages of a map would count as memory of this process."""
    digest, highest, size = hashlib.sha256(), 0, 0
    unsigned = np.dtype(vocabulary.dtype.str.replace("i", "u"))  # in which a negative number is a large one
    with durable.opened(path, count * unsigned.itemsize, f"a prepared text's file of {count:,} tokens") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            whole = len(chunk) // unsigned.itemsize
            highest = max(highest, int(np.frombuffer(chunk, unsigned, whole).max(initial=0)))
            size += len(chunk)
    _check_sum(path, sha256, digest.hexdigest())
    if size != count * unsigned.itemsize or not count or highest >= vocabulary.size:
        raise InputError(f"{path}: expected {count:,} tokens below {vocabulary.size:,}, {unsigned.itemsize} bytes each, got "
                         f"{size:,} bytes and {highest:,}")


def _numbers(meaning: Mapping[str, Any], name: str) -> dict[str, int]:
    found = meaning[name]
    if not isinstance(found, dict) or [*found] != [*SPLITS]:
        raise InputError(f"expected {name} of {', '.join(SPLITS)}")
    return dict(zip(SPLITS, _natural(list(found.values()), name), strict=True))


def _natural(found: object, name: str) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(value) is int and value >= 0 for value in found):
        raise InputError(f"expected {name} that are whole numbers of 0 or more")
    return tuple(found)
