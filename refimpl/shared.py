"""Memory that a run's processes share: the parameters, and of each part of a batch what goes to the process that computes it
and what comes back.
"""

import mmap
import os
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from refimpl import operations, parameters
from refimpl.arrays import Array, available_cores
from refimpl.config import ModelConfig, TrainConfig
from refimpl.parameters import Parameters
from refimpl.variants import attention_path

ALIGNMENT = 64  # bytes: a cache line, and the widest vector that a processor loads
ENOUGH = 2e11  # operations of a run, which takes some seconds, that are worth a third of a second of one core
OF_A_LAYER = 1e9  # operations that there would be time for while NumPy is called for a layer, however small
LARGE = 2e10  # operations of an update in a layer, measured: from here on threads wait for one another a tenth of the time


class Part(NamedTuple):
    """n rows of the batch: tokens and targets (n, T), their mean loss (), gradients, and room for the past."""

    rows: slice
    tokens: Array
    targets: Array
    loss: Array
    gradients: Parameters
    room: Array

    def past(self, length: int) -> Array:
        """View (L, n, length, D): the past before the update, and in the same place the one after it."""
        shape = self.gradients.config.layers, len(self.tokens), length, self.gradients.config.width
        return self.room[: np.prod(shape)].reshape(shape)


class Plan(NamedTuple):
    """Who computes what: the parts of a batch fall to so many processes in turn, the first of them the run's own."""

    config: ModelConfig
    train: TrainConfig
    processes: int

    @property
    def parts(self) -> list[slice]:
        """Rows of the batch."""
        return parts_of(self.train.batch, self.train.workers)

    def of(self, process: int) -> list[int]:
        """The numbers of the parts that fall to a process."""
        return list(range(process, len(self.parts), self.processes))

    def bytes(self) -> int:
        """How large the memory is."""
        return sum(_size(count, dtype) for part in (None, *self._others()) for count, dtype in self._arrays(part))

    def lay_out(self, memory: mmap.mmap) -> tuple[Array, dict[int, Part]]:
        """The parameters' vector, and by its number each part that is not the first process's."""
        start = 0

        def taken(rows: slice | None) -> list[Array]:
            nonlocal start
            views = []
            for count, dtype in self._arrays(rows):
                views.append(np.frombuffer(memory, dtype, count, start))
                start += _size(count, dtype)
            return views

        (vector,), parts = taken(None), {}
        for number, rows in enumerate(self.parts):
            if number % self.processes:
                tokens, targets, loss, gradients, room = taken(rows)
                shape = -1, self.train.block
                parts[number] = Part(rows, tokens.reshape(shape), targets.reshape(shape), loss.reshape(()),
                                     Parameters(self.config, gradients), room)
        return vector, parts

    def _others(self) -> list[slice]:
        return [rows for number, rows in enumerate(self.parts) if number % self.processes]

    def _arrays(self, rows: slice | None) -> list[tuple[int, str]]:
        """How many numbers each array of a part has, and of which type, in the order of Part; None = the parameters."""
        vector, dtype = parameters.total(self.config), self.train.dtype
        if rows is None:
            return [(vector, dtype)]
        count = rows.stop - rows.start
        past = self.config.layers * count * self.config.span * self.config.width
        return [(count * self.train.block, "int64")] * 2 + [(1, dtype), (vector, dtype), (past, dtype)]


def parts_of(rows: int, workers: int) -> list[slice]:
    """Nearly equal slices of so many rows, one for each worker; 0 workers = one for each thread."""
    count = min(rows, workers or available_cores())
    return [slice(low, high) for low, high in pairwise(rows * i // count for i in range(count + 1))]


def plan(config: ModelConfig, train: TrainConfig) -> Plan:
    """With one process where threads compute."""
    parts, path = parts_of(train.batch, train.workers), attention_path(train.attention, config, train.batch, train.block)
    settled = Plan(config, replace(train, attention=path, workers=len(parts)), 1)
    if train.parallel == "threads" or os.name != "posix" or (train.parallel == "auto" and not _worth_it(config, train)):
        return settled
    return settled._replace(processes=min(len(parts), available_cores()))


def _worth_it(config: ModelConfig, train: TrainConfig) -> bool:
    """Whether threads would wait for one another, and for so long that processes make up for their start."""
    token = operations.per_token(config, train, operations.window(config, config.span_initial))
    update = train.batch * train.block * sum(token.values())
    return update < LARGE * config.layers and train.updates * (update + OF_A_LAYER * config.layers) > ENOUGH


def _size(count: int, dtype: str) -> int:
    return -(-count * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT
