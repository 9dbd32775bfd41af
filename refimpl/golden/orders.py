"""The masked softmax in the order of operations in which published implementations compute it.

Equal to layers/masked_softmax.py but for roundoff, which falls elsewhere: where w_j = 0 that one's ds_j is exactly 0, this
one's the difference of two sums that cancel. A bound must hold for both.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from refimpl.arrays import Array, module_of
from refimpl.layers import masked_softmax


class Saved(NamedTuple):
    """Every intermediate: p_j, w_j, a_j, all (…, slots), and Σ w p + ε (…, 1)."""

    share: Array
    weight: Array
    attention: Array
    total: Array


def forward(logits: Array, weight: Array, present: Array, epsilon: float = 0.0) -> tuple[Array, Saved]:
    """p = softmax(s) over the slots that are present,  a_j = w_j p_j / (Σ_i w_i p_i + ε); 0 where nothing counts."""
    xp = module_of(logits)
    largest = xp.where(present, logits, -xp.inf).max(-1, keepdims=True)
    exponentials = xp.exp(xp.where(present, logits - xp.where(xp.isneginf(largest), 0, largest), -xp.inf))
    sums = exponentials.sum(-1, keepdims=True)
    share = exponentials / xp.where(sums > 0, sums, 1)
    total = (weight * share).sum(-1, keepdims=True) + epsilon
    total = xp.where(total > 0, total, 1)
    attention = weight * share / total
    return attention, Saved(share, weight, attention, total)


def backward(d_attention: Array, saved: Saved) -> tuple[Array, Array]:
    """d(wp)_j = (da_j - Σ a da) / (Σ w p + ε),  dp_j = w_j d(wp)_j,  ds_j = p_j (dp_j - Σ p dp),  dw_j = p_j d(wp)_j."""
    share, weight, attention, total = saved
    d_masked = (d_attention - (attention * d_attention).sum(-1, keepdims=True)) / total
    d_share = weight * d_masked
    return share * (d_share - (share * d_share).sum(-1, keepdims=True)), share * d_masked


@contextmanager
def published() -> Iterator[None]:
    """The package's attentions compute in this order until the block ends."""
    ours = {"forward": masked_softmax.forward, "backward": masked_softmax.backward}
    vars(masked_softmax).update(forward=forward, backward=backward)
    try:
        yield
    finally:
        vars(masked_softmax).update(ours)


ORDERS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {"ours": nullcontext, "published": published}
