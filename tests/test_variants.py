"""The ablations and the other kinds of positions: each pair's gradient, values worked by hand, sizes, training, text."""

import json
import math
import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from refimpl import generation, model, parameters, variants
from refimpl.config import POSITIONS, VARIANTS, ModelConfig
from refimpl.device import attention as device_attention
from refimpl.errors import InputError
from refimpl.layers import (
    attention,
    feed_forward,
    ff_attention,
    head_split,
    persistent_attention,
    positions,
    softmax,
    split_attention,
    tiled_attention,
)

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, span=6, span_ramp=3, memory=3)
FORM = {  # what each variant asks for beside its name
    "transformer": {"memory": 0, "feed_forward": 9, "zero_past": True},
    "ff-attention": {"memory": 0, "feed_forward": 9, "zero_past": True},
}


def form(variant, kind="relative"):
    return replace(CONFIG, **{"variant": variant, "positions": kind, **FORM.get(variant, {})})


def draw(seed, queries=(2, 3, 3, 2), heads=3, memory=(3, 2, 2), past=2, size=4, biases=False):
    """Arguments of an attention: `heads` with keys, μ and ν of the shape `memory`."""
    rng = np.random.default_rng(seed)
    batch, block, _, width = queries
    return attention.Arguments(
        rng.standard_normal(queries), *rng.standard_normal((2, batch, past + block, heads, width)),
        rng.standard_normal((heads, size, width) if biases else (size, width)), *rng.standard_normal((2, *memory)),
        rng.uniform(0.1, 0.6, heads), *(rng.standard_normal((2, heads, width)) if biases else (None, None)),
    )


def check_core(check_pair, core, arguments, options, *keep):
    names = [name for name in attention.Arguments._fields if getattr(arguments, name) is not None]

    def run(*given):
        return core.forward(attention.Arguments(**dict(zip(names, given, strict=True))), options, *keep)

    def backward(dy, *given):
        return [getattr(core.backward(dy, run(*given)[1]), name) for name in names]

    check_pair(lambda *given: run(*given)[0], backward, [getattr(arguments, name) for name in names])


CORES = {
    "all-attention": (attention, {}, (3, 3)),
    "attention-split": (split_attention, {}, (3, 3)),
    "single-head": (split_attention, {"memory": (1, 4, 6)}, (3, 1)),
    "head-split": (head_split, {"heads": 2, "memory": (1, 4, 2)}, (2, 1)),
}


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("past", [0, 2, 5])
@pytest.mark.parametrize("name", CORES)
def test_every_core_and_u_and_v_have_exact_gradients(check_pair, name, past, biases, dropout):
    core, shapes, heads = CORES[name]
    arguments = draw(1, past=past, biases=biases, **shapes)
    rng, slots, keep = np.random.default_rng(2), arguments.memory_keys.shape[1], ()
    if dropout:
        keep = rng.random((2, heads[0], 3, 4)) > 0.4, rng.random((2, heads[1], 3, slots)) > 0.4
    check_core(check_pair, core, arguments, attention.Options(4, 2, 1e-8 if past == 2 else 0.0, dropout=dropout), *keep)


