"""A training run in a folder: config.toml (resolved), log.jsonl (a line per record), checkpoints/; begun or resumed."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from refimpl import checkpoint, optimizers, parameters, settings, training
from refimpl.arrays import Array
from refimpl.checkpoint import Checkpoint
from refimpl.computing import computing, difference
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.device import optimizer
from refimpl.errors import InputError, NonFiniteError
from refimpl.evaluation import Evaluation
from refimpl.inputs import initial_past

# what a resumed run may change; everything else decides the numbers that the checkpoint holds
CHANGEABLE = ("updates", "last_updates", "last_factor", "learning_rate", "warm_up", "workers", "log_every",
              "evaluate_every", "evaluate_tokens", "checkpoint_every", "keep_checkpoints")

Record = dict[str, Any]


class Batches(Protocol):
    """Endless segments whose place in the text can be saved and restored."""

    def __iter__(self) -> Iterator[training.Segment]: ...
    def state(self) -> dict[str, int]: ...
    def restore(self, state: Mapping[str, int]) -> None: ...


@dataclass
class Run:
    """A run between two updates: its folder, and what the next checkpoint will hold; `time_limit` in seconds or None.

    `moved`: what differs, of what decides the last bits, from before a resume.
    """

    folder: Path
    saved: Checkpoint
    data: DataConfig
    batches: Batches
    time_limit: float | None = None
    moved: str = ""


def begin(
    folder: Path, config: ModelConfig, train_config: TrainConfig, data: DataConfig, batches: Batches,
    vocabulary: dict[str, Any], text_sha256: str,
) -> Run:
    """A new run. Raises InputError, before anything is written, if the folder holds something or the model sees nothing."""
    check_free(folder)
    check_sight(config)
    p = parameters.initialize(config, train_config.seed, train_config.dtype)
    state = optimizers.initialize(train_config, p)
    progress = {"tokens": 0, "seconds": 0.0, "batches": batches.state(), "text_sha256": text_sha256,
                "computing": computing()}
    past = initial_past(config, train_config.batch, p.vector)
    saved = Checkpoint(config, train_config, p, state, progress, past, vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "config.toml", settings.to_toml(config, train_config, data))
    return Run(folder, saved, data, batches)


def resume(
    folder: Path, saved: Checkpoint, tables: settings.Tables, data: DataConfig, batches: Batches, text_sha256: str
) -> Run:
    """The run goes on from its checkpoint, with the settings in `tables` that may change. Raises InputError for others."""
    if text_sha256 != saved.progress["text_sha256"]:
        raise InputError(f"{data.path}: expected the text that the run was trained on, SHA-256 "
                         f"{saved.progress['text_sha256']}, got {text_sha256}")
    saved.train_config = changed(saved, data, tables)
    batches.restore(saved.progress["batches"])
    now = computing()
    moved = difference(saved.progress.get("computing", now), now)
    saved.progress["computing"] = now
    _forget_after(folder / "log.jsonl", saved.optimizer.updates)
    _replace(folder / "config.toml", settings.to_toml(saved.config, saved.train_config, data))
    return Run(folder, saved, data, batches, moved=moved)


def changed(saved: Checkpoint, data: DataConfig, tables: settings.Tables) -> TrainConfig:
    """The checkpoint's TrainConfig with the changeable settings of `tables`; InputError if any other one differs."""
    for table, config in (("model", saved.config), ("train", saved.train_config), ("data", data)):
        for key, value in tables.get(table, {}).items():
            value, held = (tuple(v) if isinstance(v, list) else v for v in (value, getattr(config, key)))
            if value != held and not (table == "train" and key in CHANGEABLE):
                raise InputError(f"{table}.{key}: expected {held!r} as in the checkpoint {saved.path}, got {value!r}")
    allowed = {key: value for key, value in tables.get("train", {}).items() if key in CHANGEABLE}
    return replace(saved.train_config, **allowed)


def check_free(folder: Path) -> None:
    """Raises InputError unless the folder is absent or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "something else"
        if (folder / "config.toml").exists():
            what = "a run that ended before its first checkpoint"
            if checkpoint.folders(folder):
                what = "a run (--resume goes on with it)"
        raise InputError(f"{folder}: expected a new or empty folder for the run, got one that holds {what}")


def check_sight(config: ModelConfig) -> None:
    """Raises InputError if a text's first query would see nothing at all."""
    if not (config.memory or config.attend_self or config.zero_past):
        raise InputError("model: expected memory of 1 or more, attend_self or zero_past, got none of them: a text's first "
                         "token would see nothing")


