"""The model and its optimisers once more, in Python floats and loops alone: slow, and written from the equations only.

Vectors are lists, matrices lists of rows, parameters {name: nested lists}. One function for each equation; a row of the
batch is computed by itself, a position by itself, a head by itself. Sources: [AA] 1907.01470, [AS] 1905.07799,
[AI] 1809.10853, [GS] 1609.04309.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from refimpl.config import ModelConfig, TrainConfig

Vector = list[float]
Weights = Mapping[str, Any]


class Result(NamedTuple):
    """What forward gives: loss; token_loss (B, T); span_penalty; past (L, B, ≤ S, D); log_probabilities (B, T, V)."""

    loss: float
    token_loss: list[Vector]
    span_penalty: float
    past: list[list[list[Vector]]]
    log_probabilities: list[list[Vector]]


def forward(p: Weights, config: ModelConfig, tokens: Any, targets: Any, past: Any) -> Result:
    """Mean over tokens of -log p(target), each row of the batch by itself. `past` is (L, B, P, D)."""
    log_probabilities, row_pasts = [], []
    for b, row in enumerate(tokens):
        scores, row_past = row_forward(p, config, row, [layer_past[b] for layer_past in past])
        log_probabilities.append(scores)
        row_pasts.append(row_past)
    token_loss = [[-scores[t][target] for t, target in enumerate(row)]
                  for scores, row in zip(log_probabilities, targets, strict=True)]
    losses = [loss for row in token_loss for loss in row]
    new_past = [[row_past[layer] for row_past in row_pasts] for layer in range(config.layers)]
    return Result(math.fsum(losses) / len(losses), token_loss, span_penalty(p, config), new_past, log_probabilities)


def row_forward(p: Weights, config: ModelConfig, tokens: Sequence[int], past: Any) -> tuple[list[Vector], Any]:
    """One row: log-probabilities (T, V) and new past, each layer's last S inputs (L, ≤ S, D). `past` is (L, P, D)."""
    hidden, new_past = [embed(p, config, word) for word in tokens], []
    for layer in range(config.layers):
        seen = [*past[layer], *hidden]
        new_past.append(seen[max(0, len(seen) - config.span) :])
        hidden = layer_pre_norm(p, config, layer, seen, len(tokens)) if config.norm == "pre" else (
            layer_post_norm(p, config, layer, seen, len(tokens)))
    if config.norm == "pre":
        hidden = [normalized(p, "final_norm", h) for h in hidden]
    score = adaptive_log_probabilities if config.cutoffs else plain_log_probabilities
    return [score(p, config, h) for h in hidden], new_past


def layer_post_norm(p: Weights, config: ModelConfig, layer: int, seen: list[Vector], block: int) -> list[Vector]:
    """h ← LayerNorm(h + attention(h)), then with a feed-forward h ← LayerNorm(h + feed_forward(h)). [AA]"""
    name = f"layers.{layer}"
    attended = attention(p, config, layer, seen, block)
    hidden = [normalized(p, f"{name}.attention_norm", add(h, y))
              for h, y in zip(seen[len(seen) - block :], attended, strict=True)]
    if config.feed_forward:
        hidden = [normalized(p, f"{name}.feed_forward_norm", add(h, feed_forward(p, name, h))) for h in hidden]
    return hidden


def layer_pre_norm(p: Weights, config: ModelConfig, layer: int, seen: list[Vector], block: int) -> list[Vector]:
    """h ← h + attention(LayerNorm([past ; h])), then with a feed-forward h ← h + feed_forward(LayerNorm(h))."""
    name = f"layers.{layer}"
    attended = attention(p, config, layer, [normalized(p, f"{name}.attention_norm", h) for h in seen], block)
    hidden = [add(h, y) for h, y in zip(seen[len(seen) - block :], attended, strict=True)]
    if config.feed_forward:
        hidden = [add(h, feed_forward(p, name, normalized(p, f"{name}.feed_forward_norm", h))) for h in hidden]
    return hidden


