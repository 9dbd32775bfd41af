"""Which charts a report has: curves of training, spans over time, attention over distance."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refimpl.report.charts import COLOURS, Chart, Line, Numbers
from refimpl.report.looking import Look
from refimpl.report.reading import RunFolder, series, spans

STEPS = 48  # points of a curve over distance
SHOWN_HEADS = COLOURS


def name_of(number: int, count: int) -> str:
    """A, B, … for the runs of a report; nothing where there is only one."""
    return "" if count == 1 else chr(ord("A") + number) if number < 26 else str(number + 1)


def measure_of(unit: str) -> str:
    """What a loss is told as: perplexity of words, bits of anything smaller."""
    return "perplexity" if unit == "word" else f"bits per {unit}"


def in_measure(loss: Numbers, unit: str) -> Numbers:
    """Nats as that."""
    return np.exp(np.minimum(loss, 700)) if unit == "word" else loss / math.log(2)


def of_training(runs: Sequence[RunFolder]) -> list[Chart]:
    """Loss by unit, rate, gradient norm, clipped share, tokens per second, mean span; left out where no run tells."""
    charts = [_loss(runs, unit) for unit in dict.fromkeys(run.unit for run in runs)]
    charts.append(_curve(runs, "Learning rate", "learning rate", "learning_rate", from_zero=True))
    limits = {run.tables["train"].get("clip", 1.0) for run in runs if not run.tables["train"].get("clip_each", False)}
    limit = (limits.pop(), "clipped above") if len(limits) == 1 and 0 not in limits else None
    charts.append(_curve(runs, "Gradient norm", "norm of all gradients", "gradient_norm", log_y=True, limit=limit))
    kinds = {"tensors" if run.tables["train"].get("clip_each", False) else "updates" for run in runs}
    clipped = _curve(runs, "Clipped", f"% of {' or '.join(sorted(kinds))}", "clipped", from_zero=True)
    lines = [line._replace(y=100 * line.y) for line in clipped.lines]
    charts.append(replace(clipped, lines=lines, top=105))
    charts.append(_curve(runs, "Pace", "tokens per second", "tokens_per_second", from_zero=True))
    charts.append(_curve(runs, "Mean span", "span in positions", "span_mean", from_zero=True))
    return [chart for chart in charts if any(np.isfinite(line.y).any() for line in chart.lines)]


def _loss(runs: Sequence[RunFolder], unit: str) -> Chart:
    lines = []
    for number, run in enumerate(runs):
        if run.unit != unit:
            continue
        name = name_of(number, len(runs))
        for key, kind in (("loss", "training"), ("valid_loss", "validation")):
            updates, loss = series(run.records, key)
            alone = not name
            colour = (0 if kind == "training" else 1) if alone else number
            label = kind if alone else name if kind == "training" else ""
            lines.append(Line(f"{name} {kind}".strip(), updates, in_measure(loss, unit), colour, label,
                              dots=kind == "validation", thin=kind == "training"))
    title = "Perplexity" if unit == "word" else f"Loss, bits per {unit}"
    return Chart(title, "updates", measure_of(unit), lines, log_y=unit == "word")


def _curve(
    runs: Sequence[RunFolder], title: str, unit: str, key: str, log_y: bool = False,
    limit: tuple[float, str] | None = None, from_zero: bool = False,
) -> Chart:
    lines = []
    for number, run in enumerate(runs):
        updates, values = series(run.records, key)
        name = name_of(number, len(runs))
        lines.append(Line(name or title.lower(), updates, values, number, name))
    return Chart(title, "updates", unit, lines, log_y=log_y, limit=limit, from_zero=from_zero)


def of_spans(run: RunFolder) -> list[Chart]:
    """Every head's span over the updates, a chart for each layer; [] where the log does not tell."""
    updates, values = spans(run.records)
    if not len(updates):
        return []
    most = float(run.tables["model"].get("span", np.nanmax(values)))
    top = 1.05 * min(most, max(1.0, float(np.nanmax(values))))
    return [Chart(f"layer {layer + 1}", "updates", "span in positions", _heads(updates, values[:, layer].T), small=True,
                  from_zero=True, top=top) for layer in range(values.shape[1])]


def of_distance(look: Look, attend_self: bool) -> list[Chart]:
    """The share of attention on the context up to a distance, a chart for each layer."""
    layers, _, span = look.by_distance.shape
    at = np.unique(np.geomspace(1, span, STEPS).round().astype(int))
    so_far = 100 * np.cumsum(look.by_distance, axis=2)[:, :, at - 1]
    distance = at - attend_self
    return [Chart(f"layer {layer + 1}", "positions back", "% of attention so far", _heads(distance, so_far[layer]),
                  small=True, from_zero=True, top=105, log_x=not attend_self) for layer in range(layers)]


def _heads(x: Numbers, rows: Numbers) -> list[Line]:
    """A line for each head, labelled by its number."""
    return [Line(f"head {head + 1}", x, row, head, str(head + 1) if len(rows) <= SHOWN_HEADS else "")
            for head, row in enumerate(rows)]
