"""Tensors under the published names become parameters by relabelling alone."""

from dataclasses import replace

import numpy as np
import pytest

from refimpl import convert, model
from refimpl.config import ModelConfig
from refimpl.errors import InputError

V, D, H, L, S, N, F, E = 9, 8, 2, 2, 5, 3, 7, 4
CONFIG = ModelConfig(vocabulary=V, width=D, heads=H, layers=L, span=S, memory=N, span_ramp=2, normalizer_epsilon=1e-8)
BASELINE = replace(CONFIG, memory=0, feed_forward=F)
ADAPTIVE = replace(CONFIG, cutoffs=(3, 6), divisor=2, cluster_order="reversed")
TIED = replace(ADAPTIVE, tie_tables=True, tie_projections=True)


def published(config, prefix="module."):
    """Every tensor of a published checkpoint of this architecture, as the table of published names lists them."""
    rng = np.random.default_rng(0)
    shapes = {"key_pe": (1, E, S)}
    for layer in range(L):
        name = f"layers.{layer}."
        shapes |= {f"{name}attn.proj_{kind}.weight": (D, D) for kind in ("query", "key", "val", "out")}
        shapes |= {f"{name}norm1.{kind}": (D,) for kind in ("weight", "bias")}
        if config.adaptive_span:
            shapes[f"{name}attn.attn.adaptive_span._mask.current_val"] = (H, 1, 1)
            shapes[f"{name}attn.attn.adaptive_span._mask.mask_template"] = (S,)
        if config.memory:
            memory = f"{name}attn.attn.persistent_memory"
            shapes |= {f"{memory}.key": (H, E, N), f"{memory}.val": (H, N, E)}
        else:
            shapes |= {f"{name}ff.fc1.weight": (F, D), f"{name}ff.fc1.bias": (F,), f"{name}ff.fc2.weight": (D, F),
                       f"{name}ff.fc2.bias": (D,), f"{name}norm2.weight": (D,), f"{name}norm2.bias": (D,)}
    if config.cutoffs:
        for i, (size, width) in enumerate([(3, 8), (3, 4), (3, 2)]):
            shapes |= {f"in_emb.emb_layers.{i}.weight": (size, width), f"in_emb.emb_projs.{i}": (D, width),
                       f"out_emb.out_layers.{i}.weight": (size, width), f"out_emb.out_layers.{i}.bias": (size,),
                       f"out_emb.out_projs.{i}": (D, width)}
        shapes |= {"out_emb.cluster_proj.weight": (2, D), "out_emb.cluster_proj.bias": (2,)}
    else:
        shapes |= {"in_emb.weight": (V, D), "out_emb.weight": (V, D), "out_emb.bias": (V,)}
    tensors = {prefix + name: rng.standard_normal(shape) for name, shape in shapes.items()}
    for layer in range(L if config.memory and config.adaptive_span else 0):  # the mask has a second name
        name = f"{prefix}layers.{layer}.attn.attn."
        for kind in ("current_val", "mask_template"):
            tensors[f"{name}persistent_memory.adaptive_span._mask.{kind}"] = tensors[f"{name}adaptive_span._mask.{kind}"]
    if config.tie_tables:
        for i in range(3):
            tensors[f"{prefix}out_emb.out_layers.{i}.weight"] = tensors[f"{prefix}in_emb.emb_layers.{i}.weight"]
            tensors[f"{prefix}out_emb.out_projs.{i}"] = tensors[f"{prefix}in_emb.emb_projs.{i}"]
    return tensors


