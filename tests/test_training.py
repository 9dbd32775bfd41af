"""One update and the loop around it."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from refimpl import model, optimizers, parameters, shared, training, workers
from refimpl.config import ModelConfig, TrainConfig
from refimpl.errors import NonFiniteError
from refimpl.inputs import draw_masks
from refimpl.layers import attention, tiled_attention

CONFIG = ModelConfig(vocabulary=16, width=16, heads=2, layers=2, span=12, memory=4, span_ramp=4, span_penalty=1e-4)
TRAIN = TrainConfig(optimizer="adam", learning_rate=3e-3, batch=4, block=8, updates=50, warm_up=5)


@dataclass
class Piece:
    tokens: Any
    targets: Any
    restart: bool


def pieces(count, batch=4, block=8, seed=0):
    """A text with something to learn: every token is followed by its double plus a little noise."""
    rng = np.random.default_rng(seed)
    text = [rng.integers(0, 16, batch)]
    for _ in range(count * block):
        text.append((2 * text[-1] + (rng.random(batch) < 0.2)) % 16)
    rows = np.stack(text, axis=1)
    for i in range(0, count * block, block):
        yield Piece(rows[:, i : i + block], rows[:, i + 1 : i + block + 1], restart=i == 0)


def train(dtype="float64", config=CONFIG, train_config=TRAIN, count=50):
    p = parameters.initialize(config, 1, dtype)
    state = optimizers.initialize(train_config, p)
    past = model.initial_past(config, 4, p.vector)
    losses = [float(r.loss) for r in training.run(p, state, config, train_config, pieces(count), past)]
    return p, state, losses


def test_training_learns_and_repeats_to_the_last_bit():
    (p, _, losses), (again, _, losses_again) = train(), train()
    assert losses[-1] < 0.7 * losses[0]
    assert losses == losses_again
    np.testing.assert_array_equal(p.vector, again.vector)


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_float32_stays_within_1e_4_of_float64(optimizer):
    rates = {"sgd": 0.1, "adagrad": 0.02, "adam": 3e-3}
    train_config = replace(TRAIN, optimizer=optimizer, learning_rate=rates[optimizer], clip_each=optimizer == "adagrad")
    single, _, losses32 = train("float32", train_config=train_config)
    _, _, losses64 = train("float64", train_config=train_config)
    assert single.vector.dtype == np.float32
    assert losses64[-1] < losses64[0]
    np.testing.assert_allclose(losses32, losses64, rtol=0, atol=1e-4)
    assert losses32 != losses64


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_workers_share_the_batch_and_change_only_roundoff(dropout):
    config = replace(CONFIG, dropout=dropout, embedding_dropout=dropout)
    one, _, losses = train(config=config, count=5, train_config=replace(TRAIN, updates=5))
    for count in (2, 3, 8):
        train_config = replace(TRAIN, updates=5, workers=count)
        p, _, shared_losses = train(config=config, count=5, train_config=train_config)
        np.testing.assert_allclose(shared_losses, losses, rtol=1e-13)
        np.testing.assert_allclose(p.vector, one.vector, rtol=0, atol=1e-11)
        repeated, *_ = train(config=config, count=5, train_config=train_config)
        np.testing.assert_array_equal(repeated.vector, p.vector)


@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, cutoffs=(4, 9), divisor=2, tie_tables=True)],
                         ids=["plain", "adaptive"])
@pytest.mark.parametrize("core", [tiled_attention, attention])
def test_an_update_equals_its_parts(core, config):
    train_config = replace(TRAIN, attention="tiled" if core is tiled_attention else "textbook")
    p, segment = parameters.initialize(config, 1), next(pieces(1))
    past, q = model.initial_past(config, 4, p.vector), p.copy()
    state, other = (optimizers.initialize(train_config, p) for _ in range(2))
    result = training.update(p, state, config, train_config, segment.tokens, segment.targets, past)
    out = model.forward(q, config, segment.tokens, segment.targets, past, core=core)
    g = model.backward(out.saved)
    optimizers.update(q, g, other, train_config)
    np.testing.assert_array_equal(p.vector, q.vector)
    assert (result.loss, result.span_penalty, result.learning_rate) == (out.loss, out.span_penalty, 3e-3 / 5)
    assert result.gradient_norm == pytest.approx(np.linalg.norm(g.vector), rel=1e-13)
    np.testing.assert_array_equal(result.past, out.past)


def test_every_update_draws_dropout_of_its_own_and_tells_its_own_rate():
    """Streams are those of the update's number, counted from 1 through all of training."""
    config = replace(CONFIG, dropout=0.4, embedding_dropout=0.2)
    piece, p = next(pieces(1)), parameters.initialize(config, 1)
    state, past = optimizers.initialize(TRAIN, p), model.initial_past(config, 4, p.vector)
    for number in (1, 2, 3):
        masks = draw_masks(config, 4, 8, TRAIN.seed, number, p.vector)
        expected = model.forward(p, config, piece.tokens, piece.targets, past, masks).loss
        given = p, config, TRAIN, piece.tokens, piece.targets, past
        assert training.score(*given, number, slice(0, 4)).loss == expected
        result = training.update(p, state, config, TRAIN, piece.tokens, piece.targets, past)
        assert result.loss == expected
        assert result.learning_rate == pytest.approx(TRAIN.learning_rate * number / TRAIN.warm_up, rel=1e-15)


