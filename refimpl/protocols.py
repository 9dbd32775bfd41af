"""How a text is cut and how far back a model may look when it is evaluated: ours, and those of two published codes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from refimpl.arrays import Array, module_of
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.layers import positions
from refimpl.parameters import Parameters

NAMES = ("every-token", "published", "transformer-xl")
STREAMS = {"every-token": 8, "published": 8, "transformer-xl": 10}
# block, past and farthest distance of the published Transformer-XL: run_wt103_base.sh; run_enwik8_base.sh, run_text8_base.sh
XL_WORDS, XL_CHARACTERS = (64, 640, 400), (80, 2100, 820)


@dataclass(frozen=True)
class Protocol:
    """Streams, tokens of a block, positions that a query may see, and the farthest distance that it tells from nearer ones.

    farthest None: each distance is what it is, or distances have no vectors.
    """

    name: str
    streams: int
    block: int
    past: int
    farthest: int | None = None

    @property
    def weighted(self) -> bool:
        """Whether the loss is a mean over tokens, not over blocks."""
        return self.name != "published"


def settle(
    name: str, unit: str, config: ModelConfig, trained_block: int, streams: int | None = None, block: int | None = None,
    past: int | None = None, farthest: int | None = None,
) -> Protocol:
    """The protocol of that name, for a model whose tokens are of that unit; what is given goes before its own values.

    Raises InputError for an unknown name, for values below 1, and for a past that the model's positions do not reach.
    """
    if name not in NAMES:
        raise InputError(f"protocol: expected one of {', '.join(NAMES)}, got {name!r}")
    for argument, value in (("streams", streams), ("block", block), ("past", past), ("clamp", farthest)):
        if value is not None and value < 1:
            raise InputError(f"{argument}: expected 1 or more, got {value}")
    own: tuple[int, int, int | None] = trained_block, config.span, None
    if name == "transformer-xl":
        own = XL_WORDS if unit == "word" else XL_CHARACTERS
    streams, block, past, farthest = streams or STREAMS[name], block or own[0], past or own[1], farthest or own[2]
    if config.positions == "relative":
        if past > config.span and farthest is None:
            raise InputError(f"--past: expected at most {config.span}, the distances that this model has learned vectors "
                             f"for (or with it --clamp, so that farther ones share the last), got {past}")
        farthest = farthest and min(farthest, config.span - config.attend_self)
    elif config.positions == "learned" and past < block and past % config.span:
        raise InputError(f"--past: expected at least the block's {block} tokens with learned absolute positions, got {past}")
    return Protocol(name, streams, block, past, farthest if config.positions in ("relative", "transformer-xl") else None)


def prepared(p: Parameters, config: ModelConfig, protocol: Protocol) -> tuple[Mapping[str, Array], ModelConfig]:
    """Parameters and configuration under which the model's own forward sees as far as the protocol says.

    S becomes the protocol's past. A head's span z = S ρ stays what it is, so ρ shrinks as S grows, and its ramp goes on to
    its end. All distances from `farthest` on have its vector: Transformer-XL's clamp_len. Absolute positions begin with the
    block, as in training.
    """
    trained, size, farthest = config.span, protocol.past, protocol.farthest
    if size == trained and farthest is None:
        return p, config
    nearest = 0 if config.attend_self else 1
    distances = np.arange(size) if farthest is None else np.minimum(np.arange(size), farthest - nearest)
    result = dict(p)
    for name in p:
        short = name.rpartition(".")[2]
        if short == "span":
            result[name] = p[name] * (trained / size)
        elif name == "input.positions":
            result[name] = _rows(p[name], np.arange(size) % trained, 0)
        elif short == "positions":
            result[name] = _rows(p[name], distances, 0)
        elif short == "position_key":  # its projection in its place, which the attention takes as it takes a learned table
            table, _ = positions.projected_forward(result.pop(name), size, nearest, config.head_width)
            result[name.replace("position_key", "positions")] = _rows(table, distances, 1)
    return result, replace(config, span=size)


def _rows(table: Array, rows: Array, axis: int) -> Array:
    xp = module_of(table)
    return xp.take(table, xp.asarray(rows), axis=axis)
