"""The model: embeds tokens, stacks layers, scores the next token; below it the mirror image, backward.

The only place that wires gradients together and adds them (residuals, tied tables, a position table shared by layers).
"""

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from refimpl.arrays import Array, array_module, module_of
from refimpl.config import ModelConfig
from refimpl.inputs import Masks, check_past, check_targets, check_tokens, extend_past, initial_past
from refimpl.layers import (
    adaptive_input,
    adaptive_softmax,
    attention,
    dropout,
    embedding,
    layer_norm,
    linear,
    positions,
    softmax_loss,
    span,
    transformer_layer,
)
from refimpl.parameters import SHARED, Parameters, output_name, zeros
from refimpl.variants import layer_options, softmax_core

__all__ = ["Output", "backward", "forward", "initial_past", "log_probabilities", "loss_and_gradients"]

class Output(NamedTuple):
    """loss = mean of token_loss (B, T); span_penalty, summed over layers; past (L, B, ≤ S, D); saved for backward."""

    loss: Array
    token_loss: Array
    span_penalty: Array
    past: Array
    saved: "Saved"


class Embedded(NamedTuple):
    """What the embedding saved, of words and, if they are learned, of absolute positions."""

    words: Any
    positions: embedding.Saved | None


class Saved(NamedTuple):
    """What forward keeps for backward, in the order of computation."""

    p: Mapping[str, Array]
    config: ModelConfig
    embedded: Embedded
    embedding_dropped: dropout.Saved
    hidden: list[Array]
    layers: list[transformer_layer.Saved]
    final_norm: layer_norm.Saved | None
    hidden_dropped: dropout.Saved
    scored: Any


def forward(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, targets: Array, past: Array, masks: Masks | None = None,
    first_position: int = 0, core: ModuleType = attention, save: bool = True,
) -> Output:
    """Scores `targets` (B, T) after `tokens` (B, T) and `past` (L, B, P, D), the layers' inputs of earlier segments.

    loss = mean of -log p(target); span_penalty = Σ_layers λ S mean(ρ). masks: dropout's keep-masks; {} drops nothing.
    first_position: the block's, absolute. core: the module that computes attention, see variants.py. save=False: layers keep
    nothing for a backward. Raises InputError for shapes that disagree and for token ids outside the vocabulary.
    """
    check_targets(config, tokens, targets)
    h, new_past, stacked = hidden_states(p, config, tokens, past, masks or {}, first_position, core, save)
    if config.cutoffs:
        softmax = softmax_core(core)
        token_loss, softmax_saved = softmax.forward(h, targets, softmax_weights(p, config), config.cluster_order)
        scored: Any = (softmax, softmax_saved)
    else:
        logits, linear_saved = linear.forward(h, p[output_name(config, "table")], p["output.bias"])
        token_loss, loss_saved = softmax_loss.forward(logits, targets)
        scored = (linear_saved, loss_saved)
    return Output(token_loss.mean(), token_loss, _span_penalty(p, config), new_past, stacked._replace(scored=scored))


def loss_and_gradients(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, targets: Array, past: Array, masks: Masks | None = None,
    core: ModuleType = attention,
) -> tuple[Output, Parameters]:
    """forward and backward in one, for training: what an adaptive softmax in chunks computes is used before it is gone."""
    softmax = softmax_core(core)
    if not config.cutoffs or softmax is adaptive_softmax:
        out = forward(p, config, tokens, targets, past, masks, core=core)
        return out, backward(out.saved)
    check_targets(config, tokens, targets)
    h, new_past, saved = hidden_states(p, config, tokens, past, masks or {}, 0, core)
    g = zeros(config, h)
    token_loss, d_h = softmax.loss_and_gradients(
        h, targets, softmax_weights(p, config), config.cluster_order, _of_mean(h), softmax_weights(g, config))
    out = Output(token_loss.mean(), token_loss, _span_penalty(p, config), new_past, saved)
    return out, _backward_below(g, d_h, saved)


def log_probabilities(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, past: Array, first_position: int = 0
) -> Array:
    """log p of every word after each token: tokens (B, T), past (L, B, P, D) -> (B, T, V)."""
    check_tokens(config, "tokens", tokens)
    return score_words(p, config, hidden_states(p, config, tokens, past, {}, first_position)[0])


def score_words(p: Mapping[str, Array], config: ModelConfig, h: Array) -> Array:
    """log p of every word from the last hidden state: (…, D) -> (…, V)."""
    if config.cutoffs:
        return adaptive_softmax.log_probabilities(h, softmax_weights(p, config), config.cluster_order)
    return softmax_loss.log_softmax(linear.forward(h, p[output_name(config, "table")], p["output.bias"])[0])


