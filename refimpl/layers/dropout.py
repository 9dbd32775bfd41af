"""Dropout with the keep-mask as an argument, so that a result can be repeated."""

from typing import NamedTuple

from refimpl.arrays import Array
from refimpl.masks import Keep, drawn


class Saved(NamedTuple):
    """What backward needs; keep None = nothing was dropped."""

    keep: Array | None
    rate: float


def forward(x: Array, keep: Keep, rate: float) -> tuple[Array, Saved]:
    """y = x · keep / (1 - rate);  keep a boolean array like x, maybe yet to be drawn, or None for y = x."""
    keep = drawn(keep, x)
    return _scaled(x, keep, rate), Saved(keep, rate)


def backward(dy: Array, saved: Saved) -> Array:
    """dx = dy · keep / (1 - rate)."""
    return _scaled(dy, saved.keep, saved.rate)


def _scaled(x: Array, keep: Array | None, rate: float) -> Array:
    return x if keep is None else x * keep / (1 - rate)
