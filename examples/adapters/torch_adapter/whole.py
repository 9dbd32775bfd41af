"""Attention with its projections, layers with residuals and norms, and models over several segments."""


import torch
from torch import Tensor
from torch.nn import functional

from . import attention, basic, clusters
from .autograd import Settings, Tensors

EPSILON = 1e-5  # of every layer norm


def attention_layer(settings: Settings, context: Tensor, block: int, x: Tensors) -> Tensor:
    """W_o [y of all heads] for the last `block` positions of context (B, P + T, D)."""
    width = settings["head_width"]

    def heads(rows: Tensor, name: str) -> Tensor:
        return functional.linear(rows, x[name]).unflatten(-1, (-1, width))

    given = {name: x[name] for name in ("positions", "content_bias", "position_bias", "memory_keys", "memory_values",
                                        "keep", "keep_memory") if name in x}
    if "position_key" in x:
        nearest = 0 if settings["attend_self"] else 1
        given["positions"] = basic.projected_positions(x["position_key"], settings["span"], nearest, width)
    if "span" in x:
        given["rho"] = x["span"]
    given |= {"queries": heads(context[:, context.shape[1] - block :], "query"), "keys": heads(context, "key"),
              "values": heads(context, "value")}
    core = attention.CORES.get(settings["variant"], attention.all_attention)
    return functional.linear(core(settings, given).flatten(2), x["output"])


def inner(settings: Settings, h: Tensor, x: Tensors) -> Tensor:
    """The feed-forward, of relu or of softmax."""
    function = basic.ff_attention if settings["variant"] == "ff-attention" else basic.feed_forward
    return function({"rate": settings.get("dropout", 0.0)}, {"h": h, **x})["y"]


def layer(settings: Settings, h: Tensor, past: Tensor, x: Tensors) -> Tensor:
    """Post-norm: h ← norm(h + f(h)); pre-norm: h ← h + f(norm(h)); f the attention, then a feed-forward if there is one."""
    pre = settings["norm"] == "pre"

    def normalized(rows: Tensor, name: str) -> Tensor:
        return functional.layer_norm(rows, rows.shape[-1:], x[f"{name}.gain"], x[f"{name}.bias"], EPSILON)

    context = torch.cat([past.detach(), h], 1)
    if pre:
        context = normalized(context, "attention_norm")
    h = h + attention_layer(settings, context, h.shape[1], part(x, "attention"))
    if not pre:
        h = normalized(h, "attention_norm")
    if not part(x, "feed_forward"):
        return h
    if pre:
        return h + inner(settings, normalized(h, "feed_forward_norm"), part(x, "feed_forward"))
    return normalized(h + inner(settings, h, part(x, "feed_forward")), "feed_forward_norm")


def part(x: Tensors, name: str) -> Tensors:
    """The tensors name.…, under what stands behind the dot."""
    return {key.removeprefix(f"{name}."): tensor for key, tensor in x.items() if key.startswith(f"{name}.")}


def embedded(config: Settings, x: Tensors, tokens: Tensor) -> Tensor:
    """Words, and absolute positions from 0 on in every segment."""
    if config["cutoffs"]:
        h = clusters.adaptive_input(tokens, clusters.listed(x, "input.tables"), clusters.listed(x, "input.projections"))
    else:
        h = functional.embedding(tokens, x["input.table"])
    block = tokens.shape[1]
    if config["positions"] == "sinusoid":  # a sine and a cosine of each frequency side by side
        at_position = torch.empty(block, config["width"], dtype=h.dtype)
        at_position[:, 0::2], at_position[:, 1::2] = basic.waves(0, block, config["width"], h.dtype)
        h = h + at_position
    if config["positions"] == "learned":
        h = h + functional.embedding(torch.arange(block) % config["span"], x["input.positions"])
    return h


def losses(config: Settings, x: Tensors, h: Tensor, targets: Tensor) -> Tensor:
    """-log p(target): (B, T)."""
    side = "input" if config["tie_tables"] else "output"
    if not config["cutoffs"]:
        logits = functional.linear(h, x[f"{side}.table"], x["output.bias"])
        return basic.softmax_loss({}, {"logits": logits, "targets": targets})["loss"]
    side_of_projections = "input" if config["tie_projections"] else "output"
    return clusters.adaptive_softmax(
        h, targets, clusters.listed(x, f"{side}.tables"), clusters.listed(x, "output.biases"),
        clusters.listed(x, f"{side_of_projections}.projections"), x["output.cluster_table"], x["output.cluster_bias"],
        config["cluster_order"])


def segment(config: Settings, x: Tensors, tokens: Tensor, targets: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B, T), and the past (L, B, ≤ S, D) for the segment that follows: the last S inputs of every layer."""
    settings = {**config, "head_width": config["width"] // config["heads"], "ramp": config["span_ramp"]}
    shared = {f"attention.{name}": x[name] for name in ("positions", "content_bias", "position_bias") if name in x}
    h = basic.drop(embedded(config, x, tokens), x.get("keep.embedding"), config["embedding_dropout"])
    new_past = []
    for i in range(config["layers"]):
        masks = part(x, f"keep.layers.{i}")
        names = {"attention": "attention.keep", "memory": "attention.keep_memory", "feed_forward": "feed_forward.keep"}
        given = {**part(x, f"layers.{i}"), **shared, **{names[name]: mask for name, mask in masks.items()}}
        new_past.append(torch.cat([past[i], h], 1)[:, -config["span"] :])
        h = layer(settings, h, past[i], given)
    if config["norm"] == "pre":
        h = functional.layer_norm(h, h.shape[-1:], x["final_norm.gain"], x["final_norm.bias"], EPSILON)
    h = basic.drop(h, x.get("keep.hidden"), config["embedding_dropout"])
    return losses(config, x, h, targets), torch.stack(new_past)


def model(config: Settings, x: Tensors) -> Tensors:
    """Segments (G, B, T) one after another; token_loss is the last one's, of which gradients are asked."""
    past, found = x["past"], []
    for tokens, targets in zip(x["tokens"], x["targets"], strict=True):
        token_loss, past = segment(config, x, tokens, targets, past)
        found.append(token_loss)
    spans = [x[f"layers.{i}.attention.span"] for i in range(config["layers"]) if config["adaptive_span"]]
    penalties = [basic.span_penalty(rho, config["span"], config["span_penalty"]) for rho in spans]
    penalty = torch.stack(penalties).sum() if penalties else torch.zeros((), dtype=past.dtype)
    earlier = {f"token_loss.{i}": loss for i, loss in enumerate(found[:-1])}
    return {"token_loss": found[-1], "span_penalty": penalty, "past": past, **earlier}


def _layer(settings: Settings, x: Tensors) -> Tensors:
    names = {"keep": "attention.keep", "keep_memory": "attention.keep_memory", "keep_feed_forward": "feed_forward.keep"}
    masks = {names[name]: x[name] for name in names if name in x}
    return {"y": layer(settings, x["h"], x["past"], {**x, **masks})}


FUNCTIONS = {
    "attention-layer": lambda settings, x: {"out": attention_layer(settings, x["context"], settings["block"], x)},
    "transformer-layer": _layer,
    "model": model,
}
