"""check_vjp: a hand-written vector-Jacobian product against numerical derivatives of its forward."""

import os
from collections.abc import Callable, Collection
from typing import Any

import numpy as np

from refimpl.gradcheck import kinks as kinks_module
from refimpl.gradcheck import witness
from refimpl.gradcheck.agreement import refuse_disagreement, refuse_failure, strict
from refimpl.gradcheck.closer import Evidence, Settings
from refimpl.gradcheck.coordinates import Directions, Elements
from refimpl.gradcheck.errors import GradcheckError
from refimpl.gradcheck.experiment import COTANGENTS, Experiment, power_of_two, prepare
from refimpl.gradcheck.judging import FAIL, METHODS
from refimpl.gradcheck.report import Report, gravest
from refimpl.gradcheck.subject import Subject
from refimpl.gradcheck.verdicts import argument_report, unsteady_report

OFF = 16  # cotangents are scaled anew if the largest derivative is farther from 1 than this


def check_vjp(
    forward: Callable[..., Any], vjp: Callable[..., Any], arguments: Any, cotangent: Any = None, *,
    method: str = "complex-step", directions: str | int = "full", kinks: str = "refuse", controls: bool = True,
    seed: int = 0, save: str | os.PathLike[str] | None = None, zeros: Collection[str] = (),
) -> Report:
    """Holds vjp(cotangent, *arguments), one gradient for each argument, against derivatives of forward(*arguments).

    arguments: floating arrays, by name or in a list. forward returns an array or a tuple of them, and a cotangent has its
    structure; without one, signed Gaussian ones are drawn. Both are scaled so that the largest gradient is about 1.
    method: "complex-step" (forward carries complex128 through), "richardson" or "central" (real numbers alone).
    directions: "full", every element, or a number of random directions, along which an element may hide behind larger ones.
    kinks: "refuse" a point where one-sided slopes differ, or "bracket": the gradient must be one of them or between; the
    verdict there is KINK, or FAIL outside. controls: disturbs the gradient and must reject it. zeros: names of arguments
    that must have no influence; of others a gradient that is exactly 0 as its derivative is, is UNCHECKED. save: a file
    (.npz) or folder for the witness of a FAIL, which `replay` runs again. Raises GradcheckError for input that cannot be
    checked.
    """
    settings = _checked(Settings(method, directions, kinks, controls, seed, [str(name) for name in zeros]))
    with strict():
        subject = Subject(forward, vjp, arguments)
        for name in settings.zeros:
            if name not in subject.names:
                raise GradcheckError(f"zeros: expected names among {', '.join(subject.names)}, got {name!r}")
        if method == "complex-step":
            refuse_failure(subject)
        count = COTANGENTS if settings.directions == "full" else int(settings.directions)
        experiment = prepare(subject, cotangent, count, seed)
        if experiment.unsteady:
            entries = [unsteady_report(experiment, i, settings) for i in range(len(subject.names))]
        else:
            experiment, evidence = _measure(experiment, settings)
            entries = [argument_report(experiment, found, settings) for found in evidence]
    problems = (*subject.problems, *experiment.unsteady)
    verdict = FAIL if subject.problems else gravest(entry.report.verdict for entry in entries)
    told = "every element" if directions == "full" else f"{directions} random directions"
    path = None
    if save is not None and verdict == FAIL:
        row = next((entry.row for entry in entries if entry.report.verdict == FAIL), 0)
        path = witness.save(save, witness.Witness(
            dict(zip(subject.names, subject.point, strict=True)), subject.structured(experiment.cotangents[row]),
            settings._asdict(), {entry.report.name: entry.report.verdict for entry in entries}))
    return Report(verdict, tuple(entry.report for entry in entries), problems, method, told, path)


def replay(path: str | os.PathLike[str], forward: Callable[..., Any], vjp: Callable[..., Any]) -> Report:
    """Runs the check of a saved witness again. Raises GradcheckError if the file is none."""
    found = witness.load(path)
    return check_vjp(forward, vjp, dict(found.arguments), found.cotangent, **found.settings)


def _measure(experiment: Experiment, settings: Settings) -> tuple[Experiment, list[Evidence]]:
    """The derivative of every argument; the experiment, with its cotangents scaled by what the derivatives are."""
    evidence = []
    for number in range(len(experiment.exact)):
        found = kinks_module.find(experiment, number)
        if settings.method == "complex-step" and not found and experiment.exact[number].size:
            refuse_disagreement(experiment, number, experiment.direction(number, kinks_module.SEARCH))
        left_out = [kink.element for kink in found]
        coordinates: Elements | Directions = (
            Elements(experiment, number, left_out) if settings.directions == "full"
            else Directions(experiment, number, left_out, int(settings.directions)))
        estimate = coordinates.derivative(settings.method, range(coordinates.count))
        evidence.append(Evidence(number, found, coordinates, estimate))
    sizes = np.fmax.reduce([found.coordinates.sizes(found.estimate.value) for found in evidence])
    off = (sizes > OFF) | (sizes < 1 / OFF)
    factors = np.array([1 / power_of_two(float(size)) for size in np.where(off, sizes, 1)], experiment.subject.work)
    if (factors == 1).all():
        return experiment, evidence
    experiment = experiment.rescaled(factors)
    return experiment, [found.rescaled(experiment, factors) for found in evidence]


def _checked(settings: Settings) -> Settings:
    """Raises GradcheckError unless every setting is one that there is."""
    if settings.method not in METHODS:
        raise GradcheckError(f"method: expected one of {', '.join(METHODS)}, got {settings.method!r}")
    if settings.kinks not in ("refuse", "bracket"):
        raise GradcheckError(f"kinks: expected refuse or bracket, got {settings.kinks!r}")
    whole = isinstance(settings.directions, int | np.integer) and not isinstance(settings.directions, bool)
    if settings.directions != "full" and not (whole and int(settings.directions) >= 1):
        raise GradcheckError(f"directions: expected \"full\" or a number of 1 or more, got {settings.directions!r}")
    return settings
