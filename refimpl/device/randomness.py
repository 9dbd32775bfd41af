"""Dropout's keep-masks drawn on the GPU, to the same bits as on the host, with nothing sent there."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from refimpl.arrays import Array, kernel, module_of

MOST_WORDS = 8  # of the seeds of a stream, the row's number among them
GROUP, THREADS = 8, 256


def words_of(entropy: Sequence[int]) -> list[int]:
    """The words of 32 bits that SeedSequence makes of whole numbers of 0 or more: each one's own, low ones first."""
    found = []
    for number in entropy:
        if number < 0:
            raise ValueError(f"random stream: expected numbers of 0 or more, got {number}")
        found.append(number & 0xFFFFFFFF)
        while number := number >> 32:
            found.append(number & 0xFFFFFFFF)
    return found


def packed(words: Sequence[int]) -> Any:
    """A kernel's argument of type Words; a place for the row's number is left at its end."""
    return np.array((*words, *[0] * (MOST_WORDS - len(words))), "uint32").view(f"V{4 * MOST_WORDS}")[0]


def keep_mask(
    entropy: Sequence[int], first_row: int, rows: int, length: int, least: int, like: Array, now: Array | None = None
) -> Array:
    """(rows, length) boolean, on the device of `like`: whether number i of row first_row + b's stream is `least` or more.

    now: on that device, its first element in place of the entropy's last number.
    """
    words = words_of(entropy)
    keep = module_of(like).empty((rows, length), bool)
    grid = -(-length // (GROUP * THREADS)), rows
    kernel("keep", "keep", like.dtype)(grid, (THREADS,), (
        keep, length, packed(words), len(words) + 1, first_row, least, now))
    return keep
