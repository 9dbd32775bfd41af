"""The sum over GPUs, without one: NCCL's calls are held to CuPy's signatures, what they would move is moved by threads."""

import importlib.util
import inspect
import re
import threading
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl import nccl, ranks

# of CuPy 14, as its docstrings tell them
SIGNATURES = {
    "NcclCommunicator": "NcclCommunicator(int ndev, bytes commId, int rank, NcclConfig config=None)",
    "send": "NcclCommunicator.send(self, intptr_t sendbuf, size_t count, int datatype, int peer, intptr_t stream)",
    "recv": "NcclCommunicator.recv(self, intptr_t recvbuf, size_t count, int datatype, int peer, intptr_t stream)",
    "groupStart": "groupStart()", "groupEnd": "groupEnd()", "get_unique_id": "get_unique_id()",
}
TYPES = {"int": int, "size_t": int, "intptr_t": int, "bytes": bytes}


def check(name, *given):
    """Raises AssertionError unless the call fits the signature in number and types; those with a default may be left out."""
    parameters = [part.strip() for part in re.search(r"\((.*)\)", SIGNATURES[name])[1].split(",")]
    parameters = [part for part in parameters if part not in ("", "self")]
    needed = [part for part in parameters if "=" not in part]
    assert len(needed) <= len(given) <= len(parameters), (name, given)
    for part, value in zip(needed, given, strict=False):
        assert type(value) is TYPES[part.split()[0]], (name, part, value)


class Wire:
    """What has been sent from rank to rank, in order; and where memory of an address lies."""

    def __init__(self):
        self.sent, self.memory, self.changed = {}, {}, threading.Condition()

    def place(self, array):
        """An array on this device: NumPy's memory under CuPy's names."""
        bytes_of = array.view(np.uint8) if array.nbytes else np.empty(0, np.uint8)
        address = array.ctypes.data
        self.memory[address, array.nbytes] = bytes_of
        return address


class Device(np.ndarray):
    """A device's array: .data.ptr in place of a buffer."""

    wire = None

    @property
    def data(self):
        return SimpleNamespace(ptr=self.wire.place(np.asarray(self)))


def library(wire):
    """CuPy's nccl with the names that the signatures tell, which moves bytes at the end of a group."""
    groups = threading.local()

    class NcclCommunicator:
        def __init__(self, *given):
            check("NcclCommunicator", *given)
            self.size, self.identifier, self.rank = given

        def send(self, *given):
            check("send", *given)
            groups.calls.append(("send", self, *given))

        def recv(self, *given):
            check("recv", *given)
            groups.calls.append(("recv", self, *given))

    def start(*given):
        check("groupStart", *given)
        groups.calls = []

    def end(*given):
        check("groupEnd", *given)
        with wire.changed:
            for kind, world, address, count, datatype, peer, stream in groups.calls:
                assert (datatype, stream, peer != world.rank) == (1, 77, True)
                if kind == "send":
                    queue = wire.sent.setdefault((world.identifier, world.rank, peer), deque())
                    queue.append(wire.memory[address, count].copy())
            wire.changed.notify_all()
            for kind, world, address, count, _, peer, _ in groups.calls:
                if kind == "recv":
                    key = (world.identifier, peer, world.rank)
                    assert wire.changed.wait_for(lambda key=key: wire.sent.get(key), 60)
                    wire.memory[address, count][...] = wire.sent[key].popleft()

    return SimpleNamespace(NcclCommunicator=NcclCommunicator, groupStart=start, groupEnd=end, NCCL_UINT8=1)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("length", [1, 5, 64])
def test_the_sum_is_that_of_the_ranks_in_order(size, length, monkeypatch):
    wire = Wire()
    Device.wire = wire
    device = SimpleNamespace(
        cuda=SimpleNamespace(nccl=library(wire), get_current_stream=lambda: SimpleNamespace(ptr=77)),
        empty_like=np.empty_like)
    monkeypatch.setattr(nccl, "module_of", lambda array: device)
    every = np.random.default_rng(length).standard_normal((size, length)).astype("float32")
    vectors = [row.copy().view(Device) for row in every]

    def one(rank):
        world = nccl.Nccl(device.cuda.nccl, bytes(nccl.ID_BYTES), rank, size)
        for _ in range(2):
            vectors[rank][...] = every[rank]
            world.add(vectors[rank], ranks.sizes(length, size))

    workers = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    total = every[0].copy()
    for row in every[1:]:
        total += row
    for vector in vectors:
        assert np.array_equal(np.asarray(vector), total)


@pytest.mark.parametrize(("name", "given"), [
    ("send", (1, 2, 3, 4)), ("send", (1, 2, 3, 4, None)), ("NcclCommunicator", (2, (0,) * 128, 0)), ("groupEnd", (1,)),
    ("recv", (1, 2.0, 3, 4, 5)),
])
def test_a_call_that_does_not_fit_is_seen(name, given):
    with pytest.raises(AssertionError):
        check(name, *given)


@pytest.mark.filterwarnings("ignore:\\s*nccl library could not be loaded")
def test_the_signatures_are_those_of_cupy():
    """There is nothing to hold them to where CuPy, or NCCL's library, is not installed; both can be without a GPU."""
    real = importlib.import_module("cupy.cuda.nccl") if importlib.util.find_spec("cupy") else None
    for name in SIGNATURES if getattr(real, "available", False) else ():
        found = getattr(real, name, None) or getattr(real.NcclCommunicator, name)
        assert SIGNATURES[name] in inspect.getdoc(found).splitlines()[0]
        assert real.NCCL_UINT8 == 1
