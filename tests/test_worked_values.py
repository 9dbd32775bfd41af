"""Conventions that no gradient check sees, by numbers worked out on paper: exact fractions, or decimals of 40 digits.

The bench is a model with every parameter 0, pre-norm, whose first layer sees e₀ = (1, 0, …, 0) at every position, past
included, because its norm has gain 0 and bias e₀. With embeddings 0 and W_o = 1 the second layer's input is then the first
one's y itself, and `past` shows it. Values are set so that y₀ is the context's share of the weight and y₁ the sum over
persistent slots. A logit of ln k has exp(s) = k: that is why every expected share is a fraction.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from refimpl import model, parameters
from refimpl.config import ModelConfig

# Relative to 1, the scale of what is compared: 45 roundoffs of 2.2e-16, for sums of ten terms at most.
TOLERANCE = 1e-14
ATTENTION = "layers.0.attention."
BENCH = {"vocabulary": 3, "width": 8, "heads": 2, "layers": 2, "span": 3, "memory": 1, "norm": "pre", "adaptive_span": False}


def bench(**changes):
    """The model of the file's docstring, and its parameters; keys and queries still 0."""
    config = ModelConfig(**{**BENCH, **changes})
    p = parameters.initialize(config)
    p.vector[...] = 0
    p["layers.0.attention_norm.bias"][0] = 1
    p[ATTENTION + "value"][0, 0] = 1
    p[ATTENTION + "output"] = np.eye(config.width)
    if config.memory:
        p[ATTENTION + "memory_values"][0, :, 1] = 1
    return p, config


def shown(p, config, block=1, past=0, layer=1, first_position=0, masks=None, tokens=None):
    """The input of a layer, (T, D), after `past` zero vectors: at layer 1 the first layer's y."""
    tokens = np.zeros((1, block), int) if tokens is None else np.array([tokens])
    zeros = np.zeros((config.layers, 1, past, config.width))
    out = model.forward(p, config, tokens, np.zeros_like(tokens), zeros, masks, first_position)
    return out.past[layer, 0, -tokens.shape[1] :]


def assert_equal(values, *expected):
    assert np.shape(values) == (len(expected),)
    assert np.abs(np.asarray(values) - [float(number) for number in expected]).max() <= TOLERANCE, (values, expected)


def test_logits_of_the_context_are_divided_by_the_root_of_the_head_width():
    """E = 4: q·k = 2 ln 3 gives s = ln 3 (1/√D would give another root of 3), beside one persistent slot of exp(0)."""
    p, config = bench()
    p[ATTENTION + "query"][0, 0] = 1
    p[ATTENTION + "key"][0, 0] = 2 * math.log(3)
    assert_equal(shown(p, config, past=1)[0, :2], Fraction(3, 3 + 1), Fraction(1, 3 + 1))


def test_persistent_keys_are_multiplied_by_the_root_of_the_head_width():
    """√E of the key against 1/√E of the logit: q·μ = ln 5 is s itself."""
    p, config = bench()
    p[ATTENTION + "query"][0, 0] = 1
    p[ATTENTION + "memory_keys"][0, 0, 0] = math.log(5)
    assert_equal(shown(p, config, past=1)[0, :2], Fraction(1, 1 + 5), Fraction(5, 1 + 5))


def test_persistent_values_are_multiplied_by_the_root_of_their_number():
    """N = 9 slots and 1 of context, all exp(0): each a tenth, values √9 · 1."""
    p, config = bench(memory=9)
    assert_equal(shown(p, config, past=1)[0, :2], Fraction(1, 10), 9 * Fraction(1, 10) * 3)


@pytest.mark.parametrize(("attend_self", "past", "weights"), [
    (False, 0, [0, 2, 2 + 3, 2 + 3 + 7, 2 + 3 + 7]),
    (False, 2, [2 + 3, 2 + 3 + 7, 2 + 3 + 7]),
    (True, 0, [2, 2 + 3, 2 + 3 + 7, 2 + 3 + 7]),
    (True, 1, [2 + 3, 2 + 3 + 7, 2 + 3 + 7]),
])
def test_the_first_position_vector_is_that_of_the_nearest(attend_self, past, weights):
    """Rows of exp(s) = 2, 3 and 7: the nearest is δ = 1, or δ = 0 where a query attends to itself; S = 3 at most."""
    p, config = bench(attend_self=attend_self)
    p[ATTENTION + "query"][0, 0] = 1
    p["positions"][:, 0] = [2 * math.log(weight) for weight in (2, 3, 7)]
    for t, weight in enumerate(weights):
        assert_equal(shown(p, config, t + 1, past)[-1:, 0], Fraction(weight, weight + 1))


