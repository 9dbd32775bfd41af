"""Memory kept from update to update: the same bits as without, no array overwrites another, nothing is kept for nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from allocations import sizes_allocated
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from refimpl import arena, model, optimizers, parameters, training
from refimpl.arena import Arena, Lent, lent, returned
from refimpl.arrays import map_in_threads
from refimpl.config import ModelConfig, TrainConfig

LARGE = 100_000  # elements, more than SMALLEST bytes
CONFIG = ModelConfig(vocabulary=40, width=64, heads=4, layers=2, span=150, memory=20, span_ramp=8, span_penalty=1e-3,
                     span_initial=0.3)
TRAIN = TrainConfig(optimizer="adagrad", learning_rate=0.05, clip=0.03, clip_each=True, batch=4, block=100, workers=2)
FORMS = [{}, {"normalizer_epsilon": 1e-8}, {"norm": "pre", "dropout": 0.2, "embedding_dropout": 0.1},
         {"memory": 0, "feed_forward": 30, "zero_past": True}, {"variant": "attention-split"},
         {"positions": "transformer-xl"}, {"cutoffs": (10, 20), "divisor": 2, "tie_tables": True, "tie_projections": True}]


def blocks(of):
    """How many blocks of each size no array stands in."""
    return {size: len(free) for size, free in of._free.items() if free}


def numbers(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def trained(config, train, kept, updates=4):
    """What some updates leave and tell, in an arena or without."""
    p, text = parameters.initialize(config, 0, "float32"), np.random.default_rng(1)
    state, results = optimizers.initialize(train, p), []
    past = model.initial_past(config, train.batch, p.vector)
    for _ in range(updates):
        tokens = text.integers(0, config.vocabulary, (train.batch, train.block + 1))
        if kept is None:
            results.append(training.update(p, state, config, train, tokens[:, :-1], tokens[:, 1:], past))
        else:
            with kept:
                results.append(training.update(p, state, config, train, tokens[:, :-1], tokens[:, 1:], past))
        past = results[-1].past
    return p, state, results


@pytest.mark.parametrize("attention", ["tiled", "textbook"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_update_gives_the_same_bits_and_its_results_last(form, attention):
    config, train = replace(CONFIG, **form), replace(TRAIN, attention=attention)
    kept = Arena()
    p, state, results = trained(config, train, kept)
    other_p, other_state, expected = trained(config, train, None)
    np.testing.assert_array_equal(p.vector, other_p.vector)
    for name, accumulator in state.accumulators.items():
        np.testing.assert_array_equal(accumulator.vector, other_state.accumulators[name].vector)
    for result, other in zip(results, expected, strict=True):  # those of early updates have seen later ones
        assert type(result.past) is np.ndarray
        np.testing.assert_array_equal(result.past, other.past)
        assert (result.loss, result.gradient_norm, result.span_penalty) == (
            other.loss, other.gradient_norm, other.span_penalty)
    assert blocks(kept)


def test_the_second_update_needs_no_new_memory(monkeypatch):
    made = []
    counting = {**vars(np), "empty": lambda *given: made.append(given) or np.empty(*given)}
    monkeypatch.setattr(arena, "np", SimpleNamespace(**counting))
    kept, config = Arena(), replace(CONFIG, span_initial=1.0, span_penalty=0.0)
    past = np.zeros((2, 4, 150, 64), "float32")
    p = parameters.initialize(config, 0, "float32")
    state = optimizers.initialize(TRAIN, p)
    tokens = np.random.default_rng(0).integers(0, 40, (4, 101))
    counts = []
    for _ in range(4):
        made.clear()
        with kept:
            past = training.update(p, state, config, replace(TRAIN, workers=1), tokens[:, :-1], tokens[:, 1:], past).past
        counts.append(len([shape for shape, dtype in made if dtype is np.uint8]))
    assert counts[0] > 20
    assert counts[2:] == [0, 0]  # the second keeps the first one's past, which is the second's own


def test_later_updates_leave_numpy_little_to_allocate():
    """Told by NumPy's own memory handler, whoever asks it: only the embedded tokens are left."""
    config, train = replace(CONFIG, span_initial=1.0), replace(TRAIN, workers=1, attention="tiled")
    past = np.zeros((2, 4, 150, 64), "float32")
    p, kept = parameters.initialize(config, 0, "float32"), Arena()
    state, tokens, counts = optimizers.initialize(train, p), np.random.default_rng(0).integers(0, 40, (4, 301)), []
    for _ in range(4):
        with sizes_allocated() as sizes, kept:
            past = training.update(p, state, config, train, tokens[:, :-1], tokens[:, 1:], past).past
        counts.append(sum(size > arena.SMALLEST for size in sizes))
    assert counts[0] > 30
    assert counts[2:] == [1, 1]


