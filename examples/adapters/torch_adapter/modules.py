"""PyTorch's own modules as they are: which of the vectors' functions they compute, and under which conventions.

What a module can't express is left out by name, so that a run of all conventions ends with 4 (incomplete). What a module
computes by a convention of its own fails where another one is asked for, and the report names the one that it follows:
AdaptiveLogSoftmaxWithLoss has the head's cluster slots in order, and is wrong for published checkpoints, silently.
"""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from . import attention, basic, clusters, columns, optimizers
from .autograd import Settings, Tensors


def linear(settings: Settings, x: Tensors) -> Tensors:
    """nn.Linear."""
    module = nn.Linear(*reversed(x["weight"].shape))
    return {"y": functional_call(module, {"weight": x["weight"], "bias": x["bias"]}, x["x"])}


def layer_norm(settings: Settings, x: Tensors) -> Tensors:
    """nn.LayerNorm."""
    module = nn.LayerNorm(len(x["gain"]), eps=settings["epsilon"])
    return {"y": functional_call(module, {"weight": x["gain"], "bias": x["bias"]}, x["x"])}


def embedding(settings: Settings, x: Tensors) -> Tensors:
    """nn.Embedding."""
    return {"x": functional_call(nn.Embedding(*x["table"].shape), {"weight": x["table"]}, x["tokens"])}


def softmax_loss(settings: Settings, x: Tensors) -> Tensors:
    """nn.CrossEntropyLoss, which has the classes in the second axis."""
    return {"loss": nn.CrossEntropyLoss(reduction="none")(x["logits"].movedim(-1, 1), x["targets"])}


def feed_forward(settings: Settings, x: Tensors) -> Tensors:
    """nn.Linear, nn.ReLU, nn.Linear."""
    if "keep" in x:
        raise NotImplementedError("nn.Dropout takes no mask")
    wide, width = x["weight1"].shape
    module = nn.Sequential(nn.Linear(width, wide), nn.ReLU(), nn.Linear(wide, width))
    weights = {"0.weight": x["weight1"], "0.bias": x["bias1"], "2.weight": x["weight2"], "2.bias": x["bias2"]}
    return {"y": functional_call(module, weights, x["h"])}


def adaptive_softmax(settings: Settings, x: Tensors) -> Tensors:
    """nn.AdaptiveLogSoftmaxWithLoss. Where a case has biases in the tails, or a projection of the head, the module's parts
    are replaced by such that have them, and the module goes on with them: its order of the clusters stays."""
    tables = clusters.listed(x, "tables")
    sizes, width = [len(table) for table in tables], x["hidden"].shape[-1]
    if len(sizes) == 1 or 0 in sizes:
        raise NotImplementedError("AdaptiveLogSoftmaxWithLoss takes no cluster without words, and not one cluster alone")
    ends = torch.tensor(sizes).cumsum(0).tolist()
    module = nn.AdaptiveLogSoftmaxWithLoss(width, ends[-1], ends[:-1], div_value=1, head_bias="biases.0" in x)
    weights = {"head.weight": torch.cat([x["tables.0"], x["cluster_table"]])}
    if "biases.0" in x:
        weights["head.bias"] = torch.cat([x["biases.0"], x["cluster_bias"]])
    if "projections.0" in x:
        module.head = nn.Sequential(nn.Linear(width, tables[0].shape[1], bias=False), module.head)
        weights = {name.replace("head", "head.1"): tensor for name, tensor in weights.items()}
        weights["head.0.weight"] = x["projections.0"].T
    for i, table in enumerate(tables[1:]):
        module.tail[i] = nn.Sequential(nn.Linear(width, table.shape[1], bias=False),
                                       nn.Linear(*reversed(table.shape), bias=f"biases.{i + 1}" in x))
        weights |= {f"tail.{i}.0.weight": x[f"projections.{i + 1}"].T, f"tail.{i}.1.weight": table}
        if f"biases.{i + 1}" in x:
            weights[f"tail.{i}.1.bias"] = x[f"biases.{i + 1}"]
    found = functional_call(module, weights, (x["hidden"].flatten(0, -2), x["targets"].flatten()))
    return {"loss": -found.output.reshape(x["targets"].shape)}


def all_attention(settings: Settings, x: Tensors) -> Tensors:
    """scaled_dot_product_attention over [past ; block ; persistent vectors]; positions' scores and log m are its mask.

    Adding log m to the logits multiplies e^s by m: the exact normaliser. Where m is 0 on its kink, log m has no slope.
    """
    if {"keep", "content_bias"} & x.keys():
        raise NotImplementedError("scaled_dot_product_attention takes no mask of dropout, and no other queries")
    attention.check(settings, x)
    queries, keys, values = (x[name].transpose(1, 2) for name in ("queries", "keys", "values"))
    root = math.sqrt(keys.shape[-1])
    mask = position_mask(settings, x, keys.shape[2]) / root + span_logarithm(settings, x, keys.shape[2])
    if "memory_keys" in x:
        slots = x["memory_keys"].shape[1]
        keys, values = (torch.cat([rows, (scale * vectors).expand(len(rows), -1, -1, -1)], 2) for rows, scale, vectors in (
            (keys, root, x["memory_keys"]), (values, math.sqrt(slots), x["memory_values"])))
        mask = nn.functional.pad(mask, (0, slots))
    y = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return {"y": y.transpose(1, 2)}


def span_logarithm(settings: Settings, x: Tensors, length: int) -> Tensor:
    """log m_z(δ) at column c = t - δ of [past ; block], -∞ where m is 0: (H, T, P + T); 0 without a span.

    Backward divides by 0 there; the gradient of torch.clamp takes the place of what comes of it.
    """
    if "rho" not in x:
        return torch.zeros((), dtype=x["queries"].dtype)
    mask = basic.span_mask(x["rho"], settings["span"], settings["ramp"])
    if ((settings["span"] * x["rho"][:, None] + settings["ramp"]) == torch.arange(settings["span"])).any():
        raise NotImplementedError("log m has no slope where a span's ramp ends on a position")
    distance = columns.distances(x["queries"].shape[1], length, settings["attend_self"])
    return columns.by_distance(mask[:, None].expand(-1, len(distance), -1), distance).log()


def position_mask(settings: Settings, x: Tensors, length: int) -> Tensor:
    """q_t · p_δ at column c = t - δ of [past ; block], -∞ where the query does not see it: (B, H, T, P + T)."""
    block, heads = x["queries"].shape[1:3]
    distance = columns.distances(block, length, settings["attend_self"])
    seen = (distance >= 0) & (distance < settings["span"])
    scores = torch.zeros((), dtype=x["queries"].dtype).expand(len(x["queries"]), heads, block, length)
    if "positions" in x:
        scores = columns.by_distance(attention.position_scores(x["queries"], x["positions"]), distance)
    return torch.where(seen, scores, -torch.inf)


def optimizer(settings: Settings, x: Tensors) -> Tensors:
    """torch.optim and clip_grad_norm_, which clips the norm of all gradients together whatever is asked for."""
    return optimizers.optimizer({"train": {**settings["train"], "clip_each": False}}, x)


FUNCTIONS = {
    "linear": linear,
    "layer-norm": layer_norm,
    "embedding": embedding,
    "softmax": lambda settings, x: {"attention": nn.Softmax(-1)(x["logits"])},
    "softmax-loss": softmax_loss,
    "relu": lambda settings, x: {"y": nn.ReLU()(x["x"])},
    "feed-forward": feed_forward,
    "adaptive-softmax": adaptive_softmax,
    "all-attention": all_attention,
    "optimizer": optimizer,
}
