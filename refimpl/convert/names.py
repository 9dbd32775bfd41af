"""Parameters to and from the names and layouts of the published adaptive-span code."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.config import ModelConfig
from refimpl.errors import InputError
from refimpl.parameters import Parameters, specification

# published names whose values are constants, or stand under another name as well
IGNORED = ("adaptive_span._mask.mask_template",)


def from_adaptive_span(tensors: Mapping[str, Array], config: ModelConfig) -> Parameters:
    """Parameters from arrays under the names of the published adaptive-span code, in their dtype.

    A leading `module.` is passed over. Gradients convert by the same call. Tied tensors may stand under either name or
    both, then with equal values. Raises InputError that lists what is missing, unknown, differs, or has another shape.
    """
    check_published(config)
    given = {name.removeprefix("module."): np.asarray(tensor) for name, tensor in tensors.items()}
    unknown = {name for name in given if not name.endswith(IGNORED)}
    chosen, missing = {}, []
    for spec in specification(config):
        names = published_names(spec.name, config)
        present = [name for name in names if name in given]
        unknown -= set(present)
        if not present:
            missing.append(names[0])
            continue
        chosen[spec.name] = _arranged(present, given, spec.name, spec.shape)
    if missing or unknown:
        raise InputError(f"adaptive-span tensors: expected also {listed(missing)}; got, not expected, "
                         f"{listed(sorted(unknown))}")
    dtype = np.result_type(*chosen.values())
    p = Parameters(config, np.empty(sum(array.size for array in chosen.values()), dtype))
    for name, array in chosen.items():
        p[name] = array
    return p


def to_adaptive_span(p: Parameters) -> dict[str, Array]:
    """Every tensor of the published code's model by its name there, contiguous: what from_adaptive_span takes back.

    Tied tensors stand under each of their names, and so do the span's, beside the constants of its mask: -x of each of S
    positions, the farthest first. Raises InputError for a model that the published code cannot make.
    """
    config = p.config
    check_published(config)
    tensors: dict[str, Array] = {}
    for name, array in p.items():
        published = np.ascontiguousarray(ARRANGEMENTS.get(_kind(name), SAME).to_published(np.asarray(array)))
        tensors |= dict.fromkeys(_written_names(name, config), published)
        if _kind(name) == "span":
            template = np.arange(1 - config.span, 1, dtype=array.dtype)
            masks = (written.removesuffix("current_val") for written in _written_names(name, config))
            tensors |= dict.fromkeys((f"{mask}mask_template" for mask in masks), template)
    return tensors


def check_published(config: ModelConfig) -> None:
    """Raises InputError for a model that the published code cannot make."""
    if config.variant not in ("all-attention", "transformer") or config.positions not in ("relative", "none"):
        raise InputError("adaptive-span tensors: expected a model of variant all-attention or transformer with positions "
                         f"relative or none, got {config.variant} with {config.positions}")
    if config.norm != "post" or not (config.share_positions or config.positions == "none"):
        raise InputError("adaptive-span tensors: expected a model with norm post and shared positions, got "
                         f"norm {config.norm} and share_positions {config.share_positions}")


def published_names(name: str, config: ModelConfig) -> list[str]:
    """The published names of one of our parameters: its own first, then the second name of a tied or shared tensor."""
    if name == "positions":
        return ["key_pe"]
    head, _, rest = name.partition(".")
    if head == "layers":
        layer, _, kind = rest.partition(".")
        return [f"layers.{layer}.{published}" for published in LAYER_NAMES[kind]]
    if not config.cutoffs:
        names = {"input.table": ["in_emb.weight"], "output.table": ["out_emb.weight"], "output.bias": ["out_emb.bias"]}[name]
        return [*names, "out_emb.weight"] if name == "input.table" and config.tie_tables else names
    kind, _, cluster = rest.partition(".")
    own = ADAPTIVE_NAMES[f"{head}.{kind}"].format(cluster)
    tied = head == "input" and (config.tie_tables if kind == "tables" else config.tie_projections)
    return [own, ADAPTIVE_NAMES[f"output.{kind}"].format(cluster)] if tied else [own]


LAYER_NAMES = {
    "attention.query": ["attn.proj_query.weight"],
    "attention.key": ["attn.proj_key.weight"],
    "attention.value": ["attn.proj_val.weight"],
    "attention.output": ["attn.proj_out.weight"],
    "attention.memory_keys": ["attn.attn.persistent_memory.key"],
    "attention.memory_values": ["attn.attn.persistent_memory.val"],
    "attention.span": ["attn.attn.adaptive_span._mask.current_val",
                       "attn.attn.persistent_memory.adaptive_span._mask.current_val"],
    "attention_norm.gain": ["norm1.weight"],
    "attention_norm.bias": ["norm1.bias"],
    "feed_forward.weight1": ["ff.fc1.weight"],
    "feed_forward.bias1": ["ff.fc1.bias"],
    "feed_forward.weight2": ["ff.fc2.weight"],
    "feed_forward.bias2": ["ff.fc2.bias"],
    "feed_forward_norm.gain": ["norm2.weight"],
    "feed_forward_norm.bias": ["norm2.bias"],
}
ADAPTIVE_NAMES = {
    "input.tables": "in_emb.emb_layers.{}.weight",
    "input.projections": "in_emb.emb_projs.{}",
    "output.tables": "out_emb.out_layers.{}.weight",
    "output.biases": "out_emb.out_layers.{}.bias",
    "output.projections": "out_emb.out_projs.{}",
    "output.cluster_table": "out_emb.cluster_proj.weight",
    "output.cluster_bias": "out_emb.cluster_proj.bias",
}


class Arrangement(NamedTuple):
    """The published layout to ours, ours to the published one, and the published shape of our shape."""

    to_ours: Callable[[Array], Array]
    to_published: Callable[[Array], Array]
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]


SAME = Arrangement(lambda a: a, lambda a: a, lambda shape: shape)
ARRANGEMENTS = {
    # (1, E, S), distance 1 last, and (S, E), nearest first
    "positions": Arrangement(lambda a: a[0].T[::-1], lambda a: a[::-1].T[None], lambda shape: (1, shape[1], shape[0])),
    # (H, E, N) and (H, N, E)
    "memory_keys": Arrangement(lambda a: a.transpose(0, 2, 1), lambda a: a.transpose(0, 2, 1),
                               lambda shape: (shape[0], shape[2], shape[1])),
    # (H, 1, 1) and (H)
    "span": Arrangement(lambda a: a[:, 0, 0], lambda a: a[:, None, None], lambda shape: (shape[0], 1, 1)),
}


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _written_names(name: str, config: ModelConfig) -> list[str]:
    """The names under which the published code saves a parameter; without persistent vectors the span has but one."""
    names = published_names(name, config)
    return names if config.memory or _kind(name) != "span" else names[:1]


def _arranged(present: list[str], given: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    """The tensor in our layout, once all its names agree in shape and values."""
    arrangement = ARRANGEMENTS.get(_kind(name), SAME)
    for published in present:
        if given[published].shape != arrangement.shape(shape):
            raise InputError(f"{published}: expected shape {arrangement.shape(shape)}, got {given[published].shape}")
        if not np.array_equal(given[published], given[present[0]], equal_nan=True):
            raise InputError(f"{published} and {present[0]}: expected equal values of a shared tensor, got different ones")
    return arrangement.to_ours(given[present[0]])


def listed(names: list[str], most: int = 6) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"
