"""The masked softmax in the orders of operations in which others compute it: bounds must hold for them, too.

Equal to layers/masked_softmax.py but for roundoff, which falls elsewhere. Where w_j = 0 that one's ds_j is exactly 0; as
published it is the difference of two sums that cancel. Where one slot outweighs all others that one's a_j is exactly 1; by
log-sum-exp, as attention in tiles has it (Dao et al., arXiv 2205.14135), it is as far off as log Z, large as the logits, is
rounded.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import NamedTuple

from refimpl.arrays import Array, largest_exponent, module_of
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


def by_log_sum_exp(
    logits: Array, weight: Array, present: Array, epsilon: float = 0.0
) -> tuple[Array, masked_softmax.Saved]:
    """a_j = w_j exp(s_j - log Z),  log Z = shift + log Σ_i (w_i + ε) exp(s_i - shift)."""
    xp = module_of(logits)
    counted = (weight + epsilon) * present
    some = (counted > 0).any(-1, keepdims=True)
    shift = xp.where(some, xp.where(counted > 0, logits, -xp.inf).max(-1, keepdims=True), 0)
    total = (counted * xp.exp(xp.minimum(logits - shift, largest_exponent(logits.dtype)))).sum(-1, keepdims=True)
    log_total = shift + xp.log(xp.where(some, total, 1))
    share = xp.exp(xp.minimum(logits - log_total, largest_exponent(logits.dtype)))
    attention = weight * share
    return attention, masked_softmax.Saved(share, weight, counted, attention)


@contextmanager
def _replaced(functions: Mapping[str, Callable[..., object]]) -> Iterator[None]:
    """The package's attentions compute with these until the block ends."""
    ours = {name: vars(masked_softmax)[name] for name in functions}
    vars(masked_softmax).update(functions)
    try:
        yield
    finally:
        vars(masked_softmax).update(ours)


ORDERS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "ours": nullcontext,
    "published": partial(_replaced, {"forward": forward, "backward": backward}),
    "log-sum-exp": partial(_replaced, {"forward": by_log_sum_exp}),
}
