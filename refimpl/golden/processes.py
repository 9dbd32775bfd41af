"""Processes that may crash, hang or leave others behind: each in a group of its own, with a time limit."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
from typing import IO, Any, cast


def run(command: list[str], time_limit: float) -> tuple[int | None, str, str]:
    """(exit code, stderr, stdout) of a program in a process group of its own; the code is None if its time ran out."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          errors="replace", start_new_session=True) as process:
        try:
            out, said = process.communicate(timeout=time_limit)
        except subprocess.TimeoutExpired:
            end_group(process)
            return None, "", ""
        finally:
            end_group(process)  # what it started and left behind
    return process.returncode, said, out


def end_group(process: subprocess.Popen[Any]) -> None:
    """Ends a process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class Worker:
    """The process, and the two pipes to it."""

    def __init__(self, reference: str, said: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "refimpl.golden.worker", reference], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=said, bufsize=0, start_new_session=True)
        self._given, self._answers = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)

    def ask(self, line: str) -> None:
        """One line to it; that it has ended shows when it is read from."""
        with contextlib.suppress(BrokenPipeError):
            self._given.write(f"{line}\n".encode())

    def line(self, time_limit: float) -> bytes | None:
        """Its next line; b"" if it has ended, None if the time ran out."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            return self._answers.readline() if selector.select(time_limit) else None

    def end(self) -> int:
        """Ends it, if it has not ended by itself, with all that it started; its exit code."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # one that is ending keeps its own code
            self._process.wait(0.2)
        end_group(self._process)
        self._given.close()
        self._answers.close()
        return self._process.wait()
