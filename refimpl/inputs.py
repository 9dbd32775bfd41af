"""What a model is given beside its parameters: tokens, the past of earlier segments, dropout's keep-masks."""

from collections.abc import Mapping
from typing import TypeAlias

from refimpl.arrays import Array, is_device, module_of
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.masks import Mask

Masks: TypeAlias = Mapping[str, Array | Mask]  # keep-masks, named as in keep_masks: boolean arrays, or yet to be drawn


def initial_past(config: ModelConfig, batch: int, like: Array, zeros: bool | None = None) -> Array:
    """The past at the start of a text, (L, B, P, D) in the dtype and library of `like`: P = 0, or P = S zero vectors.

    zeros=True is the published code's start, whose zero vectors count as positions; None = as config.zero_past says.
    """
    length = config.span if (config.zero_past if zeros is None else zeros) else 0
    return module_of(like).zeros((config.layers, batch, length, config.width), like.dtype)


def extend_past(config: ModelConfig, past: Array, inputs: list[Array]) -> Array:
    """The last S positions of [past ; each layer's input]: (L, B, P, D) and L of (B, T, D) -> (L, B, min(P + T, S), D)."""
    xp = module_of(past)
    _, batch, length, width = past.shape
    block = inputs[0].shape[1]
    kept = min(config.span, length + block)
    # the last layer's dtype: in a complex step by one parameter the first layer's input may still be real
    extended = xp.empty_like(inputs[-1], shape=(config.layers, batch, kept, width))
    new = min(block, kept)
    extended[:, :, : kept - new] = past[:, :, length - (kept - new) :]
    for layer, h in enumerate(inputs):
        extended[layer, :, kept - new :] = h[:, block - new :]
    return extended


def keep_masks(
    config: ModelConfig, batch: int, block: int, seed: int, update: int, first_row: int = 0, now: Array | None = None
) -> dict[str, Mask]:
    """Keep-masks of one update, {} without dropout, each to be drawn where it is needed; `now` as in Mask.

    "embedding" and "hidden" (B, T, D), "layers.l.attention" (B, H, T, S), "layers.l.memory" (B, H, T, N) with the heads that
    attend to the context and to persistent vectors, "layers.l.feed_forward" (B, T, F).
    """
    rates: dict[str, tuple[tuple[int, ...], float]] = {}
    if config.embedding_dropout:
        rates.update(dict.fromkeys(("embedding", "hidden"), ((block, config.width), config.embedding_dropout)))
    if config.dropout:
        for layer in range(config.layers):
            rates[f"layers.{layer}.attention"] = (config.context_heads, block, config.span), config.dropout
            if config.memory:
                rates[f"layers.{layer}.memory"] = (config.memory_shape[0], block, config.memory), config.dropout
            if config.feed_forward:
                rates[f"layers.{layer}.feed_forward"] = (block, config.feed_forward), config.dropout
    return {name: Mask(seed, name, update, first_row, batch, shape, rate, now) for name, (shape, rate) in rates.items()}


def draw_masks(
    config: ModelConfig, batch: int, block: int, seed: int, update: int, like: Array, first_row: int = 0
) -> dict[str, Array]:
    """The same, drawn: boolean arrays in the library of `like`."""
    return {name: mask.whole(like) for name, mask in keep_masks(config, batch, block, seed, update, first_row).items()}


def check_tokens(config: ModelConfig, name: str, tokens: Array) -> None:
    """Raises InputError unless tokens are (B, T) integers, T ≥ 1, all in the vocabulary."""
    if getattr(tokens, "ndim", 0) != 2 or tokens.dtype.kind not in "iu" or 0 in tokens.shape:
        came = f"{tokens.dtype} {tokens.shape}" if hasattr(tokens, "dtype") else type(tokens).__name__
        raise InputError(f"{name}: expected integers of shape (B, T), got {came}")
    if is_device(tokens):
        return  # looking would wait for the device; what comes from a data set has been checked there
    if tokens.min() < 0 or tokens.max() >= config.vocabulary:
        row, column = ((tokens < 0) | (tokens >= config.vocabulary)).nonzero()
        raise InputError(f"{name}: expected ids from 0 to {config.vocabulary - 1} (vocabulary of {config.vocabulary}), got "
                         f"{tokens[row[0], column[0]]} at row {row[0]}, position {column[0]}")


def check_targets(config: ModelConfig, tokens: Array, targets: Array) -> None:
    """Raises InputError unless both are as check_tokens wants them, of one shape."""
    check_tokens(config, "tokens", tokens)
    check_tokens(config, "targets", targets)
    if targets.shape != tokens.shape:
        raise InputError(f"targets: expected the tokens' shape {tokens.shape}, got {targets.shape}")


def check_past(config: ModelConfig, tokens: Array, past: Array) -> None:
    """Raises InputError unless past is (L, B, P, D) for these tokens."""
    expected = (config.layers, len(tokens), "P", config.width)
    if past.ndim != 4 or (past.shape[0], past.shape[1], past.shape[3]) != (expected[0], expected[1], expected[3]):
        raise InputError(f"past: expected (L, B, P, D) = ({', '.join(map(str, expected))}), got {past.shape}")
