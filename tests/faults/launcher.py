"""The real command in a process that ends, or comes to a standstill, at a chosen moment.

python launcher.py {"kill": N} train …: SIGKILL at event N, counted from 1. Events are updates and the calls that change or
sync files. {"plant": NAME}: an error planted first. {"count": FILE}: the number of events, written there at the end.
{"hold": [PLACE, SAVE, N]}: the thread that writes checkpoint SAVE "beside" training, or "before" it goes on, stands still at
event N of that, for ever; or a "worker" in the update after checkpoint SAVE. Then, after each signal that has not ended the
process, and where the first thread waits for a write, a line on stderr says so.
"""

import atexit
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = [(os, name) for name in ("open", "fsync", "rename", "replace", "mkdir", "rmdir", "unlink")]


def plant_no_past() -> None:
    """A checkpoint that forgets the past."""
    from refimpl import checkpoint, checkpoint_files

    read = checkpoint_files.read_folder

    def forgetful(folder: Path, to_train: bool = True) -> Any:
        saved = read(folder, to_train)
        saved.past = saved.past[:, :, :0]
        return saved

    checkpoint.read_folder = forgetful


def plant_no_state() -> None:
    """A resumed run that starts the text from its beginning."""
    from refimpl.datasets.batches import Batches

    Batches.restore = lambda self, state: None  # type: ignore[method-assign]


def plant_removed_first() -> None:
    """Room is made for a checkpoint before it is whole."""
    from refimpl import checkpoint, writer

    save = checkpoint.save

    def hasty(run: Path, saved: Any, keep: int = 2) -> Path:
        for folder in checkpoint.folders(run):
            shutil.rmtree(folder)
        return save(run, saved, keep)

    writer.checkpoint.save = hasty  # type: ignore[attr-defined]


PLANTS: dict[str, Callable[[], None]] = {
    "no past": plant_no_past, "text from its beginning": plant_no_state, "removed first": plant_removed_first,
}


def watch(event: Callable[[], None]) -> None:
    """Calls event() before every update and every call that changes or syncs files."""
    from refimpl import training

    def before(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            event()
            return original(*arguments, **keywords)

        setattr(owner, name, call)

    for owner, name in (*CALLS, (pathlib.Path, "open"), (training, "update")):
        before(owner, name)


def say(text: str) -> None:
    """A line that a test waits for; in one call, so that threads don't mix theirs."""
    os.write(2, f"launcher: {text}\n".encode())


def stand_still() -> None:
    """For ever; a signal's handler may still end the first thread.

    Which is woken again and again: a signal that comes just before it waits for a lock is seen only with the next one.
    """
    say("held")
    first = threading.main_thread()
    while True:
        threading.Event().wait(0.01)
        if threading.current_thread() is not first:
            signal.pthread_kill(first.ident, signal.SIGUSR1)


def hold(place: str, save_number: int, number: int) -> Callable[[], None]:
    """What each event must call so that the chosen thread stands still."""
    from refimpl import arrays, checkpoint, writer

    saves, writing, written = {"beside": 0, "before": 0}, threading.local(), threading.Event()
    save, work, wait, set_handler = checkpoint.save, arrays.map_in_threads, writer.Writer.wait, signal.signal

    def watched(*arguments: Any) -> Path:
        here = "before" if threading.current_thread() is threading.main_thread() else "beside"
        saves[here] += 1
        writing.left = number if (here, saves[here]) == (place, save_number) else 0
        try:
            return save(*arguments)
        finally:
            if sum(saves.values()) == save_number:
                written.set()

    def work_or_stand_still(function: Any, items: Any, workers: int) -> Any:
        def part(item: Any) -> Any:
            if written.is_set() and place == "worker":
                stand_still()
            return function(item)

        return work(part, items, workers)

    def told_wait(self: writer.Writer) -> None:
        if self._thread is not None and self._thread.is_alive():
            say("waiting")
        wait(self)

    def told_handler(chosen: int, handler: Any) -> Any:
        def call(received: int, frame: Any) -> None:
            handler(received, frame)
            say(f"signal {received}")

        return set_handler(chosen, call if callable(handler) else handler)

    def event() -> None:
        left = writing.left = getattr(writing, "left", 0) - 1
        if left == 0:
            stand_still()

    signal.signal(signal.SIGUSR1, lambda *_: None)
    checkpoint.save, signal.signal = watched, told_handler  # type: ignore[assignment]
    writer.Writer.wait = told_wait  # type: ignore[method-assign]
    from refimpl import workers

    workers.map_in_threads = work_or_stand_still  # type: ignore[attr-defined]
    return event


def main(told: dict[str, Any], arguments: list[str]) -> None:
    """Runs the command."""
    sys.argv = ["refimpl", *arguments]
    from refimpl.cli import main as command

    counter = itertools.count(1)
    last = told.get("kill", 0)
    reached = [0]
    held = hold(*told["hold"]) if "hold" in told else lambda: None

    def event() -> None:
        held()
        reached[0] = next(counter)
        if reached[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    if told.get("plant"):
        PLANTS[told["plant"]]()
    watch(event)
    if "count" in told:
        atexit.register(lambda: Path(told["count"]).write_text(str(reached[0])))
    command()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
