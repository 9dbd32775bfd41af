"""Properties of the attentions: what permutations, removed slots, trimmed pasts, tiles and rotations leave as it is."""

import importlib.util
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.layers import attention, masked_softmax, span


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws = sibling("strategies")
Case, cases, examples = draws.AttentionCase, draws.attention_cases, draws.examples
assert_close, assert_identical = draws.assert_close, draws.assert_identical
some = draws.sizes(3)
FULL = Case(
    seed=1, batch=2, block=3, past=2, size=4, heads=3, width=2, slots=3, ramp=2, spans="random", positions="relative",
)


def on_last_coordinate(arguments, queries, keys, memory_keys):
    """Last coordinates that add queries · keys / √E to the context's logits, and queries · memory_keys / √E to the others.

    Positions and the biases u, v are 0 there. In single-head the last coordinate is the last head's.
    """
    changed = {"queries": replaced(arguments.queries, queries), "keys": replaced(arguments.keys, keys)}
    for name in ("positions", "content_bias", "position_bias"):
        if getattr(arguments, name) is not None:
            changed[name] = replaced(getattr(arguments, name), 0)
    if arguments.memory_keys is not None:
        changed["memory_keys"] = replaced(arguments.memory_keys, memory_keys / math.sqrt(arguments.queries.shape[-1]))
    return arguments._replace(**changed)


def replaced(array, last):
    """A copy with another last coordinate."""
    array = array.copy()
    array[..., -1:] = last
    return array


def reach(case, rho):
    """⌊z⌋ + R + 1 nearest positions, at most S, of each context head."""
    if rho is None:
        return np.full(case.context_heads, case.size)
    return np.minimum(case.size, np.floor(case.size * rho).astype(int) + case.ramp + 1)


def unseen(case, rho):
    """Which rows of [past ; block] no query of a head reaches: (P + T, H)."""
    before_first = case.past - (not case.attend_self)
    return np.arange(case.past + case.block)[:, None] <= before_first - reach(case, rho)


@given(cases(slots=some))
@example(Case())
@example(replace(FULL, core="single-head", dropout=0.4, epsilon=1e-8))
@examples
def test_persistent_vectors_permute_freely(case):
    """2. In any order they give the same output; their gradients are permuted with them."""
    order = case.stream("order").permutation(case.slots)
    arguments, (keep, keep_memory) = case.arguments(), case.keep()
    moved = arguments._replace(memory_keys=arguments.memory_keys[:, order], memory_values=arguments.memory_values[:, order])
    before = case.run(arguments)
    after = case.run(moved, (keep, None if keep_memory is None else keep_memory[..., order]))
    expected = dict(before.gradients)
    for name in ("memory_keys", "memory_values"):
        expected[name] = expected[name][:, order]
    assert_close({"y": after.y, **after.gradients}, {"y": before.y, **expected})


@given(cases())
@example(Case(slots=0, attend_self=True, block=2, size=2))
@example(replace(FULL, core="head-split", past=0))
@examples
def test_the_gradient_of_the_future_is_exactly_zero(case):
    """5. One output's gradient by every later query, key and value is 0, not merely small; so is what they do to it."""
    arguments, rng = case.arguments(), case.stream("future")
    t = int(rng.integers(case.block))
    dy = np.zeros_like(arguments.queries)
    dy[:, t] = case.cotangent()[:, t]
    y, _, d = case.run(arguments, dy=dy)
    first = case.past + t + case.attend_self  # the first row of [past ; block] that t doesn't see
    assert not d["keys"][:, first:].any()
    assert not d["values"][:, first:].any()
    assert not np.delete(d["queries"], t, axis=1).any()
    queries, keys, values = (array.copy() for array in arguments[:3])
    for array, row in ((queries, t + 1), (keys, first), (values, first)):
        array[:, row:] = rng.standard_normal(array[:, row:].shape)
    moved = case.run(arguments._replace(queries=queries, keys=keys, values=values))
    assert_identical({"y": moved.y[:, : t + 1]}, {"y": y[:, : t + 1]})
    assert d["values"].any() or not first or case.dropout


@given(cases(spans=st.sampled_from(["zero", "kink", "kink", "random", "full"]), ramp=st.integers(1, 3), size=draws.sizes(9),
             epsilon=0.0))
