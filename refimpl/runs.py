"""A run's folder: config.toml (resolved), log.jsonl (a line per record), checkpoints/, .lock; begun or resumed."""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from refimpl import durable, locks, optimizers, parameters, settings, training
from refimpl.checkpoint import Checkpoint
from refimpl.computing import computing, difference
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.errors import InputError, OutsideError, RanksError
from refimpl.inputs import initial_past
from refimpl.ranks import ALONE, Ranks, check_rows, differences
from refimpl.writer import Writer

# what a resumed run may change; everything else decides the numbers that the checkpoint holds
CHANGEABLE = ("updates", "last_updates", "last_factor", "learning_rate", "warm_up", "workers", "parallel", "log_every",
              "evaluate_every", "evaluate_tokens", "checkpoint_every", "keep_checkpoints", "on_nonfinite")


class Batches(Protocol):
    """Endless segments whose place in the text can be saved and restored."""

    def __iter__(self) -> Iterator[training.Segment]: ...
    def state(self) -> dict[str, int]: ...
    def restore(self, state: Mapping[str, int]) -> None: ...


@dataclass
class Run:
    """A run between two updates: its folder, and what the next checkpoint will hold; `time_limit` in seconds or None.

    `moved`: what differs, of what decides the last bits, from before a resume. `held`: the folder's lock, to be closed;
    `unlocked`: why there is none. `ranks`: who trains together. `stopped`: the signal that ended it, or 0.
    """

    folder: Path
    saved: Checkpoint
    data: DataConfig
    batches: Batches
    time_limit: float | None = None
    moved: str = ""
    held: ExitStack = field(default_factory=ExitStack)
    unlocked: str = ""
    writer: Writer = field(default_factory=Writer)
    ranks: Ranks = ALONE
    stopped: int = 0


def begin(
    folder: Path, config: ModelConfig, train_config: TrainConfig, data: DataConfig, batches: Batches,
    vocabulary: dict[str, Any], text_sha256: str, ranks: Ranks = ALONE,
) -> Run:
    """A new run. Raises InputError, before anything is written, if the folder holds something or the model sees nothing.

    Of several ranks the first one looks at the folder, locks it and writes.
    """
    if ranks.rank == 0:
        check_free(folder)
    saved = first(config, train_config, data, batches, vocabulary, text_sha256, ranks)
    if ranks.rank:
        return Run(folder, saved, data, batches, ranks=ranks)
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        unlocked = locks.hold(folder, held)
        check_free(folder)  # another process may have begun just now
        with _disk(folder):
            durable.sync(folder.parent)
            durable.replace(folder / "config.toml", settings.to_toml(config, train_config, data))
        return Run(folder, saved, data, batches, held=held.pop_all(), unlocked=unlocked, ranks=ranks)


def first(
    config: ModelConfig, train_config: TrainConfig, data: DataConfig, batches: Batches, vocabulary: dict[str, Any],
    text_sha256: str, ranks: Ranks = ALONE,
) -> Checkpoint:
    """What a checkpoint before the first update would hold. Raises InputError if the model, or a rank, sees nothing."""
    check_sight(config)
    check_rows(ranks, train_config.batch)
    p = parameters.initialize(config, train_config.seed, train_config.dtype)
    progress = {"tokens": 0, "seconds": 0.0, "batches": batches.state(), "text_sha256": text_sha256,
                "computing": computing(ranks.size), "data": asdict(data)}
    past = initial_past(config, train_config.batch, p.vector)
    return Checkpoint(config, train_config, p, optimizers.initialize(train_config, p), progress, past, vocabulary)


def resume(
    folder: Path, saved: Checkpoint, tables: settings.Tables, data: DataConfig, batches: Batches, text_sha256: str,
    ranks: Ranks = ALONE,
) -> Run:
    """The run goes on from its checkpoint, with the settings in `tables` that may change. Raises InputError for others."""
    if not saved.progress["text_sha256"]:
        raise InputError(f"{saved.path}: expected a run with a text, got one converted without (refimpl convert … --data)")
    if text_sha256 != saved.progress["text_sha256"]:
        raise InputError(f"{data.path}: expected the text that the run was trained on, SHA-256 "
                         f"{saved.progress['text_sha256']}, got {text_sha256}")
    before, saved.train_config = saved.train_config, changed(saved, data, tables)
    check_rows(ranks, saved.train_config.batch)
    if before.evaluate_tokens != saved.train_config.evaluate_tokens:
        saved.progress.pop("best", None)  # another stretch of text: losses before and after can't be compared
    batches.restore(saved.progress["batches"])
    computed = computing(ranks.size)
    now = {**computed, "workers": saved.train_config.workers}
    moved = difference({"workers": before.workers, **saved.progress.get("computing", now)}, now)
    saved.progress["computing"], saved.progress["data"] = computed, asdict(data)
    if ranks.rank == 0:
        with _disk(folder):
            _forget_after(folder / "log.jsonl", saved.optimizer.updates, saved.progress.get("validated"))
            durable.replace(folder / "config.toml", settings.to_toml(saved.config, saved.train_config, data))
    return Run(folder, saved, data, batches, moved=moved, ranks=ranks)


def check_alike(run: Run) -> None:
    """Raises RanksError unless all ranks have the same run: they may have read other files, or compute otherwise."""
    saved = run.saved
    mine = {**saved.progress["computing"], "text": saved.progress["text_sha256"], "update": saved.optimizer.updates}
    for table, config in (("model", saved.config), ("train", saved.train_config)):
        mine |= {f"{table}.{name}": value for name, value in asdict(config).items()}
    found = differences(run.ranks, mine)
    if found:
        raise RanksError(f"expected the same run on every rank, got {found}")


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
    if folder.exists() and (not folder.is_dir() or any(path.name != locks.NAME for path in folder.iterdir())):
        what = "something else"
        if (folder / "config.toml").exists():
            what = "a run (--resume goes on with it)"
        raise InputError(f"{folder}: expected a new or empty folder for the run, got one that holds {what}")


def check_sight(config: ModelConfig) -> None:
    """Raises InputError if a text's first query would see nothing at all."""
    if not (config.memory or config.attend_self or config.zero_past):
        raise InputError("model: expected memory of 1 or more, attend_self or zero_past, got none of them: a text's first "
                         "token would see nothing")


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """What can't be written here is the disk's failure, not the caller's."""
    try:
        yield
    except OSError as error:
        raise OutsideError(f"{folder}: {error}") from error


def _forget_after(log: Path, update: int, validated: int | None) -> None:
    """Takes from the log what will be done, and logged, again: later updates, its own validation if that is left."""
    # what is no UTF-8 is no record either, and must not keep a run from going on
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if log.exists() else []
    last = update if validated == update else update - 0.5
    kept = [line for line in lines if _update_of(line) <= (last if '"valid_loss"' in line else update)]
    if len(kept) < len(lines):
        durable.replace(log, "".join(kept))


def _update_of(line: str) -> float:
    """The update that a line of the log tells of; infinity for what a killed writer left."""
    try:
        return float(json.loads(line)["update"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
