"""The attentions for one query of each text, forward alone: what attention.py computes, each head over its own reach.

Softmax by parts: the slots of the context and the persistent ones each give their sums, which are joined in one softmax, or
divided each for itself by the variants that have two.
"""

from typing import NamedTuple

from refimpl.arrays import Array, module_of, to_host
from refimpl.layers import attention, span

SLACK = 64  # positions; a group of heads costs about 13 µs of calls, as much as 300 positions of a head of width 64


class Part(NamedTuple):
    """Sums over one kind of slots, for G heads and B texts, at least one of which counts: w_j + ε > 0.

    largest (G, B): s* = max s_j over the slots that count; mass (G, B): Σ_j (w_j + ε) exp(s_j - s*); mixed (G, B, K):
    Σ_j w_j exp(s_j - s*) v_j.
    """

    largest: Array
    mass: Array
    mixed: Array


class Heads(NamedTuple):
    """Neighbouring heads, n the largest of their reaches: w (G, n), p (G or 1, n, E) or None; the nearest stands last."""

    heads: slice
    weight: Array
    positions: Array | None


def reaches(rho: Array | None, heads: int, options: attention.Options) -> list[int]:
    """How many of the nearest positions each head needs: S without adaptive span; with ε > 0 all that are not trimmed."""
    if rho is None:
        return [options.span] * heads
    if options.normalizer_epsilon:
        return [int(span.untrimmed(rho, options.span, options.ramp))] * heads
    return [int(n) for n in to_host(span.reach(rho, options.span, options.ramp))]


def alike(reach: list[int]) -> list[slice]:
    """Neighbouring heads whose reaches lie within SLACK of one another, which are computed together."""
    groups, first = [], 0
    for head in range(1, len(reach) + 1):
        if head == len(reach) or max(reach[first : head + 1]) - min(reach[first : head + 1]) > SLACK:
            groups.append(slice(first, head))
            first = head
    return groups


def by_reach(
    rho: Array | None, table: Array | None, reach: list[int], options: attention.Options, like: Array
) -> list[Heads]:
    """The heads in groups of like reach, with what does not change from query to query, in the library of `like`.

    rho (H) or None; table (S, E), (H, S, E) or None, nearest first.
    """
    xp, groups = module_of(like), []
    if rho is None:
        mask = xp.ones((len(reach), options.span), like.dtype)
    else:
        mask = span.mask_forward(rho, options.span, options.ramp)[0]
    for heads in alike(reach):
        n, at = max(reach[heads]), None
        if table is not None:
            at = xp.ascontiguousarray((table[heads] if table.ndim == 3 else table[None])[:, :n][:, ::-1])
        groups.append(Heads(heads, xp.ascontiguousarray(mask[heads, :n][:, ::-1]), at))
    return groups


def context(
    content: Array, at_distance: Array, keys: Array, values: Array, group: Heads, exists: Array | None, epsilon: float
) -> Part:
    """The part of the n nearest positions: s_c = content · k_c + at_distance · p_δ, w_c = m_z(δ).

    content (q + u) / √E and at_distance (q + v) / √E (G, B, E); keys and values (G, B, n, E); exists (B, n) or None = all.
    The nearest position exists: its w is 1, whatever the span.
    """
    xp, n = module_of(keys), keys.shape[2]
    logits = (keys @ content[..., None])[..., 0]
    if group.positions is not None:
        logits = logits + at_distance @ group.positions[:, group.positions.shape[1] - n :].swapaxes(1, 2)
    weight = group.weight[:, None, group.weight.shape[1] - n :]
    counted = weight + epsilon if epsilon else weight
    if exists is not None:
        counted = counted * exists
    logits = xp.where(counted > 0, logits, -xp.inf)
    largest = logits.max(-1)
    exponentials = xp.exp(logits - largest[..., None])
    mixed = ((weight * exponentials)[..., None, :] @ values)[..., 0, :]
    return Part(largest, (counted * exponentials).sum(-1), mixed)


def persistent(queries: Array, memory_keys: Array, unit_values: Array, epsilon: float) -> Part:
    """The part of the persistent slots: s_n = q · (√K μ_n) / √K, w_n = 1; the roots cancel.

    queries (G, B, K), memory_keys μ and unit_values √N ν (G, N, K).
    """
    logits = queries @ memory_keys.swapaxes(1, 2)
    largest = logits.max(-1)
    exponentials = module_of(logits).exp(logits - largest[..., None])
    return Part(largest, exponentials.sum(-1) * (1 + epsilon), exponentials @ unit_values)


def beside(parts: list[Part]) -> Part:
    """The parts of several groups of heads as one, heads in their order."""
    if len(parts) == 1:
        return parts[0]
    xp = module_of(parts[0].mass)
    return Part(*(xp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def joined(first: Part, second: Part) -> Array:
    """Σ w_j e_j v_j / Σ (w_j + ε) e_j over the slots of both parts in one softmax -> (G, B, K)."""
    xp = module_of(first.mass)
    largest = xp.maximum(first.largest, second.largest)
    one, other = xp.exp(first.largest - largest), xp.exp(second.largest - largest)
    mass = one * first.mass + other * second.mass
    return (one[..., None] * first.mixed + other[..., None] * second.mixed) / mass[..., None]


def divided(part: Part) -> Array:
    """Σ w_j e_j v_j / Σ (w_j + ε) e_j of one part alone -> (G, B, K)."""
    return part.mixed / part.mass[..., None]
