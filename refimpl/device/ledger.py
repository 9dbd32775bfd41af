"""What one update asks of a GPU, counted from the code's own shapes, and the least time that it could take: a bound.

Each array that a step reads or writes is counted once, as if nothing stood in the way; operations are those of the matrix
products. A device is taken at its data sheet's peak. No update has been timed on a GPU yet.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl import parameters
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import attention, tiles
from refimpl.errors import InputError
from refimpl.optimizers import ACCUMULATORS


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


class Entry(NamedTuple):
    """One part of an update: matrix products, their operations, bytes read and written."""

    products: int
    operations: int
    read: int
    written: int


class Sum:
    """Adds up an entry."""

    def __init__(self, item: int) -> None:
        self._item = item
        self.products = self.operations = self.read = self.written = 0

    def product(self, rows: int, inner: int, columns: int, batch: int = 1, shared: bool = False, add: bool = False) -> None:
        """A batch of (rows × inner) by (inner × columns); shared: the right factor is one for all; add: to what is there."""
        out = batch * rows * columns
        self.products += 1
        self.operations += 2 * out * inner
        self.moved(batch * rows * inner + (1 if shared else batch) * inner * columns + (out if add else 0), out)

    def moved(self, read: int, written: int) -> None:
        """Elements that a kernel reads and writes."""
        self.read += read * self._item
        self.written += written * self._item

    def entry(self) -> Entry:
        """The sums."""
        return Entry(self.products, self.operations, self.read, self.written)


def ledger(config: ModelConfig, train_config: TrainConfig) -> dict[str, Any]:
    """The result of `bench --ledger`: entries by part, their total, what is sent and waited for, and bounds by device.

    At the full past; every head's span is taken as S. Raises InputError for models that it does not know.
    """
    if config.cutoffs or config.variant not in ("all-attention", "transformer"):
        raise InputError("bench --ledger: expected all-attention or transformer without cutoffs, got "
                         f"{'cutoffs' if config.cutoffs else config.variant}")
    parts = {"projections": _projections(config, train_config), "attention": _attention(config, train_config),
             "feed-forward": _feed_forward(config, train_config), "norms and residuals": _norms(config, train_config),
             "output and loss": _output(config, train_config), "optimiser": _optimizer(config, train_config)}
    parts = {name: entry for name, entry in parts.items() if any(entry)}
    total = Entry(*(sum(values) for values in zip(*parts.values(), strict=True)))
    rows = train_config.batch * train_config.block
    return {
        "bound": "the least time at a data sheet's peak; not a measurement",
        "parts": {name: entry._asdict() for name, entry in parts.items()}, "total": total._asdict(),
        "sent_bytes": 2 * rows * np.dtype("int64").itemsize, "read_back_bytes": 0, "synchronizations": 0,
        "seconds": {name: _least(parts, peak) for name, peak in PEAKS.items()},
        "sources": {name: peak.source for name, peak in PEAKS.items()}, "tokens_per_update": rows,
    }


def _least(parts: Mapping[str, Entry], peak: Peak) -> float:
    """Each part takes at least its operations' time or its bytes' time, whichever is longer."""
    return sum(max(part.operations / peak.operations, (part.read + part.written) / peak.bytes) for part in parts.values())


def _sizes(config: ModelConfig, train_config: TrainConfig) -> tuple[int, int, int, Sum]:
    """Rows of the block, rows of [past ; block], width, and an empty sum."""
    rows = train_config.batch * train_config.block
    return rows, rows + train_config.batch * config.span, config.width, Sum(np.dtype(train_config.dtype).itemsize)


def _projections(config: ModelConfig, train_config: TrainConfig) -> Entry:
    rows, context, width, found = _sizes(config, train_config)
    into_past = context if config.norm == "pre" else rows
    for _ in range(config.layers):
        for inputs, needed in ((rows, rows), (context, into_past), (context, into_past), (rows, rows)):
            found.product(inputs, width, width)
            found.product(needed, width, width)
            found.product(width, inputs, width)
    return found.entry()


def _attention(config: ModelConfig, train_config: TrainConfig) -> Entry:
    """As device/attention.py cuts it: logits, weights and what they weigh; once more in backward, with their gradients."""
    *_, found = _sizes(config, train_config)
    batch, block, heads, width, slots = (train_config.batch, train_config.block, config.heads, config.head_width,
                                         config.memory)
    at = attention.cut(block, config.span, config.span, config.attend_self)
    window = tiles.window_of(config.span, at.rows)
    for part in attention.parts_of(at, [(slice(0, heads), config.span)], batch, slots):
        n, texts = part.heads.stop - part.heads.start, part.texts.stop - part.texts.start
        for backward in (False, True):
            _logits(config, found, n, texts * at.rows, at.rows, window)
            whole, near = n * texts * at.rows * (window + slots), n * texts * at.rows * config.span
            near = near if config.positions == "relative" else 0
            products = 2 if not backward else 4
            for _ in range(products - 1):  # y; or d of weights, values, keys, queries
                found.product(at.rows, window, width, n * texts, add=backward)
                if slots:
                    found.product(texts * at.rows, slots, width, n, add=True)
            if backward:
                found.product(at.rows, width, window, n * texts)
                if slots:
                    found.product(texts * at.rows, width, slots, n)
                for _ in range(2 if near else 0):
                    found.product(n * texts * at.rows, config.span, width, add=True)
                found.moved(2 * whole + near, 2 * whole + near)
            else:
                found.moved(whole + near, whole)
    return Entry(*(config.layers * value for value in found.entry()))


def _logits(config: ModelConfig, found: Sum, heads: int, rows: int, each: int, window: int) -> None:
    found.product(each, config.head_width, window, heads * rows // each)
    if config.memory:
        found.product(rows, config.head_width, config.memory, heads)
    if config.positions == "relative":
        found.product(heads * rows, config.head_width, config.span)


def _feed_forward(config: ModelConfig, train_config: TrainConfig) -> Entry:
    rows, _, width, found = _sizes(config, train_config)
    for _ in range(config.layers if config.feed_forward else 0):
        for inner, outer in ((width, config.feed_forward), (config.feed_forward, width)):
            found.product(rows, inner, outer)
            found.product(rows, outer, inner)
            found.product(outer, rows, inner)
        found.moved(2 * rows * config.feed_forward, 2 * rows * config.feed_forward)
    return found.entry()


def _norms(config: ModelConfig, train_config: TrainConfig) -> Entry:
    """Forward reads the sum and writes the result; backward reads both and the gradient, and writes one."""
    rows, _, width, found = _sizes(config, train_config)
    for _ in range(config.layers * (2 if config.feed_forward else 1) + (config.norm == "pre")):
        found.moved(5 * rows * width, 2 * rows * width)
    return found.entry()


def _output(config: ModelConfig, train_config: TrainConfig) -> Entry:
    """The table's rows for the tokens, their gradients; scores, softmax loss, and the way back."""
    rows, _, width, found = _sizes(config, train_config)
    found.moved(2 * rows * width, 2 * rows * width)
    found.product(rows, width, config.vocabulary)
    found.moved(2 * rows * config.vocabulary, rows * config.vocabulary)
    found.product(rows, config.vocabulary, width)
    found.product(config.vocabulary, rows, width)
    return found.entry()


def _optimizer(config: ModelConfig, train_config: TrainConfig) -> Entry:
    """The gradient's squares; then p, g and accumulators, all but g written."""
    found, size = _sizes(config, train_config)[-1], parameters.total(config)
    held = len(ACCUMULATORS[train_config.optimizer]) if train_config.optimizer != "sgd" or train_config.momentum else 0
    found.moved(size + (2 + held) * size, (1 + held) * size)
    return found.entry()
