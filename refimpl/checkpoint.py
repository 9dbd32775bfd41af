"""A run's checkpoints: folders written aside, synced to disk and renamed, so that one is whole or absent; which are kept."""

import os
import shutil
from pathlib import Path
from typing import Any

from refimpl import durable
from refimpl.checkpoint_files import MANIFEST, Checkpoint, read_folder, read_manifest, write_files
from refimpl.errors import InputError

__all__ = ["MANIFEST", "Checkpoint", "folders", "load", "save"]

OLD = ".old"


def save(run: Path, saved: Checkpoint, keep: int = 2) -> Path:
    """Writes run/checkpoints/update-N, then deletes all but the newest `keep` up to N and the best; returns its path.

    On any error (no room, no permission) what was written is removed and older checkpoints are as before. Checkpoints of
    later updates are deleted too: a run that went on from before them has passed them over as damaged.
    """
    parent = _parent(run)
    final = parent / _name(saved.optimizer.updates)
    aside, old = parent / f".{final.name}.{os.getpid()}", parent / f"{final.name}{OLD}"
    shutil.rmtree(aside, ignore_errors=True)  # a killed writer may have had this number
    try:
        aside.mkdir()
        write_files(aside, saved)
        durable.sync(aside)
        if final.exists():  # the same update again: the old one steps aside only now that the new one is whole
            durable.remove(old)
            final.rename(old)
        aside.rename(final)
        durable.sync(parent)
    except BaseException:
        if old.exists() and not final.exists():
            old.rename(final)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    best = _name(saved.progress["best"]["update"]) if "best" in saved.progress else None
    kept = [folder for folder in folders(run) if folder.name <= final.name][-keep:]
    for folder in folders(run):
        if folder not in kept and folder.name != best:
            durable.remove(folder)
    for folder in parent.glob(".update-*"):  # what writers that were killed have left
        shutil.rmtree(folder, ignore_errors=True)
    return final


def load(path: str | Path, which: str = "latest", to_train: bool = True) -> Checkpoint:
    """A checkpoint's folder; or of a run's folder its newest whole checkpoint, the best by validation, or one by its name.

    which: "latest", "best", or a folder's name as "update-00001000". Raises InputError if there is no such checkpoint, or
    if a file is missing, truncated or altered (by its SHA-256); only "latest" takes an older one then. to_train: as of
    `read_folder`.
    """
    path = Path(path)
    if (path / MANIFEST).is_file():
        if which != "latest":
            raise InputError(f"{path}: expected a run's folder to choose checkpoint {which} from, got a checkpoint's")
        return read_folder(path, to_train)
    found = folders(path)
    if not found:
        came = "no folder" if not path.is_dir() else "neither"
        if (path / "config.toml").is_file():
            came = "a run that has no checkpoint yet"
        raise InputError(f"{path}: expected a checkpoint's folder (with {MANIFEST}) or a run's (with checkpoints/), got "
                         f"{came}")
    return _newest_whole(found, to_train) if which == "latest" else read_folder(_chosen(path, found, which), to_train)


def folders(run: Path) -> list[Path]:
    """A run's checkpoints, oldest first; one that a writer moved out of its way stands before the one in its place."""
    found = [folder for folder in (run / "checkpoints").glob("update-*") if folder.is_dir()]
    return sorted(found, key=lambda folder: (folder.name.removesuffix(OLD), not folder.name.endswith(OLD)))


def _parent(run: Path) -> Path:
    """run/checkpoints; where it is new, its own entry is made durable too."""
    parent = run / "checkpoints"
    if not parent.is_dir():
        parent.mkdir(parents=True, exist_ok=True)
        durable.sync(run)
    return parent


def _name(updates: int) -> str:
    return f"update-{updates:08d}"


def _newest_whole(found: list[Path], to_train: bool) -> Checkpoint:
    passed_over: list[str] = []
    for folder in reversed(found):
        try:
            saved = read_folder(folder, to_train)
        except InputError as error:
            passed_over.append(str(error))
        else:
            saved.passed_over = passed_over
            return saved
    raise InputError(passed_over[0])


def _chosen(run: Path, found: list[Path], which: str) -> Path:
    """The folder that "best" or a name means."""
    names = [folder.name for folder in found]
    if which == "best":
        best = _best(found)
        if best is None:
            raise InputError(f"{run}: expected a run with a validation to take its best checkpoint, got none yet")
        which = _name(best["update"])
    if which not in names:
        raise InputError(f"{run}: expected a checkpoint latest, best or one of {', '.join(names)}, got {which!r}")
    return found[names.index(which)]


def _best(found: list[Path]) -> dict[str, Any] | None:
    """The best validation (update, loss) as the newest readable manifest tells it."""
    for folder in reversed(found):
        try:
            best = read_manifest(folder)["progress"].get("best")
        except InputError:
            continue
        return dict(best) if best else None
    return None