@pytest.mark.parametrize("config", [CONFIG, BASELINE, ADAPTIVE, TIED, replace(CONFIG, adaptive_span=False)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_every_tensor_finds_its_place_and_the_model_runs(config, prefix):
    p = convert.from_adaptive_span(published(config, prefix), config)
    for layer in range(L if config.adaptive_span else 0):
        p[f"layers.{layer}.attention.span"] = 0.3
    tokens = np.arange(6).reshape(2, 3)
    out = model.forward(p, config, tokens, tokens, model.initial_past(config, 2, p.vector, zeros=True))
    assert np.isfinite(out.loss)


def test_layouts_element_by_element():
    tensors = published(CONFIG, "")
    p = convert.from_adaptive_span(tensors, CONFIG)
    for distance in range(1, S + 1):  # published: the last index is distance 1; ours: the first row
        np.testing.assert_array_equal(p["positions"][distance - 1], tensors["key_pe"][0, :, S - distance])
    for h, n, e in np.ndindex(H, N, E):
        assert p["layers.1.attention.memory_keys"][h, n, e] == tensors["layers.1.attn.attn.persistent_memory.key"][h, e, n]
        assert p["layers.1.attention.memory_values"][h, n, e] == tensors["layers.1.attn.attn.persistent_memory.val"][h, n, e]
    np.testing.assert_array_equal(
        p["layers.0.attention.span"], tensors["layers.0.attn.attn.adaptive_span._mask.current_val"].ravel())
    for kind, name in (("query", "query"), ("key", "key"), ("value", "val"), ("output", "out")):
        np.testing.assert_array_equal(p[f"layers.0.attention.{kind}"], tensors[f"layers.0.attn.proj_{name}.weight"])
    np.testing.assert_array_equal(p["layers.1.attention_norm.gain"], tensors["layers.1.norm1.weight"])
    np.testing.assert_array_equal(p["layers.1.attention_norm.bias"], tensors["layers.1.norm1.bias"])
    np.testing.assert_array_equal(p["input.table"], tensors["in_emb.weight"])
    np.testing.assert_array_equal(p["output.table"], tensors["out_emb.weight"])
    np.testing.assert_array_equal(p["output.bias"], tensors["out_emb.bias"])


def test_layouts_of_the_baseline_and_of_the_clusters():
    tensors = published(BASELINE, "")
    p = convert.from_adaptive_span(tensors, BASELINE)
    for ours, name in (("weight1", "fc1.weight"), ("bias1", "fc1.bias"), ("weight2", "fc2.weight"), ("bias2", "fc2.bias")):
        np.testing.assert_array_equal(p[f"layers.0.feed_forward.{ours}"], tensors[f"layers.0.ff.{name}"])
    np.testing.assert_array_equal(p["layers.0.feed_forward_norm.gain"], tensors["layers.0.norm2.weight"])
    tensors = published(ADAPTIVE, "")
    p = convert.from_adaptive_span(tensors, ADAPTIVE)
    for i in range(3):
        np.testing.assert_array_equal(p[f"input.tables.{i}"], tensors[f"in_emb.emb_layers.{i}.weight"])
        np.testing.assert_array_equal(p[f"input.projections.{i}"], tensors[f"in_emb.emb_projs.{i}"])
        np.testing.assert_array_equal(p[f"output.tables.{i}"], tensors[f"out_emb.out_layers.{i}.weight"])
        np.testing.assert_array_equal(p[f"output.biases.{i}"], tensors[f"out_emb.out_layers.{i}.bias"])
        np.testing.assert_array_equal(p[f"output.projections.{i}"], tensors[f"out_emb.out_projs.{i}"])
    np.testing.assert_array_equal(p["output.cluster_table"], tensors["out_emb.cluster_proj.weight"])
    np.testing.assert_array_equal(p["output.cluster_bias"], tensors["out_emb.cluster_proj.bias"])


def test_tied_tensors_may_stand_under_either_name():
    both = published(TIED)
    for dropped in ("in_emb", "out_emb.out_layers.{}.weight out_emb.out_projs.{}"):
        names = {f"module.{name.format(i)}" for name in dropped.split() for i in range(3)}
        one = {name: t for name, t in both.items() if name not in names and not name.startswith(f"module.{dropped}.")}
        assert len(one) == len(both) - 6
        p, expected = (convert.from_adaptive_span(tensors, TIED) for tensors in (one, both))
        np.testing.assert_array_equal(p.vector, expected.vector)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_tensors_dtype_is_kept(dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in published(CONFIG).items()}
    assert convert.from_adaptive_span(tensors, CONFIG).vector.dtype == dtype


def test_missing_unknown_misshapen_and_contradicting_tensors_are_named():
    tensors = published(CONFIG, "")
    del tensors["in_emb.weight"]
    tensors["in_emb.wheight"] = np.zeros(1)
    with pytest.raises(InputError, match=r"expected also in_emb.weight; got, not expected, in_emb.wheight"):
        convert.from_adaptive_span(tensors, CONFIG)
    with pytest.raises(InputError, match=r"key_pe: expected shape \(1, 4, 5\), got \(1, 5, 4\)"):
        convert.from_adaptive_span({**published(CONFIG, ""), "key_pe": np.zeros((1, 5, 4))}, CONFIG)
    tied = published(TIED, "")
    tied["out_emb.out_projs.1"] = tied["out_emb.out_projs.1"] + 1
    with pytest.raises(InputError, match=r"out_emb.out_projs.1 and in_emb.emb_projs.1: expected equal values"):
        convert.from_adaptive_span(tied, TIED)
    with pytest.raises(InputError, match="expected a model with norm post"):
        convert.from_adaptive_span(published(CONFIG), replace(CONFIG, norm="pre"))
    with pytest.raises(InputError, match=r"got, not expected, layers\.0\.attn\.attn\.adaptive_span\._mask\.current_val"):
        convert.from_adaptive_span(published(CONFIG), replace(CONFIG, adaptive_span=False))
