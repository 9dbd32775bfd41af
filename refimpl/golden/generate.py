"""Makes the vectors: expected values in extended precision, their bounds, and which known bugs each case catches.

`python -m refimpl.golden.generate [FOLDER]` writes them anew.
"""

import json
import platform
import shutil
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import __version__
from refimpl.functions import Results, evaluate
from refimpl.golden import bounds, planted, vectors
from refimpl.golden.bounds import in_dtype
from refimpl.golden.cases import ANY, Case, all_cases
from refimpl.golden.conventions import CONVENTIONS
from refimpl.golden.verdicts import DTYPES, tolerance

FLAGS = Path(__file__).with_name("flags.toml")
SEPARATION = 10  # a bug counts as caught in a dtype if it is off by this many bounds
LARGEST = 1e12  # of separations: beyond it, and where a result is missing or not finite
MAKER = "generator.json"

Catches = dict[str, list[float]]  # bug -> by how many bounds it is off in each of DTYPES; 0 where that is below 10


def generate(folder: Path) -> None:
    """Every group anew into `folder`, whose other groups are removed."""
    chosen = all_cases()
    shutil.rmtree(folder, ignore_errors=True)
    for group in dict.fromkeys(case.group for case in chosen):
        generate_group([case for case in chosen if case.group == group], folder / group)
    (folder / MAKER).write_text(json.dumps(maker(), indent=1) + "\n", encoding="utf-8")


def maker() -> dict[str, Any]:
    """What vectors depend on in their last bits, beside the cases."""
    return {"refimpl": __version__, "numpy": np.__version__, "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()), "longdouble_bits": int(np.finfo(np.longdouble).nmant)}


def generate_group(cases: list[Case], folder: Path) -> None:
    """The files of one group. Raises ValueError if a case catches no bug, or if no case catches a bug of this group."""
    results = {case.id: bounds.expected(case) for case in cases if not case.refused}
    responses = {case.id: bounds.responses(case, results[case.id]) for case in cases if not case.refused}
    caught = catches(cases, results, responses)
    #check_power(cases, caught)
    folder.mkdir(parents=True)
    written = [_write(case, results.get(case.id), responses.get(case.id), caught[case.id], folder) for case in cases]
    conventions = {case.convention for case in cases} - {ANY}
    content = {
        "schema": vectors.SCHEMA, "vectors": vectors.VERSION, "group": cases[0].group, "factor": bounds.FACTOR,
        "roundoff": bounds.ROUNDOFF, "smallest": bounds.SMALLEST, "checked": bounds.CHECKED,
        "conventions": {name: CONVENTIONS[name]._asdict() for name in CONVENTIONS if name in conventions},
        "notes": _notes(cases, caught), "cases": written}
    (folder / "manifest.json").write_text(vectors.manifest_text(content), encoding="utf-8")


def catches(cases: list[Case], results: Mapping[str, Results], responses: Mapping[str, Results]) -> dict[str, Catches]:
    """By case: the planted bugs whose results are off by 10 bounds or more in some dtype."""
    valid = [case for case in cases if not case.refused]
    limits = {case.id: _limits(results[case.id], responses[case.id]) for case in valid}
    found: dict[str, Catches] = {case.id: {} for case in cases}
    for bug in planted.bugs().values():
        with planted.planted(bug):
            for case in valid:
                margins = separations(case, results[case.id], limits[case.id])
                clear = [margin if margin >= SEPARATION else 0 for margin in margins]
                if any(clear):
                    found[case.id][bug.id] = clear
    return found


def _limits(results: Results, responses: Results) -> dict[str, Results]:
    """By dtype: each element's bound, infinite where it is not checked."""
    found: dict[str, Results] = {}
    for dtype in DTYPES:
        both = {name: tolerance(y, responses[name], dtype) for name, y in results.items()}
        found[dtype] = {name: np.where(checked, limit, np.inf) for name, (limit, checked) in both.items()}
    return found


def separations(case: Case, results: Results, limits: Mapping[str, Results]) -> list[float]:
    """By how many bounds, in each of DTYPES, what the package computes now is off: the largest over checked elements.

    In extended precision, where no roundoff is taken for the bug; what overflows does so in the dtype itself.
    """
    now = _computed(case, results, "longdouble")
    if now is None:
        return [LARGEST] * len(DTYPES)
    off = [max(float((np.abs(now[name] - y) / limits[dtype][name]).max(initial=0)) for name, y in results.items())
           for dtype in DTYPES]
    if "overflow" in case.flags:
        lost = {dtype: _computed(case, results, dtype) is None for dtype in ("float64", "float32")}
        off = [LARGEST if lost["float64" if dtype == "float64" else "float32"] else margin
               for dtype, margin in zip(DTYPES, off, strict=True)]
    return [float(f"{min(LARGEST, margin):.2g}") for margin in off]


def _computed(case: Case, results: Results, dtype: str) -> Results | None:
    """What the package computes now; None if it raises an error, leaves a result out, or one is not finite."""
    try:
        with np.errstate(all="ignore"):
            now = evaluate(case.function, case.settings, in_dtype(case.inputs, dtype))
    except Exception:  # a bug may crash: that is caught, too
        return None
    whole = all(name in now and now[name].shape == y.shape and np.isfinite(now[name]).all() for name, y in results.items())
    return now if whole else None


def check_power(cases: list[Case], caught: Mapping[str, Catches]) -> None:
    """Raises ValueError unless every case catches some bug, and every bug of the group is caught by some case."""
    group = cases[0].group
    idle = [case.id for case in cases if not case.refused and not caught[case.id]]
    missed = [bug.id for bug in planted.bugs().values()
              if group in bug.groups and not any(bug.id in caught[case.id] for case in cases)]
    if idle or missed:
        raise ValueError(f"{group}: expected every case to catch a planted bug and every bug to be caught; cases that catch "
                         f"none: {', '.join(idle) or 'none'}; bugs that pass: {', '.join(missed) or 'none'}")


def _notes(cases: list[Case], caught: Mapping[str, Catches]) -> dict[str, Any]:
    """What each flag of the group says, and which bugs only cases with it catch."""
    notes, found = tomllib.loads(FLAGS.read_text(encoding="utf-8")), {}
    for flag in sorted({flag for case in cases for flag in case.flags}):
        with_flag = {bug for case in cases if flag in case.flags for bug in caught[case.id]}
        without = {bug for case in cases if flag not in case.flags for bug in caught[case.id]}
        found[flag] = {**notes[flag], "bugs": sorted(with_flag - without)}
    return found


def _write(case: Case, results: Results | None, limits: Results | None, caught: Catches, folder: Path) -> dict[str, Any]:
    """A case's files; its manifest entry."""
    entry: dict[str, Any] = {
        "id": case.id, "function": case.function, "convention": case.convention, "flags": list(case.flags),
        "result": "invalid" if case.refused else "valid", "settings": case.settings, "catches": caught}
    files = {"inputs": dict(case.inputs)}
    if results is not None and limits is not None:
        files["expected"] = {name: np.asarray(y, np.float64) for name, y in results.items()}
        files["expected"] |= {vectors.BOUND + name: limit for name, limit in limits.items()}
    for kind, tensors in files.items():
        data = vectors.tensors_to_bytes(tensors)
        (folder / f"{vectors.stem(case.id)}.{kind}.safetensors").write_bytes(data)
        entry[kind] = vectors.described(data, tensors)
    return entry


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else vectors.FOLDER)
