"""Protocols: which tokens are scored, how far back the model looks, against the scalar model and whole passes."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refimpl import model, parameters, protocols, results
from refimpl.config import ModelConfig
from refimpl.datasets.batches import transformer_xl_blocks
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError
from refimpl.evaluation import Evaluation, evaluate
from refimpl.protocols import Protocol, prepared, settle


def sibling(name):
    """Another test file as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scalar = sibling("test_scalar_model").scalar
scalar_attention = importlib.import_module("scalar_model.attention")
scalar_positions = importlib.import_module("scalar_model.positions")

CONFIG = ModelConfig(vocabulary=7, width=8, heads=2, layers=2, span=4, memory=2, span_ramp=3)
SPANS = {"layers.0.attention.span": [0.0, 0.3], "layers.1.attention.span": [0.6, 1.0]}
# sums of a few dozen products in each of two layers, in another order
TOLERANCE = 1e-13


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, 7, length)


def trained(config, seed=1):
    p = parameters.initialize(config, seed)
    for name, spans in SPANS.items() if config.adaptive_span else ():
        p[name] = np.array(spans[: config.context_heads])
    return p


def scored(p, config, protocol, tokens):
    """refimpl's loss over transformer_xl_blocks, and the losses' places in time."""
    blocks = list(transformer_xl_blocks(tokens, protocol.streams, protocol.block))
    return evaluate(*prepared(p, config, protocol), blocks)


def scalar_loss(p, config, protocol, tokens, monkeypatch):
    """The same by the scalar model, its own spans and distances kept, and a query's sight set to the protocol's past."""
    seen, farthest = replace(config, span=protocol.past), protocol.farthest or math.inf
    weights = {name: array.tolist() for name, array in p.items()}
    for name, rows in weights.items():
        if name == "input.positions":
            weights[name] = (rows * 9)[: protocol.past]
        elif name.endswith("positions"):
            told_apart = rows[: protocol.farthest and protocol.farthest + config.attend_self]
            weights[name] = (told_apart + told_apart[-1:] * 99)[: protocol.past]
    ramp, size, xl, ends = config.span_ramp, config.span, scalar_positions.distance_sinusoid, scalar_attention.clamp
    monkeypatch.setattr(scalar_attention, "span_mask", lambda _, rho, x: ends((ramp + size * rho - x) / ramp))
    monkeypatch.setattr(scalar_positions, "distance_sinusoid", lambda distance, width: xl(min(distance, farthest), width))
    losses = []
    length = len(tokens) // protocol.streams
    for stream in range(protocol.streams):
        row, past = tokens[stream * length : (stream + 1) * length], scalar.initial_past(seen, 1)
        for start in range(0, length - 1, protocol.block):
            end = min(start + protocol.block, length - 1)
            out = scalar.forward(weights, seen, [row[start:end]], [row[start + 1 : end + 1]], past, {}, 0)
            losses += out.token_loss[0]
            past = out.past
    return math.fsum(losses) / len(losses), len(losses)


@pytest.mark.parametrize("settings", [
    {"positions": "transformer-xl"}, {"positions": "transformer-xl", "attend_self": True, "share_positions": False},
    {"positions": "relative"}, {"positions": "relative", "share_positions": False, "attend_self": True},
    {"positions": "none"}, {"positions": "sinusoid"}, {"positions": "learned"},
    {"positions": "transformer-xl", "variant": "head-split"}, {"positions": "transformer-xl", "variant": "single-head"},
    {"positions": "none", "adaptive_span": False},
    {"positions": "relative", "memory": 0, "feed_forward": 5, "zero_past": True, "normalizer_epsilon": 1e-8},
], ids=lambda settings: "-".join(map(str, settings.values())))
@pytest.mark.parametrize(("past", "farthest"), [(9, 6), (9, 3), (3, 2), (3, None)])
def test_a_longer_or_shorter_past_by_the_scalar_model(settings, past, farthest, monkeypatch):
    config = replace(CONFIG, **settings)
    p, tokens = trained(config), text(35)
    protocol = settle("transformer-xl", "byte", config, 3, 2, 3, past, farthest or 820)
    expected, count = scalar_loss(p, config, protocol, tokens, monkeypatch)
    result = scored(p, config, protocol, tokens)
    assert result.loss == pytest.approx(expected, rel=TOLERANCE)
    assert result.tokens == count == 2 * 16


def test_absolute_positions_of_a_block_longer_than_the_span(monkeypatch):
    """Position 5 of a block has row 5 mod S, as in training, whatever the past."""
    config = replace(CONFIG, positions="learned")
    protocol = settle("transformer-xl", "byte", config, 3, 2, 7, 9)
    expected, _ = scalar_loss(trained(config), config, protocol, text(35), monkeypatch)
    assert scored(trained(config), config, protocol, text(35)).loss == pytest.approx(expected, rel=TOLERANCE)


def test_farther_positions_that_may_be_seen_are_seen():
    """Without positions and with spans to the end, blocks with a long past are one pass over the whole text."""
    config = replace(CONFIG, positions="none", adaptive_span=False)
    p, tokens = trained(config), text(31)
    whole = replace(config, span=40)
    out = model.forward(p, whole, tokens[None, :-1], tokens[None, 1:], model.initial_past(whole, 1, p.vector))
    far = scored(p, config, settle("transformer-xl", "byte", config, 5, 1, 5, 40, None), tokens)
    assert far.loss == pytest.approx(float(out.loss), rel=1e-13)
    assert abs(scored(p, config, settle("transformer-xl", "byte", config, 5, 1, 5, 4, None), tokens).loss - far.loss) > 1e-6


