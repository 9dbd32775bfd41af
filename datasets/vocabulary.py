"""What a token is, a byte, a character or a word, and which number each symbol has."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from refimpl.config import UNKNOWNS, VOCABULARIES
from refimpl.datasets.text import END_OF_LINE, UNKNOWN, decoded, words_of
from refimpl.errors import InputError

Tokens: TypeAlias = npt.NDArray[np.integer[Any]]
CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a text, numbered in order. Raises InputError if they cannot be a vocabulary of that kind.

    byte: the 256 byte values, each its own number; `symbols` is empty. character: Unicode characters by code point.
    word: words by descending frequency, `<eos>` among them; `unknown` "<unk>": any other word is read as `<unk>`.
    """

    kind: str
    symbols: tuple[str, ...] = ()
    unknown: str = "error"

    def __post_init__(self) -> None:
        for name, value, choices in (("kind", self.kind, VOCABULARIES), ("unknown", self.unknown, UNKNOWNS)):
            if value not in choices:
                raise InputError(f"vocabulary.{name}: expected one of {', '.join(choices)}, got {value!r}")
        if self.kind == "byte" and self.symbols:
            raise InputError(f"vocabulary.symbols: expected none for bytes, got {len(self.symbols)}")
        if self.kind == "character":
            self._check_characters()
        if self.kind == "word":
            self._check_words()
        if self.unknown == UNKNOWN and UNKNOWN not in self.symbols:
            raise InputError(f"vocabulary.symbols: expected {UNKNOWN} among them with unknown = {UNKNOWN!r}, got none")

    def _check_characters(self) -> None:
        if not self.symbols or any(len(symbol) != 1 or "\ud800" <= symbol <= "\udfff" for symbol in self.symbols):
            raise InputError(f"vocabulary.symbols: expected single characters, got {_shortened(self.symbols)}")
        for low, high in pairwise(self.symbols):
            if low >= high:
                raise InputError(f"vocabulary.symbols: expected ascending code points, got {low!r} before {high!r}")

    def _check_words(self) -> None:
        if END_OF_LINE not in self.symbols:
            raise InputError(f"vocabulary.symbols: expected {END_OF_LINE} among the words, got none")
        if len(set(self.symbols)) < len(self.symbols):
            raise InputError("vocabulary.symbols: expected distinct words, got one twice")
        for word in self.symbols:
            if word.split() != [word]:
                raise InputError(f"vocabulary.symbols: expected words without white space, got {_shortened(word)}")

    @property
    def size(self) -> int:
        """V, the number of symbols."""
        return 256 if self.kind == "byte" else len(self.symbols)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint8, uint16 and int32, little-endian, that holds every token."""
        return np.dtype("u1" if self.size <= 1 << 8 else "<u2" if self.size <= 1 << 16 else "<i4")

    @property
    def end_of_line(self) -> int | None:
        """The number of `<eos>`; None unless the symbols are words."""
        return self.symbols.index(END_OF_LINE) if self.kind == "word" else None

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
        if self.kind == "byte":
            return (np.frombuffer(chunk, self.dtype) for chunk in chunks)
        texts = decoded(chunks, where, start)
        return self._characters(texts, where) if self.kind == "character" else self._words(words_of(texts), where)

    def _characters(self, texts: Iterable[str], where: str) -> Iterator[Tokens]:
        numbers = np.full(CODE_POINTS, -1, np.int32)
        numbers[[ord(symbol) for symbol in self.symbols]] = np.arange(self.size)
        position = 0
        for text in texts:
            tokens = numbers[code_points(text)]
            if tokens.min(initial=0) < 0:
                place = int(np.argmax(tokens < 0))
                raise InputError(f"{where}: expected characters of the vocabulary of {self.size}, got {text[place]!r} "
                                 f"(U+{ord(text[place]):04X}) at position {position + place}")
            position += len(text)
            yield tokens.astype(self.dtype)

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
            return numbers.astype(np.uint8).tobytes().decode("utf-8", "replace")
        symbols = [self.symbols[number] for number in numbers.tolist()]
        if self.kind == "character":
            return "".join(symbols)
        line = " ".join("\n" if symbol == END_OF_LINE else symbol for symbol in symbols)
        return line.replace(" \n", "\n").replace("\n ", "\n")

    def to_json(self) -> dict[str, Any]:
        """A plain dict, from which `from_json` makes the same vocabulary."""
        return {"kind": self.kind, "symbols": list(self.symbols), "unknown": self.unknown}

    @classmethod
    def from_json(cls, value: object) -> "Vocabulary":
        """The vocabulary that `to_json` described; raises InputError if the value does not describe one."""
        if not isinstance(value, dict) or set(value) != {"kind", "symbols", "unknown"}:
            raise InputError(f"vocabulary: expected kind, symbols and unknown, got {_shortened(value)}")
        symbols = value["symbols"]
        if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
            raise InputError(f"vocabulary.symbols: expected a list of strings, got {_shortened(symbols)}")
        return cls(value["kind"], tuple(symbols), value["unknown"])


def code_points(text: str) -> npt.NDArray[np.uint32]:
    """(n,) code points of n characters."""
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _shortened(value: object) -> str:
    whole = repr(value)
    return whole if len(whole) <= 80 else whole[:77] + "..."
