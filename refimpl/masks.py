"""Dropout's keep-masks, drawn by position from a counter-based generator: all of one, or the part that is needed.

Element i of a row's mask is number i of its stream of Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
2011), whoever draws it, how often and in which order: forward and backward, one tile or another, a run that is resumed.
"""

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from refimpl.arrays import Array, is_device, module_of, purpose_number, random_stream, to_library_of
from refimpl.device.randomness import keep_mask

PER_COUNT = 8  # numbers of 32 bits that Philox makes of one value of its counter
TOGETHER = 65536  # numbers drawn at once, most
SKIPPED = 1024  # numbers that are drawn though not needed, most: they cost as much as a piece of their own does, 2 µs


class Mask(NamedTuple):
    """The keep-mask (rows, *shape) of one dropout in one update; row b's depends on first_row + b and not on `rows`.

    now: where a GPU reads the update's number, below 2^32, as its first element, if not from `update`.
    """

    seed: int
    name: str
    update: int
    first_row: int
    rows: int
    shape: tuple[int, ...]
    rate: float
    now: Array | None = None

    def whole(self, like: Array) -> Array:
        """All of it, in the library of `like`; the same bits, wherever they are drawn."""
        if is_device(like):
            entropy = self.seed, purpose_number(self.purpose), self.update
            drawn = keep_mask(entropy, self.first_row, self.rows, math.prod(self.shape), self.least, like, self.now)
            return drawn.reshape(self.rows, *self.shape)
        keep = module_of(like).empty((self.rows, *self.shape), bool)
        for number in range(self.rows):
            keep[number] = to_library_of(like, self.row(number).part(0, math.prod(self.shape)).reshape(self.shape))
        return keep

    def row(self, number: int) -> "Row":
        """That of one row of the batch."""
        bits = random_stream(self.seed, self.purpose, self.update, self.first_row + number).bit_generator
        return Row(bits, dict(bits.state), self.least, self.shape)

    @property
    def purpose(self) -> str:
        """What its streams are named by."""
        return f"dropout {self.name}"

    @property
    def least(self) -> int:
        """Of the numbers k / 2^24 in [0, 1) that 32 bits make in float32, those are kept that are not below the rate."""
        return math.ceil(float(np.float32(self.rate)) * 2**24) * 2**8


class Row(NamedTuple):
    """The keep-mask of one row of the batch: where 32 random bits are `least` or more. For one thread at a time."""

    bits: np.random.BitGenerator
    start: dict[str, Any]
    least: int
    shape: tuple[int, ...]

    def part(self, first: int, count: int) -> Array:
        """Elements first … first + count in flat order."""
        counter, skipped = divmod(first, PER_COUNT)
        self.start["state"]["counter"][0] = counter
        self.bits.state = self.start
        pairs = self.bits.random_raw((skipped + count + 1) // 2)
        return pairs.astype("<u8", copy=False).view("<u4")[skipped : skipped + count] >= self.least

    def slots(self, head: int, queries: slice, count: int) -> Array:
        """Of a mask of shape (H, T, L) the first `count` slots of some of a head's queries: (n, count)."""
        _, block, length = self.shape
        keep = np.empty((queries.stop - queries.start, count), bool)
        step = max(1, TOGETHER // length) if length - count <= SKIPPED else 1
        each = count if step == 1 else length
        for low in range(0, len(keep), step):
            some = keep[low : low + step]
            first = (head * block + queries.start + low) * length
            some[...] = self.part(first, len(some) * each).reshape(len(some), each)[:, :count]
        return keep


Keep: TypeAlias = Array | Mask | None  # what is kept; None = everything


def drawn(keep: Keep, like: Array) -> Array | None:
    """A keep-mask as an array, drawn if it has yet to be, in the library of `like`."""
    return keep.whole(like) if isinstance(keep, Mask) else keep
