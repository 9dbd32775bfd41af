"""The model: embeds tokens, stacks layers, scores the next token; below it the mirror image, backward.

The only place that wires gradients together and adds them (residuals, tied tables, a position table shared by layers).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from refimpl.arrays import Array, array_module, module_of
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.inputs import Masks, check_past, check_tokens, extend_past, initial_past
from refimpl.layers import (
    adaptive_input,
    adaptive_softmax,
    attention,
    dropout,
    embedding,
    feed_forward,
    layer_norm,
    linear,
    multi_head,
    softmax_loss,
    span,
)
from refimpl.parameters import Parameters, output_name, total

__all__ = ["Output", "backward", "forward", "initial_past", "log_probabilities"]


class Output(NamedTuple):
    """loss = mean of token_loss (B, T); span_penalty, summed over layers; past (L, B, ≤ S, D); saved for backward."""

    loss: Array
    token_loss: Array
    span_penalty: Array
    past: Array
    saved: "Saved"


class LayerSaved(NamedTuple):
    """What one layer saved: its two sublayers, each with its norm; the last two None without a feed-forward."""

    attention: multi_head.Saved
    attention_norm: layer_norm.Saved
    feed_forward: feed_forward.Saved | None
    feed_forward_norm: layer_norm.Saved | None


class Saved(NamedTuple):
    """What forward keeps for backward, in the order of computation."""

    p: Mapping[str, Array]
    config: ModelConfig
    embedded: Any
    embedding_dropped: dropout.Saved
    hidden: list[Array]
    layers: list[LayerSaved]
    final_norm: layer_norm.Saved | None
    hidden_dropped: dropout.Saved
    scored: Any


def forward(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, targets: Array, past: Array, masks: Masks | None = None
) -> Output:
    """Scores `targets` (B, T) after `tokens` (B, T) and `past` (L, B, P, D), the layers' inputs of earlier segments.

    loss = mean of -log p(target); span_penalty = Σ_layers λ S mean(ρ). masks: the keep-masks of dropout, by name; without
    them nothing is dropped. Raises InputError for shapes that disagree and for token ids outside the vocabulary.
    """
    check_tokens(config, "tokens", tokens)
    check_tokens(config, "targets", targets)
    if targets.shape != tokens.shape:
        raise InputError(f"targets: expected the tokens' shape {tokens.shape}, got {targets.shape}")
    h, new_past, stacked = hidden_states(p, config, tokens, past, masks or {})
    scored: Any
    if config.cutoffs:
        token_loss, scored = adaptive_softmax.forward(h, targets, softmax_weights(p, config), config.cluster_order)
    else:
        logits, linear_saved = linear.forward(h, p[output_name(config, "table")], p["output.bias"])
        token_loss, loss_saved = softmax_loss.forward(logits, targets)
        scored = (linear_saved, loss_saved)
    return Output(token_loss.mean(), token_loss, _span_penalty(p, config), new_past, stacked._replace(scored=scored))


def log_probabilities(p: Mapping[str, Array], config: ModelConfig, tokens: Array, past: Array) -> Array:
    """log p of every word after each token: tokens (B, T), past (L, B, P, D) -> (B, T, V)."""
    check_tokens(config, "tokens", tokens)
    return score_words(p, config, hidden_states(p, config, tokens, past, {})[0])


def score_words(p: Mapping[str, Array], config: ModelConfig, h: Array) -> Array:
    """log p of every word from the last hidden state: (…, D) -> (…, V)."""
    if config.cutoffs:
        return adaptive_softmax.log_probabilities(h, softmax_weights(p, config), config.cluster_order)
    return softmax_loss.log_softmax(linear.forward(h, p[output_name(config, "table")], p["output.bias"])[0])


def hidden_states(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, past: Array, masks: Masks
) -> tuple[Array, Array, Saved]:
    """The last hidden state (B, T, D), the new past, and what was saved on the way; `scored` is still to come."""
    check_past(config, tokens, past)
    h, embedded = embed(p, config, tokens)
    array_module({"parameters": h, "tokens": tokens, "past": past})
    h, embedding_dropped = dropout.forward(h, masks.get("embedding"), config.embedding_dropout)
    inputs, layers = [], []
    for layer in range(config.layers):
        inputs.append(h)
        h, saved = _layer_forward(p, config, layer, h, past[layer], masks)
        layers.append(saved)
    h, final_norm = _norm_forward(p, "final_norm", h) if config.norm == "pre" else (h, None)
    last, hidden_dropped = dropout.forward(h, masks.get("hidden"), config.embedding_dropout)
    saved_all = Saved(p, config, embedded, embedding_dropped, [*inputs, h], layers, final_norm, hidden_dropped, None)
    return last, extend_past(config, past, inputs), saved_all


def embed(p: Mapping[str, Array], config: ModelConfig, tokens: Array) -> tuple[Array, Any]:
    """The first layer's input (B, T, D), and what its pair saved."""
    if not config.cutoffs:
        return embedding.forward(p["input.table"], tokens)
    clusters = range(len(config.clusters))
    tables, projections = ([p[f"input.{kind}.{i}"] for i in clusters] for kind in ("tables", "projections"))
    return adaptive_input.forward(tokens, tables, projections)


