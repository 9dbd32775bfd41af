"""Texts that go on token by token: the model's own words on the whole text, and no more work than a head's reach."""

from dataclasses import replace

import numpy as np
import pytest

from refimpl import model, parameters
from refimpl.arrays import module_of
from refimpl.config import POSITIONS, VARIANTS, ModelConfig
from refimpl.continuation import Continuation
from refimpl.errors import InputError
from refimpl.layers import attention, one_query, span
from refimpl.ring import Ring

CONFIG = ModelConfig(vocabulary=11, width=12, heads=3, layers=2, span=7, memory=3, span_ramp=2)
BASELINE = {"memory": 0, "feed_forward": 9, "zero_past": True}
FORM = {"transformer": BASELINE, "ff-attention": BASELINE}
RHO = [0.0, 2 / 7, 0.45]  # on both kinks of the mask, and between positions
EXACT = 1e-12  # of log-probabilities of size 1 to 10, two float64 computations of a few hundred terms each


def form(variant, **more):
    return replace(CONFIG, **{"variant": variant, **FORM.get(variant, {}), **more})


def draw(config, dtype="float64"):
    """Parameters away from their first values, spans unequal."""
    p = parameters.initialize(config, 1, dtype)
    p.vector += 0.3 * np.random.default_rng(0).standard_normal(p.vector.size).astype(dtype)
    for layer in range(config.layers if config.adaptive_span else 0):
        p[f"layers.{layer}.attention.span"] = np.roll(RHO, layer)[: config.context_heads]
    return p


def expected(p, config, tokens, block=0):
    """log p after every token of one text, by the model; position 0 again at each block's beginning."""
    past, found = model.initial_past(config, 1, p.vector), []
    for start in range(0, len(tokens), block or len(tokens)):
        piece = tokens[None, start : start + (block or len(tokens))]
        found.append(model.log_probabilities(p, config, piece, past)[0])
        past = model.forward(p, config, piece, piece, past).past
    return np.concatenate(found)


@pytest.fixture(autouse=True)
def every_head_by_itself(monkeypatch):
    """Heads of unlike reach are computed apart, as they are where spans are long."""
    monkeypatch.setattr(one_query, "SLACK", 0)


def errors(config, lengths=(1, 11, 4), added=20, block=0, dtype="float64"):
    """The largest difference from the model over texts with prompts of these lengths and tokens added to them."""
    p = draw(config, dtype)
    texts = [np.random.default_rng(row).integers(0, 11, length + added) for row, length in enumerate(lengths)]
    want = [expected(p, config, tokens, block) for tokens in texts]
    found = Continuation(p, config, [tokens[:length] for tokens, length in zip(texts, lengths, strict=True)], block)
    worst = [np.abs(found.log_p[row] - want[row][length - 1]).max() for row, length in enumerate(lengths)]
    for step in range(added):
        found.add([tokens[length + step] for tokens, length in zip(texts, lengths, strict=True)])
        assert found.log_p.dtype == dtype
        worst += [np.abs(found.log_p[row] - want[row][length + step]).max() for row, length in enumerate(lengths)]
    return max(worst)


@pytest.mark.parametrize("epsilon", [0.0, 1e-8, 0.1])
@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_with_every_kind_of_positions_and_normaliser(variant, kind, epsilon):
    assert errors(form(variant, positions=kind, normalizer_epsilon=epsilon)) < EXACT


@pytest.mark.parametrize("more", [
    {"attend_self": True}, {"attend_self": True, "memory": 0, "feed_forward": 9}, {"norm": "pre"},
    {"norm": "pre", "zero_past": True}, {"zero_past": True}, {"memory": 0, "feed_forward": 9, "zero_past": True},
    {"attend_self": True, "norm": "pre", "normalizer_epsilon": 1e-8}, {"cutoffs": (3, 6), "divisor": 2},
    {"adaptive_span": False}, {"positions": "none", "adaptive_span": False, "normalizer_epsilon": 1e-8},
    {"share_positions": False, "span": 1}, {"share_positions": False, "positions": "transformer-xl", "attend_self": True},
    {"span_ramp": 40}, {"layers": 1, "heads": 1}, {"span": 31},
], ids=str)
def test_every_convention(more):
    assert errors(replace(CONFIG, **{**more, **({"heads": 3} if "heads" not in more else {})})) < EXACT


@pytest.mark.parametrize("variant", ["attention-split", "head-split", "single-head"])
@pytest.mark.parametrize("zero_past", [False, True])
def test_two_softmaxes_where_the_first_tokens_see_only_memory(variant, zero_past):
    assert errors(form(variant, attend_self=False, zero_past=zero_past), lengths=(1, 1), added=4) < EXACT
    assert errors(form(variant, attend_self=True, norm="pre", normalizer_epsilon=1e-8)) < EXACT


