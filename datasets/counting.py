"""The vocabulary that a text defines: its characters, or its words, bytes or characters by frequency."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from refimpl.datasets.text import END_OF_LINE, UNKNOWN
from refimpl.datasets.vocabulary import CODE_POINTS, Tokens, Vocabulary, code_points


def character_vocabulary(texts: Iterable[str]) -> Vocabulary:
    """All characters of the texts, by code point."""
    seen = np.zeros(CODE_POINTS, bool)
    for text in texts:
        seen[code_points(text)] = True
    return Vocabulary("character", tuple(map(chr, np.flatnonzero(seen).tolist())))


def counted_vocabulary(
    kind: str, pieces: Iterable[Tokens], newline: str, ties: str, numbering: str = "frequency"
) -> Vocabulary:
    """The bytes or characters of a text's codes, in the order of `in_order`, its newlines as `<eos>` or "dropped"."""
    counts: dict[int, int] = {}
    seen = np.zeros(CODE_POINTS, bool)
    for codes in pieces:
        values, firsts = np.unique(codes[~seen[codes]], return_index=True)
        counts |= dict.fromkeys(values[np.argsort(firsts)].tolist(), 0)
        seen[values] = True
        found = np.bincount(codes)
        for code in np.flatnonzero(found).tolist():
            counts[code] += int(found[code])
    if newline == "dropped":
        counts.pop(10, None)
    names = {code: END_OF_LINE if code == 10 else str(code) if kind == "byte" else chr(code) for code in counts}
    symbols = in_order({names[code]: count for code, count in counts.items()}, ties, numbering)
    return Vocabulary(kind, tuple(symbols), newline=newline)


def in_order(counts: Mapping[str, int], ties: str, numbering: str) -> list[str]:
    """Symbols, counted in order of first appearance, in that order or by descending frequency.

    ties: symbols of equal frequency by "first" appearance or "reversed".
    """
    if numbering == "appearance":
        return list(counts)
    return sorted(counts if ties == "first" else reversed([*counts]), key=counts.__getitem__, reverse=True)


def word_vocabulary(
    counts: Mapping[str, int], ties: str, minimum_count: int, unknown: str, numbering: str = "frequency"
) -> Vocabulary:
    """Words, counted in order of first appearance, in the order of `in_order`.

    Words seen fewer than minimum_count times are counted as `<unk>`, never `<eos>`. So is then a word seen not even
    once: minimum_count above 1 implies unknown "<unk>". If `<unk>` is wanted but never counted, it comes last.
    """
    if minimum_count > 1:
        unknown = UNKNOWN
        counts = _without_rare(counts, minimum_count)
    symbols = in_order(counts, ties, numbering)
    if unknown == UNKNOWN and UNKNOWN not in counts:
        symbols.append(UNKNOWN)
    return Vocabulary("word", tuple(symbols), unknown)


def _without_rare(counts: Mapping[str, int], minimum_count: int) -> Counter[str]:
    """As if the text had been written with `<unk>` in place of its rare words, first appearances included."""
    kept: Counter[str] = Counter()
    for word, count in counts.items():
        kept[word if count >= minimum_count or word == END_OF_LINE else UNKNOWN] += count
    return kept
