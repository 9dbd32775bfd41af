"""What a configuration will take, told before anything is allocated: parameters, bytes by purpose, operations per token."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from refimpl import operations, parameters
from refimpl.arrays import available_cores
from refimpl.config import ModelConfig, TrainConfig
from refimpl.layers.fused_softmax import CHUNKING
from refimpl.layers.tiles import TILING, cut
from refimpl.optimizers import accumulators
from refimpl.shared import plan
from refimpl.variants import attention_path

STREAMS = 8  # texts that validation scores side by side
OF_A_PROCESS = 38_000_000  # bytes resident in one that has loaded NumPy and the model's code
ROUNDING = 17 / 16  # blocks of the arena are an eighth larger than what they hold at most: a sixteenth on average


def describe(
    config: ModelConfig, train_config: TrainConfig, count: Callable[..., Mapping[str, int]] | None = None
) -> dict[str, Any]:
    """parameters.total and .by_group; memory in bytes and operations per token, both with all spans full and at first.

    count: what counts the memory where that is not the host's, as bytes_by_purpose.
    """
    groups, told, count = parameters.count(config), {}, count or bytes_by_purpose
    for when, share in (("full_span", 1.0), ("span_initial", config.span_initial)):
        memory = count(config, train_config, share)
        told[when] = {"memory": {"total": sum(memory.values()), "by_purpose": memory},
                      "operations_per_token": operations.per_token(config, train_config, operations.window(config, share))}
    return {
        "parameters": {"total": sum(groups.values()), "by_group": groups},
        "memory": told["full_span"]["memory"], "memory_at_first": told["span_initial"]["memory"],
        "operations_per_token": {when: each["operations_per_token"] for when, each in told.items()},
        "tokens_per_update": train_config.batch * train_config.block,
    }


def bytes_by_purpose(config: ModelConfig, train_config: TrainConfig, share: float = 1.0) -> dict[str, int]:
    """Bytes at the peak of an update, at the full past, where the longest span of each layer is `share` of S.

    saved: what forward keeps for backward; scratch: the temporary arrays of the largest step, once for each worker that
    runs at the same time; validation: what scoring takes while these are kept for the next update. All three are counted
    array by array as layers/ makes them. checkpoint: the copy that is written while training goes on, by as much as it is
    larger than a validation, as there is one or the other. processes: what they share, and each beside the first by itself.
    """
    sizes, vector = Sizes(config, train_config, share), parameters.total(config)
    held, together = len(accumulators(train_config)), plan(config, train_config)
    past = config.layers * train_config.batch * config.span * config.width
    counts = {
        "parameters": float(vector),
        "gradients": vector * sizes.workers * ROUNDING,
        "optimizer": float(vector * held),
        # the old one and the new one; of several workers each makes its part of the new one first
        "past": past * (2 + (sizes.workers > 1)) * ROUNDING,
        "saved": config.layers * sizes.saved_by_layer() + sizes.saved_by_output(),
        "scratch": sizes.scratch(),
        "validation": _validation(config, train_config, share),
    }
    copied = vector * (1.0 + held) * bool(train_config.checkpoint_every or train_config.evaluate_every)
    counts["checkpoint"] = max(0.0, copied - counts["validation"])
    found = {purpose: round(count * np.dtype(train_config.dtype).itemsize) for purpose, count in counts.items()}
    if together.processes > 1:
        found["processes"] = together.bytes() + (together.processes - 1) * OF_A_PROCESS
    return found


def _validation(config: ModelConfig, train_config: TrainConfig, share: float) -> float:
    """A block of STREAMS texts scored, the past before it and after it."""
    scoring = replace(train_config, batch=STREAMS, workers=1, attention="auto")
    sizes, past = Sizes(config, scoring, share), config.layers * STREAMS * config.span * config.width
    output = min(sizes.scored, CHUNKING.logits) if sizes.in_chunks else 3 * sizes.scored
    return config.layers * sizes.saved_by_layer() / ROUNDING + output + 2 * past


@dataclass(frozen=True)
class Update:
    """What is computed at once, the longest span of each layer `share` of S."""

    config: ModelConfig
    train: TrainConfig
    share: float

    @cached_property
    def rows(self) -> int:
        """B T."""
        return self.train.batch * self.train.block

    @cached_property
    def by_head(self) -> int:
        """Width of keys and values."""
        return self.config.context_heads * self.config.head_width


class Sizes(Update):
    """Elements of an update's arrays, all workers together."""

    @cached_property
    def tiled(self) -> bool:
        """Whether attention is computed in tiles."""
        path = attention_path(self.train.attention, self.config, self.train.batch, self.train.block)
        return path == "tiled"

    @cached_property
    def workers(self) -> int:
        """Parts of the batch that are computed side by side."""
        return min(self.train.batch, self.train.workers or available_cores())

    @cached_property
    def context(self) -> int:
        """Rows of [past ; block] that are projected: in tiles those within reach."""
        window = operations.window(self.config, self.share) if self.tiled else self.config.span
        return self.train.batch * (self.train.block + window)

    @cached_property
    def slots(self) -> int:
        """Slots of all heads whose weights a query keeps with all that they are made of: none in tiles."""
        if self.tiled:
            return 0
        with_context = self.config.memory * self.config.heads if self.config.variant == "all-attention" else 0
        return self.config.context_heads * self.config.span + with_context

    @cached_property
    def apart(self) -> int:
        """Persistent slots under a softmax of their own, of which a query keeps the weight alone."""
        return 0 if self.config.variant == "all-attention" else self.config.memory_shape[0] * self.config.memory

    @cached_property
    def product(self) -> int:
        """A product of all queries with all keys of the block and the span before it; none in tiles."""
        return 0 if self.tiled else self.rows * self.config.context_heads * (self.config.span + self.train.block)

    def saved_by_layer(self) -> float:
        """What one layer's forward keeps."""
        config, rows = self.config, self.rows
        by_row = 5 * rows * config.width  # queries, what they are projected from, y, normalised rows, the layer's output
        by_position = self.context * (config.width + 2 * self.by_head)
        windows = 0 if self.tiled else 2 * self.train.batch * (config.span + self.train.block) * self.by_head
        dropped = (self.slots + self.apart) * rows * 1.25 if config.dropout else 0
        by_slot = rows * (3 * self.slots + self.apart + 2 * config.context_heads) + self.product + dropped
        constant = self.workers * (config.span * config.head_width + config.context_heads * config.span)
        if not self.tiled:
            constant += self.workers * (1 + bool(config.normalizer_epsilon)) * self.train.block * self.slots
        inner = 0.0
        if config.feed_forward:
            inner = rows * (2 * config.width + config.feed_forward * (1.5 if config.dropout else 1.25))
        waves = 2 * config.span * config.width * self.workers if config.positions == "transformer-xl" else 0
        return ROUNDING * (by_row + by_position + by_slot + inner) + windows + constant + waves

    def saved_by_output(self) -> float:
        """Log-probabilities; in chunks nothing is kept."""
        return 0.0 if self.in_chunks else ROUNDING * self.scored

    @cached_property
    def in_chunks(self) -> bool:
        """Whether an adaptive softmax is computed so."""
        return bool(self.config.cutoffs) and self.tiled

    @cached_property
    def scored(self) -> int:
        """The output's logits; with clusters, the head's and, at worst, the widest tail's."""
        if not self.config.cutoffs:
            return self.rows * self.config.vocabulary
        words = [end - first for first, end, _ in self.config.clusters]
        return self.rows * (words[0] + len(words) - 1 + max(words[1:]))

    def scratch(self) -> float:
        """Temporary arrays of each kind, as many as are alive at one time."""
        config, rows = self.config, self.rows
        by_row, by_position = 8 * rows * config.width, 2 * self.context * self.by_head
        by_slot = rows * (6 * self.slots + 3 * self.apart) + 2 * self.product
        inner = 3 * rows * config.feed_forward
        output = min(self.scored, CHUNKING.logits * self.workers) if self.in_chunks else 2 * self.scored
        largest = self.workers * self._gradients()
        return ROUNDING * (by_row + by_position + by_slot + inner + output + largest) + self._tiles()

    def _gradients(self) -> float:
        """One layer's, before they are added to the model's, and one table's."""
        config = self.config
        layer = 2 * config.width * (config.width + self.by_head) + 2 * config.feed_forward * config.width
        memory = 2 * config.memory_shape[0] * config.memory * config.memory_shape[2]
        tables = max([(end - first) * width for first, end, width in config.clusters] or [config.vocabulary * config.width])
        return layer + memory + tables + config.span * config.head_width

    def _tiles(self) -> float:
        """Every thread's own arrays: two blocks of tiles, products of them, and the rows of one head of texts in a block."""
        if not self.tiled:
            return 0.0
        config, block = self.config, self.train.block
        window = operations.window(config, self.share)
        slots = config.memory if config.variant == "all-attention" else 0
        texts = math.ceil(self.train.batch / self.workers)
        parts = TILING.parts(texts, config.context_heads, texts * block * (window + slots))
        at = cut(block, window, window, slots, config.attend_self, TILING, math.ceil(texts / parts))
        blocks = 2 * at.stack * at.rows * (at.width + slots) + at.stack * at.width * config.head_width
        return available_cores() * at.texts * (blocks + 12 * (block + window) * config.head_width)
