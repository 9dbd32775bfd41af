"""Lines of a run's log: what an update and an evaluation leave there, and the clock that paces are told by."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from refimpl import training
from refimpl.arrays import Array
from refimpl.checkpoint import Checkpoint
from refimpl.config import ModelConfig, TrainConfig
from refimpl.evaluation import Evaluation
from refimpl.parameters import Parameters

SPANS_AT_MOST = 200  # records with every head's span: a large model has hundreds of heads, a long run thousands of records

Record = dict[str, Any]


class Clock:
    """Seconds of training, those before a resume included, and the pace since the last look."""

    def __init__(self, before: float, updates: int) -> None:
        self._before, self._start = before, time.monotonic()
        self._looked, self._updates = self._start, updates

    def since_start(self) -> float:
        """Seconds in this process."""
        return time.monotonic() - self._start

    def seconds(self) -> float:
        """Seconds of the run in all."""
        return self._before + self.since_start()

    def pace(self, updates: int) -> float:
        """Updates per second since the last call."""
        now, done = time.monotonic(), updates - self._updates
        elapsed = max(now - self._looked, 1e-9)
        self._looked, self._updates = now, updates
        return done / elapsed


@dataclass
class Tally:
    """Losses and shares of clipped tensors since the record before, of updates that changed something; the last of these."""

    losses: list[Array] = field(default_factory=list)
    clipped: list[Array | float] = field(default_factory=list)
    good: Any = None  # training.Result

    def add(self, result: training.Result, clipped: Array | float) -> None:
        """Counts an update unless it was skipped."""
        if not result.skipped:
            self.losses.append(result.loss)
            self.clipped.append(clipped)
            self.good = result

    def clear(self) -> None:
        """After a record."""
        self.losses.clear()
        self.clipped.clear()


def of_update(
    saved: Checkpoint, tally: Tally, clock: Clock, time_limit: float | None, last: bool
) -> Record:
    """Loss in nats and bits per token, pace, rate, share of clipped tensors, spans in positions.

    tally: of the updates since the record before, of which the means are told. last: of the run or its process.
    """
    result, losses, clipped = tally.good, tally.losses, tally.clipped
    now, config, number = saved.train_config, saved.config, saved.optimizer.updates
    loss, pace = sum(float(loss) for loss in losses) / len(losses), clock.pace(number)
    left = (now.updates - number) / pace
    if time_limit is not None:
        left = min(left, time_limit - clock.since_start())
    record = {
        "update": number, "updates": now.updates, "loss": loss, "bits": loss / math.log(2),
        "span_penalty": float(result.span_penalty), "gradient_norm": float(result.gradient_norm),
        "learning_rate": result.learning_rate, "tokens": saved.progress["tokens"],
        "tokens_per_second": pace * now.batch * now.block, "seconds": saved.progress["seconds"],
        "seconds_left": max(0.0, left), **saved.progress["computing"],
    }
    share = sum(float(share) for share in clipped) / len(clipped)
    if not math.isnan(share):
        record["clipped"] = share
    if saved.optimizer.skipped:
        record["skipped"] = saved.optimizer.skipped
    if config.adaptive_span:
        rho = [saved.parameters[f"layers.{layer}.attention.span"] for layer in range(config.layers)]
        record["span_mean"] = config.span * sum(float(r.mean()) for r in rho) / len(rho)
        record["span_max"] = config.span * max(float(r.max()) for r in rho)
        if last or _spans_due(number, now):
            record["spans"] = spans(saved.parameters, config)
    return record


def of_incidents(saved: Checkpoint, result: training.Result) -> Iterator[Record]:
    """How a worker process ended, and why an update changed nothing, with how many of those there have been."""
    if result.lost:
        yield {"update": saved.optimizer.updates, "lost": result.lost}
    if result.skipped:
        yield {"update": saved.optimizer.updates, "not_finite": result.skipped, "skipped": saved.optimizer.skipped}


def of_evaluation(evaluation: Evaluation) -> Record:
    """What a validation found, in nats and bits per token."""
    return {"valid_loss": evaluation.loss, "valid_bits": evaluation.bits, "valid_tokens": evaluation.tokens}


def spans(p: Parameters, config: ModelConfig) -> list[list[float]]:
    """z = S ρ of each layer's heads, to a tenth of a position."""
    rho = [p[f"layers.{layer}.attention.span"] for layer in range(config.layers)]
    return [[round(config.span * share, 1) for share in heads.tolist()] for heads in rho]


def _spans_due(number: int, train_config: TrainConfig) -> bool:
    """In even steps, so wide that a run has no more than about SPANS_AT_MOST; number: a multiple of log_every."""
    every = max(train_config.log_every, -(-train_config.updates // SPANS_AT_MOST))
    return number % every < train_config.log_every
