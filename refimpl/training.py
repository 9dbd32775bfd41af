"""One update, and the loop around it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, TypeVar, cast

import numpy as np

from refimpl import model, optimizers
from refimpl.arena import Arena, lent, returned
from refimpl.arrays import Array, is_device, module_of, quiet, to_library_of
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import optimizer, updates
from refimpl.errors import NonFiniteError
from refimpl.inputs import keep_masks
from refimpl.parameters import Parameters
from refimpl.ranks import ALONE, Ranks, share
from refimpl.shared import Part, plan
from refimpl.subnormals import flushed
from refimpl.variants import core_for
from refimpl.workers import Workers, in_parts

Computed = TypeVar("Computed")
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

    past, tokens and targets are this rank's rows. skipped: "", or what was not finite where train.on_nonfinite = "skip" let
    an update change nothing. told: what each rank had to tell, (ranks, n). lost: "", or how a worker process
    ended, from which update on threads compute.
    """

    loss: Array
    span_penalty: Array
    past: Array
    gradient_norm: Array
    learning_rate: float
    tokens: Array
    targets: Array
    skipped: str = ""
    told: Array = None
    lost: str = ""


class _Share(NamedTuple):
    """What one worker computed for its rows of the batch."""

    out: model.Output
    gradients: Parameters
    rows: slice


def update(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array,
    past: Array, ranks: Ranks = ALONE, tell: Callable[[], Sequence[float]] = tuple, workers: Workers | None = None,
) -> Result:
    """Forward, backward and one optimiser step on tokens and targets (B, T); p and state change in place.

    With several workers each takes some rows of the batch; gradients are added in the order of the rows, so results are
    the same bits for the same number of workers, however many threads they take turns on. Raises NonFiniteError, before p
    or state change, if the loss or a gradient is not finite; the message names the first such tensor. With on_nonfinite =
    "skip" such an update only counts, SKIPS_IN_A_ROW times in a row at most, and the past is emptied. On a GPU there is one
    worker, nothing is read back but a rank's loss, and such an update changes nothing: `device.optimizer.check(state)`
    raises for it. Of several ranks each is given the whole batch and the past of its own rows, and computes those.
    """
    if is_device(p.vector):
        return _update_on_device(p, state, config, train_config, tokens, targets, past, ranks, tell)
    number, batch, own = state.updates + 1, len(tokens), share(ranks, len(tokens))
    rate = optimizers.learning_rate(train_config, number)
    tokens, targets = tokens[own], targets[own]
    lent_p, lent_past = p.with_vector(lent(p.vector)), lent(past)

    def compute(rows: slice) -> _Share:
        with quiet():
            given = lent_p, config, train_config, tokens, targets, lent_past, number, rows, own.start
            return _Share(*on_rows(model.loss_and_gradients, *given), rows)

    beside = workers if workers is not None and workers.are_there() else None
    results = beside.compute(compute, _share_of, p, tokens, targets, past, number) if beside else None
    if results is None:
        results = in_parts(compute, len(tokens), train_config.workers)
    penalty = results[0].out.span_penalty
    with quiet():
        loss, g = _combine(results, batch)
        loss, told = _of_all_ranks(loss, g, ranks, tell())
        norm = optimizers.gradient_norm(g)
        # the one number that every update reads back: a step from a gradient that is not finite can't be undone
        if not module_of(norm).isfinite(loss + norm):
            seen = in_parts(compute, len(tokens), train_config.workers) if beside else results
            reason = (f"loss {float(loss)}, gradient norm {float(norm)}; first tensor that is not finite: "
                      f"{_first_nonfinite(p, g, [each.out for each in seen], ranks)}")
            return _skipped(p, state, train_config, Result(loss, penalty, past, norm, rate, tokens, targets, reason, told))
        optimizers.update(p, g, state, train_config)
    pasts = [each.out.past for each in results]
    new_past = pasts[0] if len(pasts) == 1 else module_of(loss).concatenate(pasts, axis=1)
    return Result(loss, penalty, returned(new_past), norm, rate, tokens, targets, told=told)


def _share_of(part: Part, past: Array) -> _Share:
    """What another process has computed, but for what it saved."""
    return _Share(model.Output(part.loss[()], None, None, past, cast("model.Saved", None)), part.gradients, part.rows)


def _skipped(p: Parameters, state: optimizers.State, train_config: TrainConfig, result: Result) -> Result:
    """The update as one that only counts, the past emptied: what the segment left may not be finite, nor is it adjacent."""
    number, reason = state.updates + 1, result.skipped
    if train_config.on_nonfinite != "skip":
        raise NonFiniteError(f"update {number}: {reason}")
    if state.skipped_in_a_row + 1 >= SKIPS_IN_A_ROW:
        raise NonFiniteError(f"update {number}, the last of {SKIPS_IN_A_ROW} in a row: {reason}")
    state.updates, state.skipped, state.skipped_in_a_row = number, state.skipped + 1, state.skipped_in_a_row + 1
    past = model.initial_past(p.config, len(result.tokens), p.vector)
    return result._replace(past=past)


def _update_on_device(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array,
    past: Array, ranks: Ranks, tell: Callable[[], Sequence[float]],
) -> Result:
    """The same on a GPU: in one part, alone without waiting for what comes of it; from a graph where the state has one."""
    rate, own, told = optimizers.learning_rate(train_config, state.updates + 1), share(ranks, len(tokens)), []

    def add(out: model.Output, g: Parameters) -> Array:
        loss, every = _of_all_ranks(*_combine([_Share(out, g, own)], len(tokens)), ranks, tell())
        told.append(every)
        return loss

    made, given = updates.update(p, state, config, train_config, tokens[own], targets[own], past, own.start,
                                 add if ranks.size > 1 else None)
    return Result(made.loss, made.span_penalty, made.past, made.norm, rate, given.tokens, given.targets,
                  told=told[0] if told else np.array([tell()], np.float64))


