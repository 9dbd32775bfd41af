"""A model's sizes, read from the tensors of the published code."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from refimpl.arrays import Array
from refimpl.convert.names import listed
from refimpl.errors import InputError

SPAN = "layers.0.attn.attn.adaptive_span._mask."
MEMORY_KEY = "layers.0.attn.attn.persistent_memory.key"


def model_table(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """All of a [model] table that the tensors tell: sizes, variant, positions, adaptive span, clusters, ties.

    heads or span are left out where nothing tells them: both without a position table; heads only if there are neither spans
    nor persistent vectors either. Names without `module.`. Whether every tensor is there, from_adaptive_span looks. Raises
    InputError if these are not the published code's.
    """
    layers = {match[1] for name in tensors if (match := re.match(r"layers\.(\d+)\.", name))}
    table = _input_and_output(tensors)
    if not layers or not table:
        raise InputError("expected tensors under the names of the published adaptive-span code (in_emb.weight or "
                         f"in_emb.emb_layers.0.weight, layers.0.…), got {listed(sorted(tensors))}")
    table |= {"layers": len(layers), "adaptive_span": f"{SPAN}current_val" in tensors,
              "positions": "relative" if "key_pe" in tensors else "none"}
    table["memory"] = _shape(tensors, MEMORY_KEY, 3)[2] if MEMORY_KEY in tensors else 0
    feed_forward = "layers.0.ff.fc1.weight"
    table["feed_forward"] = _shape(tensors, feed_forward, 2)[0] if feed_forward in tensors else 0
    table["variant"] = "all-attention" if table["memory"] else "transformer"
    return table | _heads_and_span(tensors, table["width"])


def _heads_and_span(tensors: Mapping[str, Array], width: int) -> dict[str, int]:
    found = {}
    if "key_pe" in tensors:
        _, head_width, found["span"] = _shape(tensors, "key_pe", 3)
        found["heads"] = width // max(1, head_width)
    elif f"{SPAN}mask_template" in tensors:
        found["span"] = _shape(tensors, f"{SPAN}mask_template", 1)[0]
    for name in (MEMORY_KEY, f"{SPAN}current_val"):
        if name in tensors:
            found["heads"] = _shape(tensors, name, 3)[0]
    return found


def _input_and_output(tensors: Mapping[str, Array]) -> dict[str, Any]:
    """Vocabulary, width, clusters and ties; {} if there is no input."""
    if "in_emb.weight" in tensors:
        vocabulary, width = _shape(tensors, "in_emb.weight", 2)
        tied = _tied(tensors, [("in_emb.weight", "out_emb.weight")])
        return {"vocabulary": vocabulary, "width": width, "cutoffs": (), "tie_tables": tied, "tie_projections": False}
    tables = [f"in_emb.emb_layers.{i}.weight" for i in range(len(tensors))]
    tables = [name for name in tables if name in tensors]
    if not tables or "in_emb.emb_projs.0" not in tensors:
        return {}
    if len(tables) == 1:
        raise InputError("in_emb.emb_layers: expected two clusters or more of an adaptive input, got one")
    sizes, widths = zip(*(_shape(tensors, name, 2) for name in tables), strict=True)
    ends = [int(end) for end in np.cumsum(sizes)]
    pairs = {kind: [(f"in_emb.{ours}.{i}{end}", f"out_emb.{theirs}.{i}{end}") for i in range(len(tables))]
             for kind, ours, theirs, end in (("tie_tables", "emb_layers", "out_layers", ".weight"),
                                             ("tie_projections", "emb_projs", "out_projs", ""))}
    return {"vocabulary": ends[-1], "width": _shape(tensors, "in_emb.emb_projs.0", 2)[0], "cutoffs": tuple(ends[:-1]),
            "divisor": widths[0] // max(1, widths[1]), "cluster_order": "reversed",
            **{kind: _tied(tensors, names) for kind, names in pairs.items()}}


def _tied(tensors: Mapping[str, Array], pairs: list[tuple[str, str]]) -> bool:
    """Whether each pair is one tensor: equal to the last bit, or saved under one of its names only."""
    one_name = all((first in tensors) != (second in tensors) for first, second in pairs)
    return one_name or all(first in tensors and second in tensors and _same_bits(tensors[first], tensors[second])
                           for first, second in pairs)


def _same_bits(first: Array, second: Array) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape) and first.tobytes() == second.tobytes()


def _shape(tensors: Mapping[str, Array], name: str, dimensions: int) -> tuple[int, ...]:
    """Raises InputError unless the tensor has so many dimensions."""
    shape: tuple[int, ...] = tensors[name].shape
    if len(shape) != dimensions:
        raise InputError(f"{name}: expected {dimensions} dimensions, got shape {shape}")
    return shape
