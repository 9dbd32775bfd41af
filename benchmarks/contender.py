"""A contender in a process of its own, which stays alive and computes only when it is its turn.

In one process they would not be on their own: OpenMP's threads of PyTorch spin on after their work, on the cores that BLAS
needs. A subject is what a contender runs, an object with two methods:

    run() -> float                 seconds of the same computation each time, from inputs that are in place
    results() -> {name: array}     what that computation gives, by names that all contenders of a case share
"""

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Contender:
    """Started with where its subject is made, `module:function` of this folder, and the settings that the function takes."""

    def __init__(
        self, name: str, subject: str, settings: Mapping[str, Any], threads: int, environment: Mapping[str, str]
    ) -> None:
        self.name, self._folder = name, tempfile.TemporaryDirectory()
        self._process = subprocess.Popen([sys.executable, __file__, subject, str(threads)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True, env={**os.environ, **environment})
        self.about: dict[str, Any] = self._ask(settings)

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> int:
        """Ends the process; returns its exit status."""
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                stream.close()
        self._folder.cleanup()
        return self._process.wait()

    def seconds(self) -> float:
        """One turn."""
        return self._ask("run")

    def results(self) -> dict[str, Any]:
        """What its computation gives."""
        import numpy as np

        path = self._ask({"results": str(Path(self._folder.name) / "results.npz")})
        with np.load(path) as arrays:
            return dict(arrays)

    def memory(self) -> dict[str, Any]:
        """Of one turn: bytes resident before it, at its peak and after it; minor page faults."""
        return self._ask("memory")

    def answer(self, question: str) -> Any:
        """What another method of the subject, one without arguments, returns."""
        return self._ask(question)

    def _ask(self, question: Any) -> Any:
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError):
            raise SystemExit(f"{self.name}: its process ended with {self.close()}") from None


def serve(subject_name: str, threads: int) -> None:
    """Answers questions on stdin, a line of JSON each, until it is closed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    if hasattr(os, "sched_setaffinity"):  # before NumPy and others are imported: then all use so many threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    module, _, function = subject_name.partition(":")
    settings = json.loads(sys.stdin.readline())
    subject = getattr(importlib.import_module(module), function)(settings)
    print(json.dumps(_about()), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if question == "memory":
            answer: Any = _memory_of(subject.run)
        elif isinstance(question, dict):
            answer = question["results"]
            sys.modules["numpy"].savez(answer, **subject.results())
        else:
            answer = getattr(subject, question)()
        print(json.dumps(answer), file=answers, flush=True)


def _about() -> dict[str, Any]:
    """What this process computes with."""
    from refimpl.arrays import blas_libraries
    from refimpl.computing import computing

    about = {**computing(), "blas_threads": max((library["num_threads"] for library in blas_libraries()), default=None)}
    for name in ("torch", "jax"):
        if name in sys.modules:
            about[name] = sys.modules[name].__version__
    return about


def _memory_of(run: Any) -> dict[str, Any]:
    import resource

    marks = Path("/proc/self/clear_refs")
    if marks.exists():
        marks.write_text("5", encoding="ascii")  # the high-water mark falls to what is resident now
    before, faults = resident()["VmRSS"], resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run()
    after = resident()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"before": before, "peak": after["VmHWM"], "after": after["VmRSS"], "page_faults": faults}


def resident() -> dict[str, int]:
    """Bytes resident now and at most, VmRSS and VmHWM; where only the latter is known, the latter twice."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.partition(":") for line in status.read_text(encoding="utf-8").splitlines())
        return {name: 1024 * int(value.split()[0]) for name, _, value in lines if name in ("VmRSS", "VmHWM")}
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"VmRSS": largest, "VmHWM": largest}


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    serve(sys.argv[1], int(sys.argv[2]))