MASKS = [  # ρ and m_z(x) at x = 0, 1, 2, 3, for S = 4 and R = 2, so that z = 4ρ
    (Fraction(0), (1, Fraction(1, 2), 0, 0)),                            # kinks at x = 0 and x = 2
    (Fraction(1, 8), (1, Fraction(3, 4), Fraction(1, 4), 0)),            # between them
    (Fraction(1, 4), (1, 1, Fraction(1, 2), 0)),                         # kinks at x = 1 and x = 3
    (Fraction(3, 8), (1, 1, Fraction(3, 4), Fraction(1, 4))),
    (Fraction(1), (1, 1, 1, 1)),
]


@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize(("rho", "mask"), MASKS, ids=str)
def test_the_span_mask_counts_from_the_nearest_position(rho, mask, attend_self):
    """All exp(0): after k positions the context has Σ_{x<k} m_z(x) of weight, x = δ - 1, or δ if self is attended."""
    p, config = bench(span=4, span_ramp=2, adaptive_span=True, attend_self=attend_self)
    p[ATTENTION + "span"][...] = rho
    for k in range(1, 5):
        weight = Fraction(sum(mask[:k]))
        assert_equal(shown(p, config, past=k - attend_self)[0, :2], weight / (weight + 1), 1 / (weight + 1))


def test_a_slot_without_weight_may_have_any_logit():
    """x = 3 lies on the ramp's foot, w = 0, with s = 800, whose exp overflows: the other slots have theirs, 5/2 and 1."""
    p, config = bench(span=4, span_ramp=2, adaptive_span=True)
    p[ATTENTION + "span"][...] = 0.25
    p[ATTENTION + "query"][0, 0] = 1
    p["positions"][3, 0] = 2 * 800
    assert_equal(shown(p, config, past=4)[0, :2], Fraction(5, 7), Fraction(2, 7))


def test_logits_far_beyond_the_exponential_s_range_are_compared_with_one_another():
    """s = 1000 of one context and of one persistent slot: a half each."""
    p, config = bench()
    p[ATTENTION + "query"][0, 0] = 1
    p[ATTENTION + "key"][0, 0] = 2 * 1000
    p[ATTENTION + "memory_keys"][0, 0, 0] = 1000
    assert_equal(shown(p, config, past=1)[0, :2], Fraction(1, 2), Fraction(1, 2))


def test_the_normalizer_s_epsilon_stands_beside_each_weight():
    """w = 1, 1/2 and 1 with ε = 1/2: Σ (w + ε) = 4, so 3/8 for the context and not the 3/5 of ε = 0."""
    p, config = bench(span=2, span_ramp=2, adaptive_span=True, normalizer_epsilon=0.5)
    assert_equal(shown(p, config, past=2)[0, :2], Fraction(3, 2) / 4, Fraction(1, 4))


def test_dropout_scales_what_it_keeps_and_does_not_normalise_again():
    """Rate 1/5: a kept fifth becomes a quarter. The context's mask counts from the nearest and drops δ = 3, of 2/5."""
    p, config = bench(dropout=0.2)
    masks = {f"layers.{layer}.{kind}": np.ones((1, 2, 1, slots), bool)
             for layer in range(2) for kind, slots in (("attention", 3), ("memory", 1))}
    masks["layers.0.attention"][..., 2] = False
    p[ATTENTION + "query"][0, 0] = 1
    p["positions"][2, 0] = 2 * math.log(2)
    assert_equal(shown(p, config, past=3, masks=masks)[0, :2], Fraction(1, 4) + Fraction(1, 4), Fraction(1, 4))


def test_attention_split_adds_two_softmaxes_that_each_sum_to_one():
    p, config = bench(variant="attention-split", memory=4)
    assert_equal(shown(p, config, past=2)[0, :2], 1, math.isqrt(4))