@pytest.mark.parametrize("kind", ["sinusoid", "learned"])
@pytest.mark.parametrize("block", [3, 5, 9, 64])
def test_absolute_positions_begin_anew_with_every_block_of_each_text(kind, block):
    assert errors(replace(CONFIG, positions=kind), lengths=(1, 5, 6, 20), block=block) < EXACT


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_float32_stays_float32(positions, adaptive):
    """Within 2e-4 of log-probabilities up to 10: about a hundred roundings of 6e-8 through norms and softmaxes."""
    assert errors(replace(CONFIG, positions=positions, adaptive_span=adaptive), dtype="float32") < 2e-4


def test_logits_of_any_size_stay_finite():
    config = replace(CONFIG, normalizer_epsilon=0.0)
    p = draw(config)
    for layer in range(config.layers):
        p[f"layers.{layer}.attention.query"] *= 300
        p[f"layers.{layer}.attention.memory_keys"] *= 10
    tokens = np.random.default_rng(0).integers(0, 11, 14)
    found = Continuation(p, config, [tokens[:2]])
    for token in tokens[2:]:
        found.add([token])
    np.testing.assert_allclose(found.log_p[0], expected(p, config, tokens)[-1], rtol=0, atol=1e-9)  # logits of size 1e4


def test_a_position_of_weight_0_may_have_any_logit():
    """On the ramp's foot, within the reach, w = 0: a logit of 1e4 there must not push the others' exponentials to 0."""
    rng = np.random.default_rng(0)
    queries, keys, values = rng.standard_normal((2, 1, 1, 4)), *rng.standard_normal((2, 2, 1, 3, 4))
    keys[:, :, 0] = 2e4 * queries[:, :, 0]
    group = one_query.Heads(slice(0, 2), np.array([[0.0, 0.5, 1.0]] * 2), None)
    found = one_query.divided(one_query.context(queries[:, :, 0] / 2, None, keys, values, group, None, 0.0))
    logits = (keys[:, :, 1:] * queries).sum(-1) / 2
    share = np.array([0.5, 1.0]) * np.exp(logits)
    np.testing.assert_allclose(found, (share[..., None] * values[:, :, 1:]).sum(2) / share.sum(-1)[..., None], rtol=EXACT)


def planted(monkeypatch, owner, name, wrong):
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given: wrong(right, *given))


@pytest.mark.parametrize("wrong", [
    lambda right, *given: [n - 1 for n in right(*given)],  # of the third head, w = 0.075 on the ramp's foot
    lambda right, *given: [n - 2 if n == 3 else n for n in right(*given)],  # with z = 0, w = 0 at n - 1 and 1/2 at n - 2
])
def test_a_reach_too_short_is_seen(monkeypatch, wrong):
    planted(monkeypatch, one_query, "reaches", wrong)
    assert errors(CONFIG) > 1e-6


@pytest.mark.parametrize(("owner", "name", "wrong"), [
    (one_query, "joined", lambda right, a, b: right(a, b._replace(mass=b.mass * (1 + 1e-6)))),
    (one_query, "context", lambda right, *given: right(*given)._replace(mass=right(*given).mass * (1 + 1e-6))),
    (one_query, "persistent", lambda right, *given: right(*given)._replace(mixed=right(*given).mixed * (1 + 1e-6))),
    (Ring, "latest", lambda right, self, heads, n: (*right(self, heads, n)[:2], None)),
    (Ring, "latest", lambda right, self, heads, n: (right(self, heads, n)[0][:, :, ::-1], *right(self, heads, n)[1:])),
    (Continuation, "_position", lambda right, self, index: right(self, index) + (index == 14)),
])
def test_small_errors_are_seen(monkeypatch, owner, name, wrong):
    config = replace(CONFIG, positions="sinusoid")
    assert errors(config) < EXACT
    planted(monkeypatch, owner, name, wrong)
    assert errors(config) > 100 * EXACT


def test_each_head_needs_what_its_span_and_ramp_say():
    """⌊z⌋ + R + 1 of S = 7 with R = 2: z = 0, 2 and 3.15; everything where ε counts everything or spans are not learned."""
    rho = np.array(RHO)
    exact = attention.Options(span=7, ramp=2)
    assert one_query.reaches(rho, 3, exact) == [3, 5, 6]
    assert one_query.reaches(np.array([1.0, 0.9]), 2, exact) == [7, 7]
    assert one_query.reaches(None, 2, exact) == [7, 7]
    assert one_query.reaches(rho, 3, exact._replace(normalizer_epsilon=1e-8)) == [7, 7, 7]
    assert one_query.reaches(rho, 3, exact._replace(span=70, normalizer_epsilon=1e-8)) == [70, 70, 70]
    assert one_query.reaches(rho / 10, 3, exact._replace(span=135, normalizer_epsilon=1e-8)) == [71, 71, 71]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_beyond_a_heads_reach_has_weight(dtype):
    """Spans at random, at whole positions, and one rounding below and above them."""
    whole = np.arange(1, 1000, dtype=dtype) / 1000
    rho = np.concatenate([np.random.default_rng(0).random(2000, dtype), whole, *(np.nextafter(whole, whole.dtype.type(side))
                                                                                  for side in (0, 1))])
    mask, _ = span.mask_forward(rho, 1000, 32)
    reach = np.array(one_query.reaches(rho, len(rho), attention.Options(span=1000, ramp=32)))
    assert ((mask > 0).sum(1) <= reach).all()
    assert ((mask > 0).sum(1) >= reach - 1)[reach < 1000].all()


