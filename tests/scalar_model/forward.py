"""The whole forward, from tokens to log-probabilities and loss."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refimpl.config import ModelConfig

from .arithmetic import Number, Vector, Weights, add, dropped, exp, log_softmax, product, relu, root, total
from .attention import attention, span_penalty
from .output import embed, log_probabilities
from .positions import absolute

Masks = Mapping[str, Any]


class Result(NamedTuple):
    """What forward gives: loss; token_loss (B, T); span_penalty; past (L, B, ≤ S, D); log_probabilities (B, T, V)."""

    loss: Number
    token_loss: list[Vector]
    span_penalty: Number
    past: list[list[list[Vector]]]
    log_probabilities: list[list[Vector]]


def initial_past(config: ModelConfig, batch: int) -> list[list[list[Vector]]]:
    """(L, B, P, D) before a text: P = 0, or P = S zero vectors with zero_past."""
    zeros: list[Vector] = [[0.0] * config.width for _ in range(config.span if config.zero_past else 0)]
    return [[list(zeros) for _ in range(batch)] for _ in range(config.layers)]


def forward(
    p: Weights, config: ModelConfig, tokens: Any, targets: Any, past: Any, masks: Masks, first_position: int
) -> Result:
    """Mean over tokens of -log p(target), each row of the batch by itself. `past` is (L, B, P, D), keep-masks (B, …)."""
    scores, row_pasts = [], []
    for b, row in enumerate(tokens):
        keep = {name: mask[b] for name, mask in masks.items()}
        row_scores, row_past = row_forward(p, config, row, [layer_past[b] for layer_past in past], keep, first_position)
        scores.append(row_scores)
        row_pasts.append(row_past)
    token_loss = [[-row_scores[t][target] for t, target in enumerate(row)]
                  for row_scores, row in zip(scores, targets, strict=True)]
    losses = [loss for row in token_loss for loss in row]
    new_past = [[row_past[layer] for row_past in row_pasts] for layer in range(config.layers)]
    return Result(total(losses) / len(losses), token_loss, span_penalty(p, config), new_past, scores)


def row_forward(
    p: Weights, config: ModelConfig, tokens: Sequence[int], past: Any, keep: Masks, first_position: int
) -> tuple[list[Vector], Any]:
    """One row: log-probabilities (T, V) and new past, each layer's last S inputs (L, ≤ S, D). `past` is (L, P, D)."""
    hidden = [add(embed(p, config, word), absolute(p, config, first_position + t)) for t, word in enumerate(tokens)]
    hidden = each_dropped(hidden, keep.get("embedding"), config.embedding_dropout)
    layer_forward = layer_pre_norm if config.norm == "pre" else layer_post_norm
    new_past = []
    for layer in range(config.layers):
        seen = [*past[layer], *hidden]
        new_past.append(seen[max(0, len(seen) - config.span) :])
        hidden = layer_forward(p, config, layer, seen, len(tokens), keep)
    if config.norm == "pre":
        hidden = [normalized(p, "final_norm", h) for h in hidden]
    hidden = each_dropped(hidden, keep.get("hidden"), config.embedding_dropout)
    return [log_probabilities(p, config, h) for h in hidden], new_past


def layer_post_norm(
    p: Weights, config: ModelConfig, layer: int, seen: list[Vector], block: int, keep: Masks
) -> list[Vector]:
    """h ← LayerNorm(h + attention(h)), then with a feed-forward h ← LayerNorm(h + feed_forward(h)). [AA]"""
    name, hidden = f"layers.{layer}", seen[len(seen) - block :]
    attended = attention(p, config, layer, seen, block, keep)
    hidden = [normalized(p, f"{name}.attention_norm", add(h, y)) for h, y in zip(hidden, attended, strict=True)]
    if config.feed_forward:
        fed = feed_forward(p, config, layer, hidden, keep)
        hidden = [normalized(p, f"{name}.feed_forward_norm", add(h, y)) for h, y in zip(hidden, fed, strict=True)]
    return hidden


def layer_pre_norm(
    p: Weights, config: ModelConfig, layer: int, seen: list[Vector], block: int, keep: Masks
) -> list[Vector]:
    """h ← h + attention(LayerNorm([past ; h])), then with a feed-forward h ← h + feed_forward(LayerNorm(h))."""
    name, hidden = f"layers.{layer}", seen[len(seen) - block :]
    attended = attention(p, config, layer, [normalized(p, f"{name}.attention_norm", g) for g in seen], block, keep)
    hidden = [add(h, y) for h, y in zip(hidden, attended, strict=True)]
    if config.feed_forward:
        fed = feed_forward(p, config, layer, [normalized(p, f"{name}.feed_forward_norm", h) for h in hidden], keep)
        hidden = [add(h, y) for h, y in zip(hidden, fed, strict=True)]
    return hidden


def feed_forward(p: Weights, config: ModelConfig, layer: int, hidden: list[Vector], keep: Masks) -> list[Vector]:
    """W_2 relu(W_1 h + b_1) + b_2; ff-attention W_2 softmax(W_1 h). Dropout on what W_2 takes. [AA, sections 3 and 5]"""
    name = f"layers.{layer}.feed_forward"
    wide = [product(p[f"{name}.weight1"], h) for h in hidden]
    if config.variant == "ff-attention":
        wide = [[exp(log_share) for log_share in log_softmax(logits)] for logits in wide]
    else:
        wide = [[relu(value) for value in add(values, p[f"{name}.bias1"])] for values in wide]
    out = [product(p[f"{name}.weight2"], values) for values in each_dropped(wide, keep.get(name), config.dropout)]
    return out if config.variant == "ff-attention" else [add(y, p[f"{name}.bias2"]) for y in out]


def normalized(p: Weights, name: str, hidden: Vector) -> Vector:
    """gain (h - mean) / √(biased variance + 1e-5) + bias."""
    mean = total(hidden) / len(hidden)
    variance = total((value - mean) * (value - mean) for value in hidden) / len(hidden)
    deviation = root(variance + 1e-5)
    return [gain * (value - mean) / deviation + bias
            for value, gain, bias in zip(hidden, p[f"{name}.gain"], p[f"{name}.bias"], strict=True)]


def each_dropped(hidden: list[Vector], keep: Any, rate: float) -> list[Vector]:
    """Dropout of each position by its row of a keep-mask (T, …)."""
    return hidden if keep is None else [dropped(h, row, rate) for h, row in zip(hidden, keep, strict=True)]
