"""The tiled attention against the textbook one: values, gradients, dtypes, extreme logits, threads, memory."""

import importlib.util
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl import arrays, model, parameters
from refimpl.arrays import map_in_threads
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.layers import attention, tiled_attention, tiled_gradients, tiled_logits, tiles
from refimpl.layers.tiles import TILING, Tiling
from refimpl.masks import SKIPPED, Mask


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws, properties = sibling("strategies"), sibling("test_properties_arrays")
Case, examples = draws.AttentionCase, draws.examples
assert_close, assert_identical = draws.assert_close, draws.assert_identical

FULL = Case(seed=1, batch=2, block=5, past=2, size=4, heads=3, width=2, slots=3, ramp=2, spans="random",
            positions="relative", dropout=0.4)
TWO = replace(FULL, batch=5)
KINK = replace(FULL, seed=4, size=8, past=9, spans="kink", positions="transformer-xl", dropout=0.0)
LONG = Case(seed=2, batch=2, block=300, past=40, size=190, heads=2, width=4, slots=70, ramp=8, spans="random",
            positions="relative")
SMALL = Tiling(rows=2, elements=40, workers=2, tasks=4, task=1)
TOGETHER = Tiling(rows=2, elements=300, workers=2, tasks=4, task=200)  # several texts in a block, and several blocks

tilings = st.builds(Tiling, st.sampled_from([1, 2, 3, 128]), st.sampled_from([1, 60, 300_000]), st.integers(1, 3),
                    st.sampled_from([1, 4, 16]), st.sampled_from([1, 150, 150_000]))


def cases(**held):
    return draws.attention_cases(core="all-attention", **held)


def tiled(arguments, options, keep, dy, tiling=TILING, function=tiled_attention.attend):
    """y and every gradient that is there, by name."""
    y, saved = function(arguments, options, *keep, tiling)
    return {"y": y, **present(tiled_attention.backward(dy, saved))}


def textbook(arguments, options, keep, dy):
    y, saved = attention.attend(arguments, options, *keep)
    return {"y": y, **present(attention.backward(dy, saved))}


def present(gradients):
    return {name: array for name, array in gradients._asdict().items() if array is not None}


def of_case(case):
    return case.arguments(), case.options, case.keep(), case.cotangent()


@given(cases(), tilings)
@example(Case(), TILING)
@example(FULL, SMALL)
@example(TWO, TOGETHER)
@example(FULL, Tiling(1, 1, 1, 1, 1))
@example(replace(FULL, epsilon=1e-8), SMALL)
@example(KINK, SMALL)
@example(replace(KINK, epsilon=0.1, slots=0), SMALL)
@example(replace(FULL, past=0, slots=0, attend_self=True, spans="zero", ramp=1), SMALL)
@examples
def test_values_and_gradients_are_the_textbooks(case, tiling):
    arguments, options, keep, dy = of_case(case)
    found = tiled(arguments, options, keep, dy, tiling, tiled_attention.forward)
    assert_close(found, textbook(arguments, options, keep, dy))


def drawn_in_tiles(case):
    """The case's keep-masks as tiles and the textbook draw them."""
    groups, slots, _ = case.memory_shape
    masks = [Mask(case.seed, name, 1, 2, case.batch, (heads, case.block, count), case.dropout)
             for name, heads, count in (("keep", case.heads, case.size), ("memory", groups, slots))]
    return (masks[0], masks[1] if slots else None) if case.dropout else (None, None)


@given(cases(dropout=0.4), tilings)
@example(FULL, SMALL)
@example(replace(FULL, slots=0, past=3), SMALL)
@example(replace(FULL, block=1), Tiling(1, 1, 1, 1, 1))
@example(replace(FULL, spans="zero", size=SKIPPED + 50, past=9), SMALL)
@examples
def test_masks_drawn_in_tiles_are_those_that_the_textbook_draws(case, tiling):
    arguments, options, keep, dy = case.arguments(), case.options, drawn_in_tiles(case), case.cotangent()
    found = tiled(arguments, options, keep, dy, tiling)
    assert_close(found, textbook(arguments, options, keep, dy))
    whole = [None if mask is None else mask.whole(dy) for mask in keep]
    assert_identical(found, tiled(arguments, options, whole, dy, tiling))


