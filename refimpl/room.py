"""Whether a run fits into the memory that is there, and if not, what to change."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from refimpl import ram
from refimpl.accounting import bytes_by_purpose
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import sizes
from refimpl.device.opening import free_bytes, number_of
from refimpl.errors import InputError
from refimpl.ranks import ALONE, Ranks

SMALLEST_BLOCK, SMALLEST_SPAN = 16, 16
Count = Callable[[ModelConfig, TrainConfig, float], Mapping[str, int]]  # bytes by purpose, as accounting's


def of(device: str, ranks: Ranks = ALONE) -> tuple[int | None, Count]:
    """How many bytes are there where memory will be taken, None if nobody knows, and how it is counted.

    Ranks on one machine share its memory, each with parameters of its own and its rows; of GPUs each has one.
    """
    if number_of(device) is not None:
        return free_bytes(device), partial(of_ranks, sizes.bytes_by_purpose, ranks.size, 1)
    return ram.available(), partial(of_ranks, bytes_by_purpose, ranks.size, ranks.here)


def of_ranks(
    count: Count, ranks: int, here: int, config: ModelConfig, train_config: TrainConfig, share: float
) -> Mapping[str, int]:
    """What `count` tells of one of so many ranks, of which some take it here; sums: what others' gradients arrive in."""
    if ranks == 1:
        return count(config, train_config, share)
    train_config = replace(train_config, batch=math.ceil(train_config.batch / ranks), parallel="threads")
    memory = count(config, train_config, share)
    return {purpose: here * size for purpose, size in {**memory, "sums": memory["parameters"]}.items()}


def shortage(
    config: ModelConfig, train_config: TrainConfig, share: float, available: int | None, count: Count = bytes_by_purpose
) -> str:
    """What an update needs more than there is, and which settings make it fit; "" if it fits, or if nobody knows."""
    if train_config.parallel == "auto":
        train_config = replace(train_config, parallel="threads")
    memory = count(config, train_config, share)
    needed = sum(memory.values())
    if available is None or needed <= available:
        return ""
    largest = sorted(memory, key=lambda purpose: -memory[purpose])[:3]
    parts = ", ".join(f"{purpose} {_amount(memory[purpose])}" for purpose in largest)
    found = list(suggestions(config, train_config, share, available, count))
    change = f"it fits with {' or '.join(found)}" if found else (
        "neither train.batch nor train.block nor model.span alone makes it fit: try several, model.layers or model.width")
    return f"expected {_amount(available)} of memory to be enough, got an estimate of {_amount(needed)} ({parts}); {change}"


def check(
    config: ModelConfig, train_config: TrainConfig, share: float, available: int | None, count: Count = bytes_by_purpose
) -> None:
    """Raises InputError if an update, its longest spans at `share` of S, needs more memory than there is."""
    told = shortage(config, train_config, share, available, count)
    if told:
        raise InputError(f"this run: {told} (--dry-run tells more)")


def settled(config: ModelConfig, train_config: TrainConfig, available: int | None) -> TrainConfig:
    """train.parallel = "auto" as threads, where there is no memory for processes with every span full."""
    needed = sum(bytes_by_purpose(config, train_config, 1.0).values())
    if train_config.parallel != "auto" or available is None or needed <= available:
        return train_config
    return replace(train_config, parallel="threads")


def suggestions(
    config: ModelConfig, train_config: TrainConfig, share: float, available: int, count: Count = bytes_by_purpose
) -> Iterator[str]:
    """Single settings with which it fits, each as little smaller as may be."""

    def fits(config: ModelConfig, train_config: TrainConfig) -> bool:
        return sum(count(config, train_config, share).values()) <= available

    if train_config.parallel == "processes" and fits(config, replace(train_config, parallel="threads")):
        yield "train.parallel=threads"
    if train_config.workers != 1 and fits(config, replace(train_config, workers=1)):
        yield "train.workers=1"
    batch = _largest(train_config.batch - 1, lambda size: fits(config, replace(train_config, batch=size)))
    if batch:
        yield f"train.batch={batch}"
    block = _halved(train_config.block, SMALLEST_BLOCK, lambda size: fits(config, replace(train_config, block=size)))
    if block:
        yield f"train.block={block}"
    span = _halved(config.span, SMALLEST_SPAN, lambda size: fits(replace(config, span=size), train_config))
    if span:
        yield f"model.span={span}"


def _halved(value: int, smallest: int, fits: Callable[[int], bool]) -> int:
    """The first of value / 2, value / 4, … that fits, 0 if none down to the smallest does."""
    sizes = (value >> halvings for halvings in range(1, value.bit_length()))
    return next((size for size in sizes if size >= smallest and fits(size)), 0)


def _largest(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to `most` that fits, 0 if none does."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _amount(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
