"""The sum of all ranks' vectors on GPUs, one for each rank: NCCL through CuPy. Never run on hardware.

Its calls are held to CuPy's signatures by a test. The order of the sum is that of the ranks, as on the host.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

from refimpl.arrays import Array, module_of

ID_BYTES = 128


class Nccl:
    """NCCL's ranks, each with the device that is current; `nccl` is CuPy's module, `identifier` the same on all."""

    def __init__(self, nccl: Any, identifier: bytes, rank: int, size: int) -> None:
        self._nccl, self._rank, self._size = nccl, rank, size
        self._world = nccl.NcclCommunicator(size, identifier, rank)

    def add(self, vector: Array, sizes: Sequence[int]) -> None:
        """In place: each rank adds its part, of so many elements, of all vectors, and sends all the sum."""
        xp = module_of(vector)
        stream = xp.cuda.get_current_stream().ptr
        parts = [vector[low:high] for low, high in pairwise(accumulate(sizes, initial=0))]
        own = parts[self._rank]
        received = [own if rank == self._rank else xp.empty_like(own) for rank in range(self._size)]
        self._swap(parts, received, stream)
        total = received[0] + received[1]
        for part in received[2:]:
            total += part
        own[...] = total
        self._swap([own] * self._size, parts, stream)

    def _swap(self, given: Sequence[Array], received: Sequence[Array], stream: int) -> None:
        """given[r] goes to rank r, what it gives comes into received[r]; a rank's own stays where it is."""
        self._nccl.groupStart()
        for rank in range(self._size):
            if rank != self._rank:
                for call, part in ((self._world.send, given[rank]), (self._world.recv, received[rank])):
                    call(part.data.ptr, part.nbytes, self._nccl.NCCL_UINT8, rank, stream)
        self._nccl.groupEnd()
