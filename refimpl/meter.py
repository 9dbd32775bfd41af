"""How far a transfer is: size, speed and time left; a bar on a terminal, a line now and then if piped."""

import sys
import time
from types import TracebackType
from typing import Any

from refimpl.console import amount, duration, note, printable

SECONDS = 2.0  # between lines, at least: what is over sooner needs none


class TransferMeter:
    """Shows one transfer after another on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._name, self._total, self._done, self._started, self._told = "", 0, 0, 0.0, 0.0

    def __enter__(self) -> "TransferMeter":
        if sys.stderr.isatty():
            from rich import progress  # only where it shows
            from rich.console import Console

            columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.DownloadColumn(),
                       progress.TransferSpeedColumn(), progress.TimeRemainingColumn())
            self._bar = progress.Progress(*columns, console=Console(stderr=True, highlight=False))
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str, total: int) -> None:
        """So many bytes of `name` will come, at most; the transfer before is over."""
        self._name, self._total, self._done = name, total, 0
        self._started = self._told = time.monotonic()
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._bar.add_task(name, total=total)

    def add(self, count: int) -> None:
        """So many of them came."""
        self._done += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[-1], advance=count)
            return
        now = time.monotonic()
        if now - self._told >= SECONDS:
            self._told = now
            note(self._line(now - self._started))

    def note(self, text: str) -> None:
        """A line that stays."""
        if self._bar is None:
            note(f"refimpl: {text}")
        else:
            self._bar.console.print(f"refimpl: {printable(text)}", soft_wrap=True, markup=False)

    def _line(self, seconds: float) -> str:
        pace = max(self._done, 1) / seconds
        left = duration((self._total - self._done) / pace)
        return f"{self._name}  {amount(self._done)} of {amount(self._total)}  {amount(pace)}/s  {left} left"