def test_softmax_by_hand_and_where_a_naive_one_overflows():
    """Odds 1 : 3 : 4; and logits of 1000."""
    np.testing.assert_allclose(softmax.forward(np.log(np.array([[1.0, 3, 4]])))[0], [[0.125, 0.375, 0.5]], rtol=1e-15)
    a, saved = softmax.forward(np.array([[1000.0, 0], [0, -1000]]))
    np.testing.assert_array_equal(a, [[1, 0], [1, 0]])
    np.testing.assert_array_equal(softmax.backward(np.array([[2.0, 3], [5, 7]]), saved), [[0, 0], [0, 0]])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_softmax_persistent_and_ff_attention_have_exact_gradients(check_pair, rate):
    rng = np.random.default_rng(0)
    keep = rng.random((2, 3, 4)) > 0.3 if rate else None
    check_pair(lambda s: softmax.forward(s)[0], lambda da, s: [softmax.backward(da, softmax.forward(s)[1])],
               [rng.standard_normal((2, 3))])
    check_pair(
        lambda h, *w: ff_attention.forward(h, ff_attention.Weights(*w), keep, rate)[0],
        lambda dy, h, *w: (lambda dh, dw: [dh, *dw])(
            *ff_attention.backward(dy, ff_attention.forward(h, ff_attention.Weights(*w), keep, rate)[1])),
        [rng.standard_normal(shape) for shape in ((2, 3, 5), (4, 5), (5, 4))])
    keep = rng.random((2, 2, 3, 4)) > 0.3 if rate else None
    check_pair(
        lambda *given: persistent_attention.forward(*given, keep, rate)[0],
        lambda dy, *given: persistent_attention.backward(dy, persistent_attention.forward(*given, keep, rate)[1]),
        [rng.standard_normal(shape) for shape in ((2, 3, 2, 5), (2, 4, 5), (2, 4, 5))])


def test_a_keep_mask_without_a_rate_leaves_what_it_keeps_as_it_is():
    """Nothing is divided by 1 - rate: with all kept, as without a mask."""
    rng = np.random.default_rng(1)
    h, up, down, *of_heads = (rng.standard_normal(shape) for shape in (
        (2, 3, 5), (4, 5), (5, 4), (2, 3, 2, 5), (2, 4, 5), (2, 4, 5)))
    for function, arguments, slots in (
        (feed_forward, (h, feed_forward.Weights(up, np.zeros(4), down, np.zeros(5))), (2, 3, 4)),
        (ff_attention, (h, ff_attention.Weights(up, down)), (2, 3, 4)),
        (persistent_attention, of_heads, (2, 2, 3, 4)),
    ):
        kept, plain = function.forward(*arguments, np.ones(slots, bool))[0], function.forward(*arguments)[0]
        np.testing.assert_array_equal(kept, plain)


def test_transformer_xls_table_has_an_exact_gradient(check_pair):
    weight = np.random.default_rng(0).standard_normal((6, 5))
    check_pair(lambda w: positions.projected_forward(w, 4, 1, 3)[0],
               lambda dy, w: [positions.projected_backward(dy, positions.projected_forward(w, 4, 1, 3)[1])], [weight])


def test_split_values_by_hand():
    """E = 1, one query 1; context logits ln 2 and ln 4, values 3 and 6; persistent logits 0 and ln 3, values √2 · 4, √2 · 8.

    Apart: (2·3 + 4·6)/6 = 5 and (√2·4 + 3·√2·8)/4 = 7√2. Together: (30 + 28√2)/10.
    """
    context = np.log([4.0, 2.0]).reshape(1, 2, 1, 1), np.array([6.0, 3.0]).reshape(1, 2, 1, 1)
    mu, nu = np.log([1.0, 3.0]).reshape(1, 2, 1), np.array([4.0, 8.0]).reshape(1, 2, 1)
    arguments = attention.Arguments(np.ones((1, 1, 1, 1)), *context, None, mu, nu)
    options = attention.Options(2, 1, attend_self=True)
    assert split_attention.forward(arguments, options)[0].item() == pytest.approx(5 + 7 * math.sqrt(2), rel=1e-14)
    assert attention.forward(arguments, options)[0].item() == pytest.approx((30 + 28 * math.sqrt(2)) / 10, rel=1e-14)
    two = arguments._replace(queries=np.ones((1, 1, 2, 1)))
    y = head_split.forward(two, options)[0]
    np.testing.assert_allclose(y.ravel(), [5, 7 * math.sqrt(2)], rtol=1e-14)


