"""What every benchmark does alike: contenders that agree and take turns, medians and ratios, the machine, options."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from contender import Contender

from refimpl import blas, cores
from refimpl.computing import computing
from refimpl.starts import kernels_option, store_folder

PAUSE = 0.05  # seconds in which the threads of the turn before, OpenMP's and BLAS's, stop waiting for work and sleep
OURS = "refimpl"
DEFAULT = "refimpl, BLAS's own kernels"


def repeats_option(default: int) -> Callable[[Any], Any]:
    """--repeats."""
    return click.option("--repeats", type=click.IntRange(1), default=default, show_default=True)


def options() -> Callable[[Any], Any]:
    """The options of every script: --threads, --blas-kernels, --quick, --json."""
    chosen = (
        click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of each contender."),
        kernels_option,
        click.option("--quick", is_flag=True, help="Small sizes: whether it runs, not how fast."),
        click.option("--json", "path", type=click.Path(path_type=Path), help="Write every figure here."),
    )

    def decorate(command: Any) -> Any:
        for option in reversed(chosen):
            command = option(command)
        return command

    return decorate


def our_environments(kernels: str) -> dict[str, dict[str, str]]:
    """Ours by name, with the variables of its process: the kernels that the commands would use, and BLAS's own if others."""
    choice = blas.choose(kernels, blas.this_machine(store_folder()))
    if choice.kernels is None:
        return {OURS: {}}
    return {OURS: {blas.VARIABLE: choice.kernels}, DEFAULT: {}}


def start(
    stack: ExitStack, subjects: Mapping[str, str], settings: Mapping[str, Any], threads: int, kernels: str
) -> list[Contender]:
    """The subjects by name, each in a process of its own; the one named OURS comes first, with each set of kernels."""
    ours = [(name, subjects[OURS], environment) for name, environment in our_environments(kernels).items()]
    peers = [(name, subject, {}) for name, subject in subjects.items() if name != OURS]
    return [stack.enter_context(Contender(name, subject, settings, threads, environment))
            for name, subject, environment in ours + peers]


def compare(
    subjects: Mapping[str, str], settings: Mapping[str, Any], tolerance: float, repeats: int, threads: int, kernels: str
) -> dict[str, Any]:
    """The record of one case: contenders that were found to agree, and the times of their turns."""
    with ExitStack() as stack:
        contenders = start(stack, subjects, settings, threads, kernels)
        errors = check_agreement(contenders, tolerance)
        times = summarize(take_turns(contenders, repeats))
        about = {contender.name: contender.about for contender in contenders}
    return {"settings": settings, "times": times, "largest_errors": errors, "contenders": about}


def first_memory(
    subjects: Mapping[str, str], settings: Mapping[str, Any], threads: int, kernels: str
) -> dict[str, dict[str, Any]]:
    """Of the first turn of each, in a fresh process."""
    with ExitStack() as stack:
        return {contender.name: contender.memory()
                for contender in start(stack, subjects, settings, threads, kernels)}


def check_agreement(contenders: Sequence[Contender], tolerance: float) -> dict[str, float]:
    """Raises SystemExit unless each result of each is within the tolerance of the first one's; returns the largest errors.

    The error is ‖theirs - ours‖ / ‖ours‖ of an array.
    """
    ours, largest = contenders[0].results(), {}
    for contender in contenders[1:]:
        theirs = contender.results()
        if theirs.keys() != ours.keys():
            raise SystemExit(f"{contender.name}: expected results {sorted(ours)}, got {sorted(theirs)}")
        for name, expected in ours.items():
            error = relative_error(theirs[name], expected)
            if not error <= tolerance:
                raise SystemExit(f"{contender.name}: expected {name} within {tolerance:.0e} of ours, got {error:.1e}: "
                                 "nothing was timed")
            largest[contender.name] = max(error, largest.get(contender.name, 0.0))
    return largest


def relative_error(found: Any, expected: Any) -> float:
    """‖found - expected‖ / ‖expected‖, infinite if the shapes differ; 0 where both are 0."""
    if found.shape != expected.shape:
        return np.inf
    difference = np.linalg.norm(np.subtract(found, expected, dtype="float64"))
    return float(difference / np.linalg.norm(expected.astype("float64"))) if difference else 0.0


def take_turns(contenders: Sequence[Contender], repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each turn, after one turn of each that warms up; what else the machine does slows all alike."""
    found: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for repeat in range(-warm_up, repeats):
        for contender in contenders:
            time.sleep(PAUSE)
            seconds = contender.seconds()
            if repeat >= 0:
                found[contender.name].append(seconds)
    return found


def summarize(times: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """For each: every time, median, least, largest, and two ratios to the first one's.

    ratio: the median over the repeats; ratio_of_least: of the least times, which a busy machine changes less.
    """
    first = next(iter(times.values()))
    return {name: {"seconds": list(values), "median": statistics.median(values), "least": min(values),
                   "largest": max(values), "ratio_of_least": min(values) / min(first),
                   "ratio": statistics.median(theirs / ours for theirs, ours in zip(values, first, strict=True))}
            for name, values in times.items()}


def print_times(case: str, summary: Mapping[str, Mapping[str, Any]], unit: float = 1e-3, suffix: str = "ms") -> None:
    """A row for each: median, spread, and how many times ours it takes: in the median, and the least time by the least."""
    for name, row in summary.items():
        median, least, largest = (row[key] / unit for key in ("median", "least", "largest"))
        spread = f"({least:.1f}-{largest:.1f})"
        click.echo(f"{case:<26}{name:<30}{median:>10.1f} {suffix}  {spread:<20}{row['ratio']:>7.2f} x  "
                   f"({row['ratio_of_least']:.2f} x)")


def print_memory(case: str, memory: Mapping[str, Mapping[str, Any]]) -> None:
    """A row for each: what a turn's peak adds to what was resident before, as a multiple of the first one's, and faults."""
    least = _added(next(iter(memory.values())))
    for name, row in memory.items():
        faults = f"({row['page_faults']:,} page faults)"
        ratio = _added(row) / least if least else math.nan
        click.echo(f"{case:<26}{name:<30}{_added(row) / 1e6:>10.1f} MB  {faults:<20}{ratio:>7.2f} x")


def _added(row: Mapping[str, Any]) -> int:
    return row["peak"] - row["before"]


def machine(threads: int, kernels: str) -> dict[str, Any]:
    """What the figures depend on beside the contenders' own libraries."""
    about = computing()
    return {"processor": blas.this_machine(store_folder()).processor, "architecture": platform.machine(),
            "cores": cores.available(), "threads": threads, "system": platform.system(),
            "python": platform.python_version(), "numpy": about["numpy"], "blas": about["blas"],
            "kernels": blas.choose(kernels, blas.this_machine(store_folder())).reason,
            "load": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None}


def print_machine(made: Mapping[str, Any]) -> None:
    """One line."""
    click.echo(", ".join(f"{name} {value}" for name, value in made.items()))


def write(path: Path | None, made: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Every figure as JSON, if a file was named."""
    if path:
        path.write_text(json.dumps({"made": made, "rows": rows}, indent=1) + "\n", encoding="utf-8")
