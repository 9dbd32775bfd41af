"""Every parameter's name, shape, group and first value for a ModelConfig; one flat vector with named views."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, module_of, random_stream
from refimpl.config import ModelConfig
from refimpl.errors import InputError

DTYPES = ("float32", "float64", "longdouble", "complex128")
SHARED = ("positions", "content_bias", "position_bias")
"""Parameters of the attention that have a layer's name only if each layer has its own."""


class Spec(NamedTuple):
    """One parameter. `initial`: ("normal", deviation) · ("uniform", bound) · ("constant", value)."""

    name: str
    shape: tuple[int, ...]
    group: str
    initial: tuple[str, float]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Parameters(Mapping[str, Array]):
    """Named views into one flat contiguous vector, in the order of `specification(config)`.

    `p[name]` is a view: writing into it writes into `p.vector`. Gradients and optimiser state have the same form.
    """

    def __init__(self, config: ModelConfig, vector: Array) -> None:
        """Views into `vector`, which is not copied. Raises InputError unless it is one row of the right length."""
        specs = specification(config)
        expected = sum(spec.size for spec in specs)
        if vector.shape != (expected,):
            raise InputError(f"parameters: expected a vector of shape ({expected},), got {vector.shape}")
        self.config, self.vector = config, vector
        self._views, start = {}, 0
        for spec in specs:
            self._views[spec.name] = vector[start : start + spec.size].reshape(spec.shape)
            start += spec.size

    def __getitem__(self, name: str) -> Array:
        return self._views[name]

    def __setitem__(self, name: str, value: Array) -> None:
        """Copies `value` into the view; after `g[name] += d` the value is the view, and all is done."""
        if value is not self._views[name]:
            self._views[name][...] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def with_vector(self, vector: Array) -> "Parameters":
        """The same names over another vector."""
        return Parameters(self.config, vector)

    def copy(self) -> "Parameters":
        """The same values in memory of their own."""
        return self.with_vector(self.vector.copy())

    def astype(self, dtype: Any) -> "Parameters":
        """The same values in another dtype."""
        return self.with_vector(self.vector.astype(dtype))

    def zeros_like(self) -> "Parameters":
        """The same names, dtype and library, all 0."""
        return self.with_vector(module_of(self.vector).zeros_like(self.vector))


def zeros(config: ModelConfig, like: Array) -> Parameters:
    """All 0, in the dtype and library of `like`."""
    return Parameters(config, module_of(like).zeros_like(like, shape=(total(config),)))


def initialize(config: ModelConfig, seed: int = 0, dtype: Any = "float64") -> Parameters:
    """First values. Each parameter's depend on seed and name alone, and differ between dtypes by rounding only.

    Persistent keys N(0, 1/E) and values N(0, 1/N), positions N(0, 1), spans span_initial (spec of the published runs);
    linear maps uniform in ±1/√inputs, plain embedding N(0, 1), tied or adaptive tables N(0, 1/width), norms 1 and 0;
    Transformer-XL's u and v N(0, 0.02²) as in its published code; learned absolute positions as the plain embedding.
    """
    if np.dtype(dtype) not in map(np.dtype, DTYPES):
        raise InputError(f"dtype: expected one of {', '.join(DTYPES)}, got {dtype}")
    p = Parameters(config, np.empty(total(config), dtype))
    for spec in specification(config):
        kind, scale = spec.initial
        stream = random_stream(seed, spec.name)
        if kind == "normal":
            p[spec.name] = stream.standard_normal(spec.shape) * scale
        elif kind == "uniform":
            p[spec.name] = stream.uniform(-scale, scale, spec.shape)
        else:
            p[spec.name] = scale
    return p


def count(config: ModelConfig) -> dict[str, int]:
    """Parameters by group, in the model's order; their sum is the total. Allocates none of them."""
    groups: dict[str, int] = {}
    for spec in specification(config):
        groups[spec.group] = groups.get(spec.group, 0) + spec.size
    return groups


def total(config: ModelConfig) -> int:
    """Number of parameters; each tied tensor counts once."""
    return sum(spec.size for spec in specification(config))


def specification(config: ModelConfig) -> list[Spec]:
    """Every parameter of the model, in the order of the flat vector."""
    specs = _input(config)
    if config.share_positions:
        specs += _positions(config, "")
    for layer in range(config.layers):
        specs += _layer(config, f"layers.{layer}")
    if config.norm == "pre":
        specs += _norm(config, "final_norm")
    return specs + _output(config)


