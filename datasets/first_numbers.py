"""Words numbered twice: as they first appear, while they are counted, then as the vocabulary has them.

Looking up a word takes most of the time of encoding a text; this way each is looked up once.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refimpl.config import DataConfig
from refimpl.datasets.counting import word_vocabulary
from refimpl.datasets.text import UNKNOWN
from refimpl.datasets.vocabulary import Tokens, Vocabulary

AT_ONCE = 1 << 20


class _Numbers(dict[str, int]):
    """The number of each word, the next one for a new word."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def number_words(lists: Iterable[list[str]], config: DataConfig, aside: Path) -> tuple[Vocabulary, Iterator[Tokens]]:
    """The vocabulary of the words in the lists, and their tokens, which wait in a file that is gone after the last."""
    numbers, counts = _Numbers(), np.zeros(0, np.int64)
    with aside.open("wb") as file:
        for words in lists:
            first = np.fromiter(map(numbers.__getitem__, words), np.int32, len(words))
            file.write(first.data)
            found = np.bincount(first, minlength=len(numbers))
            found[:len(counts)] += counts
            counts = found
    counted = dict(zip(numbers, counts.tolist(), strict=True))
    vocabulary = word_vocabulary(counted, config.ties, config.minimum_count, config.unknown, config.numbering)
    final = {word: number for number, word in enumerate(vocabulary.symbols)}
    rare = final.get(UNKNOWN, -1)
    table = np.array([final.get(word, rare) for word in numbers], vocabulary.dtype)
    return vocabulary, _renumbered(aside, table)


def _renumbered(aside: Path, table: npt.NDArray[np.integer]) -> Iterator[Tokens]:
    with aside.open("rb") as file:
        while chunk := file.read(AT_ONCE * 4):
            yield table[np.frombuffer(chunk, np.int32)]
    aside.unlink()
