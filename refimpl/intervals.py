"""How sure a mean over a text is: a 95 % interval by the circular block bootstrap, for losses that depend on one another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl.arrays import random_stream

CELL = 16  # tokens whose losses are kept as one sum: 100 MB for a text of 100 million
CELLS_AT_MOST = 65_536  # of a longer text neighbours are added up: its blocks are then in larger units
CELLS_AT_LEAST = 10  # fewer say nothing of their spread
RESAMPLES = 2000
DRAWN_AT_ONCE = 2**20  # places of blocks: 8 MB
QUIET = 5  # autocorrelations in a row that are taken for noise; the papers' max(5, √log10 n) for every n that there is
LEVEL = 0.95

Series = npt.NDArray[np.float64]


class Cells(NamedTuple):
    """A text's losses in its order, (n,) sums of neighbouring tokens' losses, and how many tokens each sum holds."""

    sums: Series
    counts: Series


class Interval(NamedTuple):
    """Ends of the interval, the length of its blocks in tokens, the seed of their places."""

    low: float
    high: float
    block: float
    seed: int


def cells_of(token_loss: npt.NDArray[np.floating]) -> Cells:
    """One segment's losses (B, T), T in pieces of CELL tokens, the last maybe shorter: sums and counts (B, ⌈T / CELL⌉)."""
    starts = np.arange(0, token_loss.shape[1], CELL)
    sums = np.add.reduceat(token_loss, starts, axis=1, dtype=np.float64)
    counts = np.diff(np.append(starts, token_loss.shape[1])).astype(np.float64)
    return Cells(sums, np.broadcast_to(counts, sums.shape))


def in_text_order(segments: Sequence[Cells]) -> Cells:
    """Segments' cells (B, …), a later one with the first of the rows before it, as one row of text after another: (n,)."""
    parts = []
    for row in range(len(segments[0].sums)):
        with_row = [segment for segment in segments if len(segment.sums) > row]
        parts.append([np.concatenate([segment[i][row] for segment in with_row]) for i in (0, 1)])
    return Cells(*(np.concatenate([part[i] for part in parts]) for i in (0, 1)))


def interval(cells: Cells, seed: int = 0) -> Interval | None:
    """The middle 95 % of the means of RESAMPLES texts made of blocks of this one; None for fewer than CELLS_AT_LEAST cells.

    Politis & Romano, "A circular block-resampling procedure for stationary data" (1992): blocks of length b at random
    places of the text, its end joined to its start, to the text's length. b is block_length's. A mean is Σ sums / Σ counts.
    """
    cells = _at_most(cells, CELLS_AT_MOST)
    length = len(cells.sums)
    if length < CELLS_AT_LEAST:
        return None
    mean = cells.sums.sum() / cells.counts.sum()
    block = block_length(cells.sums - mean * cells.counts)
    whole, rest = divmod(length, block)
    sums, counts = ([_circular(row, size) for size in (block, rest)] for row in cells)
    means, stream = np.empty(RESAMPLES), random_stream(seed, "interval")
    at_once = max(1, DRAWN_AT_ONCE // whole)
    for first in range(0, RESAMPLES, at_once):
        some = means[first : first + at_once]
        places, last = stream.integers(length, size=(len(some), whole)), stream.integers(length, size=len(some))
        some[...] = (sums[0][places].sum(1) + sums[1][last]) / (counts[0][places].sum(1) + counts[1][last])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high), block * float(cells.counts.mean()), seed)


def block_length(series: Series) -> int:
    """b = (3 G² n / (2 g²))^(1/3), at least 1 and at most min(3 √n, n / 3).

    Politis & White (2004), with the correction of Patton, Politis & White (2009): g = Σ λ(k/M) R(k), G = Σ λ(k/M) |k| R(k)
    over lags -M … M, R the autocovariance, λ(t) = min(1, 2 (1 - |t|)), M twice the lag beyond which QUIET
    autocorrelations in a row are below 2 √(log10 n / n).
    """
    n = len(series)
    series = series - series.mean()
    longest, most = math.isqrt(n - 1) + 1, math.ceil(min(3 * math.sqrt(n), n / 3))
    covariances = [float(series @ series) / n]
    if covariances[0] == 0:
        return 1
    bound, quiet = 2 * math.sqrt(math.log10(n) / n) * covariances[0], 0
    while quiet < QUIET and len(covariances) <= min(longest + QUIET, n - 1):
        lag = len(covariances)
        covariances.append(float(series[lag:] @ series[:-lag]) / n)
        quiet = quiet + 1 if abs(covariances[-1]) < bound else 0
    reach = min(2 * max(1, len(covariances) - 1 - quiet), longest)
    for lag in range(len(covariances), reach + 1):
        covariances.append(float(series[lag:] @ series[:-lag]) / n)
    lags = np.arange(1, reach + 1)
    tapered = np.minimum(1, 2 * (1 - lags / reach)) * np.array(covariances[1 : reach + 1])
    spectrum, slope = covariances[0] + 2 * tapered.sum(), 2 * (lags * tapered).sum()
    if spectrum <= 0:
        return most
    return min(most, max(1, round(float(np.cbrt(1.5 * slope**2 / spectrum**2 * n)))))


def _at_most(cells: Cells, most: int) -> Cells:
    """Neighbours added up, as few as needed."""
    each = -(-len(cells.sums) // most)
    starts = np.arange(0, len(cells.sums), each)
    return cells if each == 1 else Cells(*(np.add.reduceat(row, starts) for row in cells))


def _circular(row: Series, size: int) -> Series:
    """Σ of `size` neighbours from each place on, the end joined to the start: (n,)."""
    running: Series = np.concatenate([[0.0], np.cumsum(np.concatenate([row, row[:size]]))])
    return running[size : size + len(row)] - running[: len(row)]
