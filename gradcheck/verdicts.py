"""From what was measured of one argument to its entry in the report."""

from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck import controls, kinks
from refimpl.gradcheck.agreement import arbitrate
from refimpl.gradcheck.closer import Evidence, Settings, closer
from refimpl.gradcheck.coordinates import Directions
from refimpl.gradcheck.differences import Estimate
from refimpl.gradcheck.experiment import Experiment
from refimpl.gradcheck.judging import EXCUSED, FAIL, KINK, NOTHING, PASS, UNCHECKED, Judgement, judge, limits
from refimpl.gradcheck.report import ArgumentReport, KinkReport


class Entry(NamedTuple):
    """An argument's part of the report, and which cotangent decided it."""

    report: ArgumentReport
    row: int


def argument_report(experiment: Experiment, evidence: Evidence, settings: Settings) -> Entry:
    """Judges one argument; a failure only after a closer look at its worst columns."""
    gradients = experiment.gradients[evidence.number]
    limit = limits(settings.method, experiment.subject.point[evidence.number].dtype)
    noise = evidence.noise(experiment.spread)
    judged = judge(evidence.coordinates.project(gradients), evidence.estimate.value, noise, limit)
    if (judged.verdict == FAIL or judged.reason == EXCUSED) and np.isfinite(gradients).all():
        evidence, noise = closer(experiment, evidence, noise, settings)
        judged = judge(evidence.coordinates.project(gradients), evidence.estimate.value, noise, limit)
        if judged.verdict == FAIL and judged.worst and settings.method == "complex-step":
            arbitrate(experiment, evidence.number, evidence.coordinates.direction(judged.worst[1]),
                      evidence.coordinates.rows_of(*judged.worst), evidence.coordinates.project(gradients)[judged.worst],
                      evidence.estimate.value[judged.worst])
    value, project = evidence.estimate.value, evidence.coordinates.project
    flat = gradients.reshape(len(gradients), -1)
    outcome = controls.NONE if not settings.controls else controls.outcome(
        flat, limit.factor, lambda wrong: project(wrong.reshape(gradients.shape)),
        lambda wrong: judge(wrong, value, noise, limit).verdict)
    found = [kink for each in evidence.kinks for kink in _told(experiment, evidence.number, each, settings)]
    if experiment.subject.names[evidence.number] in settings.zeros:
        judged = _declared(judged)
    return _entry(experiment, evidence, judged, outcome, found)


def _declared(judged: Judgement) -> Judgement:
    """Of an argument declared to have no influence: exactly 0 on both sides, and nothing else, is right."""
    if judged.reason == NOTHING:
        return judged._replace(verdict=PASS, reason="exactly 0, as declared")
    return judged._replace(verdict=FAIL, reason="declared in zeros, but not exactly 0")


def unsteady_report(experiment: Experiment, number: int, settings: Settings) -> Entry:
    """The entry of an argument that can't be checked because results differ from run to run."""
    limit = limits(settings.method, experiment.subject.point[number].dtype)
    judged = Judgement(UNCHECKED, np.nan, np.nan, limit.norm, None, "; ".join(experiment.unsteady))
    nothing = Evidence(number, [], Directions(experiment, number, [], 0), Estimate(np.zeros((1, 0)), np.zeros((1, 0))))
    return _entry(experiment, nothing, judged, controls.NONE, [])


def _told(experiment: Experiment, number: int, kink: kinks.Kink, settings: Settings) -> list[KinkReport]:
    """A kink by output; with `bracket`, whether the gradient of that output alone lies among the slopes.

    The outputs without a kink there are held to their slopes together, and told of only if the gradient is wrong.
    """
    x, sides = experiment.exact[number], kink.sides
    index = tuple(int(i) for i in np.unravel_index(kink.element, x.shape)) if x.shape else ()

    def told(name: str, row: Any) -> KinkReport:
        left, right = float(row @ sides.left), float(row @ sides.right)
        if settings.kinks != "bracket":
            return KinkReport(index, name, left, right, None, None)
        gradient = float(experiment.subject.gradients(row, experiment.subject.point)[number].reshape(-1)[kink.element])
        rounding = limits(settings.method, experiment.subject.point[number].dtype).norm
        tolerance = float(np.abs(row) @ (sides.tolerance + rounding * np.fmax(np.abs(sides.left), np.abs(sides.right))))
        among = min(left, right) - tolerance <= gradient <= max(left, right) + tolerance
        return KinkReport(index, name, left, right, gradient, among)

    found = [told(experiment.subject.output_name(output), row)
             for output, row in zip(kink.outputs, np.eye(experiment.value.size, dtype=x.dtype)[kink.outputs], strict=True)]
    others = experiment.cotangents[0].copy()
    others[kink.outputs] = 0
    return found + [rest for rest in [told("the other outputs", others)] if rest.among is False]


def _entry(
    experiment: Experiment, evidence: Evidence, judged: Judgement, outcome: controls.Outcome, found: list[KinkReport]
) -> Entry:
    """Puts an argument's findings together; outside a kink's slopes is FAIL, a control that passes leaves UNCHECKED."""
    number, verdict, reason = evidence.number, judged.verdict, judged.reason
    row, column = judged.worst or (0, 0)
    gradient, derivative, worst = np.nan, np.nan, None
    if judged.worst:
        gradient = float(evidence.coordinates.project(experiment.gradients[number])[judged.worst])
        derivative, worst = float(evidence.estimate.value[judged.worst]), evidence.coordinates.index(column)
    outside = [kink for kink in found if kink.among is False]
    if verdict != FAIL and outside:
        verdict, reason, worst = FAIL, "the gradient lies outside the slopes at a kink", outside[0].index
        gradient, derivative = outside[0].gradient or 0.0, np.nan
    elif verdict != FAIL and found:
        verdict, reason = KINK, "the point lies on a kink: there is no gradient to compare with"
    elif verdict == PASS and outcome.missed:
        verdict, reason = UNCHECKED, f"no power here: the gradient {', '.join(outcome.missed)} would pass, too"
    argument = experiment.subject.point[number]
    return Entry(ArgumentReport(
        experiment.subject.names[number], argument.shape, str(argument.dtype), verdict, judged.relative_error,
        judged.noise_floor, judged.limit, worst, gradient, derivative, outcome.caught, outcome.planted, outcome.missed,
        tuple(found), reason), evidence.coordinates.rows_of(row, column))
