"""What a passage's queries attend to: persistent vectors or context, which vectors, how far back.

By the textbook attention, whose weights are kept, a layer and a few queries at a time; what stands before the queries is
computed in tiles.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl import model
from refimpl.arrays import Array, quiet
from refimpl.checkpoint import Checkpoint
from refimpl.config import ModelConfig
from refimpl.inputs import extend_past
from refimpl.layers import attention, transformer_layer
from refimpl.report.passage import Passage
from refimpl.variants import attention_core, layer_options

MOST_BYTES = 200_000_000  # of a layer's intermediates for one block of queries
ARRAYS = 12  # of the size of its logits that the textbook has at a time
CONTEXTS, MOST_USED = 3, 10

Numbers = npt.NDArray[np.float64]


class Vector(NamedTuple):
    """A persistent vector: where it is, its mean weight over the queries, (weight, position) of those that use it most."""

    layer: int
    head: int
    number: int
    mean: float
    used_by: list[tuple[float, int]]


class Look(NamedTuple):
    """Means over the passage's queries.

    share (L, H): the sum of a head's weights on persistent vectors; None where they are not weighed against the context.
    by_distance (L, C, S): the weight of each context position, nearest first, of the C heads that see the context.
    vectors: the most used persistent vectors; [] without any. kind: what these are called.
    """

    queries: int
    share: Numbers | None
    by_distance: Numbers
    vectors: list[Vector]
    kind: str


class _Weights(NamedTuple):
    """One layer's weights for a block: context (C, T, S), and of vectors (G, T, N) or None."""

    context: Array
    vectors: Array | None


def look(saved: Checkpoint, passage: Passage) -> Look:
    """The attention of a model's every layer on a passage, which begins with an empty past as a text does."""
    config, first = saved.config, passage.first
    queries = len(passage.tokens) - first
    by_distance = np.zeros((config.layers, config.context_heads, config.span))
    uses = [_Uses() for _ in range(config.layers)]
    for start, layer, seen in _weights(saved, passage):
        by_distance[layer] += seen.context.sum(1, dtype=np.float64)
        if seen.vectors is not None:
            uses[layer].add(seen.vectors, start)
    share = None
    if config.variant == "all-attention":
        share = np.stack([use.total.sum(1) for use in uses]) / queries
    elif config.variant == "head-split":
        share = np.zeros((config.layers, config.heads))
        share[:, config.context_heads :] = 1
    kind = "feed-forward vector" if config.variant == "ff-attention" else "persistent vector"
    return Look(queries, share, by_distance / queries, _most_used(uses, queries, config), kind)


def _weights(saved: Checkpoint, passage: Passage) -> Iterator[tuple[int, int, _Weights]]:
    """(the block's first position, layer, weights) of every block of queries and every layer."""
    p, config = saved.parameters, saved.config
    tiled = attention_core("tiled", p.vector)
    past = model.initial_past(config, 1, p.vector)
    for low, high in _blocks(saved, passage):
        core = tiled if high <= passage.first else attention
        options, inputs = layer_options(config, core), []
        with quiet():
            # absolute positions begin anew with every block of training, and so in evaluation
            h, _ = model.embed(p, config, passage.tokens[None, low:high].astype(np.int64), low % saved.train_config.block)
            for layer in range(config.layers):
                inputs.append(h)
                h, kept = transformer_layer.forward(h, past[layer], model.layer_weights(p, layer), options, {})
                if core is attention:
                    yield low, layer, _of_layer(kept, config)
        past = extend_past(config, past, inputs)


def _blocks(saved: Checkpoint, passage: Passage) -> Iterator[tuple[int, int]]:
    """The text cut into blocks of training; those with queries smaller where their weights would take too much memory."""
    config, block = saved.config, saved.train_config.block
    # (S + T - 1) products and S + N logits of each head and query, T at most the block
    each = config.heads * (2 * config.span + block + config.memory + config.feed_forward) * saved.parameters.vector.itemsize
    few = max(1, min(block, MOST_BYTES // (ARRAYS * each)))
    low = 0
    while low < len(passage.tokens):
        ends = low // block * block + block
        high = min(ends, passage.first) if low < passage.first else min(ends, low + few)
        high = min(high, len(passage.tokens))
        yield low, high
        low = high


def _of_layer(kept: transformer_layer.Saved, config: ModelConfig) -> _Weights:
    seen: Any = kept.attention.attention
    if isinstance(seen, attention.Saved):
        weights, size = seen.softmax.attention[0], config.span
        vectors = weights[..., size:] if config.memory else None
        if config.variant == "ff-attention" and kept.inner is not None:
            vectors = kept.inner.attention
        return _Weights(weights[..., :size], vectors)
    return _Weights(seen.context.softmax.attention[0][..., : config.span], seen.persistent.attention[0])


class _Uses:
    """How much a layer's vectors are used: the sum of their weights (G, N), and each one's largest with their positions."""

    def __init__(self) -> None:
        self.total: Numbers = np.zeros((0, 0))
        self.largest: Array = np.zeros((0, 0, 0))
        self.places: Array = np.zeros((0, 0, 0), int)

    def add(self, weights: Array, start: int) -> None:
        """Takes a block's weights (G, T, N) in, its first query at position `start`."""
        groups, block, slots = weights.shape
        places = np.broadcast_to(start + np.arange(block)[None, None, :], (groups, slots, block))
        if not self.total.size:
            self.total = np.zeros((groups, slots))
            self.largest, self.places = np.zeros((groups, slots, 0)), np.zeros((groups, slots, 0), int)
        self.total += weights.sum(1, dtype=np.float64)
        self.largest = np.concatenate([self.largest, weights.swapaxes(1, 2)], axis=2)
        self.places = np.concatenate([self.places, places], axis=2)
        order = np.argsort(-self.largest, axis=2, kind="stable")[..., :CONTEXTS]
        self.largest, self.places = (np.take_along_axis(a, order, 2) for a in (self.largest, self.places))


def _most_used(uses: list[_Uses], queries: int, config: ModelConfig) -> list[Vector]:
    """Those with the largest mean weights, of all layers and heads."""
    if not uses[0].total.size:
        return []
    means = np.stack([use.total for use in uses]) / queries
    order = np.argsort(-means, axis=None, kind="stable")[:MOST_USED]
    first = config.context_heads if config.variant == "head-split" else 0
    found = []
    for layer, group, number in zip(*np.unravel_index(order, means.shape), strict=True):
        use = uses[layer]
        used_by = list(zip(use.largest[group, number].tolist(), use.places[group, number].tolist(), strict=True))
        mean = float(means[layer, group, number])
        found.append(Vector(int(layer), first + int(group), int(number), mean, used_by))
    return found
