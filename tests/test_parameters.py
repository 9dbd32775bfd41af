"""Names, counts and first values of the parameters."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from refimpl import parameters, settings
from refimpl.arrays import random_stream
from refimpl.config import VARIANTS, ModelConfig
from refimpl.errors import InputError

CONFIG = ModelConfig(vocabulary=61, width=32, heads=4, layers=3, span=48, memory=20)

# the published models, counted by running the published code
PUBLISHED = {
    "enwik8-small": 6_480_621, "enwik8": 38_538_541, "enwik8-large": 208_910_221, "text8": 38_357_116,
    "text8-large": 208_638_172, "enwik8-all-attention-small": 38_501_725, "enwik8-all-attention": 114_017_773,
    "wikitext103-all-attention": 132_493_746,
}
# all others, by the formula E·S + L(4D² + 2D + H + [2·N·D | 2·D·F + F + 3D]) + 2VD + V with E = D/H
COUNTED = {
    "text8-all-attention-small": 38_320_300, "text8-all-attention": 113_836_348,
    "ablation-all-attention": 113_836_348, "ablation-attention-split": 113_836_348, "ablation-head-split": 66_650_284,
    "ablation-single-head": 113_836_348, "ablation-ff-attention": 113_873_212, "ablation-transformer": 113_965_372,
    "laptop": 314_380, "tiny": 27_524, "workstation-gpu": 19_181_920,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_presets_have_the_published_number_of_parameters_without_allocating_them(name):
    tracemalloc.start()
    config = settings.model_config(settings.preset(name)["model"])
    groups = parameters.count(config)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(groups.values()) == parameters.total(config) == PUBLISHED[name]
    assert peak < 2_000_000


@pytest.mark.parametrize("name", settings.preset_names())
def test_every_preset_has_its_exact_number_of_parameters(name):
    config = settings.model_config({"vocabulary": 256, **settings.preset(name)["model"]})
    assert parameters.total(config) == {**PUBLISHED, **COUNTED}[name]


@pytest.mark.parametrize("name", sorted({*PUBLISHED, *COUNTED} - {"wikitext103-all-attention"}))
def test_counts_are_those_of_the_formula(name):
    """Of the plain models; head-split has half the keys, values and persistent vectors, ff-attention no biases."""
    config = settings.model_config({"vocabulary": 256, **settings.preset(name)["model"]})
    S, D, H, L, N, F, V = (getattr(config, key) for key in (
        "span", "width", "heads", "layers", "memory", "feed_forward", "vocabulary"))
    inner = 2 * N * D if N else 2 * D * F + F + 3 * D
    expected = D // H * S + L * (4 * D**2 + 2 * D + H + inner) + 2 * V * D + V
    if config.variant == "head-split":
        expected -= L * (D**2 + N * D + H // 2)
    if config.variant == "ff-attention":
        expected -= L * (F + D)
    assert parameters.total(config) == expected


def test_the_ablations_differ_from_text8_all_attention_by_their_variant_alone():
    whole = settings.preset("text8-all-attention")
    for variant in VARIANTS:
        tables = settings.preset(f"ablation-{variant}")
        assert tables["train"] == whole["train"]
        different = {key for key in tables["model"] if tables["model"][key] != whole["model"].get(key)}
        assert tables["model"]["variant"] == variant
        with_feed_forward = {"memory", "feed_forward"} if variant in ("transformer", "ff-attention") else set()
        assert different <= {"variant"} | with_feed_forward
        assert tables["model"]["memory"] + tables["model"]["feed_forward"] == 2048


@pytest.mark.parametrize("form", [
    {}, {"memory": 0, "feed_forward": 40}, {"share_positions": False}, {"positions": "none"}, {"norm": "pre"},
    {"adaptive_span": False}, {"cutoffs": (9, 30)}, {"cutoffs": (9, 30), "tie_tables": True, "tie_projections": True},
    {"tie_tables": True},
])
def test_the_vector_is_exactly_the_named_tensors_in_order(form):
    config = replace(CONFIG, **form)
    p = parameters.initialize(config)
    assert p.vector.size == parameters.total(config) == sum(array.size for array in p.values())
    np.testing.assert_array_equal(np.concatenate([array.ravel() for array in p.values()]), p.vector)
    assert [(spec.name, spec.shape) for spec in parameters.specification(config)] == [(n, a.shape) for n, a in p.items()]


def test_views_share_memory_with_the_vector():
    p = parameters.initialize(CONFIG)
    p["layers.1.attention.memory_keys"] += 1000
    assert (p.vector > 500).sum() == 4 * 20 * 8
    p["layers.1.attention.memory_keys"] = 0
    assert not (p.vector > 500).any()
    copied = p.copy()
    copied.vector[:] = 7
    assert not (p.vector == 7).any()


def test_first_values_are_distributed_as_documented():
    config = replace(CONFIG, width=128, heads=2, span=500, memory=400, vocabulary=900, span_initial=0.25, norm="pre")
    p = parameters.initialize(config)
    deviations = {"positions": 1, "layers.0.attention.memory_keys": 1 / 8, "layers.2.attention.memory_values": 1 / 20,
                  "input.table": 1, "layers.0.attention.query": 128**-0.5 / math.sqrt(3)}
    for name, deviation in deviations.items():
        assert p[name].std() == pytest.approx(deviation, rel=0.05), name
        assert abs(p[name].mean()) < 0.05 * deviation
    assert np.abs(p["output.table"]).max() <= 128**-0.5
    np.testing.assert_array_equal(p["layers.1.attention.span"], 0.25)
    np.testing.assert_array_equal(p["final_norm.gain"], 1)
    assert (p["layers.0.attention.query"] != p["layers.1.attention.query"]).all()


SMALL = ModelConfig(vocabulary=7, width=16, heads=2, layers=2, span=5, memory=9, span_initial=0.25, norm="pre")
CLUSTERS = {"cutoffs": (2, 4), "divisor": 2}  # of widths 16, 8 and 4
FIRST = [  # what differs, the parameter, its shape, how it is drawn, and how widely, in fractions worked out by hand
    ({}, "input.table", (7, 16), "normal", 1),
    ({}, "positions", (5, 8), "normal", 1),
    ({}, "layers.1.attention.query", (16, 16), "uniform", 1 / 4),
    ({}, "layers.1.attention.key", (16, 16), "uniform", 1 / 4),
    ({}, "layers.1.attention.value", (16, 16), "uniform", 1 / 4),
    ({}, "layers.1.attention.output", (16, 16), "uniform", 1 / 4),
    ({}, "layers.1.attention.memory_keys", (2, 9, 8), "normal", 1 / math.sqrt(8)),
    ({}, "layers.1.attention.memory_values", (2, 9, 8), "normal", 1 / 3),
    ({}, "layers.1.attention.span", (2,), "constant", 1 / 4),
    ({}, "layers.1.attention_norm.gain", (16,), "constant", 1),
    ({}, "layers.1.attention_norm.bias", (16,), "constant", 0),
    ({}, "final_norm.bias", (16,), "constant", 0),
    ({}, "output.table", (7, 16), "uniform", 1 / 4),
    ({}, "output.bias", (7,), "uniform", 1 / 4),
    ({"tie_tables": True}, "input.table", (7, 16), "normal", 1 / 4),
    ({"memory": 0, "feed_forward": 25}, "layers.1.feed_forward.weight1", (25, 16), "uniform", 1 / 4),
    ({"memory": 0, "feed_forward": 25}, "layers.1.feed_forward.bias1", (25,), "uniform", 1 / 4),
    ({"memory": 0, "feed_forward": 25}, "layers.1.feed_forward.weight2", (16, 25), "uniform", 1 / 5),
    ({"memory": 0, "feed_forward": 25}, "layers.1.feed_forward.bias2", (16,), "uniform", 1 / 5),
    ({"memory": 0, "feed_forward": 25}, "layers.1.feed_forward_norm.gain", (16,), "constant", 1),
    ({"variant": "single-head"}, "layers.1.attention.memory_keys", (1, 9, 16), "normal", 1 / 4),
    ({"variant": "head-split"}, "layers.1.attention.key", (8, 16), "uniform", 1 / 4),
    ({"variant": "head-split"}, "layers.1.attention.memory_values", (1, 9, 8), "normal", 1 / 3),
    ({"positions": "transformer-xl"}, "content_bias", (2, 8), "normal", 0.02),
    ({"positions": "transformer-xl"}, "position_bias", (2, 8), "normal", 0.02),
    ({"positions": "transformer-xl"}, "layers.1.attention.position_key", (16, 16), "uniform", 1 / 4),
    ({"positions": "learned"}, "input.positions", (5, 16), "normal", 1),
    ({"positions": "learned", "tie_tables": True}, "input.positions", (5, 16), "normal", 1 / 4),
    ({"positions": "learned", "tie_tables": True, **CLUSTERS}, "input.positions", (5, 16), "normal", 1),
    ({"share_positions": False}, "layers.1.attention.positions", (5, 8), "normal", 1),
    (CLUSTERS, "input.tables.0", (2, 16), "normal", 1 / 4),
    (CLUSTERS, "input.tables.2", (3, 4), "normal", 1 / 2),
    (CLUSTERS, "input.projections.2", (16, 4), "uniform", 1 / 4),
    (CLUSTERS, "output.tables.1", (2, 8), "normal", 1 / math.sqrt(8)),
    (CLUSTERS, "output.projections.1", (16, 8), "uniform", 1 / 4),
    (CLUSTERS, "output.biases.1", (2,), "constant", 0),
    (CLUSTERS, "output.cluster_table", (2, 16), "normal", 1 / 4),
    (CLUSTERS, "output.cluster_bias", (2,), "constant", 0),
]


@pytest.mark.parametrize(("form", "name", "shape", "kind", "scale"), FIRST)
def test_first_values_are_drawn_from_the_parameters_own_stream(form, name, shape, kind, scale):
    found = parameters.initialize(replace(SMALL, **form), seed=3)[name]
    stream = random_stream(3, name)
    expected = {"normal": lambda: stream.standard_normal(shape) * scale,
                "uniform": lambda: stream.uniform(-scale, scale, shape), "constant": lambda: np.full(shape, scale)}[kind]()
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_first_values_depend_on_the_seed_and_differ_between_dtypes_by_rounding_only():
    dtypes = ("float32", "float64", "longdouble")
    single, double, extended = (parameters.initialize(CONFIG, 3, dtype).vector for dtype in dtypes)
    np.testing.assert_array_equal(single, double.astype("float32"))
    np.testing.assert_array_equal(extended, double)
    assert (parameters.initialize(CONFIG, 4).vector != double).mean() > 0.9


def test_a_parameters_first_value_does_not_depend_on_its_neighbours():
    deeper = parameters.initialize(replace(CONFIG, layers=5, norm="pre"))
    p = parameters.initialize(CONFIG)
    np.testing.assert_array_equal(deeper["layers.2.attention.value"], p["layers.2.attention.value"])


def test_wrong_vectors_and_dtypes_are_refused():
    with pytest.raises(InputError, match=r"expected a vector of shape \(\d+,\), got \(3,\)"):
        parameters.Parameters(CONFIG, np.zeros(3))
    with pytest.raises(InputError, match="dtype: expected one of float32, float64, longdouble, complex128, got float16"):
        parameters.initialize(CONFIG, dtype="float16")


def test_the_seed_is_0_unless_another_is_given():
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, span=3, memory=2)
    np.testing.assert_array_equal(parameters.initialize(config).vector, parameters.initialize(config, 0, "float64").vector)
    assert (parameters.initialize(config, 1).vector != parameters.initialize(config).vector).any()
