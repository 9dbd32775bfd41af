"""Cases of the attentions, and of the sublayers around them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.golden.cases.form import Case, Draw

CONVENTIONS: Mapping[str, dict[str, Any]] = {
    "exact": {"normalizer_epsilon": 0.0, "attend_self": False},
    "published": {"normalizer_epsilon": 1e-8, "attend_self": False},
    "transformer-xl": {"normalizer_epsilon": 0.0, "attend_self": True},
}

# name: what differs from the ordinary arguments, and the flags
FORMS: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "ordinary": ({}, ()),
    "past-empty": ({"past": 0}, ("past-empty",)),
    "past-short": ({"past": 1}, ("past-short",)),
    "past-exact": ({"past": 5}, ()),
    "past-long": ({"past": 8}, ("past-long",)),
    "one-token": ({"block": 1}, ("one-token",)),
    "long-block": ({"block": 7, "past": 2}, ()),
    "one-position": ({"size": 1}, ("one-position",)),
    "one-vector": ({"slots": 1}, ("one-vector",)),
    "one-head": ({"heads": 1}, ("one-head",)),
    "width-one": ({"width": 1}, ()),
    "one-text": ({"batch": 1}, ()),
    "no-span": ({"spans": None}, ("no-span",)),
    "span-zero": ({"spans": 0.0}, ("kink", "span-zero")),
    "span-kink": ({"spans": 0.5, "size": 8}, ("kink", "span-kink")),
    "span-full": ({"spans": 1.0}, ("kink", "span-full")),
    "no-positions": ({"positions": None}, ("no-positions",)),
    "no-memory": ({"slots": 0}, ("no-memory",)),
    "tiny-mass": ({"far": 8.0, "past": 9, "size": 8, "slots": 0}, ("tiny-mass",)),
    "overflow": ({"scale": 32.0, "spans": 0.5}, ("overflow",)),
    "overflow-double": ({"scale": 512.0, "spans": None, "positions": None, "slots": 0}, ("overflow", "no-memory")),
    "dropout": ({"dropout": 0.25}, ("dropout",)),
    "transformer-xl-positions": ({"positions": "by-head"}, ("u-and-v",)),
}
CLOSED_ABOVE: dict[str, Any] = {"above": 1024.0, "past": 9, "size": 8}
SPLIT = ("ordinary", "past-empty", "past-long", "one-token", "one-vector", "span-zero", "dropout",
         "transformer-xl-positions")


def cases() -> Iterator[Case]:
    """All of them, group by group."""
    for name, (form, flags) in FORMS.items():
        for convention in CONVENTIONS:
            yield core("attention", "all-attention", name, form, flags, convention)
    for convention in ("exact", "transformer-xl"):  # with ε closed slots count, and would take all
        yield core("attention", "all-attention", "closed-above", CLOSED_ABOVE, ("overflow",), convention)
    for variant in ("attention-split", "single-head", "head-split"):
        for name in SPLIT:
            form, flags = FORMS[name]
            for convention in ("exact", "published"):
                yield core(variant, variant, name, form, flags, convention)
    yield from persistent()
    yield from refused()
    yield from layers()


def arguments(
    d: Draw, variant: str, batch: int = 2, block: int = 3, past: int = 3, heads: int = 2, width: int = 2, size: int = 5,
    slots: int = 3, spans: float | str | None = "drawn", positions: str | None = "shared", far: float = 0.0,
    above: float = 0.0, scale: float = 1.0, dropout: float = 0.0,
) -> dict[str, Array]:
    """Inputs of an attention; head-split has one more head that asks than heads with keys."""
    asking = heads + 1 if variant == "head-split" else heads
    shapes = {"single-head": (1, slots, heads * width), "head-split": (1, slots, width)}
    memory, in_keys = shapes.get(variant, (heads, slots, width)), (batch, past + block, heads, width)
    inputs = {"queries": scale * d.numbers(batch, block, asking, width), "keys": d.numbers(*in_keys),
              "values": d.numbers(*in_keys)}
    if positions is not None:
        inputs["positions"] = d.numbers(*((heads, size, width) if positions == "by-head" else (size, width)))
    if positions == "by-head":
        inputs |= {"content_bias": d.numbers(heads, width), "position_bias": d.numbers(heads, width)}
    if slots:
        inputs |= {"memory_keys": d.numbers(*memory), "memory_values": d.numbers(*memory)}
    if spans is not None:
        inputs["rho"] = d.shares(heads) if spans == "drawn" else np.full(heads, spans)
    if far:  # nearly all of softmax's weight stands where the mask is nearly closed
        far_keys = inputs["keys"][:, : past + block - size + 4]
        far_keys[:] = (far + np.round(4 * far_keys) / 4) * np.sign(inputs["queries"][:, -1:, :heads])
        inputs["rho"] = np.full(heads, 1 / 64)
    if above:  # the largest logits stand where the mask is closed for every query
        inputs["keys"][:, : past + 1 - 4] = above * np.sign(inputs["queries"][:, -1:, :heads])
        inputs["rho"] = np.full(heads, 1 / 64)
    if dropout:
        inputs["keep"] = d.keep(batch, heads, block, size)
        inputs["keep_memory"] = d.keep(batch, memory[0], block, slots)
    return {**inputs, "d_y": d.numbers(batch, block, asking, width)}


def core(group: str, variant: str, name: str, form: dict[str, Any], flags: tuple[str, ...], convention: str) -> Case:
    """One attention under one convention."""
    inputs = arguments(Draw(f"{variant} {name}"), variant, **form)
    settings = {"span": form.get("size", 5), "ramp": 2, "dropout": form.get("dropout", 0.0), **CONVENTIONS[convention]}
    refused = name in ("no-memory",) and form.get("past", 3) == 0
    return Case(f"{group}/{name}@{convention}", group, variant, settings, inputs, convention, flags,
                ("rho",) if "kink" in flags else (), refused)


def persistent() -> Iterator[Case]:
    """Attention to persistent vectors alone."""
    for name, (heads, slots, rate) in {"heads": (2, 3, 0.0), "one-vector": (2, 1, 0.0), "dropout": (2, 3, 0.25)}.items():
        d = Draw(f"persistent {name}")
        inputs = {"queries": d.numbers(2, 2, heads, 3), "memory_keys": d.numbers(heads, slots, 3),
                  "memory_values": d.numbers(heads, slots, 3), "d_y": d.numbers(2, 2, heads, 3)}
        if rate:
            inputs["keep"] = d.keep(2, heads, 2, slots)
        yield Case(f"persistent-attention/{name}", "persistent-attention", "persistent-attention", {"rate": rate}, inputs,
                   flags=("dropout",) if rate else ())


def refused() -> Iterator[Case]:
    """Arguments that do not fit together, and a first query that sees nothing."""
    settings = {"span": 5, "ramp": 2, "dropout": 0.0, **CONVENTIONS["exact"]}
    spoilt: dict[str, dict[str, tuple[int, ...]]] = {
        "keys-of-another-width": {"keys": (2, 6, 2, 3)}, "values-of-another-length": {"values": (2, 5, 2, 2)},
        "positions-of-another-length": {"positions": (4, 2)}, "memory-of-another-head": {"memory_keys": (1, 3, 2)},
        "keys-shorter-than-the-block": {"keys": (2, 2, 2, 2), "values": (2, 2, 2, 2)},
        "spans-of-another-head": {"rho": (3,)},
    }
    for name, shapes in spoilt.items():
        d = Draw(f"refused {name}")
        inputs = {**arguments(d, "all-attention"), **{key: d.numbers(*shape) for key, shape in shapes.items()}}
        yield Case(f"attention/refused-{name}", "attention", "all-attention", settings, inputs, "exact", ("refused",),
                   refused=True)
    inputs = arguments(Draw("sees nothing"), "all-attention", past=0, slots=0)
    yield Case("attention/refused-sees-nothing", "attention", "all-attention", settings, inputs, "exact", ("refused",),
               refused=True)


def layers() -> Iterator[Case]:
    """The attention with its projections, and whole layers: both norms, every variant."""
    for convention in CONVENTIONS:
        d = Draw("attention-layer")
        square = {name: d.numbers(4, 4) for name in ("query", "key", "value", "output")}
        inputs = {"context": d.numbers(2, 5, 4), **square, "positions": d.numbers(4, 2), "memory_keys": d.numbers(2, 3, 2),
                  "memory_values": d.numbers(2, 3, 2), "span": d.shares(2), "d_out": d.numbers(2, 3, 4)}
        settings = {"variant": "all-attention", "head_width": 2, "block": 3, "span": 4, "ramp": 2}
        group = "attention-layer"
        yield Case(f"{group}/ordinary@{convention}", group, group, settings | CONVENTIONS[convention], inputs, convention)
        for norm in ("post", "pre"):
            for variant in ("all-attention", "transformer", "ff-attention"):
                yield layer(variant, norm, convention)


def layer(variant: str, norm: str, convention: str) -> Case:
    """Residuals and norms around one or two sublayers."""
    d = Draw(f"layer {variant} {norm}")
    names = ("query", "key", "value", "output")
    inputs = {"h": d.numbers(2, 2, 4), "past": d.numbers(2, 2, 4),
              **{f"attention.{name}": d.numbers(4, 4) for name in names}, "attention.positions": d.numbers(3, 2),
              "attention.span": d.shares(2), "d_y": d.numbers(2, 2, 4)}
    sublayers = ["attention"] if variant == "all-attention" else ["attention", "feed_forward"]
    inputs |= {f"{name}_norm.{kind}": d.numbers(4) for name in sublayers for kind in ("gain", "bias")}
    if variant == "all-attention":
        inputs |= {f"attention.memory_{kind}": d.numbers(2, 2, 2) for kind in ("keys", "values")}
    else:
        inputs |= {"feed_forward.weight1": d.numbers(3, 4), "feed_forward.weight2": d.numbers(4, 3)}
    if variant == "transformer":
        inputs |= {"feed_forward.bias1": d.numbers(3), "feed_forward.bias2": d.numbers(4)}
    settings = {"variant": variant, "norm": norm, "head_width": 2, "span": 3, "ramp": 2, **CONVENTIONS[convention]}
    group, flags = "transformer-layer", ("pre-norm",) if norm == "pre" else ()
    return Case(f"{group}/{variant}-{norm}@{convention}", group, group, settings, inputs, convention, flags)
