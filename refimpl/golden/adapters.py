"""Implementations under test: a Python function, a program, or a folder of results. Each in a process of its own."""

import contextlib
import json
import shlex
import signal
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from refimpl.arrays import Place, to_host
from refimpl.device.opening import on_host
from refimpl.errors import CalledFailedError, InputError
from refimpl.functions import FUNCTIONS, TILED, Results, evaluate
from refimpl.golden import exchange, processes
from refimpl.golden.processes import Limits, Worker
from refimpl.golden.vectors import Stored, stem

NOT_IMPLEMENTED = 10  # exit code of a program that does not have a case's function
TAIL = 400  # characters of what an implementation said before it ended


class Answer(NamedTuple):
    """What came of one case.

    kind: "results", "refused" (it raised an error), "skipped" (not implemented), "wrong" (results that are not of the dtype
    under test) or "crashed".
    """

    kind: str
    results: Results
    message: str = ""


class Adapter(Protocol):
    """An implementation under test. functions: those that it declares; None = it declares nothing."""

    name: str
    functions: frozenset[str] | None

    def answer(self, case: Stored, dtype: str) -> Answer: ...


class Reference:
    """refimpl itself, in this process."""

    functions: frozenset[str] | None = None

    def __init__(self, attention: str = "textbook", place: Place = on_host) -> None:
        """attention: computed as the equations read, or "tiled"; on the device of `place`."""
        self._place = place
        self.name, self._functions = {"textbook": ("refimpl", FUNCTIONS), "tiled": ("refimpl in tiles", TILED)}[attention]

    def answer(self, case: Stored, dtype: str) -> Answer:
        """Its results in the dtype. Raises InputError for one that NumPy does not compute in."""
        if dtype not in ("float64", "float32"):
            raise InputError(f"--dtype: refimpl itself computes in float64 and float32, got {dtype}")
        inputs = {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in case.inputs.items()}
        try:
            _check_ids(inputs)
            inputs = {name: self._place(array) for name, array in inputs.items()}
            with np.errstate(all="ignore"):
                found = evaluate(case.entry["function"], case.entry["settings"], inputs, self._functions)
            return Answer("results", {name: to_host(array) for name, array in found.items()})
        except (ValueError, IndexError) as error:
            return Answer("refused", {}, f"{type(error).__name__}: {error}")


def _check_ids(inputs: Results) -> None:
    """Refuses what a GPU does not look at: there token ids are held to be right."""
    if {"tokens", "table"} <= inputs.keys() and inputs["tokens"].max(initial=0) >= len(inputs["table"]):
        raise IndexError(f"tokens: expected ids below {len(inputs['table'])}, got {inputs['tokens'].max()}")


class ResultsFolder:
    """Results made elsewhere: DIR/GROUP/CASE.results.safetensors, or an empty DIR/GROUP/CASE.refused."""

    functions: frozenset[str] | None = None

    def __init__(self, folder: Path) -> None:
        """Raises InputError unless there is such a folder."""
        if not folder.is_dir():
            raise InputError(f"--results: expected a folder, got {folder}")
        self.name, self._folder = str(folder), folder

    def answer(self, case: Stored, dtype: str) -> Answer:
        """What the folder holds of a case."""
        place = self._folder / case.entry["group"]
        if (place / f"{stem(case.id)}.refused").is_file():
            return Answer("refused", {}, "refused")
        path = place / f"{stem(case.id)}.{exchange.RESULTS}"
        if not path.is_symlink() and not path.exists():
            return Answer("skipped", {}, f"no {path.name}")
        return _read(path, dtype)


class Program:
    """A program: `COMMAND --describe` prints {"functions": […]}; `COMMAND CASE OUT` writes OUT/results.safetensors.

    Exit code 0 = done, 10 = not implemented, another = refused.
    """

    def __init__(self, command: str, limits: Limits) -> None:
        """Raises InputError if the command can't be started, CalledFailedError if it does not describe itself."""
        self.name, self._command, self._limits = command, shlex.split(command), limits
        if not self._command:
            raise InputError("--command: expected a program, got nothing")
        try:
            code, said, out = processes.run([*self._command, "--describe"], limits)
        except OSError as error:
            raise InputError(f"--command: expected a program that starts, got {command}: {error.strerror}") from error
        try:
            listed = json.loads(out)["functions"] if code == 0 else None
            if not isinstance(listed, list | None):
                raise TypeError
        except (ValueError, KeyError, TypeError) as error:
            raise CalledFailedError(f"{command} --describe: expected JSON with functions, got {out[:80]!r}") from error
        if code != 0:
            raise CalledFailedError(f"{command} --describe ended with {code}: {said[-TAIL:].strip()}")
        self.functions = _declared("--command", command, listed)

    def answer(self, case: Stored, dtype: str) -> Answer:
        """One run of the program."""
        with tempfile.TemporaryDirectory(prefix="refimpl-") as folder:
            given, out = Path(folder, "case"), Path(folder, "out")
            exchange.write_case(given, case, dtype)
            out.mkdir()
            try:
                code, said, _ = processes.run([*self._command, str(given), str(out)], self._limits)
            except OSError as error:
                return Answer("crashed", {}, f"could not be started: {error.strerror}")
            last = said.strip()[-TAIL:]
            if code is None:
                return Answer("crashed", {}, f"no answer within {self._limits.seconds:g} s")
            if code < 0:
                return Answer("crashed", {}, f"ended by {signal.Signals(-code).name} {last}".strip())
            if code == NOT_IMPLEMENTED:
                return Answer("skipped", {}, "not implemented")
            if code != 0:
                return Answer("refused", {}, f"exit code {code}: {last}")
            return _read(out / exchange.RESULTS, dtype)


