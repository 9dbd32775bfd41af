"""Words in and words out: embeddings and log-probabilities, plain or in clusters."""

import math

from refimpl.config import ModelConfig

from .arithmetic import Vector, Weights, add, dot, log_softmax, product, scaled


def embed(p: Weights, config: ModelConfig, word: int) -> Vector:
    """The word's row; in adaptive input √D (projection · row), from the table of its cluster. [AI]"""
    if not config.cutoffs:
        return list(p["input.table"][word])
    first, cluster = 0, 0
    for end in config.cutoffs:
        if word >= end:
            first, cluster = end, cluster + 1
    return scaled(math.sqrt(config.width), product(p[f"input.projections.{cluster}"],
                                                   p[f"input.tables.{cluster}"][word - first]))


def log_probabilities(p: Weights, config: ModelConfig, hidden: Vector) -> Vector:
    """log p(word) of every word after this hidden state."""
    return adaptive_log_probabilities(p, config, hidden) if config.cutoffs else plain_log_probabilities(p, config, hidden)


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
