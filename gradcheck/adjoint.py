"""check_jvp_vjp: two hand-written products with the same Jacobian against each other, without any numerical derivative."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refimpl.gradcheck.agreement import strict
from refimpl.gradcheck.closer import Evidence, Settings
from refimpl.gradcheck.coordinates import Directions
from refimpl.gradcheck.differences import Estimate
from refimpl.gradcheck.errors import GradcheckError
from refimpl.gradcheck.experiment import REPEATS, Experiment, prepare, stream
from refimpl.gradcheck.judging import FAIL
from refimpl.gradcheck.report import Report, gravest
from refimpl.gradcheck.subject import Subject, named_arrays, shaken
from refimpl.gradcheck.verdicts import argument_report, unsteady_report

METHOD = "jvp"


def check_jvp_vjp(
    jvp: Callable[..., Any], vjp: Callable[..., Any], arguments: Any, *, directions: int = 8, controls: bool = True,
    seed: int = 0,
) -> Report:
    """⟨dy, J u⟩ = ⟨Jᵀ dy, u⟩ for each argument, relative, along random directions u, with a random dy for each.

    jvp(tangents, *arguments) -> J u in forward's structure, tangents being a tuple with one array for each argument, or the
    array itself if there is one argument; vjp(cotangent, *arguments) -> Jᵀ dy. Verdicts and controls as of check_vjp; an
    error that both products share is not seen. Raises GradcheckError for input that cannot be checked.
    """
    if isinstance(directions, bool) or not isinstance(directions, int) or directions < 1:
        raise GradcheckError(f"directions: expected a number of 1 or more, got {directions!r}")
    with strict():
        tangents = _Tangents(jvp, named_arrays(arguments)[1], seed)
        subject = Subject(tangents.anywhere, vjp, arguments, "jvp")
        experiment = prepare(subject, None, directions, seed)
        settings = Settings(METHOD, directions, "refuse", controls, seed)
        entries = []
        for number in range(len(subject.names)):
            if experiment.unsteady:
                entries.append(unsteady_report(experiment, number, settings))
                continue
            coordinates = _Along(experiment, number, directions, tangents)
            estimate = coordinates.derivative(METHOD, range(directions))
            entries.append(argument_report(experiment, Evidence(number, [], coordinates, estimate), settings))
    subject.problems |= tangents.problems
    verdict = FAIL if subject.problems else gravest(entry.report.verdict for entry in entries)
    told = f"{directions} random directions"
    return Report(verdict, tuple(e.report for e in entries), (*subject.problems, *experiment.unsteady), METHOD, told)


class _Tangents:
    """jvp, called on copies of its tangents."""

    def __init__(self, jvp: Callable[..., Any], point: list[Any], seed: int) -> None:
        self.jvp, self.problems = jvp, dict[str, None]()
        self.random = [stream(seed, 6, i).standard_normal(a.shape) for i, a in enumerate(point)]

    def anywhere(self, *arguments: Any) -> Any:
        """J u for one random tangent of all arguments: for the structure of the result, and whether it repeats."""
        return self(self.random, arguments)

    def __call__(self, tangents: Sequence[Any], arguments: Sequence[Any]) -> Any:
        given = tuple(t.astype(a.dtype) for t, a in zip(tangents, arguments, strict=True))
        kept = [t.copy() for t in given]
        found = self.jvp(given[0] if len(given) == 1 else given, *arguments)
        if not all(np.array_equal(old, new) for old, new in zip(kept, given, strict=True)):
            self.problems["jvp changes its tangents in place"] = None
        return found


class _Along(Directions):
    """Random directions in one argument, the derivative from jvp in the argument's own dtype."""

    def __init__(self, experiment: Experiment, number: int, count: int, tangents: _Tangents) -> None:
        super().__init__(experiment, number, [], count)
        self.tangents = tangents
        x = experiment.subject.point[number]
        self.directions = [u.astype(x.dtype).astype(u.dtype) for u in self.directions]

    def derivative(self, method: str, columns: Any, point: list[Any] | None = None) -> Estimate:
        """The derivatives along these directions, (1, columns), and how far rounding moves them."""
        subject, rows = self.experiment.subject, self.experiment.cotangents
        dtype = subject.point[self.number].dtype
        found = []
        for i in columns:
            values = []
            for repeat in range(REPEATS + 1):
                random = stream(self.experiment.seed, 7, repeat)
                at, (u,) = (shaken(a, random, dtype) if repeat else a for a in (subject.point, [self.directions[i]]))
                tangents = [u if n == self.number else np.zeros(a.shape) for n, a in enumerate(at)]
                values.append(rows[self.rows_of(0, i)] @ subject.called_with(lambda *a, t=tangents: self.tangents(t, a), at))
            found.append((values[0], np.abs(np.array(values) - values[0]).max()))
        return Estimate(*(np.array(parts).reshape(1, -1) for parts in zip(*found, strict=True)))
