"""The real command in a process that ends, or whose calls of the system fail, at a chosen moment.

python launcher.py {"kill": N} train …: SIGKILL at event N, counted from 1. Events are updates and the calls that change or
sync files. {"plant": NAME}: an error planted first. {"count": FILE}: the number of events, written there at the end.
"""

import atexit
import itertools
import json
import os
import pathlib
import shutil
import signal
import sys
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


def main(told: dict[str, Any], arguments: list[str]) -> None:
    """Runs the command."""
    sys.argv = ["refimpl", *arguments]
    from refimpl.cli import main as command

    counter = itertools.count(1)
    last = told.get("kill", 0)
    reached = [0]

    def event() -> None:
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
