"""How well a model predicts a text: mean loss per token, bits, perplexity."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from refimpl import intervals, model
from refimpl.arrays import Array, quiet, to_host, to_library_of
from refimpl.config import ModelConfig
from refimpl.errors import InputError, NonFiniteError
from refimpl.inputs import initial_past
from refimpl.ranks import ALONE, Ranks, share
from refimpl.subnormals import flushed
from refimpl.training import Segment
from refimpl.variants import core_for


class StoppedError(Exception):
    """An evaluation was given up before its end."""


def until(stop: Callable[[], bool], blocks: Iterable[Segment]) -> Iterator[Segment]:
    """The blocks; raises StoppedError before the next one once stop() says so."""
    for block in blocks:
        if stop():
            raise StoppedError
        yield block


@dataclass(frozen=True)
class Evaluation:
    """loss in nats per token, over `tokens` scored; `line_ends` of them are `<eos>` (0 where lines have none).

    cells: what was lost where in the text, for an interval; None where several ranks shared the text.
    """

    loss: float
    tokens: int
    line_ends: int = 0
    cells: intervals.Cells | None = field(default=None, compare=False, repr=False)

    @property
    def bits(self) -> float:
        """Bits per token: per character or byte where those are the tokens."""
        return self.loss / math.log(2)

    @property
    def perplexity(self) -> float:
        """e^loss, with `<eos>` counted as a word."""
        return _exp(self.loss)

    @property
    def perplexity_without_eos(self) -> float:
        """e^(total loss / words), with `<eos>` predicted but not counted as a word: the literature's other convention."""
        return _exp(self.loss * self.tokens / max(1, self.tokens - self.line_ends))

    def at(self, loss: float) -> "Evaluation":
        """The same text with another loss: an interval's end in every unit."""
        return Evaluation(loss, self.tokens, self.line_ends)


def evaluate(
    p: Mapping[str, Array], config: ModelConfig, blocks: Iterable[Segment], end_of_line: int | None = None,
    weighted: bool = True, ranks: Ranks = ALONE,
) -> Evaluation:
    """Scores the blocks' targets, the past carried over from block to block.

    weighted: mean over all tokens; else the mean of the blocks' means, as the published code does. A block with fewer rows
    than the one before goes on with the first of them. Several ranks share the rows, and all get the result. Raises
    InputError if there is no block, NonFiniteError if the loss is not finite.
    """
    total, means, count, tokens, line_ends = 0.0, 0.0, 0, 0, 0
    like = next(iter(p.values()))
    past, cells = initial_past(config, 0, like), []
    for block, own in _shared(blocks, ranks):
        rows, size, count = len(block.tokens[own]), block.targets.size, count + 1
        if not rows:
            continue
        past = initial_past(config, rows, like) if block.restart else past[:, :rows]
        inputs, targets = (to_library_of(like, array[own]) for array in (block.tokens, block.targets))
        with quiet(), flushed(past.dtype):
            core = core_for("auto", config, inputs, like)
            out = model.forward(p, config, inputs, targets, past, core=core, save=False)
        past = out.past
        cells.append(intervals.cells_of(to_host(out.token_loss)))
        loss = float(cells[-1].sums.sum())
        total, means, tokens = total + loss, means + loss / size, tokens + block.targets[own].size
        line_ends += 0 if end_of_line is None else int((block.targets[own] == end_of_line).sum())
        del out  # before the next block's is made
    if not count:
        raise InputError("evaluation: expected at least one block of text, got none")
    total, means, *counts = ranks.stacked([total, means, tokens, line_ends]).sum(axis=0).tolist()
    tokens, line_ends = map(int, counts)
    loss = total / tokens if weighted else means / count
    if not math.isfinite(loss):
        raise NonFiniteError(f"evaluation: expected a finite loss, got {loss}")
    return Evaluation(loss, tokens, line_ends, intervals.in_text_order(cells) if ranks.size == 1 else None)


def _shared(blocks: Iterable[Segment], ranks: Ranks) -> Iterator[tuple[Segment, slice]]:
    """Each block, and which of its rows are this rank's: the same rows in every block."""
    own = slice(0)
    for number, block in enumerate(blocks):
        own = share(ranks, len(block.tokens)) if number == 0 else own
        yield block, own


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