def attention(p: Weights, config: ModelConfig, layer: int, seen: list[Vector], block: int) -> list[Vector]:
    """out_t = W_o [y_t of all heads] for the last `block` positions of g = [past ; h]. [AA]"""
    name = f"layers.{layer}.attention"
    heads = [head_attention(p, config, name, head, seen, block) for head in range(config.heads)]
    return [product(p[f"{name}.output"], [value for head in heads for value in head[t]]) for t in range(block)]


def head_attention(
    p: Weights, config: ModelConfig, name: str, head: int, seen: list[Vector], block: int
) -> list[Vector]:
    """y_t = Σ_c a_tc v_c + Σ_n a_tn √N ν_n of one head. [AA]"""
    E, N = config.head_width, config.memory
    rows = slice(head * E, (head + 1) * E)
    queries, keys, values = ([product(p[f"{name}.{kind}"][rows], g) for g in seen] for kind in ("query", "key", "value"))
    positions = position_table(p, config, name)
    persistent = [[math.sqrt(N) * value for value in p[f"{name}.memory_values"][head][n]] for n in range(N)]
    outputs = []
    for t in range(len(seen) - block, len(seen)):
        logits, mask, slots = [], [], []
        for distance, c in visible(config, t):
            nearest = distance if config.attend_self else distance - 1
            logits.append(context_logit(queries[t], keys[c], positions[nearest] if positions else [0.0] * E))
            mask.append(span_mask(config, p[f"{name}.span"][head], nearest) if config.adaptive_span else 1.0)
            slots.append(values[c])
        for n in range(N):
            logits.append(persistent_logit(queries[t], p[f"{name}.memory_keys"][head][n]))
            mask.append(1.0)
            slots.append(persistent[n])
        weights = attention_weights(logits, mask, config.normalizer_epsilon)
        outputs.append([math.fsum(a * slot[e] for a, slot in zip(weights, slots, strict=True)) for e in range(E)])
    return outputs


def visible(config: ModelConfig, t: int) -> list[tuple[int, int]]:
    """(δ, c = t - δ) of the context that position t sees: δ = 1..S, or 0..S-1 if attend_self; only what exists."""
    first = 0 if config.attend_self else 1
    return [(distance, t - distance) for distance in range(first, first + config.span) if t - distance >= 0]


def position_table(p: Weights, config: ModelConfig, name: str) -> list[Vector] | None:
    """p_δ, row 0 for the nearest distance; None without positions."""
    if config.positions == "none":
        return None
    table: list[Vector] = p["positions" if config.share_positions else f"{name}.positions"]
    return table


def context_logit(query: Vector, key: Vector, position: Vector) -> float:
    """s_tc = q_t · (k_c + p_δ) / √E. [AA]"""
    return dot(query, add(key, position)) / math.sqrt(len(query))


def persistent_logit(query: Vector, memory_key: Vector) -> float:
    """s_tn = q_t · (√E μ_n) / √E. [AA]"""
    key = [math.sqrt(len(query)) * value for value in memory_key]
    return dot(query, key) / math.sqrt(len(query))


def span_mask(config: ModelConfig, rho: float, x: int) -> float:
    """m_z(x) = clamp((R + z - x) / R, 0, 1), z = S ρ. [AS]"""
    return min(1.0, max(0.0, (config.span_ramp + config.span * rho - x) / config.span_ramp))


def attention_weights(logits: Vector, mask: Vector, epsilon: float) -> Vector:
    """Over the slots of one query, by the form that ε asks for. ValueError if no slot has weight."""
    if not any(weight > 0 for weight in mask):
        raise ValueError("attention: expected a slot with a weight above 0, got none")
    return published_weights(logits, mask, epsilon) if epsilon > 0 else exact_weights(logits, mask)


def exact_weights(logits: Vector, mask: Vector) -> Vector:
    """a = w exp(s) / Σ w exp(s). [AS, equation 5]"""
    top = max(s for s, w in zip(logits, mask, strict=True) if w > 0)
    terms = [w * math.exp(s - top) if w > 0 else 0.0 for s, w in zip(logits, mask, strict=True)]
    return [term / math.fsum(terms) for term in terms]


def published_weights(logits: Vector, mask: Vector, epsilon: float) -> Vector:
    """a = w π / (Σ w π + ε), π = softmax(s) over every slot that exists: the three steps of the published code."""
    masked = [w * math.exp(log_share) for w, log_share in zip(mask, log_softmax(logits), strict=True)]
    return [weight / (math.fsum(masked) + epsilon) for weight in masked]