def train(run: Run, evaluate: Callable[[], Evaluation], stop: Callable[[], bool]) -> Iterator[Record]:
    """Trains to the last update, or until stop() or the time limit; yields every record that goes into log.jsonl.

    A checkpoint is written every checkpoint_every updates and at the end. Raises NonFiniteError that names the first tensor
    and the last good checkpoint, which is the newest.
    """
    try:
        yield from _records(run, evaluate, stop)
    except NonFiniteError as error:
        left = f"the last good checkpoint is {run.saved.path}" if run.saved.path else "no checkpoint was written yet"
        raise NonFiniteError(f"{error}; {left}") from error


def _records(run: Run, evaluate: Callable[[], Evaluation], stop: Callable[[], bool]) -> Iterator[Record]:
    saved, settings_now = run.saved, run.saved.train_config
    clock = Clock(saved.progress["seconds"], saved.optimizer.updates)
    losses: list[Array] = []
    p, state, segments = saved.parameters, saved.optimizer, iter(run.batches)
    results = training.run(p, state, saved.config, settings_now, segments, saved.past)
    with (run.folder / "log.jsonl").open("a", encoding="utf-8") as log:
        for result in results:
            number = saved.optimizer.updates
            losses.append(result.loss)
            saved.past = result.past
            saved.progress["tokens"] += settings_now.batch * settings_now.block
            saved.progress["seconds"] = clock.seconds()
            saved.progress["batches"] = run.batches.state()
            stopped = stop()
            done = number == settings_now.updates or clock.since_start() >= (run.time_limit or math.inf)
            if stopped or done or number % settings_now.log_every == 0:
                yield _written(log, _record(run, result, losses, clock))
                losses.clear()
            if stopped or done or _due(number, settings_now.checkpoint_every):
                optimizer.check(state)
                training.check_finite(saved.parameters, saved.config, result)
                saved.path = checkpoint.save(run.folder, saved, settings_now.keep_checkpoints)
            if done or (not stopped and _due(number, settings_now.evaluate_every)):
                yield _written(log, {"update": number, **_evaluated(evaluate())})
            if stopped or done:
                break
            if any(_due(number, every) for every in (settings_now.checkpoint_every, settings_now.evaluate_every)):
                clock.pace(number)  # the time that these took is not the updates'
    yield {"checkpoint": str(saved.path)}


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


def _record(run: Run, result: training.Result, losses: list[Array], clock: Clock) -> Record:
    """One line of the log: loss in nats and bits per token, pace, rate, spans in positions."""
    saved, settings_now = run.saved, run.saved.train_config
    number, config = saved.optimizer.updates, saved.config
    loss, pace = sum(float(loss) for loss in losses) / len(losses), clock.pace(number)
    left = (settings_now.updates - number) / pace
    if run.time_limit is not None:
        left = min(left, run.time_limit - clock.since_start())
    record = {
        "update": number, "updates": settings_now.updates, "loss": loss, "bits": loss / math.log(2),
        "span_penalty": float(result.span_penalty), "gradient_norm": float(result.gradient_norm),
        "learning_rate": result.learning_rate, "tokens": saved.progress["tokens"],
        "tokens_per_second": pace * settings_now.batch * settings_now.block, "seconds": saved.progress["seconds"],
        "seconds_left": max(0.0, left), **saved.progress["computing"],
    }
    if config.adaptive_span:
        rho = [saved.parameters[f"layers.{layer}.attention.span"] for layer in range(config.layers)]
        record["span_mean"] = config.span * sum(float(r.mean()) for r in rho) / len(rho)
        record["span_max"] = config.span * max(float(r.max()) for r in rho)
    return record


def _evaluated(evaluation: Evaluation) -> Record:
    return {"valid_loss": evaluation.loss, "valid_bits": evaluation.bits, "valid_tokens": evaluation.tokens}


def _forget_after(log: Path, update: int) -> None:
    """Takes from the log what came after the checkpoint: those updates will be done, and logged, again."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    kept = [line for line in lines if _update_of(line) <= update]
    if len(kept) < len(lines):
        _replace(log, "".join(kept))


def _update_of(line: str) -> float:
    """The update that a line of the log tells of; infinity for what a killed writer left."""
    try:
        return float(json.loads(line)["update"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


def _replace(path: Path, text: str) -> None:
    """The file's new content, or on any error its old one."""
    aside = path.with_name(f".{path.name}.aside")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _due(number: int, every: int) -> bool:
    return bool(every) and number % every == 0


def _written(log: Any, record: Record) -> Record:
    log.write(json.dumps(record) + "\n")
    log.flush()
    return record
