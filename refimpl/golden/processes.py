"""Processes that may crash, hang, print without end, eat memory or leave others behind.

Each is in a group of its own, its time and its memory limited.
"""

import contextlib
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import IO, Any, cast

from refimpl.errors import InputError

KEPT = 2**16  # bytes: the end of what a process prints; a line that it answers may not be longer
GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """What an implementation may take: seconds for a case, and GiB of data for each process; infinite = all there is.

    Data are what a process has asked for to write into, whether it did or not. Address space is no measure of it: sanitizers
    and drivers of GPUs reserve far more than any machine has.
    """

    seconds: float = 30.0
    memory: float = 8.0

    def __post_init__(self) -> None:
        """Raises InputError for a time that never ends, and for what is not above 0."""
        if not 0 < self.seconds < math.inf:
            raise InputError(f"--time-limit: expected a finite number of seconds above 0, got {self.seconds:g}")
        if not self.memory > 0:
            raise InputError(f"--memory-limit: expected a number of GiB above 0, or inf, got {self.memory:g}")

    def hold(self, process: subprocess.Popen[Any]) -> None:
        """Limits the memory of a process that has just begun, and of those that it starts; only Linux can."""
        if math.isfinite(self.memory) and hasattr(resource, "prlimit"):
            size = int(self.memory * GIB)
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(process.pid, resource.RLIMIT_DATA, (size, size))


class Tail:
    """The end of what comes through a pipe, which is read until it closes so that nobody waits to write into it."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._kept = pipe, b""
        self._thread = threading.Thread(target=self._drain, daemon=True)
        self._thread.start()

    def _drain(self) -> None:
        with self._pipe:
            while chunk := os.read(self._pipe.fileno(), KEPT):
                self._kept = (self._kept + chunk)[-KEPT:]

    def text(self) -> str:
        """What is there, once the processes have ended; others that left the group may hold the pipe open for ever."""
        self._thread.join(0.5)
        return self._kept.decode("utf-8", "replace")


def run(command: list[str], limits: Limits) -> tuple[int | None, str, str]:
    """(exit code, stderr, stdout: the ends of both) of a program; the code is None if its time ran out."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True)
    limits.hold(process)
    out, said = Tail(process.stdout), Tail(process.stderr)
    code: int | None = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(limits.seconds)
    finally:
        end_group(process)  # what it started and left behind, too
        process.wait()
    return code, said.text(), out.text()


def end_group(process: subprocess.Popen[Any]) -> None:
    """Ends a process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class Worker:
    """The process in which an adapter runs, and the pipes to it."""

    def __init__(self, reference: str, limits: Limits) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "refimpl.golden.worker", reference], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, bufsize=0, start_new_session=True)
        limits.hold(self._process)
        self._given, self._answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)
        self._said, self._read = Tail(self._process.stderr), b""

    def ask(self, line: str) -> None:
        """One line to it; that it has ended shows when it is read from."""
        with contextlib.suppress(BrokenPipeError):
            self._given.write(f"{line}\n".encode())

    def line(self, time_limit: float) -> bytes | None:
        """Its next line; b"" if it has ended, None if the time ran out."""
        until = time.monotonic() + time_limit
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while b"\n" not in self._read and len(self._read) < KEPT:
                if not selector.select(max(0.0, until - time.monotonic())):
                    return None
                if not (chunk := os.read(self._answers.fileno(), KEPT)):
                    return b""
                self._read += chunk
        line, _, self._read = self._read.partition(b"\n")
        return line

    def end(self) -> tuple[int, str]:
        """Ends it, if it has not ended by itself, with all that it started; its exit code, and what it said last."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that is ending keeps its own code
            self._process.wait(0.2)
        end_group(self._process)
        self._given.close()
        self._answers.close()
        return self._process.wait(), self._said.text()
