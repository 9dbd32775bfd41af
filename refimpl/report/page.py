"""The page: what was read and measured, put into the template. Every text of a run is escaped there, without exception."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.datasets.vocabulary import Vocabulary
from refimpl.report import charts, curves, tables
from refimpl.report.looking import Look, look
from refimpl.report.passage import Passage, Piece, choose, context, visible
from refimpl.report.predicting import Prediction, predict
from refimpl.report.reading import RunFolder, spans

TEMPLATE = "report.html.jinja"
UNSHARED = {
    "transformer": "This variant has no persistent vectors: all attention goes to the context.",
    "ff-attention": "This variant has no persistent vectors beside the context. Its feed-forward sublayer is an attention "
                    "of its own, with as many vectors as feed_forward says; the most used of them are below.",
    "attention-split": "Persistent vectors have a softmax of their own here, whose weights sum to 100 % in every head, "
                       "as the context's do, so that there is no share to tell.",
    "single-head": "Persistent vectors have a softmax of their own here, of a single head, whose weights sum to 100 %, "
                   "as the context's do, so that there is no share to tell.",
}


def render(runs: Sequence[RunFolder], passage: str | None) -> str:
    """The report as one HTML file that needs nothing else. Raises InputError for a passage with symbols that a run lacks."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    drawn = _Drawing()
    names = [curves.name_of(number, len(runs)) for number in range(len(runs))]
    shown = [{"name": run.path.resolve().name or str(run.path), "letter": letter, "colour": number % charts.COLOURS}
             for number, (run, letter) in enumerate(zip(runs, names, strict=True))]
    content: dict[str, Any] = {
        "runs": shown, "summary": tables.summary(runs), "notes": [run.notes for run in runs],
        "curves": [drawn.svg(chart) for chart in curves.of_training(runs)], "settings": tables.settings(runs),
        "origin": tables.origin(runs), "colours": charts.COLOURS,
        "models": [_model(run, choose(run, passage), drawn) for run in runs]}
    return environment.get_template(TEMPLATE).render(content) + "\n"


class _Drawing:
    """Charts of one page, each with ids of its own."""

    def __init__(self) -> None:
        self._drawn = 0

    def svg(self, chart: charts.Chart) -> dict[str, Any]:
        """Title, axes' names, and the element, which holds nothing but numbers and what this package says."""
        from markupsafe import Markup

        self._drawn += 1
        return {"title": chart.title, "x": chart.x_name, "y": chart.y_name,
                "svg": Markup(charts.svg(chart, f"chart{self._drawn}"))}


def _model(run: RunFolder, passage: Passage | None, drawn: _Drawing) -> dict[str, Any]:
    """What is told of one run's model."""
    config = run.saved.config if run.saved else None
    look_at = look(run.saved, passage) if run.saved and passage else None
    return {
        "unit": run.unit, "spans": _spans(run), "span_charts": [drawn.svg(chart) for chart in curves.of_spans(run)],
        "attention": None if look_at is None or passage is None else _attention(run, look_at, passage),
        "log_distance": config is not None and not config.attend_self,
        "shared": config is not None and config.variant == "all-attention",
        "distance": [drawn.svg(chart) for chart in curves.of_distance(look_at, config.attend_self)]
        if look_at and config else [],
        "prediction": _prediction(predict(run), run.vocabulary)}


def _spans(run: RunFolder) -> dict[str, Any] | None:
    """Spans at the end: the checkpoint's, else the log's last; None without adaptive spans or where neither tells."""
    model = run.tables["model"]
    if not model.get("adaptive_span", True):
        return None
    values: charts.Numbers | None = None
    if run.saved is not None and run.saved.config.adaptive_span:
        p, config = run.saved.parameters, run.saved.config
        rho = np.stack([p[f"layers.{layer}.attention.span"] for layer in range(config.layers)])
        values = config.span * rho.astype(float)
    elif len(logged := spans(run.records)[1]):
        values = logged[-1]
    if values is None:
        return None
    longest = model.get("span", values.max())
    return {"grid": tables.grid(values, float(values.max())), "most": longest, "heads": values.shape[1],
            "mean": f"{values.mean():,.1f}"}


def _attention(run: RunFolder, found: Look, passage: Passage) -> dict[str, Any]:
    """The share of persistent vectors, or why there is none, and the most used ones with the contexts that use them."""
    share = found.share
    vectors = [{
        "layer": vector.layer + 1, "head": vector.head + 1, "number": vector.number, "mean": f"{100 * vector.mean:.1f}",
        "contexts": [(f"{100 * weight:.0f}", context(passage, position)) for weight, position in vector.used_by]}
        for vector in found.vectors]
    variant = run.saved.config.variant if run.saved else ""
    return {
        "source": passage.source, "queries": found.queries, "kind": found.kind, "variant": variant,
        "passage": [Piece("here", *piece) for piece in visible(passage.text)],
        "share": None if share is None else tables.grid(share, 1.0, percent=True),
        "heads": 0 if share is None else share.shape[1],
        "mean": "" if share is None else f"{100 * share.mean():.0f}",
        "why": UNSHARED.get(variant, ""), "vectors": vectors}


def _prediction(found: Prediction | None, vocabulary: Vocabulary | None) -> dict[str, Any] | None:
    if found is None or vocabulary is None:
        return None
    losses = [group.loss for group in found.groups if group.tokens]
    most = max(losses, default=0.0)
    groups = [{
        "name": group.name, "words": f"{group.words:,}", "share": f"{100 * group.tokens / found.tokens:.1f}",
        "perplexity": _perplexity(group.perplexity) if group.tokens else tables.MISSING,
        "bits": f"{group.loss / np.log(2):.3f}" if group.tokens else tables.MISSING,
        "bar": f"{100 * group.loss / most:.1f}" if group.tokens and most else "0",
        "examples": [visible(vocabulary.decode(np.array([word]))) for word in group.examples]} for group in found.groups]
    return {"groups": groups, "tokens": f"{found.tokens:,}", "clusters": found.clusters}


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"
