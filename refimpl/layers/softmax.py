"""Softmax over the last axis."""

from refimpl.arrays import Array, module_of


def forward(logits: Array) -> tuple[Array, Array]:
    """a_j = exp(s_j) / Σ_i exp(s_i), stable for any finite logits (…, slots); saves a."""
    exponentials = module_of(logits).exp(logits - logits.real.max(-1, keepdims=True))
    attention = exponentials / exponentials.sum(-1, keepdims=True)
    return attention, attention


def backward(d_attention: Array, attention: Array) -> Array:
    """ds_j = a_j (da_j - Σ_i a_i da_i)."""
    return attention * (d_attention - (attention * d_attention).sum(-1, keepdims=True))
