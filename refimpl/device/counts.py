"""What some computation asks of a GPU, added up: launches, matrix products and their operations, bytes read and written."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """Kernels launched, matrix products by cuBLAS, the products' operations, bytes read and written."""

    launches: int
    products: int
    operations: int
    read: int
    written: int


def total(entries: Iterable[Entry]) -> Entry:
    """Their sum."""
    return Entry(*(sum(values) for values in zip(*entries, strict=True)))


class Sum:
    """Adds up an entry; sizes are numbers of elements."""

    def __init__(self, dtype: str) -> None:
        self._item = np.dtype(dtype).itemsize
        self._launches = self._products = self._operations = self._read = self._written = 0

    def product(self, rows: int, inner: int, columns: int, batch: int = 1, shared: bool = False, add: bool = False) -> None:
        """A batch of (rows × inner) by (inner × columns); shared: the right factor is one for all; add: to what is there."""
        out = batch * rows * columns
        self._products += 1
        self._operations += 2 * out * inner
        self._move(batch * rows * inner + (1 if shared else batch) * inner * columns + (out if add else 0), out)

    def kernel(self, read: int, written: int, launches: int = 1) -> None:
        """Launches that together read and write so much."""
        self._launches += launches
        self._move(read, written)

    def each(self, size: int, read: int = 1, times: int = 1) -> None:
        """Element-wise kernels: `read` arrays of this size each, and one written. Nothing is launched for nothing."""
        if size:
            self.kernel(times * read * size, times * size, times)

    def cleared(self, size: int) -> None:
        """Memory set to 0, which is no kernel."""
        self._move(0, size)

    def _move(self, read: int, written: int) -> None:
        self._read += read * self._item
        self._written += written * self._item

    def entry(self) -> Entry:
        """The sums."""
        return Entry(self._launches, self._products, self._operations, self._read, self._written)
