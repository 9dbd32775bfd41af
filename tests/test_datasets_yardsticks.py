"""Count models against a worked example, a slow model of dictionaries, and the laws of probability."""

import math
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.config import DataConfig
from refimpl.datasets import yardsticks as module
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.yardsticks import count_model_bits, yardsticks
from refimpl.errors import InputError

SHORT_TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def slow_bits(train, valid, size, order):
    followers = defaultdict(Counter)
    for end in range(len(train)):
        for start in range(max(0, end - order), end + 1):
            followers[tuple(train[start:end])][train[end]] += 1

    def chance(context, token):
        if context is None:
            return 1 / size
        shorter = chance(context[1:] if context else None, token)
        seen = followers.get(context)
        return shorter if seen is None else (seen[token] + len(seen) * shorter) / (seen.total() + len(seen))

    bits = [-math.log2(chance(tuple(valid[max(0, i - order):i]), token)) for i, token in enumerate(valid)]
    return sum(bits) / len(bits)


def test_a_worked_example():
    train, valid = np.array([0, 0, 1]), np.array([0, 1, 0])
    # order 0: n = (2, 1), t = 2: P(0) = (2 + 2/2) / 5, P(1) = 2/5; after 0: n = (1, 1), t = 2; after 1: never seen
    for order, chances in enumerate([(3 / 5, 2 / 5, 3 / 5), (3 / 5, (1 + 2 * 2 / 5) / 4, 3 / 5)]):
        expected = -sum(map(math.log2, chances)) / 3
        assert count_model_bits(train, valid, 2, order) == pytest.approx(expected, rel=1e-14)


@given(SHORT_TEXTS, SHORT_TEXTS, st.integers(0, 5), st.integers(4, 9))
@settings(derandomize=True, deadline=None)
def test_against_a_slow_model(train, valid, order, size):
    bits = count_model_bits(np.array(train, np.uint8), np.array(valid, np.uint8), size, order)
    assert bits == pytest.approx(slow_bits(train, valid, size, order), rel=1e-12)


def test_counts_merged_from_parts(monkeypatch):
    train, valid = (np.random.default_rng(seed).integers(0, 5, 700).astype(np.uint8) for seed in (1, 2))
    monkeypatch.setattr(module, "SORTED_AT_ONCE", 10)
    expected = slow_bits(train.tolist(), valid.tolist(), 5, 3)
    assert count_model_bits(train, valid, 5, 3) == pytest.approx(expected, rel=1e-12)


@given(SHORT_TEXTS, SHORT_TEXTS, st.integers(0, 4))
@settings(derandomize=True, deadline=None)
def test_chances_after_any_context_sum_to_one(train, context, order):
    def total_bits(text):
        return len(text) * count_model_bits(np.array(train), np.array(text), 4, order)

    known = total_bits(context)
    assert sum(2 ** (known - total_bits([*context, token])) for token in range(4)) == pytest.approx(1, rel=1e-9)


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the sample is another text in other Python versions")
def test_the_sample_of_python_3_11(tmp_path):
    corpus = open_corpus(DataConfig(), Path(tmp_path))
    if corpus.sha256 != "2a95af4ac93f5b719944030ce3769070ddf827d847cba42192afa8da989e5dc4":
        pytest.skip("the sample is another text in other Python versions")
    figures = yardsticks(corpus.train, corpus.valid, 256)
    assert list(figures) == ["order-1 count model", "order-2 count model", "order-4 count model"]
    assert list(figures.values()) == pytest.approx([3.4268, 2.55495, 2.05215], abs=1e-5)
    assert count_model_bits(corpus.train, corpus.valid, 256, 0) == pytest.approx(4.7544, abs=1e-4)


def test_only_orders_that_fit():
    text = np.array([0, 1, 1, 2])
    assert list(yardsticks(text, text, 267_735)) == ["order-1 count model", "order-2 count model"]
    assert yardsticks(text, text, 1 << 40) == {}
    assert yardsticks(text, text, 3)["order-2 count model"] == count_model_bits(text, text, 3, 2)
    assert count_model_bits(text, text, 4, 30) == pytest.approx(slow_bits(text.tolist(), text.tolist(), 4, 30))


@pytest.mark.parametrize(("train", "valid", "size", "order", "message"), [
    ([0], [0], 4, 31, r"order: expected 0 or more, and 4\^\(order \+ 1\) within 62 bits, got 31"),
    ([0], [0], 2, 62, "order: expected 0 or more"),
    ([0], [0], 4, -1, "order: expected 0 or more"),
    ([0], [0], 0, 1, "order: expected 0 or more"),
    ([4], [0], 4, 1, r"train: expected tokens in \[0, 4\), got 4 to 4"),
    ([0], [1, -1], 4, 1, r"valid: expected tokens in \[0, 4\), got -1 to 1"),
    ([], [0], 4, 1, r"train: expected \(n,\) tokens, n of 1 or more, got shape \(0,\)"),
    ([0], [], 4, 1, r"valid: expected \(n,\) tokens"),
    ([[0]], [0], 4, 1, r"train: expected \(n,\) tokens, .* got shape \(1, 1\)"),
])
def test_what_cannot_be_counted(train, valid, size, order, message):
    with pytest.raises(InputError, match=message):
        count_model_bits(np.array(train, int), np.array(valid, int), size, order)
