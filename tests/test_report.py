"""What a report measures, against loops written here; its charts; what can be read of a damaged run."""

import json
import math
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from refimpl import checkpoint, model, optimizers, parameters
from refimpl.checkpoint import Checkpoint
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError
from refimpl.report import charts, curves, looking, passage, predicting, reading, tables
from refimpl.settings import to_toml

MODEL = ModelConfig(vocabulary=256, width=8, heads=2, layers=2, span=6, span_ramp=3, memory=5)
TRAIN = TrainConfig(batch=1, block=4, dtype="float64")
TEXT = b"The cat sat on the mat.\nA dog ran far away from home,\tso far.\n"
BYTES = Vocabulary("byte")


def saved_model(config, train=TRAIN, seed=3):
    """A model whose every parameter is drawn, spans with ramps inside and beyond S among them."""
    p = parameters.initialize(config, seed=seed, dtype=train.dtype)
    p.vector[...] = 0.7 * np.random.default_rng(seed).standard_normal(p.vector.size)
    for layer in range(config.layers if config.adaptive_span else 0):
        rho = p[f"layers.{layer}.attention.span"]
        rho[...] = np.linspace(0.1, 0.9, len(rho)) if layer else 0.45
    return Checkpoint(config, train, p, optimizers.initialize(train, p), {"computing": {}}, None, BYTES.to_json())


def weights_by_hand(saved, tokens, layer, head, query):
    """A head's weights on the positions before a query, nearest first, and on its persistent vectors, from the equations."""
    config, p = saved.config, saved.parameters
    out = model.forward(p, config, tokens[None, :-1], tokens[None, 1:], model.initial_past(config, 1, p.vector))
    h, name, width = out.saved.hidden[layer][0], f"layers.{layer}.attention.", config.head_width
    rows = slice(head * width, (head + 1) * width)
    q = p[name + "query"][rows] @ h[query]
    context = {}
    for distance in range(1, min(config.span, query) + 1):
        k = p[name + "key"][rows] @ h[query - distance]
        z = config.span * p[name + "span"][head]
        mask = min(max((config.span_ramp + z - (distance - 1)) / config.span_ramp, 0), 1)
        context[distance] = mask, math.exp(q @ (k + p["positions"][distance - 1]) / math.sqrt(width))
    memory = p.get(name + "memory_keys")
    persistent = [] if memory is None else [math.exp(q @ key) for key in memory[head]]
    normalizer = sum((m + config.normalizer_epsilon) * e for m, e in context.values())
    normalizer += sum((1 + config.normalizer_epsilon) * e for e in persistent)
    return {d: m * e / normalizer for d, (m, e) in context.items()}, [e / normalizer for e in persistent]


def of_bytes(text=TEXT, first=9):
    return passage.Passage(np.frombuffer(text, np.uint8), first, "here", BYTES)


@pytest.mark.parametrize("config", [MODEL, replace(MODEL, normalizer_epsilon=0.05), replace(MODEL, memory=1)])
def test_shares_and_distances_are_the_equations_means(config):
    saved, text = saved_model(config), of_bytes()
    found = looking.look(saved, text)
    share, by_distance = np.zeros((2, 2)), np.zeros((2, 2, 6))
    queries = range(text.first, len(text.tokens))
    for layer in range(2):
        for head in range(2):
            for query in queries:
                context, persistent = weights_by_hand(saved, np.append(text.tokens, 0), layer, head, query)
                share[layer, head] += sum(persistent) / len(queries)
                for distance, weight in context.items():
                    by_distance[layer, head, distance - 1] += weight / len(queries)
    np.testing.assert_allclose(found.share, share, rtol=1e-12)
    np.testing.assert_allclose(found.by_distance, by_distance, rtol=1e-11, atol=1e-15)
    assert found.queries == len(queries) == len(TEXT) - 9


def assert_equals_the_models_own(found, saved, text):
    """The same means from what the model's forward on the whole text kept."""
    config, p = saved.config, saved.parameters
    tokens = text.tokens[None].astype(int)
    out = model.forward(p, config, tokens, tokens, model.initial_past(config, 1, p.vector))
    for layer, kept in enumerate(out.saved.layers):
        seen = kept.attention.attention
        seen = getattr(seen, "context", seen)
        weights = seen.softmax.attention[0, :, text.first :]
        np.testing.assert_allclose(found.by_distance[layer], weights[..., : config.span].mean(1), rtol=1e-11, atol=1e-15)


