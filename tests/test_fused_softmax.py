"""The adaptive softmax in chunks against the textbook's: values, gradients, dtypes, extreme logits, threads, memory."""

import importlib.util
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl import arrays, evaluation, model, parameters, variants
from refimpl.arrays import map_in_threads
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.golden.planted import Bug, Change, planted
from refimpl.layers import adaptive_softmax, attention, fused_softmax, tiled_attention
from refimpl.layers.fused_softmax import CHUNKING, Chunking


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws = sibling("strategies")
assert_close, assert_identical = draws.assert_close, draws.assert_identical


@dataclass(frozen=True)
class Case:
    """Clusters of these sizes and of width 5, 4, 3, …; targets of all words, of the shortlist or of one tail alone."""

    seed: int = 0
    sizes: tuple = (3, 2, 4)
    shape: tuple = (7,)
    order: str = "ascending"
    only: int | None = None
    scale: float = 1.0

    def given(self, dtype="float64"):
        """hidden, targets, weights, order; d_loss."""
        rng, width = draws.stream(self.seed, "fused"), 5
        shapes = [(size, max(1, width - i)) for i, size in enumerate(self.sizes)]
        weights = [rng.standard_normal(shape) for size, narrow in shapes
                   for shape in ((size, narrow), (size,), (width, narrow))]
        tails = len(self.sizes) - 1
        weights += [rng.standard_normal((tails, width)), rng.standard_normal(tails)]
        hidden, d_loss = rng.standard_normal((*self.shape, width)) * self.scale, rng.standard_normal(self.shape)
        bounds = np.cumsum([0, *self.sizes])
        low, high = (0, bounds[-1]) if self.only is None else bounds[self.only : self.only + 2]
        targets = rng.integers(low, high, self.shape)
        hidden, d_loss, *weights = (array.astype(dtype) for array in (hidden, d_loss, *weights))
        return (hidden, targets, gathered(weights), self.order), d_loss


def gathered(arrays):
    """The weights of which these are the arrays."""
    *of_clusters, table, bias = arrays
    return adaptive_softmax.Weights(*(of_clusters[kind::3] for kind in range(3)), table, bias)


def named(loss, d_hidden, d):
    return {"loss": loss, "d_hidden": d_hidden, **{f"weight {i}": array for i, array in enumerate(d.arrays())}}


def pair(module, arguments, d_loss, *chunking):
    loss, saved = module.forward(*arguments, *chunking)
    return named(loss, *module.backward(d_loss, saved))


def with_cotangent(results, d_loss):
    """What gradients that cancel are made of, for their floor."""
    return {**results, "d_loss": d_loss}


def textbook(arguments, d_loss):
    return pair(adaptive_softmax, arguments, d_loss)


def fused(arguments, d_loss, chunking=CHUNKING, start=0):
    """Of the one pass, the weights' gradients added to `start`."""
    d = gathered([np.full_like(array, start) for array in arguments[2].arrays()])
    loss, d_hidden = fused_softmax.loss_and_gradients(*arguments, d_loss, d, chunking)
    return named(loss, d_hidden, d)


@st.composite
def cases(draw):
    sizes = (draw(draws.sizes(4)), *draw(st.lists(st.integers(0, 4), max_size=3)))
    only = draw(st.sampled_from([None, None, *(i for i, size in enumerate(sizes) if size)]))
    shape = draw(st.sampled_from([(1,), (2,), (9,), (2, 3), (0,), (2, 0)]))
    return Case(draw(draws.seeds), sizes, shape, draw(st.sampled_from(["ascending", "reversed"])), only)


chunkings = st.builds(Chunking, st.sampled_from([1, 2, 7, 20, 8_000_000]), st.integers(1, 5), st.integers(1, 3))
FULL, SMALL = Case(1, (3, 2, 0, 4), (2, 6), "reversed"), Chunking(12, 3, 2)


