"""A run's folder belongs to one process at a time, by a lock that the system drops together with its holder."""

import json
import os
import socket
import weakref
from contextlib import ExitStack
from pathlib import Path

from refimpl.errors import InputError

NAME = ".lock"


class Lock:
    """A run's folder, held until `release` or the end of the process. `missing`: why no lock could be had, or ""."""

    def __init__(self, descriptor: int | None, missing: str = "") -> None:
        self.missing = missing
        self._close = None if descriptor is None else weakref.finalize(self, _close, descriptor)

    def release(self) -> None:
        """Lets others have it; a second time it does nothing."""
        if self._close is not None:
            self._close()


def hold(folder: Path, held: ExitStack) -> str:
    """The folder's lock, until `held` closes; why there is none, or "". Raises InputError as `take` does."""
    lock = take(folder)
    held.callback(lock.release)
    return lock.missing


def take(folder: Path) -> Lock:
    """The lock of an existing folder. Raises InputError that names the process which holds it, or if it can't be written.

    Where the file system has no locks, or the system no flock, training goes on without, and `missing` says why.
    """
    try:
        import fcntl
    except ImportError:
        return Lock(None, "this system has no flock")
    try:
        descriptor = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise InputError(f"{folder}: expected a folder that can be written, got {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _holder(descriptor)
        os.close(descriptor)
        raise InputError(f"{folder}: expected no other process to train in it, got {holder} (eval and generate may read it "
                         f"meanwhile)") from None
    except OSError as error:  # a network file system without a lock service
        os.close(descriptor)
        return Lock(None, f"{error.strerror}")
    _note(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    return Lock(descriptor)


def _holder(descriptor: int) -> str:
    try:
        told = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {told['pid']} of {told['host']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "one that did not leave its name"


def _note(descriptor: int, text: str) -> None:
    """Who holds the lock, for those who are refused; on a full disk the lock holds without a name."""
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)
    except OSError:
        pass


def _close(descriptor: int) -> None:
    _note(descriptor, "")
    os.close(descriptor)
