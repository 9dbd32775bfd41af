"""Intervals of a mean: cells in the text's order, blocks as long as the rule says, and the coverage that 95 % promises."""

import math
import statistics

import numpy as np
import pytest

from refimpl import intervals
from refimpl.intervals import Cells, cells_of, in_text_order, interval


def series(cells):
    return Cells(np.asarray(cells, float), np.ones(len(cells)))


def autoregressive(share, length, rng):
    """x_t = share x_(t-1) + noise, from its stationary distribution on: mean 0."""
    x = [rng.standard_normal() / math.sqrt(1 - share**2)]
    for noise in rng.standard_normal(length - 1):
        x.append(share * x[-1] + noise)
    return np.array(x)


def test_cells_are_sums_of_neighbours_in_the_order_of_the_text():
    """Three rows of 40 tokens in segments of 18, then 4 more; and a first row with one token more."""
    text = np.random.default_rng(0).random(3 * 40 + 1)
    rows = [text[:41], text[41:81], text[81:]]
    bounds = [(0, 18), (18, 36), (36, 40)]
    segments = [cells_of(np.array([row[low:high] for row in rows])) for low, high in bounds]
    segments.append(cells_of(rows[0][None, 40:]))
    found = in_text_order(segments)
    expected = []
    for row in rows:
        for low, high in [*bounds, (40, len(row))]:
            pieces = [list(row[low:high])[i : i + 16] for i in range(0, high - low, 16)]
            expected += [(math.fsum(piece), len(piece)) for piece in pieces]
    assert list(found.counts) == [count for _, count in expected]
    assert found.sums == pytest.approx([value for value, _ in expected], rel=1e-14)


def test_a_long_text_costs_a_sixteenth_of_its_tokens():
    kept = in_text_order([cells_of(np.zeros((8, 4096), np.float32)) for _ in range(10)])
    assert (kept.sums.nbytes + kept.counts.nbytes) / (10 * 8 * 4096) == 2 * 8 / 16


def test_sums_of_float32_losses_are_in_float64():
    loss = np.full((1, 16), np.float32(1) + np.float32(2**-23))
    assert cells_of(loss).sums[0, 0] == 16 * (1 + 2.0**-23)


@pytest.mark.parametrize("length", [500, 4000])
def test_of_independent_losses_it_is_the_closed_form(length):
    """Mean ± 1.96 s / √n. Blocks of one or two, so a variance off by ten per cent at most beside the drawing's own noise."""
    x = np.random.default_rng(3).gamma(2.0, size=length)
    found = interval(series(x))
    half = statistics.NormalDist().inv_cdf(0.975) * x.std() / math.sqrt(length)
    assert found.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(x.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize(("share", "length", "least"), [(0.0, 400, 0.92), (0.6, 1000, 0.90), (0.85, 3000, 0.89)])
def test_it_holds_the_mean_as_often_as_it_says(share, length, least):
    """200 series with mean 0: 95 % of the intervals, less what blocks miss of the correlation, ± 3 standard errors of 1.5 %.

    An interval that takes the values as independent covers far less of the correlated ones.
    """
    held = naive = 0
    for seed in range(200):
        x = autoregressive(share, length, np.random.default_rng(seed))
        found = interval(series(x), seed)
        held += found.low <= 0 <= found.high
        naive += abs(x.mean()) <= 1.96 * x.std() / math.sqrt(length)
    assert least <= held / 200 <= 0.99
    assert naive / 200 < 0.75 or share == 0


def test_blocks_are_as_long_as_theory_wants_them():
    """AR(1): G / g = 2 φ / (1 - φ²), so b = (3/2 (2 φ / (1 - φ²))² n)^(1/3); the estimate is within a factor of 1.5."""
    for share in (0.5, 0.8):
        expected = (1.5 * (2 * share / (1 - share**2)) ** 2 * 20_000) ** (1 / 3)
        found = [intervals.block_length(autoregressive(share, 20_000, np.random.default_rng(seed))) for seed in range(5)]
        assert expected / 1.5 < statistics.median(found) < expected * 1.5
    assert intervals.block_length(np.random.default_rng(0).standard_normal(20_000)) <= 8


def test_the_rule_by_plain_loops():
    """Politis & White's steps, one sum at a time."""
    x = list(autoregressive(0.7, 300, np.random.default_rng(1)))
    n, mean = len(x), math.fsum(x) / len(x)
    r = [math.fsum((x[i] - mean) * (x[i + k] - mean) for i in range(n - k)) / n for k in range(60)]
    small = [abs(r[k] / r[0]) < 2 * math.sqrt(math.log10(n) / n) for k in range(60)]
    m = next(k for k in range(40) if all(small[k + 1 : k + 6]))
    taper = [min(1, 2 * (1 - k / (2 * m))) for k in range(2 * m + 1)]
    g = math.fsum(taper[abs(k)] * r[abs(k)] for k in range(-2 * m, 2 * m + 1))
    slope = math.fsum(taper[abs(k)] * abs(k) * r[abs(k)] for k in range(-2 * m, 2 * m + 1))
    assert intervals.block_length(np.array(x)) == round((2 * slope**2 / (4 / 3 * g**2) * n) ** (1 / 3))


def test_means_are_of_whole_blocks_around_the_end(monkeypatch):
    """Blocks of 4 in 11 cells: every resampled mean is one that the definition can give, and there are several."""
    x = np.arange(11.0) ** 2
    monkeypatch.setattr(intervals, "block_length", lambda _: 4)
    monkeypatch.setattr(intervals, "RESAMPLES", 1)
    circle = [*x, *x]
    fours, threes = ([math.fsum(circle[i : i + size]) for i in range(11)] for size in (4, 3))
    possible = np.array([a + b + c for a in fours for b in fours for c in threes]) / 11
    found = [interval(series(x), seed) for seed in range(20)]
    assert all(one.low == one.high and np.abs(possible - one.low).min() < 1e-12 for one in found)
    assert len({one.low for one in found}) > 10
    assert found[0].block == 4


def test_cells_of_unequal_counts_are_weighted():
    """Half the cells hold one token of loss 2, half hold three of loss 1: the mean is 5/4, and it lies within."""
    cells = Cells(np.tile([2.0, 3.0], 100), np.tile([1.0, 3.0], 100))
    found = interval(cells)
    assert found.low <= 1.25 <= found.high
    assert found.high - found.low < 0.1


def test_neighbours_of_a_long_text_are_added_up(monkeypatch):
    x = autoregressive(0.5, 4000, np.random.default_rng(0))
    whole = interval(series(x))
    monkeypatch.setattr(intervals, "CELLS_AT_MOST", 500)
    coarse = interval(series(x))
    assert coarse.low == pytest.approx(whole.low, abs=0.15 * (whole.high - whole.low))
    assert coarse.high == pytest.approx(whole.high, abs=0.15 * (whole.high - whole.low))


def test_the_seed_decides_and_nothing_else():
    x = series(np.random.default_rng(0).random(100))
    assert interval(x, 1) == interval(x, 1) != interval(x, 2)


def test_too_short_a_text_has_none_and_a_constant_one_has_no_width():
    assert interval(series(np.arange(9.0))) is None
    flat = interval(series(np.full(50, 2.0)))
    assert (flat.low, flat.high, flat.block) == (2.0, 2.0, 1)
