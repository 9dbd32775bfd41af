"""Memory that an update takes on a GPU, counted array by array as device/ and layers/ make them there.

Four moments are looked at: the output's logits with their gradient, the last layer's attention on the way back, its end,
where gradients leave their tiles, and the input's tables. The largest is the peak.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from refimpl import operations, parameters
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import adaptive_softmax, attention, tiles
from refimpl.optimizers import ACCUMULATORS

POOL = 1 / 20  # of what arrays hold: about so much more does CuPy's pool, for pieces between them


def bytes_by_purpose(config: ModelConfig, train_config: TrainConfig, share: float = 1.0) -> dict[str, int]:
    """As accounting.bytes_by_purpose: bytes on the device at the peak of an update, at the full past."""
    sizes, vector = Sizes(config, train_config, share), parameters.total(config)
    held = len(ACCUMULATORS[train_config.optimizer]) if train_config.optimizer != "sgd" or train_config.momentum else 0
    past = config.layers * train_config.batch * config.span * config.width
    counts = {"parameters": vector, "gradients": vector, "optimizer": vector * held, "past": 2 * past,
              "saved": sizes.saved, "scratch": sizes.scratch}
    counts["pool"] = POOL * sum(counts.values())
    return {purpose: round(count * np.dtype(train_config.dtype).itemsize) for purpose, count in counts.items()}


@dataclass(frozen=True)
class Sizes:
    """Elements of an update's arrays on a device, at a share of the span."""

    config: ModelConfig
    train: TrainConfig
    share: float

    @cached_property
    def rows(self) -> int:
        """B T D: the block's vectors."""
        return self.train.batch * self.train.block * self.config.width

    @cached_property
    def window(self) -> int:
        """Positions before the block that are computed."""
        return operations.window(self.config, self.share)

    @cached_property
    def context(self) -> int:
        """B (window + T) D: those of [past ; block]."""
        return self.train.batch * (self.window + self.train.block) * self.config.width

    @cached_property
    def heads(self) -> float:
        """Of the context's vectors what the heads that attend to it have."""
        return self.config.context_heads / self.config.heads

    @cached_property
    def cut(self) -> tiles.Cut:
        """As attention is cut."""
        return attention.cut(self.train.block, self.window, self.window, self.config.attend_self)

    @cached_property
    def tiled_keys(self) -> float:
        """Keys, or values, in tiles."""
        return self.train.batch * self.cut.keys * self.config.width * self.heads

    @cached_property
    def tiled_rows(self) -> float:
        """Queries in tiles."""
        return self.train.batch * self.cut.tiles * self.cut.rows * self.config.width * self.heads

    @property
    def saved(self) -> float:
        """What forward keeps: of each layer, and what the output is scored from."""
        config, train = self.config, self.train
        bits = self.rows / self._item  # a keep-mask of booleans
        of_queries = (3 if config.positions == "transformer-xl" else 1) * self.tiled_rows
        of_statistics = 2 * train.batch * self.cut.tiles * self.cut.rows * config.context_heads
        layer = self.context + 2 * self.tiled_keys + of_queries + of_statistics
        layer += self.rows * (train.batch > 1) + self.rows * self.heads  # what queries are made from; y
        layer += self.context if config.norm == "pre" else self.rows  # what a norm gave, and before gain and bias
        layer += self.rows
        if config.variant != "all-attention" and config.memory:  # a softmax of their own: its weights, and the queries
            weights = train.batch * train.block * config.memory_shape[0] * config.memory
            layer += self.rows + weights + bool(config.dropout) * (weights + weights / self._item)
        if config.feed_forward:
            inner, dropped = train.batch * train.block * config.feed_forward, bool(config.dropout)
            relu = config.variant != "ff-attention"
            layer += 2 * self.rows + inner * (1 + (dropped and not relu)) + inner / self._item * (relu + dropped)
        ends = self.rows + (2 * (self.rows + bits) if config.embedding_dropout else 0)
        if config.cutoffs:
            ends += train.batch * train.block * sum(width for *_, width in config.clusters)
        return config.layers * layer + ends + (0 if config.cutoffs else self._logits)

    @property
    def scratch(self) -> float:
        """What is there beside that at the largest of four moments."""
        config, layer = self.config, 4 * self.config.width**2
        table = sum((end - first) * width for first, end, width in config.clusters) or config.vocabulary * config.width
        output = self._clusters if config.cutoffs else self._logits + self.rows + table
        into = 2 * self.rows + table + config.width * sum(width for *_, width in config.clusters)
        keys, rows = self.tiled_keys, self.tiled_rows
        kinds = 3 if config.positions == "transformer-xl" else 1
        begun = 3 * self.rows + (1 + kinds) * rows + 2 * keys + layer / 4 + self._of_heads
        back = begun + max(self._parts, self.rows + 2 * self.context * self.heads)
        if config.norm == "pre":
            back = max(back, 3 * self.rows + (self.rows + 2 * self.context) + 3 * self.context + layer)
        return max(output, back, into)

    @property
    def _item(self) -> int:
        return np.dtype(self.train.dtype).itemsize

    @property
    def _logits(self) -> int:
        return self.train.batch * self.train.block * self.config.vocabulary

    @property
    def _clusters(self) -> float:
        """Of an adaptive softmax in one pass: its rows' gradients; logits of the head, or pieces of the largest tail."""
        config, count, tails = self.config, self.train.batch * self.train.block, len(self.config.clusters) - 1
        (_, words, width), *others = config.clusters
        head = min(adaptive_softmax.ELEMENTS, count * (words + tails)) + 2 * count * width
        pieces = max(math.ceil(count / adaptive_softmax.TILE), adaptive_softmax.BLOCKS) * adaptive_softmax.TILE
        tail = max(2 * count * width + pieces * (width + 2) for *_, width in others)
        return self.rows + max(head, tail + 3 * count) + 2 * tails * count * 4 / self._item + count

    @property
    def _of_heads(self) -> int:
        """Gradients of a layer's positions and persistent vectors."""
        config = self.config
        groups, slots, width = config.memory_shape
        positions = config.span * config.head_width * (config.context_heads if config.positions == "transformer-xl" else 1)
        return positions * (config.positions in ("relative", "transformer-xl")) + 2 * groups * slots * width

    @property
    def _parts(self) -> float:
        """Weights and their gradient, and logits by distance, of the largest part that is computed at once."""
        config, slots = self.config, self.config.memory if self.config.variant == "all-attention" else 0
        by_distance = config.positions in ("relative", "transformer-xl")
        largest = 0
        for part in attention.parts_of(self.cut, [(slice(0, config.context_heads), self.window)], self.train.batch, slots):
            heads, texts = part.heads.stop - part.heads.start, part.texts.stop - part.texts.start
            row = 2 * (tiles.window_of(part.size, self.cut.rows) + slots) + part.size * by_distance
            largest = max(largest, heads * texts * self.cut.rows * row)
        return largest
