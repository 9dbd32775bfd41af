"""Makes the vectors: expected values in extended precision, their bounds, and which known bugs each case catches.

`python -m refimpl.golden.generate` writes them anew, with `--check` it compares those that are there.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from refimpl import __version__
from refimpl.functions import Results
from refimpl.golden import bounds, compare, vectors
from refimpl.golden.cases import ANY, Case, all_cases
from refimpl.golden.conventions import CONVENTIONS
from refimpl.golden.margins import Catches, catches, check_power

FLAGS = Path(__file__).with_name("flags.toml")


def generate(folder: Path) -> None:
    """Every group anew in the place of `folder`, once all of them are made; a process for each core."""
    chosen = dict.fromkeys(case.group for case in all_cases())
    slowest_first = sorted(chosen, key=lambda group: group != "model")
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside:
        made = Path(beside, folder.name)
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(generate_group, slowest_first, [made / group for group in slowest_first]))
        (made / compare.MAKER).write_text(json.dumps(maker(), indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def maker() -> dict[str, Any]:
    """What vectors depend on in their last bits, beside the cases."""
    return {"refimpl": __version__, "numpy": np.__version__, "machine": platform.machine(),
            "libc": " ".join(platform.libc_ver()), "longdouble_bits": int(np.finfo(np.longdouble).nmant),
            "functions": functions_digest()}


def functions_digest() -> str:
    """SHA-256 of exp, log, sin and cos in extended precision at some numbers: processors round some of them differently."""
    digest = hashlib.sha256()
    x = np.arange(1, 4096, dtype=np.longdouble) / 97
    for y in (np.exp(x), np.exp(-x), np.log(x), np.sin(x), np.cos(x)):
        high = y.astype(np.float64)
        digest.update(high.tobytes() + (y - high).astype(np.float64).tobytes())  # of y itself some bytes are undefined
    return digest.hexdigest()


def generate_group(group: str, folder: Path) -> None:
    """The files of one group. Raises ValueError if a case catches no bug, or if no case catches a bug of this group."""
    cases = [case for case in all_cases() if case.group == group]
    results = {case.id: bounds.expected(case) for case in cases if not case.refused}
    responses = {case.id: bounds.responses(case, results[case.id]) for case in cases if not case.refused}
    caught = catches(cases, results, responses)
    check_power(cases, caught)
    folder.mkdir(parents=True)
    written = [_write(case, results.get(case.id), responses.get(case.id), caught[case.id], folder) for case in cases]
    named = {case.convention for case in cases} - {ANY}
    content = {
        "schema": vectors.SCHEMA, "vectors": vectors.VERSION, "group": group, "factor": bounds.FACTOR,
        "roundoff": bounds.ROUNDOFF, "smallest": bounds.SMALLEST, "checked": bounds.CHECKED,
        "conventions": {name: CONVENTIONS[name]._asdict() for name in CONVENTIONS if name in named},
        "notes": _notes(cases, caught), "cases": written}
    vectors.write_manifest(folder, content)


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


def check(folder: Path) -> list[str]:
    """How vectors made here differ from those in the folder: in a byte if its maker was as here, else beyond bounds."""
    with tempfile.TemporaryDirectory() as made:
        generate(Path(made))
        theirs, here = compare.made_by(folder), maker()
        extended = min(theirs["longdouble_bits"], here["longdouble_bits"]) > np.finfo(np.float64).nmant
        return compare.differences(folder, Path(made), exact=theirs == here, extended=extended)


def main(arguments: list[str]) -> int:
    """Writes or checks; the exit code."""
    if arguments != ["--check"]:
        generate(vectors.FOLDER)
        return 0
    found = check(vectors.FOLDER)
    same = "byte for byte" if compare.made_by(vectors.FOLDER) == maker() else "within the bounds of float64"
    print("\n".join(found) or f"the vectors are what is made here, {same}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
