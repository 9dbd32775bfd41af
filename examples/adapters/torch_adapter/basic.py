"""Functions of one layer: torch's own where it has them. Shapes by the letters of the golden protocol."""


import torch
from torch import Tensor
from torch.nn import functional

from .autograd import Settings, Tensors


def linear(settings: Settings, x: Tensors) -> Tensors:
    """y = x Wᵀ + b."""
    return {"y": functional.linear(x["x"], x["weight"], x["bias"])}


def layer_norm(settings: Settings, x: Tensors) -> Tensors:
    """y = g x̂ + b, biased variance."""
    return {"y": functional.layer_norm(x["x"], x["gain"].shape, x["gain"], x["bias"], settings["epsilon"])}


def drop(x: Tensor, keep: Tensor | None, rate: float) -> Tensor:
    """Dropout with a given mask."""
    return x if keep is None else torch.where(keep, x / (1 - rate), 0)


def embedding(settings: Settings, x: Tensors) -> Tensors:
    """Rows by token."""
    return {"x": functional.embedding(x["tokens"], x["table"])}


def softmax_loss(settings: Settings, x: Tensors) -> Tensors:
    """-log p(target)."""
    rows = x["logits"].flatten(0, -2)
    return {"loss": functional.cross_entropy(rows, x["targets"].flatten(), reduction="none").reshape(x["targets"].shape)}


def feed_forward(settings: Settings, x: Tensors) -> Tensors:
    """y = W₂ dropout(relu(W₁ h + b₁)) + b₂; torch's relu has slope 0 at 0."""
    active = functional.relu(functional.linear(x["h"], x["weight1"], x["bias1"]))
    kept = drop(active, x.get("keep"), settings.get("rate", 0.0))
    return {"y": functional.linear(kept, x["weight2"], x["bias2"])}


def ff_attention(settings: Settings, x: Tensors) -> Tensors:
    """y = W₂ dropout(softmax(W₁ h))."""
    weights = torch.softmax(functional.linear(x["h"], x["weight1"]), -1)
    return {"y": functional.linear(drop(weights, x.get("keep"), settings.get("rate", 0.0)), x["weight2"])}


def span_mask(rho: Tensor, size: int, ramp: int) -> Tensor:
    """m = clamp((R + Sρ - x) / R, 0, 1): (H) -> (H, S). torch.clamp has the slope of the closed interval, as it must be."""
    x = torch.arange(size, dtype=rho.dtype)
    return torch.clamp((ramp + size * rho[:, None] - x) / ramp, 0, 1)


def span_penalty(rho: Tensor, size: int, weight: float) -> Tensor:
    """λ S mean(ρ)."""
    return weight * size * rho.mean()


def waves(first: int, count: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Sines (count, ⌈D/2⌉) and cosines (count, ⌊D/2⌋) of x 10000^(-2i/D), x = first …; in float64, then rounded once."""
    frequency = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angle = torch.arange(first, first + count)[:, None] * frequency
    return angle.sin().to(dtype), angle.cos()[:, : width // 2].to(dtype)


def projected_positions(weight: Tensor, size: int, first: int, width: int) -> Tensor:
    """Transformer-XL's vectors by distance, W r_δ cut into heads: (H E, D) -> (H, S, E); sines before cosines."""
    table = functional.linear(torch.cat(waves(first, size, weight.shape[1], weight.dtype), 1), weight)
    return table.unflatten(1, (-1, width)).transpose(0, 1)


FUNCTIONS = {
    "linear": linear,
    "layer-norm": layer_norm,
    "dropout": lambda settings, x: {"y": drop(x["x"], x["keep"], settings["rate"])},
    "embedding": embedding,
    "softmax": lambda settings, x: {"attention": torch.softmax(x["logits"], -1)},
    "softmax-loss": softmax_loss,
    "relu": lambda settings, x: {"y": functional.relu(x["x"])},
    "feed-forward": feed_forward,
    "ff-attention": ff_attention,
    "span-mask": lambda settings, x: {"mask": span_mask(x["rho"], settings["size"], settings["ramp"])},
    "span-penalty": lambda settings, x: {"penalty": span_penalty(x["rho"], settings["size"], settings["weight"])},
    "projected-positions": lambda settings, x: {
        "table": projected_positions(x["weight"], settings["size"], settings["first"], settings["width"])},
}
