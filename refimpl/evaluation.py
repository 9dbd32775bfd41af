"""How well a model predicts a text: mean loss per token, bits, perplexity."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from refimpl import model
from refimpl.arrays import Array, quiet, to_library_of
from refimpl.config import ModelConfig
from refimpl.errors import InputError, NonFiniteError
from refimpl.inputs import initial_past
from refimpl.parameters import Parameters
from refimpl.training import Segment
from refimpl.variants import core_for


@dataclass(frozen=True)
class Evaluation:
    """loss in nats per token, over `tokens` scored; `line_ends` of them are `<eos>` (0 where lines have none)."""

    loss: float
    tokens: int
    line_ends: int = 0

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


def evaluate(
    p: Parameters, config: ModelConfig, blocks: Iterable[Segment], end_of_line: int | None = None, weighted: bool = True
) -> Evaluation:
    """Scores the blocks' targets, the past carried over from block to block.

    weighted: mean over all tokens; else the mean of the blocks' means, as the published code does. A block with fewer rows
    than the one before goes on with the first of them. Raises InputError if there is no block, NonFiniteError if the
    loss is not finite.
    """
    total, means, count, tokens, line_ends = 0.0, 0.0, 0, 0, 0
    past = initial_past(config, 0, p.vector)
    for block in blocks:
        rows = len(block.tokens)
        past = initial_past(config, rows, p.vector) if block.restart else past[:, :rows]
        inputs, targets = (to_library_of(p.vector, array) for array in (block.tokens, block.targets))
        with quiet():
            core = core_for("auto", config, inputs, p.vector)
            out = model.forward(p, config, inputs, targets, past, core=core)
        past, size = out.past, block.targets.size
        loss = _sum(out.token_loss)
        total, means, count, tokens = total + loss, means + loss / size, count + 1, tokens + size
        line_ends += 0 if end_of_line is None else int((block.targets == end_of_line).sum())
    if not count:
        raise InputError("evaluation: expected at least one block of text, got none")
    loss = total / tokens if weighted else means / count
    if not math.isfinite(loss):
        raise NonFiniteError(f"evaluation: expected a finite loss, got {loss}")
    return Evaluation(loss, tokens, line_ends)


def _sum(token_loss: Array) -> float:
    """Σ in float64, whatever the model's dtype: a long text's total would lose digits in float32."""
    return float(token_loss.sum(dtype="float64"))


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf
