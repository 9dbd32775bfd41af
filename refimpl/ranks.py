"""The processes of one run, started together by MPI: which rows each has, what they add up, collect and agree on.

A process that was started by itself is `Alone`, and imports nothing. Sums are taken in the order of the ranks, whichever
message comes first: for a given number of ranks they are the same bits in every run, and on every rank.
"""

import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from refimpl import cores
from refimpl.arrays import Array, is_device, module_of, to_host
from refimpl.errors import CalledFailedError, InputError
from refimpl.nccl import ID_BYTES, Nccl

PASSED_ON = 0.5  # seconds
EXTRA = "pip install 'refimpl[mpi]'"
# rank and size, as the launchers tell them: MPICH, Intel MPI and Slurm's pmi2; Open MPI; MVAPICH; Slurm's pmix
LAUNCHERS = (("PMI_RANK", "PMI_SIZE"), ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
             ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"), ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"))


class Ranks(Protocol):
    """This process, number `rank` of `size`. Every call but `abort` is made by all ranks, in the same order."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def first_here(self) -> bool:
        """Whether it is the first of those on its machine."""

    @property
    def number_here(self) -> int:
        """Its number among them."""

    @property
    def here(self) -> int:
        """How many they are."""

    def threads(self) -> int | None:
        """How many threads each rank has; None = nobody shares its cores."""

    def stacked(self, numbers: Sequence[float]) -> Any:
        """What every rank gave, float64 (size, n)."""

    def add(self, vector: Array, numbers: Sequence[float]) -> Any:
        """The vector becomes the sum of all ranks'; returns `stacked(numbers)`, which comes with it."""

    def to_first(self, rows: Array) -> Array | None:
        """(L, b, …) of each rank, joined along b: (L, B, …) on the host on rank 0, None on others."""

    def abort(self, code: int) -> None:
        """Ends every rank; the command that started them exits with the code."""


class Alone:
    """A process that was started by itself."""

    rank, size, first_here, number_here, here = 0, 1, True, 0, 1

    def threads(self) -> None:
        """All cores are its own."""

    def stacked(self, numbers: Sequence[float]) -> Any:
        """Its own."""
        return np.array([numbers], np.float64)

    def add(self, vector: Array, numbers: Sequence[float]) -> Any:
        """Its own."""
        return self.stacked(numbers)

    def to_first(self, rows: Array) -> Array | None:
        """Its own."""
        return rows

    def abort(self, code: int) -> None:
        """Nobody else is there."""


ALONE = Alone()


class Mpi:
    """A process that MPI started: mpi4py's communicator behind `Ranks`. Arrays travel as bytes, whatever their dtype."""

    def __init__(self, mpi: Any, world: Any) -> None:
        self._mpi, self._world = mpi, world
        self.rank, self.size = int(world.rank), int(world.size)
        self._here = world.Split_type(mpi.COMM_TYPE_SHARED)  # those on this machine
        self.number_here, self.here = int(self._here.rank), int(self._here.size)
        self.first_here = self.number_here == 0
        self._received = np.empty(0, np.uint8)
        self._on_device: Nccl | None = None

    def stacked(self, numbers: Sequence[float]) -> Any:
        """One Allgather."""
        every = np.empty((self.size, len(numbers)), np.float64)
        self._world.Allgather(np.array(numbers, np.float64), every)
        return every

    def add(self, vector: Array, numbers: Sequence[float]) -> Any:
        """Each rank is sent one part of every rank's vector, adds them in the ranks' order, and sends all the sum.

        So much travels as in a ring's all-reduce, the order is ours, and the numbers are under way meanwhile.
        """
        mine, every = np.array(numbers, np.float64), np.empty((self.size, len(numbers)), np.float64)
        request = self._world.Iallgather(mine, every)
        if is_device(vector):
            self._device(vector).add(vector, sizes(len(vector), self.size))
        else:
            self._add(np.asarray(vector))
        request.Wait()
        return every

    def _add(self, vector: Any) -> None:
        counts, starts = self._bytes([vector.itemsize * size for size in sizes(len(vector), self.size)])
        own = vector[share(self, len(vector))]
        if self._received.nbytes < self.size * own.nbytes:
            self._received = np.empty(self.size * own.nbytes, np.uint8)  # kept: fresh pages cost as much as the sum does
        received = self._received[: self.size * own.nbytes].view(vector.dtype).reshape(self.size, len(own))
        alike = self._bytes([own.nbytes] * self.size)
        byte = self._mpi.BYTE
        self._world.Alltoallv([vector, (counts, starts), byte], [received, alike, byte])
        np.add(received[0], received[1], out=own)
        for part in received[2:]:
            own += part
        self._world.Allgatherv(self._mpi.IN_PLACE, [vector, (counts, starts), byte])

    def _bytes(self, counts: list[int]) -> tuple[list[int], list[int]]:
        """Counts and where each begins."""
        return counts, [sum(counts[:i]) for i in range(len(counts))]

    def _device(self, vector: Array) -> Nccl:
        """NCCL's ranks, who meet by an identifier that the first one draws."""
        if self._on_device is None:
            nccl = module_of(vector).cuda.nccl
            drawn = self.stacked([float(byte) for byte in (nccl.get_unique_id() if self.rank == 0 else bytes(ID_BYTES))])
            self._on_device = Nccl(nccl, drawn[0].astype(np.uint8).tobytes(), self.rank, self.size)
        return self._on_device

    def to_first(self, rows: Array) -> Array | None:
        """A Gatherv for each of the L, straight to its place: rank 0 holds the whole once."""
        own = np.ascontiguousarray(to_host(rows))
        counts = [int(count) for count in self.stacked([own.shape[1]])[:, 0]]
        whole = np.empty((own.shape[0], sum(counts), *own.shape[2:]), own.dtype) if self.rank == 0 else None
        row = own[0, 0].nbytes if own.shape[0] else 0
        layout = self._bytes([count * row for count in counts])
        for number, part in enumerate(own):
            place = None if whole is None else [whole[number], layout, self._mpi.BYTE]
            self._world.Gatherv([part, self._mpi.BYTE], place, 0)
        return whole

    def abort(self, code: int) -> NoReturn:
        """MPI_Abort, once the launcher has had time to pass on what this rank wrote: when it is gone that may be lost."""
        time.sleep(PASSED_ON)
        self._world.Abort(code)
        raise SystemExit(code)  # where MPI comes back from it

    def threads(self) -> int:
        """Cores for each rank: those that it may run on, each shared among the ranks of this machine that may too.

        The least of all ranks': the number of threads decides the last bits, and they must be the same on all.
        """
        may = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
        flags = np.zeros(1 + max(may), np.int64)
        flags[list(may)] = 1
        length = self._here.allreduce(len(flags), self._mpi.MAX)
        users = np.zeros(length, np.int64)
        self._here.Allreduce(np.pad(flags, (0, length - len(flags))), users)
        quota = cores.available() / (self._here.size if cores.available() < len(may) else 1)
        own = min(quota, sum(1 / users[list(may)]) + 1e-9)
        return max(1, int(self.stacked([own])[:, 0].min()))