@example(Case(size=3, past=4, spans="zero"))
@example(replace(FULL, size=8, past=9, spans="kink"))
@examples
def test_nothing_beyond_the_span_and_its_ramp_matters(case):
    """6. Beyond the ⌊z⌋ + R + 1 nearest positions keys, values and positions have no gradient and no effect: not one bit."""
    arguments, rng = case.arguments(), case.stream("beyond")
    far = unseen(case, arguments.rho)
    before = case.run(arguments)
    keys, values = arguments.keys.copy(), arguments.values.copy()
    for array in (keys, values):
        array[:, far] = 3 * rng.standard_normal(array[:, far].shape)
    changed = {"keys": keys, "values": values}
    if arguments.positions is not None:
        by_head = reach(case, arguments.rho)[:, None] <= np.arange(case.size)
        beyond = by_head if arguments.positions.ndim == 3 else by_head.all(0)
        changed["positions"] = np.where(beyond[..., None], 7.0, arguments.positions)
        assert not before.gradients["positions"][beyond].any()
    after = case.run(arguments._replace(**changed))
    assert not before.gradients["keys"][:, far].any()
    assert not before.gradients["values"][:, far].any()
    assert_identical({"y": after.y, **after.gradients}, {"y": before.y, **before.gradients})


@given(draws.seeds, draws.sizes(6), st.integers(-40, 40), st.sampled_from(draws.EPSILONS))
@example(0, 1, 40, 1e-8)
@example(3, 4, -40, 0.1)
@examples
def test_a_constant_added_to_a_rows_logits_changes_no_bit(seed, slots, constant, epsilon):
    """7. Logits are k/64, so that adding a whole number is exact: weights and gradients must be the same bits."""
    rng = draws.stream(seed, "softmax")
    logits = rng.integers(-127, 128, (2, slots)) / 64
    present = np.arange(slots) < [[slots], [max(1, slots - 1)]]
    weight = np.where(rng.random((2, slots)) < 0.3, 0.0, rng.random((2, slots))) * present
    weight[:, 0] = 1
    da = rng.standard_normal((2, slots))
    results = []
    for added in (0, constant):
        a, saved = masked_softmax.forward(logits + added, weight, present, epsilon)
        results.append({"a": a, **dict(zip(("ds", "dw"), masked_softmax.backward(da, saved), strict=True))})
    assert_identical(*results)


@given(cases(width=st.integers(2, 3), slots=some), st.floats(0.5, 3))
@example(Case(width=2, past=1), 1.0)
@example(replace(FULL, core="attention-split", positions="transformer-xl", epsilon=0.1), 2.0)
@examples
def test_a_constant_on_all_logits_changes_nothing_and_on_the_contexts_only_moves_the_joint_softmax(case, constant):
    """7. The same through the attentions; on the context's logits alone it shifts odds by e^constant, where they are joint.

    In the variants, whose halves have a softmax of their own, it changes nothing then, either.
    """
    plain, query = case.arguments(), constant * math.sqrt(case.width)
    none, everywhere, context = (on_last_coordinate(plain, query, *keys) for keys in ((0, 0), (1, 1), (1, 0)))
    before, all_logits, only_context = (case.run(arguments) for arguments in (none, everywhere, context))
    assert_close({"y": all_logits.y}, {"y": before.y}, relative=1e-11)
    if not case.joint:
        assert_close({"y": only_context.y}, {"y": before.y}, relative=1e-11)
        return
    a, moved = (result.saved.softmax.attention for result in (before, only_context))
    near, far = a[..., : case.size].sum(-1), a[..., case.size :].sum(-1)
    near_moved, far_moved = moved[..., : case.size].sum(-1), moved[..., case.size :].sum(-1)
    assert_close({"odds": near_moved * far}, {"odds": math.exp(constant) * near * far_moved}, relative=1e-11)
    if near.any() and not case.dropout:
        assert np.abs(only_context.y - before.y).max() > 1e-8


@given(cases(spans="full"))
@example(Case(spans="full", past=1))
@example(replace(FULL, spans="full", epsilon=1e-8))
@examples
def test_a_full_span_equals_none(case):
    """8. z = S masks nothing: outputs and gradients are those without an adaptive span."""
    arguments = case.arguments()
    with_span, without = case.run(arguments), case.run(arguments._replace(rho=None))
    expected = {"y": without.y, **without.gradients, "rho": with_span.gradients["rho"]}
    assert_close({"y": with_span.y, **with_span.gradients}, expected)


