"""Which known bug, or which other convention, a wrong result reproduces."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.functions import Results, evaluate
from refimpl.golden import planted
from refimpl.golden.conventions import CONVENTIONS, in_convention
from refimpl.golden.vectors import Stored
from refimpl.golden.verdicts import tolerance

NEAREST = 3  # how many are named where none matches


class Match(NamedTuple):
    """A bug or a convention, and how far its values are from what came: in units of the bound, the worst element.

    `matches`: every element is within the bound. `kind`: "bug" or "convention".
    """

    kind: str
    name: str
    sentence: str
    off: float
    matches: bool


def diagnose(case: Stored, got: Mapping[str, Any], dtype: str) -> list[Match]:
    """What reproduces the wrong results of a case, nearest first: all that match, or else the three nearest."""
    found = []
    for name, convention in CONVENTIONS.items():
        settings = in_convention(case.entry, name)
        if settings != case.entry["settings"]:
            found.append(_match("convention", name, convention.sentence, _values(case, settings), case, got, dtype))
    for bug in planted.bugs().values():
        if bug.id in case.entry["catches"]:
            with planted.planted(bug):
                values = _values(case, case.entry["settings"])
            found.append(_match("bug", bug.id, bug.sentence, values, case, got, dtype))
    found = sorted((match for match in found if np.isfinite(match.off)), key=lambda match: match.off)
    exact = [match for match in found if match.matches]
    return exact or found[:NEAREST]


def _values(case: Stored, settings: Mapping[str, Any]) -> Results | None:
    """What the package computes now; None if it does not."""
    try:
        with np.errstate(all="ignore"):
            return evaluate(case.entry["function"], settings, case.inputs)
    except Exception:  # a planted bug may crash
        return None


def _match(
    kind: str, name: str, sentence: str, values: Results | None, case: Stored, got: Mapping[str, Array], dtype: str
) -> Match:
    """How far what came is from these values, with the bounds of the right ones."""
    worst = 0.0 if values is not None else np.inf
    for result, y in case.results.items():
        if values is None or result not in values or result not in got:
            worst = np.inf
            break
        if not np.shape(got[result]) == values[result].shape == y.shape:
            worst = np.inf
            break
        limit, _ = tolerance(y, case.bounds[result], dtype)
        off = np.abs(np.asarray(got[result], np.float64) - values[result]) / limit
        worst = max(worst, float(np.where(np.isnan(off), np.inf, off).max(initial=0)))
    return Match(kind, name, sentence, worst, worst <= 2)  # the bounds of both sides