def test_spans_keep_their_length():
    """ρ = 0.6 of 4 positions is 2.4 of whatever is kept: beyond z + R nothing changes, however long the past."""
    config = replace(CONFIG, positions="none", span_ramp=1)
    p, tokens = trained(config), text(60)
    p["layers.1.attention.span"] = np.array([0.6, 0.5])
    losses = [scored(p, config, Protocol("every-token", 1, 7, past), tokens).loss for past in (4, 8, 50)]
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-13)


def test_nothing_is_changed_where_nothing_is_asked_for():
    p = trained(CONFIG)
    same, config = prepared(p, CONFIG, settle("published", "byte", CONFIG, 3))
    assert same is p
    assert config is CONFIG


def test_each_protocols_own_values():
    config = replace(CONFIG, span=5000, positions="transformer-xl")
    assert settle("every-token", "word", config, 32) == Protocol("every-token", 8, 32, 5000)
    assert settle("published", "byte", config, 32) == Protocol("published", 8, 32, 5000)
    for unit in ("byte", "character"):
        assert settle("transformer-xl", unit, config, 32) == Protocol("transformer-xl", 10, 80, 2100, 820)
    assert settle("transformer-xl", "word", config, 32) == Protocol("transformer-xl", 10, 64, 640, 400)
    assert settle("transformer-xl", "word", config, 32, 1, 2, 3, 4) == Protocol("transformer-xl", 1, 2, 3, 4)
    learned = replace(config, positions="relative", span=100)
    assert settle("transformer-xl", "byte", learned, 32).farthest == 100
    assert settle("transformer-xl", "byte", replace(learned, attend_self=True), 32).farthest == 99
    assert settle("transformer-xl", "byte", replace(config, positions="none"), 32).farthest is None
    assert [settle(name, "byte", config, 32).weighted for name in protocols.NAMES] == [True, False, True]


def test_transformer_xls_blocks():
    """47 tokens in 3 rows of 15: two tokens are dropped, each row's first is no target, the last block is shorter."""
    blocks = list(transformer_xl_blocks(np.arange(47), 3, 4))
    assert [block.targets.shape for block in blocks] == [(3, 4), (3, 4), (3, 4), (3, 2)]
    assert [block.restart for block in blocks] == [True, False, False, False]
    for row in range(3):
        targets = [token for block in blocks for token in block.targets[row]]
        assert targets == list(range(15 * row + 1, 15 * row + 15))
    assert all((block.tokens + 1 == block.targets).all() for block in blocks)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"name": "fast"}, "protocol: expected one of every-token, published, transformer-xl, got 'fast'"),
    ({"past": 0}, "past: expected 1 or more, got 0"),
    ({"farthest": -1}, "clamp: expected 1 or more, got -1"),
    ({"streams": 0}, "streams: expected 1 or more"),
    ({"past": 5}, "--past: expected at most 4, the distances that this model has learned vectors for .*--clamp.*, got 5"),
    ({"config": replace(CONFIG, positions="learned"), "past": 2},
     "--past: expected at least the block's 3 tokens with learned absolute positions, got 2"),
])
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message) as told:
        settle(**{"name": "every-token", "unit": "byte", "config": CONFIG, "trained_block": 3, **arguments})
    assert "\n" not in str(told.value)


def test_rows_without_a_target_are_refused():
    with pytest.raises(InputError, match=r"text of 5 tokens: expected at least 2 × streams = 6, got 5"):
        transformer_xl_blocks(np.arange(5), 3, 4)


def test_every_measure_and_both_ends_of_the_interval():
    """ln 8 a token: 3 bits; 3 tokens for 12 bytes: 3/4 bits a byte; a quarter of the words line ends: 8^(4/3) = 16."""
    found = results.measures(Evaluation(math.log(8), 100, 25), "word", 0.25)
    assert found == pytest.approx({"loss": math.log(8), "bits_per_word": 3, "bits_per_byte": 0.75, "perplexity": 8,
                                   "perplexity_without_eos": 16}, rel=1e-13)
    assert results.measures(Evaluation(2.0, 9), "byte", 1.0).keys() == {"loss", "bits_per_character", "bits_per_byte"}
    assert results.measures(Evaluation(1e4, 9), "word", 1.0)["perplexity"] is None


def test_the_interval_is_that_of_the_same_text_and_brackets_the_loss():
    p, tokens, vocabulary = trained(CONFIG), text(2000), Vocabulary("character", tuple("abcdefg"))
    result = results.score(p, CONFIG, tokens, vocabulary, settle("every-token", "character", CONFIG, 16))
    told = results.interval_of(result, "character", 1.0)
    assert told["level"] == 0.95
    for name, (low, high) in ((name, ends) for name, ends in told.items() if isinstance(ends, list)):
        assert low < results.measures(result, "character", 1.0)[name] < high
    assert results.interval_of(Evaluation(1.0, 9), "byte", 1.0) is None
