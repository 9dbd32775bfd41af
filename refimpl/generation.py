"""Text from a model, one token after another. Keys and values of the past are kept, so one token costs one token."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array, module_of, quiet, random_stream, to_host, to_library_of
from refimpl.config import ModelConfig
from refimpl.errors import InputError, NonFiniteError
from refimpl.inputs import check_tokens, initial_past
from refimpl.layers import linear, multi_head, transformer_layer
from refimpl.model import embed, layer_weights, score_words
from refimpl.parameters import Parameters
from refimpl.variants import layer_options


class ProjectedPast(NamedTuple):
    """One layer's keys and values of the past, (B, ≤ S, H, E) each."""

    keys: Array
    values: Array


def generate(
    p: Parameters, config: ModelConfig, prompt: Array, count: int, temperature: float = 1.0, top_k: int = 0, seed: int = 0,
    block: int = 0,
) -> Iterator[int]:
    """`count` tokens that follow the prompt (1-D, at least one token), each drawn from softmax(log p / temperature).

    top_k > 0 draws from the k likeliest only; temperature 0 takes the likeliest. The same seed gives the same tokens.
    Absolute positions count from 0 again after every `block` tokens, as they did in training (0 = never).
    Raises InputError for settings that can't be, NonFiniteError if the model's probabilities are not finite.
    """
    if not temperature >= 0 or not np.isfinite(temperature):
        raise InputError(f"temperature: expected a finite number of 0 or more, got {temperature}")
    if min(top_k, count, block) < 0:
        raise InputError(f"top_k, count and block: expected 0 or more, got {top_k}, {count} and {block}")
    if prompt.ndim != 1 or not len(prompt):
        raise InputError(f"prompt: expected at least one token, got shape {prompt.shape}")
    return _draws(p, config, prompt, count, temperature, top_k, seed, block)


def _draws(
    p: Parameters, config: ModelConfig, prompt: Array, count: int, temperature: float, top_k: int, seed: int, block: int
) -> Iterator[int]:
    pasts = project_past(p, config, initial_past(config, 1, p.vector))
    tokens = to_library_of(p.vector, prompt)[None]
    start, length = 0, tokens.shape[1]
    while start < length:  # pieces no longer than the span, none across the end of a block
        position = _position(start, block)
        end = min(start + config.span, length, start + (block or length) - position)
        log_p, pasts = step(p, config, tokens[:, start:end], pasts, position)
        start = end
    for number in range(count):
        token = choose(to_host(log_p)[0], temperature, top_k, random_stream(seed, "generate", number))
        yield token
        if number + 1 < count:
            drawn = module_of(p.vector).full((1, 1), token)
            log_p, pasts = step(p, config, drawn, pasts, _position(length + number, block))


def _position(index: int, block: int) -> int:
    """The absolute position of a text's token; 0 again at the beginning of every block, if there are blocks."""
    return index % block if block else index


def choose(log_p: Array, temperature: float, top_k: int, stream: np.random.Generator) -> int:
    """One word drawn from softmax(log_p / temperature) over the top_k likeliest (0 = all); log_p (V)."""
    if not np.isfinite(log_p.max()):
        raise NonFiniteError("generation: expected finite log-probabilities from the model")
    if temperature == 0:
        return int(log_p.argmax())
    scores = log_p.astype(np.float64)
    if 0 < top_k < len(scores):
        scores[np.argsort(-scores, kind="stable")[top_k:]] = -np.inf
    # the maximum of log p / temperature + Gumbel noise is a draw from the softmax, without dividing by its sum
    with quiet():
        return int((scores / temperature - np.log(-np.log(stream.random(len(scores))))).argmax())


def project_past(p: Mapping[str, Array], config: ModelConfig, past: Array) -> list[ProjectedPast]:
    """Every layer's keys and values of a past of hidden states (L, B, P, D)."""
    projected = []
    for layer in range(config.layers):
        weights = layer_weights(p, layer)
        context = _attended(past[layer], weights, config)
        keys, values = (
            multi_head.project(context, weights[f"attention.{kind}"], config.head_width)[0] for kind in ("key", "value")
        )
        projected.append(ProjectedPast(keys, values))
    return projected


def step(
    p: Mapping[str, Array], config: ModelConfig, tokens: Array, pasts: list[ProjectedPast], first_position: int = 0
) -> tuple[Array, list[ProjectedPast]]:
    """log p of every word after the last token (B, V), and the pasts with these tokens (B, T) added.

    The model's own forward, with keys and values of the past kept instead of made again.
    """
    check_tokens(config, "tokens", tokens)
    h, new_pasts, options = embed(p, config, tokens, first_position)[0], [], layer_options(config)
    for layer, past in enumerate(pasts):
        weights = layer_weights(p, layer)
        of_attention, context = transformer_layer.part("attention", weights), _attended(h, weights, config)
        queries, keys, values = (
            multi_head.project(context, of_attention[kind], config.head_width)[0] for kind in ("query", "key", "value")
        )
        keys, values = (module_of(h).concatenate(pair, axis=1) for pair in ((past.keys, keys), (past.values, values)))
        table, _ = multi_head.position_table(of_attention, options.attention)
        arguments = multi_head.arguments(queries, keys, values, table, of_attention)
        y, _ = options.attention.core.forward(arguments, options.attention.attention)
        new_pasts.append(ProjectedPast(keys[:, -config.span :], values[:, -config.span :]))
        h = h + linear.forward(y.reshape(*y.shape[:2], -1), of_attention["output"])[0]
        if config.norm == "post":
            h, _ = transformer_layer.normalize("attention_norm", h, weights)
        if config.feed_forward:
            h, *_ = transformer_layer.feed_forward_sublayer(h, weights, options)
    last = h[:, -1]
    if config.norm == "pre":
        last, _ = transformer_layer.normalize("final_norm", last, p)
    return score_words(p, config, last), new_pasts


def _attended(x: Array, weights: Mapping[str, Array], config: ModelConfig) -> Array:
    """What the attention's projections see of a layer's input."""
    return x if config.norm == "post" else transformer_layer.normalize("attention_norm", x, weights)[0]
