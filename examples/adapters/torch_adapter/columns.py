"""All-attention as most people write it: a row of all positions for each query, one softmax, then the span mask.

Where attention.py gathers the S positions that a query sees, here every query meets all of [past ; block], and what it does
not see is masked. The order of operations is that of the published code: softmax over context and persistent slots, the
context's weights times the span mask, all of them divided by their sum + ε.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from . import attention
from .autograd import Settings, Tensors
from .basic import drop, span_mask


def distances(block: int, length: int, attend_self: bool) -> Tensor:
    """How many positions lie between query t and position c, nearest first: (T, P + T); negative where c is not seen yet."""
    return length - block + attend_self - 1 + torch.arange(block)[:, None] - torch.arange(length)


def by_distance(of_distance: Tensor, distance: Tensor) -> Tensor:
    """What belongs to each position by its distance: (…, T, S) -> (…, T, P + T); anything where it is not seen."""
    index = distance.clamp(0, of_distance.shape[-1] - 1)
    return of_distance.gather(-1, index.expand(*of_distance.shape[:-2], *index.shape))


def logits(settings: Settings, x: Tensors, distance: Tensor) -> Tensor:
    """(q · k + q · p_δ) / √E of all positions, -∞ where a query does not see one: (B, H, T, P + T)."""
    queries, size = x["queries"], settings["span"]
    scores = torch.einsum("bthe,bche->bhtc", queries + x.get("content_bias", 0), x["keys"])
    if "positions" in x:
        of_distance = attention.position_scores(queries + x.get("position_bias", 0), x["positions"])
        scores = scores + by_distance(of_distance, distance)
    return (scores / math.sqrt(queries.shape[-1])).masked_fill((distance < 0) | (distance >= size), -torch.inf)


def all_attention(settings: Settings, x: Tensors) -> Tensor:
    """y (B, T, H, E). Raises ValueError if arguments don't fit, or if the first query sees nothing."""
    attention.check(settings, x)
    queries, keys, size, keep = x["queries"], x["keys"], settings["span"], x.get("keep")
    distance = distances(queries.shape[1], keys.shape[1], settings["attend_self"])
    length, slots = keys.shape[1], x["memory_keys"].shape[1] if "memory_keys" in x else 0
    scores = logits(settings, x, distance)
    if slots:  # √E of the key and 1 / √E of the scale are 1
        scores = torch.cat([scores, torch.einsum("bthe,hne->bhtn", queries, x["memory_keys"])], -1)
    weights = torch.softmax(scores, -1)
    if "rho" in x:
        mask = span_mask(x["rho"], size, settings["ramp"])[:, None].expand(-1, len(distance), -1)
        weights = weights * functional.pad(by_distance(mask, distance), (0, slots), value=1)
        weights = weights / (weights.sum(-1, keepdim=True) + settings["normalizer_epsilon"])
    elif settings["normalizer_epsilon"]:
        weights = weights / (1 + settings["normalizer_epsilon"])
    if keep is not None:
        kept = by_distance(keep, distance)
        weights = drop(weights, torch.cat([kept, x["keep_memory"]], -1) if slots else kept, settings["dropout"])
    y = torch.einsum("bhtc,bche->bthe", weights[..., :length], x["values"])
    if slots:
        y = y + math.sqrt(slots) * torch.einsum("bhtn,hne->bthe", weights[..., length:], x["memory_values"])
    return y


FUNCTIONS = {"all-attention": lambda settings, x: {"y": all_attention(settings, x)}}
