"""Where a text lies, and where its training, validation and test splits begin and end."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from refimpl.datasets.sample import sample_bytes
from refimpl.datasets.text import CHUNK
from refimpl.errors import InputError

SPLITS = ("train", "valid", "test")
NAMES = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
LISTED = 20


@dataclass(frozen=True)
class Split:
    """Bytes start to stop of a file, or of a text in memory; `where` is what errors call it."""

    name: str
    where: str
    text: Path | bytes
    start: int
    stop: int

    def chunks(self) -> Iterator[bytes]:
        """The split's bytes, about a megabyte at a time. Raises InputError if the file cannot be read."""
        left = self.stop - self.start
        try:
            with _opened(self.text) as file:
                file.seek(self.start)
                while left and (chunk := file.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise InputError(f"{self.where}: expected a file that can be read, got {error.strerror}") from error


@dataclass(frozen=True)
class Source:
    """A text's three splits, none of them empty, and what to call it."""

    name: str
    splits: tuple[Split, ...]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes in each split."""
        return {split.name: split.stop - split.start for split in self.splits}

    def sha256(self) -> str:
        """SHA-256, in hexadecimal, of the three splits in order. Raises InputError if a file cannot be read."""
        digest = hashlib.sha256()
        for split in self.splits:
            for chunk in split.chunks():
                digest.update(chunk)
        return digest.hexdigest()


def find_source(path: str, kind: str) -> Source:
    """The text that DataConfig's path names, cut where a vocabulary of that kind allows.

    One file is cut 90 / 5 / 5 by bytes, each cut moved forward to the next character or line where tokens are
    characters or words. A folder has one file for each split, with the split's name between the dots of its own.
    Raises InputError if there is no such text, a split is missing, ambiguous or empty, or nothing can be read.
    """
    if path == "sample":
        return _cut(path, sample_bytes(), kind)
    place = Path(path)
    try:
        if place.is_dir():
            source = _from_folder(place)
        elif place.is_file():
            source = _cut(path, place, kind)
        else:
            came = "something else" if place.exists() else "nothing of that name"
            raise InputError(f'{path}: expected a file, a folder or "sample", got {came}')
    except OSError as error:
        raise InputError(f"{path}: expected a file or folder that can be read, got {error.strerror}") from error
    for split in source.splits:
        if split.start == split.stop:
            raise InputError(f"{split.where}: expected text, got an empty split")
    return source


def _from_folder(folder: Path) -> Source:
    files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
    chosen = {split: [file for file in files if set(NAMES[split]) & set(file.name.split("."))] for split in SPLITS}
    counts = ", ".join(f"{len(chosen[split])} for {split}" for split in SPLITS)
    if any(len(found) != 1 for found in chosen.values()) or len({found[0] for found in chosen.values()}) < len(SPLITS):
        listing = ", ".join(file.name for file in files[:LISTED]) + (", ..." if len(files) > LISTED else "")
        raise InputError(f"{folder}: expected one file each for train, valid and test, "
                         f"got {counts} among {listing or 'no files'}")
    return Source(str(folder), tuple(
        Split(name, str(file), file, 0, file.stat().st_size) for name, (file,) in chosen.items()))


def _cut(name: str, text: Path | bytes, kind: str) -> Source:
    with _opened(text) as file:
        size = file.seek(0, io.SEEK_END)
        if not size:
            raise InputError(f"{name}: expected text, got an empty file")
        ends = [_next_boundary(file, offset, kind) for offset in (size * 9 // 10, size * 95 // 100)]
    bounds = zip(SPLITS, (0, *ends), (*ends, size), strict=True)
    return Source(name, tuple(Split(split, f"{name}, split {split}", text, *ends) for split, *ends in bounds))


def _next_boundary(file: BinaryIO, offset: int, kind: str) -> int:
    """The first place at or after the offset where a token of that kind may end."""
    if kind == "character":
        file.seek(offset)
        following = file.read(3)
        return offset + len(following) - len(following.lstrip(bytes(range(0x80, 0xC0))))
    if kind == "word" and offset:
        offset -= 1
        file.seek(offset)
        while chunk := file.read(CHUNK):
            if (newline := chunk.find(b"\n")) >= 0:
                return offset + newline + 1
            offset += len(chunk)
    return offset


def _opened(text: Path | bytes) -> BinaryIO:
    return io.BytesIO(text) if isinstance(text, bytes) else text.open("rb")
