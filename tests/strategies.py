"""What the properties draw: shapes, conventions and a seed, from which all arrays are made.

Never arrays element by element: Hypothesis fills those with repeated values, which hides errors of order. Degenerate sizes
(T, S, N, E, B, H of 1, V of 2, no past, a past of exactly S) are drawn far more often than uniformly. Cases print as what an
`@example` takes.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from refimpl import model, parameters
from refimpl.config import POSITIONS, VARIANTS, ModelConfig
from refimpl.inputs import draw_masks
from refimpl.layers import attention, head_split, split_attention

CORES = {"all-attention": attention, "attention-split": split_attention, "single-head": split_attention,
         "head-split": head_split}
SPANS = ("none", "zero", "full", "kink", "random")
TABLES = ("none", "relative", "by-head", "transformer-xl")
EPSILONS = (0.0, 1e-8, 0.1)

# Two orders of summation of a few hundred terms differ by about 1e-15 of the largest; logits of up to 20 and a layer norm
# of nearly equal numbers (at most 1/√1e-5 = 316 times) multiply that.
RELATIVE = 1e-12
# What cancels leaves roundoff of what went in: 45 units of it, of the largest of the tensors that are compared together.
FLOOR = 1e-14
# Gradients through a layer norm cancel (all, but for ε, where D = 2), and then are multiplied by up to 1/√1e-5 = 316.
FLOOR_THROUGH_NORMS = 316 * FLOOR

examples = settings(max_examples=60)
fewer_examples = settings(max_examples=40)  # where each example runs every pair, or seventeen times in longdouble


def assert_close(found, expected, relative=RELATIVE, floor=FLOOR):
    """Tensors by name: error relative to each tensor's largest value, with a floor relative to the largest of all."""
    assert set(found) == set(expected)
    largest = max((np.abs(value).max() for value in expected.values() if np.size(value)), default=0.0)
    assert np.isfinite(largest)
    for name, value in expected.items():
        assert np.shape(found[name]) == np.shape(value), name
        if np.size(value):
            error, limit = np.abs(found[name] - value).max(), relative * np.abs(value).max() + floor * largest
            assert error <= limit, f"{name}: error {error}, expected at most {limit}"


def assert_close_through_norms(found, expected):
    """The same for what has gone through layer norms."""
    assert_close(found, expected, floor=FLOOR_THROUGH_NORMS)


def assert_identical(found, expected):
    """Tensors by name, bit for bit (0 and -0 are one number)."""
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, strict=True, err_msg=name)


def stream(seed, purpose):
    """Random numbers for one purpose: what else is drawn doesn't move them."""
    return np.random.default_rng([seed, zlib.crc32(purpose.encode())])


class Result(NamedTuple):
    """What a function gave and saved, and its gradients by name, without those that are absent."""

    y: Any
    saved: Any
    gradients: dict[str, Any]


