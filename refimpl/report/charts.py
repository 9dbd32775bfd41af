"""Lines in axes as SVG that stands in a page: its colours and fonts are the page's, so that it is legible dark and light."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]

POINTS = 300  # of a line; more are averaged
INK, FAINT, SERIES = "#000001", "#000002", 16  # these stand for the page's: ink, grid, and series 0 … 7 from #000010 on
COLOURS = 8
NAMES = {INK: "var(--ink)", FAINT: "var(--rule)"} | {
    f"#0000{SERIES + number:02x}": f"var(--series-{number})" for number in range(COLOURS)}
SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "refimpl", "path.simplify": True, "font.family": "DejaVu Sans",
    "axes.edgecolor": FAINT, "axes.labelcolor": INK, "text.color": INK, "xtick.color": FAINT, "ytick.color": FAINT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.8, "xtick.major.size": 3, "ytick.major.size": 0, "lines.linewidth": 1.4, "axes.unicode_minus": True}


class Line(NamedTuple):
    """A line: its name in the description and, if told, at its end; colour: 0 … 7, a thin one stands back."""

    name: str
    x: Numbers
    y: Numbers
    colour: int = 0
    label: str = ""
    dots: bool = False
    thin: bool = False


@dataclass(frozen=True)
class Chart:
    """What is drawn: title and axes' names with units; log_y falls back to linear where no value is above 0.

    limit: a horizontal line and its name. small: one of many, a third as large. from_zero: whether the y axis begins at 0;
    top: where it ends, None = as the lines need.
    """

    title: str
    x_name: str
    y_name: str
    lines: Sequence[Line]
    log_x: bool = False
    log_y: bool = False
    limit: tuple[float, str] | None = None
    small: bool = False
    from_zero: bool = False
    top: float | None = None


def thinned(x: Numbers, y: Numbers) -> tuple[Numbers, Numbers]:
    """No more than POINTS points: the means of equally many neighbours; those that are not numbers are left out."""
    if len(x) <= POINTS:
        return x, y
    places = [slice(low, high) for low, high in pairwise(np.linspace(0, len(x), POINTS + 1).astype(int))]
    return np.array([x[place].mean() for place in places]), np.array([_mean(y[place]) for place in places])


def _mean(values: Numbers) -> float:
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else math.nan


def describe(chart: Chart) -> str:
    """The chart in words: where each line begins and ends, and its least and largest value."""
    said = []
    for line in chart.lines:
        values = line.y[np.isfinite(line.y)]
        if len(values):
            said.append(f"{line.name}: from {values[0]:.4g} to {values[-1]:.4g}, least {values.min():.4g}, "
                        f"largest {values.max():.4g}")
    return f"{chart.y_name} over {chart.x_name}. {'; '.join(said) or 'No values'}."


def svg(chart: Chart, prefix: str) -> str:
    """The chart as an <svg> element whose ids begin with `prefix`; the same chart gives the same text."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update({**SETTINGS, "font.size": 7.5 if chart.small else 9})
        figure = Figure(figsize=(1.8, 1.35) if chart.small else (3.5, 2.3))
        _draw(figure, chart)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_a_page(file.getvalue(), chart, prefix)