VARIANTS = [
    replace(MODEL, variant="attention-split", zero_past=True), replace(MODEL, variant="head-split", heads=4, zero_past=True),
    replace(MODEL, variant="single-head", zero_past=True),
    replace(MODEL, variant="ff-attention", memory=0, feed_forward=7, zero_past=True),
    replace(MODEL, variant="transformer", memory=0, feed_forward=7, attend_self=True),
    replace(MODEL, positions="transformer-xl"), replace(MODEL, positions="none"), replace(MODEL, adaptive_span=False),
    replace(MODEL, cutoffs=(50, 120), divisor=2), replace(MODEL, norm="pre", attend_self=True),
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.variant}-{c.positions}-{c.norm}")
def test_every_variant_is_looked_at(config):
    saved, text = saved_model(config), of_bytes()
    found = looking.look(saved, text)
    assert_equals_the_models_own(found, saved, text)
    assert (found.share is not None) == (config.variant in ("all-attention", "head-split"))
    if config.variant == "all-attention":
        np.testing.assert_allclose(found.share + found.by_distance.sum(2), 1, rtol=1e-12)
    if config.variant == "head-split":
        np.testing.assert_array_equal(found.share, [[0, 0, 1, 1]] * 2)
        assert {vector.head for vector in found.vectors} <= {2, 3}
    assert bool(found.vectors) == (config.variant != "transformer")
    assert found.kind == ("feed-forward vector" if config.variant == "ff-attention" else "persistent vector")


@pytest.mark.parametrize("position", ["sinusoid", "learned"])
def test_absolute_positions_begin_anew_with_every_block_as_in_training(position):
    saved, text = saved_model(replace(MODEL, positions=position)), of_bytes()
    config, p, found = saved.config, saved.parameters, looking.look(saved, text)
    past, share = model.initial_past(config, 1, p.vector), np.zeros((2, 2))
    for low in range(0, len(text.tokens), TRAIN.block):
        tokens = text.tokens[None, low : low + TRAIN.block].astype(int)
        out = model.forward(p, config, tokens, tokens, past)
        past = out.past
        for layer, kept in enumerate(out.saved.layers):
            weights = kept.attention.attention.softmax.attention[0, :, max(0, text.first - low) :, config.span :]
            share[layer] += weights.sum((1, 2)) / found.queries
    np.testing.assert_allclose(found.share, share, rtol=1e-12)


def test_the_most_used_vectors_are_those_of_the_largest_mean_and_their_places_of_the_largest_weight():
    saved, text = saved_model(replace(MODEL, memory=9)), of_bytes()
    found = looking.look(saved, text)
    means = {}
    for layer in range(2):
        for head in range(2):
            rows = [weights_by_hand(saved, np.append(text.tokens, 0), layer, head, query)[1]
                    for query in range(text.first, len(text.tokens))]
            for number, column in enumerate(zip(*rows, strict=True)):
                best = sorted(((weight, text.first + i) for i, weight in enumerate(column)), reverse=True)[:3]
                means[layer, head, number] = sum(column) / len(column), best
    expected = sorted(means.items(), key=lambda item: -item[1][0])[:10]
    assert [vector[:3] for vector in found.vectors] == [place for place, _ in expected]
    for vector, (_, (mean, best)) in zip(found.vectors, expected, strict=True):
        assert vector.mean == pytest.approx(mean, rel=1e-11)
        assert [position for _, position in vector.used_by] == [position for _, position in best]
        np.testing.assert_allclose([weight for weight, _ in vector.used_by], [weight for weight, _ in best], rtol=1e-11)


def peak_of(function, *arguments):
    """The function's result, and the most memory that was in use meanwhile."""
    tracemalloc.start()
    try:
        return function(*arguments), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_span_is_looked_at_in_little_memory_with_the_same_result(monkeypatch):
    config = ModelConfig(vocabulary=256, width=8, heads=2, layers=2, span=3000, memory=40)
    train = TrainConfig(batch=1, block=256, dtype="float32")
    text = of_bytes(TEXT * 10, first=300)
    saved = saved_model(config, train)
    at_once, peak_at_once = peak_of(looking.look, saved, text)
    monkeypatch.setattr(looking, "MOST_BYTES", 4_000_000)
    in_parts, peak = peak_of(looking.look, saved, text)
    # what stands before the queries is computed in tiles, one a thread, of 5 MB each at most
    assert peak < 20_000_000
    assert peak_at_once > 40_000_000
    np.testing.assert_allclose(in_parts.share, at_once.share, rtol=1e-5)
    np.testing.assert_allclose(in_parts.by_distance, at_once.by_distance, rtol=1e-3, atol=1e-6)


