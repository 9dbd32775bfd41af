"""Keep-masks by position: any part of one is what NumPy's own stream, drawn from its beginning, has there."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.arrays import random_stream
from refimpl.config import ModelConfig
from refimpl.inputs import keep_masks
from refimpl.layers import dropout
from refimpl.masks import SKIPPED, TOGETHER, Mask, drawn

SHAPE = (3, 5, 7)
LONG = SKIPPED + 100


def mask(shape=SHAPE, rate=0.3, rows=2):
    return Mask(seed=9, name="a.b", update=4, first_row=6, rows=rows, shape=shape, rate=rate)


def plain(shape, rate=0.3, row=0):
    return random_stream(9, "dropout a.b", 4, 6 + row).random(shape, "float32") >= rate


def test_an_updates_masks_begin_with_the_batchs_first_row():
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, span=3, memory=2, dropout=0.3, embedding_dropout=0.2)
    assert keep_masks(config, 3, 4, 7, 2) == keep_masks(config, 3, 4, 7, 2, first_row=0)
    assert {mask.first_row for mask in keep_masks(config, 3, 4, 7, 2).values()} == {0}


@pytest.mark.parametrize("rate", [0.0, 1e-8, 0.1, 0.25, 0.3, 0.5, 1 / 3, 0.9, 1 - 2**-24])
def test_a_row_is_the_stream_of_its_seed_name_update_and_number(rate):
    shape = (50, 41)
    whole = mask(shape, rate, rows=3).whole(np.empty(0))
    np.testing.assert_array_equal(whole, [plain(shape, rate, row) for row in range(3)])
    assert whole.dtype == bool


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_part_is_that_of_the_whole_wherever_it_begins(first, count):
    row = mask().row(1)
    expected = plain(500, row=1)
    np.testing.assert_array_equal(row.part(first, count), expected[first : first + count])
    np.testing.assert_array_equal(row.part(0, 500), expected)  # what was drawn before moves nothing


@given(st.integers(0, 2), st.integers(0, 4), st.integers(1, 5), st.integers(0, 7))
@example(2, 0, 5, 7)
def test_slots_are_the_first_of_each_query(head, first, queries, count):
    queries = slice(first, min(first + queries, 5))
    expected = plain(SHAPE)[head, queries, :count]
    np.testing.assert_array_equal(mask().row(0).slots(head, queries, count), expected, strict=True)


@pytest.mark.parametrize(("length", "count"), [
    (LONG, LONG), (LONG, 100), (LONG, 99), (LONG, 1), (TOGETHER // 3, TOGETHER // 3), (TOGETHER + 1, TOGETHER + 1),
    (TOGETHER + 1, 5), (TOGETHER // 2, TOGETHER // 2 - SKIPPED),
])
def test_slots_of_long_rows_are_drawn_by_themselves_or_several_queries_together(length, count):
    shape = (2, 7, length)
    found = mask(shape).row(0).slots(1, slice(2, 7), count)
    np.testing.assert_array_equal(found, plain(shape)[1, 2:7, :count], strict=True)


def test_dropout_draws_a_mask_and_takes_an_array_or_none_as_it_is():
    x, keep = np.random.default_rng(0).standard_normal((2, *SHAPE)), mask().whole(np.empty(0))
    for given_mask in (mask(), keep):
        y, saved = dropout.forward(x, given_mask, 0.3)
        np.testing.assert_array_equal(y, x * keep / 0.7)
        np.testing.assert_array_equal(dropout.backward(x, saved), y)
    assert drawn(keep, x) is keep
    assert drawn(None, x) is None
