"""`bench --ledger`: its launches, products and operations are those that the stand-in device counts, in every form."""

import json
from dataclasses import replace

import cuda_on_cpu
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stand_in import cupy

from refimpl import optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import adaptive_softmax, attention, counts, ledger, ledger_layers, windows
from refimpl.settings import preset_names

BASE = ModelConfig(vocabulary=11, width=8, heads=4, layers=2, span=6, memory=3, span_ramp=3)
SHAPE = {"batch": 3, "block": 8}
NO_MEMORY = {"memory": 0, "feed_forward": 5}
VARIANTS = {"all-attention": {}, "transformer": NO_MEMORY, "ff-attention": {**NO_MEMORY, "variant": "ff-attention"},
            **{variant: {"variant": variant} for variant in ("attention-split", "single-head", "head-split")}}
FORMS = {
    "pre-norm": {"norm": "pre"}, "one layer": {"layers": 1}, "itself": {"attend_self": True, **NO_MEMORY},
    "own tables": {"share_positions": False}, "tied": {"tie_tables": True}, "fixed spans": {"adaptive_span": False},
    "two heads": {"heads": 2}, "dropout": {"dropout": 0.1, "embedding_dropout": 0.2}, "longer past": {"span": 13},
    "clusters": {"cutoffs": (3, 5), "divisor": 2}, "published": {"normalizer_epsilon": 1e-8, "zero_past": True},
    "an empty cluster": {"cutoffs": (3, 5, 5), "divisor": 2, "tie_tables": True, "tie_projections": True},
    **{f"positions, {name}": {"positions": name} for name in ("transformer-xl", "sinusoid", "learned", "none")},
    "own biases": {"positions": "transformer-xl", "share_positions": False, "norm": "pre"},
    "feed-forward, pre, dropout": {**NO_MEMORY, "norm": "pre", "dropout": 0.1},
}


def counted(config, train):
    """What the second update asks of the stand-in, with the first parameters but for what the first update changed."""
    p = parameters.initialize(config, 0, train.dtype)
    p = p.with_vector(cupy.asarray(p.vector))
    state, rng = optimizers.initialize(train, p), np.random.default_rng(1)
    past = cupy.asarray(rng.standard_normal((config.layers, train.batch, config.span, config.width)), train.dtype)
    for _ in range(2):
        words = rng.integers(0, config.vocabulary, (2, train.batch, train.block))
        cuda_on_cpu.reset_counters()
        training.update(p, state, config, train, *map(cupy.asarray, words), past)
    return cuda_on_cpu.counters()


def assert_told(config, train, when="span_initial"):
    told, found = ledger.ledger(config, train), counted(config, train)
    total = told[when]["total"]
    assert (total["launches"], total["products"]) == (found["launches"], found["gemms"])
    assert total["operations"] == found["gemm_operations"]
    assert told["sent_bytes"] == found["host_to_device_bytes"]
    assert told["read_back_bytes"] == found["device_to_host_bytes"]
    assert told["synchronizations"] == found["synchronizations"]


def trained(**changes):
    return TrainConfig(**{**SHAPE, "updates": 3, "log_every": 10, **changes})


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_counted_one(form):
    assert_told(replace(BASE, **FORMS[form]), trained())


@pytest.mark.parametrize("form", ["one layer", "pre-norm", "dropout", "clusters", "positions, transformer-xl"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_the_counted_one(variant, form):
    assert_told(replace(BASE, **VARIANTS[variant], **FORMS[form]), trained())


@pytest.mark.parametrize("elements", [200, 1])
@pytest.mark.parametrize("changes", [{}, NO_MEMORY, {"cutoffs": (3, 5), "divisor": 2}, {"variant": "head-split"}], ids=str)
def test_small_tiles_are_counted(monkeypatch, changes, elements):
    monkeypatch.setattr(attention, "ELEMENTS", elements)
    monkeypatch.setattr(adaptive_softmax, "ELEMENTS", elements)
    monkeypatch.setattr(attention, "ROWS", 6)
    assert_told(replace(BASE, **changes), trained())


@given(st.sampled_from(sorted(VARIANTS)), st.sampled_from([1, 2, 5]), st.sampled_from([1, 2, 7]), st.sampled_from([1, 2, 9]),
       st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]), st.sampled_from(["relative", "transformer-xl", "learned"]),
       st.booleans(), st.sampled_from(["float32", "float64"]))