def hidden_states(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, past: Array, masks: Masks, first_position: int,
    core: ModuleType = attention, save: bool = True,
) -> tuple[Array, Array, Saved]:
    """The last hidden state (B, T, D), the new past, and what was saved on the way; `scored` is still to come."""
    check_past(config, tokens, past)
    h, embedded = embed(p, config, tokens, first_position)
    array_module({"parameters": h, "tokens": tokens, "past": past})
    h, embedding_dropped = dropout.forward(h, masks.get("embedding"), config.embedding_dropout)
    inputs, layers, options = [], [], layer_options(config, core)
    for layer in range(config.layers):
        inputs.append(h)
        weights, keep = layer_weights(p, layer), transformer_layer.part(f"layers.{layer}", masks)
        h, saved = transformer_layer.forward(h, past[layer], weights, options, keep)
        layers += [saved] if save else []
    h, final_norm = transformer_layer.normalize("final_norm", h, p) if config.norm == "pre" else (h, None)
    last, hidden_dropped = dropout.forward(h, masks.get("hidden"), config.embedding_dropout)
    saved_all = Saved(p, config, embedded, embedding_dropped, [*inputs, h], layers, final_norm, hidden_dropped, None)
    return last, extend_past(config, past, inputs), saved_all


def embed(p: Mapping[str, Array], config: ModelConfig, tokens: Array, first_position: int) -> tuple[Array, Embedded]:
    """The first layer's input (B, T, D), absolute positions added where the model has them, and what was saved."""
    h, words = embed_words(p, config, tokens)
    block = tokens.shape[1]
    if config.positions == "sinusoid":
        return h + positions.absolute(first_position, block, config.width, h), Embedded(words, None)
    if config.positions == "learned":
        rows = module_of(h).arange(first_position, first_position + block) % config.span
        at_position, saved = embedding.forward(p["input.positions"], rows)
        return h + at_position, Embedded(words, saved)
    return h, Embedded(words, None)


def embed_words(p: Mapping[str, Array], config: ModelConfig, tokens: Array) -> tuple[Array, Any]:
    """The tokens' vectors (B, T, D), plain or adaptive, and what their pair saved."""
    if not config.cutoffs:
        return embedding.forward(p["input.table"], tokens)
    clusters = range(len(config.clusters))
    tables, projections = ([p[f"input.{kind}.{i}"] for i in clusters] for kind in ("tables", "projections"))
    return adaptive_input.forward(tokens, tables, projections)


def layer_weights(p: Mapping[str, Array], layer: int) -> dict[str, Array]:
    """One layer's parameters under their short names, those that all layers share among them."""
    shared = {f"attention.{name}": p[name] for name in SHARED if name in p}
    return transformer_layer.part(f"layers.{layer}", p) | shared


def softmax_weights(p: Mapping[str, Array], config: ModelConfig) -> adaptive_softmax.Weights:
    """The adaptive softmax's parameters; tied ones are the input's."""
    clusters = range(len(config.clusters))
    return adaptive_softmax.Weights(
        [p[output_name(config, "table", i)] for i in clusters],
        [p[f"output.biases.{i}"] for i in clusters],
        [p[output_name(config, "projection", i)] for i in clusters],
        p["output.cluster_table"], p["output.cluster_bias"],
    )


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
    h = saved.hidden[-1]
    g = zeros(saved.config, h)
    d_h = _score_backward(g, _of_mean(h) if d_token_loss is None else d_token_loss, saved)
    return _backward_below(g, d_h, saved)


def _of_mean(h: Array) -> Array:
    """The mean loss's cotangent (B, T)."""
    batch, block = h.shape[:2]
    return module_of(h).full((batch, block), 1, h.dtype) / (batch * block)


def _backward_below(g: Parameters, d_h: Array, saved: Saved) -> Parameters:
    """g, with the gradients added of all that stands below the output, whose input has d_h, and of the span penalty."""
    p, config = saved.p, saved.config
    d_h = dropout.backward(d_h, saved.hidden_dropped)
    if saved.final_norm is not None:
        d_h, d_gain, d_bias = layer_norm.backward(d_h, saved.final_norm)
        g["final_norm.gain"] += d_gain
        g["final_norm.bias"] += d_bias
    for layer in reversed(range(config.layers)):
        d_h, gradients = transformer_layer.backward(d_h, saved.layers[layer])
        for name, gradient in gradients.items():
            shared = name.removeprefix("attention.")
            g[shared if shared in SHARED and shared in p else f"layers.{layer}.{name}"] += gradient
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
    softmax, softmax_saved = saved.scored
    d_h, d = softmax.backward(d_token_loss, softmax_saved)
    for total, gradient in zip(softmax_weights(g, config).arrays(), d.arrays(), strict=True):
        total += gradient
    return d_h


def _embed_backward(g: Parameters, d_h: Array, saved: Saved) -> None:
    """Adds the input's gradients to g, where tied tables already hold the output's."""
    if saved.embedded.positions is not None:
        g["input.positions"] += embedding.backward(d_h.sum(0), saved.embedded.positions)
    if not saved.config.cutoffs:
        g["input.table"] += embedding.backward(d_h, saved.embedded.words)
        return
    d_tables, d_projections = adaptive_input.backward(d_h, saved.embedded.words)
    for i, (d_table, d_projection) in enumerate(zip(d_tables, d_projections, strict=True)):
        g[f"input.tables.{i}"] += d_table
        g[f"input.projections.{i}"] += d_projection
