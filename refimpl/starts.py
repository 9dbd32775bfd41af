"""How a command that computes starts: the BLAS kernels and the threads that it was asked to use."""

import os
from pathlib import Path

import click

from refimpl import console
from refimpl.exits import Session

kernels_option = click.option(
    "--blas-kernels", "kernels", default="auto", show_default=True, metavar="auto|default|NAME",
    envvar="REFIMPL_BLAS_KERNELS",
    help="OpenBLAS's kernels: the fastest by a measurement that is remembered, its own choice, or these.")
threads_option = click.option(
    "--threads", type=click.IntRange(1), help="Threads of BLAS and workers.  [default: the cores that may be used]")


def store_folder(given: Path | None = None) -> Path:
    """Where refimpl keeps what it can make again: as given, else REFIMPL_STORE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return given or Path(os.environ.get("REFIMPL_STORE") or Path(base) / "refimpl")


def use_threads(count: int | None) -> None:
    """Holds the rest of the command to so many threads; None = the cores that the process may use."""
    from refimpl.arrays import limit_threads

    click.get_current_context().with_resource(limit_threads(count))


def use_kernels(asked: str, store: Path | None = None) -> None:
    """The kernels asked for. Where others are needed than those at hand the command starts again, in this process's place.

    Called from Python, a command stays in the process that is the caller's, and a note says so if a name was asked for.
    """
    from refimpl import blas

    session = click.get_current_context().find_object(Session)
    if session is None or not session.own_process:
        if asked not in ("auto", blas.DEFAULT):
            console.note(f"refimpl: --blas-kernels {asked}: left as they are, in a process that is not the command's own")
        return
    choice = blas.choose(asked, blas.this_machine(store_folder(store)))
    if choice.kernels:
        console.note(f"refimpl: --blas-kernels {asked}: left as they are: {blas.restart(choice.kernels)}")
