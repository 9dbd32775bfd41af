"""The vocabulary that a text defines: its characters, or its words by frequency."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from refimpl.datasets.text import END_OF_LINE, UNKNOWN
from refimpl.datasets.vocabulary import CODE_POINTS, Vocabulary, code_points


def character_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """All characters of the texts, by code point."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in texts:
        seen[code_points(text)] = True
    return Vocabulary("character", tuple(map(chr, np.flatnonzero(seen).tolist())))


def word_vocabulary(lists: Iterable[list[str]], ties: str, minimum_count: int, unknown: str) -> Vocabulary:
    """The words of the lists by descending frequency, those of equal frequency by first appearance or its reverse.

    Words seen fewer than minimum_count times are counted as `<unk>`, never `<eos>`. So is then a word seen not even
    once: minimum_count above 1 implies unknown "<unk>". If `<unk>` is wanted but never counted, it comes last.
    """
    counts: Counter[str] = Counter()
    for words in lists:
        counts.update(words)
    if minimum_count > 1:
        unknown = UNKNOWN
        counts = _without_rare(counts, minimum_count)
    order = counts if ties == "first" else reversed(counts)
    symbols = sorted(order, key=counts.__getitem__, reverse=True)
    if unknown == UNKNOWN and UNKNOWN not in counts:
        symbols.append(UNKNOWN)
    return Vocabulary("word", tuple(symbols), unknown)


def _without_rare(counts: Counter[str], minimum_count: int) -> Counter[str]:
    """As if the text had been written with `<unk>` in place of its rare words, first appearances included."""
    kept: Counter[str] = Counter()
    for word, count in counts.items():
        kept[word if count >= minimum_count or word == END_OF_LINE else UNKNOWN] += count
    return kept