def test_a_query_that_sees_no_context_has_only_the_persistent_half():
    """P = 0, not attend_self: the first query; the joint softmax is then the persistent one, too."""
    arguments = draw(3, past=0)
    options = attention.Options(4, 2)
    apart, joint = (core.forward(arguments, options)[0] for core in (split_attention, attention))
    alone, _ = persistent_attention.forward(arguments.queries, arguments.memory_keys, arguments.memory_values)
    np.testing.assert_array_equal(apart[:, 0], alone[:, 0])
    np.testing.assert_allclose(joint[:, 0], alone[:, 0], rtol=0, atol=1e-15)
    assert np.abs(apart[:, 1:] - alone[:, 1:]).min() > 1e-6


def test_single_head_with_one_head_is_attention_split():
    arguments = draw(4, queries=(2, 3, 1, 2), heads=1, memory=(1, 3, 2))
    one = split_attention.forward(arguments, attention.Options(4, 2))[0]
    context = attention.forward(arguments._replace(memory_keys=None, memory_values=None), attention.Options(4, 2))[0]
    alone = persistent_attention.forward(arguments.queries, arguments.memory_keys, arguments.memory_values)[0]
    np.testing.assert_array_equal(one, context + alone)


def test_sinusoid_by_hand():
    """D = 5: ω = 1, 10000^(-2/5), 10000^(-4/5); sines of three frequencies, cosines of two."""
    omega = [1.0, 10000**-0.4, 10000**-0.8]
    sines, cosines = positions.sinusoid(2, 2, 5, np.zeros(1))
    np.testing.assert_allclose(sines, [[math.sin(x * w) for w in omega] for x in (2, 3)], rtol=1e-15)
    np.testing.assert_allclose(cosines, [[math.cos(x * w) for w in omega[:2]] for x in (2, 3)], rtol=1e-15)
    row = positions.absolute(3, 1, 5, np.zeros(1))[0]
    np.testing.assert_allclose(row, [sines[1, 0], cosines[1, 0], sines[1, 1], cosines[1, 1], sines[1, 2]], rtol=0)


