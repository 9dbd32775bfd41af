"""What a token is, a byte, a character or a word, and which number each symbol has."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, repeat
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from refimpl.config import UNKNOWNS, VOCABULARIES
from refimpl.datasets.text import END_OF_LINE, UNKNOWN, decoded, words_of
from refimpl.errors import InputError

Tokens: TypeAlias = npt.NDArray[np.integer[Any]]
CODE_POINTS = 0x110000
NEWLINES = ("kept", "<eos>", "dropped")
DROPPED = -2


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a text, numbered in order. Raises InputError if they cannot be a vocabulary of that kind.

    byte: the 256 byte values, each its own number; `symbols` is empty. character: Unicode characters by code point.
    word: words by descending frequency, `<eos>` among them; `unknown` "<unk>": any other word is read as `<unk>`.
    newline: a symbol like others ("kept"), the symbol `<eos>` (always so for words), or "dropped". Unless it is kept, bytes
    have symbols too, their values in decimal, and symbols may be in any order.
    """

    kind: str
    symbols: tuple[str, ...] = ()
    unknown: str = "error"
    newline: str = "kept"

    def __post_init__(self) -> None:
        if self.kind == "word" and self.newline == "kept":
            object.__setattr__(self, "newline", END_OF_LINE)
        for name, value, choices in (("kind", self.kind, VOCABULARIES), ("unknown", self.unknown, UNKNOWNS),
                                     ("newline", self.newline, NEWLINES)):
            if value not in choices:
                raise InputError(f"vocabulary.{name}: expected one of {', '.join(choices)}, got {value!r}")
        if self.kind == "word":
            self._check_words()
        elif self.newline == "kept":
            self._check_plain()
        else:
            self._check_counted()
        if self.unknown == UNKNOWN and UNKNOWN not in self.symbols:
            raise InputError(f"vocabulary.symbols: expected {UNKNOWN} among them with unknown = {UNKNOWN!r}, got none")

    def _check_plain(self) -> None:
        if self.kind == "byte":
            if self.symbols:
                raise InputError(f"vocabulary.symbols: expected none for bytes, got {len(self.symbols)}")
            return
        if not self.symbols or not all(_is_character(symbol) for symbol in self.symbols):
            raise InputError(f"vocabulary.symbols: expected single characters, got {_shortened(self.symbols)}")
        for low, high in pairwise(self.symbols):
            if low >= high:
                raise InputError(f"vocabulary.symbols: expected ascending code points, got {low!r} before {high!r}")

    def _check_counted(self) -> None:
        wanted = "decimal bytes but that of a newline" if self.kind == "byte" else "single characters but the newline"
        for symbol in self.symbols:
            known = symbol in _BYTES if self.kind == "byte" else _is_character(symbol) and symbol != "\n"
            if not known and not (symbol == END_OF_LINE and self.newline == END_OF_LINE):
                raise InputError(f"vocabulary.symbols: expected {wanted}, got {_shortened(symbol)}")
        if len(set(self.symbols)) < len(self.symbols):
            raise InputError("vocabulary.symbols: expected distinct symbols, got one twice")
        if not self.symbols or (self.newline == END_OF_LINE and END_OF_LINE not in self.symbols):
            wanted = END_OF_LINE if self.newline == END_OF_LINE else "one"
            raise InputError(f"vocabulary.symbols: expected {wanted} among the symbols, got none")

    def _check_words(self) -> None:
        if self.newline != END_OF_LINE:
            raise InputError(f"vocabulary.newline: expected {END_OF_LINE} for words, got {self.newline!r}")
        if END_OF_LINE not in self.symbols:
            raise InputError(f"vocabulary.symbols: expected {END_OF_LINE} among the words, got none")
        if len(set(self.symbols)) < len(self.symbols):
            raise InputError("vocabulary.symbols: expected distinct words, got one twice")
        for word in self.symbols:
            if word.split() != [word]:
                raise InputError(f"vocabulary.symbols: expected words without white space, got {_shortened(word)}")
        try:
            "".join(self.symbols).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"vocabulary.symbols: expected words of characters, got {_shortened(error.object[error.start])}"
                             ) from error

    @property
    def size(self) -> int:
        """V, the number of symbols."""
        return len(self.symbols) or 256

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint8, uint16 and int32, little-endian, that holds every token."""
        return np.dtype("u1" if self.size <= 1 << 8 else "<u2" if self.size <= 1 << 16 else "<i4")

    @property
    def end_of_line(self) -> int | None:
        """The number of `<eos>`; None where a newline is no such symbol."""
        return self.symbols.index(END_OF_LINE) if self.newline == END_OF_LINE else None

    def encode(self, text: bytes) -> Tokens:
        """(n,) tokens of a text: bytes as they are, characters and words of UTF-8.

        A newline is the word `<eos>`, and a last line without one gets none: a prompt may stop inside a line.
        Raises InputError at a symbol that is not in the vocabulary and where the text is not UTF-8.
        """
        return np.concatenate([np.empty(0, self.dtype), *self.encode_chunks([text], "text")])

    def encode_chunks(self, chunks: Iterable[bytes], where: str, start: int = 0) -> Iterator[Tokens]:
        """As `encode`, for one text in chunks that may end anywhere; yields its tokens in as many or more pieces.

        Errors call the text `where` and count its bytes from `start`.
        """
        if self.kind == "word":
            return self._words(words_of(decoded(chunks, where, start), where), where)
        codes = codes_of(self.kind, chunks, where, start)
        return (piece.astype(self.dtype, copy=False) for piece in codes) if not self.symbols else self._counted(codes, where)

    def _counted(self, pieces: Iterable[Tokens], where: str) -> Iterator[Tokens]:
        """Tokens of bytes or characters by their codes."""
        position = 0
        for codes in pieces:
            tokens = self._numbers[codes]
            if (tokens == -1).any():
                place = int(np.argmax(tokens == -1))
                code, at = int(codes[place]), f"at position {position + place}"
                if self.kind == "byte":
                    raise InputError(f"{where}: expected bytes of the vocabulary of {self.size}, got 0x{code:02x} {at}")
                raise InputError(f"{where}: expected characters of the vocabulary of {self.size}, got {chr(code)!r} "
                                 f"(U+{code:04X}) {at}")
            position += len(codes)
            kept = tokens[tokens != DROPPED] if self.newline == "dropped" else tokens
            yield kept.astype(self.dtype)

    @cached_property
    def _codes(self) -> npt.NDArray[np.int64]:
        """(V,) the code of each byte or character."""
        return np.array([10 if s == END_OF_LINE else int(s) if self.kind == "byte" else ord(s) for s in self.symbols], int)

    @cached_property
    def _numbers(self) -> npt.NDArray[np.int32]:
        """The number of each code, DROPPED for a newline that is, and -1 where there is none."""
        numbers = np.full(256 if self.kind == "byte" else CODE_POINTS, -1, np.int32)
        if self.newline == "dropped":
            numbers[10] = DROPPED
        numbers[self._codes] = np.arange(self.size)
        return numbers

    def _words(self, lists: Iterable[list[str]], where: str) -> Iterator[Tokens]:
        numbers = {word: number for number, word in enumerate(self.symbols)}
        missing = numbers[UNKNOWN] if self.unknown == UNKNOWN else -1
        position = 0
        for words in lists:
            tokens = np.fromiter(map(numbers.get, words, repeat(missing)), np.int32, len(words))
            if tokens.min(initial=0) < 0:
                place = int(np.argmax(tokens < 0))
                raise InputError(f"{where}: expected words of the vocabulary of {self.size}, got "
                                 f"{_shortened(words[place])} at position {position + place} "
                                 f'(unknown = "{UNKNOWN}" would read it as {UNKNOWN})')
            position += len(words)
            yield tokens.astype(self.dtype)

    def decode(self, tokens: npt.ArrayLike) -> str:
        """The text of (n,) tokens; words are joined by spaces, and bytes that are not UTF-8 become U+FFFD.

        Raises InputError unless all are whole numbers in [0, V).
        """
        numbers = np.asarray(tokens)
        if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise InputError(f"tokens: expected whole numbers of shape (n,), got {numbers.dtype} {numbers.shape}")
        outside = numbers[(numbers < 0) | (numbers >= self.size)]
        if outside.size:
            raise InputError(f"tokens: expected numbers in [0, {self.size}), got {outside[0]}")
        if self.kind == "byte":
            return self.to_bytes(numbers).decode("utf-8", "replace")
        if self.kind == "character":
            return "".join(map(chr, self._codes[numbers.astype(int)].tolist()))
        symbols = [self.symbols[number] for number in numbers.tolist()]
        line = " ".join("\n" if symbol == END_OF_LINE else symbol for symbol in symbols)
        return line.replace(" \n", "\n").replace("\n ", "\n")

    def to_bytes(self, tokens: npt.ArrayLike) -> bytes:
        """The bytes that tokens of kind "byte" stand for, each in [0, V)."""
        numbers = np.asarray(tokens, int)
        return (self._codes[numbers] if self.symbols else numbers).astype(np.uint8).tobytes()

    def to_json(self) -> dict[str, Any]:
        """A plain dict, from which `from_json` makes the same vocabulary."""
        return {"kind": self.kind, "symbols": list(self.symbols), "unknown": self.unknown, "newline": self.newline}

    @classmethod
    def from_json(cls, value: object) -> "Vocabulary":
        """The vocabulary that `to_json` described; raises InputError if the value does not describe one."""
        if not isinstance(value, dict) or set(value) | {"newline"} != {"kind", "symbols", "unknown", "newline"}:
            raise InputError(f"vocabulary: expected kind, symbols and unknown, got {_shortened(value)}")
        symbols = value["symbols"]
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise InputError(f"vocabulary.symbols: expected a list of strings, got {_shortened(symbols)}")
        return cls(value["kind"], tuple(symbols), value["unknown"], value.get("newline", "kept"))


def codes_of(kind: str, chunks: Iterable[bytes], where: str, start: int = 0) -> Iterator[Tokens]:
    """Byte values or code points of a text in chunks; raises InputError where characters are not UTF-8."""
    if kind == "byte":
        return (np.frombuffer(chunk, np.uint8) for chunk in chunks)
    return map(code_points, decoded(chunks, where, start))


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """(n,) code points of n characters."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


_BYTES = frozenset(str(value) for value in range(256) if value != 10)


def _is_character(symbol: str) -> bool:
    return len(symbol) == 1 and not "\ud800" <= symbol <= "\udfff"


def _shortened(value: object) -> str:
    whole = repr(value)
    return whole if len(whole) <= 80 else whole[:77] + "..."