def test_head_split_gives_the_first_heads_the_context_and_the_last_the_memory():
    """H = 3: ⌊3/2⌋ = 1 persistent head, with the third head's query; weights 3/6 and 1/6 three times, √N = 2."""
    p, config = bench(variant="head-split", width=6, heads=3, memory=4)
    p[ATTENTION + "value"][2, 0] = 1
    p[ATTENTION + "query"][4, 0] = 1
    p[ATTENTION + "memory_keys"][0, 0, 0] = math.log(3)
    p[ATTENTION + "memory_values"][0, :, 1] = [1, 0, 0, 2]
    assert_equal(shown(p, config, past=2)[0], 1, 0, 1, 0, 0, 2 * (Fraction(3, 6) + 2 * Fraction(1, 6)))


def test_single_head_s_query_is_that_of_all_heads_and_its_output_is_added_to_theirs():
    """The last element of q meets the last of μ, √D against 1/√D; y₁ is the persistent head's, in the first head's place."""
    p, config = bench(variant="single-head", memory=4)
    p[ATTENTION + "query"][7, 0] = 1
    p[ATTENTION + "memory_keys"][0, 0, 7] = math.log(3)
    p[ATTENTION + "memory_values"][0, :, 1] = [1, 0, 0, 2]
    assert_equal(shown(p, config, past=2)[0, :2], 1, 2 * (Fraction(3, 6) + 2 * Fraction(1, 6)))


def test_ff_attention_is_a_softmax_over_the_hidden_units_without_a_scale():
    """W_1 gives ln 1, ln 2 and ln 5, so weights 1/8, 2/8 and 5/8; W_2 sums them up as 1, 10 and 100."""
    p, config = bench(variant="ff-attention", memory=0, feed_forward=3)
    p[ATTENTION + "output"] = 0
    p["layers.0.feed_forward_norm.bias"][0] = 1
    p["layers.0.feed_forward.weight1"][:, 0] = [math.log(k) for k in (1, 2, 5)]
    p["layers.0.feed_forward.weight2"][0] = [1, 10, 100]
    assert_equal(shown(p, config, past=1)[0, :1], Fraction(1 + 2 * 10 + 5 * 100, 8))


def test_layer_norm_divides_by_the_biased_variance_with_its_epsilon_inside_the_root():
    """±0.0045 has variance 2.025e-5; 1e-5 more is 0.0055², so the result is ±45/55."""
    p, config = bench(norm="post")
    p[ATTENTION + "output"] = 0
    p["layers.0.attention_norm.gain"] = 1
    p["layers.0.attention_norm.bias"] = 0
    p["input.table"][0] = 4 * [0.0045, -0.0045]
    assert_equal(shown(p, config)[0], *4 * [Fraction(45, 55), -Fraction(45, 55)])


def test_adaptive_input_multiplies_by_the_root_of_the_width_and_a_cutoff_begins_a_cluster():
    """D = 16: 4 · projection · row. Words 0, 1 | 2, 3 | 4."""
    p, config = bench(vocabulary=5, width=16, cutoffs=(2, 4), divisor=2)
    for cluster, (factor, rows) in enumerate([(1, [3, 5]), (10, [7, 11]), (100, [13])]):
        p[f"input.projections.{cluster}"][0, 0] = factor
        p[f"input.tables.{cluster}"][:, 0] = rows
    expected = [4 * 3, 4 * 5, 4 * 70, 4 * 110, 4 * 1300]
    for word in range(5):
        assert_equal(shown(p, config, layer=0, tokens=[word])[0, :2], expected[word], 0)


@pytest.mark.parametrize(("order", "first", "second"), [("ascending", 5, 7), ("reversed", 7, 5)])
def test_adaptive_softmax_scores_its_clusters_in_the_named_order(order, first, second):
    """The head's weights are 1 and 2 for words, 5 and 7 in the rows for clusters; the tails' are 1 : 3 and 1 : 4."""
    p, config = bench(vocabulary=6, cutoffs=(2, 4), divisor=2, cluster_order=order)
    p["final_norm.bias"][0] = 1
    p["output.projections.0"] = np.eye(8)
    p["output.cluster_table"][:, 0] = [math.log(5), math.log(7)]
    for cluster, weight in enumerate([2, 3, 4]):
        p[f"output.biases.{cluster}"][1] = math.log(weight)
    scores = model.log_probabilities(p, config, np.zeros((1, 1), int), np.zeros((2, 1, 0, 8)))
    assert_equal(np.exp(scores[0, 0]), Fraction(1, 15), Fraction(2, 15), Fraction(first, 15) / 4,
                 Fraction(first, 15) * 3 / 4, Fraction(second, 15) / 5, Fraction(second, 15) * 4 / 5)


