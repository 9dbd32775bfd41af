"""Makes the vectors: expected values in extended precision, their bounds, and which known bugs each case catches."""

import json
import platform
import shutil
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import __version__
from refimpl.functions import Results, evaluate
from refimpl.golden import bounds, planted
from refimpl.golden.cases import Case, all_cases
from refimpl.golden.vectors import BOUND, SCHEMA, VERSION, described, stem, tensors_to_bytes
from refimpl.golden.verdicts import tolerance

FLAGS = Path(__file__).with_name("flags.toml")
SEPARATION = 10  # a bug counts as caught in a dtype if it is off by this many bounds
LARGEST = 1e12  # of separations: beyond it, and where a result is missing or not finite


def generate(folder: Path, tell: Callable[[str], None]) -> None:
    """Writes every group anew into `folder`. Raises ValueError if a case catches no bug, or a bug is caught by none."""
    chosen, notes = all_cases(), tomllib.loads(FLAGS.read_text(encoding="utf-8"))
    results = {case.id: bounds.expected(case) for case in chosen if not case.refused}
    caught = catches(chosen, results, responses := {
        case.id: bounds.responses(case, results[case.id]) for case in chosen if not case.refused})
    tell(f"{len(chosen)} cases, {sum(map(len, caught.values()))} pairs of a case and a bug that it catches")
    check_power(chosen, caught)
    for group in dict.fromkeys(case.group for case in chosen):
        shutil.rmtree(folder / group, ignore_errors=True)
        (folder / group).mkdir(parents=True)
        written = [_write(case, results.get(case.id), responses.get(case.id), caught, folder / group)
                   for case in chosen if case.group == group]
        named = sorted({flag for case in chosen if case.group == group for flag in case.flags})
        content = {
            "schema": SCHEMA, "vectors": VERSION, "group": group, "factor": bounds.FACTOR, "roundoff": bounds.ROUNDOFF,
            "smallest": bounds.SMALLEST, "checked": bounds.CHECKED, "notes": {flag: notes[flag] for flag in named},
            "cases": written}
        _write_json(folder / group / "manifest.json", content)
    _write_json(folder / "generator.json", {
        "refimpl": __version__, "numpy": np.__version__, "python": platform.python_version(),
        "platform": platform.machine(), "longdouble_bits": int(np.finfo(np.longdouble).nmant)})


def catches(
    chosen: list[Case], results: Mapping[str, Results], responses: Mapping[str, Results]
) -> dict[str, dict[str, dict[str, float]]]:
    """case -> bug -> dtype -> by how many bounds the bug's results are off, where that is 10 or more."""
    found: dict[str, dict[str, dict[str, float]]] = {case.id: {} for case in chosen}
    for bug in planted.bugs().values():
        with planted.planted(bug):
            for case in chosen:
                if case.refused:
                    continue
                margins = separations(case, results[case.id], responses[case.id])
                clear = {dtype: margin for dtype, margin in margins.items() if margin >= SEPARATION}
                if clear:
                    found[case.id][bug.id] = clear
    return found


def separations(case: Case, results: Results, limits: Results) -> dict[str, float]:
    """By how many bounds, in each dtype, what the package computes now is off: the largest over checked elements."""
    try:
        with np.errstate(all="ignore"):
            now = evaluate(case.function, case.settings, case.inputs)
    except Exception:  # a bug may crash: that is caught, too
        return dict.fromkeys(bounds.ROUNDOFF, LARGEST)
    largest = dict.fromkeys(bounds.ROUNDOFF, 0.0)
    for name, y in results.items():
        if name not in now or now[name].shape != y.shape or not np.isfinite(now[name]).all():
            return dict.fromkeys(bounds.ROUNDOFF, LARGEST)
        for dtype in largest:
            limit, checked = tolerance(y, limits[name], dtype)
            off = np.where(checked, np.abs(now[name] - y) / limit, 0)
            largest[dtype] = min(LARGEST, max(largest[dtype], float(off.max(initial=0))))
    return {dtype: float(f"{margin:.3g}") for dtype, margin in largest.items()}


def check_power(chosen: list[Case], caught: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError unless every case catches some bug, and every bug is caught in each of its groups."""
    idle = [case.id for case in chosen if not case.refused and not caught[case.id]]
    missed = [f"{bug.id} in {group}" for bug in planted.bugs().values() for group in bug.groups
              if not any(bug.id in caught[case.id] for case in chosen if case.group == group)]
    if idle or missed:
        raise ValueError(f"expected every case to catch a planted bug and every bug to be caught; cases that catch none: "
                         f"{', '.join(idle) or 'none'}; bugs that pass: {', '.join(missed) or 'none'}")


def _write(
    case: Case, results: Results | None, limits: Results | None, caught: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    """A case's files; its manifest entry."""
    entry: dict[str, Any] = {
        "id": case.id, "function": case.function, "convention": case.convention, "flags": list(case.flags),
        "result": "invalid" if case.refused else "valid", "settings": case.settings, "catches": caught[case.id]}
    files = {"inputs": dict(case.inputs)}
    if results is not None and limits is not None:
        files["expected"] = {name: np.asarray(y, np.float64) for name, y in results.items()}
        files["expected"] |= {BOUND + name: limit for name, limit in limits.items()}
    for kind, tensors in files.items():
        data = tensors_to_bytes(tensors)
        (folder / f"{stem(case.id)}.{kind}.safetensors").write_bytes(data)
        entry[kind] = described(data, tensors)
    return entry


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
