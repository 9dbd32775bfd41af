"""Bytes held to what a file is known by, as they pass."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from refimpl.datasets.published import File
from refimpl.datasets.text import CHUNK
from refimpl.errors import InputError

NAMES = {"sha256": "SHA-256", "sha1": "SHA-1"}


class Meter(Protocol):
    """Who is told how far a transfer is."""

    def begin(self, name: str, total: int) -> None:
        """So many bytes of `name` will come."""

    def add(self, count: int) -> None:
        """So many of them came."""

    def note(self, text: str) -> None:
        """Something a person should know, such as a second attempt."""


class Held:
    """Counts bytes and computes their checksums; `where` is what errors call them."""

    def __init__(self, file: File, where: str) -> None:
        self._file, self._where, self.size = file, where, 0
        self._digests = {name: hashlib.new(name, usedforsecurity=False) for name in file.checksums}

    def add(self, chunk: bytes) -> None:
        """The next bytes. Raises InputError as soon as there are more than the file has."""
        self.size += len(chunk)
        if self.size > self._file.size:
            raise InputError(f"{self._where}: expected {self._told_size()}, got more")
        for digest in self._digests.values():
            digest.update(chunk)

    def end(self) -> None:
        """Raises InputError, with what was expected and found, unless these were the file's bytes."""
        if self._file.exact and self.size != self._file.size:
            raise InputError(f"{self._where}: expected {self._told_size()}, got {self.size:,}")
        for name, digest in self._digests.items():
            if digest.hexdigest() != self._file.checksums[name]:
                raise InputError(f"{self._where}: expected {NAMES[name]} {self._file.checksums[name]}, "
                                 f"got {digest.hexdigest()}")

    def _told_size(self) -> str:
        return f"{'' if self._file.exact else 'at most '}{self._file.size:,} bytes"


def chunks_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, about a megabyte at a time. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except OSError as error:
        raise InputError(f"{path}: expected a file that can be read, got {error.strerror}") from error


def check_file(path: Path, file: File) -> None:
    """Raises InputError unless the path holds the file."""
    held = Held(file, str(path))
    for chunk in chunks_of(path):
        held.add(chunk)
    held.end()
