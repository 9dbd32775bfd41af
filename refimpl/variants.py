"""What a layer of each variant is made of, and which modules compute attention and adaptive softmax: chosen here alone."""

from functools import partial
from types import ModuleType

from refimpl.arrays import Array, is_device
from refimpl.config import ModelConfig
from refimpl.device import adaptive_softmax as device_softmax
from refimpl.device import attention as device_attention
from refimpl.device import windows
from refimpl.layers import (
    adaptive_softmax,
    attention,
    feed_forward,
    ff_attention,
    fused_softmax,
    head_split,
    multi_head,
    split_attention,
    tiled_attention,
    transformer_layer,
)

# where they are others than attention.py and feed_forward.py
ATTENTIONS = {"attention-split": split_attention, "single-head": split_attention, "head-split": head_split}
FEED_FORWARDS = {"ff-attention": ff_attention}
WORTH_TILES = 8192  # logits of one head and text, measured: with half as many the textbook is as fast
KEPT_AT_MOST = 8_388_608  # logits of all layers: the textbook keeps about ten such arrays, 320 MB in float32


def attention_path(name: str, config: ModelConfig, batch: int, block: int) -> str:
    """"tiled" or "textbook"; for "auto" whichever takes less time: where a head has little to do, tiles are all bookkeeping.

    With an adaptive softmax it is always the tiled one, whose chunks go with it.
    """
    if name != "auto":
        return name
    each = block * (config.span + config.memory)
    small = each < WORTH_TILES and config.layers * batch * config.heads * each < KEPT_AT_MOST
    return "textbook" if small and not config.cutoffs else "tiled"


def attention_core(name: str, *arrays: Array) -> ModuleType:
    """"textbook": every intermediate kept; "tiled": the same function, for training, in little memory.

    Tiles are made for real arrays, on a GPU by kernels of its own: where one is complex, the textbook computes under either
    name.
    """
    if name != "tiled" or any(array.dtype.kind == "c" for array in arrays):
        return attention
    return device_attention if any(map(is_device, arrays)) else tiled_attention


def core_for(name: str, config: ModelConfig, tokens: Array, like: Array) -> ModuleType:
    """The attention of this name for tokens (B, T) and parameters like these; "auto" is on a GPU always the tiled one."""
    path = "tiled" if name == "auto" and is_device(like) else attention_path(name, config, *tokens.shape)
    return attention_core(path, like)


def softmax_core(core: ModuleType) -> ModuleType:
    """The adaptive softmax beside an attention: with a tiled one that in one pass, which is for the same arrays and uses."""
    if core is device_attention or isinstance(core, windows.Core):
        return device_softmax
    return fused_softmax if core is tiled_attention else adaptive_softmax


def attention_of(variant: str, core: ModuleType) -> ModuleType | multi_head.Core:
    """The variant's attention, the context's part of it computed by `core`."""
    module = ATTENTIONS.get(variant)
    return core if module is None else multi_head.Core(partial(module.forward, core=core), module.backward, core.needed)


def layer_options(config: ModelConfig, core: ModuleType = attention) -> transformer_layer.Options:
    """The constants of every layer, and which attention, around `core`, and feed-forward the variant has."""
    of_attention = attention.Options(
        config.span, config.span_ramp, config.normalizer_epsilon, config.attend_self, config.dropout
    )
    of_heads = multi_head.Options(attention_of(config.variant, core), config.head_width, of_attention)
    inner = FEED_FORWARDS.get(config.variant, feed_forward)
    return transformer_layer.Options(of_heads, inner, config.norm == "pre")
