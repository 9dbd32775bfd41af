"""How fast this machine trains and writes with a model, and how fast it multiplies matrices and moves memory at all.

Random tokens, first parameters and a full past of random vectors: times do not depend on what is learned but for the spans.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from refimpl import model, optimizers, parameters, training
from refimpl.arena import Arena
from refimpl.arrays import Array, available_cores, map_in_threads, quiet, random_stream
from refimpl.computing import computing
from refimpl.config import ModelConfig, TrainConfig
from refimpl.continuation import Continuation

SIZE, PRODUCTS = 1024, 4  # rows of square matrices, and how many products one measurement takes
MOVED = 2**26  # bytes of each of three arrays: several times what processors keep near their cores
TOKENS = 50  # of a text, one turn of generation


def bench(config: ModelConfig, train_config: TrainConfig, repeats: int) -> dict[str, Any]:
    """The result of `bench`: what `repeats` turns gave, in each of which every quantity is measured once.

    seconds: of forward, backward and the optimiser's step, of a whole update and of one generated token, each with median,
    least and largest; tokens_per_second, by the medians, of update and generation; the best matrix_rate, operations per
    second of square products in the training's dtype, and memory_rate, bytes per second that additions of long arrays read
    and write, both on all threads.
    """
    turns: dict[str, Callable[[], float]] = {
        **_training(config, train_config), "token": _generation(config, train_config),
        "product": partial(_product, train_config.dtype), "addition": _addition,
    }
    times: dict[str, list[float]] = {name: [] for name in turns}
    for repeat in range(-1, repeats):
        for name, turn in turns.items():
            taken = turn()
            if repeat >= 0:  # the first turn warms up
                times[name].append(taken)
    seconds = {name: _summary(values) for name, values in times.items()}
    product, addition = (seconds.pop(name)["least"] for name in ("product", "addition"))
    per_update, cores = train_config.batch * train_config.block, available_cores()
    return {
        "parameters": parameters.total(config), "tokens_per_update": per_update, "repeats": repeats,
        "dtype": train_config.dtype, "seconds": seconds,
        "tokens_per_second": {"update": per_update / seconds["update"]["median"],
                              "generation": 1 / seconds["token"]["median"]},
        "matrix_rate": cores * PRODUCTS * 2 * SIZE**3 / product, "memory_rate": 3 * MOVED / addition, **computing(),
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "largest": max(values)}


def _seconds(function: Callable[[], object]) -> float:
    """How long the call took."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _training(config: ModelConfig, train_config: TrainConfig) -> dict[str, Callable[[], float]]:
    """forward, backward, optimizer and update: calls that return their seconds, to be made in this order."""
    p = parameters.initialize(config, 0, train_config.dtype)
    state, stream = optimizers.initialize(train_config, p), random_stream(0, "bench")
    batch, block = train_config.batch, train_config.block
    tokens, targets = stream.integers(0, config.vocabulary, (2, batch, block))
    past = stream.standard_normal((config.layers, batch, config.span, config.width), "float32").astype(train_config.dtype)
    arena, kept = Arena(), dict[int, Any]()  # kept: by the first row of a worker's part

    def score(rows: slice) -> None:
        kept[rows.start] = training.score(p, config, train_config, tokens, targets, past, 1, rows).saved

    def differentiate(rows: slice) -> None:
        kept[rows.start] = model.backward(kept[rows.start])

    def update() -> None:
        with arena:
            training.update(p, state, config, train_config, tokens, targets, past)

    turns: dict[str, Callable[[], object]] = {
        "forward": lambda: training.in_parts(score, batch, train_config.workers),
        "backward": lambda: training.in_parts(differentiate, batch, train_config.workers),
        "optimizer": lambda: optimizers.update(p, kept[0], state, train_config),
        "update": update,
    }
    return {name: partial(_seconds, turn) for name, turn in turns.items()}


def _generation(config: ModelConfig, train_config: TrainConfig) -> Callable[[], float]:
    """A call that goes on with a text of a block's tokens, and returns the seconds of one token: the median of some."""
    stream = random_stream(0, "bench generation")
    p = parameters.initialize(config, 0, train_config.dtype)
    text = Continuation(p, config, [stream.integers(0, config.vocabulary, train_config.block)], train_config.block)

    def token() -> float:
        drawn = stream.integers(0, config.vocabulary, TOKENS).tolist()
        return median(_seconds(partial(text.add, [word])) for word in drawn)

    return token


def _product(dtype: str) -> float:
    """Seconds of PRODUCTS products on each core at a time."""
    cores = available_cores()
    factors, products = (np.ones((cores, SIZE, SIZE), dtype) for _ in range(2))

    def multiply(core: int) -> None:
        for _ in range(PRODUCTS):
            np.matmul(factors[core], factors[core], out=products[core])

    return _on_all(multiply)


def _addition() -> float:
    """Seconds of one addition of two arrays into a third, each core on its part."""
    parts = [np.array_split(np.ones(MOVED // 4, "float32"), available_cores()) for _ in range(3)]

    def add(core: int) -> Array:
        left, right, total = (part[core] for part in parts)
        return np.add(left, right, out=total)

    return _on_all(add)


def _on_all(function: Callable[[int], Any]) -> float:
    """Seconds of the call on every core at once."""
    cores = available_cores()
    with quiet():
        return _seconds(lambda: map_in_threads(function, range(cores), cores))
