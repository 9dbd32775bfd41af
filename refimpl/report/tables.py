"""A report's tables as plain rows: summary, settings, where everything comes from, a number for each layer and head."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from refimpl import __version__
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.console import duration
from refimpl.errors import InputError
from refimpl.report.charts import Numbers
from refimpl.report.curves import in_measure, measure_of
from refimpl.report.reading import RunFolder, series

MISSING = "–"


class Row(NamedTuple):
    """A name and a cell for each run."""

    name: str
    cells: list[str]

    @property
    def differs(self) -> bool:
        """Whether the runs have different ones."""
        return len(set(self.cells)) > 1


class Cell(NamedTuple):
    """A number of a layer's head as text, and how much of the largest possible it is, 0 … 1; "" where there is none."""

    text: str
    share: float


def summary(runs: Sequence[RunFolder]) -> list[Row]:
    """What a reader wants to know first."""
    told: dict[str, list[str]] = {}
    for run in runs:
        for name, cell in _summary(run).items():
            told.setdefault(name, []).append(cell)
    return [Row(name, cells) for name, cells in told.items()]


def _summary(run: RunFolder) -> dict[str, str]:
    loss, valid = _last(run, "loss"), series(run.records, "valid_loss").values
    valid = valid[np.isfinite(valid)]
    pace = series(run.records, "tokens_per_second").values
    planned = run.tables["train"].get("updates", TrainConfig().updates)
    update = run.saved.optimizer.updates if run.saved else run.records[-1]["update"] if run.records else 0
    seconds, tokens = _last(run, "seconds"), _last(run, "tokens")
    return {
        "loss is told in": measure_of(run.unit),
        "validation, last": _loss(valid[-1], run.unit) if len(valid) else MISSING,
        "validation, best": _loss(valid.min(), run.unit) if len(valid) else MISSING,
        "training, last record": _loss(loss, run.unit),
        "updates": f"{update:,.0f} of {planned:,}",
        "parameters": f"{run.saved.parameters.vector.size:,}" if run.saved else MISSING,
        "tokens trained on": f"{tokens:,.0f}" if math.isfinite(tokens) else MISSING,
        "time": duration(seconds) if math.isfinite(seconds) else MISSING,
        "tokens per second, median": f"{np.nanmedian(pace):,.0f}" if np.isfinite(pace).any() else MISSING,
    }


def _last(run: RunFolder, name: str) -> float:
    values = series(run.records, name).values
    values = values[np.isfinite(values)]
    return float(values[-1]) if len(values) else math.nan


def _loss(loss: float, unit: str) -> str:
    value = float(in_measure(np.array(loss), unit))
    return MISSING if not math.isfinite(value) else f"{value:,.2f}" if unit == "word" else f"{value:.4f}"


def settings(runs: Sequence[RunFolder]) -> list[tuple[str, list[Row]]]:
    """Every setting, resolved, by table."""
    resolved = [_resolved(run) for run in runs]
    tables = []
    for table in ("model", "train", "data"):
        names = dict.fromkeys(name for found in resolved for name in found[table])
        tables.append((table, [Row(name, [found[table].get(name, MISSING) for found in resolved]) for name in names]))
    return tables


def _resolved(run: RunFolder) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for table, kind in (("model", ModelConfig), ("train", TrainConfig), ("data", DataConfig)):
        values: dict[str, Any] = run.tables[table]
        with suppress(InputError, TypeError):  # else as they stand: what can't be a model here may have been one
            values = asdict(kind(**values))
        found[table] = {name: _plain(value) for name, value in values.items()}
    return found


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def origin(runs: Sequence[RunFolder]) -> list[Row]:
    """Hashes of text and checkpoint, versions of what computed."""
    told: dict[str, list[str]] = {}
    for run in runs:
        for name, cell in _origin(run).items():
            told.setdefault(name, []).append(cell)
    return [Row(name, cells) for name, cells in told.items()]


def _origin(run: RunFolder) -> dict[str, str]:
    files = run.manifest.get("files", {})
    progress = run.saved.progress if run.saved else {}
    computed = progress.get("computing") or (run.records[-1] if run.records else {})
    return {
        "run": str(run.path),
        "checkpoint": run.saved.path.name if run.saved and run.saved.path else MISSING,
        "text": str(run.tables["data"].get("path", DataConfig().path if run.tables["data"] else MISSING)),
        "text, SHA-256": str(progress.get("text_sha256", MISSING)),
        "checkpoint, SHA-256": str(run.manifest.get("sha256", MISSING)),
        "parameters, SHA-256": str(files.get("parameters.safetensors", {}).get("sha256", MISSING)),
        "refimpl that trained": str(run.manifest.get("refimpl", MISSING)),
        "refimpl of this report": __version__,
        "NumPy": str(computed.get("numpy", MISSING)),
        "BLAS": str(computed.get("blas", MISSING)),
        "threads": str(computed.get("threads", MISSING)),
    }


def grid(values: Numbers, most: float, percent: bool = False) -> list[list[Cell]]:
    """(L, H) numbers as cells; most: what a full one is."""
    def cell(value: float) -> Cell:
        if not math.isfinite(value):
            return Cell(MISSING, 0.0)
        text = f"{100 * value:.0f}" if percent else f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
        return Cell(text, min(1.0, max(0.0, value / most)) if most > 0 else 0.0)

    return [[cell(float(value)) for value in row] for row in values]