@given(cases(), chunkings)
@example(FULL, SMALL)
@example(FULL, CHUNKING)
@example(replace(FULL, order="ascending"), Chunking(1, 1, 1))
@example(Case(sizes=(1, 1)), SMALL)
@example(Case(sizes=(2,), shape=(1,)), SMALL)
@example(Case(sizes=(3, 0, 0)), SMALL)
@example(replace(FULL, only=0), SMALL)
@example(replace(FULL, only=3), SMALL)
@draws.examples
def test_values_and_gradients_are_the_textbooks(case, chunking):
    arguments, d_loss = case.given()
    expected = with_cotangent(textbook(arguments, d_loss), d_loss)
    assert_close(with_cotangent(pair(fused_softmax, arguments, d_loss, chunking), d_loss), expected)
    added = {name: array + name.startswith("weight") for name, array in expected.items()}
    assert_close(with_cotangent(fused(arguments, d_loss, chunking, start=1), d_loss), added)


def test_results_are_the_same_bits_in_one_pass_or_two_run_after_run_for_any_number_of_threads_and_inside_one():
    arguments, d_loss = replace(FULL, sizes=(300, 100, 0, 200), shape=(100,)).given("float32")
    expected = pair(fused_softmax, arguments, d_loss, Chunking(5000, 4, 1))
    assert_identical(fused(arguments, d_loss, Chunking(5000, 4, 1)), expected)
    for workers in (1, 2, 3, 5):
        assert_identical(pair(fused_softmax, arguments, d_loss, Chunking(5000, 4, workers)), expected)
    for found in map_in_threads(lambda _: pair(fused_softmax, arguments, d_loss, Chunking(5000, 4)), range(3), 2):
        assert_identical(found, expected)


@pytest.mark.parametrize("order", ["ascending", "reversed"])
def test_any_logits_are_safe(order):
    """Rows of logits of order 1e-4 … 1e4 side by side; roundoff grows with the logits."""
    arguments, d_loss = Case(3, (40, 20, 30), (25,), order).given()
    hidden = arguments[0] * 10.0 ** np.resize([-4, 0, 2, 3, 4], 25)[:, None]
    arguments = (hidden, *arguments[1:])
    weights = arguments[2]
    logits = hidden @ weights.projections[0] @ weights.tables[0].T
    largest = np.abs(logits).max()
    assert largest > 1e4
    assert (logits.max(-1) < -700).any() or (logits.max(-1) > 700).any()
    expected = textbook(arguments, d_loss)
    assert_close(fused(arguments, d_loss), expected, draws.RELATIVE * largest / 20, draws.FLOOR * largest / 20)
    single, d_single = tuple(a.astype("float32") if i == 0 else a for i, a in enumerate(arguments)), d_loss.astype("float32")
    single = (single[0], single[1], gathered([array.astype("float32") for array in weights.arrays()]), order)
    assert all(np.isfinite(array).all() for array in fused(single, d_single).values())


def test_float32_stays_within_the_bound_of_its_sums():
    """A sum of n products is off by at most n u times the sum of their sizes. Logits are two such sums of D, one in another;
    weights are off by as much relative to themselves, gradients are sums over words or rows besides."""
    case = Case(5, (60, 30, 40), (50,))
    arguments, d_loss = case.given("float32")
    double = (arguments[0].astype("float64"), arguments[1], gathered([a.astype("float64") for a in arguments[2].arrays()]),
              case.order)
    found, expected = pair(fused_softmax, arguments, d_loss, Chunking(500, 3)), textbook(double, d_loss.astype("float64"))
    hidden, _, weights, _ = double
    logit = max((np.abs(hidden) @ np.abs(projection) @ np.abs(table).T).max()
                for projection, table in zip(weights.projections, weights.tables, strict=True))
    bound = np.finfo("float32").eps / 2 * (2 * 5 * logit + 63 + 50)
    for name, value in expected.items():
        assert found[name].dtype == np.float32, name
        error = np.linalg.norm(found[name] - value) / np.linalg.norm(value)
        assert error <= bound, f"{name}: {error}, expected at most {bound}"


