"""One layer: attention and, in the baseline, a feed-forward sublayer, each with its residual and its norm.

Post-norm: h ← norm(h + sublayer(h)), Vaswani et al. (arXiv 1706.03762), section 3.1. Pre-norm: h ← h + sublayer(norm(h)).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from refimpl.arrays import Array, module_of
from refimpl.layers import layer_norm, multi_head

Weights = Mapping[str, Array]  # attention.…, attention_norm.…, feed_forward.…, feed_forward_norm.…


class Options(NamedTuple):
    """The layer's constants; feed_forward: feed_forward.py, or another module of the same form."""

    attention: multi_head.Options
    feed_forward: ModuleType
    pre_norm: bool


class Saved(NamedTuple):
    """What the two sublayers saved, each with its norm; the last two None without a feed-forward."""

    options: Options
    attention: multi_head.Saved
    attention_norm: layer_norm.Saved
    inner: Any = None
    inner_norm: layer_norm.Saved | None = None


def forward(h: Array, past: Array, weights: Weights, options: Options, masks: Mapping[str, Array]) -> tuple[Array, Saved]:
    """h (B, T, D), past (B, P, D), the layer's input of earlier segments -> (B, T, D).

    masks: keep-masks of dropout, of those among attention, memory and feed_forward that drop.
    """
    needed = options.attention.core.needed(weights.get("attention.span"), options.attention.attention)
    past = past[:, max(0, past.shape[1] - needed) :]
    context = module_of(h).concatenate([past, h], axis=1)
    if options.pre_norm:
        context, norm = normalize("attention_norm", context, weights)
    out, attended = multi_head.forward(context, h.shape[1], part("attention", weights), options.attention, masks)
    h = h + out
    if not options.pre_norm:
        h, norm = normalize("attention_norm", h, weights)
    saved = Saved(options, attended, norm)
    if "feed_forward.weight1" not in weights:
        return h, saved
    h, inner, inner_norm = feed_forward_sublayer(h, weights, options, masks.get("feed_forward"))
    return h, saved._replace(inner=inner, inner_norm=inner_norm)


def feed_forward_sublayer(
    h: Array, weights: Weights, options: Options, keep: Array | None = None
) -> tuple[Array, Any, layer_norm.Saved]:
    """h ← norm(h + f(h)), or h ← h + f(norm(h)), f the feed-forward."""
    x = h
    if options.pre_norm:
        x, norm = normalize("feed_forward_norm", h, weights)
    of_inner = options.feed_forward.Weights(**part("feed_forward", weights))
    y, inner = options.feed_forward.forward(x, of_inner, keep, options.attention.attention.dropout)
    h = h + y
    if not options.pre_norm:
        h, norm = normalize("feed_forward_norm", h, weights)
    return h, inner, norm


def backward(d_h: Array, saved: Saved) -> tuple[Array, dict[str, Array]]:
    """The gradient of the layer's input (B, T, D), none into the past, and gradients named as the weights are.

    A residual's gradient is the sum of both ways around the sublayer.
    """
    gradients: dict[str, Array] = {}
    if saved.inner is not None and saved.inner_norm is not None:
        d_h = _feed_forward_backward(d_h, saved.inner, saved.inner_norm, saved.options, gradients)
    if not saved.options.pre_norm:
        d_h = _norm_backward("attention_norm", d_h, saved.attention_norm, gradients)
    # under a norm the past adds to the gradients of its gain and bias, elsewhere to nothing
    first = 0 if saved.options.pre_norm else saved.attention.key.x.shape[1] - d_h.shape[1]
    d_context, of_attention = multi_head.backward(d_h, saved.attention, first)
    gradients |= {f"attention.{name}": gradient for name, gradient in of_attention.items()}
    if saved.options.pre_norm:
        d_context = _norm_backward("attention_norm", d_context, saved.attention_norm, gradients)
    return d_h + d_context[:, d_context.shape[1] - d_h.shape[1] :], gradients


def _feed_forward_backward(
    d_h: Array, inner: Any, norm: layer_norm.Saved, options: Options, gradients: dict[str, Array]
) -> Array:
    if not options.pre_norm:
        d_h = _norm_backward("feed_forward_norm", d_h, norm, gradients)
    d_x, of_inner = options.feed_forward.backward(d_h, inner)
    gradients |= {f"feed_forward.{name}": gradient for name, gradient in of_inner._asdict().items()}
    if options.pre_norm:
        d_x = _norm_backward("feed_forward_norm", d_x, norm, gradients)
    return d_h + d_x


def normalize(name: str, x: Array, weights: Weights) -> tuple[Array, layer_norm.Saved]:
    """The layer norm whose gain and bias have this name."""
    return layer_norm.forward(x, weights[f"{name}.gain"], weights[f"{name}.bias"])


def _norm_backward(name: str, dy: Array, saved: layer_norm.Saved, gradients: dict[str, Array]) -> Array:
    dx, gradients[f"{name}.gain"], gradients[f"{name}.bias"] = layer_norm.backward(dy, saved)
    return dx


def part(name: str, weights: Weights) -> dict[str, Array]:
    """The weights of one function, by their short names."""
    prefix = f"{name}."
    return {full.removeprefix(prefix): weight for full, weight in weights.items() if full.startswith(prefix)}