def _layer_forward(
    p: Mapping[str, Array], config: ModelConfig, layer: int, h: Array, past: Array, masks: Masks
) -> tuple[Array, LayerSaved]:
    """h ← norm(h + attention(h)), then h ← norm(h + feed_forward(h)); pre-norm: h ← h + sublayer(norm(h))."""
    name, xp = f"layers.{layer}", module_of(h)
    context = xp.concatenate([past, h], axis=1)
    keep = masks.get(f"{name}.attention")
    weights, options = attention_weights(p, config, layer), attention_options(config)
    if config.norm == "pre":
        normalized, norm = _norm_forward(p, f"{name}.attention_norm", context)
        out, attended = multi_head.forward(normalized, h.shape[1], weights, options, config.heads, keep)
        h = h + out
    else:
        out, attended = multi_head.forward(context, h.shape[1], weights, options, config.heads, keep)
        h, norm = _norm_forward(p, f"{name}.attention_norm", h + out)
    if not config.feed_forward:
        return h, LayerSaved(attended, norm, None, None)
    h, inner, inner_norm = feed_forward_sublayer(p, config, layer, h, masks.get(f"{name}.feed_forward"))
    return h, LayerSaved(attended, norm, inner, inner_norm)


def attention_weights(p: Mapping[str, Array], config: ModelConfig, layer: int) -> dict[str, Array]:
    """The attention's parameters of one layer under their short names, a shared position table among them."""
    prefix = f"layers.{layer}.attention."
    kinds = ["query", "key", "value", "output"]
    kinds += ["memory_keys", "memory_values"] if config.memory else []
    kinds += ["span"] if config.adaptive_span else []
    weights = {kind: p[prefix + kind] for kind in kinds}
    if config.positions == "relative":
        weights["positions"] = p["positions" if config.share_positions else f"{prefix}positions"]
    return weights


def attention_options(config: ModelConfig) -> attention.Options:
    """The attention's constants."""
    return attention.Options(config.span, config.span_ramp, config.normalizer_epsilon, config.attend_self, config.dropout)


def softmax_weights(p: Mapping[str, Array], config: ModelConfig) -> adaptive_softmax.Weights:
    """The adaptive softmax's parameters; tied ones are the input's."""
    clusters = range(len(config.clusters))
    return adaptive_softmax.Weights(
        [p[output_name(config, "table", i)] for i in clusters],
        [p[f"output.biases.{i}"] for i in clusters],
        [p[output_name(config, "projection", i)] for i in clusters],
        p["output.cluster_table"], p["output.cluster_bias"],
    )


def feed_forward_sublayer(
    p: Mapping[str, Array], config: ModelConfig, layer: int, h: Array, keep: Array | None = None
) -> tuple[Array, feed_forward.Saved, layer_norm.Saved]:
    """h ← norm(h + W₂ relu(W₁ h + b₁) + b₂); pre-norm: the norm before W₁ instead."""
    name = f"layers.{layer}.feed_forward"
    weights = feed_forward.Weights(*(p[f"{name}.{kind}"] for kind in feed_forward.Weights._fields))
    if config.norm == "pre":
        normalized, norm = _norm_forward(p, f"{name}_norm", h)
        y, inner = feed_forward.forward(normalized, weights, keep, config.dropout)
        return h + y, inner, norm
    y, inner = feed_forward.forward(h, weights, keep, config.dropout)
    h, norm = _norm_forward(p, f"{name}_norm", h + y)
    return h, inner, norm


def _norm_forward(p: Mapping[str, Array], name: str, x: Array) -> tuple[Array, layer_norm.Saved]:
    return layer_norm.forward(x, p[f"{name}.gain"], p[f"{name}.bias"])


def _span_penalty(p: Mapping[str, Array], config: ModelConfig) -> Array:
    penalty = 0.0
    for layer in range(config.layers if config.adaptive_span else 0):
        rho = p[f"layers.{layer}.attention.span"]
        penalty = penalty + span.penalty_forward(rho, config.span, config.span_penalty)[0]
    return penalty