def test_no_array_of_all_rows_by_all_words_and_no_second_table():
    """Peak in bytes, scratch included, beside the gradients themselves; in a new thread, whose scratch is new."""
    rows, words = 600, 10_000
    arguments, d_loss = Case(2, (words, 10), (rows,)).given()
    d = gathered([np.zeros_like(array) for array in arguments[2].arrays()])

    def measured():
        arrays._in_worker.set(True)
        tracemalloc.start()
        try:
            fused_softmax.loss_and_gradients(*arguments, d_loss, d, Chunking(words + 1, 8, 1))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    with ThreadPoolExecutor(1) as pool:
        peak = pool.submit(measured).result()
    assert peak < rows * words * 8 / 200
    assert peak < d.tables[0].nbytes * 0.6


def test_a_chunk_has_as_many_rows_as_its_logits_allow_and_never_none():
    arguments, _ = Case(0, (3, 1, 0, 9), (8,)).given()
    targets = np.array([0, 3, 3, 5, 3, 3, 12, 3])

    def found(logits):
        saved = fused_softmax.Saved(arguments[0], targets, *arguments[2:], Chunking(logits))
        return [(number, chunk.rows.tolist(), chunk.targets.tolist(), chunk.logits.shape)
                for number, chunk in fused_softmax._chunks(saved, "float64")]

    assert found(17) == [
        (0, [0, 1], [0, 3], (2, 6)), (0, [2, 3], [3, 5], (2, 6)), (0, [4, 5], [3, 3], (2, 6)), (0, [6, 7], [5, 3], (2, 6)),
        (1, [1, 2, 4, 5, 7], [0, 0, 0, 0, 0], (5, 1)), (3, [3], [1], (1, 9)), (3, [6], [8], (1, 9))]
    assert [len(rows) for number, rows, *_ in found(3) if number == 1] == [3, 2]
    assert [len(rows) for number, rows, *_ in found(1) if number == 0] == 8 * [1]


def test_tasks_are_nearly_equal_and_threads_as_many_as_asked_for(monkeypatch):
    assert fused_softmax._parts(7, 3) == [slice(0, 2), slice(2, 4), slice(4, 7)]
    assert fused_softmax._parts(0, 1) == [slice(0, 0)]
    asked = set()
    monkeypatch.setattr(fused_softmax, "available_cores", lambda: 7)
    monkeypatch.setattr(fused_softmax, "map_in_threads", lambda function, items, workers: (
        asked.add(workers), map_in_threads(function, items, workers)))
    for chunking, threads in (([], 7), ([Chunking(workers=0)], 7), ([Chunking(workers=3)], 3)):
        pair(fused_softmax, *Case().given(), *chunking)
        assert asked == {threads}
        asked.clear()


def test_targets_may_be_of_a_type_that_does_not_hold_a_clusters_end():
    (hidden, targets, *rest), d_loss = Case(4, (100, 300), (30,), only=0).given()
    expected = textbook((hidden, targets, *rest), d_loss)
    assert_close(fused((hidden, targets.astype("int8"), *rest), d_loss), expected)


@pytest.mark.parametrize(("place", "wrong"), [
    (0, np.zeros((7, 4))), (0, np.zeros((6, 5))), (1, np.full(7, 9)), (1, np.zeros(8, int)), (2, "tables"), (2, "biases"),
])
def test_what_the_textbook_refuses_is_refused(place, wrong):
    arguments, d_loss = Case().given()
    if place == 2:
        lists = [list(arrays) for arrays in arguments[2][:3]]
        index = adaptive_softmax.Weights._fields.index(wrong)
        lists[index][0] = lists[index][0][:-1]
        wrong = adaptive_softmax.Weights(*lists, *arguments[2][3:])
    given = (*arguments[:place], wrong, *arguments[place + 1 :])
    for function in (textbook, fused):
        with pytest.raises((ValueError, IndexError)):
            function(given, d_loss)


