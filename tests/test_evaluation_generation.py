"""Evaluation's means and units; generation's draws, and that it says what the model says."""

import math
import tracemalloc
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from refimpl import generation, model, parameters
from refimpl.arrays import random_stream
from refimpl.config import ModelConfig
from refimpl.errors import InputError, NonFiniteError
from refimpl.evaluation import Evaluation, evaluate

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, span=6, memory=3, span_ramp=4, span_initial=0.3)


@dataclass
class Piece:
    tokens: Any
    targets: Any
    restart: bool


def text(length, seed=0):
    return np.random.default_rng(seed).integers(0, 11, length)


def test_mean_is_over_tokens_and_the_past_is_carried():
    p, tokens = parameters.initialize(CONFIG), text(22).reshape(2, 11)
    blocks = [Piece(tokens[:, i : i + 4], tokens[:, i + 1 : i + 5], i == 0) for i in (0, 4)]
    blocks.append(Piece(tokens[:1, 8:10], tokens[:1, 9:11], False))  # one row goes on
    whole = model.forward(p, CONFIG, tokens[:, :8], tokens[:, 1:9], model.initial_past(CONFIG, 2, p.vector))
    end = model.forward(p, CONFIG, tokens[:1, 8:10], tokens[:1, 9:], whole.past[:, :1])
    expected = (whole.token_loss.sum() + end.token_loss.sum()) / 18
    result = evaluate(p, CONFIG, blocks, end_of_line=3)
    assert result.loss == pytest.approx(expected, rel=1e-13)
    assert (result.tokens, result.line_ends) == (18, sum((block.targets == 3).sum() for block in blocks))


def test_no_layer_keeps_what_a_backward_would_need():
    """What layers save for a backward is three times the past; without it there are two pasts and one layer."""
    config = ModelConfig(vocabulary=11, width=16, heads=2, layers=8, span=2**15, memory=1, adaptive_span=False,
                         zero_past=True)
    p, tokens = parameters.initialize(config, dtype="float32"), text(17).reshape(1, 17)
    block = Piece(tokens[:, :16], tokens[:, 1:], True)
    past = model.initial_past(config, 1, p.vector)
    tracemalloc.start()
    evaluate(p, config, [block, block])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * past.nbytes


def test_published_mean_is_over_blocks():
    p, tokens = parameters.initialize(CONFIG), text(10).reshape(1, 10)
    blocks = [Piece(tokens[:, :6], tokens[:, 1:7], True), Piece(tokens[:, 6:8], tokens[:, 7:9], True)]
    empty = model.initial_past(CONFIG, 1, p.vector)
    means = [model.forward(p, CONFIG, block.tokens, block.targets, empty).loss for block in blocks]
    assert evaluate(p, CONFIG, blocks, weighted=False).loss == pytest.approx(sum(means) / 2, rel=1e-13)


def test_units():
    """A loss of ln 8 is 3 bits and perplexity 8; with 1 line end in 4 tokens, e^(4 ln 8 / 3) = 16 per word."""
    result = Evaluation(math.log(8), 4, 1)
    assert result.bits == pytest.approx(3, rel=1e-15)
    assert result.perplexity == pytest.approx(8, rel=1e-14)
    assert result.perplexity_without_eos == pytest.approx(16, rel=1e-14)


def test_wikitext_103s_two_published_conventions():
    """19.7 with `<eos>` counted among 245,569 tokens, 4,358 of them line ends, is about 20.8 per word without."""
    assert Evaluation(math.log(19.7), 245_569, 4_358).perplexity_without_eos == pytest.approx(20.8, abs=0.05)


def test_nothing_to_evaluate_and_losses_that_are_not_finite_are_errors():
    p = parameters.initialize(CONFIG)
    with pytest.raises(InputError, match="at least one block"):
        evaluate(p, CONFIG, [])
    p["output.bias"][0] = np.nan
    with pytest.raises(NonFiniteError, match="finite loss"):
        evaluate(p, CONFIG, [Piece(text(4)[None], text(4)[None], True)])


