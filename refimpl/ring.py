"""Keys and values of the latest positions of some texts, in a ring: a new position takes the place of the oldest."""

from collections.abc import Sequence

import numpy as np

from refimpl.arrays import Array, module_of


class Ring:
    """One layer's keys and values of the latest C positions of B texts.

    A new position is written twice, C rows apart, so that the latest n ≤ C are always one slice. Texts end at the same row:
    of a shorter one, rows before its first position do not exist.
    """

    def __init__(self, pasts: Sequence[tuple[Array, Array]], capacity: int) -> None:
        """pasts: for each text its keys and values so far, (P, H, E) each; no more than the latest C are kept."""
        _, heads, width = pasts[0][0].shape
        xp = module_of(pasts[0][0])
        self._rows = [xp.zeros((heads, len(pasts), 2 * capacity, width), pasts[0][0].dtype) for _ in range(2)]
        self._capacity, self._next = capacity, 0
        self._lengths = np.array([len(keys) for keys, _ in pasts])
        for text, past in enumerate(pasts):
            for rows, array in zip(self._rows, past, strict=True):
                latest = array[max(0, len(array) - capacity) :].transpose(1, 0, 2)
                rows[:, text, capacity - latest.shape[1] : capacity] = latest

    def add(self, keys: Array, values: Array) -> None:
        """One more position of every text, (B, H, E) each."""
        for rows, array in zip(self._rows, (keys, values), strict=True):
            for row in (self._next, self._next + self._capacity):
                rows[:, :, row] = array.transpose(1, 0, 2)
        self._next = (self._next + 1) % self._capacity
        self._lengths += 1

    def latest(self, heads: slice, count: int) -> tuple[Array, Array, Array | None]:
        """Keys and values of the latest n = min(count, longest text's length) positions, and which of them exist.

        Views (G, B, n, E), the latest last, and (B, n) boolean, or None if all exist.
        """
        n = min(count, int(self._lengths.max()))
        end = self._next + self._capacity
        keys, values = (rows[heads, :, end - n : end] for rows in self._rows)
        if self._lengths.min() >= n:
            return keys, values, None
        return keys, values, module_of(keys).asarray(np.arange(n, 0, -1) <= self._lengths[:, None])