def _draw(figure: Any, chart: Chart) -> None:
    axes = figure.add_axes((0, 0, 1, 1))
    for line in chart.lines:
        x, y = thinned(line.x, line.y)
        dots = "." if line.dots or np.isfinite(y).sum() == 1 else ""
        axes.plot(x, y, color=_colour(line.colour), marker=dots, linewidth=0.7 if line.thin else None, markersize=4)
    _scale(axes, chart)
    if chart.limit is not None:
        axes.axhline(chart.limit[0], color=INK, linewidth=0.8, linestyle=(0, (3, 2)))
        axes.annotate(chart.limit[1], (1, chart.limit[0]), (-2, 2), xycoords=("axes fraction", "data"), ha="right",
                      textcoords="offset points", fontsize="small")
    axes.grid(axis="y", color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    if chart.small:
        axes.set_title(chart.title, fontsize="medium", loc="left", pad=3)
    else:
        axes.set_xlabel(chart.x_name)
        axes.set_ylabel(chart.y_name)
    _place(figure, axes, chart)
    _label_ends(axes, chart)


def _scale(axes: Any, chart: Chart) -> None:
    """Scales, limits and ticks of both axes."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    positive = any((line.y[np.isfinite(line.y)] > 0).any() for line in chart.lines)
    for axis, log in ((axes.xaxis, chart.log_x), (axes.yaxis, chart.log_y and positive)):
        getattr(axes, f"set_{axis.axis_name}scale")("log" if log else "linear")
        low, high = axes.get_xlim() if axis.axis_name == "x" else axes.get_ylim()
        powers = log and low > 0 and high / low > 20  # an axis of less than that has one power of ten, or none
        axis.set_major_locator(LogLocator(numticks=4 if chart.small else 6) if powers else
                               MaxNLocator(3 if chart.small else 5, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(_number))
    if chart.from_zero:
        axes.set_ylim(0, chart.top)


def _place(figure: Any, axes: Any, chart: Chart) -> None:
    """The axes as large as the numbers left of them and the labels right of them allow."""
    width, height = figure.get_size_inches()
    low, high = axes.get_ylim()
    ticks = [_number(tick) for tick in axes.yaxis.get_major_locator().tick_values(low, high) if low <= tick <= high]
    letter = 0.06 if chart.small else 0.075
    left = letter * max(map(len, ticks), default=0) + (0.1 if chart.small else 0.28)
    right = letter * max((len(line.label) for line in chart.lines), default=0) + 0.08
    below, above = (0.22, 0.2) if chart.small else (0.43, 0.1)
    axes.set_position((left / width, below / height, 1 - (left + right) / width, 1 - (below + above) / height))


def _label_ends(axes: Any, chart: Chart) -> None:
    """Each line's label right of its last point, those at the axes' edge moved apart from one another."""
    size = 7.5 if chart.small else 9
    axes.get_xlim(), axes.get_ylim()  # what is asked for is settled: only then do places in the axes hold
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    ends: list[tuple[float, Line]] = []
    for line in chart.lines:
        here = np.flatnonzero(np.isfinite(line.y))
        if line.label and len(here):
            last = axes.transData.transform((line.x[here[-1]], line.y[here[-1]]))
            across, up = np.clip(axes.transAxes.inverted().transform(last), 0, 1)
            if across < 0.85:
                _label(axes, line, float(across), float(up), size)
            else:
                ends.append((float(up), line))
    ends.sort(key=lambda end: end[0])
    step = min(size / height, 1 / max(1, len(ends)))
    heights: list[float] = []
    for wanted, _ in ends:
        heights.append(max(wanted, heights[-1] + step) if heights else wanted)
    for i in range(len(heights) - 1, -1, -1):  # none above the axes
        heights[i] = min(heights[i], 1 - step * (len(heights) - 1 - i))
    for at, (_, line) in zip(heights, ends, strict=True):
        _label(axes, line, 1.0, at, size)


def _label(axes: Any, line: Line, across: float, up: float, size: float) -> None:
    axes.annotate(line.label, (across, up), (3, 0), xycoords="axes fraction", textcoords="offset points", va="center",
                  color=_colour(line.colour), fontsize=size, annotation_clip=False, parse_math=False)


def _colour(number: int) -> str:
    return f"#0000{SERIES + number % COLOURS:02x}"


def _number(value: float, _: object = None) -> str:
    """A tick's number: thousands and millions by their letters."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _for_a_page(text: str, chart: Chart, prefix: str) -> str:
    """matplotlib's file as an element: described, without what is for a file alone, in the page's colours and fonts."""
    from markupsafe import escape

    body = text[text.index("<svg") :]
    (box,) = re.findall(r'viewBox="([^"]*)"', body[: body.index(">")])
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"\bid=\"", f'id="{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    body = re.sub(r"xlink:href=\"#", f'href="#{prefix}-', body)
    body = re.sub(r"#0000[0-9a-f]{2}\b", lambda found: NAMES[found[0]], body)
    body = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", re.sub(r"font-family: [^;\"]*;? ?", "", body))
    body = re.sub(r"\s*\n\s*", "\n", body)
    return (f'<svg class="chart" role="img" aria-labelledby="{prefix}-title {prefix}-desc" viewBox="{box}">'
            f'<title id="{prefix}-title">{escape(chart.title)}</title>'
            f'<desc id="{prefix}-desc">{escape(describe(chart))}</desc>{body}')
