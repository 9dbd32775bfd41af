"""How refimpl's cost grows with the text's length, T, the span used and N: of an update, and of a generated token.

    python benchmarks/scaling.py --json scaling.json

One layer in float32. For each of the four quantities the other three stay, contenders of several sizes take turns, and
exponents are fitted to the median times. A time is a + b x^k, where a has nothing to do with x: `of growth` is the k of
t - t_0 against x - x_0, the least size's time and size taken away, so that k = 1 says linear whatever a is; growth within
the spread of the repeats is left out, and there is no exponent where fewer than two points are left. `of time` is that of t
itself, 0 where it stays the same.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import click
import generate
import measure
import numpy as np
import update
from contender import Contender

from refimpl.config import ModelConfig, TrainConfig

MODEL = ModelConfig(vocabulary=256, width=512, heads=8, layers=1, span=2048, memory=256, span_initial=0.25)
TRAIN = TrainConfig(optimizer="adagrad", learning_rate=0.07, clip=0.03, clip_each=True, batch=2, block=256)
SMALL = replace(MODEL, width=32, heads=4, span=64, memory=16)
SMALL_TRAIN = replace(TRAIN, batch=2, block=16)


class Sizes(NamedTuple):
    """What is varied: lengths of the text in spans, T in blocks of the usual size, shares of the span, N."""

    lengths: tuple[int, ...] = (1, 2, 4, 8)
    blocks: tuple[int, ...] = (1, 2, 3, 4)
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    memories: tuple[int, ...] = (256, 1024, 2048, 3072, 4096)


QUICK = Sizes((1, 2), (1, 2), (0.0, 1.0), (16, 64))


class Variation(NamedTuple):
    """A quantity, its sizes, the subject and for each size the settings that it is started with."""

    name: str
    sizes: list[float]
    subject: str
    settings: list[dict[str, Any]]


def updates(config: ModelConfig, train: TrainConfig, sizes: Sizes) -> list[Variation]:
    """An update of all its tokens on threads, the past full."""
    train = replace(train, parallel="threads")
    segments = [length * config.span // train.block for length in sizes.lengths]
    spans = [config.span * share for share in sizes.shares]
    of_length = [update.settings_of(config, train, count) for count in segments]
    of_block = [update.settings_of(config, replace(train, block=train.block * factor)) for factor in sizes.blocks]
    of_span = [update.settings_of(replace(config, span_initial=share), train) for share in sizes.shares]
    of_memory = [update.settings_of(replace(config, memory=memory), train) for memory in sizes.memories]
    return [Variation("update, text", [count * train.block for count in segments], "update:Ours", of_length),
            Variation("update, T", [train.block * factor for factor in sizes.blocks], "update:Ours", of_block),
            Variation("update, span", spans, "update:Ours", of_span),
            Variation("update, N", list(sizes.memories), "update:Ours", of_memory)]


def tokens(config: ModelConfig, sizes: Sizes, count: int, threads: int) -> list[Variation]:
    """A token of one text; its past is full but where the text's length is varied."""
    lengths = [length * config.span for length in sizes.lengths]

    def settings(config: ModelConfig, length: int) -> dict[str, Any]:
        return generate.settings_of(config, length, count, threads)

    of_length = [settings(config, length) for length in lengths]
    of_span = [settings(replace(config, span_initial=share), config.span) for share in sizes.shares]
    of_memory = [settings(replace(config, memory=memory), config.span) for memory in sizes.memories]
    return [Variation("token, text", list(lengths), "generate:Ours", of_length),
            Variation("token, span", [config.span * share for share in sizes.shares], "generate:Ours", of_span),
            Variation("token, N", list(sizes.memories), "generate:Ours", of_memory)]


def exponents(sizes: Sequence[float], times: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """`of_time` and `of_growth`, None where they can't be fitted."""
    x, t = np.array(sizes, float), np.array([np.median(values) for values in times])
    # half of a size's repeats lie between its quartiles
    spread = max(np.subtract(*np.percentile(values, [75, 25])) for values in times)
    grown = t - t[0] > spread
    return {"of_time": slope(x[x > 0], t[x > 0]), "of_growth": slope(x[grown] - x[0], t[grown] - t[0])}


def slope(x: Any, y: Any) -> float | None:
    """The k of y = b x^k by least squares of the logarithms; None for fewer than two points."""
    if len(x) < 2:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def fit(variation: Variation, repeats: int, threads: int, environment: Mapping[str, str]) -> dict[str, Any]:
    """One quantity's record, its row printed."""
    with ExitStack() as stack:
        contenders = [stack.enter_context(Contender(f"{size:g}", variation.subject, settings, threads, environment))
                      for size, settings in zip(variation.sizes, variation.settings, strict=True)]
        times = list(measure.take_turns(contenders, repeats).values())
    found = exponents(variation.sizes, times)
    medians = "  ".join(f"{size:g}: {1e3 * np.median(values):.4g}"
                        for size, values in zip(variation.sizes, times, strict=True))
    told = ["-" if found[kind] is None else f"{found[kind]:.2f}" for kind in ("of_growth", "of_time")]
    click.echo(f"{variation.name:<14}{told[0]:>12}{told[1]:>12}   {medians}")
    return {"varied": variation.name, "sizes": variation.sizes, "settings": variation.settings, "seconds": times,
            "exponents": found}


@click.command()
@measure.repeats_option(9)
@measure.options()
def main(repeats: int, threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints fitted exponents, and milliseconds by size."""
    config, train, sizes = (SMALL, SMALL_TRAIN, QUICK) if quick else (MODEL, TRAIN, Sizes())
    made = measure.machine(threads, kernels)
    measure.print_machine(made)
    click.echo(f"{'exponent':<14}{'of growth':>12}{'of time':>12}   milliseconds")
    environment = measure.our_environments(kernels)[measure.OURS]
    variations = [*updates(config, train, sizes), *tokens(config, sizes, 10 if quick else 60, threads)]
    measure.write(path, made, [fit(variation, repeats, threads, environment) for variation in variations])


if __name__ == "__main__":
    main()
