"""How well groups of words are predicted: by cluster of the adaptive softmax, else by tenths of the training text."""

import math
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl import model
from refimpl.arrays import quiet
from refimpl.checkpoint import Checkpoint
from refimpl.config import ModelConfig
from refimpl.datasets.batches import every_token_once
from refimpl.datasets.vocabulary import Tokens
from refimpl.protocols import STREAMS
from refimpl.report.reading import RunFolder
from refimpl.variants import attention_core, attention_path

TOKENS, FEWEST = 65_536, 1024  # validation tokens scored, and how few of a large model
OPERATIONS = 5e10  # parameters times tokens
TENTHS, COUNTED = 10, 50_000_000
EXAMPLES = 6
PAST_BYTES = 200_000_000  # of all streams: of a large model with a long span there is but one

Numbers = npt.NDArray[np.int64]


class Group(NamedTuple):
    """Words of one kind: how many there are, examples (their numbers), tokens among those scored, their mean loss in nats.

    loss: not a number without tokens.
    """

    name: str
    words: int
    examples: list[int]
    tokens: int
    loss: float

    @property
    def perplexity(self) -> float:
        """e^loss."""
        return math.exp(self.loss) if self.loss < 700 else self.loss * math.inf


class Prediction(NamedTuple):
    """Groups of words, how many tokens of the validation text were scored, and whether the groups are clusters."""

    groups: list[Group]
    tokens: int
    clusters: bool


def predict(run: RunFolder) -> Prediction | None:
    """The loss by group on the start of the validation text; None where the run has no model or text, or too short a one."""
    if run.saved is None or run.corpus is None or len(run.corpus.valid) < 2:
        return None
    config = run.saved.config
    count = max(FEWEST, min(TOKENS, int(OPERATIONS / run.saved.parameters.vector.size)))
    names, members, order = _clusters(config) if config.clusters else _tenths(run.corpus.train, config.vocabulary)
    totals, counts = _losses(run.saved, run.corpus.valid[:count], members, len(names))
    groups = []
    for number, name in enumerate(names):
        words = order[members[order] == number]
        loss = totals[number] / counts[number] if counts[number] else math.nan
        groups.append(Group(name, len(words), words.tolist()[:EXAMPLES], int(counts[number]), float(loss)))
    return Prediction(groups, int(counts.sum()), bool(config.clusters))


def _losses(
    saved: Checkpoint, tokens: Tokens, members: Numbers, groups: int
) -> tuple[npt.NDArray[np.float64], Numbers]:
    """The sum of the losses, and the count, of each group's targets."""
    p, config = saved.parameters, saved.config
    totals, counts = np.zeros(groups), np.zeros(groups, np.int64)
    past = model.initial_past(config, 0, p.vector)
    each = config.layers * config.span * config.width * p.vector.itemsize
    streams = max(1, min(STREAMS["every-token"], len(tokens) - 1, PAST_BYTES // each))
    for block in every_token_once(tokens, streams, saved.train_config.block):
        rows = len(block.tokens)
        past = model.initial_past(config, rows, p.vector) if block.restart else past[:, :rows]
        core = attention_core(attention_path("auto", config, *block.tokens.shape), p.vector)
        with quiet():
            out = model.forward(p, config, block.tokens, block.targets, past, core=core, save=False)
        past, group = out.past, members[block.targets].ravel()
        totals += np.bincount(group, out.token_loss.ravel(), groups)
        counts += np.bincount(group, minlength=groups)
    return totals, counts


def _clusters(config: ModelConfig) -> tuple[list[str], Numbers, Numbers]:
    """The clusters' names, which one each word is in, and the words in order of frequency."""
    members = np.zeros(config.vocabulary, np.int64)
    for number, (low, high, _) in enumerate(config.clusters):
        members[low:high] = number
    names = [f"{low:,} to {high - 1:,}" if high > low else "none" for low, high, _ in config.clusters]
    return names, members, np.arange(config.vocabulary)


def _tenths(train: Tokens, size: int) -> tuple[list[str], Numbers, Numbers]:
    """Words by frequency, cut where a tenth of the training tokens is full; a frequent word may fill several."""
    counts = np.zeros(size, np.int64)
    for low, high in pairwise([*range(0, min(len(train), COUNTED), 1 << 20), min(len(train), COUNTED)]):
        counts += np.bincount(train[low:high], minlength=size)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    tenth = np.minimum(before * TENTHS // max(1, counts.sum()), TENTHS - 1)
    kept, number = np.unique(tenth, return_inverse=True)
    members = np.empty(size, np.int64)
    members[order] = number
    ends = [*kept[1:].tolist(), TENTHS]
    names = [f"{100 * low // TENTHS}–{100 * high // TENTHS} %" for low, high in zip(kept.tolist(), ends, strict=True)]
    return names, members, order
