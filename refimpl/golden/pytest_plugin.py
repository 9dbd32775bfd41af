"""pytest --refimpl-adapter mypackage.mymodule:adapter makes a test of every golden case.

Installed with the package; without the option nothing of refimpl is imported but this file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from refimpl.golden.adapters import Adapter

RESOURCES = pytest.StashKey[contextlib.ExitStack]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--refimpl-adapter and --refimpl-command name what is tested, the others choose cases."""
    group = parser.getgroup("refimpl", "golden vectors of the all-attention transformer")
    group.addoption("--refimpl-adapter", metavar="MODULE:FUNCTION", help="hold this Python function to the golden vectors")
    group.addoption("--refimpl-command", metavar="PROGRAM", help="hold this program to the golden vectors")
    for kind in ("group", "flag", "convention"):
        group.addoption(f"--refimpl-{kind}", action="append", default=[], help=f"only cases of this {kind}; repeatable")
    group.addoption("--refimpl-dtype", default="float64", choices=["float64", "float32", "float16", "bfloat16"],
                    help="what the implementation computes in; sets the bound")
    group.addoption("--refimpl-time-limit", type=float, default=30.0, help="seconds for a case")
    group.addoption("--refimpl-memory-limit", type=float, default=8.0, help="GiB that its processes may ask for; on Linux")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Adds the cases to what was collected, before -k chooses among it."""
    if config.getoption("refimpl_adapter") or config.getoption("refimpl_command"):
        items.extend(GoldenVectors.from_parent(session, name="refimpl").collect())


def pytest_unconfigure(config: pytest.Config) -> None:
    """Ends the implementation's process."""
    if RESOURCES in config.stash:
        config.stash[RESOURCES].close()


class GoldenVectors(pytest.Collector):
    """The chosen cases of the functions that the implementation declares."""

    def collect(self) -> Iterator[GoldenCase]:
        """A test each."""
        from refimpl.errors import CalledFailedError, InputError
        from refimpl.golden.adapters import opened
        from refimpl.golden.processes import Limits
        from refimpl.golden.verify import Selection, select

        option = self.config.getoption
        self.config.stash[RESOURCES] = resources = contextlib.ExitStack()
        try:
            chosen = select(Selection(*(tuple(option(f"refimpl_{kind}")) for kind in ("group", "flag", "convention"))))
            limits = Limits(option("refimpl_time_limit"), option("refimpl_memory_limit"))
            adapter = resources.enter_context(
                opened(option("refimpl_adapter"), option("refimpl_command"), None, limits))
        except (InputError, CalledFailedError) as error:
            raise pytest.UsageError(str(error)) from error
        for entry in chosen:
            if adapter.functions is None or entry["function"] in adapter.functions:
                case = GoldenCase.from_parent(self, name=entry["id"])
                case.adapter, case.entry = adapter, entry
                yield case


class GoldenCase(pytest.Item):
    """One case."""

    adapter: Adapter
    entry: dict[str, object]

    def runtest(self) -> None:
        """Fails with what is wrong and which known bug it looks like; what can't be judged is skipped."""
        from refimpl.golden import reports, vectors
        from refimpl.golden.verdicts import PASS, SKIPPED, UNCHECKED
        from refimpl.golden.verify import verify

        run = verify(self.adapter, [self.entry], self.config.getoption("refimpl_dtype"), vectors.FOLDER)
        (verdict,) = run.verdicts
        if verdict.verdict in (SKIPPED, UNCHECKED):
            pytest.skip(f"{verdict.verdict}: {reports.where(verdict)}")
        if verdict.verdict != PASS:
            notes = [note["effect"] for note in run.entries[verdict.id]["notes"].values()]
            pytest.fail("\n".join([f"{verdict.verdict}: {reports.where(verdict)}", *reports.summary(run)[2:], *notes]),
                        pytrace=False)

    def reportinfo(self) -> tuple[str, None, str]:
        """Where it is listed."""
        return "refimpl golden vectors", None, self.name
