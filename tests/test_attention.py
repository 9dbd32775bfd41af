"""All-attention: gradients of every argument in every form, values from loops, and what the layer promises."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.errors import InputError
from refimpl.layers import attention, masked_softmax, windows

NAMES = attention.Arguments._fields


def draw(seed, batch=2, block=3, past=2, heads=2, width=3, size=4, slots=3, spans=(0.13, 0.61)):
    """Random arguments; slots 0 = no memory, spans None = no adaptive span."""
    rng = np.random.default_rng(seed)
    memory = [rng.standard_normal((heads, slots, width)) if slots else None for _ in range(2)]
    return attention.Arguments(
        rng.standard_normal((batch, block, heads, width)), *rng.standard_normal((2, batch, past + block, heads, width)),
        rng.standard_normal((size, width)), *memory, None if spans is None else np.resize(spans, heads).astype(float),
    )


def check(check_pair, arguments, options, keep=(None, None), seed=0):
    present = [name for name in NAMES if getattr(arguments, name) is not None]

    def forward(*given):
        return attention.forward(attention.Arguments(**dict(zip(present, given, strict=True))), options, *keep)

    def backward(dy, *given):
        gradients = attention.backward(dy, forward(*given)[1])
        assert all((getattr(gradients, name) is not None) == (name in present) for name in NAMES)
        return [getattr(gradients, name) for name in present]

    check_pair(lambda *given: forward(*given)[0], backward, [getattr(arguments, name) for name in present], seed)


def by_loops(arguments, options):
    """The equations with scalar loops; the form with ε literally as published: softmax, mask, division by sum + ε."""
    queries, keys, values, table, mu, nu, rho = arguments[:7]
    (batch, block, heads, width), length = queries.shape, keys.shape[1]
    slots = 0 if mu is None else mu.shape[1]
    y = np.zeros(queries.shape)
    trimmed = options.span
    while rho is not None and all(options.span * r + options.ramp < trimmed - 64 for r in rho):
        trimmed -= 64
    for b, t, h in np.ndindex(batch, block, heads):
        q, scored = queries[b, t, h], []
        for x in range(trimmed):
            c = length - block + t - x - (0 if options.attend_self else 1)
            if c >= 0:
                key = keys[b, c, h] + (0 if table is None else table[x])
                z = math.inf if rho is None else options.span * rho[h]
                w = min(1.0, max(0.0, (options.ramp + z - x) / options.ramp))
                scored.append((w, float(q @ key) / math.sqrt(width), values[b, c, h]))
        for n in range(slots):
            scored.append((1.0, float(q @ mu[h, n]), math.sqrt(slots) * nu[h, n]))
        total = math.fsum(math.exp(s) for _, s, _ in scored)
        masked = [w * math.exp(s) / total for w, s, _ in scored]
        norm = math.fsum(masked) + options.normalizer_epsilon
        for a, (_, _, value) in zip(masked, scored, strict=True):
            y[b, t, h] += a / norm * value
    return y


FORMS = [
    {}, {"spans": None}, {"slots": 0}, {"past": 0}, {"past": 4}, {"past": 9}, {"block": 1}, {"size": 1}, {"slots": 1},
    {"spans": (0.0, 1.0)}, {"block": 7, "size": 2}, {"batch": 1, "heads": 1, "width": 1, "spans": (0.4,)},
]


@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.1])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_values_equal_loops_and_gradients_the_complex_step(check_pair, form, epsilon, attend_self):
    if form.get("slots") == 0 and form.get("past", 2) == 0:
        pytest.fail("not a form")
    arguments = draw(3, **form)
    options = attention.Options(len(arguments.positions), 2, epsilon, attend_self)
    y, _ = attention.forward(arguments, options)
    np.testing.assert_allclose(y, by_loops(arguments, options), rtol=0, atol=1e-14 * np.abs(y).max() * 10)
    check(check_pair, arguments, options)


@pytest.mark.parametrize(("size", "spans"), [
    (130, (0.0, 0.02)), (130, (0.0, 0.5)), (67, (0.0, 0.0)), (66, (0.0, 0.0)), (130, (0.484375, 0.1)), (130, None),
])
def test_positions_that_are_trimmed_have_no_share_of_the_normaliser(check_pair, size, spans):
    """ε = 0.1 of each of a hundred positions of weight 0 is most of it."""
    arguments = draw(3, block=2, past=140, size=size, spans=spans)
    options = attention.Options(size, 2, 0.1)
    y, _ = attention.forward(arguments, options)
    np.testing.assert_allclose(y, by_loops(arguments, options), rtol=0, atol=1e-13 * np.abs(y).max())
    check(check_pair, arguments, options)


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize("epsilon", [0.0, 1e-8])
def test_gradient_with_dropout_and_without_positions(check_pair, positions, epsilon):
    arguments = draw(5)
    if not positions:
        arguments = arguments._replace(positions=None)
    rng = np.random.default_rng(1)
    keep = rng.random((2, 2, 3, 4)) > 0.4, rng.random((2, 2, 3, 3)) > 0.4
    check(check_pair, arguments, attention.Options(4, 2, epsilon, dropout=0.4), keep)


def test_a_head_with_a_tiny_row_mass(check_pair):
    """Where the masked row's mass is tiny, a forgotten Σ a da of the normalisation shows; see the two forms of ε."""
    arguments = draw(7, slots=0, past=4, spans=(0.0, 0.3))
    far = arguments.keys.copy()
    far[:, :3] += 6 * np.sign(arguments.queries[:, -1:])
    for epsilon in (0.0, 1e-8):
        check(check_pair, arguments._replace(keys=far), attention.Options(4, 2, epsilon))


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 6), st.integers(0, 8), st.booleans(), st.integers(0, 3))
@example(0, 1, 1, 0, True, 0)
def test_memory_permutes_freely_and_a_constant_logit_changes_nothing(seed, block, size, past, attend_self, slots):
    arguments = draw(seed, block=block, size=size, past=past, slots=slots + 1)
    options = attention.Options(size, 2, 0.0, attend_self)
    y, _ = attention.forward(arguments, options)
    order = np.random.default_rng(seed).permutation(slots + 1)
    keys, values = arguments.memory_keys[:, order], arguments.memory_values[:, order]
    permuted = arguments._replace(memory_keys=keys, memory_values=values)
    np.testing.assert_allclose(attention.forward(permuted, options)[0], y, rtol=0, atol=1e-13)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 9), st.booleans())