def span_penalty(p: Weights, config: ModelConfig) -> float:
    """λ S mean_heads(ρ), summed over layers. [AS]"""
    if not config.adaptive_span:
        return 0.0
    spans = [p[f"layers.{layer}.attention.span"] for layer in range(config.layers)]
    return math.fsum(config.span_penalty * config.span * math.fsum(rho) / config.heads for rho in spans)


def feed_forward(p: Weights, name: str, hidden: Vector) -> Vector:
    """W_2 relu(W_1 h + b_1) + b_2."""
    wide = add(product(p[f"{name}.feed_forward.weight1"], hidden), p[f"{name}.feed_forward.bias1"])
    return add(product(p[f"{name}.feed_forward.weight2"], [max(0.0, value) for value in wide]),
               p[f"{name}.feed_forward.bias2"])


def normalized(p: Weights, name: str, hidden: Vector) -> Vector:
    """gain (h - mean) / √(biased variance + 1e-5) + bias."""
    mean = math.fsum(hidden) / len(hidden)
    variance = math.fsum((value - mean) ** 2 for value in hidden) / len(hidden)
    return [gain * (value - mean) / math.sqrt(variance + 1e-5) + bias
            for value, gain, bias in zip(hidden, p[f"{name}.gain"], p[f"{name}.bias"], strict=True)]


def embed(p: Weights, config: ModelConfig, word: int) -> Vector:
    """The word's row; in adaptive input √D (projection · row), from the table of its cluster. [AI]"""
    if not config.cutoffs:
        return list(p["input.table"][word])
    first, cluster = 0, 0
    for end in config.cutoffs:
        if word >= end:
            first, cluster = end, cluster + 1
    projected = product(p[f"input.projections.{cluster}"], p[f"input.tables.{cluster}"][word - first])
    return [math.sqrt(config.width) * value for value in projected]


def plain_log_probabilities(p: Weights, config: ModelConfig, hidden: Vector) -> Vector:
    """log_softmax(table · h + bias)."""
    table = p["input.table" if config.tie_tables else "output.table"]
    return log_softmax(add(product(table, hidden), p["output.bias"]))


def adaptive_log_probabilities(p: Weights, config: ModelConfig, hidden: Vector) -> Vector:
    """log p(word) = log p(cluster) + log p(word | cluster); a cluster without words has no slot in the head. [GS]"""
    clusters = len(config.cutoffs) + 1
    scores = [cluster_scores(p, config, i, hidden) for i in range(clusters)]
    tails = [i for i in range(1, clusters) if scores[i]]
    shortlist = projected_hidden(p, config, 0, hidden)
    head = list(scores[0])
    for i in tails:
        row = cluster_row(config, i)
        head.append(dot(p["output.cluster_table"][row], shortlist) + p["output.cluster_bias"][row])
    head = log_softmax(head)
    words = head[: len(scores[0])]
    for share, i in zip(head[len(scores[0]) :], tails, strict=True):
        words += [share + score for score in log_softmax(scores[i])]
    return words


def cluster_row(config: ModelConfig, cluster: int) -> int:
    """Row of the cluster table that scores tail `cluster` = 1, 2, …: in order, or from the end (slot -i for i)."""
    return cluster - 1 if config.cluster_order == "ascending" else len(config.cutoffs) - cluster


def cluster_scores(p: Weights, config: ModelConfig, cluster: int, hidden: Vector) -> Vector:
    """Scores of the cluster's words: table · projected hidden state + bias."""
    table = p[f"{'input' if config.tie_tables else 'output'}.tables.{cluster}"]
    return add(product(table, projected_hidden(p, config, cluster, hidden)), p[f"output.biases.{cluster}"])


def projected_hidden(p: Weights, config: ModelConfig, cluster: int, hidden: Vector) -> Vector:
    """hᵀ · projection (D × width of the cluster)."""
    projection = p[f"{'input' if config.tie_projections else 'output'}.projections.{cluster}"]
    return [dot(hidden, list(column)) for column in zip(*projection, strict=True)]


