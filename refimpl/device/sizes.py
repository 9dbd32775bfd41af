"""Memory that an update takes on a GPU, counted array by array as device/ and layers/ make them there.

Four moments are looked at: the output's logits with their gradient, the last layer's attention on the way back, its end,
where gradients leave their tiles, and the input's tables. The largest is the peak.
"""

import math
from functools import cached_property

import numpy as np

from refimpl import operations, parameters
from refimpl.accounting import Update
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import adaptive_softmax, attention, tiles
from refimpl.optimizers import accumulators

POOL = 1 / 20  # of what arrays hold: about so much more does CuPy's pool, for pieces between them


def bytes_by_purpose(config: ModelConfig, train_config: TrainConfig, share: float = 1.0) -> dict[str, int]:
    """As accounting.bytes_by_purpose: bytes on the device at the peak of an update, at the full past."""
    sizes, vector = Sizes(config, train_config, share), parameters.total(config)
    held = len(accumulators(train_config))
    past = config.layers * train_config.batch * config.span * config.width
    counts = {"parameters": vector, "gradients": vector, "optimizer": vector * held, "past": 2 * past,
              "saved": sizes.saved, "scratch": sizes.scratch}
    counts["pool"] = POOL * sum(counts.values())
    return {purpose: round(count * np.dtype(train_config.dtype).itemsize) for purpose, count in counts.items()}


class Sizes(Update):
    """Elements of an update's arrays on a device."""

    @cached_property
    def window(self) -> int:
        """Positions before the block that are computed."""
        return operations.window(self.config, self.share)

    @cached_property
    def context(self) -> int:
        """Rows of [past ; block]."""
        return self.train.batch * (self.window + self.train.block)

    @cached_property
    def cut(self) -> tiles.Cut:
        """As attention is cut."""
        return attention.cut(self.train.block, self.window, self.window, self.config.attend_self)

    @cached_property
    def tiled_keys(self) -> int:
        """Keys, or values, in tiles."""
        return self.train.batch * self.cut.keys * self.by_head

    @cached_property
    def tiled_rows(self) -> int:
        """Queries in tiles."""
        return self.train.batch * self.cut.tiles * self.cut.rows * self.by_head

    @cached_property
    def kinds(self) -> int:
        """Of queries, where each kind of slot has its own."""
        return 3 if self.config.positions == "transformer-xl" else 1

    @property
    def saved(self) -> float:
        """What forward keeps: of each layer, and what the output is scored from."""
        config, rows, vectors = self.config, self.rows, self.rows * self.config.width
        layer: float = self.context * config.width + 2 * self.tiled_keys + self.kinds * self.tiled_rows
        layer += 2 * self.train.batch * self.cut.tiles * self.cut.rows * config.context_heads  # each row's shift and total
        layer += vectors * (self.train.batch > 1) + rows * self.by_head  # what queries are made from; y
        layer += vectors + (self.context * config.width if config.norm == "pre" else vectors)  # around a norm
        if config.variant != "all-attention" and config.memory:  # a softmax of their own: its weights, and the queries
            weights = rows * config.memory_shape[0] * config.memory
            layer += vectors + weights + bool(config.dropout) * (weights + self._flags(weights))
        if config.feed_forward:
            inner, dropped, relu = rows * config.feed_forward, bool(config.dropout), config.variant != "ff-attention"
            layer += 2 * vectors + inner * (1 + (dropped and not relu)) + self._flags(inner) * (relu + dropped)
        ends = vectors + (2 * (vectors + self._flags(vectors)) if config.embedding_dropout else 0)
        of_clusters = rows * sum(width for *_, width in config.clusters)
        return config.layers * layer + ends + (of_clusters if config.cutoffs else self._logits)

    @property
    def scratch(self) -> float:
        """What is there beside that at the largest of four moments."""
        config, vectors, squared = self.config, self.rows * self.config.width, self.config.width**2
        table = sum((end - first) * width for first, end, width in config.clusters) or config.vocabulary * config.width
        output = self._clusters if config.cutoffs else self._logits + vectors + table
        into = 2 * vectors + table + config.width * sum(width for *_, width in config.clusters)
        begun = 3 * vectors + (1 + self.kinds) * self.tiled_rows + 2 * self.tiled_keys + squared + self._of_heads
        back = begun + max(self._parts, vectors + 2 * self.context * self.by_head)
        if config.norm == "pre":
            back = max(back, 4 * vectors + 5 * self.context * config.width + 4 * squared)
        return max(output, back, into)

    def _flags(self, count: int) -> float:
        """So many booleans, in numbers of the training's dtype."""
        return count / self._item

    @property
    def _item(self) -> int:
        return np.dtype(self.train.dtype).itemsize

    @property
    def _logits(self) -> int:
        return self.rows * self.config.vocabulary

    @property
    def _clusters(self) -> float:
        """Of an adaptive softmax in one pass: its rows' gradients; logits of the head, or pieces of the largest tail."""
        config, count, tails = self.config, self.rows, len(self.config.clusters) - 1
        (_, words, width), *others = config.clusters
        head = min(adaptive_softmax.ELEMENTS, count * (words + tails)) + 2 * count * width
        pieces = max(math.ceil(count / adaptive_softmax.TILE), adaptive_softmax.BLOCKS) * adaptive_softmax.TILE
        tail = max(2 * count * width + pieces * (width + 2) for *_, width in others)
        return count * config.width + max(head, tail + 3 * count) + 2 * tails * count * 4 / self._item + count

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
