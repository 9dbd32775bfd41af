"""Whole models as gradient checks take them: the loss of a third segment, and the span penalty, by every parameter."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from refimpl import model, parameters
from refimpl.arrays import Array, random_stream, to_library_of
from refimpl.checks.pairs import Pair, Stream
from refimpl.config import ModelConfig
from refimpl.functions import FUNCTIONS, TILED, Function, Results
from refimpl.inputs import draw_masks

BASE = ModelConfig(vocabulary=7, width=6, heads=3, layers=2, span=5, memory=2, span_ramp=2, span_penalty=0.01)
CLUSTERS = {"cutoffs": (2, 4), "divisor": 1}
TIED = {**CLUSTERS, "tie_tables": True, "tie_projections": True}
FEED_FORWARD = {"memory": 0, "feed_forward": 5, "zero_past": True}
FORMS: dict[str, dict[str, Any]] = {
    "all-attention": {},
    "attention-split": {"variant": "attention-split"},
    "head-split": {"variant": "head-split"},
    "single-head": {"variant": "single-head"},
    "ff-attention": {**FEED_FORWARD, "variant": "ff-attention"},
    "transformer": FEED_FORWARD,
    "positions-transformer-xl": {"positions": "transformer-xl"},
    "positions-transformer-xl-by-layer": {"positions": "transformer-xl", "share_positions": False},
    "positions-sinusoid": {"positions": "sinusoid"},
    "positions-learned": {"positions": "learned"},
    "positions-by-layer": {"share_positions": False},
    "positions-none": {"positions": "none"},
    "fixed-span": {"adaptive_span": False},
    "attend-self": {"attend_self": True},
    "pre-norm": {"norm": "pre"},
    "published": {"normalizer_epsilon": 1e-8, "zero_past": True},
    "dropout": {"dropout": 0.3, "embedding_dropout": 0.2},
    "adaptive": CLUSTERS,
    "adaptive-tied": {**TIED, "cluster_order": "reversed"},
    "plain-tied": {"tie_tables": True},
}


def scaled_down(config: ModelConfig) -> ModelConfig:
    """The same form at the size of a check: every convention and switch as it is, every size a few units."""
    clusters = len(config.cutoffs)
    divisor = min(config.divisor, 2)
    width = max(2 * min(config.heads, 2), divisor**clusters)
    return replace(
        config, vocabulary=3 + 2 * clusters, width=width, heads=min(config.heads, 2), layers=min(config.layers, 2), span=5,
        memory=min(config.memory, 2), feed_forward=min(config.feed_forward, 5), span_ramp=2, divisor=divisor,
        cutoffs=tuple(2 + 2 * i for i in range(clusters)))


def of_model(config: ModelConfig, rng: Stream, block: int) -> Pair:
    """y = Σ w_bt token_loss_bt + span penalty, w random, of the third of three segments, the past of two before it.

    Parameters are moved away from their first values, spans to places that are no kinks.
    """
    seed = int(rng.integers(2**31))
    p = parameters.initialize(config, seed)
    p.vector += 0.1 * rng.standard_normal(p.vector.size)
    for name in (name for name in p if name.endswith(".span")):
        p[name] = rng.uniform(0.1, 0.5, p[name].shape)
    tokens, targets = rng.integers(0, config.vocabulary, (2, 3, 2, block))
    firsts = [first for first, end, _ in config.clusters if first < end][: 2 * block]
    for words in (tokens[2], targets[2]):  # every cluster is met, or its gradients would be 0
        words.reshape(-1)[: len(firsts)] = firsts
    masks = {f"keep.{name}": mask for name, mask in draw_masks(config, 2, block, seed, 1, p.vector).items()}
    weights, settings, textbook = rng.standard_normal((2, block)), asdict(config), FUNCTIONS["model"]
    start = {"tokens": tokens[:2], "targets": targets[:2], "past": model.initial_past(config, 2, p.vector)}
    past = textbook.forward(settings, {**p, **start, **masks})[0]["past"]
    inputs = {"tokens": tokens[2:], "targets": targets[2:], "past": past, **masks}

    def forward(function: Function, *given: Array) -> tuple[Results, Any]:
        there = {name: to_library_of(given[0], array) for name, array in inputs.items()}
        return function.forward(settings, {**there, **dict(zip(p, given, strict=True))})

    def value(*given: Array) -> Any:
        outputs, _ = forward(textbook, *given)
        return (outputs["token_loss"] * weights.astype(given[0].real.dtype)).sum() + outputs["span_penalty"]

    def vjp(function: Function, dy: Any, *given: Array) -> tuple[Array, ...]:
        cotangent = to_library_of(given[0], weights.astype(given[0].dtype))
        gradients = function.backward({"token_loss": cotangent}, forward(function, *given)[1])
        return tuple(dy * gradients[name] for name in p)

    return Pair(value, partial(vjp, textbook), dict(p.items()), tiled=partial(vjp, TILED["model"]))


def named(name: str, config: ModelConfig, seed: int, size: int) -> Pair:
    """The model's check; its random numbers depend on seed and name alone."""
    return of_model(config, random_stream(seed, f"check {name}"), size)


def forms() -> Mapping[str, ModelConfig]:
    """Every variant, every kind of positions and every convention, by name."""
    return {name: replace(BASE, **changes) for name, changes in FORMS.items()}
