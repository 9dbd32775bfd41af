"""One update on a GPU: forward, backward and the optimiser's step, asked for one after another or as a graph."""

import math
from collections.abc import Callable

from refimpl import model, optimizers
from refimpl.arrays import Array
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import graphs, optimizer, windows
from refimpl.inputs import keep_masks
from refimpl.parameters import Parameters
from refimpl.variants import core_for


def update(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array,
    past: Array, first: int = 0, add: Callable[[model.Output, Parameters], Array] | None = None,
) -> tuple[graphs.Made, graphs.Given]:
    """What training.update does on a GPU, and what it did that with.

    Of several ranks, `first` is the number of this one's first row; `add` makes the gradients, and the loss that it returns,
    those of all.
    """
    number, state.clipped = state.updates + 1, math.nan  # how much is clipped the step's kernel does not tell
    state.windows = windows.kept(state.windows, p, train_config, number)
    core = windows.narrowed(core_for(train_config.attention, config, tokens, p.vector), state.windows)

    def compute(given: graphs.Given) -> graphs.Made:
        batch, block = given.tokens.shape
        masks = keep_masks(config, batch, block, train_config.seed, number, first, now=given.now)
        out, g = model.loss_and_gradients(p, config, given.tokens, given.targets, given.past, masks, core)
        loss = out.loss if add is None else add(out, g)
        norm = optimizer.update(p, g, state, train_config, loss, given.now)
        return graphs.Made(loss, out.span_penalty, norm, out.past)

    if state.graph is None:
        given = graphs.Given(None, tokens, targets, past)
        return compute(given), given
    held = [p.vector, *(kept.vector for kept in state.accumulators.values())]
    kind = [array.data.ptr for array in held], config, train_config, state.windows and state.windows[1].reaches
    found = state.graph.update(compute, kind, optimizer.numbers(train_config, number), tokens, targets, past)
    state.updates = number  # a graph does not run the lines of the step
    return found  # type: ignore[no-any-return]