@dataclass(frozen=True)
class AttentionCase:
    """One of the attentions with its shapes, by the letters of attention.py: B, T, P, S, H, E, N, R."""

    seed: int = 0
    core: str = "all-attention"
    batch: int = 1
    block: int = 1
    past: int = 0
    size: int = 1
    heads: int = 1
    width: int = 1
    slots: int = 1
    ramp: int = 1
    spans: str = "none"
    positions: str = "none"
    attend_self: bool = False
    epsilon: float = 0.0
    dropout: float = 0.0

    @property
    def module(self):
        return CORES[self.core]

    @property
    def options(self):
        return attention.Options(self.size, self.ramp, self.epsilon, self.attend_self, self.dropout)

    @property
    def context_heads(self):
        return self.heads - (self.heads // 2 if self.core == "head-split" else 0)

    @property
    def memory_shape(self):
        groups = {"single-head": 1, "head-split": self.heads // 2}.get(self.core, self.heads)
        return groups, self.slots, self.width * (self.heads if self.core == "single-head" else 1)

    @property
    def joint(self):
        return self.core == "all-attention"

    def stream(self, purpose):
        return stream(self.seed, purpose)

    def arguments(self):
        rng, seen = self.stream("arguments"), self.context_heads
        queries = rng.standard_normal((self.batch, self.block, self.heads, self.width))
        keys, values = rng.standard_normal((2, self.batch, self.past + self.block, seen, self.width))
        table = u = v = mu = nu = None
        if self.positions != "none":
            by_head = () if self.positions == "relative" else (seen,)
            table = rng.standard_normal((*by_head, self.size, self.width))
        if self.positions == "transformer-xl":
            u, v = rng.standard_normal((2, seen, self.width))
        if self.slots:
            mu, nu = rng.standard_normal((2, *self.memory_shape))
        return attention.Arguments(queries, keys, values, table, mu, nu, spans(rng, self.spans, seen, self.size), u, v)

    def keep(self):
        """Keep-masks of the context's and of the persistent slots."""
        if not self.dropout:
            return None, None
        rng = self.stream("keep")
        keep = rng.random((self.batch, self.context_heads, self.block, self.size)) >= self.dropout
        groups, slots, _ = self.memory_shape
        return keep, rng.random((self.batch, groups, self.block, slots)) >= self.dropout if slots else None

    def cotangent(self, purpose="cotangent"):
        return self.stream(purpose).standard_normal((self.batch, self.block, self.heads, self.width))

    def run(self, arguments, keep=None, dy=None, options=None):
        """The function and its gradients; masks, cotangent and constants are the case's own unless given."""
        keep = self.keep() if keep is None else keep
        y, saved = self.module.forward(arguments, self.options if options is None else options, *keep)
        gradients = self.module.backward(self.cotangent() if dy is None else dy, saved)._asdict()
        return Result(y, saved, {name: value for name, value in gradients.items() if value is not None})

    def context(self, saved):
        """What the softmax that the context is in has saved: of attention.py in any of the four."""
        return saved if self.joint else saved.context


def spans(rng, kind, heads, size):
    """ρ of each head; "kink": z = S ρ a whole number, so that distances sit on both ends of the ramp."""
    if kind == "none":
        return None
    if kind == "random":
        return rng.random(heads)
    if kind == "kink":
        return rng.integers(0, size + 1, heads) / size
    return np.full(heads, float(kind == "full"))


def sizes(most):
    """1 … most; 1 twice as often as any other."""
    return st.sampled_from([1, 1, *range(2, most + 1)])


def lengths_of_past(size):
    """0 to beyond S; none and exactly S twice as often."""
    return st.sampled_from([0, size, *range(size + 4)])


seeds = st.integers(0, 2**32 - 1)


def chooser(draw, held):
    """pick(name, strategy): draws, from what `held` has under the name (a value, or a strategy) if it has it."""

    def pick(name, strategy):
        strategy = held.get(name, strategy)
        return draw(strategy) if isinstance(strategy, st.SearchStrategy) else strategy

    return pick


@st.composite
def attention_cases(draw, **held):
    """Any AttentionCase; `held` gives fields a value or a strategy of their own."""
    pick = chooser(draw, held)
    core = pick("core", st.sampled_from(list(CORES)))
    size, attend_self = pick("size", sizes(6)), pick("attend_self", st.booleans())
    slots = pick("slots", st.sampled_from([0, 1, 1, 2, 3] if core == "all-attention" else [1, 1, 2, 3]))
    past = pick("past", lengths_of_past(size))
    return AttentionCase(
        pick("seed", seeds), core, pick("batch", sizes(2)), pick("block", sizes(5)),
        past if slots or attend_self else max(past, 1),  # without persistent vectors the first query must see something
        size, pick("heads", st.sampled_from([2, 2, 3]) if core == "head-split" else sizes(3)), pick("width", sizes(3)),
        slots, pick("ramp", st.sampled_from([1, 2, 3, 32])), pick("spans", st.sampled_from(SPANS)),
        pick("positions", st.sampled_from(TABLES)), attend_self, pick("epsilon", st.sampled_from(EPSILONS)),
        pick("dropout", st.sampled_from([0.0, 0.4])),
    )


def configuration(**changes):
    """The smallest model, with changes."""
    least = {"vocabulary": 2, "width": 1, "heads": 1, "layers": 1, "span": 1, "span_ramp": 1, "memory": 1}
    if changes.get("variant") in ("transformer", "ff-attention"):
        least |= {"memory": 0, "feed_forward": 1}
    return ModelConfig(**{**least, **changes})


@dataclass(frozen=True)
class ModelCase:
    """A model, one block of text for it, and the length P of the past before it."""

    config: ModelConfig
    seed: int = 0
    batch: int = 1
    block: int = 1
    past: int = 0
    spans: str = "zero"

    def stream(self, purpose):
        return stream(self.seed, purpose)

    def changed(self, **changes):
        """The same case with another configuration."""
        return replace(self, config=replace(self.config, **changes))

    def parameters(self):
        """Away from their first values: normal, gains around 1, spans as `spans` says."""
        rng = self.stream("parameters")
        p = parameters.initialize(self.config)
        for name in p:  # by name, so that a tensor more or less doesn't move the others
            p[name] = 0.6 * self.stream(name).standard_normal(p[name].shape) + name.endswith(".gain")
            if name.endswith(".span"):
                p[name] = spans(rng, self.spans, self.config.context_heads, self.config.span)
        return p

    def text(self):
        """Tokens and targets (B, T)."""
        return self.stream("text").integers(self.config.vocabulary, size=(2, self.batch, self.block))

    def before(self):
        """A past (L, B, P, D)."""
        return self.stream("past").standard_normal((self.config.layers, self.batch, self.past, self.config.width))

    def masks(self):
        """Dropout's keep-masks by name."""
        return draw_masks(self.config, self.batch, self.block, self.seed, 1, np.zeros(0))

    def cotangent(self):
        return self.stream("cotangent").standard_normal((self.batch, self.block))

    def run(self, p=None, tokens=None, targets=None, past=None, masks=None, dy=None):
        """The model's output as `y`, and its gradients; what isn't given is the case's own."""
        own_tokens, own_targets = self.text()
        out = model.forward(
            self.parameters() if p is None else p, self.config, own_tokens if tokens is None else tokens,
            own_targets if targets is None else targets, self.before() if past is None else past,
            self.masks() if masks is None else masks,
        )
        return Result(out, out.saved, model.backward(out.saved, self.cotangent() if dy is None else dy))


@st.composite
def model_cases(draw, **held):
    """Any ModelCase: every variant, kind of positions, input and output; `held` as in attention_cases."""
    pick = chooser(draw, held)
    variant, kind = pick("variant", st.sampled_from(VARIANTS)), pick("positions", st.sampled_from(POSITIONS))
    heads = pick("heads", st.sampled_from([2, 2, 3]) if variant == "head-split" else sizes(3))
    width, span = heads * pick("head_width", sizes(3)), pick("span", sizes(5))
    attend_self = pick("attend_self", st.booleans())
    feed_forward = {"transformer": st.sampled_from([0, 1, 4]), "ff-attention": sizes(4)}.get(variant, 0)
    memory = 0 if variant in ("transformer", "ff-attention") else pick("memory", sizes(3))
    spans_kind = pick("spans", st.sampled_from(SPANS))
    past = pick("past", lengths_of_past(span))
    joint = variant in ("all-attention", "transformer", "ff-attention")
    vocabulary = pick("vocabulary", st.sampled_from([2, 2, 3, 5, 9]))
    form = {
        "share_positions": st.booleans(), "span_ramp": st.sampled_from([1, 2, 3, 32]),
        "span_penalty": st.sampled_from([0.0, 0.3]), "normalizer_epsilon": st.sampled_from(EPSILONS),
        "norm": st.sampled_from(["post", "pre"]), "dropout": st.sampled_from([0.0, 0.0, 0.3]),
        "embedding_dropout": st.sampled_from([0.0, 0.0, 0.3]), "layers": sizes(2),
    }
    config = ModelConfig(
        vocabulary=vocabulary, width=width, heads=heads, span=span, memory=memory, variant=variant, positions=kind,
        feed_forward=pick("feed_forward", feed_forward), attend_self=attend_self, adaptive_span=spans_kind != "none",
        **{name: pick(name, strategy) for name, strategy in form.items()},
        **pick("ends", inputs_and_outputs(vocabulary, width)),
    )
    return ModelCase(
        config, pick("seed", seeds), pick("batch", sizes(3)), pick("block", sizes(6)),
        max(past, 1) if joint and not memory and not attend_self else past, spans_kind,
    )


@st.composite
def inputs_and_outputs(draw, vocabulary, width, adaptive=(False, True)):
    """Plain or adaptive input and softmax, tied or not, with empty clusters among the adaptive ones."""
    if not draw(st.sampled_from(adaptive)):
        return {"tie_tables": draw(st.booleans())}
    cutoffs = sorted(draw(st.lists(st.integers(1, vocabulary), min_size=1, max_size=3)))
    divisors = [divisor for divisor in (1, 2, 3) if width % divisor ** len(cutoffs) == 0]
    return {"cutoffs": tuple(cutoffs), "divisor": draw(st.sampled_from(divisors)), "tie_tables": draw(st.booleans()),
            "tie_projections": draw(st.booleans()), "cluster_order": draw(st.sampled_from(["ascending", "reversed"]))}
