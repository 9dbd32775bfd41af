"""Text from a model, one token after another, for one prompt or for several at once."""

from collections.abc import Iterator, Sequence

import numpy as np

from refimpl.arrays import Array, quiet, random_stream, to_host
from refimpl.config import ModelConfig
from refimpl.continuation import Continuation
from refimpl.errors import InputError, NonFiniteError
from refimpl.parameters import Parameters


def generate(
    p: Parameters, config: ModelConfig, prompts: Sequence[Array], count: int, temperature: float = 1.0, top_k: int = 0,
    seed: int = 0, block: int = 0,
) -> Iterator[list[int]]:
    """`count` times the next token of each prompt (1-D, at least one token), drawn from softmax(log p / temperature).

    top_k > 0 draws from the k likeliest only; temperature 0 takes the likeliest. Prompt number i goes on as it would alone
    with seed + i. Absolute positions count from 0 again after every `block` tokens, as they did in training (0 = never).
    Reads the prompts before it returns. Raises InputError for settings that can't be, NonFiniteError if the model's
    probabilities are not finite.
    """
    if not temperature >= 0 or not np.isfinite(temperature):
        raise InputError(f"temperature: expected a finite number of 0 or more, got {temperature}")
    if min(top_k, count, block) < 0:
        raise InputError(f"top_k, count and block: expected 0 or more, got {top_k}, {count} and {block}")
    if not prompts:
        raise InputError("prompts: expected at least one, got none")
    for prompt in prompts:
        if prompt.ndim != 1 or not len(prompt):
            raise InputError(f"prompt: expected at least one token, got shape {prompt.shape}")
    return _draws(Continuation(p, config, prompts, block), count, temperature, top_k, seed)


def _draws(texts: Continuation, count: int, temperature: float, top_k: int, seed: int) -> Iterator[list[int]]:
    for number in range(count):
        tokens = [choose(log_p, temperature, top_k, random_stream(seed + row, "generate", number))
                  for row, log_p in enumerate(to_host(texts.log_p))]
        yield tokens
        if number + 1 < count:
            texts.add(tokens)


def choose(log_p: Array, temperature: float, top_k: int, stream: np.random.Generator) -> int:
    """One word drawn from softmax(log_p / temperature) over the top_k likeliest (0 = all); log_p (V)."""
    if not np.isfinite(log_p.max()):
        raise NonFiniteError("generation: expected finite log-probabilities from the model")
    if temperature == 0:
        return int(log_p.argmax())
    scores = log_p.astype(np.float64)
    if 0 < top_k < len(scores):
        scores[np.argsort(-scores, kind="stable")[top_k:]] = -np.inf
    # the maximum of log p / temperature + Gumbel noise is a draw from the softmax, without dividing by its sum
    with quiet():
        return int((scores / temperature - np.log(-np.log(stream.random(len(scores))))).argmax())
