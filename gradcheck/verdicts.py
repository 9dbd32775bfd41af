"""From what was measured of one argument to its entry in the report."""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck import controls, kinks
from refimpl.gradcheck.agreement import arbitrate
from refimpl.gradcheck.coordinates import Directions, Elements
from refimpl.gradcheck.differences import Estimate
from refimpl.gradcheck.experiment import Experiment, stream
from refimpl.gradcheck.judging import FAIL, KINK, NOTHING, PASS, UNCHECKED, Judgement, judge, limits
from refimpl.gradcheck.report import ArgumentReport, KinkReport
from refimpl.gradcheck.subject import shaken

CLOSER = 8  # how many of the worst columns are looked at again where a check fails
AGAIN = 3


class Settings(NamedTuple):
    """As check_vjp takes them."""

    method: str
    directions: str | int
    kinks: str
    controls: bool
    seed: int
    zeros: Collection[str] = ()


class Evidence(NamedTuple):
    """What was measured of one argument: its elements at kinks, and the derivative by all others."""

    number: int
    kinks: list[kinks.Kink]
    coordinates: Elements | Directions
    estimate: Estimate

    def rescaled(self, experiment: Experiment, factors: Any) -> "Evidence":
        """The same after the cotangents were multiplied by `factors`."""
        self.coordinates.experiment = experiment
        return self._replace(estimate=Estimate(*(self.coordinates.scaled(a, factors) for a in self.estimate)))

    def noise(self, spread: list[list[Any]]) -> Any:
        """How far from each other a right gradient and the derivative may be by rounding and the method's error."""
        moves = [np.abs(self.coordinates.project(moved[self.number])) for moved in spread]
        return self.estimate.error + np.max(moves, axis=0, initial=0)


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
    if judged.verdict == FAIL and np.isfinite(gradients).all():
        evidence, noise = _closer(experiment, evidence, noise, settings)
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


def _closer(experiment: Experiment, evidence: Evidence, noise: Any, settings: Settings) -> tuple[Evidence, Any]:
    """The worst columns again: kinks of their own, left out; noise of gradient and derivative over more repeats."""
    coordinates, (value, error) = evidence.coordinates, evidence.estimate
    distance = np.abs(coordinates.project(experiment.gradients[evidence.number]) - value)
    noise = np.fmax(noise, evidence.noise(experiment.wider_spread))
    by_column = (distance / np.fmax(noise, np.finfo(value.dtype).tiny)).max(0), distance.max(0)
    columns = list(dict.fromkeys(int(c) for order in by_column for c in np.argsort(-order)[:CLOSER]))
    for i in range(AGAIN):
        point = shaken(experiment.exact, stream(settings.seed, 4, i), experiment.subject.work)
        moved = coordinates.derivative(settings.method, columns, point).value
        noise[:, columns] = np.fmax(noise[:, columns], np.abs(moved - value[:, columns]))
    if isinstance(coordinates, Directions):
        return evidence, noise
    late = {c: kinks.at(experiment, evidence.number, int(coordinates.positions[c])) for c in columns}
    late = {c: kink for c, kink in late.items() if kink.outputs}
    kept = np.setdiff1d(np.arange(coordinates.count), list(late))
    all_kinks = [*evidence.kinks, *late.values()]
    remaining = Elements(experiment, evidence.number, [kink.element for kink in all_kinks])
    return Evidence(evidence.number, all_kinks, remaining, Estimate(value[:, kept], error[:, kept])), noise[:, kept]


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
