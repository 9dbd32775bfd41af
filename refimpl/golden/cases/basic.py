"""Cases of the functions below and beside the attention."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.golden.cases.form import ANY, Case, Draw

SHAPES = {"one-row": (1, 1), "rows": (2, 3)}


def cases() -> Iterator[Case]:
    """All of them, group by group."""
    for group in (linear, layer_norm, dropout, embedding, softmax, softmax_loss, feed_forward, span, positions,
                  masked_softmax, adaptive_input, adaptive_softmax):
        yield from group()


def linear() -> Iterator[Case]:
    """y = x Wᵀ + b."""
    for name, (rows, wide, out) in {"rows": (3, 4, 2), "one-by-one": (1, 1, 1), "wide": (2, 2, 7)}.items():
        d = Draw(f"linear {name}")
        yield Case(f"linear/{name}", "linear", "linear", {}, {
            "x": d.numbers(rows, 2, wide), "weight": d.numbers(out, wide), "bias": d.numbers(out),
            "d_y": d.numbers(rows, 2, out)})


def layer_norm() -> Iterator[Case]:
    """Biased variance, ε = 1e-5 inside the root; a nearly constant row shows where ε stands."""
    for name, width in {"rows": 5, "two": 2, "wide": 16}.items():
        d = Draw(f"layer-norm {name}")
        yield _layer_norm(name, d, d.numbers(2, 3, width), ())
    d = Draw("layer-norm nearly constant")
    x = 1 - d.integers(2, 2, 3, 4) / 256
    x[..., :2] = 1, 255 / 256
    yield _layer_norm("nearly-constant", d, x, ("small-variance",))
    d = Draw("layer-norm large mean")
    yield _layer_norm("large-mean", d, 64 + np.round(4 * d.numbers(2, 3, 4)) / 2, ("large-mean",))


def _layer_norm(name: str, d: Draw, x: Array, flags: tuple[str, ...]) -> Case:
    width = x.shape[-1]
    return Case(f"layer-norm/{name}", "layer-norm", "layer-norm", {"epsilon": 1e-5}, {
        "x": x, "gain": d.numbers(width), "bias": d.numbers(width), "d_y": d.numbers(*x.shape)}, ANY, flags)


def dropout() -> Iterator[Case]:
    """The mask is given; what is kept is scaled."""
    for name, rate in {"quarter": 0.25, "half": 0.5}.items():
        d = Draw(f"dropout {name}")
        inputs = {"x": d.numbers(3, 4), "keep": d.keep(3, 4), "d_y": d.numbers(3, 4)}
        yield Case(f"dropout/{name}", "dropout", "dropout", {"rate": rate}, inputs, ANY, ("dropout",))


def embedding() -> Iterator[Case]:
    """Rows by token; a token that repeats has the sum of its places as gradient."""
    for name, tokens in {"distinct": [[2, 0, 1]], "repeated": [[1, 1, 2], [1, 0, 2]], "one-word": [[0, 0]]}.items():
        d = Draw(f"embedding {name}")
        table, where = d.numbers(1 if name == "one-word" else 4, 3), np.array(tokens)
        flags = () if name == "distinct" else ("repeated-token",)
        inputs = {"table": table, "tokens": where, "d_x": d.numbers(*where.shape, 3)}
        yield Case(f"embedding/{name}", "embedding", "embedding", {}, inputs, ANY, flags)
    d = Draw("embedding outside")
    yield Case("embedding/outside", "embedding", "embedding", {}, {
        "table": d.numbers(3, 2), "tokens": np.array([[0, 3]]), "d_x": d.numbers(1, 2, 2)}, ANY, ("refused",), refused=True)


def softmax() -> Iterator[Case]:
    """Rows that a naive exponential overflows on, too."""
    for name, scale in {"rows": 1, "one-slot": 1, "large": 64, "larger": 1024}.items():
        d = Draw(f"softmax {name}")
        shape = (3, 1) if name == "one-slot" else (3, 4)
        flags = ("overflow",) if scale > 1 else ()
        inputs = {"logits": scale * d.numbers(*shape), "d_attention": d.numbers(*shape)}
        yield Case(f"softmax/{name}", "softmax", "softmax", {}, inputs, ANY, flags)


def softmax_loss() -> Iterator[Case]:
    """-log p(target)."""
    forms = {"rows": (5, 1), "two-words": (2, 1), "one-word": (1, 1), "large": (5, 64), "larger": (5, 1024)}
    for name, (words, scale) in forms.items():
        d = Draw(f"softmax-loss {name}")
        inputs = {"logits": scale * d.numbers(2, 3, words), "targets": d.integers(words, 2, 3), "d_loss": d.numbers(2, 3)}
        yield Case(f"softmax-loss/{name}", "softmax-loss", "softmax-loss", {}, inputs, ANY,
                   ("overflow",) if scale > 1 else ())
    d = Draw("softmax-loss denormal")
    tiny = d.numbers(2, 3) * 2.0**-140
    yield Case("softmax-loss/denormal", "softmax-loss", "softmax-loss", {}, {
        "logits": tiny, "targets": d.integers(3, 2), "d_loss": d.numbers(2)}, ANY, ("denormal",))


def feed_forward() -> Iterator[Case]:
    """relu (slope 0 at 0), and softmax in its place."""
    for name, wide in {"plain": 5, "dropout": 6, "one-unit": 1, "at-zero": 4}.items():
        d = Draw(f"feed-forward {name}")
        inputs = {"h": d.numbers(2, 2, 3), "weight1": d.numbers(wide, 3), "bias1": d.numbers(wide),
                  "weight2": d.numbers(3, wide), "bias2": d.numbers(3), "d_y": d.numbers(2, 2, 3)}
        settings: dict[str, Any] = {}
        if name == "at-zero":
            inputs["weight1"][0], inputs["bias1"][0] = 0, 0
        if name == "dropout":
            inputs["keep"], settings = d.keep(2, 2, wide), {"rate": 0.25}
        fixed = ("h", "weight1", "bias1") if name == "at-zero" else ()
        flags = {"dropout": ("dropout",), "at-zero": ("kink",)}.get(name, ())
        yield Case(f"feed-forward/{name}", "feed-forward", "feed-forward", settings, inputs, ANY, flags, fixed)
    for name, wide in {"plain": 4, "dropout": 5, "one-vector": 1}.items():
        d = Draw(f"ff-attention {name}")
        inputs = {"h": d.numbers(2, 2, 3), "weight1": d.numbers(wide, 3), "weight2": d.numbers(3, wide),
                  "d_y": d.numbers(2, 2, 3)}
        settings = {}
        if name == "dropout":
            inputs["keep"], settings = d.keep(2, 2, wide), {"rate": 0.25}
        yield Case(f"ff-attention/{name}", "ff-attention", "ff-attention", settings, inputs, ANY,
                   ("dropout",) if name == "dropout" else ())


def span() -> Iterator[Case]:
    """The soft mask by distance, and its penalty."""
    sizes = {"ramp": (8, 3), "ramp-of-one": (4, 1), "ramp-beyond-span": (2, 8), "one-position": (1, 2)}
    for name, (size, ramp) in sizes.items():
        d = Draw(f"span {name}")
        yield Case(f"span/{name}", "span", "span-mask", {"size": size, "ramp": ramp}, {
            "rho": d.shares(3), "d_mask": d.numbers(3, size)})
    for name, rho in {"zero": 0.0, "kink": 0.5, "full": 1.0}.items():
        d = Draw(f"span at {name}")
        yield Case(f"span/at-{name}", "span", "span-mask", {"size": 8, "ramp": 3}, {
            "rho": np.array([rho]), "d_mask": d.numbers(1, 8)}, ANY, ("kink", f"span-{name}"), ("rho",))
    for name, heads in {"one-head": 1, "heads": 3}.items():
        d = Draw(f"penalty {name}")
        yield Case(f"span/penalty-{name}", "span", "span-penalty", {"size": 16, "weight": 0.03125}, {
            "rho": d.shares(heads), "d_penalty": d.numbers()})


def positions() -> Iterator[Case]:
    """Scores by distance, and Transformer-XL's table."""
    for name, shape in {"shared": (4, 3), "by-head": (2, 4, 3), "one-distance": (1, 3)}.items():
        d = Draw(f"positions {name}")
        inputs = {"queries": d.numbers(2, 2, 2, 3), "table": d.numbers(*shape), "d_scores": d.numbers(2, 2, 2, shape[-2])}
        yield Case(f"positions/{name}", "positions", "relative-positions", {}, inputs)
    for name, (wide, first) in {"even": (4, 1), "odd": (3, 1), "from-zero": (4, 0)}.items():
        d = Draw(f"projected {name}")
        width = wide // 2 if wide % 2 == 0 else wide
        inputs = {"weight": d.numbers(wide, wide), "d_table": d.numbers(wide // width, 5, width)}
        settings = {"size": 5, "first": first, "width": width}
        yield Case(f"positions/projected-{name}", "positions", "projected-positions", settings, inputs, ANY, ("sinusoid",))


def masked_softmax() -> Iterator[Case]:
    """a = w e / Σ (w + ε) e: both forms of ε, slots of weight 0, slots that are absent, tiny mass, large logits."""
    forms: dict[str, tuple[float, tuple[str, ...]]] = {
        "plain": (1, ()), "weight-zero": (1, ("weight-zero",)), "absent": (1, ("absent-slot",)),
        "tiny-mass": (1, ("tiny-mass",)), "large": (64, ("overflow",)), "larger": (1024, ("overflow",)),
        "absent-above": (1, ("overflow", "absent-slot"))}
    for convention, epsilon in {"exact": 0.0, "published": 1e-8}.items():
        for name, (scale, flags) in forms.items():
            d = Draw(f"masked-softmax {name}")
            logits, weight, present = scale * d.numbers(2, 4), d.shares(2, 4), np.ones(4, bool)
            if name == "weight-zero":
                weight[:, 1] = 0
            if name in ("absent", "absent-above"):
                present[0] = False
            if name == "absent-above":
                logits[:, 0] = 1024
            if name == "tiny-mass":
                logits[:, 1], weight[:, 1] = 10, 2.0**-20
            inputs = {"logits": logits, "weight": weight, "present": present, "d_attention": d.numbers(2, 4)}
            yield Case(f"masked-softmax/{name}@{convention}", "masked-softmax", "masked-softmax", {"epsilon": epsilon},
                       inputs, convention, flags)


CLUSTERS = {"two": (3, 2), "three": (2, 3, 1), "one": (4,), "empty-tail": (2, 0, 3), "one-word-each": (1, 1, 1)}


def adaptive_input() -> Iterator[Case]:
    """√D P_i table_i[word]."""
    for name, sizes in CLUSTERS.items():
        d = Draw(f"adaptive-input {name}")
        tokens = np.resize(np.arange(sum(sizes))[::-1], (2, sum(sizes) // 2 + 1))
        inputs = _tables(d, sizes)
        yield Case(f"adaptive-input/{name}", "adaptive-input", "adaptive-input", {}, {
            **inputs, "tokens": tokens, "d_x": d.numbers(*tokens.shape, 4)}, ANY, ("repeated-token", *_cluster_flags(name)))


def adaptive_softmax() -> Iterator[Case]:
    """Both orders of the head's cluster slots."""
    for name, sizes in CLUSTERS.items():
        orders = {"exact": "ascending", "published": "reversed"} if len(sizes) > 2 else {ANY: "ascending"}
        for convention, order in orders.items():
            d = Draw(f"adaptive-softmax {name}")
            biases = {f"biases.{i}": d.numbers(size) for i, size in enumerate(sizes)}
            biases["cluster_bias"] = d.numbers(len(sizes) - 1)
            yield _adaptive_softmax(name, convention, order, d, sizes, biases)
    yield from torch_softmax()


def torch_softmax() -> Iterator[Case]:
    """What PyTorch's AdaptiveLogSoftmaxWithLoss has: no projection of the head, biases of the head alone, if any.

    It takes no cluster without words, nor one cluster alone.
    """
    for name in ("two", "three", "one-word-each"):
        for suffix in ("", "-head-bias"):
            d, sizes = Draw(f"adaptive-softmax {name}{suffix}"), CLUSTERS[name]
            biases = {"biases.0": d.numbers(sizes[0]), "cluster_bias": d.numbers(len(sizes) - 1)} if suffix else {}
            case = _adaptive_softmax(name + suffix, "torch", "ascending", d, sizes, biases)
            inputs = {key: array for key, array in case.inputs.items() if key != "projections.0"}
            yield case._replace(inputs=inputs)


def _adaptive_softmax(
    name: str, convention: str, order: str, d: Draw, sizes: tuple[int, ...], biases: dict[str, Array]
) -> Case:
    targets = np.resize(np.arange(sum(sizes)), (2, sum(sizes) // 2 + 1))
    inputs = {**_tables(d, sizes), **biases, "cluster_table": d.numbers(len(sizes) - 1, 4),
              "hidden": d.numbers(*targets.shape, 4), "targets": targets, "d_loss": d.numbers(*targets.shape)}
    suffix = "" if convention == ANY else f"@{convention}"
    return Case(f"adaptive-softmax/{name}{suffix}", "adaptive-softmax", "adaptive-softmax", {"cluster_order": order},
                inputs, convention, _cluster_flags(name.removesuffix("-head-bias")))


def _tables(d: Draw, sizes: tuple[int, ...]) -> dict[str, Array]:
    widths = [max(1, 4 // 2**i) for i in range(len(sizes))]
    tables = {f"tables.{i}": d.numbers(size, width) for i, (size, width) in enumerate(zip(sizes, widths, strict=True))}
    return tables | {f"projections.{i}": d.numbers(4, width) for i, width in enumerate(widths)}


def _cluster_flags(name: str) -> tuple[str, ...]:
    return {"one": ("one-cluster",), "empty-tail": ("empty-cluster",), "three": ("cluster-order",)}.get(name, ())
