"""Checkpoints written while training goes on: a thread writes a copy of one update's state."""

import copy
import threading
from pathlib import Path

from refimpl import checkpoint, optimizers
from refimpl.arrays import to_host
from refimpl.checkpoint import Checkpoint
from refimpl.parameters import Parameters


class Writer:
    """One write at a time. A failed one is raised by the next call of any method, an OSError mostly."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def write(self, run: Path, saved: Checkpoint, keep: int) -> None:
        """Writes the checkpoint as `checkpoint.save` does, and sets saved.path. Waits for a write before it."""
        self.wait()
        saved.path = checkpoint.save(run, saved, keep)

    def begin(self, run: Path, saved: Checkpoint, keep: int) -> None:
        """The same, while the caller goes on and changes `saved`; at the end saved.path is set. Waits for one before it."""
        self.wait()
        copied = snapshot(saved)

        def save() -> None:
            try:
                saved.path = checkpoint.save(run, copied, keep)
            except BaseException as error:
                self._error = error

        # a daemon: a process that is told twice to end does so at once, and what is half written is under another name
        self._thread = threading.Thread(target=save, name="refimpl checkpoint", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises what a write that has ended failed with."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Until no write is in progress; raises what it failed with."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()


def snapshot(saved: Checkpoint) -> Checkpoint:
    """A copy on the host that later updates leave as it is. The past is not copied: each update makes a new one."""
    state = saved.optimizer
    accumulators = {name: _copied(p) for name, p in state.accumulators.items()}
    copied = optimizers.State(state.updates, accumulators, skipped=state.skipped,
                              skipped_in_a_row=state.skipped_in_a_row)
    past = None if saved.past is None else to_host(saved.past)
    return Checkpoint(saved.config, saved.train_config, _copied(saved.parameters), copied, copy.deepcopy(saved.progress),
                      past, saved.vocabulary)


def _copied(p: Parameters) -> Parameters:
    host = to_host(p.vector)
    return Parameters(p.config, host.copy() if host is p.vector else host)