def test_the_loop_ends_at_the_last_update_and_empties_the_past_at_a_restart():
    p = parameters.initialize(CONFIG, 1)
    state = optimizers.initialize(TRAIN, p)
    segments = list(pieces(6))
    for segment in segments:
        segment.restart = segment is segments[3]
    loop = training.run(p, state, CONFIG, replace(TRAIN, updates=5), iter(segments), model.initial_past(CONFIG, 4, p.vector))
    assert [result.past.shape[2] for result in loop] == [8, 12, 12, 8, 12]
    assert state.updates == 5


@pytest.mark.parametrize(("spoil", "name"), [
    (lambda p: p["layers.1.attention.value"].__setitem__((0, 0), np.nan), "parameter layers.1.attention.value"),
    (lambda p: p["output.bias"].__setitem__(3, np.inf), "parameter output.bias"),
    (lambda p: p["input.table"].__imul__(1e200), "input of layers.1"),
    (lambda p: p["output.table"].__imul__(1e308), "token loss"),
    (lambda p: p["output.bias"].__setitem__(slice(None), [-1e308, 1e308] * (CONFIG.vocabulary // 2)), "token loss"),
    (lambda p: p["output.table"].__imul__(1e160), "gradient norm"),
])
def test_a_loss_that_is_not_finite_stops_before_anything_changes(spoil, name):
    p, segment = parameters.initialize(CONFIG, 1), next(pieces(1))
    spoil(p)
    state, before = optimizers.initialize(TRAIN, p), p.vector.copy()
    with pytest.raises(NonFiniteError, match=f"update 1: .*not finite: {name}"):
        training.update(p, state, CONFIG, TRAIN, segment.tokens, segment.targets, model.initial_past(CONFIG, 4, p.vector))
    np.testing.assert_array_equal(p.vector, before)
    assert state.updates == 0


@pytest.mark.parametrize("cores", [1, 2, 5])
def test_every_batch_row_counts_alike_when_shares_are_uneven(monkeypatch, cores):
    """Three rows over two workers: shares of 1 and 2 rows, weighted 1/3 and 2/3. 0 workers: one for each core."""
    for module in (shared, workers):
        monkeypatch.setattr(module, "available_cores", lambda: cores)
    plain = replace(TRAIN, optimizer="sgd", clip=0)
    segment, past = next(pieces(1, batch=3)), model.initial_past(CONFIG, 3, parameters.initialize(CONFIG, 1).vector)

    def updated(count):
        p = parameters.initialize(CONFIG, 1)
        settings, state = replace(plain, workers=count), optimizers.initialize(plain, p)
        return p.vector, training.update(p, state, CONFIG, settings, segment.tokens, segment.targets, past)

    whole, expected = updated(1)
    vectors = {}
    for count in (0, 2, 3):
        vectors[count], result = updated(count)
        assert result.loss == pytest.approx(expected.loss, rel=1e-14)
        assert result.past.shape[1] == 3
        np.testing.assert_allclose(vectors[count], whole, rtol=0, atol=1e-15)
    np.testing.assert_array_equal(vectors[0], whole if cores == 1 else vectors[min(cores, 3)])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_every_text_is_looked_at_before_a_checkpoint(row):
    """One text at a time; the last updates' parameters are finite, the loss of one text is not."""
    config = ModelConfig(vocabulary=5, width=4, heads=2, layers=1, span=3, memory=2)
    p, tokens = parameters.initialize(config, dtype="float64"), np.zeros((3, 2), int)
    past = np.zeros((1, 3, 3, 4))
    result = training.Result(np.float64(0), np.float64(0), past, np.float64(0), 0.1, tokens, tokens)
    training.check_finite(p, config, result)
    past[0, row, -1] = np.nan
    with pytest.raises(NonFiniteError, match="after the last update: loss nan"):
        training.check_finite(p, config, result)


def test_updates_that_are_skipped_are_counted_and_too_many_in_a_row_end_it(monkeypatch):
    monkeypatch.setattr(training, "SKIPS_IN_A_ROW", 3)
    train = replace(TRAIN, on_nonfinite="skip")
    p = parameters.initialize(CONFIG, 1)
    state, past = optimizers.initialize(train, p), model.initial_past(CONFIG, 4, p.vector)
    tokens, targets = np.random.default_rng(0).integers(0, 16, (2, 4, 8))
    kept = p.vector.copy()
    training.update(p, state, CONFIG, train, tokens, targets, past)
    p.vector[...] = np.nan
    for count in (1, 2):
        result = training.update(p, state, CONFIG, train, tokens, targets, past)
        assert (state.updates, state.skipped, state.skipped_in_a_row) == (1 + count, count, count)
        assert "first tensor that is not finite" in result.skipped
    with pytest.raises(NonFiniteError, match="update 4, the last of 3 in a row"):
        training.update(p, state, CONFIG, train, tokens, targets, past)
    p.vector[...] = kept
    training.update(p, state, CONFIG, train, tokens, targets, past)
    assert (state.updates, state.skipped, state.skipped_in_a_row) == (4, 2, 0)


class SecondOfTwo:
    """A rank whose neighbour tells what it tells, and adds nothing."""

    rank, size = 1, 2

    def add(self, vector, numbers):
        return np.array([numbers, numbers], np.float64)


def test_a_rank_begins_a_text_with_the_past_of_its_own_rows(monkeypatch):
    begun, initial_past = [], model.initial_past
    monkeypatch.setattr(model, "initial_past", lambda config, batch, like: begun.append(batch) or initial_past(
        config, batch, like))
    p = parameters.initialize(CONFIG, 1)
    state, tokens = optimizers.initialize(TRAIN, p), np.zeros((5, 8), int)
    loop = training.run(p, state, CONFIG, TRAIN, iter([Piece(tokens, tokens, True)]), None, SecondOfTwo())
    assert next(loop).past.shape[1] == 3
    assert begun == [3]