def log_softmax(logits: Vector) -> Vector:
    """s - log Σ exp(s)."""
    top = max(logits)
    total = math.log(math.fsum(math.exp(s - top) for s in logits))
    return [s - top - total for s in logits]


def product(matrix: Any, vector: Vector) -> Vector:
    """Matrix (outputs, inputs) times vector."""
    return [dot(row, vector) for row in matrix]


def dot(left: Vector, right: Vector) -> float:
    """Σ left · right."""
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def add(left: Vector, right: Vector) -> Vector:
    """left + right."""
    return [a + b for a, b in zip(left, right, strict=True)]


class ScalarOptimizer:
    """SGD, Adagrad and Adam as published, one number at a time, over tensors {name: flat list}."""

    def __init__(self, config: TrainConfig, p: Mapping[str, Vector]) -> None:
        """Accumulators at 0, no update made."""
        self.config, self.updates = config, 0
        self.first = {name: [0.0] * len(values) for name, values in p.items()}
        self.second = {name: [0.0] * len(values) for name, values in p.items()}

    def update(self, p: dict[str, Vector], gradients: Mapping[str, Vector]) -> None:
        """One update of `p` in place; spans (names that end in `.span`) are clamped to [0, 1] after it."""
        self.updates += 1
        rate = learning_rate(self.config, self.updates)
        step = {"sgd": self.sgd, "adagrad": self.adagrad, "adam": self.adam}[self.config.optimizer]
        scales = clip_scales(self.config, gradients)
        for name, values in p.items():
            for i, gradient in enumerate(gradients[name]):
                values[i] -= step(name, i, gradient, scales[name], rate)
            if name.endswith(".span"):
                p[name] = [min(1.0, max(0.0, rho)) for rho in values]

    def sgd(self, name: str, i: int, gradient: float, scale: float, rate: float) -> float:
        """v ← momentum v + g; step = rate v."""
        self.first[name][i] = self.config.momentum * self.first[name][i] + scale * gradient
        return rate * self.first[name][i]

    def adagrad(self, name: str, i: int, gradient: float, scale: float, rate: float) -> float:
        """G ← G + g²; step = rate g / (√G + 1e-10). Clipping each tensor scales its rate: G sees the whole gradient."""
        if not self.config.clip_each:
            gradient, scale = scale * gradient, 1.0
        self.second[name][i] += gradient**2
        return scale * rate * gradient / (math.sqrt(self.second[name][i]) + 1e-10)

    def adam(self, name: str, i: int, gradient: float, scale: float, rate: float) -> float:
        """step = rate m̂ / (√v̂ + 1e-8), m̂ = m / (1 - β₁ᵘ), v̂ = v / (1 - β₂ᵘ), u = 1 at the first update."""
        (beta1, beta2), gradient = self.config.adam_betas, scale * gradient
        first = self.first[name][i] = beta1 * self.first[name][i] + (1 - beta1) * gradient
        second = self.second[name][i] = beta2 * self.second[name][i] + (1 - beta2) * gradient**2
        unbiased = first / (1 - beta1**self.updates), second / (1 - beta2**self.updates)
        return rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)


def learning_rate(config: TrainConfig, update: int) -> float:
    """Rate of update u = 1, 2, …: min(1, u / W) of the full one, a tenth of it during the last updates."""
    warm = min(1.0, update / config.warm_up) if config.warm_up else 1.0
    return config.learning_rate * warm * (0.1 if update > config.updates - config.last_updates else 1.0)


def clip_scales(config: TrainConfig, gradients: Mapping[str, Vector]) -> dict[str, float]:
    """Factor of each tensor: c / (norm + 1e-10) where its norm exceeds c, or min(1, c / (norm of all + 1e-6))."""
    if not config.clip:
        return dict.fromkeys(gradients, 1.0)
    squares = {name: math.fsum(value**2 for value in values) for name, values in gradients.items()}
    if not config.clip_each:
        return dict.fromkeys(gradients, min(1.0, config.clip / (math.sqrt(math.fsum(squares.values())) + 1e-6)))
    norms = {name: math.sqrt(square) for name, square in squares.items()}
    return {name: config.clip / (norm + 1e-10) if norm > config.clip else 1.0 for name, norm in norms.items()}