def slots_by_loops(case, arguments, b, t, h):
    """(w, s, value) of every slot that query t of head h has, as the equations read; h counts the context's heads."""
    queries, keys, values, table, mu, nu, rho, u, v = arguments
    q, zero = queries[b, t, h], np.zeros(case.width)
    slots = []
    for x in range(case.size):
        c = case.past + t - x - (not case.attend_self)
        if c >= 0:
            position = zero if table is None else table[h, x] if table.ndim == 3 else table[x]
            s = (q + (zero if u is None else u[h])) @ keys[b, c, h] + (q + (zero if v is None else v[h])) @ position
            w = 1.0 if rho is None else min(1.0, max(0.0, (case.ramp + case.size * rho[h] - x) / case.ramp))
            slots.append((w, s / math.sqrt(case.width), values[b, c, h]))
    if case.joint and mu is not None:
        slots += [(1.0, q @ mu[h, n], math.sqrt(case.slots) * nu[h, n]) for n in range(case.slots)]
    return slots


@given(cases())
@example(Case(past=1, slots=0, epsilon=0.1))
@example(replace(FULL, spans="kink", positions="transformer-xl", epsilon=0.1))
@examples
def test_weights_sum_to_the_masked_share(case):
    """9. Σ a = Σ w e / Σ (w + ε) e, worked out by loops: 1 at ε = 0, less otherwise; 0 where no slot is."""
    arguments = case.arguments()
    a = case.context(case.run(arguments).saved).softmax.attention
    expected = np.zeros(a.shape[:-1])
    for b, h, t in np.ndindex(expected.shape):
        slots = [(w, math.exp(s)) for w, s, _ in slots_by_loops(case, arguments, b, t, h)]
        if slots:
            expected[b, h, t] = math.fsum(w * e for w, e in slots) / math.fsum((w + case.epsilon) * e for w, e in slots)
    assert_close({"sum": a.sum(-1)}, {"sum": expected})
    if not case.joint:
        np.testing.assert_allclose(case.run(arguments).saved.persistent.attention.sum(-1), 1, rtol=1e-14)


@given(cases(epsilon=0.0, dropout=0.0))
@example(Case())
@example(Case(slots=0, attend_self=True))
@example(replace(FULL, spans="kink"))
@examples
def test_outputs_lie_in_the_hull_of_what_was_seen(case):
    """10. Every coordinate, and a random functional of all, lies between its extremes over the values √N ν and those of the
    context whose weight isn't 0; in the variants between the sums of the two halves' extremes."""
    arguments = case.arguments()
    functional = np.concatenate([np.eye(case.width), case.stream("functional").standard_normal((1, case.width))])
    y = case.run(arguments).y
    persistent = None
    if not case.joint:
        persistent = math.sqrt(case.slots) * arguments.memory_values @ memory_functional(case, functional)
    for b, t, h in np.ndindex(case.batch, case.block, case.heads):
        low = high = np.zeros(len(functional))
        if h < case.context_heads:
            seen = [functional @ value for w, _, value in slots_by_loops(case, arguments, b, t, h) if w > 0]
            if seen:
                low, high = np.min(seen, 0), np.max(seen, 0)
        if persistent is not None and (case.core != "head-split" or h >= case.context_heads):
            group = {"single-head": 0, "head-split": h - case.context_heads}.get(case.core, h)
            columns = persistent[group].reshape(case.slots, -1, len(functional))[:, h if case.core == "single-head" else 0]
            low, high = low + columns.min(0), high + columns.max(0)
        margin = 1e-13 * max(1.0, np.abs([low, high]).max())
        assert (low - margin <= functional @ y[b, t, h]).all()
        assert (functional @ y[b, t, h] <= high + margin).all()