FORMS = [
    {}, {"block": 1}, {"block": 129}, {"past": 0}, {"past": 190}, {"past": 500}, {"size": 1}, {"size": 700}, {"slots": 0},
    {"slots": 1}, {"spans": "none"}, {"spans": "zero"}, {"spans": "kink"}, {"spans": "full"}, {"epsilon": 1e-8},
    {"attend_self": True}, {"positions": "none"}, {"positions": "by-head"}, {"positions": "transformer-xl"},
    {"dropout": 0.3}, {"batch": 1, "heads": 1}, {"past": 0, "slots": 0},
    {"past": 0, "slots": 0, "epsilon": 0.1, "dropout": 0.3},
]


@pytest.mark.parametrize("tiling", [TILING, Tiling(48, 9000, 2, 2, 1)], ids=["default", "small"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_many_tiles_are_the_textbook(form, tiling):
    """With past 0 and no slots the first row sees nothing: 0, and no gradient."""
    given = of_case(replace(LONG, **form))
    found, expected = tiled(*given, tiling), textbook(*given)
    assert_close(found, expected)
    if form.get("past") == form.get("slots") == 0:
        assert not found["y"][:, 0].any()
        assert not found["queries"][:, 0].any()


@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_any_logits_are_safe(epsilon):
    """Rows of logits of order 1e-3 … 1e3 side by side; roundoff grows with the logits."""
    case = replace(LONG, epsilon=epsilon, spans="kink")
    arguments, options, keep, dy = of_case(case)
    scale = 10.0 ** np.resize([-3, 0, 1, 2, 3], case.block)[:, None, None]
    arguments = arguments._replace(queries=arguments.queries * scale)
    largest = np.abs(attention.attend(arguments, options)[1].logits).max()
    assert largest > 2000
    expected = textbook(arguments, options, keep, dy)
    assert_close(tiled(arguments, options, keep, dy), expected, draws.RELATIVE * largest / 20, draws.FLOOR * largest / 20)
    single = attention.Arguments(*(None if array is None else array.astype("float32") for array in arguments))
    with np.errstate(all="raise", under="ignore"):
        found = tiled(single, options, keep, dy.astype("float32"))
    assert all(np.isfinite(array).all() for array in found.values())


def foot(dtype, above):
    """z = 1, R = 1: the position at x = 2 has weight 0 and a logit far above all others."""
    rng = np.random.default_rng(3)
    queries, keys, values = rng.standard_normal((3, 1, 3, 1, 2))
    keys = np.concatenate([np.zeros((1, 4, 1, 2)), keys], axis=1)
    values = np.concatenate([rng.standard_normal((1, 4, 1, 2)), values], axis=1)
    queries[0, 0], keys[0, 1] = [0, 0], [0, 0]
    queries[0, 0, 0, 0], keys[0, 1, 0, 0] = above * np.sqrt(2), 1
    given = attention.Arguments(queries, keys, values, rho=np.array([0.25]))
    return attention.Arguments(*(None if array is None else array.astype(dtype) for array in given))


@pytest.mark.parametrize(("dtype", "above"), [("float32", 50), ("float32", 160), ("float64", 160), ("float64", 900)])
def test_a_position_of_weight_0_may_have_any_logit(dtype, above):
    """It moves no row maximum, and its exponential, needed for the span's gradient, is held finite as in the textbook."""
    arguments, options, dy = foot(dtype, above), attention.Options(4, 1), np.ones((1, 3, 1, 2), dtype)
    dy[..., 1] = -0.5
    found, expected = (function(arguments, options, (None, None), dy) for function in (tiled, textbook))
    assert np.abs(expected["rho"]).max() > 1e20
    for name, value in expected.items():
        assert found[name].dtype == dtype
        np.testing.assert_allclose(found[name], value, rtol=300 * np.finfo(dtype).eps * max(above, 1),
                                   atol=1e-5 if dtype == "float32" else 1e-13, err_msg=name)


@given(cases(spans=st.sampled_from(["none", "zero", "full", "random"])), tilings)
@example(FULL, SMALL)
@example(Case(spans="zero"), TILING)
@draws.fewer_examples
def test_float32_is_within_its_bound(case, tiling):
    """27. The bound is that of test_properties_arrays, from the textbook in extended precision. Not at kinks, as there."""
    arguments = {name: array for name, array in case.arguments()._asdict().items() if array is not None}

    def function(dy, *given):
        core = tiled if dy.dtype == np.float32 else textbook
        of_core = attention.Arguments(**dict(zip(arguments, given, strict=True)))
        return core(of_core, case.options, case.keep(), dy, *([tiling] if core is tiled else []))

    properties.assert_within_bounds(function, [case.cotangent(), *arguments.values()], case.seed)


def test_longdouble_is_kept_and_used():
    arguments, options, keep, dy = of_case(FULL)
    longer = attention.Arguments(*(None if a is None else a.astype("longdouble") for a in arguments))
    given = longer, options, keep, dy.astype("longdouble")
    found, expected = tiled(*given, SMALL), textbook(*given)
    assert {array.dtype for array in found.values()} == {np.dtype("longdouble")}
    assert_close(found, expected, relative=1e-15, floor=1e-17)


def test_bits_are_the_same_run_after_run_for_any_number_of_threads_and_inside_one():
    for case in (FULL, KINK, LONG, replace(LONG, dropout=0.3)):
        single = attention.Arguments(*(None if a is None else a.astype("float32") for a in case.arguments()))
        given = single, case.options, drawn_in_tiles(case), case.cotangent().astype("float32")
        expected = tiled(*given, Tiling(workers=1))
        for workers in (1, 2, 3, 5):
            assert_identical(tiled(*given, Tiling(workers=workers)), expected)
        for found in map_in_threads(lambda _, given=given: tiled(*given), range(3), 2):
            assert_identical(found, expected)


def test_nothing_beyond_the_reach_changes_a_bit():
    arguments, options, keep, dy = of_case(replace(KINK, positions="relative"))
    arguments = arguments._replace(rho=np.array([0, 0.25, 0.5]))
    before = tiled(arguments, options, keep, dy, SMALL)
    far = np.zeros(arguments.keys.shape[1], bool)
    reach = np.floor(8 * arguments.rho).astype(int).max() + options.ramp + 1
    far[: 9 - reach] = True
    assert far.any()
    keys, values = arguments.keys.copy(), arguments.values.copy()
    keys[:, far], values[:, far] = np.nan, np.nan
    after = tiled(arguments._replace(keys=keys, values=values), options, keep, dy, SMALL)
    assert_identical(after, before)


def test_nothing_of_the_size_of_all_weights_outlives_a_tile():
    """Peak and what stays, in bytes, against B H T (S + N) weights of 8 bytes; in a new thread, whose scratch is new."""
    case = Case(seed=3, batch=1, block=1024, past=512, size=512, heads=2, width=2, slots=512, ramp=8, spans="random",
                positions="relative", dropout=0.3)
    arguments, options, keep, dy = case.arguments(), case.options, drawn_in_tiles(case), case.cotangent()
    weights, tiling = 2 * 1024 * (512 + 512) * 8, Tiling(rows=16, elements=10_000)

    def measured():
        arrays._in_worker.set(True)
        tracemalloc.start()
        try:
            y, saved = tiled_attention.attend(arguments, options, *keep, tiling)
            after_forward = tracemalloc.get_traced_memory()[0] - scratch_bytes()
            tiled_attention.backward(dy, saved)
            return y, saved, after_forward, tracemalloc.get_traced_memory()[1], scratch_bytes()
        finally:
            tracemalloc.stop()

    with ThreadPoolExecutor(1) as pool:
        y, saved, after_forward, peak, scratch = pool.submit(measured).result()
    assert after_forward < y.nbytes + 2 * saved.total.nbytes + 50_000
    assert scratch < weights / 6
    assert peak < scratch + weights / 20


def scratch_bytes():
    return sum(array.nbytes for array in tiles._scratch.__dict__.values())


@pytest.mark.parametrize(("change", "message"), [
    ({"queries": np.zeros((2, 3, 6))}, "queries and keys: expected"),
    ({"rho": np.zeros(4)}, r"rho: expected \(3,\), got \(4,\)"),
    ({"queries": np.zeros((2, 5, 3, 2), complex)}, "queries: expected a real NumPy array for attention in tiles, got nd"),
    ({"rho": np.zeros(3, complex)}, "rho: expected a real NumPy array for attention in tiles, got ndarray of comp"),
])
def test_what_does_not_fit_is_named(change, message):
    with pytest.raises(InputError, match=message):
        tiled_attention.forward(FULL.arguments()._replace(**change), FULL.options)


def test_an_array_on_a_device_is_named():
    class Elsewhere:
        __module__, dtype = "cupy", np.dtype("float32")

    with pytest.raises(InputError, match="rho: expected a real NumPy array for attention in tiles, got Elsewhere"):
        tiled_attention.attend(FULL.arguments()._replace(rho=Elsewhere()), FULL.options)


def test_masks_of_half_the_slots_and_a_first_query_that_sees_nothing_are_errors():
    keep, keep_memory = FULL.keep()
    for masks in ((keep, None), (None, keep_memory)):
        with pytest.raises(InputError, match="keep and keep_memory"):
            tiled_attention.forward(FULL.arguments(), FULL.options, *masks)
    blind = replace(FULL, past=0, slots=0)
    with pytest.raises(InputError, match="sees nothing"):
        tiled_attention.forward(blind.arguments(), blind.options)


def changed(**changes):
    """A named tuple with fields changed by functions of them."""

    def wrong(right):
        def make(*given):
            found = right(*given)
            return found._replace(**{name: change(getattr(found, name)) for name, change in changes.items()})

        return make

    return wrong


def windows_overwritten(_):
    def wrong(total, products, step, start):
        for tile in range(products.shape[1]):
            first = (start + tile) * step
            total[:, first : first + products.shape[2]] = products[:, tile]

    return wrong


def padding_of(name, change):
    """`padded` with what it is given under one name changed by a function of the rows, the length and the start."""
    return lambda right: lambda called, rows, length, start=0: right(
        called, *(change(rows, length, start) if called == name else (rows, length, start)))


BOTH_HEADS = (tiled_attention, tiled_gradients)
PLANTS = {
    "a position too few": ((tiled_attention, tiled_logits), "reach",
                           lambda right: lambda *given: max(1, right(*given) - 1), KINK),
    "the ramp one position off": (BOTH_HEADS, "head", changed(ramp=lambda ramp: np.roll(ramp, 1)), KINK),
    "the ramp's foot counted": (BOTH_HEADS, "head", changed(unweighted=lambda _: 0), None),
    "positions nearest first": (BOTH_HEADS, "head", changed(table=lambda table: table[::-1]), FULL),
    "a persistent key for another": (BOTH_HEADS, "head", changed(memory_keys=lambda keys: np.roll(keys, 1, 0)), FULL),
    "windows overwritten": ((tiled_gradients,), "_add_windows", windows_overwritten, FULL),
    "r of another row": ((tiled_gradients,), "_softmax_backward", lambda right: lambda d, exponentials, total, *rest: right(
        d, exponentials, np.roll(total, 1, 0), *rest), KINK),
    "another mask in backward": ((tiled_gradients,), "kept", changed(context=lambda keep: keep[:, :, ::-1]), FULL),
    "persistent slots' masks reversed": (BOTH_HEADS, "kept", changed(memory=lambda keep: keep[:, ::-1]), FULL),
    "a text's mask for another": (BOTH_HEADS, "kept", changed(context=lambda keep: keep[::-1]), TWO),
    "a text's keys for another": ((tiled_logits,), "padded", padding_of(
        "keys", lambda rows, *rest: (rows[::-1], *rest)), TWO),
    "keys of the future": ((tiled_logits,), "padded", padding_of(
        "keys", lambda rows, length, start: (rows, length, start - 1)), FULL),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_is_caught(monkeypatch, name):
    modules, function, wrong, case = PLANTS[name]

    def check():
        if case is None:
            test_a_position_of_weight_0_may_have_any_logit("float32", 160)
        else:
            test_values_and_gradients_are_the_textbooks.hypothesis.inner_test(case, TOGETHER if case is TWO else SMALL)

    check()
    for module in modules:
        monkeypatch.setattr(module, function, wrong(getattr(module, function)))
    with pytest.raises(AssertionError):
        check()


@pytest.mark.parametrize(("form", "needed"), [
    ({}, [14, 7]), ({"norm": "pre"}, [14, 7]), ({"adaptive_span": False}, [92, 92]),
    ({"normalizer_epsilon": 0.01}, [28, 92]), ({"variant": "attention-split"}, [14, 7]),
    ({"variant": "head-split"}, [14, 7]),
], ids=str)
def test_a_past_that_no_head_reaches_is_left_out(form, needed):
    """S = 92, R = 3: z = 10.12 and 3.68 in the first layer; with ε > 0 64 positions of its past are trimmed.

    In the second z = 3.68; with ε > 0 z = 25.76 and 29 positions are needed, so that none is trimmed.
    """
    config = ModelConfig(vocabulary=7, width=8, heads=4, layers=2, span=92, memory=3, span_ramp=3, **form)
    p = parameters.initialize(config, 0)
    spans = [[0.11, 0.04], [0.28 if config.normalizer_epsilon else 0.04, 0.04]]
    for layer, values in enumerate(spans if config.adaptive_span else []):
        p[f"layers.{layer}.attention.span"] = np.resize(values, config.context_heads)
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 7, (2, 2, 5))
    past = rng.standard_normal((2, 2, 92, 8))

    def computed(core, past):
        out = model.forward(p, config, tokens, targets, past, core=core)
        return out, model.backward(out.saved).vector

    out, gradient = computed(tiled_attention, past)
    expected, of_textbook = computed(attention, past)
    assert_close({"loss": out.token_loss, "g": gradient}, {"loss": expected.token_loss, "g": of_textbook})
    assert [saved.attention.key.x.shape[1] - 5 for saved in out.saved.layers] == needed
    assert [saved.attention.key.x.shape[1] - 5 for saved in expected.saved.layers] == [92, 92]
    for layer, count in enumerate(needed):
        moved = past.copy()
        moved[layer, :, : 92 - count] = 1e3
        same, same_gradient = computed(attention, moved)
        assert_close({"loss": same.token_loss, "g": same_gradient}, {"loss": expected.token_loss, "g": of_textbook})


@pytest.mark.parametrize(("start", "length"), [
    (-2, 6), (-2, 2), (-3, 4), (-4, 1), (0, 4), (0, 5), (0, 7), (3, 9), (3, 8), (3, 5),
])
def test_rows_are_padded_with_0_whatever_the_memory_held(start, length):
    rows = np.random.default_rng(0).standard_normal((3, 5, 2))
    tiles.scratch("rows", (3, length, 2), rows.dtype)[...] = np.nan
    expected, inside = np.zeros((3, length, 2)), [0 <= number < length for number in range(start, start + 5)]
    for number, exists in enumerate(inside):
        if exists:
            expected[:, start + number] = rows[:, number]
    np.testing.assert_array_equal(tiles.padded("rows", rows, length, start), expected)
    back = np.full((3, 5, 2), np.nan)
    tiles.unpad(expected, start, back)
    np.testing.assert_array_equal(back, np.where(np.array(inside)[:, None], rows, 0))