def _read(path: Path, dtype: str) -> Answer:
    try:
        return Answer("results", exchange.read_results(path, dtype))
    except exchange.WrongNumbersError as error:
        return Answer("wrong", {}, str(error))
    except exchange.BadResultsError as error:
        return Answer("crashed", {}, str(error))


class Function:
    """`package.module:function` in a worker process, which is started anew after a crash or when its time runs out.

    function(name, settings, inputs) -> results by name, or None if it does not have that function.
    """

    def __init__(self, reference: str, limits: Limits) -> None:
        """Raises InputError if there is no such function, CalledFailedError if it does not start."""
        module, _, function = reference.partition(":")
        if not all(name.isidentifier() for name in (*module.split("."), function)):
            raise InputError(f"--adapter: expected package.module:function, got {reference!r}")
        self.name, self._reference, self._limits = reference, reference, limits
        self._worker: Worker | None = None
        self.functions = self._start()[1]

    def _start(self) -> tuple[Worker, frozenset[str] | None]:
        """A new worker, and what it declares."""
        worker = self._worker = Worker(self._reference, self._limits)
        told = _told(worker.line(60 + self._limits.seconds))  # an import may take long
        if "functions" not in told:
            said = self.close()[1]
            raise (CalledFailedError if told.get("outside", True) else InputError)(
                f"--adapter {self._reference}: {told.get('error', f'it did not start: {said}')}")
        try:
            return worker, _declared("--adapter", self._reference, told["functions"])
        except InputError:
            self.close()
            raise

    def answer(self, case: Stored, dtype: str) -> Answer:
        """One call."""
        worker = self._worker or self._start()[0]
        with tempfile.TemporaryDirectory(prefix="refimpl-") as folder:
            given, out = Path(folder, "case"), Path(folder, "out")
            exchange.write_case(given, case, dtype)
            worker.ask(json.dumps([str(given), str(out)]))
            line = worker.line(self._limits.seconds)
            if line is None:
                self.close()
                return Answer("crashed", {}, f"no answer within {self._limits.seconds:g} s")
            told = _told(line)
            if not {"kind", "message"} <= told.keys():
                code, said = self.close()
                ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                return Answer("crashed", {}, f"the process ended with {ended}: {said}".rstrip(": "))
            if told["kind"] == "results":
                return _read(out / exchange.RESULTS, dtype)
            if told["kind"] == "exhausted":  # what it still holds would fail the next case, too
                self.close()
                return Answer("crashed", {}, told["message"])
            return Answer(told["kind"], {}, told["message"])

    def close(self) -> tuple[int, str]:
        """Ends the worker; its exit code, and what it said last."""
        worker, self._worker = self._worker, None
        code, said = worker.end() if worker is not None else (0, "")
        return code, said.strip()[-TAIL:]


def _declared(option: str, name: str, listed: Iterable[object] | None) -> frozenset[str] | None:
    """The functions that an implementation declares. Raises InputError for one that there is not: it would be left out."""
    declared = None if listed is None else frozenset(map(str, listed))
    for function in sorted(declared or ()):
        if function not in FUNCTIONS:
            raise InputError(f"{option} {name}: expected it to declare functions among {', '.join(sorted(FUNCTIONS))}; "
                             f"got {function!r}")
    return declared


def _told(line: bytes | None) -> dict[str, Any]:
    """A line of the worker's; {} if there is none, or if something else wrote into its pipe."""
    try:
        told = json.loads(line or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


@contextlib.contextmanager
def opened(
    adapter: str | None, command: str | None, results: Path | None, limits: Limits, attention: str | None = None,
    place: Place = on_host,
) -> Iterator[Adapter]:
    """The implementation that was asked for; without one, refimpl itself, with the attention that was asked for."""
    if sum(given is not None for given in (adapter, command, results, attention)) > 1:
        raise InputError("golden verify: expected one of --adapter, --command, --results and --attention, got several")
    if place is not on_host and (adapter or command or results):
        raise InputError("golden verify: expected --device with refimpl itself, got it with another implementation")
    if adapter is not None:
        with contextlib.closing(Function(adapter, limits)) as function:
            yield function
    elif command is not None:
        yield Program(command, limits)
    else:
        yield ResultsFolder(results) if results is not None else Reference(attention or "textbook", place)
