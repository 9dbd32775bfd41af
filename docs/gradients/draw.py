"""Draws figures/*.svg: the relative error of numerical derivatives against the step size, for the pair of each page.

    pip install -e '.[docs]' && python docs/gradients/draw.py

The exact value is the hand-written gradient itself, computed in longdouble.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.arrays import random_stream
from refimpl.checks import attentions, models, pairs
from refimpl.checks.pairs import Pair

FIGURES = Path(__file__).with_name("figures")
STEPS = 10.0 ** np.arange(-16, 0.25, 0.25)
LOWEST = 1e-18  # where an error of exactly 0 is drawn

PAIRS: Mapping[str, Callable[[np.random.Generator, int], Pair]] = {
    "linear": pairs.of_linear,
    "layer_norm": pairs.of_layer_norm,
    "softmax": pairs.of_softmax,
    "softmax_loss": pairs.of_softmax_loss,
    "masked_softmax": pairs.of_masked_softmax,
    "dropout": pairs.of_dropout,
    "embedding": pairs.of_embedding,
    "span": pairs.of_span,
    "span_at_kinks": pairs.of_span_at_kinks,
    "positions": pairs.of_positions_by_head,
    "windows": pairs.of_scores,
    "attention": attentions.of_attention,
    "attention_tiny_mass": attentions.of_attention_tiny_mass,
    "persistent_attention": pairs.of_persistent_attention,
    "split_attention": attentions.of_attention_split,
    "head_split": attentions.of_head_split,
    "multi_head": attentions.of_attention_layer,
    "feed_forward": pairs.of_feed_forward,
    "ff_attention": pairs.of_ff_attention,
    "transformer_layer": attentions.of_transformer_layer,
    "adaptive_input": pairs.of_adaptive_input,
    "adaptive_softmax": pairs.of_adaptive_softmax,
    "model": lambda rng, n: models.of_model(models.BASE, rng, n),
}


def central(f: Callable[[Any], Any], h: float) -> Any:
    """(f(h) - f(-h)) / 2h = f'(0) + h² f'''(0) / 6 + …"""
    return (f(h) - f(-h)) / (2 * h)


def richardson(f: Callable[[Any], Any], h: float) -> Any:
    """(4 C(h/2) - C(h)) / 3 = f'(0) - h⁴ f⁽⁵⁾(0) / 480 + …: two central differences whose h² terms cancel."""
    return (4 * central(f, h / 2) - central(f, h)) / 3


def complex_step(f: Callable[[Any], Any], h: float) -> Any:
    """Im f(ih) / h = f'(0) - h² f'''(0) / 6 + …: nothing is subtracted."""
    return f(1j * h).imag / h


METHODS = {"central difference": central, "Richardson": richardson, "complex step": complex_step}
POWERS = ("10⁻¹⁶", "10⁻¹²", "10⁻⁸", "10⁻⁴", "1")
LOOKS = (("complex step", "#2060a8", "-", 3.0), ("central difference", "#c43c3c", "-", 1.4),
         ("Richardson", "#e08a00", "--", 1.4))


def errors(name: str, steps: Any = STEPS) -> dict[str, Any]:
    """Of each method at each step: |derivative - exact| / |exact| for f(h) = Σ dy · forward(x + h τ), dy and τ random."""
    rng = random_stream(0, f"figure {name}")
    pair = PAIRS[name](rng, 3)
    arguments = list(pair.arguments.values())
    dy = rng.standard_normal(np.shape(pair.forward(*arguments)))
    directions = [rng.standard_normal(argument.shape) for argument in arguments]
    gradients = pair.vjp(dy.astype("longdouble"), *(argument.astype("longdouble") for argument in arguments))
    exact = sum((g * tau).sum() for g, tau in zip(gradients, directions, strict=True))

    def f(h: Any) -> Any:
        return (dy * pair.forward(*(x + h * tau for x, tau in zip(arguments, directions, strict=True)))).sum()

    return {method: np.array([float(abs((derivative(f, h) - exact) / exact)) for h in steps])
            for method, derivative in METHODS.items()}


def draw(name: str) -> None:
    """Writes figures/NAME.svg, the same bytes every time."""
    import matplotlib  # the test of the numbers does without it

    matplotlib.use("svg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "refimpl", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})
    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    found = errors(name)
    for method, color, style, width in LOOKS:
        axes.loglog(STEPS, np.maximum(found[method], LOWEST), style, color=color, label=method, linewidth=width)
    axes.set(xlabel="step h", ylabel="relative error", xlim=(1e-16, 1), ylim=(LOWEST, 30))
    ticks = [1e-16, 1e-12, 1e-8, 1e-4, 1]
    axes.set_xticks(ticks, POWERS)
    axes.set_yticks(ticks, POWERS)
    axes.minorticks_off()
    axes.grid(color="#dddddd", linewidth=0.6)
    figure.legend(fontsize=9, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None, "Creator": None})
    pyplot.close(figure)


def main() -> None:
    """All figures, and for each the best that each method does."""
    FIGURES.mkdir(exist_ok=True)
    for name in PAIRS:
        draw(name)
        best = (f"{method} {error.min():.0e} at h = 10^{math.log10(STEPS[error.argmin()]):.2f}"
                for method, error in errors(name).items())
        print(f"{name:22}", "  ".join(best))


if __name__ == "__main__":
    main()