def test_heads_look_at_their_reach_and_no_further(monkeypatch):
    """What is asked of the ring: n = 3, 5 and 6 in the first layer, however long the text and wide the span."""
    config, asked = replace(CONFIG, layers=1), []
    planted(monkeypatch, Ring, "latest", lambda right, self, heads, n: asked.append((heads, n)) or right(self, heads, n))
    texts = Continuation(draw(config), config, [np.arange(10)])
    for _ in range(30):
        asked.clear()
        texts.add([3])
        assert [(heads.start, heads.stop, n) for heads, n in asked] == [(0, 1, 3), (1, 2, 5), (2, 3, 6)]


def test_neighbouring_heads_of_one_reach_are_computed_together():
    options, table = attention.Options(span=7, ramp=2), np.random.default_rng(0).standard_normal((4, 7, 2))
    rho = np.array([0.0, 0.1, 0.5, 0.0])
    groups = one_query.by_reach(rho, table, one_query.reaches(rho, 4, options), options, rho)
    assert [(group.heads, group.weight.shape) for group in groups] == [
        (slice(0, 2), (2, 3)), (slice(2, 3), (1, 6)), (slice(3, 4), (1, 3))]
    np.testing.assert_array_equal(groups[1].positions, table[2:3, 5::-1])
    np.testing.assert_array_equal(groups[0].weight[:, ::-1], span.mask_forward(rho, 7, 2)[0][:2, :3])


def test_neighbours_whose_reaches_lie_close_are_computed_together(monkeypatch):
    monkeypatch.setattr(one_query, "SLACK", 10)
    assert one_query.alike([5, 15, 14, 16, 16, 27, 5, 5]) == [slice(0, 3), slice(3, 5), slice(5, 6), slice(6, 8)]
    assert one_query.alike([5]) == [slice(0, 1)]
    for more in ({}, {"attend_self": True}, {"positions": "transformer-xl"}):
        assert errors(replace(CONFIG, **more)) < EXACT


def test_a_ring_holds_the_latest_positions_in_order():
    """Two texts, one of 2 and one of 9 positions, C = 4, told apart by their values; looked at through two turns."""
    rng = np.random.default_rng(0)
    texts = [rng.standard_normal((2, length + 13, 3, 2)) for length in (2, 9)]
    ring = Ring([(text[0, :length], text[1, :length]) for text, length in zip(texts, (2, 9), strict=True)], 4)
    for step in range(13):
        for count in (1, 3, 4):
            keys, values, exists = ring.latest(slice(1, 3), count)
            n = min(count, max(2 + step, 9 + step))
            assert keys.shape == values.shape == (2, 2, n, 2)
            assert keys.base is not None
            for row, length in ((0, 2 + step), (1, 9 + step)):
                there = min(n, length)
                for array, kind in ((keys, 0), (values, 1)):
                    np.testing.assert_array_equal(array[:, row, n - there :],
                                                  texts[row][kind, length - there : length, 1:3].transpose(1, 0, 2))
                if exists is not None:
                    np.testing.assert_array_equal(exists[row], [False] * (n - there) + [True] * there)
            assert (exists is None) == (2 + step >= n)
        ring.add(*(np.stack([text[kind, length + step] for text, length in zip(texts, (2, 9), strict=True)])
                   for kind in (0, 1)))


def test_a_prompt_is_read_in_pieces_without_a_difference(monkeypatch):
    whole = Continuation(draw(CONFIG), CONFIG, [np.arange(11), np.arange(3)]).log_p
    monkeypatch.setattr("refimpl.continuation.PIECE", 2)
    np.testing.assert_allclose(Continuation(draw(CONFIG), CONFIG, [np.arange(11), np.arange(3)]).log_p, whole,
                               rtol=0, atol=EXACT)


def test_a_prompt_whose_first_token_would_see_nothing_is_refused():
    config = replace(CONFIG, memory=0, feed_forward=9)
    with pytest.raises(InputError, match="first query sees nothing"):
        Continuation(draw(config), config, [np.arange(4)])


def test_the_parameters_are_left_as_they_are():
    p = draw(CONFIG)
    before = p.vector.copy()
    texts = Continuation(p, CONFIG, [np.arange(5)])
    texts.add([1])
    np.testing.assert_array_equal(p.vector, before)
    assert module_of(texts.log_p) is np
