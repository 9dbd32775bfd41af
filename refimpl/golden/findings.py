"""What a whole run says: which known bugs, and which other conventions, its wrong results come from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from refimpl.golden.diagnose import Match
from refimpl.golden.verdicts import DTYPES, MISMATCH, PASS, Run


class Finding(NamedTuple):
    """A bug or a convention: the failing cases that it reproduces, of how many, and how closely, the worst of them.

    `outputs`: of them, those whose gradients it does not reproduce. `against`: cases that passed although the bug would have
    failed them. `exact`: it reproduces the cases; if not, it is only the nearest.
    """

    kind: str
    name: str
    sentence: str
    cases: tuple[str, ...]
    failing: int
    outputs: int
    against: int
    distance: float
    exact: bool


def findings(run: Run, kind: str) -> list[Finding]:
    """Of a kind ("bug", "convention"), the most telling first: what reproduces most cases, contradicts fewest, is nearest.

    Where nothing is reproduced: the bug that is the nearest to most cases.
    """
    failing = sum(verdict.verdict == MISMATCH for verdict in run.verdicts)
    matched: dict[str, dict[str, Match]] = {}
    for case, matches in run.matches.items():
        for match in matches:
            if match.kind == kind and (match.matches or match.outputs):
                matched.setdefault(match.name, {})[case] = match
    exact = bool(matched)
    if not exact and kind == "bug":
        for case, matches in run.matches.items():
            nearest = next((match for match in matches if match.kind == kind), None)
            if nearest is not None:
                matched.setdefault(nearest.name, {})[case] = nearest
    passed = [run.entries[verdict.id] for verdict in run.verdicts if verdict.verdict == PASS]
    found = [_finding(by_case, failing, _against(name, passed, run.dtype), exact) for name, by_case in matched.items()]
    return sorted(found, key=lambda finding: (
        -len(finding.cases), finding.outputs, finding.against, finding.distance))


def _finding(by_case: Mapping[str, Match], failing: int, against: int, exact: bool) -> Finding:
    first = next(iter(by_case.values()))
    distance = max(match.distance for match in by_case.values())
    outputs = sum(match.outputs for match in by_case.values())
    return Finding(first.kind, first.name, first.sentence, tuple(by_case), failing, outputs, against, distance, exact)


def _against(name: str, passed: list[Mapping[str, Any]], dtype: str) -> int:
    """Passed cases that the bug would have failed."""
    at = DTYPES.index(dtype)
    return sum(entry["catches"].get(name, [0] * len(DTYPES))[at] > 0 for entry in passed)
