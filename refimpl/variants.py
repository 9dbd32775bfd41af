"""What a layer of each variant is made of, and which module computes its attention: chosen here and nowhere else."""

from functools import partial
from types import ModuleType

import numpy as np

from refimpl.arrays import Array, module_of
from refimpl.config import ModelConfig
from refimpl.layers import (
    attention,
    feed_forward,
    ff_attention,
    head_split,
    multi_head,
    split_attention,
    tiled_attention,
    transformer_layer,
)

# where it is another than attention.py and feed_forward.py
ATTENTIONS = {"attention-split": split_attention, "single-head": split_attention, "head-split": head_split}
FEED_FORWARDS = {"ff-attention": ff_attention}


def attention_core(name: str, like: Array) -> ModuleType:
    """"textbook": every intermediate kept, any arrays; "tiled": the same function, for training, in little memory.

    Tiles are made for NumPy's real arrays: complex ones and those on a GPU are the textbook's under either name.
    """
    fit = module_of(like) is np and like.dtype.kind == "f"
    return tiled_attention if name == "tiled" and fit else attention


def layer_options(config: ModelConfig, core: ModuleType = attention) -> transformer_layer.Options:
    """The constants of every layer, and which attention, around `core`, and feed-forward the variant has."""
    of_attention = attention.Options(
        config.span, config.span_ramp, config.normalizer_epsilon, config.attend_self, config.dropout
    )
    variant = ATTENTIONS.get(config.variant)
    of_variant = multi_head.Core(partial(variant.forward, core=core), variant.backward) if variant else core
    of_heads = multi_head.Options(of_variant, config.head_width, of_attention)
    inner = FEED_FORWARDS.get(config.variant, feed_forward)
    return transformer_layer.Options(of_heads, inner, config.norm == "pre")
