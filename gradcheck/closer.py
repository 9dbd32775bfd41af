"""What was measured of one argument, and a closer look at it where it seems to be wrong."""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck import kinks
from refimpl.gradcheck.coordinates import Directions, Elements
from refimpl.gradcheck.differences import SPACING, Estimate, noise_of
from refimpl.gradcheck.experiment import Experiment

CLOSER = 8  # how many of the worst columns are looked at again
SPACING_FLOAT32 = 3e-3  # as far above its roundoff as can be without reaching what is no longer near the point


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


def closer(experiment: Experiment, evidence: Evidence, noise: Any, settings: Settings) -> tuple[Evidence, Any]:
    """The worst columns again: kinks of their own, left out; and the noise that moves by roundoff do not show."""
    coordinates, (value, error) = evidence.coordinates, evidence.estimate
    noise = rolled(experiment, evidence, noise, settings)
    if isinstance(coordinates, Directions) or settings.method != "complex-step":
        return evidence, noise
    late = {c: kinks.closely(experiment, evidence.number, int(coordinates.positions[c]), noise[:, c])
            for c in _worst(experiment, evidence, noise)}
    late = {c: kink for c, kink in late.items() if kink.outputs}
    kept = np.setdiff1d(np.arange(coordinates.count), list(late))
    all_kinks = [*evidence.kinks, *late.values()]
    remaining = Elements(experiment, evidence.number, [kink.element for kink in all_kinks])
    return Evidence(evidence.number, all_kinks, remaining, Estimate(value[:, kept], error[:, kept])), noise[:, kept]


def rolled(experiment: Experiment, evidence: Evidence, noise: Any, settings: Settings) -> Any:
    """The noise, with that of roundings which a move by roundoff does not roll anew.

    In a saturated softmax a = 1 - 5e-9 is rounded to the same number all around the point, so that 1 - a, and gradients
    that hang on it, are off by the same 1e-16 at every repeat. Fifth differences over longer moves show it: of the whole
    gradient, and of the derivative by the worst columns; the others have at least the usual noise of these.
    """
    coordinates, number, moves = evidence.coordinates, evidence.number, experiment.moves
    x = experiment.subject.point[number]
    gradient, value = coordinates.project(experiment.gradients[number]), evidence.estimate.value
    spacing = SPACING_FLOAT32 if x.dtype == np.float32 else SPACING

    def gradients(t: Any) -> Any:
        point = [(a + t * moves[n]).astype(a.dtype) for n, a in enumerate(experiment.subject.point)]
        found = [experiment.subject.gradients(row, point)[number] for row in experiment.cotangents]
        return coordinates.project(np.stack(found).astype(value.dtype)).reshape(-1)

    noise = np.fmax(noise, noise_of(gradients, gradient.reshape(-1), spacing).reshape(noise.shape))
    columns = _worst(experiment, evidence, noise)

    def derivatives(t: Any) -> Any:
        point = [a + t * moves[n] for n, a in enumerate(experiment.exact)]
        return coordinates.derivative(settings.method, columns, point).value.reshape(-1)

    found = noise_of(derivatives, value[:, columns].reshape(-1)).reshape(len(value), -1)
    others = np.setdiff1d(np.arange(coordinates.count), columns)
    noise[:, columns] = np.fmax(noise[:, columns], found)
    noise[:, others] = np.fmax(noise[:, others], np.median(found, axis=1, keepdims=True))
    return noise


def _worst(experiment: Experiment, evidence: Evidence, noise: Any) -> list[int]:
    """The columns farthest off in units of their noise, and those farthest off."""
    distance = np.abs(evidence.coordinates.project(experiment.gradients[evidence.number]) - evidence.estimate.value)
    by_noise = distance / np.fmax(noise, np.finfo(distance.dtype).tiny)
    return list(dict.fromkeys(int(c) for order in (by_noise, distance) for c in np.argsort(-order.max(0))[:CLOSER]))