@pytest.fixture
def run(tmp_path, store, text):
    """run(config, kind): a run as read, with a text of 60 lines and a model of zeros but for its output's biases."""

    def make(kind="byte", cutoffs=(), **options):
        data = DataConfig(path=str(text), vocabulary=kind, **options)
        corpus = open_corpus(data, store)
        config = replace(MODEL, vocabulary=corpus.vocabulary.size, cutoffs=cutoffs, divisor=2)
        saved = saved_model(config)
        saved.parameters.vector[...] = 0
        rng = np.random.default_rng(1)
        for name in saved.parameters:
            if "bias" in name and name.startswith("output"):
                saved.parameters[name] = rng.standard_normal(saved.parameters[name].shape)
        saved.vocabulary, saved.progress = corpus.vocabulary.to_json(), {"text_sha256": corpus.sha256, "computing": {}}
        folder = tmp_path / "made"
        checkpoint.save(folder, saved)
        (folder / "config.toml").write_text(to_toml(config, saved.train_config, data), encoding="utf-8")
        return reading.read(folder, store)

    return make


def log_softmax(values):
    return np.asarray(values) - math.log(sum(math.exp(value) for value in values))


def test_perplexity_by_tenths_of_the_training_text_is_a_loops(run):
    made = run()
    found, valid = predicting.predict(made), made.corpus.valid.tolist()
    log_p = log_softmax(made.saved.parameters["output.bias"])
    counts = np.bincount(made.corpus.train, minlength=256).tolist()
    ranked = sorted(range(256), key=lambda word: (-counts[word], word))
    tenth, before = {}, 0
    for word in ranked:
        tenth[word] = min(9, 10 * before // sum(counts))
        before += counts[word]
    groups = [[word for word in ranked if tenth[word] == number] for number in range(10)]
    groups = [group for group in groups if group]
    assert [group.words for group in found.groups] == [len(group) for group in groups]
    assert [group.examples for group in found.groups] == [group[:6] for group in groups]
    for told, group in zip(found.groups, groups, strict=True):
        losses = [-log_p[word] for word in valid[1:] if word in group]
        assert told.tokens == len(losses)
        if losses:
            assert told.loss == pytest.approx(sum(losses) / len(losses), rel=1e-12)
            assert told.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-12)
        else:
            assert math.isnan(told.loss)
    assert found.tokens == len(valid) - 1
    assert found.groups[0].name.startswith("0–")
    assert found.groups[-1].name.endswith("–100 %")


def test_perplexity_by_cluster_is_a_loops(run):
    made = run("word", cutoffs=(3, 8))
    p, valid, found = made.saved.parameters, made.corpus.valid.tolist(), predicting.predict(made)
    head = log_softmax([*p["output.biases.0"], *p["output.cluster_bias"]])
    tails = [log_softmax(p["output.biases.1"]), log_softmax(p["output.biases.2"])]
    losses = [[], [], []]
    for word in valid[1:]:
        if word < 3:
            losses[0].append(-head[word])
        else:
            number = 1 if word < 8 else 2
            losses[number].append(-head[2 + number] - tails[number - 1][word - (3 if number == 1 else 8)])
    assert found.clusters
    assert [group.name for group in found.groups] == ["0 to 2", "3 to 7", f"8 to {made.saved.config.vocabulary - 1}"]
    for told, expected in zip(found.groups, losses, strict=True):
        assert told.tokens == len(expected)
        assert told.loss == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_a_large_model_scores_fewer_tokens(run, monkeypatch):
    monkeypatch.setattr(predicting, "FEWEST", 20)
    monkeypatch.setattr(predicting, "OPERATIONS", 1)
    assert predicting.predict(run()).tokens == 19


def test_a_long_span_is_scored_in_one_stream(run, monkeypatch):
    rows, made = [], run()
    cut = predicting.every_token_once
    monkeypatch.setattr(predicting, "every_token_once", lambda tokens, streams, block: rows.append(streams) or
                        cut(tokens, streams, block))
    several = predicting.predict(made)
    monkeypatch.setattr(predicting, "PAST_BYTES", 1)
    one = predicting.predict(made)
    assert rows == [8, 1]
    assert one.tokens == several.tokens
    np.testing.assert_allclose([g.loss for g in one.groups], [g.loss for g in several.groups], rtol=1e-12)