def output_name(config: ModelConfig, kind: str, cluster: int | None = None) -> str:
    """The name of the output's table or projection; of the input's if the two are tied."""
    tied = config.tie_tables if kind == "table" else config.tie_projections
    side = "input" if tied else "output"
    return f"{side}.{kind}" if cluster is None else f"{side}.{kind}s.{cluster}"


def _layer(config: ModelConfig, name: str) -> list[Spec]:
    width, context = config.width, config.context_heads * config.head_width
    bound = ("uniform", width**-0.5)
    specs = [Spec(f"{name}.attention.{kind}", (rows, width), "attention", bound)
             for kind, rows in (("query", width), ("key", context), ("value", context), ("output", width))]
    if config.memory:
        _, slots, memory_width = shape = config.memory_shape
        specs.append(Spec(f"{name}.attention.memory_keys", shape, "memory", ("normal", memory_width**-0.5)))
        specs.append(Spec(f"{name}.attention.memory_values", shape, "memory", ("normal", slots**-0.5)))
    if config.positions == "transformer-xl":
        specs.append(Spec(f"{name}.attention.position_key", (context, width), "positions", bound))
    if not config.share_positions:
        specs += _positions(config, f"{name}.attention.")
    if config.adaptive_span:
        specs.append(Spec(f"{name}.attention.span", (config.context_heads,), "spans", ("constant", config.span_initial)))
    specs += _norm(config, f"{name}.attention_norm")
    if config.feed_forward:
        specs += [*_feed_forward(config, f"{name}.feed_forward"), *_norm(config, f"{name}.feed_forward_norm")]
    return specs


def _feed_forward(config: ModelConfig, name: str) -> list[Spec]:
    width, wide = config.width, config.feed_forward
    bound, bound_wide = ("uniform", width**-0.5), ("uniform", wide**-0.5)
    weights = [Spec(f"{name}.weight1", (wide, width), "feed_forward", bound),
               Spec(f"{name}.weight2", (width, wide), "feed_forward", bound_wide)]
    if config.variant == "ff-attention":
        return weights
    return [weights[0], Spec(f"{name}.bias1", (wide,), "feed_forward", bound),
            weights[1], Spec(f"{name}.bias2", (width,), "feed_forward", bound_wide)]


def _positions(config: ModelConfig, prefix: str) -> list[Spec]:
    """What layers may share: the relative positions' table, or Transformer-XL's u and v."""
    if config.positions == "relative":
        return [Spec(f"{prefix}positions", (config.span, config.head_width), "positions", ("normal", 1.0))]
    if config.positions == "transformer-xl":
        shape = (config.context_heads, config.head_width)
        return [Spec(f"{prefix}{kind}", shape, "positions", ("normal", 0.02)) for kind in ("content_bias", "position_bias")]
    return []


def _norm(config: ModelConfig, name: str) -> list[Spec]:
    return [Spec(f"{name}.gain", (config.width,), "norms", ("constant", 1.0)),
            Spec(f"{name}.bias", (config.width,), "norms", ("constant", 0.0))]


def _input(config: ModelConfig) -> list[Spec]:
    scale = config.width**-0.5 if config.tie_tables and not config.cutoffs else 1.0
    specs = []
    if not config.cutoffs:
        specs.append(Spec("input.table", (config.vocabulary, config.width), "input", ("normal", scale)))
    for i, (first, end, width) in enumerate(config.clusters):
        specs.append(Spec(f"input.tables.{i}", (end - first, width), "input", ("normal", width**-0.5)))
        specs.append(Spec(f"input.projections.{i}", (config.width, width), "input", ("uniform", config.width**-0.5)))
    if config.positions == "learned":
        specs.append(Spec("input.positions", (config.span, config.width), "positions", ("normal", scale)))
    return specs


def _output(config: ModelConfig) -> list[Spec]:
    bound = ("uniform", config.width**-0.5)
    if not config.cutoffs:
        table = [] if config.tie_tables else [Spec("output.table", (config.vocabulary, config.width), "output", bound)]
        return [*table, Spec("output.bias", (config.vocabulary,), "output", bound)]
    specs = []
    for i, (first, end, width) in enumerate(config.clusters):
        if not config.tie_tables:
            specs.append(Spec(f"output.tables.{i}", (end - first, width), "output", ("normal", width**-0.5)))
        if not config.tie_projections:
            specs.append(Spec(f"output.projections.{i}", (config.width, width), "output", bound))
        specs.append(Spec(f"output.biases.{i}", (end - first,), "output", ("constant", 0.0)))
    tails = len(config.clusters) - 1
    specs.append(Spec("output.cluster_table", (tails, config.width), "output", ("normal", config.width**-0.5)))
    specs.append(Spec("output.cluster_bias", (tails,), "output", ("constant", 0.0)))
    return specs
