"""All-attention and its ablations: the positions that each query sees are gathered, the rest is left to autograd."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from .autograd import Settings, Tensors
from .basic import drop, span_mask


def window(rows: Tensor, block: int, size: int, attend_self: bool) -> Tensor:
    """The S rows that each query sees, nearest first: (B, P + T, H, E) -> (B, T, H, E, S); 0 where there is none."""
    first = rows.shape[1] - block + attend_self
    return functional.pad(rows, (0, 0, 0, 0, size, 0)).unfold(1, size, 1)[:, first : first + block].flip(-1)


def exists(past: int, block: int, size: int, attend_self: bool) -> Tensor:
    """Which of these there are: (T, S)."""
    nearest = past + attend_self - 1 + torch.arange(block)[:, None]
    return nearest >= torch.arange(size)


def context_scores(queries: Tensor, keys: Tensor, size: int, attend_self: bool) -> Tensor:
    """q_t · k_c: (B, T, H, E), (B, P + T, H, E) -> (B, H, T, S)."""
    return torch.einsum("bthe,bthes->bhts", queries, window(keys, queries.shape[1], size, attend_self))


def context_mix(weights: Tensor, values: Tensor, attend_self: bool) -> Tensor:
    """Σ_c a_tc v_c: (B, H, T, S), (B, P + T, H, E) -> (B, T, H, E)."""
    return torch.einsum("bhts,bthes->bthe", weights, window(values, *weights.shape[2:], attend_self))


def position_scores(queries: Tensor, table: Tensor) -> Tensor:
    """q_t · p_δ with one table (S, E) for all heads, or one for each (H, S, E) -> (B, H, T, S)."""
    return torch.einsum("bthe,hse->bhts", queries, table.expand(queries.shape[2], *table.shape[-2:]))


def masked_softmax(logits: Tensor, weight: Tensor, present: Tensor, epsilon: float) -> Tensor:
    """a = w e^s / Σ (w + ε) e^s over the slots that exist; 0 in a row where none counts.

    The same as softmax, then the mask, then division by the sum + ε, but exact where w = 0.
    """
    logits = torch.where(present, logits, -torch.inf)
    counted = (weight + epsilon) * present
    largest = torch.where(counted > 0, logits, -torch.inf).amax(-1, keepdim=True).detach()
    some = largest > -torch.inf
    # a slot of weight 0 may lie far above those that count: held finite, so that 0 times it is 0
    limit = 0.75 * math.log(torch.finfo(logits.dtype).max)
    exponentials = torch.exp((logits - torch.where(some, largest, 0)).clamp(max=limit))
    total = (counted * exponentials).sum(-1, keepdim=True)
    return weight * (exponentials / torch.where(some, total, 1))


def attend(settings: Settings, x: Tensors) -> Tensor:
    """y (B, T, H, E): one softmax over S positions of the context and, if there are any, N persistent vectors."""
    queries, keys, values = x["queries"], x["keys"], x["values"]
    size, attend_self, rate = settings["span"], settings["attend_self"], settings.get("dropout", 0.0)
    block, heads, root = *queries.shape[1:3], math.sqrt(queries.shape[3])
    logits = context_scores(queries + x.get("content_bias", 0), keys, size, attend_self)
    if "positions" in x:
        logits = logits + position_scores(queries + x.get("position_bias", 0), x["positions"])
    present = exists(keys.shape[1] - block, block, size, attend_self).expand(heads, block, size)
    weight = present.to(queries.dtype)
    if "rho" in x:
        weight = weight * span_mask(x["rho"], size, settings["ramp"])[:, None]
    keep = x.get("keep")
    if "memory_keys" in x:
        slots = x["memory_keys"].shape[1]
        logits = torch.cat([logits, torch.einsum("bthe,hne->bhtn", queries, root * x["memory_keys"])], -1)
        weight, present = functional.pad(weight, (0, slots), value=1), functional.pad(present, (0, slots), value=True)
        keep = None if keep is None else torch.cat([keep, x["keep_memory"]], -1)
    weights = drop(masked_softmax(logits / root, weight, present, settings["normalizer_epsilon"]), keep, rate)
    y = context_mix(weights[..., :size], values, attend_self)
    if "memory_values" in x:
        unit_values = math.sqrt(slots) * x["memory_values"]
        y = y + torch.einsum("bhtn,hne->bthe", weights[..., size:], unit_values)
    return y


def persistent(queries: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """y (B, T, G, K): softmax over persistent vectors alone; μ, ν (G, N, K)."""
    expect("memory_keys", keys, (queries.shape[2], keys.shape[1], queries.shape[3]))
    weights = drop(torch.softmax(torch.einsum("bthe,hne->bhtn", queries, keys), -1), keep, rate)
    return torch.einsum("bhtn,hne->bthe", weights, math.sqrt(values.shape[1]) * values)


def all_attention(settings: Settings, x: Tensors) -> Tensor:
    """The layer of the paper. Raises ValueError if arguments don't fit, or if the first query sees nothing."""
    check(settings, x)
    return attend(settings, x)


