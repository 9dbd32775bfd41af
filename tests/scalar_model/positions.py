"""Positions: what is added to an embedding, and what a relative distance adds to a logit."""

import math

from refimpl.config import ModelConfig

from .arithmetic import Number, Vector, Weights, add, dot, product


def absolute(p: Weights, config: ModelConfig, position: int) -> Vector:
    """Added to the embedding at an absolute position: interleaved sinusoid, or the learned row at position modulo S."""
    if config.positions == "sinusoid":
        return interleaved_sinusoid(position, config.width)
    if config.positions == "learned":
        return list(p["input.positions"][position % config.span])
    return [0.0] * config.width


def interleaved_sinusoid(position: int, width: int) -> Vector:
    """Element 2i: sin(position / 10000^(2i/D)), element 2i+1: cos of the same. [Vaswani et al., section 3.5]"""
    angles = [position / 10000 ** (2 * (e // 2) / width) for e in range(width)]
    return [math.cos(angle) if e % 2 else math.sin(angle) for e, angle in enumerate(angles)]


def distance_sinusoid(distance: int, width: int) -> Vector:
    """r_δ: sin(δ / 10000^(2i/D)) for i = 0, 1, … < D/2, then the cosines of the same, cut to D. [XL, published code]"""
    angles = [distance / 10000 ** (2 * i / width) for i in range((width + 1) // 2)]
    return [*(math.sin(angle) for angle in angles), *(math.cos(angle) for angle in angles[: width // 2])]


def nearest_first(config: ModelConfig, distance: int) -> int:
    """Index of a distance δ among the S that a query sees: 0 for the nearest, which is δ = 0 if it attends to itself."""
    return distance if config.attend_self else distance - 1


def context_logit(
    p: Weights, config: ModelConfig, layer: int, head: int, query: Vector, key: Vector, distance: int
) -> Number:
    """s_tc = q · (k_c + p_δ) / √E; p is 0 without relative positions. [AA]

    Transformer-XL: ((q + u) · k_c + (q + v) · W_kR r_δ) / √E. [XL, section 3.3]
    """
    root_width, name = math.sqrt(len(query)), f"layers.{layer}.attention"
    shared = "" if config.share_positions else f"{name}."
    if config.positions == "relative":
        return dot(query, add(key, p[f"{shared}positions"][nearest_first(config, distance)])) / root_width
    if config.positions == "transformer-xl":
        rows = p[f"{name}.position_key"][head * len(query) : (head + 1) * len(query)]
        position = product(rows, distance_sinusoid(distance, config.width))
        content = dot(add(query, p[f"{shared}content_bias"][head]), key)
        return (content + dot(add(query, p[f"{shared}position_bias"][head]), position)) / root_width
    return dot(query, key) / root_width
