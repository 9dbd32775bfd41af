"""One case, told: its settings and numbers, what it is there for, and which known bugs it catches."""

import json
from typing import Any

import numpy as np

from refimpl.golden import planted
from refimpl.golden.vectors import Stored
from refimpl.golden.verdicts import DTYPES


def as_dict(case: Stored) -> dict[str, Any]:
    """The manifest entry with every number."""
    tensors = {"inputs": case.inputs, "results": case.results, "bounds": case.bounds}
    numbers = {kind: {name: array.tolist() for name, array in arrays.items()} for kind, arrays in tensors.items()}
    told = {key: value for key, value in case.entry.items() if key not in ("inputs", "expected")}
    return {**told, **numbers}


def text(case: Stored) -> str:
    """The same for people."""
    entry, bugs = case.entry, planted.bugs()
    lines = [case.id, f"function    {entry['function']}", f"convention  {entry['convention']}",
             f"settings    {json.dumps(entry['settings'])}"]
    lines += [f"flag        {flag}: {note['effect']}" for flag, note in entry["notes"].items()]
    if entry["result"] == "invalid":
        lines.append("must be refused: the arguments don't fit together")
    for bug, margins in sorted(entry["catches"].items()):
        clear = [f"{dtype} {margin:.2g}" for dtype, margin in zip(DTYPES, margins, strict=True) if margin]
        lines.append(f"catches     {bug}: {bugs[bug].sentence} Off by so many bounds: {', '.join(clear)}")
    with np.printoptions(linewidth=120, threshold=200, precision=17):
        for kind, arrays in (("input", case.inputs), ("result", case.results)):
            for name, array in arrays.items():
                lines += [f"{kind} {name} {array.dtype} {array.shape}", str(array)]
    return "\n".join(lines)
