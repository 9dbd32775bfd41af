"""What a configuration will take, told before anything is allocated: parameters, bytes by purpose, tokens per update."""

from dataclasses import replace
from typing import Any

import numpy as np

from refimpl import parameters
from refimpl.arrays import available_cores
from refimpl.config import ModelConfig, TrainConfig
from refimpl.layers.fused_softmax import CHUNKING
from refimpl.layers.tiles import TILING
from refimpl.optimizers import ACCUMULATORS
from refimpl.variants import attention_path


def describe(config: ModelConfig, train_config: TrainConfig) -> dict[str, Any]:
    """parameters.total and .by_group, memory in bytes by purpose, tokens_per_update."""
    groups, memory = parameters.count(config), bytes_by_purpose(config, train_config)
    return {
        "parameters": {"total": sum(groups.values()), "by_group": groups},
        "memory": {"total": sum(memory.values()), "by_purpose": memory},
        "tokens_per_update": train_config.batch * train_config.block,
    }


def bytes_by_purpose(config: ModelConfig, train_config: TrainConfig) -> dict[str, int]:
    """Bytes at the peak of an update, at the full past.

    saved: what forward keeps for backward; scratch: the optimiser's two vectors and the temporary arrays of the largest
    step, once for each worker that runs at the same time; checkpoint: the copy that is written while training goes on.
    """
    path = attention_path(train_config.attention, config, train_config.batch, train_config.block)
    train_config, item = replace(train_config, attention=path), np.dtype(train_config.dtype).itemsize
    vector = parameters.total(config) * item
    workers = min(train_config.batch, train_config.workers or available_cores())
    past = config.layers * train_config.batch * config.span * config.width * item
    accumulators = len(ACCUMULATORS[train_config.optimizer])
    if train_config.optimizer == "sgd" and not train_config.momentum:
        accumulators = 0
    rows = train_config.batch * train_config.block
    weights = rows * _kept_slots(config, train_config) * item
    scored = _scored(config, rows)
    in_chunks = bool(config.cutoffs) and train_config.attention == "tiled"
    output = min(scored, workers * CHUNKING.logits) if in_chunks else 2 * scored
    return {
        "parameters": vector,
        "gradients": vector * workers,
        "optimizer": vector * accumulators,
        "past": 2 * past,
        "saved": (config.layers * _saved_by_layer(config, train_config) + (0 if in_chunks else scored)) * item,
        "checkpoint": vector * (1 + accumulators) if train_config.checkpoint_every or train_config.evaluate_every else 0,
        "scratch": 2 * vector + max(4 * weights + _tiles(train_config) * item, output * item),
    }


def _saved_by_layer(config: ModelConfig, train_config: TrainConfig) -> int:
    """Elements that one layer's forward keeps, the arrays of layers/ one by one."""
    batch, block, width, slots = train_config.batch, train_config.block, config.width, _kept_slots(config, train_config)
    rows, context, tiled = batch * block, batch * (block + config.span), train_config.attention == "tiled"
    window = 0 if tiled else batch * (config.span + block - 1)
    by_position = (3 * context + 2 * window + 6 * rows) * width  # context, keys, values; windows; queries … norm
    product = 2 if tiled else config.span + block  # in tiles: each row's maximum and normaliser
    by_slot = rows * (3 * slots + config.context_heads * product)  # logits, share, attention; the product
    constant = 0 if tiled else 2 * block * slots  # w and w + ε
    masks = rows * slots // 4 if config.dropout else 0
    inner = rows * (3 * config.feed_forward + 3 * width) if config.feed_forward else 0
    waves = 2 * config.span * width if config.positions == "transformer-xl" else 0  # the sinusoid, and projected
    return by_position + by_slot + constant + masks + inner + waves


def _kept_slots(config: ModelConfig, train_config: TrainConfig) -> int:
    """Slots of all heads whose weights a query keeps: in tiles those of persistent vectors apart from the context."""
    persistent = config.memory_shape[0] * config.memory
    if train_config.attention == "tiled":
        return 0 if config.variant == "all-attention" else persistent
    return config.context_heads * config.span + persistent


def _tiles(train_config: TrainConfig) -> int:
    """Elements of every thread's two blocks of tiles."""
    return 2 * available_cores() * TILING.elements if train_config.attention == "tiled" else 0


def _scored(config: ModelConfig, rows: int) -> int:
    """Elements of the output's logits; with clusters, of the head's and, at worst, of the widest tail's."""
    if not config.cutoffs:
        return rows * config.vocabulary
    sizes = [end - first for first, end, _ in config.clusters]
    return rows * (sizes[0] + len(sizes) - 1 + max(sizes[1:]))