def test_the_span_penalty_is_a_mean_over_heads_and_a_sum_over_layers():
    """λ S Σ mean(ρ) = 1/2 · 4 · ((1/4 + 3/4)/2 + (1/2 + 1)/2) = 5/2."""
    p, config = bench(span=4, adaptive_span=True, span_penalty=0.5)
    p["layers.0.attention.span"], p["layers.1.attention.span"] = np.array([0.25, 0.75]), np.array([0.5, 1.0])
    past = model.initial_past(config, batch=1, like=p.vector)
    out = model.forward(p, config, np.zeros((1, 1), int), np.zeros((1, 1), int), past)
    assert float(out.span_penalty) == 2.5
    for layer in range(2):  # each ρ has λ S / H of it; at logits of 0 and a value everywhere the same, nothing else
        assert_equal(model.backward(out.saved)[f"layers.{layer}.attention.span"], 1, 1)


def test_the_loss_is_the_mean_over_tokens_of_minus_log_p():
    """Output biases ln 1, ln 2 and ln 5: targets of 1/8, 2/8 and 5/8."""
    p, config = bench()
    p["output.bias"] = [math.log(k) for k in (1, 2, 5)]
    past = model.initial_past(config, batch=1, like=p.vector)
    out = model.forward(p, config, np.zeros((1, 3), int), np.array([[0, 1, 2]]), past)
    assert_equal(np.exp(-out.token_loss[0]), Fraction(1, 8), Fraction(2, 8), Fraction(5, 8))
    assert_equal([math.exp(-3 * float(out.loss))], Fraction(1 * 2 * 5, 8**3))


def series(x, first):
    """Σ (-1)ⁿ xᵏ / k! over k = 2n + first of a fraction, to 40 digits: the sine from 1 on, the cosine from 0."""
    exact = sum((-1) ** n * Fraction(x) ** (2 * n + first) / math.factorial(2 * n + first) for n in range(30))
    return Decimal(exact.numerator) / exact.denominator


def test_absolute_sinusoids_interleave_sines_and_cosines():
    """D = 8: the wavelengths of 10000^(2i/D) are 1, 10, 100 and 1000; position 5 is the second after 4."""
    p, config = bench(positions="sinusoid")
    with localcontext(prec=40):
        expected = [series(Fraction(5, 10**i), first) for i in range(4) for first in (1, 0)]
    assert_equal(shown(p, config, block=2, layer=0, first_position=4)[1], *expected)


@pytest.mark.parametrize("attend_self", [False, True])
@pytest.mark.parametrize("element", range(8))
def test_transformer_xl_s_sinusoids_have_their_sines_first(element, attend_self):
    """v = (2, 0, 0, 0) and q = 0 make s the chosen element of r_δ, at the true distance: of itself 0, else from 1 on."""
    p, config = bench(positions="transformer-xl", attend_self=attend_self)
    p["position_bias"][0, 0] = 2
    p[ATTENTION + "position_key"][0, element] = 1
    wavelength, start, nearest = 10 ** (element % 4), 1 if element < 4 else 0, 0 if attend_self else 1
    for k in range(1, 4):
        with localcontext(prec=40):
            weight = sum(series(Fraction(nearest + x, wavelength), start).exp() for x in range(k))
            share = weight / (weight + 1)
        assert_equal(shown(p, config, past=k - attend_self)[0, :1], share)


def test_transformer_xl_s_u_meets_the_keys_of_the_context_alone():
    """u = (2 ln 3, 0, 0, 0), q = 0, every key e₀: s = ln 3 for the context and 0 for the persistent slot."""
    p, config = bench(positions="transformer-xl")
    p["content_bias"][0, 0] = 2 * math.log(3)
    p[ATTENTION + "key"][0, 0] = 1
    p[ATTENTION + "memory_keys"][0, 0, 0] = 1
    assert_equal(shown(p, config, past=1)[0, :2], Fraction(3, 4), Fraction(1, 4))


def test_learned_absolute_positions_begin_anew_after_every_s():
    """S = 3: positions 4, 5, 6 have rows 1, 2, 0."""
    p, config = bench(positions="learned")
    p["input.positions"][:, 0] = [2, 3, 5]
    assert_equal(shown(p, config, block=3, layer=0, first_position=4)[:, 0], 3, 5, 2)