@example("head-split", 1, 1, 2, 2, 1, "transformer-xl", True, "float64")
@example("attention-split", 1, 1, 1, 4, 1, "relative", False, "float32")
@example("single-head", 1, 7, 1, 4, 3, "transformer-xl", True, "float32")
@example("all-attention", 2, 2, 2, 1, 1, "learned", False, "float32")
@example("ff-attention", 5, 1, 1, 1, 1, "relative", True, "float64")
@settings(max_examples=12)
def test_sizes_of_one_are_counted(variant, batch, block, span, heads, memory, positions, pre, dtype):
    heads = max(2, heads) if variant == "head-split" else heads
    changes = {**VARIANTS[variant], "span": span, "heads": heads, "positions": positions, "norm": "pre" if pre else "post"}
    if "memory" not in changes:
        changes["memory"] = memory
    assert_told(replace(BASE, **changes), trained(batch=batch, block=block, dtype=dtype))


@pytest.mark.parametrize("changes", [{}, {"span_initial": 1.0}, {"span_initial": 0.3}, {"variant": "head-split"},
                                     {"normalizer_epsilon": 1e-8, "span": 300}, {"norm": "pre", "span_initial": 0.5},
                                     {"positions": "transformer-xl"}], ids=str)
def test_spans_as_they_begin_are_counted_and_full_ones(monkeypatch, changes):
    monkeypatch.setattr(windows, "SMALL", 8)
    config, train = replace(BASE, **{"span": 40, **changes}), trained(learning_rate=1e-3)
    assert_told(config, train)
    told = ledger.ledger(config, train)
    begins, full = (told[when]["total"]["operations"] for when in ("span_initial", "full_span"))
    assert begins <= full
    assert (begins == full) == (config.span_initial == 1)
    assert_told(replace(config, span_initial=1.0), train, "full_span")
    assert told["spans_read_every"] == windows.interval(train) > 1


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9}, {"optimizer": "adagrad"},
                                     {"attention": "tiled"}], ids=str)
def test_ways_to_train_are_counted(changes):
    assert_told(BASE, trained(**changes))


@pytest.mark.parametrize(("module", "name", "wrong"), [
    (ledger_layers, "BROADCAST", 5), (ledger_layers, "_softmax", lambda *_: None), (ledger_layers, "_norm", lambda *_: None),
    (ledger_layers, "sinusoid", lambda *_: None), (ledger.ledger_ends, "past", lambda *_: None),
    (ledger.ledger_ends, "_times", lambda *_: 1)])
def test_a_wrong_count_is_caught(monkeypatch, module, name, wrong):
    config = replace(BASE, variant="attention-split", positions="transformer-xl")
    monkeypatch.setattr(module, name, wrong)
    with pytest.raises(AssertionError):
        assert_told(config, trained())


def test_bytes_are_those_of_arrays_read_and_written():
    found = counts.Sum("float64")
    found.product(2, 3, 5, batch=7, shared=True, add=True)
    found.each(10, read=2, times=3)
    found.each(0)
    found.cleared(4)
    found.kernel(1, 2)
    assert found.entry() == counts.Entry(4, 1, 2 * 7 * 30, 8 * (7 * 6 + 15 + 7 * 10 + 60 + 1), 8 * (70 + 30 + 4 + 2))
    assert counts.total([found.entry(), found.entry()]).launches == 8


def test_a_bound_is_the_longer_of_both_times(monkeypatch):
    monkeypatch.setattr(ledger, "PEAKS", {"slow": ledger.Peak(10.0, 100.0, "a test")})
    parts = {"products": counts.Entry(1, 1, 50, 100, 100), "memory": counts.Entry(3, 0, 0, 300, 100)}
    assert ledger._least(parts, ledger.PEAKS["slow"]) == 5 + 4


def test_the_command_says_that_it_is_a_bound(command):
    end = command("bench", "--ledger")
    assert end.code == 0
    for words in ("bound, A100", "bound, H100", "bound, RTX 4090", "not a measurement", "datasheet", "nothing", "launches"):
        assert words in end.out
    result = json.loads(command("bench", "--ledger", "--json").out)
    for when in ("span_initial", "full_span"):
        parts = result[when]["parts"]
        assert sum(part["operations"] for part in parts.values()) == result[when]["total"]["operations"]
    assert result["read_back_bytes"] == 0


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_has_one(command, name):
    end = command("bench", "--preset", name, "--ledger")
    assert end.code == 0, end.err
    assert "spans full" in end.out or "one update" in end.out


def test_it_counts_tiles_whichever_attention_is_set():
    told = ledger.ledger(BASE, TrainConfig(attention="textbook"))
    assert told == ledger.ledger(BASE, TrainConfig(attention="auto"))
    assert told["attention"] == "tiled"
