"""Operations of an update per token, counted from its matrix products; a multiplication with its addition counts as two."""

import math
from typing import NamedTuple

from refimpl import parameters
from refimpl.config import ModelConfig, TrainConfig
from refimpl.layers.span import TRIMMED_AT_ONCE
from refimpl.variants import attention_path

# of one parameter in one update: the optimiser's step with its rate, the norm that is looked at
STEPS = {"sgd": 5, "adagrad": 9, "adam": 16}


class Products(NamedTuple):
    """Multiplications with an addition, per token: forward, the same products again in backward, and gradients."""

    forward: float
    again: float
    gradients: float


def per_token(config: ModelConfig, train_config: TrainConfig, window: int) -> dict[str, int]:
    """forward, backward, update: operations per token where each query sees `window` positions, the past full.

    Products of matrices and the optimiser's step are counted; exponentials, norms and sums are not, nor what a tile computes
    beside its band. Of an adaptive softmax's tails every token scores the widest: an upper bound.
    """
    parts = [_layer(config, train_config, window)] * config.layers + [_input_and_output(config)]
    forward = sum(part.forward for part in parts)
    backward = sum(part.again + part.gradients for part in parts)
    step = STEPS[train_config.optimizer] + (3 if train_config.clip else 0)
    tokens = train_config.batch * train_config.block
    return {"forward": round(2 * forward), "backward": round(2 * backward),
            "update": round(step * parameters.total(config) / tokens)}


def window(config: ModelConfig, share: float) -> int:
    """Positions before the block that have an effect where a layer's longest span is `share` of S; see layers/span.py."""
    if not config.adaptive_span:
        return config.span
    reach = min(config.span, math.floor(config.span_ramp + config.span * share) + 1)
    beyond = (config.span - reach) // TRIMMED_AT_ONCE * TRIMMED_AT_ONCE
    return config.span - beyond if config.normalizer_epsilon else reach


def _layer(config: ModelConfig, train_config: TrainConfig, window: int) -> Products:
    """Projections of the block's rows and of [past ; block], attention, feed-forward."""
    width, heads_width = config.width, config.context_heads * config.head_width
    block, tiled = train_config.block, attention_path(
        train_config.attention, config, train_config.batch, train_config.block) == "tiled"
    seen = 1 + (window if tiled else config.span) / block  # rows that are projected to keys and values, for each token
    of_rows = 2 * width * width + 2 * config.feed_forward * width
    projected = 2 * width * heads_width
    # no gradient goes into the past; under a norm the past adds to its gain and bias all the same
    into_context = seen if config.norm == "pre" else 1
    attending = window if tiled else config.span
    scores = heads_width * attending * (1 + (config.positions in ("relative", "transformer-xl")))
    mixed = heads_width * attending
    groups, vectors, group_width = config.memory_shape
    persistent = 2 * groups * vectors * group_width
    again = scores + persistent / 2 if tiled and config.variant == "all-attention" else scores if tiled else 0
    return Products(of_rows + projected * seen + scores + mixed + persistent, again,
                    2 * of_rows + projected * (seen + into_context) + 2 * (scores + mixed + persistent))


def _input_and_output(config: ModelConfig) -> Products:
    """Tables cost nothing to look up; the last hidden state is scored with all words, or those of head and widest tail."""
    if not config.cutoffs:
        scored = config.width * config.vocabulary
        return Products(scored, 0, 2 * scored)
    (first, *tails), more = config.clusters, len(config.clusters) - 1
    of_tail = max((end - low + config.width) * width for low, end, width in tails)
    projected = config.width * max(width for _, _, width in config.clusters)
    scored = (first[1] + more + config.width) * config.width + of_tail + projected
    return Products(scored, 0, 2 * scored)
