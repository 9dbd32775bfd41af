"""Parts of a batch computed side by side, on threads or by processes beside this one: the same bits either way.

Threads wait for one another wherever NumPy's calls are short, as each takes Python's lock again when it returns. Processes
wait for nothing, but take time to start, and memory for themselves. If one is lost, threads go on with the same update.
"""

import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import IO, Any, TypeVar

from refimpl.arrays import Array, available_cores, map_in_threads
from refimpl.parameters import Parameters
from refimpl.shared import Part, Plan, parts_of

Computed = TypeVar("Computed")
PROGRAM = "import sys; sys.path[:] = sys.argv[2:]; from refimpl.worker import main; main(int(sys.argv[1]))"


def in_parts(function: Callable[[slice], Computed], rows: int, workers: int) -> list[Computed]:
    """[function(slice), …] for slices of the batch, one for each worker, on threads side by side as far as cores allow.

    0 workers = one for each thread.
    """
    parts = parts_of(rows, workers)
    if len(parts) == 1:
        return [function(parts[0])]
    return map_in_threads(function, parts, min(len(parts), available_cores()))


class LostError(Exception):
    """A process that computes no more, and why."""


class Workers:
    """The processes of a plan beside this one, while it is open; started when first asked whether they are there."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._lost, self._news = plan, False, ""
        self._processes: list[_Process] = []
        self._vector: Array = None
        self._parts: dict[int, Part] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the processes, none of which holds anything of its own."""
        for process in self._processes:
            process.end()
        self._processes.clear()

    def are_there(self) -> bool:
        """Whether there are any that can compute."""
        if self._plan.processes > 1 and not self._lost and not self._processes:
            try:
                self._start()
            except (OSError, LostError) as error:
                self._lose(error if isinstance(error, LostError) else f"a worker process could not start, {error}")
        return bool(self._processes)

    def compute(
        self, own: Callable[[slice], Computed], others: Callable[[Part, Array], Computed], p: Parameters, tokens: Array,
        targets: Array, past: Array, update: int,
    ) -> list[Computed] | None:
        """In the order of the rows own(rows) of the parts that fall to this process, and others(part, its new past) of those
        that are computed beside it; None if a process is lost, or if what is given has not the precision that is shared.
        """
        parts, mine, length = self._plan.parts, self._plan.of(0), past.shape[2]
        if not p.vector.dtype == past.dtype == self._vector.dtype:
            return None
        try:
            self._vector[...] = p.vector
            for part in self._parts.values():
                part.tokens[...], part.targets[...] = tokens[part.rows], targets[part.rows]
                part.past(length)[...] = past[:, part.rows]
            for process in self._processes:
                process.tell({"update": update, "length": length})
            found = dict(zip(mine, map_in_threads(own, [parts[number] for number in mine], 1), strict=True))
            lengths = [process.answer()["length"] for process in self._processes]
        except Exception as error:  # if it was this process's own, threads will meet it too
            self._lose(error)
            return None
        found |= {number: others(part, part.past(lengths[0])) for number, part in self._parts.items()}
        return [found[number] for number in range(len(parts))]

    def _start(self) -> None:
        plan = self._plan
        settings = {"model": asdict(plan.config), "train": asdict(plan.train), "processes": plan.processes}
        with _unnamed() as file:
            file.truncate(plan.bytes())
            self._vector, self._parts = plan.lay_out(mmap.mmap(file.fileno(), plan.bytes()))
            for number in range(1, plan.processes):
                self._processes.append(_Process(file.fileno()))
                self._processes[-1].tell({**settings, "number": number})
            for process in self._processes:
                process.answer()

    def news(self) -> str:
        """Once, how the processes were lost; "" as long as nothing has happened, and from then on."""
        news, self._news = self._news, ""
        return news

    def _lose(self, reason: Exception | str) -> None:
        self.__exit__()
        self._lost, self._news = True, str(reason)


class _Process:
    """One that runs worker.py, in a session of its own: signals to the run are the run's."""

    def __init__(self, shared: int) -> None:
        folders = [os.path.abspath(folder) for folder in sys.path]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(shared), *folders], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            pass_fds=[shared], start_new_session=True)

    def tell(self, what: dict[str, Any]) -> None:
        """Sends a line. Raises LostError if nobody reads it."""
        pipe: Any = self._process.stdin
        try:
            pipe.write(json.dumps(what).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise self._ended() from error

    def answer(self) -> dict[str, Any]:
        """Waits for a line. Raises LostError if there will be none, or if it tells of an error."""
        pipe: Any = self._process.stdout
        line = pipe.readline()
        if not line:
            raise self._ended()
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            raise LostError(f"a worker process met {told['error']}")
        return told

    def _ended(self) -> LostError:
        status = self._process.wait()
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return LostError(f"a worker process {how}")

    def end(self) -> None:
        """At once."""
        self._process.kill()
        with suppress(OSError):  # what it was told last may still stand in the pipe
            self._process.communicate()


def _unnamed() -> IO[bytes]:
    """A file without a name, in memory where the system has such: gone with the last process that holds it."""
    return os.fdopen(os.memfd_create("refimpl"), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