def test_a_reshape_that_copies_does_so_in_the_arena():
    kept, x = Arena(), lent(numbers(1000, 200))
    with kept:
        view = x.reshape(200, 1000)
        assert np.shares_memory(view, x)
        assert np.shares_memory(x[:, 100:].reshape(10, 100, 100), x)
        assert not blocks(kept)
        copy = x[:, 100:].reshape(-1)
        assert isinstance(copy, Lent)
        assert not np.shares_memory(copy, x)
        del copy
        assert sum(blocks(kept).values()) == 1
        with pytest.raises(ValueError, match="cannot reshape"):
            x[:, 100:].reshape(7, -1)


def test_a_block_comes_back_with_the_last_view_of_its_array():
    kept, x = Arena(), lent(numbers(LARGE))
    with kept:
        view = (x + 1).reshape(10, -1)[2:5].T
        assert not blocks(kept)
        plain = np.asarray(view)[3:, 1]
        del view
        assert not blocks(kept)
        expected = plain.copy()
        others = [x * number for number in range(3)]
        np.testing.assert_array_equal(plain, expected)
        del plain
        assert sum(blocks(kept).values()) == 1
        another = x - 1
        assert not blocks(kept)
        del others, another
        assert sum(blocks(kept).values()) == 4


def test_blocks_that_a_use_did_not_need_are_given_back(monkeypatch):
    monkeypatch.setattr(arena, "PATIENCE", 1)
    kept, x = Arena(), lent(numbers(LARGE))
    with kept:
        held = [x + number for number in range(5)]
        del held
    assert sum(blocks(kept).values()) == 5
    with kept:
        held = [x + number for number in range(2)]
        del held
        held = [x + number for number in range(3)]
        held.append(x[: LARGE // 2] + 1)
        del held
    assert sorted(blocks(kept).values()) == [1, 3]
    with kept:
        pass
    assert not blocks(kept)


def test_blocks_that_many_uses_did_not_need_are_given_back():
    kept, x, held = Arena(), lent(numbers(LARGE)), []
    for number in range(arena.PATIENCE + 1):
        with kept:
            held = [x + number for number in range(5 if number < 2 else 1)]
            held.clear()
        assert sum(blocks(kept).values()) == 5
    for number in range(arena.PATIENCE):
        with kept:
            held = [x + number for number in range(3 if number == 4 else 1)]
            held.clear()
        assert sum(blocks(kept).values()) == (5 if number < arena.PATIENCE - 2 else 3)


def test_sizes_that_change_a_little_share_a_block():
    kept, x = Arena(), lent(numbers(LARGE))
    for length in (LARGE, LARGE - 1000, LARGE - 1500):
        with kept:
            x[:length] * 2
        assert sum(blocks(kept).values()) == 1


@given(st.integers(1, 1 << 40))
def test_a_block_is_an_eighth_larger_at_most(size):
    rounded = arena._rounded(size + 100)
    assert size + 100 <= rounded <= (size + 100) * 9 / 8
    assert arena._rounded(rounded) == rounded


def test_without_an_arena_and_below_its_size_numpy_allocates():
    kept, x = Arena(), lent(numbers(LARGE))
    assert isinstance(x + 1, Lent)
    with kept:
        assert isinstance(x[:10] + 1, Lent)
        np.empty_like(x, shape=(arena.SMALLEST // 8 - 1,))
        assert not blocks(kept)
        np.empty_like(x, shape=(arena.SMALLEST // 8,))
        assert sum(blocks(kept).values()) == 1
    x + 1
    assert sum(blocks(kept).values()) == 1


def test_one_arena_at_a_time_and_none_after_an_error():
    kept, x = Arena(), lent(numbers(LARGE))
    with kept, pytest.raises(RuntimeError, match="arena: expected one at a time"), Arena():
        pass
    with pytest.raises(ZeroDivisionError), kept:
        raise ZeroDivisionError
    x + 1
    assert not blocks(kept)


OPERATIONS = {
    "add": lambda x, y: x + y, "scalar": lambda x, y: 2 * x - 1, "power": lambda x, y: x**2,
    "compare": lambda x, y: x > y, "row": lambda x, y: x * y[..., :1],
    "column of one": lambda x, y: x.mean(-1, keepdims=True) - x, "turned": lambda x, y: x.T * y.T,
    "turned with whole": lambda x, y: x * np.ascontiguousarray(y.T).T, "product": lambda x, y: x @ y.T,
    "product of stacks": lambda x, y: x.reshape(4, -1, x.shape[-1]) @ y.T, "product with a vector": lambda x, y: x @ y[0],
    "vectors": lambda x, y: x[0] @ y[0], "in place": lambda x, y: np.add(x, y, out=x), "sum": lambda x, y: x.sum(0),
    "total": lambda x, y: x.sum(), "max": lambda x, y: x.max(-1), "accumulate": lambda x, y: np.add.accumulate(x, 0),
    "outer": lambda x, y: np.add.outer(x, y[0, :3]), "two results": lambda x, y: np.divmod(x, 2)[1],
    "dtype": lambda x, y: np.add(x, y, dtype="longdouble"), "where": lambda x, y: np.where(x > 0, x, y),
    "concatenate": lambda x, y: np.concatenate([x[:, 2:], y], axis=1),
    "concatenate flat": lambda x, y: np.concatenate([x, y]), "zeros": lambda x, y: np.zeros_like(x),
    "zeros of a shape": lambda x, y: np.zeros_like(x, shape=(300, 400)), "full": lambda x, y: np.full_like(x, 3),
    "empty order": lambda x, y: np.empty_like(x.T, order="K") * 0, "vecdot": lambda x, y: np.vecdot(x, y),
    "clip": lambda x, y: x.clip(0, 1), "at": lambda x, y: (np.add.at(x, [0, 1, 1], y[:3]), x)[1],
    "another dtype": lambda x, y: x * y.astype("float32"), "integers": lambda x, y: np.zeros_like(x, np.int64) + 1,
    "complex": lambda x, y: x * 1j, "reshaped part": lambda x, y: x[:, 2:].reshape(-1),
    "reshaped turn": lambda x, y: x.T.reshape(-1, 2), "reshaped by a tuple": lambda x, y: x[:, ::2].reshape((2, -1)),
    "reshaped view": lambda x, y: x[10:].reshape(-1, 2, x.shape[1]),
    "reshaped view of a part": lambda x, y: x[:, 2:].reshape(2, -1, x.shape[1] - 2),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_numpys(name):
    """Bits, dtype and order, of NumPy's own arrays; the arena's memory was full of other numbers before."""
    kept, operation = Arena(), OPERATIONS[name]
    expected = operation(numbers(400, 300), numbers(400, 300, seed=1))
    with kept:
        for number in range(20):
            np.full_like(lent(numbers(400, 300)), number)
        dirty = [lent(numbers(400 + 40 * number, 300)) * 7 for number in range(5)]
        del dirty
        found = operation(lent(numbers(400, 300)), lent(numbers(400, 300, seed=1)))
    np.testing.assert_array_equal(returned(found), expected)
    assert np.asarray(found).dtype == np.asarray(expected).dtype
    assert np.asarray(found).strides == np.asarray(expected).strides


@given(npst.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), st.sampled_from(["float32", "float64"]))
def test_shapes_and_dtypes_are_numpys(shapes, dtype):
    first, second = (numbers(*shape, dtype=dtype) for shape in shapes.input_shapes)
    with pytest.MonkeyPatch.context() as patch, Arena():
        patch.setattr(arena, "SMALLEST", 8)
        for found, expected in ((lent(first) * second, first * second), (second - lent(first), second - first)):
            np.testing.assert_array_equal(returned(found), expected)
            assert found.dtype == expected.dtype


@given(npst.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=4, max_side=4))
def test_products_are_numpys(shapes):
    first, second = (numbers(*shape) for shape in shapes.input_shapes)
    with pytest.MonkeyPatch.context() as patch, Arena():
        patch.setattr(arena, "SMALLEST", 8)
        np.testing.assert_array_equal(returned(lent(first) @ second), first @ second)


def test_threads_take_blocks_side_by_side():
    """A block is one thread's alone: sums of what many threads compute at once are right."""
    kept, x, failed = Arena(), lent(numbers(LARGE)), []

    def work(number):
        for _ in range(200):
            y = x * number
            z = y + number
            if not (np.asarray(z)[::997] == np.asarray(x)[::997] * number + number).all():
                failed.append(number)

    with kept:
        map_in_threads(work, list(range(6)), 6)
    assert not failed
    assert blocks(kept)


def test_an_array_that_is_not_lent_stays_what_it_is():
    x = numbers(3)
    assert returned(x) is x
    assert returned(1.5) == 1.5
    assert type(returned(lent(x))) is np.ndarray
    assert np.shares_memory(returned(lent(x)), x)