def test_single_precision_takes_angles_in_double():
    """At distance 8191 an angle in float32 is off by 5e-4; its sine must be the rounded exact one."""
    single, double = (positions.sinusoid(8191, 1, 512, np.zeros(1, dtype)) for dtype in ("float32", "float64"))
    for one, two in zip(single, double, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_array_equal(one, two.astype("float32"))


def test_transformer_xl_logits_by_hand():
    """One key at distance 1, E = D = 2: ((q + u)·k + (q + v)·W r₁)/√2, r₁ = (sin 1, cos 1), against a logit of 0."""
    q, k, u, v = np.array([1.0, 2]), np.array([0.5, -1]), np.array([0.25, 0.5]), np.array([-1, 0.125])
    weight = np.array([[2.0, 1], [0, -3]])
    r = np.array([2 * math.sin(1) + math.cos(1), -3 * math.cos(1)])
    logit = ((q + u) @ k + (q + v) @ r) / math.sqrt(2)
    table, _ = positions.projected_forward(weight, 1, 1, 2)
    np.testing.assert_allclose(table[0, 0], r, rtol=1e-15)
    keys, values = np.zeros((2, 1, 2, 1, 2))
    keys[0, 0, 0], values[0, 0, 0] = k, [1, 0]
    arguments = attention.Arguments(
        q.reshape(1, 1, 1, 2), keys, values, table, np.zeros((1, 1, 2)), np.zeros((1, 1, 2)), None, u[None], v[None])
    y, _ = attention.forward(arguments, attention.Options(1, 1))
    np.testing.assert_allclose(y.ravel(), [1 / (1 + math.exp(-logit)), 0], rtol=1e-14)


def test_absolute_positions_are_added_to_the_embedding_and_count_within_the_block():
    p = parameters.initialize(form("all-attention", "learned"))
    tokens = np.arange(8)[None]
    past = model.initial_past(p.config, 1, p.vector)
    hidden = model.forward(p, p.config, tokens, tokens, past).saved.hidden[0][0]
    rows = np.array([0, 1, 2, 3, 4, 5, 0, 1])  # S = 6: a longer block begins the table anew
    np.testing.assert_array_equal(hidden, p["input.table"][:8] + p["input.positions"][rows])
    later = model.forward(p, p.config, tokens[:, 3:], tokens[:, 3:], past, first_position=3).saved.hidden[0][0]
    np.testing.assert_array_equal(later, hidden[3:])
    p = parameters.initialize(form("all-attention", "sinusoid"))
    hidden = model.forward(p, p.config, tokens, tokens, past).saved.hidden[0][0]
    np.testing.assert_allclose(hidden[5, :2] - p["input.table"][5, :2], [math.sin(5), math.cos(5)], rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_generation_equals_the_model_over_blocks_as_trained(variant, kind):
    """Blocks of 4: absolute positions begin anew with each, the past goes on."""
    config = form(variant, kind)
    p = parameters.initialize(config, 1)
    p.vector += 0.1 * np.random.default_rng(0).standard_normal(p.vector.size)
    prompt = np.random.default_rng(1).integers(0, 11, 6)
    text = [*prompt, *(token for token, in generation.generate(p, config, [prompt], 7, temperature=0, block=4))]
    past, expected = model.initial_past(config, 1, p.vector), []
    for start in range(0, len(text), 4):
        tokens = np.array([text[start : start + 4]])
        expected += list(model.log_probabilities(p, config, tokens, past)[0].argmax(-1))
        past = model.forward(p, config, tokens, tokens, past).past
    assert text[6:] == expected[5 : len(text) - 1]


def formula(config, kind):
    """Parameters of each group, as the papers count them."""
    d, n, f, layers, size = config.width, config.memory, config.feed_forward, config.layers, config.span
    width, context = config.head_width, config.context_heads
    by_kind = {"relative": size * width, "transformer-xl": layers * context * width * d + 2 * context * width,
               "learned": size * d, "sinusoid": 0, "none": 0}
    inner = {"transformer": 2 * d * f + f + d, "ff-attention": 2 * d * f}.get(config.variant, 0)
    in_memory = d - context * width if config.variant == "head-split" else d
    return {
        "attention": layers * (2 * d * d + 2 * d * context * width), "positions": by_kind[kind],
        "memory": layers * 2 * n * in_memory, "feed_forward": layers * inner,
        "spans": layers * context, "norms": layers * (4 if f else 2) * d,
    }


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_dry_run_counts_a_published_size(command, variant, kind):
    base = "enwik8" if variant in FORM else "enwik8-all-attention-small"
    end = command("train", "--preset", base, "--dry-run", "--json", "--set", f"model.variant={variant}",
                  "--set", f"model.positions={kind}")
    assert end.code == 0, end.err
    counts = json.loads(end.out)["parameters"]["by_group"]
    if base == "enwik8":
        config = ModelConfig(205, 512, 8, 12, 8192, feed_forward=2048, variant=variant, positions=kind)
    else:
        config = ModelConfig(205, 512, 8, 18, 8192, 1024, variant=variant, positions=kind)
    expected = {group: size for group, size in formula(config, kind).items() if size}
    assert {group: counts[group] for group in counts if group not in ("input", "output")} == expected


@pytest.mark.parametrize("kind", POSITIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_evaluates_and_writes_from_the_command_line(command, text, tiny, tmp_path, variant, kind):
    options = [f"model.{name}={json.dumps(value)}" for name, value in FORM.get(variant, {}).items()]
    options += [f"model.variant={variant}", f"model.positions={kind}", "model.dropout=0.1", "train.updates=30",
                "train.learning_rate=0.01"]
    run = tmp_path / "run"
    end = command("train", "--data", text, "--out", run, *tiny, *(word for option in options for word in ("--set", option)))
    assert end.code == 0, end.err
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [record["bits"] for record in log if "bits" in record]
    assert losses[-1] < losses[0] - 0.5
    assert command("eval", run, "--json").code == 0
    assert len(command("generate", run, "--length", 20, "--prompt", "the ").out) > 20


@pytest.mark.parametrize(("change", "message"), [
    ({"variant": "attention-split", "memory": 0}, "attention-split: expected memory of 1 or more, got 0"),
    ({"variant": "single-head", "feed_forward": 4}, "feed_forward: expected 0 beside persistent memory"),
    ({"variant": "head-split", "heads": 1}, "head-split: expected 2 heads or more, got 1"),
    ({"variant": "ff-attention"}, "ff-attention: expected memory 0, got 3"),
    ({"variant": "ff-attention", "memory": 0}, "expected feed_forward of 1 or more"),
    ({"variant": "allattention"}, "expected one of all-attention, attention-split"),
    ({"positions": "rotary"}, "expected one of relative, transformer-xl"),
])
def test_variants_that_cannot_be_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(CONFIG, **change)


def test_memory_of_another_shape_is_refused():
    arguments = draw(0)
    with pytest.raises(InputError, match=r"memory_values: expected \(G, N, K\) = \(3, 2, 2\), got \(3, 1, 2\)"):
        split_attention.forward(arguments._replace(memory_values=arguments.memory_values[:, :1]), attention.Options(4, 2))
    with pytest.raises(InputError, match="memory_keys: expected persistent vectors"):
        split_attention.forward(arguments._replace(memory_keys=None), attention.Options(4, 2))
    with pytest.raises(InputError, match="keep and keep_memory"):
        attention.forward(arguments, attention.Options(4, 2), np.ones((2, 3, 3, 4), bool))


@pytest.mark.parametrize(("form", "batch", "block", "expected"), [
    ({"span": 64, "memory": 64, "heads": 4, "layers": 3}, 16, 64, "tiled"),
    ({"span": 255, "memory": 256}, 1, 16, "textbook"), ({"span": 256, "memory": 256}, 1, 16, "tiled"),
    ({"span": 511, "memory": 0, "feed_forward": 9}, 1, 16, "textbook"), ({"span": 256, "memory": 256}, 1, 15, "textbook"),
    ({"span": 64, "memory": 64, "heads": 4, "layers": 2}, 255, 32, "textbook"),
    ({"span": 64, "memory": 64, "heads": 4, "layers": 2}, 256, 32, "tiled"),
    ({"span": 64, "memory": 64, "heads": 4, "layers": 4}, 128, 32, "tiled"),
    ({"span": 64, "memory": 64, "heads": 8, "layers": 2}, 128, 32, "tiled"),
    ({"span": 146, "memory": 1024}, 1, 7, "textbook"), ({"span": 16, "memory": 31}, 178481, 1, "textbook"),
    ({"span": 64, "memory": 64, "cutoffs": (100,)}, 16, 64, "tiled"),
])
def test_where_tiles_are_worth_it(form, batch, block, expected):
    """Below 2^13 logits for each head and text, 2^23 in all layers, without an adaptive softmax: the textbook."""
    config = ModelConfig(vocabulary=205, **{"width": 128, "heads": 1, "layers": 1, **form})
    assert variants.attention_path("auto", config, batch, block) == expected
    for name in ("tiled", "textbook"):
        assert variants.attention_path(name, config, batch, block) == name


class Elsewhere:
    """What tells a GPU's array."""

    __module__, dtype = "cupy", np.dtype("float64")


def test_tiles_are_for_real_arrays_all_of_them(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))
    real, imaginary = np.zeros(1), np.zeros(1, complex)
    assert variants.attention_core("tiled", real, real) is tiled_attention
    for arrays in ((real, imaginary), (imaginary, real)):
        assert variants.attention_core("tiled", *arrays) is attention
    for arrays in ((Elsewhere(),), (real, Elsewhere()), (Elsewhere(), real)):
        assert variants.attention_core("tiled", *arrays) is device_attention
    assert variants.attention_core("textbook", real) is attention
