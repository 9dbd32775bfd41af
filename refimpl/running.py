"""Training of a run: updates, records, validations and checkpoints, in the order that a resumed run repeats to the bit."""

import json
import math
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from refimpl import ram, records, room, training
from refimpl.arrays import to_host
from refimpl.checkpoint import Checkpoint
from refimpl.device import optimizer
from refimpl.errors import NonFiniteError, OutsideError, RanksError
from refimpl.evaluation import Evaluation, StoppedError
from refimpl.ranks import differences, share
from refimpl.records import Record
from refimpl.runs import Run

Evaluate = Callable[[Callable[[], bool]], Evaluation]
"""A validation; given up with StoppedError once its argument returns True."""


def train(run: Run, evaluate: Evaluate, stop: Callable[[], int]) -> Iterator[Record]:
    """Trains to the last update, or until stop() or the time limit; yields every record that goes into log.jsonl.

    A checkpoint is written every checkpoint_every updates while training goes on, where a validation is the best so far,
    and at the end. stop(): a signal's number, or 0. Of several ranks the first one writes, and what one is told to stop by
    stops all. Raises NonFiniteError, on every rank, that names the first tensor, and OutsideError for what can't be written;
    both name the last good checkpoint, which is the newest.
    """
    try:
        yield from _records(run, evaluate, stop)
    except (NonFiniteError, OSError) as error:
        with suppress(OSError):
            run.writer.wait()
        left = f"the last good checkpoint is {run.saved.path}" if run.saved.path else "no checkpoint was written yet"
        kind = NonFiniteError if isinstance(error, NonFiniteError) else OutsideError
        raise kind(f"{error}; {left}") from error


def _records(run: Run, evaluate: Evaluate, stop: Callable[[], int]) -> Iterator[Record]:
    saved, settings_now = run.saved, run.saved.train_config
    clock, tally = records.Clock(saved.progress["seconds"], saved.optimizer.updates), records.Tally()

    def tell() -> tuple[float, float]:
        return stop(), clock.since_start() >= (run.time_limit or math.inf)

    def stop_all() -> bool:
        run.stopped = int(run.ranks.stacked([stop()]).max())
        return bool(run.stopped)

    results = _results(run, tell)
    with _log(run) as log:
        if _validation_is_left(saved) and (yield from _validated(run, log, evaluate, stop_all)):
            _save(run, log, tally, training_goes_on=False)
        for result in results:
            run.writer.check()
            number = saved.optimizer.updates
            _advance(run, result, clock)
            tally.add(result, saved.optimizer.clipped)
            yield from (_written(log, record) for record in records.of_incidents(saved, result))
            (stopped, late), last = result.told.max(axis=0), number == settings_now.updates
            run.stopped, ended = int(stopped), bool(stopped or late or last)
            if tally.losses and (ended or number % settings_now.log_every == 0):
                yield _written(log, records.of_update(saved, tally, clock, run.time_limit, ended))
                tally.clear()
            due, best = _due(number, settings_now.evaluate_every), saved.progress.get("best")
            if ended:
                _save(run, log, tally, training_goes_on=False)
                if not stopped and (yield from _validated(run, log, evaluate, stop_all, counts=due or last)):
                    _save(run, log, tally, training_goes_on=False)
                break
            if due:
                yield from _validated(run, log, evaluate, stop_all)
            given_up, write = due and stop_all(), _due(number, settings_now.checkpoint_every)
            if given_up or write or saved.progress.get("best") != best:
                _save(run, log, tally, training_goes_on=not given_up)
            if given_up:
                break
            if due or write:
                clock.pace(number)  # the time that these took is not the updates'
    run.writer.wait()
    yield {"checkpoint": str(saved.path)}


def _results(run: Run, tell: Callable[[], tuple[float, float]]) -> Iterator[training.Result]:
    """The updates of this rank's rows; a checkpoint holds the past of all."""
    saved = run.saved
    if saved.past is not None:
        saved.past = saved.past[:, share(run.ranks, saved.train_config.batch)]
    settled = room.settled(saved.config, saved.train_config, ram.available())
    return training.run(saved.parameters, saved.optimizer, saved.config, settled, iter(run.batches), saved.past, run.ranks,
                        tell)


def _log(run: Run) -> TextIO:
    """log.jsonl; nowhere on ranks that do not write."""
    return (Path(os.devnull) if run.ranks.rank else run.folder / "log.jsonl").open("a", encoding="utf-8")


def _advance(run: Run, result: training.Result, clock: records.Clock) -> None:
    """What a checkpoint holds beside parameters and optimiser, after the update."""
    saved = run.saved
    saved.past = result.past
    saved.progress["tokens"] += saved.train_config.batch * saved.train_config.block
    saved.progress["seconds"] = clock.seconds()
    saved.progress["batches"] = run.batches.state()


def _save(run: Run, log: TextIO, tally: records.Tally, training_goes_on: bool) -> None:
    """A checkpoint of this update, once the step before it has proved good; the log up to it is on the disk first.

    The past of all ranks' rows comes to the one that writes.
    """
    saved, ranks = run.saved, run.ranks
    optimizer.check(saved.optimizer)
    if tally.good is not None:
        training.check_finite(saved.parameters, saved.config, tally.good, ranks)
    held = differences(ranks, {"parameters": zlib.crc32(to_host(saved.parameters.vector))}) if ranks.size > 1 else ""
    if held:
        raise RanksError(f"update {saved.optimizer.updates}: expected the same sums on every rank, got {held}")
    own, whole = saved.past, None if saved.past is None else ranks.to_first(saved.past)
    if ranks.rank:
        return
    os.fsync(log.fileno())
    write = run.writer.begin if training_goes_on else run.writer.write
    saved.past = whole
    write(run.folder, saved, saved.train_config.keep_checkpoints)
    saved.past = own


def _validation_is_left(saved: Checkpoint) -> bool:
    """Whether a signal or a kill came before the validation of the checkpoint's update."""
    number, settings_now = saved.optimizer.updates, saved.train_config
    due = number > 0 and (number == settings_now.updates or _due(number, settings_now.evaluate_every))
    return due and saved.progress.get("validated") != number


def _validated(
    run: Run, log: TextIO, evaluate: Evaluate, stop: Callable[[], bool], counts: bool = True
) -> Generator[Record, None, bool]:
    """Validates, and remembers the best if it counts: where a run without a stop validates too.

    Returns whether there is something to remember: not if it was given up, to be done when the run is resumed.
    """
    saved, number = run.saved, run.saved.optimizer.updates
    try:
        found = evaluate(stop)
    except StoppedError:
        return False
    yield _written(log, {"update": number, **records.of_evaluation(found)})
    if counts:
        saved.progress["validated"] = number
        if found.loss < saved.progress.get("best", {"loss": math.inf})["loss"]:
            saved.progress["best"] = {"update": number, "loss": found.loss}
    return counts


def _due(number: int, every: int) -> bool:
    return bool(every) and number % every == 0


def _written(log: TextIO, record: Record) -> Record:
    log.write(json.dumps(record) + "\n")
    log.flush()
    return record
