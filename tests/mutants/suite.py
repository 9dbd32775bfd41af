"""The test suite against changed sources: one forked process for each, a few at a time.

pytest is configured once; each process then plants its change, collects the tests, so that whatever they import is the
changed one, and runs them until one fails.
"""

import contextlib
import gc
import inspect
import json
import os
import resource
import selectors
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import kinds
import pytest

from refimpl import arrays
from refimpl.golden import planted

PACKAGE = Path(planted.__file__).parents[1]
PROCESSES = 2
SECONDS = 300  # of processor time; the whole suite takes a fifth of it
GIBIBYTES = 6


class Mutant(NamedTuple):
    """Changed sources by module, as planted.replaced takes them.

    gradients: whether a gradient check may kill it. first: tests to begin with. tests: all that can see the change, by
    their ids; None = any.
    """

    id: str
    sources: Mapping[str, str]
    gradients: bool = True
    first: Sequence[str] = ()
    tests: frozenset[str] | None = None


class Kill(NamedTuple):
    """The test that failed, and of which kind it is; "" and TIME where no test ended in time."""

    test: str
    kind: str


class Suite:
    """A plugin that takes the place of pytest's collection and running."""

    def __init__(self, work: Callable[["Suite"], int]) -> None:
        """work(suite) is called once pytest is ready; its result is the exit status."""
        self.work, self.status = work, 0
        self.mutant: Mutant | None = None

    def pytest_collection(self, session: pytest.Session) -> bool:
        """Finds the files without importing them, and lets `work` go on from there."""
        self.session = session
        first = session.perform_collect([str(kinds.TESTS / f"{next(iter(kinds.KINDS))}.py")], genitems=False)[0]
        report = session.config.hook.pytest_make_collect_report(collector=first.parent)
        self.files = {node.path.stem: node for node in report.result if isinstance(node, pytest.Module)}
        _without_shrinking()
        for module in kinds.PACKAGES:
            import_module(module)  # once, not in every process
        gc.freeze()
        self.status = self.work(self)
        return True

    def pytest_runtestloop(self) -> bool:
        """Instead of running: all is done."""
        return True

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """A failure that counts ends the process."""
        if call.excinfo is None or isinstance(call.excinfo.value, pytest.skip.Exception):
            return
        how = kinds.kind(item, call.excinfo)
        if self.mutant is not None and (self.mutant.gradients or how != kinds.GRADIENT):
            self.tell(Kill(item.nodeid, how))

    def kills(self, mutants: Iterator[Mutant]) -> Iterator[tuple[Mutant, Kill | None]]:
        """Each mutant with the test that kills it, as they end; None = it passed all tests."""
        with selectors.DefaultSelector() as waiting:
            while True:
                while len(waiting.get_map()) < PROCESSES and (mutant := next(mutants, None)) is not None:
                    reader, process = self.begin(mutant)
                    waiting.register(reader, selectors.EVENT_READ, (mutant, process))
                if not waiting.get_map():
                    return
                for key, _ in waiting.select():
                    mutant, process = key.data
                    waiting.unregister(key.fileobj)
                    yield mutant, _end(int(key.fd), process)

    def begin(self, mutant: Mutant) -> tuple[int, int]:
        """A process that hunts the mutant: where it tells its result, and its id."""
        def hunted() -> None:
            self.mutant = mutant
            try:
                self.hunt(mutant)
            except Exception as error:  # the change does not even load, or breaks pytest's own work
                self.tell(Kill(f"{type(error).__name__} outside of a test: {error}", kinds.VALUE))

        return self.fork(hunted)

    def fork(self, run: Callable[[], None]) -> tuple[int, int]:
        """A process that runs it under limits and tells what it tells, at last None."""
        reader, writer = os.pipe()
        process = os.fork()
        if process:
            os.close(writer)
            return reader, process
        os.close(reader)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES << 30, GIBIBYTES << 30))
        self.writer = writer
        try:
            run()
            self.tell(None)
        finally:
            os._exit(1)

    def hunt(self, mutant: Mutant) -> None:
        """Runs the tests, which end the process when one fails."""
        with planted.replaced(dict(mutant.sources)):
            order = kinds.files_for(set(mutant.sources))
            for wanted in (frozenset(mutant.first), mutant.tests):
                for stem in order:
                    self.run(self.collect(stem, wanted))

    def collect(self, stem: str, wanted: frozenset[str] | None = None) -> list[pytest.Item]:
        """The tests of a file that may kill, of those that are wanted (None = all)."""
        path = self.files[stem].nodeid
        if wanted is not None and not any(name.startswith(path) for name in wanted):
            return []
        return [item for item in self.session.genitems(self.files[stem])
                if kinds.is_evidence(item) and (wanted is None or item.nodeid in wanted)]

    def run(self, items: list[pytest.Item]) -> None:
        """Runs them in order."""
        for item, following in zip(items, [*items[1:], None], strict=False):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def reached(self) -> dict[str, list[str]]:
        """By function, as module:name, the tests that call it without any change. Raises ValueError if a test fails."""
        def watched(stems: Sequence[str]) -> None:
            self.mutant, found = Mutant("", {}), {}
            for stem in stems:
                with calls() as at_import:
                    items = self.collect(stem)
                for item in items:
                    with calls() as in_test:
                        self.run([item])
                    for function in at_import | in_test:
                        found.setdefault(function, []).append(item.nodeid)
            self.tell(found)

        stems, together = list(kinds.KINDS), defaultdict(list)
        running = [self.fork(partial(watched, stems[number::PROCESSES])) for number in range(PROCESSES)]
        for told in [_told(*process) for process in running]:
            if not isinstance(told, dict):
                raise ValueError(f"tests: expected all to pass without a change, got {told}")
            for function, tests in told.items():
                together[function] += tests
        return together

    def tell(self, result: object) -> None:
        """Hands the result over, and ends the process at once."""
        with os.fdopen(self.writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)


def _without_shrinking() -> None:
    """Hypothesis need not make a failing example small here."""
    import hypothesis  # as late as pytest wants it

    hypothesis.settings.register_profile("mutants", hypothesis.settings.get_profile("ci"), report_multiple_bugs=False,
                                         phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
    hypothesis.settings.load_profile("mutants")


def _end(reader: int, process: int) -> Kill | None:
    """The kill that a process told; TIME if it was ended by its limit."""
    told = _told(reader, process)
    return Kill(*told) if isinstance(told, list) else told


def _told(reader: int, process: int) -> Any:
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    _, status = os.waitpid(process, 0)
    if told:
        return json.loads(told)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL):
        return Kill("", kinds.TIME)
    return Kill(f"process ended with status {status}", kinds.VALUE)


@contextlib.contextmanager
def calls() -> Iterator[set[str]]:
    """The package's functions that are called in the block, as module:name, in all threads; filled at the block's end."""
    seen: dict[int, CodeType] = {}
    found: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen[id(frame.f_code)] = frame.f_code

    arrays._pool.cache_clear()  # only threads that start within the block are watched
    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
        for code in seen.values():
            path = Path(code.co_filename)
            if code.co_flags & inspect.CO_OPTIMIZED and path.is_relative_to(PACKAGE):  # no body of a class or module
                module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
                found.add(f"{module}:{code.co_qualname.replace('.<locals>', '')}")


def run(work: Callable[[Suite], int]) -> int:
    """work(suite) with pytest ready; its exit status."""
    kinds.check_complete()
    suite = Suite(work)
    ended = pytest.main(["-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", str(kinds.TESTS)], [suite])
    return suite.status or int(ended not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED))