def test_only_what_the_span_reaches_matters(seed, size, past, attend_self):
    """Keys and values beyond ⌊z⌋ + R + 1 positions, or beyond S, change nothing: not one bit."""
    arguments = draw(seed, block=1, past=past, size=size, heads=1, spans=(0.3,))
    options = attention.Options(size, 2, 0.0, attend_self)
    y, _ = attention.forward(arguments, options)
    reach = min(size, math.floor(0.3 * size) + 2 + 1)
    unseen = past + 1 - reach - (not attend_self)
    keys, values = arguments.keys.copy(), arguments.values.copy()
    keys[:, : max(0, unseen)] += 1
    values[:, : max(0, unseen)] *= -3
    moved, _ = attention.forward(arguments._replace(keys=keys, values=values), options)
    np.testing.assert_array_equal(moved, y)


def test_full_span_equals_no_span():
    arguments = draw(11, past=6, spans=(1.0, 1.0))
    options = attention.Options(4, 3)
    with_span, _ = attention.forward(arguments, options)
    np.testing.assert_allclose(with_span, attention.forward(arguments._replace(rho=None), options)[0], rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_every_dtype_is_kept(dtype):
    arguments = attention.Arguments(*(a.astype(dtype) for a in draw(13)[:7]))
    for epsilon in (0.0, 1e-8):
        y, saved = attention.forward(arguments, attention.Options(4, 2, epsilon))
        assert y.dtype == dtype
        assert {g.dtype for g in attention.backward(y, saved)[:7]} == {np.dtype(dtype)}


def test_longdouble_agrees_with_float64_to_float64s_roundoff_and_not_exactly():
    arguments = draw(17, width=5)
    double, _ = attention.forward(arguments, attention.Options(4, 2))
    longer = attention.Arguments(*(a.astype("longdouble") for a in arguments[:7]))
    extended, _ = attention.forward(longer, attention.Options(4, 2))
    assert 0 < np.abs(double - extended).max() < 1e-14


def test_logits_far_above_the_maximum_at_weight_zero_stay_finite():
    """ε = 0: a slot on the ramp's foot has weight 0 but a logit of 160 more than all others, in float32."""
    logits = np.array([[-80.0, 80.0]], np.float32)
    a, saved = masked_softmax.forward(logits, np.array([[1.0, 0.0]], np.float32), np.array([[True, True]]))
    np.testing.assert_array_equal(a, [[1, 0]])
    d_logits, d_weight = masked_softmax.backward(np.array([[2.0, 3.0]], np.float32), saved)
    np.testing.assert_array_equal(d_logits, [[0, 0]])
    assert np.isfinite(d_weight).all()
    assert d_weight[0, 1] > 1e25


def test_exists_by_hand():
    """P = 1, T = 3, S = 2: the nearest seen positions are 0, 1, 2 of four; with attend_self 1, 2, 3."""
    np.testing.assert_array_equal(windows.exists(np, 1, 3, 2, False), [[True, False], [True, True], [True, True]])
    np.testing.assert_array_equal(windows.exists(np, 0, 2, 2, True), [[True, False], [True, True]])


@pytest.mark.parametrize(("change", "message"), [
    ({"queries": np.zeros((2, 3, 6))}, "queries and keys: expected"),
    ({"positions": np.zeros((5, 3))}, r"positions: expected \(4, 3\), got \(5, 3\)"),
    ({"memory_keys": np.zeros((1, 3, 3))}, "memory_keys: expected"),
    ({"memory_values": None}, "both or neither"),
    ({"rho": np.zeros(3)}, r"rho: expected \(2,\), got \(3,\)"),
    ({"keys": np.zeros((2, 2, 2, 3)), "values": np.zeros((2, 2, 2, 3))}, "keys: expected at least the block's 3"),
])
def test_shapes_that_do_not_fit_are_named(change, message):
    with pytest.raises(InputError, match=message):
        attention.forward(draw(0)._replace(**change), attention.Options(4, 2))


def test_a_first_query_that_sees_nothing_is_an_error():
    with pytest.raises(InputError, match="sees nothing"):
        attention.forward(draw(0, past=0, slots=0), attention.Options(4, 2))


@pytest.mark.parametrize("keep", [(None, np.ones((2, 2, 3, 3), bool)), (np.ones((2, 2, 3, 4), bool), None)])
def test_a_keep_mask_for_half_of_the_slots_is_an_error(keep):
    with pytest.raises(InputError, match="expected one for the context and one for the persistent vectors, or neither"):
        attention.forward(draw(0), attention.Options(4, 2, dropout=0.5), *keep)


def test_options_left_out_are_the_papers():
    """A ramp of 32 positions as published, the exact normaliser, no position sees itself, nothing is dropped."""
    assert attention.Options(4) == (4, 32, 0.0, False, 0.0)
