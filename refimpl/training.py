"""One update, and the loop around it."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol, TypeVar

from refimpl import model, optimizers
from refimpl.arena import Arena, lent, returned
from refimpl.arrays import Array, available_cores, is_device, map_in_threads, module_of, quiet, to_library_of
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import optimizer, windows
from refimpl.errors import NonFiniteError
from refimpl.inputs import keep_masks
from refimpl.parameters import Parameters
from refimpl.variants import core_for

Part = TypeVar("Part")
SKIPS_IN_A_ROW = 100  # a model that recovers does so within a few updates; one that does not must not burn a week


class Segment(Protocol):
    """What the loop needs of a batch: tokens and targets (B, T), and whether the past is emptied before it."""

    @property
    def tokens(self) -> Array: ...

    @property
    def targets(self) -> Array: ...

    @property
    def restart(self) -> bool: ...


class Result(NamedTuple):
    """One update: mean loss and span penalty before it, past for the next segment, gradient norm, rate, what it saw.

    skipped: "", or what was not finite where train.on_nonfinite = "skip" let an update change nothing.
    """

    loss: Array
    span_penalty: Array
    past: Array
    gradient_norm: Array
    learning_rate: float
    tokens: Array
    targets: Array
    skipped: str = ""


class _Share(NamedTuple):
    """What one worker computed for its rows of the batch."""

    out: model.Output
    gradients: Parameters
    rows: slice


def update(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array,
    past: Array,
) -> Result:
    """Forward, backward and one optimiser step on tokens and targets (B, T); p and state change in place.

    With several workers each takes some rows of the batch; gradients are added in the order of the rows, so results are
    the same bits for the same number of workers, however many threads they take turns on. Raises NonFiniteError, before p
    or state change, if the loss or a gradient is not finite; the message names the first such tensor. With
    on_nonfinite = "skip" such an update only counts, SKIPS_IN_A_ROW times in a row at most, and the past is emptied. On a
    GPU there is one worker, nothing is read back, and such an update changes nothing: `device.optimizer.check(state)` raises
    for it.
    """
    if is_device(p.vector):
        return _update_on_device(p, state, config, train_config, tokens, targets, past)
    number = state.updates + 1
    lent_p, lent_past = p.with_vector(lent(p.vector)), lent(past)

    def compute(rows: slice) -> _Share:
        with quiet():
            given = lent_p, config, train_config, tokens, targets, lent_past, number, rows
            return _Share(*_on_rows(model.loss_and_gradients, *given), rows)

    results = in_parts(compute, len(tokens), train_config.workers)
    with quiet():
        loss, g = _combine(results, len(tokens))
        norm = optimizers.gradient_norm(g)
        # the one number that every update reads back: a step from a gradient that is not finite can't be undone
        if not module_of(norm).isfinite(loss + norm):
            reason = (f"loss {float(loss)}, gradient norm {float(norm)}; first tensor that is not finite: "
                      f"{_first_nonfinite(p, g, [share.out for share in results])}")
            penalty = results[0].out.span_penalty
            return _skipped(p, state, train_config, reason, Result(loss, penalty, past, norm, 0.0, tokens, targets, reason))
        optimizers.update(p, g, state, train_config)
    pasts = [share.out.past for share in results]
    new_past = pasts[0] if len(pasts) == 1 else module_of(loss).concatenate(pasts, axis=1)
    rate = optimizers.learning_rate(train_config, number)
    return Result(loss, results[0].out.span_penalty, returned(new_past), norm, rate, tokens, targets)


def _skipped(p: Parameters, state: optimizers.State, train_config: TrainConfig, reason: str, result: Result) -> Result:
    """The update as one that only counts, the past emptied: what the segment left may not be finite, nor is it adjacent."""
    number = state.updates + 1
    if train_config.on_nonfinite != "skip":
        raise NonFiniteError(f"update {number}: {reason}")
    if state.skipped_in_a_row + 1 >= SKIPS_IN_A_ROW:
        raise NonFiniteError(f"update {number}, the last of {SKIPS_IN_A_ROW} in a row: {reason}")
    state.updates, state.skipped, state.skipped_in_a_row = number, state.skipped + 1, state.skipped_in_a_row + 1
    past = model.initial_past(p.config, len(result.tokens), p.vector)
    return result._replace(past=past, learning_rate=optimizers.learning_rate(train_config, number))


def _update_on_device(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array,
    past: Array,
) -> Result:
    """The same on a GPU: in one part, and without waiting for what comes of it."""
    number, state.clipped = state.updates + 1, math.nan  # how much is clipped the step's kernel does not tell
    state.windows = windows.kept(state.windows, p, train_config, number)
    core = core_for(train_config.attention, config, tokens, p.vector)
    masks = keep_masks(config, len(tokens), tokens.shape[1], train_config.seed, number)
    out, g = model.loss_and_gradients(p, config, tokens, targets, past, masks, windows.narrowed(core, state.windows))
    norm, rate = optimizer.update(p, g, state, train_config, out.loss), optimizers.learning_rate(train_config, number)
    return Result(out.loss, out.span_penalty, out.past, norm, rate, tokens, targets)


def score(
    p: Parameters, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array, past: Array, number: int,
    rows: slice,
) -> model.Output:
    """The model's forward on some rows of the batch, as update `number` does it: with that update's dropout."""
    return _on_rows(model.forward, p, config, train_config, tokens, targets, past, number, rows)


def _on_rows(
    function: Callable[..., Part], p: Parameters, config: ModelConfig, train_config: TrainConfig, tokens: Array,
    targets: Array, past: Array, number: int, rows: slice,
) -> Part:
    masks = keep_masks(config, rows.stop - rows.start, tokens.shape[1], train_config.seed, number, rows.start)
    core = core_for(train_config.attention, config, tokens, p.vector)
    return function(p, config, tokens[rows], targets[rows], past[:, rows], masks, core=core)


def in_parts(function: Callable[[slice], Part], rows: int, workers: int) -> list[Part]:
    """[function(slice), …] for nearly equal slices of the batch, one for each worker, side by side as far as cores allow.

    0 workers = one for each thread.
    """
    count = min(rows, workers or available_cores())
    bounds = [rows * i // count for i in range(count + 1)]
    parts = [slice(low, high) for low, high in pairwise(bounds)]
    return [function(parts[0])] if count == 1 else map_in_threads(function, parts, min(count, available_cores()))


def check_finite(p: Parameters, config: ModelConfig, result: Result) -> None:
    """Raises NonFiniteError, with the first such tensor, if the update has left a model whose loss is not finite.

    update() looks at the loss before its step; before a checkpoint is written the step must have been a good one.
    """
    xp, core = module_of(p.vector), core_for("auto", config, result.tokens, p.vector)
    with quiet():
        for row in range(len(result.tokens)):  # one at a time: all at once would take as much memory again as an update
            rows = slice(row, row + 1)
            out = model.forward(p, config, result.tokens[rows], result.targets[rows], result.past[:, rows], core=core)
            if not (xp.isfinite(out.loss) and xp.isfinite(p.vector).all()):
                raise NonFiniteError(f"after the last update: loss {float(out.loss)}; first tensor that is not finite: "
                                     f"{_first_nonfinite(p, None, [out])}")


def run(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, segments: Iterator[Segment],
    past: Array,
) -> Iterator[Result]:
    """Updates until state.updates is train_config.updates, one segment each; yields every update's result.

    A segment has .tokens and .targets (B, T) and .restart: whether the past is emptied before it. `past` goes with the first
    segment. On a GPU it is read back every log_every updates whether all were finite. After a yield, p, state and the
    result's past are what a checkpoint needs to go on from there.
    """
    arena = Arena()
    while state.updates < train_config.updates:
        segment = next(segments)
        if segment.restart:
            past = model.initial_past(config, len(segment.tokens), p.vector)
        tokens, targets = (to_library_of(p.vector, array) for array in (segment.tokens, segment.targets))
        with arena:
            result = update(p, state, config, train_config, tokens, targets, past)
        past = result.past
        optimizer.check_when_logged(state, train_config)
        yield result


def _combine(results: list[_Share], batch: int) -> tuple[Array, Parameters]:
    """The batch's mean loss and gradients: each worker's, weighted by its share of the rows, added in their order."""
    if len(results) == 1:
        return results[0].out.loss, results[0].gradients
    weights = [(share.rows.stop - share.rows.start) / batch for share in results]
    loss, g = results[0].out.loss * weights[0], results[0].gradients
    g.vector *= weights[0]
    for share, weight in zip(results[1:], weights[1:], strict=True):
        loss = loss + share.out.loss * weight
        share.gradients.vector *= weight
        g.vector += share.gradients.vector
    return loss, g


def _first_nonfinite(p: Parameters, g: Parameters | None, outputs: list[model.Output]) -> str:
    """The first tensor, in the order of computation, that is not finite: parameter, hidden state, gradient."""
    xp = module_of(p.vector)
    named = [(f"parameter {name}", p[name]) for name in p]
    for layer in range(p.config.layers + 1):
        name = f"input of layers.{layer}" if layer < p.config.layers else "last hidden state"
        named += [(name, out.saved.hidden[layer]) for out in outputs]
    named += [("token loss", out.token_loss) for out in outputs]
    named += [(f"gradient of {name}", g[name]) for name in reversed(list(g))] if g is not None else []
    return next((name for name, tensor in named if not xp.isfinite(tensor).all()), "gradient norm")