def backward(saved: Saved, d_token_loss: Array | None = None) -> Parameters:
    """Gradients of loss + span_penalty by every parameter, named as they are; d_token_loss (B, T) in place of the mean's.

    No gradient goes into the past.
    """
    p, config = saved.p, saved.config
    h = saved.hidden[-1]
    g = Parameters(config, module_of(h).zeros(total(config), h.dtype))
    if d_token_loss is None:
        batch, block = h.shape[:2]
        d_token_loss = module_of(h).full((batch, block), 1, h.dtype) / (batch * block)
    d_h = _score_backward(g, d_token_loss, saved)
    d_h = dropout.backward(d_h, saved.hidden_dropped)
    if saved.final_norm is not None:
        d_h = _norm_backward(g, "final_norm", d_h, saved.final_norm)
    for layer in reversed(range(config.layers)):
        d_h = _layer_backward(g, config, layer, d_h, saved.layers[layer])
    d_h = dropout.backward(d_h, saved.embedding_dropped)
    _embed_backward(g, d_h, saved)
    for layer in range(config.layers if config.adaptive_span else 0):
        name = f"layers.{layer}.attention.span"
        g[name] += span.penalty_backward(1, (p[name], config.span, config.span_penalty))
    return g


def _score_backward(g: Parameters, d_token_loss: Array, saved: Saved) -> Array:
    """Adds the output's gradients to g; returns d_hidden."""
    config = saved.config
    if not config.cutoffs:
        linear_saved, loss_saved = saved.scored
        d_h, d_table, d_bias = linear.backward(softmax_loss.backward(d_token_loss, loss_saved), linear_saved)
        g[output_name(config, "table")] += d_table
        g["output.bias"] += d_bias
        return d_h
    d_h, d = adaptive_softmax.backward(d_token_loss, saved.scored)
    for i, (d_table, d_bias, d_projection) in enumerate(zip(d.tables, d.biases, d.projections, strict=True)):
        g[output_name(config, "table", i)] += d_table
        g[f"output.biases.{i}"] += d_bias
        g[output_name(config, "projection", i)] += d_projection
    g["output.cluster_table"] += d.cluster_table
    g["output.cluster_bias"] += d.cluster_bias
    return d_h


def _layer_backward(g: Parameters, config: ModelConfig, layer: int, d_h: Array, saved: LayerSaved) -> Array:
    """Adds the layer's gradients to g; returns the gradient of its input. A residual's gradient is a sum of both ways."""
    name = f"layers.{layer}"
    if saved.feed_forward is not None and saved.feed_forward_norm is not None:
        d_h = _feed_forward_backward(g, config, f"{name}.feed_forward", d_h, saved.feed_forward, saved.feed_forward_norm)
    block = d_h.shape[1]
    if config.norm == "pre":
        d_normalized, gradients = multi_head.backward(d_h, saved.attention)
        d_h = d_h + _norm_backward(g, f"{name}.attention_norm", d_normalized, saved.attention_norm)[:, -block:]
    else:
        d_h = _norm_backward(g, f"{name}.attention_norm", d_h, saved.attention_norm)
        d_context, gradients = multi_head.backward(d_h, saved.attention)
        d_h = d_h + d_context[:, -block:]
    for kind, gradient in gradients.items():
        shared = kind == "positions" and config.share_positions
        g["positions" if shared else f"{name}.attention.{kind}"] += gradient
    return d_h


def _feed_forward_backward(
    g: Parameters, config: ModelConfig, name: str, d_h: Array, inner: feed_forward.Saved, norm: layer_norm.Saved
) -> Array:
    if config.norm == "post":
        d_h = _norm_backward(g, f"{name}_norm", d_h, norm)
    d_inner, gradients = feed_forward.backward(d_h, inner)
    for kind, gradient in gradients._asdict().items():
        g[f"{name}.{kind}"] += gradient
    if config.norm == "pre":
        d_inner = _norm_backward(g, f"{name}_norm", d_inner, norm)
    return d_h + d_inner


def _norm_backward(g: Parameters, name: str, dy: Array, saved: layer_norm.Saved) -> Array:
    dx, d_gain, d_bias = layer_norm.backward(dy, saved)
    g[f"{name}.gain"] += d_gain
    g[f"{name}.bias"] += d_bias
    return dx


def _embed_backward(g: Parameters, d_h: Array, saved: Saved) -> None:
    """Adds the input's gradients to g, where tied tables already hold the output's."""
    if not saved.config.cutoffs:
        g["input.table"] += embedding.backward(d_h, saved.embedded)
        return
    d_tables, d_projections = adaptive_input.backward(d_h, saved.embedded)
    for i, (d_table, d_projection) in enumerate(zip(d_tables, d_projections, strict=True)):
        g[f"input.tables.{i}"] += d_table
        g[f"input.projections.{i}"] += d_projection