def attention_split(settings: Settings, x: Tensors) -> Tensor:
    """Two softmaxes, outputs added; as many persistent heads as μ says (`single-head`: one of width D)."""
    y, memory = attend(settings, without_memory(x)), x["memory_keys"]
    queries = x["queries"].flatten(2).unflatten(2, (memory.shape[0], memory.shape[2]))
    rate = settings.get("dropout", 0.0)
    return y + persistent(queries, memory, x["memory_values"], x.get("keep_memory"), rate).reshape(y.shape)


def head_split(settings: Settings, x: Tensors) -> Tensor:
    """The first heads, as many as the keys have, see the context alone, the others persistent vectors alone."""
    of_context, of_memory = x["queries"].tensor_split([x["keys"].shape[2]], dim=2)
    y = attend(settings, {**without_memory(x), "queries": of_context})
    rate = settings.get("dropout", 0.0)
    return torch.cat([y, persistent(of_memory, x["memory_keys"], x["memory_values"], x.get("keep_memory"), rate)], 2)


def without_memory(x: Tensors) -> Tensors:
    """The arguments of plain attention."""
    return {name: tensor for name, tensor in x.items() if not name.startswith("memory_")}


def expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raises ValueError for another shape: broadcasting would hide it."""
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected {shape}, got {tuple(tensor.shape)}")


def check(settings: Settings, x: Tensors) -> None:
    """Raises ValueError, naming the argument, unless all shapes fit together and the first query sees something."""
    batch, block, heads, width = x["queries"].shape
    length, slots, size = x["keys"].shape[1], x["memory_keys"].shape[1] if "memory_keys" in x else 0, settings["span"]
    shapes = {"keys": (batch, length, heads, width), "values": (batch, length, heads, width),
              "memory_keys": (heads, slots, width), "memory_values": (heads, slots, width), "rho": (heads,),
              "content_bias": (heads, width), "position_bias": (heads, width)}
    if "positions" in x:
        shapes["positions"] = (size, width) if x["positions"].ndim == 2 else (heads, size, width)
    for name, shape in shapes.items():
        if name in x:
            expect(name, x[name], shape)
    if length < block:
        raise ValueError(f"keys: expected at least the block's {block} positions, got {length}")
    if not slots and length == block and not settings["attend_self"]:
        raise ValueError("keys: expected a position before the first query, got none, and no persistent vectors")


CORES = {"attention-split": attention_split, "single-head": attention_split, "head-split": head_split}
FUNCTIONS = {
    "relative-positions": lambda settings, x: {"scores": position_scores(x["queries"], x["table"])},
    "context-scores": lambda settings, x: {
        "scores": context_scores(x["queries"], x["keys"], settings["size"], settings["attend_self"])},
    "context-mix": lambda settings, x: {"y": context_mix(x["weights"], x["values"], settings["attend_self"])},
    "masked-softmax": lambda settings, x: {
        "attention": masked_softmax(x["logits"], x["weight"] * x["present"], x["present"], settings["epsilon"])},
    "persistent-attention": lambda settings, x: {
        "y": persistent(x["queries"], x["memory_keys"], x["memory_values"], x.get("keep"), settings.get("rate", 0.0))},
    "all-attention": lambda settings, x: {"y": all_attention(settings, x)},
    "attention-split": lambda settings, x: {"y": attention_split(settings, x)},
    "single-head": lambda settings, x: {"y": attention_split(settings, x)},
    "head-split": lambda settings, x: {"y": head_split(settings, x)},
}
