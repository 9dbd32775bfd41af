"""Softmax under weights, normalised jointly over all slots: the centre of all-attention."""

from typing import NamedTuple

from refimpl.arrays import Array, largest_exponent, module_of


class Saved(NamedTuple):
    """Every intermediate: e_j / Z, w_j, w_j + ε (0 where the slot does not exist), a_j, all (…, slots)."""

    share: Array
    weight: Array
    counted: Array
    attention: Array


def forward(logits: Array, weight: Array, present: Array, epsilon: float = 0.0) -> tuple[Array, Saved]:
    """a_j = w_j e_j / Z,  Z = Σ_j (w_j + ε) e_j,  e_j = exp(s_j - shift), over the last axis.

    logits (…, slots); weight, 0 where not present, and present (boolean) broadcast against it; a row without any
    w_j + ε > 0 gives 0. ε = 0 is the exact form; ε = 1e-8 is softmax, mask and division by the sum + ε, as published. The
    shift is the largest logit that counts; a slot of weight 0 may lie above it, and its e_j, needed for dw, is held finite.
    """
    xp = module_of(logits)
    counted = (weight + epsilon) * present if epsilon else weight
    counts = counted.real > 0
    some = counts.any(-1, keepdims=True)
    shift = xp.where(some, xp.where(counts, logits.real, -xp.inf).max(-1, keepdims=True), 0)
    exponentials = xp.exp(xp.minimum(logits - shift, largest_exponent(logits.dtype)))
    share = exponentials / xp.where(some, (counted * exponentials).sum(-1, keepdims=True), 1)
    attention = weight * share
    return attention, Saved(share, weight, counted, attention)


def backward(d_attention: Array, saved: Saved) -> tuple[Array, Array]:
    """ds_j = (e_j / Z) (w_j da_j - (w_j + ε) r),  dw_j = (e_j / Z) (da_j - r),  r = Σ_j a_j da_j.

    d_attention (…, slots) -> d_logits, d_weight, both (…, slots). No division by w: w = 0 is exact.
    """
    share, weight, counted, attention = saved
    mean = (attention * d_attention).sum(-1, keepdims=True)
    d_logits = share * (weight * d_attention - counted * mean)
    return d_logits, share * (d_attention - mean)
