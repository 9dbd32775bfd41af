"""A zip archive's members, only those that are expected, and never more of them than is known."""

import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from refimpl.datasets.published import Member
from refimpl.datasets.text import CHUNK
from refimpl.errors import InputError

ENCRYPTED = 0x1
SOUND = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def opened(path: Path, members: Sequence[Member]) -> Iterator[dict[str, Iterator[bytes]]]:
    """The chunks of each expected member by name; names come from `members`, never from the archive.

    Raises InputError, before anything is read, for an absolute name, `..`, a link or other special file, an encrypted,
    unexpected, repeated or missing member, and one that says it is larger than it can be; and where the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = _checked(archive.infolist(), members, path)
            yield {name: _chunks(archive, info, path) for name, info in found.items()}
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: expected a zip archive, got {_shortened(error)}") from error


def _checked(infos: Sequence[zipfile.ZipInfo], members: Sequence[Member], path: Path) -> dict[str, zipfile.ZipInfo]:
    known = {member.whole.name: member.whole for member in members}
    folders = {f"{parent}/" for name in known for parent in PurePosixPath(name).parents}
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        problem = _problem(info)
        if not problem and info.filename in folders and not info.file_size:
            continue
        if not problem and info.filename in found:
            problem = "twice"
        if not problem and info.filename not in known:
            problem = f"where only {', '.join(known)} should be"
        if not problem and info.file_size > known[info.filename].size:
            problem = f"that swells to {info.file_size:,} bytes where {known[info.filename].size:,} are known"
        if problem:
            raise InputError(f"{path}: expected an archive of {', '.join(known)}, got a member {info.filename[:200]!r} "
                             f"{problem}")
        found[info.filename] = info
    for name in known:
        if name not in found:
            raise InputError(f"{path}: expected a member {name}, got none of that name")
    return found


def _problem(info: zipfile.ZipInfo) -> str:
    """Why no archive of a text has such a member; "" if it may."""
    name, mode = info.orig_filename, info.external_attr >> 16
    if name.startswith(("/", "\\")) or name[1:2] == ":" or "\0" in name:
        return "with an absolute name"
    if ".." in name.replace("\\", "/").split("/"):
        return "that leads out of its folder"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "that is a link or a special file"
    if info.flag_bits & ENCRYPTED:
        return "that is encrypted"
    return "" if info.compress_type in SOUND else f"packed by method {info.compress_type}, not deflated"


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Iterator[bytes]:
    try:
        with archive.open(info) as file:
            while chunk := file.read(CHUNK):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}, {info.filename}: expected a member that can be unpacked, got "
                         f"{_shortened(error)}") from error


def _shortened(error: Exception) -> str:
    """The error without what it may quote of the archive."""
    return str(error)[:200]
