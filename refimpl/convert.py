"""Parameters to and from other implementations' names: relabelling, reshaping and reordering, never arithmetic."""

from collections.abc import Callable, Mapping

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
    if config.variant not in ("all-attention", "transformer") or config.positions not in ("relative", "none"):
        raise InputError("adaptive-span tensors: expected a model of variant all-attention or transformer with positions "
                         f"relative or none, got {config.variant} with {config.positions}")
    if config.norm != "post" or not (config.share_positions or config.positions == "none"):
        raise InputError("adaptive-span tensors: expected a model with norm post and shared positions, got "
                         f"norm {config.norm} and share_positions {config.share_positions}")
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
        raise InputError(f"adaptive-span tensors: expected also {_listed(missing)}; got, not expected, "
                         f"{_listed(sorted(unknown))}")
    dtype = np.result_type(*chosen.values())
    p = Parameters(config, np.empty(sum(array.size for array in chosen.values()), dtype))
    for name, array in chosen.items():
        p[name] = array
    return p


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

# published layout -> ours, with the published shape of ours
ARRANGEMENTS: dict[str, tuple[Callable[[Array], Array], Callable[[tuple[int, ...]], tuple[int, ...]]]] = {
    # (1, E, S), distance 1 last -> (S, E), nearest first
    "positions": (lambda a: a[0].T[::-1], lambda shape: (1, shape[1], shape[0])),
    # (H, E, N) -> (H, N, E)
    "memory_keys": (lambda a: a.transpose(0, 2, 1), lambda shape: (shape[0], shape[2], shape[1])),
    # (H, 1, 1) -> (H)
    "span": (lambda a: a[:, 0, 0], lambda shape: (shape[0], 1, 1)),
}


def _arranged(present: list[str], given: Mapping[str, Array], name: str, shape: tuple[int, ...]) -> Array:
    """The tensor in our layout, once all its names agree in shape and values."""
    arrange, published_shape = ARRANGEMENTS.get(name.rpartition(".")[2], (lambda a: a, lambda shape: shape))
    for published in present:
        if given[published].shape != published_shape(shape):
            raise InputError(f"{published}: expected shape {published_shape(shape)}, got {given[published].shape}")
        if not np.array_equal(given[published], given[present[0]], equal_nan=True):
            raise InputError(f"{published} and {present[0]}: expected equal values of a shared tensor, got different ones")
    return arrange(given[present[0]])


def _listed(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "nothing"