def test_greedy_generation_takes_the_likeliest_token_each_time():
    p = parameters.initialize(CONFIG, 2)
    p.vector *= 2
    for layer in range(2):
        p[f"layers.{layer}.attention.span"] = 0.5
    tokens = list(text(9))
    drawn = [token for token, in generation.generate(p, CONFIG, [np.array(tokens)], 8, temperature=0)]
    for token in drawn:
        past = model.initial_past(CONFIG, 1, p.vector)
        assert token == model.log_probabilities(p, CONFIG, np.array([tokens]), past)[0, -1].argmax()
        tokens.append(token)
    assert len(set(drawn)) > 1


def test_the_same_seed_draws_the_same_text_and_another_seed_another():
    p = parameters.initialize(CONFIG, 2)
    texts = [list(generation.generate(p, CONFIG, [text(3)], 30, 1.0, 0, seed)) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert list(generation.generate(p, CONFIG, [text(3)], 10, 1.0, 0, 1)) == texts[0][:10]


@pytest.mark.parametrize("top_k", [0, 3])
def test_every_prompt_of_several_goes_on_as_it_would_alone(top_k):
    p = parameters.initialize(CONFIG, 2)
    prompts = [text(length, length) for length in (9, 1, 4, 4)]
    together = list(generation.generate(p, CONFIG, prompts, 40, 1.0, top_k, 5))
    for row, prompt in enumerate(prompts):
        alone = generation.generate(p, CONFIG, [prompt], 40, 1.0, top_k, 5 + row)
        assert [tokens[row] for tokens in together] == [token for token, in alone]
    assert len({tuple(tokens[row] for tokens in together) for row in range(4)}) == 4


def test_draws_follow_the_probabilities():
    """p ∝ (1, 2, 5) sharpened by temperature 1/2 is ∝ (1, 4, 25): 4000 draws, five standard deviations."""
    log_p, count = np.log(np.array([1.0, 2, 5]) / 8), 4000
    drawn = [generation.choose(log_p, 0.5, 0, random_stream(0, "test", i)) for i in range(count)]
    for token, share in enumerate([1 / 30, 4 / 30, 25 / 30]):
        deviation = math.sqrt(share * (1 - share) / count)
        assert abs(drawn.count(token) / count - share) < 5 * deviation


def test_top_k_never_draws_another():
    log_p = np.log(np.array([0.1, 0.3, 0.2, 0.4]))
    assert {generation.choose(log_p, 5.0, 2, random_stream(0, "test", i)) for i in range(300)} == {1, 3}


@pytest.mark.parametrize(("settings", "message"), [
    ({"temperature": -1.0}, "temperature: expected a finite number of 0 or more, got -1"),
    ({"temperature": math.nan}, "got nan"),
    ({"top_k": -1}, "top_k, count and block"),
    ({"prompts": [np.empty(0, int)]}, "prompt: expected at least one token"),
    ({"prompts": [text(2), text(4).reshape(2, 2)]}, r"prompt: expected at least one token, got shape \(2, 2\)"),
    ({"prompts": []}, "prompts: expected at least one, got none"),
])
def test_settings_that_cannot_be_are_refused(settings, message):
    arguments = {"prompts": [text(3)], "count": 5, **settings}
    with pytest.raises(InputError, match=message):
        generation.generate(parameters.initialize(CONFIG), CONFIG, **arguments)


def test_a_prompt_outside_the_vocabulary_is_refused():
    with pytest.raises(InputError, match="expected ids from 0 to 10"):
        list(generation.generate(parameters.initialize(CONFIG), CONFIG, [text(2), np.array([11])], 1))


def test_a_model_that_is_not_finite_is_an_error():
    p = parameters.initialize(CONFIG)
    p["output.bias"][:] = np.nan
    with pytest.raises(NonFiniteError):
        list(generation.generate(p, CONFIG, [text(2)], 1))