def sizes(count: int, size: int) -> list[int]:
    """`count` things in nearly equal shares for `size` ranks."""
    return [count * (rank + 1) // size - count * rank // size for rank in range(size)]


def share(ranks: Ranks, count: int) -> slice:
    """Which of `count` things in a row are this rank's."""
    return slice(count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size)


def check_rows(ranks: Ranks, batch: int) -> None:
    """Raises InputError unless every rank has a row."""
    if ranks.size > batch:
        raise InputError(f"train.batch: expected a row for each of the {ranks.size} ranks, got {batch}")


def differences(ranks: Ranks, mine: Mapping[str, Any]) -> str:
    """What the first rank that differs has other than rank 0, in words; "" if all have the same. The same on all ranks."""
    text = json.dumps(mine, default=str).encode()
    length = int(ranks.stacked([len(text)]).max())
    every = ranks.stacked([float(byte) for byte in text.ljust(length)])
    first, *others = (json.loads(row.astype(np.uint8).tobytes()) for row in every)
    found = ("; ".join(f"{name} {first[name]} on rank 0, {other.get(name)} on rank {rank}"
                       for name in first if other.get(name) != first[name]) for rank, other in enumerate(others, start=1))
    return next(filter(None, found), "")


class Launched(NamedTuple):
    """What the environment tells of this process: number `rank` of `size`."""

    rank: int
    size: int


def launched(environment: Mapping[str, str]) -> Launched | None:
    """As a launcher of MPI tells it; None if there was none. A batch script's own variables, SLURM_NTASKS, are none."""
    for names in LAUNCHERS:
        rank, size = (environment.get(name, "") for name in names)
        if rank.isdigit() and size.isdigit():
            return Launched(int(rank), int(size))
    return None


def join(expected: Launched | None) -> Mpi:
    """The ranks that were started together. Raises InputError without mpi4py, CalledFailedError where they do not meet."""
    told = f"{expected.size} ranks" if expected else "MPI's ranks"
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"
        with warnings.catch_warnings():  # of a launcher that is another MPI's: it is one line below
            warnings.simplefilter("ignore", RuntimeWarning)
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(f"{told} of one run: expected the extra `mpi` ({EXTRA}), got {error}") from error
    if expected and MPI.COMM_WORLD.size != expected.size:
        library = MPI.Get_library_version().splitlines()[0]
        raise CalledFailedError(f"{told} were started: expected the launcher of mpi4py's own MPI ({library}), got one whose "
                                f"processes it takes for {MPI.COMM_WORLD.size} rank")
    return Mpi(MPI, MPI.COMM_WORLD)
