"""Attention with its projections, layers with residuals and norms, and models over several segments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import attention, layers
from .layers import Arrays, Settings, drop, layer_norm, linear


def attention_layer(settings: Settings, context: Any, block: int, x: Arrays) -> Any:
    """W_o [y of all heads] for the last `block` positions of context (B, P + T, D)."""
    width = settings["head_width"]
    given = {name: x[name] for name in ("positions", "content_bias", "position_bias", "memory_keys", "memory_values",
                                        "keep", "keep_memory") if name in x}
    if "span" in x:
        given["rho"] = x["span"]
    if "position_key" in x:
        nearest = 0 if settings["attend_self"] else 1
        given["positions"] = layers.projected_positions(x["position_key"], settings["span"], nearest, width)
    for name, rows, weight in (("queries", context[:, context.shape[1] - block :], "query"), ("keys", context, "key"),
                               ("values", context, "value")):
        given[name] = linear(rows, x[weight]).reshape(*rows.shape[:2], -1, width)
    core = attention.CORES.get(settings["variant"], attention.all_attention)
    return linear(core(settings, given).reshape(len(context), block, -1), x["output"])


def layer(settings: Settings, h: Any, past: Any, x: Arrays) -> Any:
    """Post-norm: h ← norm(h + f(h)); pre-norm: h ← h + f(norm(h)); f the attention, then a feed-forward if there is one."""
    pre = settings["norm"] == "pre"

    def normalized(rows: Any, name: str) -> Any:
        return layer_norm(rows, x[f"{name}.gain"], x[f"{name}.bias"])

    context = jnp.concatenate([jax.lax.stop_gradient(past), h], 1)
    if pre:
        context = normalized(context, "attention_norm")
    h = h + attention_layer(settings, context, h.shape[1], part(x, "attention"))
    if not pre:
        h = normalized(h, "attention_norm")
    inner, rate = part(x, "feed_forward"), {"rate": settings.get("dropout", 0.0)}
    if not inner:
        return h
    if pre:
        return h + layers.feed_forward(rate, inner | {"h": normalized(h, "feed_forward_norm")})
    return normalized(h + layers.feed_forward(rate, inner | {"h": h}), "feed_forward_norm")


def part(x: Arrays, name: str) -> Arrays:
    """The arrays name.…, under what stands behind the dot."""
    return {key.removeprefix(f"{name}."): array for key, array in x.items() if key.startswith(f"{name}.")}


def embedded(config: Settings, x: Arrays, tokens: np.ndarray) -> Any:
    """Words, and absolute positions from 0 on in every segment."""
    if config["cutoffs"]:
        h = layers.adaptive_input(tokens, layers.listed(x, "input.tables"), layers.listed(x, "input.projections"))
    else:
        h = layers.embedding(x["input.table"], tokens)
    block = tokens.shape[1]
    if config["positions"] == "sinusoid":  # a sine and a cosine of each frequency side by side
        at_position = np.empty((block, config["width"]), h.dtype)
        at_position[:, 0::2], at_position[:, 1::2] = layers.waves(0, block, config["width"])
        h = h + at_position
    if config["positions"] == "learned":
        h = h + x["input.positions"][np.arange(block) % config["span"]]
    return h


def losses(config: Settings, x: Arrays, h: Any, targets: np.ndarray) -> Any:
    """-log p(target): (B, T)."""
    side = "input" if config["tie_tables"] else "output"
    if not config["cutoffs"]:
        return layers.softmax_loss(linear(h, x[f"{side}.table"], x["output.bias"]), targets)
    side_of_projections = "input" if config["tie_projections"] else "output"
    return layers.adaptive_softmax(
        h, targets, layers.listed(x, f"{side}.tables"), layers.listed(x, "output.biases"),
        layers.listed(x, f"{side_of_projections}.projections"), x["output.cluster_table"], x["output.cluster_bias"],
        config["cluster_order"])


def segment(config: Settings, x: Arrays, tokens: np.ndarray, targets: np.ndarray, past: Any) -> tuple[Any, Any]:
    """Losses (B, T), and the past (L, B, ≤ S, D) for the segment that follows: the last S inputs of every layer."""
    settings = {**config, "head_width": config["width"] // config["heads"], "ramp": config["span_ramp"]}
    shared = {f"attention.{name}": x[name] for name in ("positions", "content_bias", "position_bias") if name in x}
    names = {"attention": "attention.keep", "memory": "attention.keep_memory", "feed_forward": "feed_forward.keep"}
    h, new_past = drop(embedded(config, x, tokens), x.get("keep.embedding"), config["embedding_dropout"]), []
    for i in range(config["layers"]):
        masks = {names[name]: mask for name, mask in part(x, f"keep.layers.{i}").items()}
        new_past.append(jnp.concatenate([past[i], h], 1)[:, -config["span"] :])
        h = layer(settings, h, past[i], part(x, f"layers.{i}") | shared | masks)
    if config["norm"] == "pre":
        h = layer_norm(h, x["final_norm.gain"], x["final_norm.bias"])
    return losses(config, x, drop(h, x.get("keep.hidden"), config["embedding_dropout"]), targets), jnp.stack(new_past)


def model(config: Settings, x: Arrays) -> Arrays:
    """Segments (G, B, T) one after another; token_loss is the last one's, of which gradients are asked."""
    past, found = x["past"], []
    for tokens, targets in zip(x["tokens"], x["targets"], strict=True):
        token_loss, past = segment(config, x, tokens, targets, past)
        found.append(token_loss)
    spans = [x[f"layers.{i}.attention.span"] for i in range(config["layers"]) if config["adaptive_span"]]
    penalties = [layers.span_penalty(rho, config["span"], config["span_penalty"]) for rho in spans]
    penalty = sum(penalties, jnp.zeros((), past.dtype))
    earlier = {f"token_loss.{i}": loss for i, loss in enumerate(found[:-1])}
    return {"token_loss": found[-1], "span_penalty": penalty, "past": past, **earlier}


def _layer(settings: Settings, x: Arrays) -> Arrays:
    names = {"keep": "attention.keep", "keep_memory": "attention.keep_memory", "keep_feed_forward": "feed_forward.keep"}
    masks = {names[name]: x[name] for name in names if name in x}
    return {"y": layer(settings, x["h"], x["past"], {**x, **masks})}


FUNCTIONS = {
    "attention-layer": lambda settings, x: {"out": attention_layer(settings, x["context"], settings["block"], x)},
    "transformer-layer": _layer,
    "model": model,
}
