"""Files that are whole or absent, and on the disk when a call returns; reading that a damaged file can't lead astray."""

import hashlib
import io
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from refimpl.errors import InputError

PIECE = 1 << 22  # bytes hashed and written at a time: what was hashed is still in the cache


def write(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """A file of these bytes, synced to the disk; returns its size (bytes) and SHA-256 (sha256)."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb", buffering=0) as file:
        for piece in pieces:
            for start in range(0, len(piece), PIECE):
                part = memoryview(piece)[start : start + PIECE]
                digest.update(part)
                size += len(part)
                while part:  # a disk that fills up takes a part before it refuses the rest
                    part = part[written(file, part) :]
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def written(file: io.FileIO, part: memoryview) -> int:
    """How many of the bytes the system has taken."""
    return file.write(part)


def sync(path: Path) -> None:
    """Makes what a file holds durable, or a folder's own entries."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, text: str) -> None:
    """The file's new content, or on any error its old one."""
    aside = path.with_name(f".{path.name}.aside")
    try:
        write(aside, [text.encode()])
        aside.replace(path)
        sync(path.parent)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def remove(folder: Path) -> None:
    """Deletes a folder, under another name first: what a kill leaves of it is never taken for a whole one."""
    hidden = folder.with_name(f".{folder.name.removeprefix('.')}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        folder.rename(hidden)
    except OSError:
        return  # it stays, whole; the next removal tries again
    shutil.rmtree(hidden, ignore_errors=True)


def read(path: Path, largest: int, expected: str) -> bytes:
    """The content of a plain file of no more bytes than that. Raises InputError that says what was expected."""
    with opened(path, largest, expected) as file:
        return file.read(largest)


@contextmanager
def opened(path: Path, largest: int, expected: str) -> Iterator[BinaryIO]:
    """The same file, to be read a part at a time."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # to open a pipe would wait for its writer
    except OSError as error:
        raise InputError(f"{path}: expected {expected}, got {error.strerror}") from error
    try:
        found, came = os.fstat(descriptor), ""
        if not stat.S_ISREG(found.st_mode):
            came = "a folder" if stat.S_ISDIR(found.st_mode) else "another kind of file"
        elif found.st_size > largest:
            came = f"{found.st_size} bytes: the file was altered"
        if came:
            raise InputError(f"{path}: expected {expected}, got {came}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise InputError(f"{path}: expected {expected}, got {error.strerror}") from error
    finally:
        os.close(descriptor)


def digest(path: Path, largest: int, expected: str) -> tuple[int, str]:
    """The size and SHA-256 of what `read` would return, which is not kept."""
    found, size = hashlib.sha256(), 0
    with opened(path, largest, expected) as file:
        while part := file.read(min(PIECE, largest - size)):
            found.update(part)
            size += len(part)
    return size, found.hexdigest()