def test_the_passage_is_the_validation_texts_start_or_the_given_one(run, monkeypatch):
    monkeypatch.setattr(passage, "QUERIES", 10)
    made = run()
    found = passage.choose(made, None)
    assert (found.first, len(found.tokens)) == (6, 16)  # a span before ten queries
    assert found.tokens.tolist() == made.corpus.valid[:16].tolist()
    given = passage.choose(made, "a cat")
    assert (given.first, given.tokens.tobytes(), given.text) == (0, b"a cat", "a cat")
    long = passage.choose(made, "0123456789" * 3)
    assert (long.first, long.text, len(long.tokens)) == (6, "0123456789", 16)
    with pytest.raises(InputError, match="--passage: expected at least one byte, got ''"):
        passage.choose(made, "")
    with pytest.raises(InputError, match=r"--passage, for .*made: text: expected characters of the vocabulary"):
        passage.choose(run("character"), "ö")


def test_a_large_model_has_fewer_queries_and_less_before_them(run, monkeypatch):
    made = run()
    for name, value in (("FEWEST_QUERIES", 5), ("FEWEST", 3), ("WEIGHTS", 2 * 2 * (2 * 6 + 5) * 7.5), ("OPERATIONS", 1)):
        monkeypatch.setattr(passage, name, value)
    found = passage.choose(made, None)
    assert (found.first, len(found.tokens)) == (3, 10)
    monkeypatch.setattr(passage, "WEIGHTS", 1)
    assert len(passage.choose(made, None).tokens) == 8


def shown(pieces, place):
    return "".join(piece.text for piece in pieces if piece.place == place)


def test_contexts_show_white_space_and_whole_characters():
    text = of_bytes("naïve\tcafé\r\n and \x1b[31m\u202eevil".encode(), 0)
    pieces = passage.context(text, 3)  # the second byte of ï
    assert (shown(pieces, "before"), shown(pieces, "here"), shown(pieces, "after")) == ("na", "ï", "ve⇥café␍↵·a")
    assert shown(passage.context(text, 2), "here") == "ï"
    everything = "".join(shown for _, shown in passage.visible(text.text))
    assert everything == "naïve⇥café␍↵·and·␛[31m[U+202E]evil"
    assert passage.visible("a b") == [(False, "a"), (True, "·"), (False, "b")]


def test_contexts_of_words_keep_spaces_and_lines():
    words = Vocabulary("word", ("<eos>", "the", "cat", "sat"))
    text = passage.Passage(np.array([1, 2, 0, 1, 2, 3, 0, 1]), 0, "here", words)
    pieces = passage.context(text, 4)
    assert (shown(pieces, "before"), shown(pieces, "here"), shown(pieces, "after")) == ("the·cat↵the·", "cat", "·sat↵the")


