"""Cases of whole models over several segments, and of the optimisers."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.config import ModelConfig
from refimpl.golden.cases.attention import CONVENTIONS
from refimpl.golden.cases.form import ANY, Case, Draw
from refimpl.inputs import draw_masks
from refimpl.parameters import specification

MODEL = ModelConfig(vocabulary=5, width=4, heads=2, layers=2, span=4, memory=2, span_ramp=2, span_penalty=0.0625)
CLUSTERS: dict[str, Any] = {"cutoffs": (2, 4), "vocabulary": 6, "divisor": 2}
TIED: dict[str, Any] = {**CLUSTERS, "tie_tables": True, "tie_projections": True}
FEED_FORWARD: dict[str, Any] = {"memory": 0, "feed_forward": 3, "zero_past": True}
FORMS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "all-attention": ({}, ()),
    "transformer": (FEED_FORWARD, ()),
    "pre-norm": ({"norm": "pre"}, ("pre-norm",)),
    "fixed-span": ({"adaptive_span": False}, ("no-span",)),
    "span-over-segments": ({"span": 7}, ()),
    "adaptive": (CLUSTERS, ("cluster-order",)),
    "adaptive-tied": (TIED, ("cluster-order", "tied")),
    "adaptive-tied-transformer": ({**TIED, **FEED_FORWARD}, ("cluster-order", "tied")),
    "plain-tied": ({"tie_tables": True}, ("tied",)),
    "empty-cluster": ({"cutoffs": (2, 2), "divisor": 1}, ("empty-cluster", "cluster-order")),
    "dropout": ({"dropout": 0.25, "embedding_dropout": 0.25}, ("dropout",)),
    "positions-by-layer": ({"share_positions": False}, ()),
    "positions-none": ({"positions": "none"}, ("no-positions",)),
}
XL = {"positions": "transformer-xl"}
POSITIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "positions-transformer-xl": (XL, ("u-and-v", "sinusoid")),
    "positions-transformer-xl-by-layer": ({**XL, "share_positions": False}, ("u-and-v", "sinusoid")),
    "positions-sinusoid": ({"positions": "sinusoid"}, ("sinusoid",)),
    "positions-learned": ({"positions": "learned"}, ()),
}
VARIANTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "attention-split": ({"variant": "attention-split"}, ()),
    "head-split": ({"variant": "head-split", "width": 6, "heads": 3}, ()),
    "single-head": ({"variant": "single-head"}, ()),
    "ff-attention": ({**FEED_FORWARD, "variant": "ff-attention"}, ()),
}


def cases() -> Iterator[Case]:
    """All of them."""
    for name, (form, flags) in (FORMS | POSITIONS | VARIANTS).items():
        for convention in CONVENTIONS if name in FORMS else ("exact",):
            yield model(name, form, flags, convention)
    yield from optimizers()


def model(name: str, form: dict[str, Any], flags: tuple[str, ...], convention: str) -> Case:
    """Three segments, each with the past that the one before left; the gradient of the last one."""
    by_convention = {**CONVENTIONS[convention]}
    if convention == "published":
        by_convention |= {"zero_past": True, "cluster_order": "reversed"}
    config = replace(MODEL, **{**form, **by_convention})
    d = Draw(f"model {name}")
    inputs = parameters(d, config)
    inputs["tokens"], inputs["targets"] = d.integers(config.vocabulary, 2, 3, 2, 3)
    if config.cutoffs:  # every cluster that has words is met in the last segment
        inputs["targets"][-1].reshape(-1)[:] = np.resize(np.arange(config.vocabulary), 6)
    inputs["past"] = np.zeros((2, 2, config.span if config.zero_past else 0, config.width))
    masks = draw_masks(config, 2, 3, 0, 1, inputs["past"])
    inputs |= {f"keep.{key}": mask for key, mask in masks.items()}
    inputs["d_token_loss"] = d.numbers(2, 3)
    flags = (*flags, "several-segments", *(["zero-past"] if config.zero_past else []))
    return Case(f"model/{name}@{convention}", "model", "model", asdict(config), inputs, convention, flags)


def parameters(d: Draw, config: ModelConfig) -> dict[str, Array]:
    """Every parameter of a model: spans off the kinks, gains near 1."""
    values = {}
    for spec in specification(config):
        if spec.name.endswith(".span"):
            values[spec.name] = d.shares(*spec.shape)
        else:
            values[spec.name] = d.numbers(*spec.shape) / 2 + (1 if spec.name.endswith(".gain") else 0)
    return values


SMALL = ModelConfig(vocabulary=3, width=2, heads=2, layers=1, span=2, memory=1)
OPTIMIZERS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "sgd": ({"optimizer": "sgd", "learning_rate": 0.25, "clip": 0.0}, ANY, ()),
    "sgd-momentum": ({"optimizer": "sgd", "learning_rate": 0.25, "clip": 0.0, "momentum": 0.75}, ANY, ()),
    "sgd-clipped": ({"optimizer": "sgd", "learning_rate": 0.25, "clip": 0.5}, "torch", ("clip",)),
    "adagrad": ({"optimizer": "adagrad", "learning_rate": 0.07, "clip": 0.0}, ANY, ()),
    "adagrad-each-clipped": ({"optimizer": "adagrad", "learning_rate": 0.07, "clip": 0.03, "clip_each": True}, "published",
                             ("clip",)),
    "adagrad-clipped": ({"optimizer": "adagrad", "learning_rate": 0.07, "clip": 0.5}, "torch", ("clip",)),
    "adam": ({"optimizer": "adam", "learning_rate": 0.01, "clip": 0.0}, ANY, ()),
    "adam-clipped": ({"optimizer": "adam", "learning_rate": 0.01, "clip": 1.0}, "published", ("clip",)),
    "adam-other-betas": ({"optimizer": "adam", "learning_rate": 0.01, "clip": 0.0, "adam_betas": (0.5, 0.75)}, ANY, ()),
}
SCHEDULES: dict[str, tuple[int, dict[str, Any], tuple[str, ...]]] = {
    "1-update": (1, {}, ()),
    "20-updates": (20, {}, ("trajectory",)),
    "20-updates-warm-up": (20, {"warm_up": 8, "last_updates": 5}, ("trajectory", "warm-up")),
}


def optimizers() -> Iterator[Case]:
    """Parameters after given gradients; spans are clamped after every update."""
    for name, (method, convention, flags) in OPTIMIZERS.items():
        for schedule, (updates, rates, more) in SCHEDULES.items():
            d = Draw(f"optimizer {name} {schedule}")
            p = parameters(d, SMALL)
            p["layers.0.attention.span"] = np.array([1 / 64, 63 / 64])  # the first updates drive spans beyond [0, 1]
            gradients = {f"gradient.{key}": d.numbers(updates, *array.shape) for key, array in p.items()}
            gradients["gradient.layers.0.attention.span"][0] = [1, -1]
            settings = {"model": asdict(SMALL), "train": {**method, **rates, "updates": updates}}
            suffix = "" if convention == ANY else f"@{convention}"
            yield Case(f"optimizer/{name}-{schedule}{suffix}", "optimizer", "optimizer", settings, {**p, **gradients},
                       convention, (*flags, *more))
