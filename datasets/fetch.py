"""A published text brought here, from the network or from a copy: checked, unpacked, cut into its splits."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from refimpl import durable
from refimpl.datasets.archives import opened
from refimpl.datasets.download import Patience, download
from refimpl.datasets.held import Held, Meter, check_file, chunks_of
from refimpl.datasets.published import Item, Member
from refimpl.errors import InputError

ZIP = b"PK\x03\x04"
NEWLINE = 10


def fetch(
    item: Item, folder: Path, meter: Meter, url: str | None = None, given: Path | None = None,
    patience: Patience | None = None,
) -> dict[str, Any]:
    """The text's splits in `folder`, unless they are there already; returns where from, and bytes by file.

    `given`: in place of a download, the archive, the text that it holds, or a folder with the files that it holds. All is
    checked beside the folder, which appears whole or not at all. Raises InputError where what is given or in the folder is
    something else, or the folder cannot be written; OutsideError where the network fails.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        check_splits(item, folder)
        return _told(item, folder, "there already")
    source = str(given or url or item.url)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as workplace:
            fresh = Path(workplace, "text")
            fresh.mkdir()
            if given is None:
                place = Path(workplace).resolve()
                given = download(url or item.url, item.archive, place, meter, patience or Patience())
            else:
                given = _checked(item, given)
            _write_splits(item, given, fresh, meter)
            _place(fresh, folder)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written, with room for the archive and "
                         f"{_largest(item) / 1e6:,.0f} MB of text, got {error.strerror or error}") from error
    return _told(item, folder, source)


def check_splits(item: Item, folder: Path) -> None:
    """Raises InputError unless the folder holds the text's splits, to the last bit."""
    try:
        for member in item.members:
            whole = Held(member.whole, str(folder))
            for part in member.parts:
                held = Held(part, str(folder / part.name))
                for chunk in chunks_of(folder / part.name):
                    whole.add(chunk)
                    held.add(chunk)
                held.end()
            whole.end()
    except InputError as error:
        raise InputError(f"{folder}: expected a new or empty folder, or the splits of {item.name}, got something else: "
                         f"{error}") from error


def write_decimal(item: Item, folder: Path) -> Path:
    """The splits as the published preparation writes them, in the folder's `decimal`; returns that place.

    Each byte is its value in decimal, a newline is itself, and single spaces stand between. A place that is there is held
    to the checksums and stays as it is. Raises InputError where a checksum is another than that of the published files, or
    the place cannot be written; nothing new stays then.
    """
    check_decimal(item)
    place = folder / "decimal"
    if place.exists():
        for known in item.decimal:
            check_file(place / known.name, known)
        return place
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix="fetching-") as workplace:
            fresh = Path(workplace, "decimal")
            fresh.mkdir()
            for split, known in zip(item.splits, item.decimal, strict=True):
                held = Held(known, str(place / known.name))
                with (fresh / known.name).open("wb") as file:
                    for chunk in decimal(chunks_of(folder / split.name)):
                        held.add(chunk)
                        file.write(chunk)
                held.end()
            _place(fresh, place)
    except OSError as error:
        raise InputError(f"{place}: expected a folder that can be written, got {error.strerror or error}") from error
    return place


def _place(fresh: Path, folder: Path) -> None:
    """A finished folder under its name, on the disk with all its files."""
    for path in (*fresh.iterdir(), fresh):
        durable.sync(path)
    fresh.rename(folder)
    durable.sync(folder.parent)


def check_decimal(item: Item) -> None:
    """Raises InputError unless the item's published preparation is known."""
    if not item.decimal:
        raise InputError(f"--decimal: expected enwik8, whose published preparation is known, got {item.name}")


def decimal(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Bytes as numbers in decimal with a space between, newlines as themselves."""
    names = [b"\n" if value == NEWLINE else b"%d" % value for value in range(256)]
    first = True
    for chunk in chunks:
        yield (b"" if first else b" ") + b" ".join(map(names.__getitem__, chunk))
        first = False


def _checked(item: Item, given: Path) -> Path:
    """What was given, if it is there and, as an archive, the right one."""
    if given.is_dir():
        return given
    if _is_packed(given):
        check_file(given, item.archive)
    elif len(item.members) > 1:
        raise InputError(f"{given}: expected {item.archive.name}, or a folder with what it holds, got neither")
    return given


def _is_packed(given: Path) -> bool:
    try:
        with given.open("rb") as file:
            return file.read(len(ZIP)) == ZIP
    except OSError as error:
        raise InputError(f"{given}: expected a file that can be read, got {error.strerror}") from error


def _write_splits(item: Item, given: Path, fresh: Path, meter: Meter) -> None:
    with ExitStack() as stack:
        for member, chunks in zip(item.members, _texts(item, given, stack), strict=True):
            meter.begin(f"{member.whole.name}, unpacked", member.whole.size)
            name = member.whole.name.rpartition("/")[2]
            where = str(given / name if given.is_dir() else given if len(item.members) == 1 else f"{given}, {name}")
            _write_member(member, chunks, fresh, where, meter)


def _texts(item: Item, given: Path, stack: ExitStack) -> list[Iterator[bytes]]:
    """The chunks of each member."""
    names = [member.whole.name for member in item.members]
    if given.is_dir():
        return [chunks_of(given / name.rpartition("/")[2]) for name in names]
    if not _is_packed(given):
        return [chunks_of(given)]
    found: Mapping[str, Iterator[bytes]] = stack.enter_context(opened(given, item.members))
    return [found[name] for name in names]


def _write_member(member: Member, chunks: Iterable[bytes], fresh: Path, where: str, meter: Meter) -> None:
    """Cuts the text into its parts, each a file, and holds all to their checksums."""
    whole, helds = Held(member.whole, where), [Held(part, f"{where}, {part.name}") for part in member.parts]
    with ExitStack() as stack:
        files = [stack.enter_context((fresh / part.name).open("wb")) for part in member.parts]
        number = 0
        for chunk in chunks:
            whole.add(chunk)
            meter.add(len(chunk))
            while chunk:
                piece = chunk[: member.parts[number].size - helds[number].size]
                helds[number].add(piece)
                files[number].write(piece)
                chunk = chunk[len(piece):]
                number += bool(chunk)
    for held in (whole, *helds):
        held.end()


def _largest(item: Item) -> int:
    return sum(file.size for file in item.splits)


def _told(item: Item, folder: Path, source: str) -> dict[str, Any]:
    files: dict[str, int] = {file.name: (folder / file.name).stat().st_size for file in item.splits}
    return {"name": item.name, "folder": str(folder), "from": source, "bytes": files}