def test_a_log_is_read_as_far_as_it_goes(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"update": 1, "loss": 2.0}\n{"update": 2, "loss": NaN}\nnull\n{"loss": 1}\n\xff\xfe\n'
                    b'{"update": 3, "valid_loss": 1.5, "spans": [[1, 2]]}\n{"update": 4, "spans": "x"}\n'
                    b'{"update": 5, "loss": "1", "spans": [[1, 2], [3]]}\n{"update": 1' + b"0" * 400 + b"}\n"
                    b'{"update": 6, "loss": 1' + b"0" * 400 + b'}\n{"update": 7, "lo')
    notes = []
    records = reading._records(log, notes)
    assert [record["update"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert notes[0] == "5 of the log's 11 lines could not be read and were left out."
    assert "not a finite number" in notes[1]
    updates, loss = reading.series(records, "loss")
    assert updates.tolist() == [1, 2, 5, 6]
    np.testing.assert_array_equal(loss, [2, np.nan, np.nan, np.nan])
    updates, spans = reading.spans(records)
    assert (updates.tolist(), spans.tolist()) == ([3], [[[1, 2]]])


def line(values, **options):
    return charts.Line("a line", np.arange(1.0, len(values) + 1), np.array(values, float), **options)


@pytest.mark.parametrize("values", [[], [math.nan], [3.0], [1, math.nan, 2], [0, 0, 0], [-1, 5], [1e-9, 1e12],
                                    list(range(5000))])
@pytest.mark.parametrize("options", [{}, {"log_x": True, "log_y": True}, {"small": True, "from_zero": True, "top": 5}])
def test_charts_are_drawn_of_any_values_in_the_pages_colours_and_fonts(values, options):
    lines = [line(values, label="$x_{"), line(values, colour=9)]
    chart = charts.Chart("a <title>", "updates", "bits & bytes", lines, **options)
    drawn = charts.svg(chart, "chart7")
    assert drawn == charts.svg(chart, "chart7")
    assert drawn.startswith('<svg class="chart" role="img" aria-labelledby="chart7-title chart7-desc"')
    assert "a &lt;title&gt;" in drawn
    assert not re.search(r"#[0-9a-f]{6}|font-family|DejaVu|https?:|<style|<script|<!--|<metadata|xlink", drawn)
    assert all(found.startswith("chart7-") for found in re.findall(r'\bid="([^"]*)"', drawn))
    assert set(re.findall(r"#([\w-]+)", drawn)) <= set(re.findall(r'\bid="([^"]*)"', drawn))
    assert len(drawn) < 60_000


def test_a_charts_description_tells_its_numbers():
    chart = charts.Chart("t", "updates", "bits per byte", [line([5, math.nan, 1, 2])])
    assert charts.describe(chart) == "bits per byte over updates. a line: from 5 to 2, least 1, largest 5."


def test_a_long_line_is_thinned_by_means():
    x, y = charts.thinned(np.arange(600.0), np.where(np.arange(600) % 2, np.nan, np.arange(600.0)))
    assert len(x) == charts.POINTS
    np.testing.assert_array_equal(x, np.arange(300) * 2 + 0.5)
    np.testing.assert_array_equal(y, np.arange(300) * 2.0)


def test_curves_are_in_the_units_of_the_vocabulary(run):
    made = run("word")
    made.records.extend([{"update": 1.0, "loss": 2.0, "clipped": 0.25}, {"update": 2.0, "valid_loss": math.log(3)}])
    drawn = {chart.title: chart for chart in curves.of_training([made])}
    assert list(drawn) == ["Perplexity", "Clipped"]
    training, validation = drawn["Perplexity"].lines
    assert (training.y.tolist(), validation.y.tolist()) == ([math.exp(2)], [pytest.approx(3)])
    assert drawn["Clipped"].lines[0].y.tolist() == [25]
    rows = {row.name: row.cells for row in tables.summary([made])}
    assert rows["validation, last"] == ["3.00"]
    made = run("byte")
    made.records.append({"update": 1.0, "loss": 2.0})
    (chart,) = curves.of_training([made])
    assert (chart.title, chart.lines[0].y.tolist()) == ("Loss, bits per byte", [2 / math.log(2)])


def test_attention_over_distance_is_summed_from_the_nearest_position():
    by_distance = np.random.default_rng(0).uniform(size=(2, 3, 40))
    drawn = curves.of_distance(looking.Look(1, None, by_distance, [], ""), attend_self=False)
    assert [chart.title for chart in drawn] == ["layer 1", "layer 2"]
    for layer, chart in enumerate(drawn):
        for head, told in enumerate(chart.lines):
            for x, y in zip(told.x.tolist(), told.y.tolist(), strict=True):
                assert y == pytest.approx(100 * sum(by_distance[layer, head, : int(x)]), rel=1e-12)
            assert (told.x[0], told.x[-1], told.label) == (1, 40, str(head + 1))
    drawn = curves.of_distance(looking.Look(1, None, by_distance, [], ""), attend_self=True)
    assert (drawn[0].lines[0].x[0], drawn[0].lines[0].x[-1], drawn[0].log_x) == (0, 39, False)


def test_a_text_that_changed_is_not_measured_on(run, store):
    made = run()
    path = Path(made.tables["data"]["path"])
    path.write_bytes(path.read_bytes() + b"more\n")
    again = reading.read(made.path, store)
    assert again.corpus is None
    assert "no longer the one trained on" in again.notes[-1]
    path.unlink()
    gone = reading.read(made.path, store)
    assert gone.corpus is None
    assert "could not be read" in gone.notes[-1]
    assert gone.unit == "byte"


def test_a_checkpoints_own_folder_is_read_with_its_runs_log(run, store):
    made = run()
    (made.path / "log.jsonl").write_text(json.dumps({"update": 4, "loss": 1.0}) + "\n")
    found = reading.read(made.saved.path, store)
    assert (len(found.records), found.tables["data"]["vocabulary"]) == (1, "byte")
