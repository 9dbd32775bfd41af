"""What one update asks of a GPU, counted from the code's own shapes, and the least time that it could take: a bound.

Bytes: each kernel's arrays, read and written once, as if nothing stood in the way. Operations: those of cuBLAS's products;
of an adaptive softmax's tails none, because the text decides which rows they have. A device is taken at its data sheet's
peak. No update has been timed on a GPU yet.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import ledger_ends, windows
from refimpl.device.counts import Entry, Sum, total
from refimpl.device.ledger_layers import Shape, layer

PARTS = ("input", "past", "norms and residuals", "projections", "attention", "persistent attention", "feed-forward",
         "output and loss", "sums of gradients", "optimiser")


class Peak(NamedTuple):
    """A device's float32 operations and bytes of memory per second, at most, and who says so."""

    operations: float
    bytes: float
    source: str


PEAKS: Mapping[str, Peak] = {
    "A100": Peak(19.5e12, 2039e9, "NVIDIA A100 datasheet, SXM 80GB: FP32 19.5 TFLOPS, 2,039 GB/s"),
    "H100": Peak(67e12, 3.35e12, "NVIDIA H100 datasheet, SXM: FP32 67 teraFLOPS, 3.35 TB/s"),
    "RTX 4090": Peak(82.6e12, 1008e9, "NVIDIA Ada GPU architecture whitepaper, RTX 4090: FP32 82.6 TFLOPS, 1008 GB/s"),
}


def ledger(config: ModelConfig, train_config: TrainConfig) -> dict[str, Any]:
    """The result of `bench --ledger`: with spans as they begin and with full ones, entries by part, their total, and bounds
    by device; what is sent and waited for.

    At the full past; spans as windows.py looks at them; attention in tiles, whichever is set.
    """
    rows, looks = train_config.batch * train_config.block, config.adaptive_span and config.span > windows.SMALL
    return {
        "bound": "the least time at a data sheet's peak; not a measurement",
        "span_initial": _told(config, train_config, config.span_initial),
        "full_span": _told(config, train_config, 1.0),
        "sent_bytes": 2 * rows * np.dtype("int64").itemsize, "read_back_bytes": 0, "synchronizations": 0,
        "attention": "tiled", "uncounted": "rows of the adaptive softmax's tails" if config.cutoffs else "",
        "spans_read_every": windows.interval(train_config) if looks else 0,
        "sources": {name: peak.source for name, peak in PEAKS.items()}, "tokens_per_update": rows,
    }


def _told(config: ModelConfig, train_config: TrainConfig, share: float) -> dict[str, Any]:
    """Parts, total and bounds with every head's ρ at this share."""
    parts = _parts(config, train_config, _reach(config, train_config, share))
    return {"parts": {name: entry._asdict() for name, entry in parts.items()}, "total": total(parts.values())._asdict(),
            "seconds": {name: _least(parts, peak) for name, peak in PEAKS.items()}}


def _reach(config: ModelConfig, train_config: TrainConfig, share: float) -> Sequence[int]:
    """What each head of a layer computes; () = S."""
    if not config.adaptive_span or config.span <= windows.SMALL:
        return ()
    return windows.reach_of(np.full(config.context_heads, share, train_config.dtype), config, windows.room(train_config))


def _parts(config: ModelConfig, train_config: TrainConfig, reach: Sequence[int]) -> dict[str, Entry]:
    found = defaultdict[str, Sum](partial(Sum, train_config.dtype))
    ledger_ends.embedded(found["input"], config, train_config)
    for _ in range(config.layers):
        layer(found, Shape(config, train_config.batch, train_config.block, reach))
    ledger_ends.past(found["past"], config, train_config)
    ledger_ends.final_norm(found["norms and residuals"], config, train_config)
    ledger_ends.scored(found["output and loss"], config, train_config)
    ledger_ends.added(found["sums of gradients"], config)
    ledger_ends.optimizer(found["optimiser"], config, train_config)
    return {name: found[name].entry() for name in PARTS if name in found}


def _least(parts: Mapping[str, Entry], peak: Peak) -> float:
    """Each part takes at least its operations' time or its bytes' time, whichever is longer."""
    return sum(max(part.operations / peak.operations, (part.read + part.written) / peak.bytes) for part in parts.values())
