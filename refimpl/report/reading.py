"""A run's folder as far as it can be read: settings, log, newest whole checkpoint, text; what is missing is told."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from refimpl import checkpoint, settings
from refimpl.checkpoint import Checkpoint
from refimpl.datasets.corpus import Corpus, open_corpus
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError
from refimpl.results import run_data

Numbers = npt.NDArray[np.float64]


@dataclass
class RunFolder:
    """What a run left. `notes`: what is missing or damaged, a sentence each; `manifest`: its checkpoint's own."""

    path: Path
    tables: settings.Tables
    records: list[dict[str, Any]]
    saved: Checkpoint | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    corpus: Corpus | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What a token is called."""
        if self.vocabulary is not None:
            return self.vocabulary.kind
        return str(self.tables["data"].get("vocabulary", "token" if self.saved else "byte"))


class Series(NamedTuple):
    """A number of the log over updates; not a number where a record holds none that is finite."""

    updates: Numbers
    values: Numbers


def read(path: Path, store: Path) -> RunFolder:
    """A run's folder, or a checkpoint's in it. Raises InputError for what is neither."""
    folder = path.resolve().parent.parent if (path / checkpoint.MANIFEST).is_file() else path
    notes: list[str] = []
    try:
        saved = checkpoint.load(path, to_train=False)
    except InputError as error:
        if not (folder / "config.toml").is_file():
            raise InputError(f"{path}: expected a run's folder, with config.toml or checkpoints, got neither") from error
        saved = None
        notes.append(f"No checkpoint could be read, so that nothing is told of the model itself: {error}")
    run = RunFolder(path, _tables(folder, saved, notes), _records(folder / "log.jsonl", notes), saved, notes=notes)
    if saved is not None:
        notes += [f"A damaged checkpoint was passed over: {reason}" for reason in saved.passed_over]
        run.manifest = json.loads((saved.path or path).joinpath(checkpoint.MANIFEST).read_bytes())
        run.vocabulary = None if saved.vocabulary is None else Vocabulary.from_json(saved.vocabulary)
        run.corpus = _corpus(run, folder, store)
    return run


def _tables(folder: Path, saved: Checkpoint | None, notes: list[str]) -> settings.Tables:
    """The settings, of config.toml; where it is gone, the checkpoint's."""
    try:
        return settings.read(folder / "config.toml")
    except InputError as error:
        if saved is None:
            raise
        notes.append(f"The settings are the checkpoint's, without those of the text: {error}")
        return {"model": asdict(saved.config), "train": asdict(saved.train_config), "data": {}}


def _records(log: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The log's whole lines, in order."""
    try:
        lines = log.read_bytes().splitlines()
    except OSError as error:
        notes.append(f"No log could be read: {log.name}, {error.strerror}")
        return []
    records, damaged = [], 0
    for line in lines:
        try:
            record = json.loads(line)
            record["update"] = float(record["update"])
        except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
            damaged += 1
        else:
            records.append(record)
    if damaged:
        notes.append(f"{damaged} of the log's {len(lines)} lines could not be read and were left out.")
    if not records:
        notes.append("The log holds no record yet.")
    if not all(math.isfinite(_number(record, "loss")) for record in records if "loss" in record):
        notes.append("Some records hold a loss that is not a finite number; curves have a gap there.")
    return records


def _corpus(run: RunFolder, folder: Path, store: Path) -> Corpus | None:
    """The run's text, unless it has moved or is another one by now."""
    if run.vocabulary is None or run.saved is None:
        run.notes.append("The checkpoint holds no vocabulary, so that no text could be read for it.")
        return None
    try:
        corpus = open_corpus(run_data(folder, run.saved, None), store, run.vocabulary)
    except (InputError, OSError) as error:
        run.notes.append(f"The text could not be read, so that nothing is measured on it: {error}")
        return None
    trained_on = run.saved.progress.get("text_sha256", corpus.sha256)
    if corpus.sha256 != trained_on:
        run.notes.append(f"The text is no longer the one trained on, so that nothing is measured on it: expected SHA-256 "
                         f"{trained_on}, got {corpus.sha256}")
        return None
    return corpus


def series(records: Sequence[dict[str, Any]], name: str) -> Series:
    """A number over the updates whose records tell it."""
    told = [record for record in records if name in record]
    return Series(np.array([record["update"] for record in told]), np.array([_number(record, name) for record in told]))


def spans(records: Sequence[dict[str, Any]]) -> tuple[Numbers, Numbers]:
    """The updates (U) whose records tell every head's span, and these, in positions (U, L, H)."""
    told: list[tuple[float, Numbers]] = []
    for record in records:
        try:
            values = np.array(record["spans"], float)
        except (KeyError, ValueError, TypeError):
            continue
        if values.ndim == 2 and (not told or values.shape == told[0][1].shape):
            told.append((record["update"], values))
    return np.array([update for update, _ in told]), np.array([values for _, values in told])


def _number(record: dict[str, Any], name: str) -> float:
    value = record.get(name)
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:  # an integer that no float holds
        return math.nan
    return number if math.isfinite(number) else math.nan
