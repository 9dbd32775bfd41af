"""Bytes into characters into words, a chunk at a time, so that no text need be held whole."""

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain

from refimpl.errors import InputError

CHUNK = 1 << 20
LONGEST = CHUNK  # characters of a word
END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"


def decoded(chunks: Iterable[bytes], where: str, start: int = 0) -> Iterator[str]:
    """The chunks' text, read as one stream of UTF-8.

    Raises InputError, with the offending byte's offset (the first chunk begins at `start`), where it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    for chunk, last in chain(((chunk, False) for chunk in chunks), ((b"", True),)):
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, last)
        except UnicodeDecodeError as error:
            offset, byte = start - pending + error.start, error.object[error.start]
            raise InputError(f"{where}: expected UTF-8, got byte 0x{byte:02x} at byte offset {offset}") from error
        start += len(chunk)
        yield text


def finished_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks, and a newline after them if they end inside a line."""
    end = b"\n"
    for chunk in chunks:
        end = chunk[-1:] or end
        yield chunk
    if end != b"\n":
        yield b"\n"


def words_of(texts: Iterable[str], where: str = "text") -> Iterator[list[str]]:
    """The words of a stream of text, in order: split at white space, and each newline is the word `<eos>`.

    Raises InputError at a word of more than LONGEST characters, which is none: bytes without white space have no end.
    """
    rest = ""
    for piece in texts:
        text = rest + piece
        # not splitlines: it also cuts at characters that are mere white space here
        words = text.replace("\n", f" {END_OF_LINE} ").split()
        rest = words.pop() if text and not text[-1].isspace() else ""
        if len(rest) > LONGEST:
            raise InputError(f"{where}: expected words of at most {LONGEST:,} characters, got one that begins with "
                             f"{rest[:20]!r} and is longer")
        yield words
    if rest:
        yield [rest]
