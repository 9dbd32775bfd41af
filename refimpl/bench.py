"""How fast this machine trains and writes with a model, and how fast it multiplies matrices and moves memory at all.

Random tokens, first parameters and a full past of random vectors: times do not depend on what is learned but for the spans.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from refimpl import model, optimizers, parameters, training
from refimpl.arena import Arena
from refimpl.arrays import Array, Place, available_cores, is_device, map_in_threads, module_of, quiet, random_stream, wait
from refimpl.computing import computing
from refimpl.config import ModelConfig, TrainConfig
from refimpl.continuation import Continuation
from refimpl.device import optimizer
from refimpl.device.graphs import Graph
from refimpl.device.opening import on_host
from refimpl.shared import plan
from refimpl.workers import Workers, in_parts

SIZE, PRODUCTS = 1024, 4  # rows of square matrices, and how many products one measurement takes
MOVED = 2**26  # bytes of each of three arrays: several times what processors keep near their cores
TOKENS = 50  # of a text, one turn of generation


def bench(
    config: ModelConfig, train_config: TrainConfig, repeats: int, place: Place = on_host, cuda_graph: bool = False
) -> dict[str, Any]:
    """The result of `bench`, on the device of `place`, whole updates from a graph if so asked: what `repeats` turns gave, in
    each of which every quantity is measured once.

    seconds: of forward, backward and the optimiser's step, parts of a batch on threads, of a whole update as `train` makes
    it, and of one generated token, each with median, least and largest; tokens_per_second, by the medians, of update and
    generation; the best matrix_rate, operations per second of square products in the training's dtype, and memory_rate,
    bytes per second that additions of long arrays read and write, both on all threads.
    """
    with Workers(plan(config, train_config if place is on_host else replace(train_config, parallel="threads"))) as workers:
        turns: dict[str, Callable[[], float]] = {
            **_training(config, train_config, place, cuda_graph, workers), "token": _generation(config, train_config, place),
            "product": partial(_product, train_config.dtype, place), "addition": partial(_addition, place),
        }
        times: dict[str, list[float]] = {name: [] for name in turns}
        for repeat in range(-1, repeats):
            for name, turn in turns.items():
                taken = turn()
                if repeat >= 0:  # the first turn warms up
                    times[name].append(taken)
    seconds = {name: _summary(values) for name, values in times.items()}
    product, addition = (seconds.pop(name)["least"] for name in ("product", "addition"))
    per_update, cores = train_config.batch * train_config.block, _parts(place)
    return {
        "parameters": parameters.total(config), "tokens_per_update": per_update, "repeats": repeats,
        "dtype": train_config.dtype, "seconds": seconds,
        "tokens_per_second": {"update": per_update / seconds["update"]["median"],
                              "generation": 1 / seconds["token"]["median"]},
        "matrix_rate": cores * PRODUCTS * 2 * SIZE**3 / product, "memory_rate": 3 * MOVED / addition, **computing(),
    }


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "least": min(values), "largest": max(values)}


def _seconds(function: Callable[[], object], there: Array | None = None) -> float:
    """How long the call took, and what it asked of the device on which `there` is."""
    start = time.perf_counter()
    function()
    if there is not None:
        wait(there)
    return time.perf_counter() - start


def _training(
    config: ModelConfig, train_config: TrainConfig, place: Place, cuda_graph: bool, workers: Workers
) -> dict[str, Callable[[], float]]:
    """forward, backward, optimizer and update: calls that return their seconds, to be made in this order."""
    p = parameters.initialize(config, 0, train_config.dtype)
    p = p.with_vector(place(p.vector))
    state, stream = optimizers.initialize(train_config, p), random_stream(0, "bench")
    batch, block = train_config.batch, train_config.block
    tokens, targets = map(place, stream.integers(0, config.vocabulary, (2, batch, block)))
    past = stream.standard_normal((config.layers, batch, config.span, config.width), "float32").astype(train_config.dtype)
    past, parts = place(past), 1 if is_device(p.vector) else train_config.workers
    state.graph = Graph() if cuda_graph else None
    arena, kept = Arena(), dict[int, Any]()  # kept: by the first row of a worker's part

    def score(rows: slice) -> None:
        kept[rows.start] = training.score(p, config, train_config, tokens, targets, past, 1, rows).saved

    def differentiate(rows: slice) -> None:
        kept[rows.start] = model.backward(kept[rows.start])

    def step() -> None:
        if is_device(p.vector):
            optimizer.update(p, kept[0], state, train_config, optimizers.gradient_norm(kept[0]))
        else:
            optimizers.update(p, kept[0], state, train_config)

    def update() -> None:
        with arena:
            training.update(p, state, config, train_config, tokens, targets, past, workers=workers)

    for _ in range(2 if cuda_graph else 0):  # the first as without one, the second captured
        update()
    turns: dict[str, Callable[[], object]] = {
        "forward": lambda: in_parts(score, batch, parts),
        "backward": lambda: in_parts(differentiate, batch, parts),
        "optimizer": step,
        "update": update,
    }
    return {name: partial(_seconds, turn, p.vector) for name, turn in turns.items()}


def _generation(config: ModelConfig, train_config: TrainConfig, place: Place) -> Callable[[], float]:
    """A call that goes on with a text of a block's tokens, and returns the seconds of one token: the median of some."""
    stream = random_stream(0, "bench generation")
    p = parameters.initialize(config, 0, train_config.dtype)
    p = p.with_vector(place(p.vector))
    text = Continuation(p, config, [stream.integers(0, config.vocabulary, train_config.block)], train_config.block)

    def token() -> float:
        drawn = stream.integers(0, config.vocabulary, TOKENS).tolist()
        return median(_seconds(partial(text.add, [word]), p.vector) for word in drawn)

    return token


def _parts(place: Place) -> int:
    """What is measured at once: every core, or one whole GPU."""
    return available_cores() if place is on_host else 1


def _product(dtype: str, place: Place) -> float:
    """Seconds of PRODUCTS products on each core at a time."""
    factors, products = (place(np.ones((_parts(place), SIZE, SIZE), dtype)) for _ in range(2))

    def multiply(core: int) -> None:
        for _ in range(PRODUCTS):
            module_of(factors).matmul(factors[core], factors[core], out=products[core])

    return _on_all(multiply, factors, _parts(place))


def _addition(place: Place) -> float:
    """Seconds of one addition of two arrays into a third, each core on its part."""
    parts = [[place(part) for part in np.array_split(np.ones(MOVED // 4, "float32"), _parts(place))] for _ in range(3)]

    def add(core: int) -> Array:
        left, right, total = (part[core] for part in parts)
        return module_of(left).add(left, right, out=total)

    return _on_all(add, parts[0][0], _parts(place))


def _on_all(function: Callable[[int], Any], there: Array, cores: int) -> float:
    """Seconds of the call on every core at once."""
    wait(there)
    with quiet():
        return _seconds(lambda: map_in_threads(function, range(cores), cores) if cores > 1 else function(0), there)
