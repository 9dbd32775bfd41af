"""Whether two folders hold the same vectors: bit for bit, or, made on different machines, within float64's bounds."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.golden import vectors
from refimpl.golden.margins import SEPARATION
from refimpl.golden.verdicts import tolerance

MAKER = "generator.json"
BOUNDS, MARGINS = 1e-3, 0.5  # shares by which bounds and margins may differ: extended precision is not the same everywhere


def made_by(folder: Path) -> Any:
    """What the folder was made with."""
    return json.loads((folder / MAKER).read_text(encoding="utf-8"))


def differences(ours: Path, theirs: Path, exact: bool, extended: bool = True) -> list[str]:
    """A line for each file or case that is another one; empty if there is none.

    extended: both were made in numbers beyond float64's range. Where one was not, only values are compared: what bounds and
    margins are made of underflows in float64 where logits are large.
    """
    here, there = ({str(path.relative_to(folder)) for path in folder.rglob("*.*")} for folder in (ours, theirs))
    found = [f"{name}: only in {ours if name in here else theirs}" for name in sorted(here ^ there)]
    if exact:
        return found + [f"{name}: another content" for name in sorted(here & there)
                        if (ours / name).read_bytes() != (theirs / name).read_bytes()]
    pairs = zip(vectors.entries(ours), vectors.entries(theirs), strict=False)
    return found + [line for one, other in pairs for line in _of_case(one, ours, other, theirs, extended)]


def _of_case(
    one: Mapping[str, Any], ours: Path, other: Mapping[str, Any], theirs: Path, extended: bool
) -> Iterator[str]:
    if any(one[key] != other[key] for key in ("id", "function", "convention", "flags", "result", "settings")):
        yield f"{one['id']}: another manifest entry"
        return
    a, b = vectors.load_case(one, ours), vectors.load_case(other, theirs)
    if not each(a.inputs, b.inputs, lambda name, x, y: bool(np.array_equal(x, y))):
        yield f"{a.id}: other inputs"
    if not each(a.results, b.results, lambda name, x, y: bool(
            (np.abs(x - y) <= tolerance(x, a.bounds[name], "float64")[0]).all())):
        yield f"{a.id}: results farther apart than the bound"
    if extended and not each(a.bounds, b.bounds, lambda name, x, y: bool(np.allclose(x, y, rtol=BOUNDS, atol=0))):
        yield f"{a.id}: other bounds"
    if extended and not margins_agree(one["catches"], other["catches"]):
        yield f"{a.id}: catches other bugs"


def each(ours: Mapping[str, Array], theirs: Mapping[str, Array], agree: Any) -> bool:
    """Whether both have the same names and shapes, and agree(name, one, other) holds for each."""
    return ours.keys() == theirs.keys() and all(
        ours[name].shape == theirs[name].shape and agree(name, ours[name], theirs[name]) for name in ours)


def margins_agree(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two catch the same bugs about as clearly. Near the smallest margin, one may count what the other does not."""
    for bug in ours.keys() | theirs.keys():
        one, other = (np.maximum(margins.get(bug, 0), SEPARATION) for margins in (ours, theirs))
        if not np.allclose(one, other, rtol=MARGINS, atol=0):
            return False
    return True
