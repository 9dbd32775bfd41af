"""Segments: the first ones by hand, the rest as properties of any text."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refimpl.datasets.batches import Batches, every_token_once, published_blocks
from refimpl.errors import InputError


def taken(batches, count):
    return [(segment.tokens.tolist(), segment.targets.tolist(), segment.restart)
            for _, segment in zip(range(count), batches, strict=False)]


def test_the_first_pass_by_hand():
    first, second, third = taken(Batches(np.arange(21, dtype=np.uint8), 2, 4, 0), 3)
    assert first == ([[0, 1, 2, 3], [10, 11, 12, 13]], [[1, 2, 3, 4], [11, 12, 13, 14]], True)
    assert second == ([[4, 5, 6, 7], [14, 15, 16, 17]], [[5, 6, 7, 8], [15, 16, 17, 18]], False)
    assert third[2]
    assert third[0][0][0] in range(4)


def test_a_row_that_ends_with_its_segment_is_used_whole():
    batches = Batches(np.arange(9), 1, 4, 0)
    assert [restart for _, _, restart in taken(batches, 3)] == [True, False, True]
    assert batches.state()["passes"] == 1


@given(st.integers(1, 4), st.integers(1, 7), st.integers(0, 30), st.integers(0, 5))
@settings(derandomize=True, deadline=None)
@example(1, 1, 0, 0)
def test_segments_of_any_text(batch, block, more, seed):
    n = batch * (block + 1) + more
    length = n // batch
    tokens, targets, restarts = zip(*taken(Batches(np.arange(n, dtype=np.uint16), batch, block, seed), 40), strict=True)
    tokens, targets = np.array(tokens), np.array(targets)
    assert (targets == tokens + 1).all()
    assert (tokens // length == np.arange(batch)[:, None]).all()
    assert (targets // length == np.arange(batch)[:, None]).all()
    assert (tokens == tokens[:, :1, :1] + np.arange(block) + length * np.arange(batch)[:, None]).all()
    starts = tokens[:, 0, 0]
    assert restarts[0]
    assert starts[0] == 0
    for before, start, restart in zip(starts, starts[1:], restarts[1:], strict=False):
        assert restart == (length - (before + block) < block + 1)
        assert start < block if restart else start == before + block


def offsets(length, block, seed, batch=1):
    segments = taken(Batches(np.arange(batch * length), batch, block, seed), 300)
    return [tokens[0][0] for tokens, _, restart in segments if restart][1:]


def test_restarts_reach_every_offset_that_leaves_room():
    assert set(offsets(40, 5, 0)) == {0, 1, 2, 3, 4}
    assert set(offsets(8, 5, 0)) == {0, 1, 2}
    assert set(offsets(6, 5, 0)) == {0}


def test_offsets_depend_on_seed_and_pass_alone():
    assert offsets(40, 5, 0)[:12] == offsets(97, 5, 0, batch=3)[:12]
    assert offsets(40, 5, 0)[:12] != offsets(40, 5, 1)[:12]


@given(st.integers(0, 25), st.integers(0, 9))
@settings(derandomize=True, deadline=None)
def test_restored_batches_go_on_as_the_first_would_have(before, seed):
    text = np.arange(47) % 11
    first, second = Batches(text, 2, 5, seed), Batches(text, 2, 5, seed)
    taken(first, before)
    taken(second, 3)
    state = first.state()
    assert all(type(value) is int for value in state.values())
    second.restore(state)
    assert taken(second, 20) == taken(first, 20)


@pytest.mark.parametrize("state", [{}, {"position": 1}, {"position": 23, "passes": 0}, {"position": -1, "passes": 0},
                                   {"position": 0, "passes": -1}, {"position": 0.0, "passes": 0}])
def test_states_that_cannot_be(state):
    batches = Batches(np.arange(47), 2, 5, 0)
    with pytest.raises(InputError, match=r"state: expected position in \[0, 23\) and passes"):
        batches.restore(state)
    assert batches.state() == {"position": 0, "passes": 0}


def test_texts_too_short_for_a_batch():
    Batches(np.arange(18), 3, 5, 0)
    message = r"text of 17 tokens: expected at least batch × \(block \+ 1\) = 3 × 6 = 18, got 17"
    with pytest.raises(InputError, match=message):
        Batches(np.arange(17), 3, 5, 0)
    with pytest.raises(InputError, match=r"text of 15 tokens: expected at least streams .* = 16, got 15"):
        published_blocks(np.arange(15), 4, 3)
    with pytest.raises(InputError, match="expected 2 tokens or more, got 1"):
        every_token_once(np.arange(1), 4, 3)


@pytest.mark.parametrize("make", [lambda *sizes: Batches(*sizes, 0), every_token_once, published_blocks])
def test_sizes_that_cannot_be(make):
    with pytest.raises(InputError, match=r"(batch|streams): expected 1 or more, got 0"):
        make(np.arange(9), 0, 1)
    with pytest.raises(InputError, match="block: expected 1 or more, got -1"):
        make(np.arange(9), 1, -1)
    with pytest.raises(InputError, match=r"tokens: expected shape \(n,\), got \(3, 3\)"):
        make(np.arange(9).reshape(3, 3), 1, 1)


def test_every_token_once_by_hand():
    assert taken(every_token_once(np.arange(12), 3, 2), 9) == [  # 11 targets: rows of 4, 4 and 3
        ([[0, 1], [4, 5], [8, 9]], [[1, 2], [5, 6], [9, 10]], True),
        ([[2], [6], [10]], [[3], [7], [11]], False),
        ([[3], [7]], [[4], [8]], False)]
    assert taken(every_token_once(np.arange(3), 8, 5), 9) == [([[0], [1]], [[1], [2]], True)]


@given(st.integers(2, 120), st.integers(1, 12), st.integers(1, 9))
@settings(derandomize=True, deadline=None)
def test_every_target_is_scored_once(n, streams, block):
    seen, rows, ends = [], min(streams, n - 1), {}
    for number, segment in enumerate(every_token_once(np.arange(n, dtype=np.uint8), streams, block)):
        assert segment.tokens.shape == segment.targets.shape
        assert segment.tokens.dtype == segment.targets.dtype == np.int64
        assert len(segment.tokens) <= rows
        assert 1 <= segment.tokens.shape[1] <= block
        assert segment.restart == (number == 0)
        assert (segment.targets == segment.tokens + 1).all()
        for row, (first, last) in enumerate(segment.tokens[:, [0, -1]].tolist()):
            assert first == ends.get(row, first - 1) + 1
            ends[row] = last
        rows = len(segment.tokens)
        seen += segment.targets.ravel().tolist()
    assert sorted(seen) == list(range(1, n))


def test_published_blocks_by_hand():
    assert taken(published_blocks(np.arange(13), 2, 2), 9) == [  # rows of 6: two blocks, 5 and 11 and 12 are dropped
        ([[0, 1], [6, 7]], [[1, 2], [7, 8]], True),
        ([[2, 3], [8, 9]], [[3, 4], [9, 10]], False)]


def test_published_blocks_drop_1857_tokens_of_wikitext_103():
    segments = list(published_blocks(np.arange(245_569, dtype=np.int32), 8, 256))
    assert 245_569 - sum(segment.targets.size for segment in segments) == 1_857
    assert segments[0].tokens[:, 0].tolist() == [row * 30_696 for row in range(8)]


@pytest.mark.parametrize("make", [lambda text: Batches(text, 2, 3, 0), lambda text: every_token_once(text, 2, 3),
                                  lambda text: published_blocks(text, 2, 3)])
def test_segments_of_a_mapped_text_are_copies(tmp_path, make):
    (tmp_path / "text").write_bytes(bytes(range(40)))
    segment = next(iter(make(np.memmap(tmp_path / "text", np.uint8, "r"))))
    for array in (segment.tokens, segment.targets):
        assert type(array) is np.ndarray
        assert array.dtype == np.int64
        assert array.flags.c_contiguous
        array[0, 0] = 99