@pytest.mark.parametrize("number", [0, 1, 5, 9, 10, 11])
def test_complex_numbers_are_the_textbooks_alone(number):
    (hidden, targets, weights, order), _ = Case().given()
    given = [hidden, *weights.arrays()]
    given[number] = given[number].astype(complex)
    with pytest.raises(InputError, match="expected real NumPy arrays for a pass in chunks, got ndarray of complex128"):
        fused_softmax.forward(given[0], targets, gathered(given[1:]), order)
    assert variants.softmax_core(variants.attention_core("tiled", *given)) is adaptive_softmax


def test_the_choice_is_made_with_the_attentions_and_arrays_on_a_gpu_are_refused():
    assert variants.softmax_core(attention) is adaptive_softmax
    assert variants.softmax_core(tiled_attention) is fused_softmax
    (_, *rest), _ = Case().given()
    on_gpu = type("ndarray", (), {"__module__": "cupy", "dtype": np.dtype("float64")})()
    with pytest.raises(InputError, match="expected real NumPy arrays for a pass in chunks, got ndarray of float64"):
        fused_softmax.forward(on_gpu, *rest)


def unwanted(*_):
    raise AssertionError


def test_training_makes_one_pass_and_evaluation_no_gradient(monkeypatch):
    config = ModelConfig(vocabulary=9, width=4, heads=2, layers=1, span=3, memory=2, cutoffs=(3, 5), divisor=2)
    p, (tokens, targets) = parameters.initialize(config), np.random.default_rng(0).integers(0, 9, (2, 2, 4))
    past = model.initial_past(config, 2, p.vector)
    scored = []
    right = fused_softmax._score
    monkeypatch.setattr(fused_softmax, "_score", lambda loss, chunk: (
        scored.append(len(chunk.rows)), right(loss, chunk)))
    model.loss_and_gradients(p, config, tokens, targets, past, core=tiled_attention)
    assert sum(scored) == 8 + (targets >= 3).sum()
    for wrong in (targets[:, :3], targets - 9):
        with pytest.raises(InputError, match="targets: expected"):
            model.loss_and_gradients(p, config, tokens, wrong, past, core=tiled_attention)
    monkeypatch.setattr(fused_softmax, "_differentiate", unwanted)

    class Block:
        restart = True

    Block.tokens, Block.targets = tokens, targets
    assert evaluation.evaluate(p, config, [Block]).tokens == 8


PLANTS = {
    "a table's gradient overwritten": ("d_block.table[...] += product", "d_block.table[...] = product"),
    "a bias's gradient without its scale": ("scale @ d_logits", "d_logits.sum(0)"),
    "a target's word not taken from Z": ("chunk.targets] -= chunk.total", "chunk.targets] -= 1"),
    "projected scaled twice": ("chunk.projected[...] *= scale[:, None]", "chunk.projected[...] *= scale[:, None] ** 2"),
    "projected gradient not scaled": ("shares.sum(0) * scale[:, None]", "shares.sum(0)"),
    "hidden gradient of the last cluster": ("d_hidden[chunk.rows[here]] += d", "d_hidden[chunk.rows[here]] = d"),
    "projection's gradient of the last chunk": ("d.projection[here] += chunk", "d.projection[here] = chunk"),
    "an empty tail has its share": ("bias[slot - shortlist] = -np.inf", "pass"),
    "slots in order": ("cluster_slots(weights, saved.order)", 'cluster_slots(weights, "ascending")'),
    "the head's loss left out": ("loss[chunk.rows] += np.log", "loss[chunk.rows] = np.log"),
    "the last row or word left out": ("bounds = [count * i //", "bounds = [(count - (count > 2)) * i //"),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_is_caught(name):
    test_values_and_gradients_are_the_textbooks.hypothesis.inner_test(FULL, SMALL)
    bug = Bug(name, "", (), False, (Change("layers.fused_softmax", *PLANTS[name]),))
    with planted(bug), np.errstate(all="ignore"), pytest.raises(AssertionError):
        test_values_and_gradients_are_the_textbooks.hypothesis.inner_test(FULL, SMALL)
