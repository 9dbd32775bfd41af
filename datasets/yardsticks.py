"""What simple count models reach on a text: figures that a trained model must beat to have learned anything."""

import math

import numpy as np
import numpy.typing as npt

from refimpl.datasets.vocabulary import Tokens
from refimpl.errors import InputError

ORDERS = (1, 2, 4)
SORTED_AT_ONCE = 1 << 22
Integers = npt.NDArray[np.int64]


def count_model_bits(train: Tokens, valid: Tokens, vocabulary_size: int, order: int) -> float:
    """Bits per token of `valid` under the Witten-Bell interpolated count model of `train`.

    P_k(c | ctx) = (n(ctx, c) + t(ctx) P_{k-1}(c | shorter ctx)) / (n(ctx) + t(ctx)), with n the counts of `train`, t
    the number of distinct tokens seen after ctx, P_{k-1} alone after a ctx never seen, and P_{-1} = 1/V. The first
    tokens have the contexts that there are. [Witten and Bell 1991, method C, as Chen and Goodman 1998 interpolate it]
    Raises InputError if V^(order+1) needs more than 62 bits, a token is outside [0, V) or a text is empty.
    """
    if order < 0 or not _fits(vocabulary_size, order):
        raise InputError(f"order: expected 0 or more, and {vocabulary_size}^(order + 1) within 62 bits, got {order}")
    return _bits_by_order(train, valid, vocabulary_size, order)[order]


def yardsticks(train: Tokens, valid: Tokens, vocabulary_size: int) -> dict[str, float]:
    """Bits per token of the count models of orders 1, 2 and 4, as far as V^(order+1) fits into 62 bits.

    Raises InputError if a token is outside [0, V) or a text is empty.
    """
    orders = [order for order in ORDERS if _fits(vocabulary_size, order)]
    bits = _bits_by_order(train, valid, vocabulary_size, max(orders, default=0))
    return {f"order-{order} count model": bits[order] for order in orders}


def _fits(size: int, order: int) -> bool:
    return size >= 1 and (order + 1) * math.log2(size) <= 62


def _bits_by_order(train: Tokens, valid: Tokens, size: int, highest: int) -> list[float]:
    for name, tokens in (("train", train), ("valid", valid)):
        if tokens.ndim != 1 or not tokens.size:
            raise InputError(f"{name}: expected (n,) tokens, n of 1 or more, got shape {tokens.shape}")
        if tokens.min() < 0 or tokens.max() >= size:
            raise InputError(f"{name}: expected tokens in [0, {size}), got {tokens.min()} to {tokens.max()}")
    chances = np.full(len(valid), 1 / size)
    bits = []
    for order in range(highest + 1):
        if order < min(len(train), len(valid)):
            chances[order:] = _interpolated(train, valid, size, order, chances[order:])
        bits.append(float(-np.log2(chances).mean()))
    return bits


def _interpolated(train: Tokens, valid: Tokens, size: int, order: int,
                  shorter: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """P_order of the tokens of `valid` from the order-th on, `shorter` being their P_{order-1}."""
    grams, counts = _counted(train, size, order, 0, len(train) - order)
    contexts, firsts, kinds = np.unique(grams // size, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, firsts)
    wanted = _codes(valid, size, order, 0, len(valid) - order)
    seen = _looked_up(grams, counts, wanted)
    total = _looked_up(contexts, totals, wanted // size)
    kind = _looked_up(contexts, kinds, wanted // size)
    mixed = (seen + kind * shorter) / np.maximum(total + kind, 1)
    return np.where(total > 0, mixed, shorter)


def _codes(tokens: Tokens, size: int, order: int, start: int, stop: int) -> Integers:
    """The runs of order + 1 tokens that begin at start to stop - 1, each as one number in base V."""
    codes = np.zeros(stop - start, np.int64)
    for step in range(order + 1):
        codes *= size
        codes += tokens[start + step:stop + step]
    return codes


def _counted(tokens: Tokens, size: int, order: int, start: int, stop: int) -> tuple[Integers, Integers]:
    """The distinct codes in ascending order, and how often each occurs; halves are merged, so memory stays small."""
    if stop - start <= SORTED_AT_ONCE:
        codes, counts = np.unique(_codes(tokens, size, order, start, stop), return_counts=True)
        return codes, counts
    middle = (start + stop) // 2
    left, right = (_counted(tokens, size, order, *ends) for ends in ((start, middle), (middle, stop)))
    codes, counts = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    ascending = np.argsort(codes, kind="stable")  # two sorted runs: a stable sort merges them in linear time
    codes, counts = codes[ascending], counts[ascending]
    firsts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1]))
    return codes[firsts], np.add.reduceat(counts, firsts)


def _looked_up(keys: Integers, values: Integers, wanted: Integers) -> Integers:
    """The values of the wanted keys; 0 for those that are not there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