def memory_functional(case, functional):
    """The functional of each head on persistent values, side by side where one of them spans all heads."""
    return np.kron(np.eye(case.memory_shape[2] // case.width), functional.T)


@given(cases(slots=some))
@example(Case())
@example(replace(FULL, core="single-head", dropout=0.4))
@examples
def test_a_duplicated_persistent_vector_is_a_logit_more_by_ln_2(case):
    """11. N + 1 vectors, two of them alike, are N with ln 2 on that one's logit; √(N + 1) in place of √N is made up for."""
    n = int(case.stream("slot").integers(case.slots))
    arguments, (keep, keep_memory) = case.arguments(), case.keep()
    queries = replaced(arguments.queries, 1)
    mu, nu = arguments.memory_keys, arguments.memory_values
    shrunk = math.sqrt(case.slots / (case.slots + 1))
    heavier = mu.copy()
    heavier[:, n, -1] += math.log(2)  # the query's last coordinate is 1
    order = [*range(case.slots), n]
    twice = case.run(
        arguments._replace(queries=queries, memory_keys=mu[:, order], memory_values=shrunk * nu[:, order]),
        (keep, None if keep_memory is None else keep_memory[..., order]),
    )
    once = case.run(arguments._replace(queries=queries, memory_keys=heavier))
    found = {"y": twice.y, **twice.gradients}
    for name, factor in (("memory_keys", 1), ("memory_values", shrunk)):
        gradient = found[name] * factor
        found[name] = gradient[:, :-1].copy()
        found[name][:, n] += gradient[:, -1]
    expected = {"y": once.y, **once.gradients}
    for gradients in (found, expected):
        gradients["queries"] = gradients["queries"][..., :-1]  # the last coordinate meets another key
    assert_close(found, expected)


def plain_attention(case, queries, keys, values, table, rho):
    """softmax(mask + (q·k + q·p_δ)/√E) v over all of [past ; block] at once, by its distances; complex numbers pass."""
    rows, columns = np.arange(case.block)[:, None] + case.past, np.arange(case.past + case.block)
    x = rows - columns - (not case.attend_self)
    seen, x = (x >= 0) & (x < case.size), x.clip(0, case.size - 1)
    logits = np.einsum("bthe,bche->bhtc", queries, keys)
    if table is not None:
        by_head = np.broadcast_to(table, (queries.shape[2], *table.shape[-2:]))
        logits = logits + np.take_along_axis(np.einsum("bthe,hxe->bhtx", queries, by_head), x[None, None], -1)
    e = np.exp(logits / math.sqrt(queries.shape[-1])) * seen
    if rho is not None:
        fraction = 1 + (case.size * rho[:, None, None] - x) / case.ramp
        masked = e * np.where(fraction.real > 1, 1, np.where(fraction.real < 0, 0, fraction))
    else:
        masked = e
    total = (masked + case.epsilon * e).sum(-1, keepdims=True)
    return np.einsum("bhtc,bche->bthe", masked / total, values)


@given(cases(core="all-attention", slots=0, positions=st.sampled_from(draws.TABLES[:3]), dropout=0.0))
@example(Case(slots=0, attend_self=True))
@example(replace(FULL, slots=0, spans="kink", epsilon=1e-8))
@examples
def test_without_persistent_vectors_it_is_plain_attention(case):
    """12. N = 0, against a softmax over all of [past ; block] written anew; its gradient along a random direction, too."""
    arguments = case.arguments()
    result = case.run(arguments)
    given_arrays = [arguments.queries, arguments.keys, arguments.values, arguments.positions, arguments.rho]
    assert_close({"y": result.y}, {"y": plain_attention(case, *given_arrays)})
    rng, slope = case.stream("direction"), 0.0
    moved = []
    for name, array in zip(("queries", "keys", "values", "positions", "rho"), given_arrays, strict=True):
        direction = None if array is None else rng.standard_normal(array.shape)
        moved.append(None if array is None else array + 1e-30j * direction)
        slope += 0 if array is None else (result.gradients[name] * direction).sum()
    expected = (plain_attention(case, *moved) * case.cotangent()).sum().imag / 1e-30
    assert abs(slope - expected) <= 1e-11 * max(1.0, abs(expected))  # sums of terms of order 1


def has_another_slot(case):
    """Whether a query still sees something without one persistent vector."""
    return case.slots > 1 or (case.joint and (case.past > 0 or case.attend_self))


@given(cases(slots=some).filter(has_another_slot))
@example(Case(past=1))
@example(replace(FULL, slots=2, dropout=0.4, epsilon=0.1))
@examples
def test_a_logit_of_minus_infinity_removes_the_slot(case):
    """13. A persistent key with a logit of about -10⁴ has weight and gradient 0 exactly, and all else is as without it."""
    n = int(case.stream("slot").integers(case.slots))
    arguments, (keep, keep_memory) = case.arguments(), case.keep()
    queries, mu, nu = replaced(arguments.queries, 1), arguments.memory_keys.copy(), arguments.memory_values
    mu[:, n, -1] = -1e4
    before = case.run(arguments._replace(queries=queries, memory_keys=mu))
    for name in ("memory_keys", "memory_values"):
        assert not before.gradients[name][:, n].any()
    kept = [i for i in range(case.slots) if i != n]
    grown = math.sqrt(case.slots / max(1, len(kept)))
    memory = {"memory_keys": mu[:, kept], "memory_values": grown * nu[:, kept]} if kept else dict.fromkeys(
        ("memory_keys", "memory_values"))
    keep_memory = None if keep_memory is None or not kept else keep_memory[..., kept]
    after = replace(case, slots=len(kept)).run(arguments._replace(queries=queries, **memory), (keep, keep_memory))
    expected = {"y": before.y, **before.gradients}
    expected["memory_keys"] = expected["memory_keys"][:, kept]
    expected["memory_values"] = expected["memory_values"][:, kept] / grown
    found = {"y": after.y, **after.gradients}
    assert_close({name: found.get(name, value) for name, value in expected.items()}, expected)


@given(draws.seeds, st.integers(2, 6), st.sampled_from(draws.EPSILONS))
@example(0, 2, 0.0)
@example(1, 3, 0.1)
@examples
def test_minus_infinity_itself_removes_a_slot_of_the_softmax(seed, slots, epsilon):
    """13. Any slot's logit may be -∞, whatever its weight: the others' weights and gradients are those without it."""
    rng = draws.stream(seed, "softmax")
    logits, weight, da = rng.standard_normal((3, 2, slots))
    weight, gone = np.abs(weight), int(rng.integers(slots))
    logits[:, gone] = -np.inf
    results = []
    for left in (list(range(slots)), [i for i in range(slots) if i != gone]):
        a, saved = masked_softmax.forward(logits[:, left], weight[:, left], np.ones((2, len(left)), bool), epsilon)
        results.append({"a": a, **dict(zip(("ds", "dw"), masked_softmax.backward(da[:, left], saved), strict=True))})
    assert not any(value[:, gone].any() for value in results[0].values())
    assert_close({name: np.delete(value, gone, 1) for name, value in results[0].items()}, results[1])


@given(cases())
@example(Case())
@example(replace(FULL, core="head-split", dropout=0.4, epsilon=0.1))
@examples
def test_linear_in_the_values(case):
    """14. In the context's values and the persistent ones together, without a constant: y(2a - 3b) = 2y(a) - 3y(b)."""
    rng, arguments = case.stream("values"), case.arguments()
    names = ["values", *(["memory_values"] if case.slots else [])]
    one, two = ({name: rng.standard_normal(getattr(arguments, name).shape) for name in names} for _ in range(2))
    both = {name: 2 * one[name] - 3 * two[name] for name in names}
    y = [case.run(arguments._replace(**values)).y for values in (one, two, both)]
    assert_close({"y": y[2]}, {"y": 2 * y[0] - 3 * y[1]})


@given(cases(block=draws.sizes(7)), draws.sizes(4))
@example(Case(block=2), 1)
@example(replace(FULL, block=5, past=6, dropout=0.4, epsilon=1e-8), 2)
@examples
def test_any_tiles_give_the_same(case, rows):
    """17. Queries in tiles of any size, each with just the window of keys that it sees as its past: outputs, and sums of
    gradients, are the whole's. At any ε: the window is all S positions."""
    arguments, dy, (keep, keep_memory) = case.arguments(), case.cotangent(), case.keep()
    whole = case.run(arguments)
    total = {name: np.zeros_like(value) for name, value in whole.gradients.items()}
    parts = []
    for low in range(0, case.block, rows):
        tile = slice(low, low + rows)
        window = slice(max(0, case.past + low - case.size + case.attend_self), case.past + min(low + rows, case.block))
        here = arguments._replace(
            queries=arguments.queries[:, tile], keys=arguments.keys[:, window], values=arguments.values[:, window])
        masks = tuple(None if mask is None else mask[:, :, tile] for mask in (keep, keep_memory))
        part = case.run(here, masks, dy[:, tile])
        parts.append(part.y)
        for name, gradient in part.gradients.items():
            where = {"queries": (slice(None), tile), "keys": (slice(None), window), "values": (slice(None), window)}
            total[name][where.get(name, ...)] += gradient
    assert_close({"y": np.concatenate(parts, 1), **total}, {"y": whole.y, **whole.gradients})


@given(cases(epsilon=0.0, past=st.integers(0, 14), size=draws.sizes(9), ramp=st.integers(1, 3)), st.integers(0, 3))
@example(Case(past=2, spans="zero", size=2), 0)
@example(replace(FULL, past=9, size=8, spans="kink"), 0)
@examples
def test_any_trimming_of_the_past_gives_the_same_bits(case, spare):
    """18. A past cut to what the largest span reaches, or anything longer, changes no bit of outputs and gradients at ε = 0:
    keys are laid out by distance, in windows whose size doesn't depend on the past."""
    arguments = case.arguments()
    least = int(reach(case, arguments.rho).max()) - case.attend_self
    cut = max(0, case.past - least - spare)
    before = case.run(arguments)
    after = case.run(arguments._replace(keys=arguments.keys[:, cut:], values=arguments.values[:, cut:]))
    expected = {"y": before.y, **before.gradients}
    for name in ("keys", "values"):
        assert not expected[name][:, :cut].any()
        expected[name] = expected[name][:, cut:]
    assert_identical({"y": after.y, **after.gradients}, expected)


@given(draws.seeds, draws.sizes(9), st.sampled_from([1, 2, 3, 32]), draws.sizes(4), st.sampled_from(["kink", "random"]))
@example(0, 1, 1, 1, "kink")
@example(5, 8, 2, 3, "kink")
@examples
def test_the_mask_grows_with_the_span(seed, size, ramp, heads, kind):
    """19. m_z(x) never falls with z and never rises with x; it is 1 for x ≤ z, 0 for x ≥ z + R. The penalty is linear."""
    rng = draws.stream(seed, "spans")
    low, high = np.sort([draws.spans(rng, kind, heads, size) for _ in range(2)], axis=0)
    masks = [span.mask_forward(rho, size, ramp)[0] for rho in (np.zeros(heads), low, high, np.ones(heads))]
    assert all((less <= more).all() for less, more in pairwise(masks))
    assert (masks[-1] == 1).all()
    x, z = np.arange(size), size * low[:, None]
    assert (np.diff(masks[1]) <= 0).all()
    assert ((masks[1] == 1) == (x <= z)).all()
    assert ((masks[1] == 0) == (x >= z + ramp)).all()
    on_the_way = (z < x) & (x < size * high[:, None] + ramp) & (low < high)[:, None]
    assert ((masks[1] < masks[2]) == on_the_way).all()
    penalty = [span.penalty_forward(rho, size, 0.3)[0] for rho in (low, high, 2 * low + 3 * high, np.ones(heads))]
    assert_close({"penalty": penalty[2]}, {"penalty": 2 * penalty[0] + 3 * penalty[1]})
    assert_close({"penalty": penalty[3]}, {"penalty": 0.3 * size})
    slope = span.penalty_backward(1, (low, size, 0.3))
    assert_close({"slope": slope}, {"slope": np.full(heads, 0.3 * size / heads)})


@given(cases())
@example(Case())
@example(replace(FULL, core="single-head", positions="transformer-xl", dropout=0.4, epsilon=0.1))
@examples
def test_queries_keys_and_positions_rotate_together(case):
    """30. By one orthogonal matrix in E, persistent keys and u, v too: outputs stay, gradients rotate with them."""
    turn, _ = np.linalg.qr(case.stream("rotation").standard_normal((case.width, case.width)))
    turned = ("queries", "keys", "positions", "memory_keys", "content_bias", "position_bias")

    def rotated(name, array):
        if array is None or name not in turned:
            return array
        return (array.reshape(*array.shape[:-1], -1, case.width) @ turn).reshape(array.shape)  # head by head in single-head

    arguments = case.arguments()
    before = case.run(arguments)
    after = case.run(attention.Arguments(*(rotated(*item) for item in arguments._asdict().items())))
    expected = {name: rotated(name, gradient) for name, gradient in before.gradients.items()}
    assert_close({"y": after.y, **after.gradients}, {"y": before.y, **expected})
