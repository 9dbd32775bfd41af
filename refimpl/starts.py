"""The options that commands share, and how one that computes starts: with the kernels and threads asked for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refimpl import console
from refimpl.errors import CalledFailedError, InputError
from refimpl.exits import OUTSIDE, USAGE, EndedError, Session, debug_option

TF32 = "refimpl.tf32"  # where a command's context holds --tf32 for use_device and asked_tf32
kernels_option = click.option(
    "--blas-kernels", "kernels", default="auto", show_default=True, metavar="auto|default|NAME",
    envvar="REFIMPL_BLAS_KERNELS",
    help="OpenBLAS's kernels: the fastest by a measurement that is remembered, its own choice, or these.")
threads_option = click.option(
    "--threads", type=click.IntRange(1),
    help="Threads of BLAS and workers, of each rank.  [default: the cores that may be used, shared by the ranks there]")
device_option = click.option("--device", default="cpu", show_default=True, metavar="cpu|gpu|gpu:N",
                             help="Where to compute; `refimpl info` tells whether a GPU is usable.")
tf32_option = click.option(
    "--tf32", is_flag=True, expose_value=False, callback=lambda context, _, value: context.meta.update({TF32: value}),
    help="On a GPU multiply float32 matrices in TF32: faster, to about 3 digits.")
graph_option = click.option("--cuda-graph", is_flag=True,
                            help="On a GPU launch an update as one CUDA graph: the same results, fewer calls.")
store_option = click.option("--store", type=click.Path(path_type=Path), default=None, envvar="REFIMPL_STORE",
                            help="Where encoded texts are kept.  [default: the user's cache folder]")


def options(*wanted: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Several options as one decorator, in the order in which help shows them."""

    def decorate(command: Any) -> Any:
        for option in reversed(wanted):
            command = option(command)
        return command

    return decorate


as_json = options(
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout."), debug_option,
)
data_options = options(
    click.option("--data", "data_path", help="A text file, a folder with train, valid and test files, or `sample`."),
    click.option("--vocabulary", type=click.Choice(["byte", "character", "word"]), help="What a token is."),
    store_option,
)
checkpoint_option = click.option(
    "--checkpoint", "which", default="latest", show_default=True, metavar="latest|best|NAME",
    help="Which of a run's checkpoints: the newest whole one, the best by validation, or a folder's name.")
computing_options = options(kernels_option, threads_option, device_option, tf32_option)
mpi_option = click.option(
    "--mpi/--no-mpi", default=None,
    help="Share the run with the processes that mpiexec started, or don't.  [default: if it started several]")


def store_folder(given: Path | None = None) -> Path:
    """Where refimpl keeps what it can make again: as given, else REFIMPL_STORE, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return given or Path(os.environ.get("REFIMPL_STORE") or Path(base) / "refimpl")


def use_threads(count: int | None) -> None:
    """Holds the rest of the command to so many threads; None = the cores that the process may use."""
    from refimpl.arrays import limit_threads

    click.get_current_context().with_resource(limit_threads(count))


def use_device(name: str, rank_here: int | None = None, cuda_graph: bool = False) -> Callable[[Any], Any]:
    """What moves an array to where the rest of the command computes. Raises InputError if there is no such device.

    rank_here: of several ranks the number on its machine, which is that of its GPU.
    """
    from refimpl.device import opening

    if rank_here is not None and cuda_graph:
        raise InputError("--cuda-graph: expected one process, got several ranks")
    if rank_here is not None and name not in ("cpu", "gpu"):
        raise InputError(f"--device: expected cpu, or gpu, with several ranks, each with a GPU of its own, got {name}")
    return opening.opened(name if rank_here is None or name == "cpu" else f"gpu:{rank_here}", asked_tf32())


def asked_tf32() -> bool:
    """Whether the command was given --tf32."""
    return bool(click.get_current_context().meta.get(TF32, False))


def join_ranks(asked: bool | None) -> Session:
    """The command's session, with the other ranks if MPI started some. A process by itself never imports mpi4py."""
    from refimpl import ranks

    session = click.get_current_context().find_object(Session) or Session(own_process=False)
    told = ranks.launched(os.environ)
    if asked or (asked is None and told is not None and told.size > 1):
        try:
            session.ranks = ranks.join(told)
        except (InputError, CalledFailedError) as error:
            if told is not None and told.rank:  # the first one says it for all
                raise EndedError(USAGE if isinstance(error, InputError) else OUTSIDE) from error
            raise
    return session


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