def score(
    p: Parameters, config: ModelConfig, train_config: TrainConfig, tokens: Array, targets: Array, past: Array, number: int,
    rows: slice,
) -> model.Output:
    """The model's forward on some rows of the batch, as update `number` does it: with that update's dropout."""
    return on_rows(model.forward, p, config, train_config, tokens, targets, past, number, rows, 0)


def on_rows(
    function: Callable[..., Computed], p: Parameters, config: ModelConfig, train_config: TrainConfig, tokens: Array,
    targets: Array, past: Array, number: int, rows: slice, first: int,
) -> Computed:
    """first: the number, in the whole batch, of the row that stands first here."""
    masks = keep_masks(config, rows.stop - rows.start, tokens.shape[1], train_config.seed, number, first + rows.start)
    core = core_for(train_config.attention, config, tokens, p.vector)
    with flushed(p.vector.dtype):
        return function(p, config, tokens[rows], targets[rows], past[:, rows], masks, core=core)


def check_finite(p: Parameters, config: ModelConfig, result: Result, ranks: Ranks = ALONE) -> None:
    """Raises NonFiniteError, with the first such tensor, if the update has left a model whose loss is not finite.

    update() looks at the loss before its step; before a checkpoint is written the step must have been a good one. Called by
    all ranks, it raises on all.
    """
    xp, core = module_of(p.vector), core_for("auto", config, result.tokens, p.vector)
    with quiet():
        bad = None
        for row in range(len(result.tokens)):  # one at a time: all at once would take as much memory again as an update
            rows = slice(row, row + 1)
            out = model.forward(p, config, result.tokens[rows], result.targets[rows], result.past[:, rows], core=core)
            if bad is None and not xp.isfinite(out.loss):
                bad = out
        every = ranks.stacked([0.0 if bad is None and xp.isfinite(p.vector).all() else math.inf])
        if not math.isfinite(float(every.sum())):
            loss = math.nan if bad is None else float(bad.loss)
            raise NonFiniteError(f"after the last update: loss {loss}; first tensor that is not finite: "
                                 f"{_first_nonfinite(p, None, [out] if bad is None else [bad], ranks)}")


def run(
    p: Parameters, state: optimizers.State, config: ModelConfig, train_config: TrainConfig, segments: Iterator[Segment],
    past: Array, ranks: Ranks = ALONE, tell: Callable[[], Sequence[float]] = tuple,
) -> Iterator[Result]:
    """Updates until state.updates is train_config.updates, one segment each; yields every update's result.

    A segment has .tokens and .targets (B, T) and .restart: whether the past is emptied before it. `past`, of this rank's
    rows, goes with the first segment. On a GPU it is read back every log_every updates whether all were finite. After a
    yield, p, state and every rank's past are what a checkpoint needs to go on.
    """
    arena = Arena()
    alone = ranks.size == 1 and not is_device(p.vector)
    with Workers(plan(config, train_config if alone else replace(train_config, parallel="threads"))) as workers:
        while state.updates < train_config.updates:
            segment = next(segments)
            own = share(ranks, len(segment.tokens))
            if segment.restart:
                past = model.initial_past(config, own.stop - own.start, p.vector)
            tokens, targets = segment.tokens, segment.targets
            if state.graph is None:  # which sends them with what else it needs
                tokens, targets = (to_library_of(p.vector, array) for array in (tokens, targets))
            with arena:
                result = update(p, state, config, train_config, tokens, targets, past, ranks, tell, workers)
            past = result.past
            optimizer.check_when_logged(state, train_config)
            yield result._replace(lost=workers.news())


def _combine(results: list[_Share], batch: int) -> tuple[Array, Parameters]:
    """What these rows add to the batch's mean loss and gradients: each worker's by its share, added in their order."""
    weights = [(each.rows.stop - each.rows.start) / batch for each in results]
    loss, g = results[0].out.loss * weights[0], results[0].gradients
    g.vector *= weights[0]
    for each, weight in zip(results[1:], weights[1:], strict=True):
        loss = loss + each.out.loss * weight
        each.gradients.vector *= weight
        g.vector += each.gradients.vector
    return loss, g


def _of_all_ranks(loss: Array, g: Parameters, ranks: Ranks, told: Sequence[float]) -> tuple[Array, Array]:
    """The sum of all ranks' losses, and what each told, (ranks, n); g becomes the sum of theirs."""
    if ranks.size == 1:
        return loss, np.array([told], np.float64)  # and nothing is read back from a device
    every = ranks.add(g.vector, (float(loss), *told))
    return module_of(g.vector).asarray(sum(every[:, 0].tolist()), g.vector.dtype), every[:, 1:]


def _first_nonfinite(p: Parameters, g: Parameters | None, outputs: list[model.Output], ranks: Ranks) -> str:
    """The first tensor, in the order of computation, that is not finite on any rank: parameter, hidden state, gradient."""
    xp = module_of(p.vector)
    named = [(f"parameter {name}", [p[name]]) for name in p]
    for layer in range(p.config.layers + 1):
        name = f"input of layers.{layer}" if layer < p.config.layers else "last hidden state"
        named.append((name, [out.saved.hidden[layer] for out in outputs]))
    named.append(("token loss", [out.token_loss for out in outputs]))
    named += [(f"gradient of {name}", [g[name]]) for name in reversed(list(g))] if g is not None else []
    places = (i for i, (_, tensors) in enumerate(named) if not all(xp.isfinite(tensor).all() for tensor in tensors))
    first = int(ranks.stacked([next(places, len(named))]).min())
    return [*(name for name, _ in named), "gradient norm"][first]
