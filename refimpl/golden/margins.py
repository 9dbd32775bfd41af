"""Which planted bugs each golden case catches, and by how much."""

import warnings
from collections.abc import Mapping

import numpy as np

from refimpl.functions import Results, evaluate
from refimpl.golden import planted
from refimpl.golden.bounds import in_dtype
from refimpl.golden.cases import Case
from refimpl.golden.verdicts import DTYPES, tolerance

SEPARATION = 10  # a bug counts as caught in a dtype if it is off by this many bounds
LARGEST = 1e12  # of margins: beyond it, and where a result is missing or not finite
SEEN = 5  # what is below it in float64, with its roundoff, is below SEPARATION
CLEAR = 1e8  # a margin in float64 of which its own roundoff changes no digit that is written
OVERFLOWN = 100  # how much farther off than in extended precision a bug is in float32 if it overflows there
OF_OPTIMIZERS = ("optimizers", "config", "parameters")
OF_THE_MODEL = ("layers", "model", "inputs", "parameters", "config", "arrays")

Catches = dict[str, list[float]]  # bug -> by how many bounds it is off in each of DTYPES; 0 where that is below 10


def catches(cases: list[Case], results: Mapping[str, Results], responses: Mapping[str, Results]) -> dict[str, Catches]:
    """By case: the planted bugs whose results are off by 10 bounds or more in some dtype."""
    valid = [case for case in cases if not case.refused]
    limits = {case.id: limits_of(results[case.id], responses[case.id]) for case in valid}
    found: dict[str, Catches] = {case.id: {} for case in cases}
    for bug in planted.bugs().values():
        seeing = [case for case in valid if may_see(case.function, bug)]
        if seeing:
            with planted.planted(bug):
                for case in seeing:
                    off = margins(case, results[case.id], limits[case.id])
                    if any(off):
                        found[case.id][bug.id] = off
    return found


def may_see(function: str, bug: planted.Bug) -> bool:
    """Whether the bug stands in a file that the function may use: spares a call that could show nothing."""
    used = OF_OPTIMIZERS if function == "optimizer" else OF_THE_MODEL
    return any(change.module.partition(".")[0] in used for change in bug.changes)


def limits_of(results: Results, responses: Results) -> dict[str, Results]:
    """By dtype: each element's bound, infinite where it is not checked."""
    found: dict[str, Results] = {}
    for dtype in DTYPES:
        both = {name: tolerance(y, responses[name], dtype) for name, y in results.items()}
        found[dtype] = {name: np.where(checked, limit, np.inf) for name, (limit, checked) in both.items()}
    return found


def margins(case: Case, results: Results, limits: Mapping[str, Results]) -> list[float]:
    """By how many bounds, in each of DTYPES, what the package computes now is off, the largest element; 0 below 10.

    Computed in float64, and anew in extended precision where roundoff would show in the digits. A bug by which float32
    overflows counts as what it is there, in the smaller dtypes too.
    """
    off = _off(case, results, limits, "float64", DTYPES)
    if SEEN < off[0] < CLEAR:
        off = _off(case, results, limits, "longdouble", DTYPES)
    if "overflow" in case.flags:
        single = _off(case, results, limits, "float32", DTYPES[1:])
        off[1:] = [lost if lost > OVERFLOWN * margin else margin for lost, margin in zip(single, off[1:], strict=True)]
    return [float(f"{min(LARGEST, margin):.2g}") if margin >= SEPARATION else 0 for margin in off]


def _off(
    case: Case, results: Results, limits: Mapping[str, Results], computed_in: str, dtypes: tuple[str, ...]
) -> list[float]:
    """The same with all digits; LARGEST if an error is raised, a result is left out, or one is not finite."""
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings(action="ignore"):
            now = evaluate(case.function, case.settings, in_dtype(case.inputs, computed_in))
    except Exception:  # a bug may crash: that is caught, too
        return [LARGEST] * len(dtypes)
    if not all(name in now and now[name].shape == y.shape and np.isfinite(now[name]).all() for name, y in results.items()):
        return [LARGEST] * len(dtypes)
    with np.errstate(over="ignore"):
        distance = {name: np.abs(now[name] - y).astype(np.float64) for name, y in results.items()}
        return [max(float((distance[name] / limits[dtype][name]).max(initial=0)) for name in results) for dtype in dtypes]


def check_power(cases: list[Case], caught: Mapping[str, Catches]) -> None:
    """Raises ValueError unless every case catches some bug, and every bug of the group is caught by some case."""
    group = cases[0].group
    idle = [case.id for case in cases if not case.refused and not caught[case.id]]
    missed = [bug.id for bug in planted.bugs().values()
              if group in bug.groups and not any(bug.id in caught[case.id] for case in cases)]
    if idle or missed:
        raise ValueError(f"{group}: expected every case to catch a planted bug and every bug to be caught; cases that catch "
                         f"none: {', '.join(idle) or 'none'}; bugs that pass: {', '.join(missed) or 'none'}")
