"""A text as segments: endless for training, once through for evaluation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refimpl.arrays import random_stream
from refimpl.datasets.vocabulary import Tokens
from refimpl.errors import InputError


@dataclass(frozen=True, eq=False)
class Segment:
    """tokens (B, T) and targets (B, T), the tokens that follow them; `restart`: the past must be emptied first."""

    tokens: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    restart: bool


class Batches:
    """Endless training segments, by `next`: the text in `batch` rows of equal length, `block` tokens of each at a time.

    The first pass begins at the start of the rows. Where fewer than block + 1 tokens of a row remain, the next pass
    begins, at an offset below `block` that depends on seed and pass alone, and its first segment is a restart.
    Raises InputError if a row is shorter than block + 1.
    """

    def __init__(self, tokens: Tokens, batch: int, block: int, seed: int) -> None:
        _check(tokens, "batch", batch, block)
        if len(tokens) < batch * (block + 1):
            raise InputError(f"text of {len(tokens)} tokens: expected at least batch × (block + 1) = "
                             f"{batch} × {block + 1} = {batch * (block + 1)}, got {len(tokens)}")
        length = len(tokens) // batch
        self._rows = tokens[:batch * length].reshape(batch, length)
        self._block = block
        self._seed = seed
        self._position = 0
        self._passes = 0

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> Segment:
        length, restart = self._rows.shape[1], self._position == 0
        if self._position + self._block + 1 > length:
            self._passes += 1
            highest = min(self._block, length - self._block)  # leaves room for a whole segment
            self._position = int(random_stream(self._seed, "restart", self._passes).integers(highest))
            restart = True
        start, stop = self._position, self._position + self._block
        self._position = stop
        return Segment(np.array(self._rows[:, start:stop], np.int64),
                       np.array(self._rows[:, start + 1:stop + 1], np.int64), restart)

    def state(self) -> dict[str, int]:
        """Where the next segment begins, and how many passes are complete: what `restore` takes."""
        return {"position": self._position, "passes": self._passes}

    def restore(self, state: Mapping[str, int]) -> None:
        """Goes on as the batches of that state would have, given the same text, batch, block and seed.

        Raises InputError if they cannot have been in that state.
        """
        position, passes = state.get("position"), state.get("passes")
        length = self._rows.shape[1]
        if type(position) is not int or type(passes) is not int or not 0 <= position < length or passes < 0:
            raise InputError(f"batches' state: expected position in [0, {length}) and passes of 0 or more, "
                             f"got {dict(state)}")
        self._position, self._passes = position, passes


def every_token_once(tokens: Tokens, streams: int, block: int) -> Iterator[Segment]:
    """Segments in which each of the n - 1 tokens after the first is a target exactly once.

    The targets are cut into `streams` rows (fewer if there are fewer targets), the first of them one longer where they
    do not divide evenly. The last segment then holds only these first rows: cut the past to as many rows as `tokens`
    has. Only the first segment is a restart. Raises InputError if there is no target.
    """
    _check(tokens, "streams", streams, block)
    if len(tokens) < 2:
        raise InputError(f"text to evaluate: expected 2 tokens or more, got {len(tokens)}")
    rows = min(streams, len(tokens) - 1)
    length, longer = divmod(len(tokens) - 1, rows)
    starts = np.arange(rows) * length + np.minimum(np.arange(rows), longer)
    spans = [(rows, column, min(column + block, length)) for column in range(0, length, block)]
    if longer:
        spans.append((longer, length, length + 1))
    return (_segment(tokens, starts[:count], low, high) for count, low, high in spans)


def published_blocks(tokens: Tokens, streams: int, block: int) -> Iterator[Segment]:
    """Segments as the published evaluation cuts them: n // streams tokens a row, whole blocks only, the rest dropped.

    Only the first segment is a restart. Raises InputError if not even one block fits.
    """
    _check(tokens, "streams", streams, block)
    length = len(tokens) // streams
    if length <= block:
        raise InputError(f"text of {len(tokens)} tokens: expected at least streams × (block + 1) = "
                         f"{streams} × {block + 1} = {streams * (block + 1)}, got {len(tokens)}")
    starts = np.arange(streams) * length
    return (_segment(tokens, starts, low, low + block) for low in range(0, length - block, block))


def transformer_xl_blocks(tokens: Tokens, streams: int, block: int) -> Iterator[Segment]:
    """Segments as Transformer-XL's published evaluation cuts them: n // streams tokens a row, the last block shorter.

    What does not fill the rows is dropped, and each row's first token is no target. Only the first segment is a restart.
    Raises InputError if a row has no target.
    """
    _check(tokens, "streams", streams, block)
    length = len(tokens) // streams
    if length < 2:
        raise InputError(f"text of {len(tokens)} tokens: expected at least 2 × streams = {2 * streams}, got {len(tokens)}")
    starts = np.arange(streams) * length
    return (_segment(tokens, starts, low, min(low + block, length - 1)) for low in range(0, length - 1, block))


def _segment(tokens: Tokens, starts: npt.NDArray[np.int64], low: int, high: int) -> Segment:
    places = starts[:, None] + np.arange(low, high)
    return Segment(np.array(tokens[places], np.int64), np.array(tokens[places + 1], np.int64), low == 0)


def _check(tokens: Tokens, name: str, rows: int, block: int) -> None:
    if tokens.ndim != 1:
        raise InputError(f"tokens: expected shape (n,), got {tokens.shape}")
    for argument, value in ((name, rows), ("block", block)):
        if value < 1:
            raise InputError(f"{argument}: expected 1 or more, got {value}")
