"""How the command ends: its exit codes, and one line for every expected error."""

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import click

from refimpl.console import note
from refimpl.errors import CalledFailedError, InputError, NonFiniteError, OutsideError, RanksError
from refimpl.ranks import ALONE, Ranks

Result = TypeVar("Result")
PROBLEM, USAGE, OUTSIDE, INCOMPLETE, BUG, AGAIN, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 70, 75, 130, 143
"""Exit codes: the loss is not finite or a check failed; bad usage or input; a disk, a network or a function that is not
ours failed; a check could not decide; a bug of ours; a time limit came, to be called again; stopped by a signal, a
checkpoint written."""


class EndedError(Exception):
    """Carries the exit code of a command that ends other than by reaching its end."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Session:
    """One call of the command: is the process there for it alone, do errors show tracebacks, who computes with it."""

    own_process: bool
    debugging: bool = False
    ranks: Ranks = ALONE


def run(commands: click.Command, arguments: list[str] | None) -> NoReturn:
    """Runs the command and exits with its code: expected errors are one line, a traceback comes only with --debug.

    arguments: None = those that the process was started with.
    """
    session = Session(own_process=arguments is None)
    try:
        code = commands.main(arguments, prog_name="refimpl", standalone_mode=False, obj=session)
    except EndedError as end:
        sys.exit(end.code)
    except SystemExit:  # click's, and only where the reader of our output has had enough: no failure
        session.ranks.abort(0)
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(USAGE)
    except Exception as error:
        if session.debugging:
            traceback.print_exc()
        _fail(*_verdict(error), session, isinstance(error, NonFiniteError | RanksError))
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED, session)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _verdict(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an error: a crash must read neither as a mismatch nor as bad input."""
    if isinstance(error, click.exceptions.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, NonFiniteError):
        return str(error), PROBLEM
    if isinstance(error, CalledFailedError | OutsideError | RanksError):
        return str(error), OUTSIDE
    if type(error).__module__.partition(".")[0] == "mpi4py":
        return f"MPI: {error}", OUTSIDE
    if isinstance(error, click.ClickException):
        hint = " (--help shows an example)" if isinstance(error, click.UsageError) else ""
        return error.format_message() + hint, USAGE
    if isinstance(error, MemoryError) and type(error).__module__.startswith("cupy"):
        return (f"the GPU's memory is full: {error}; reduce train.batch or train.block, or model.span; a run's newest "
                "checkpoint is whole, and --resume goes on from it"), USAGE
    if isinstance(error, InputError | OSError | MemoryError):
        return str(error) or "not enough memory", USAGE
    return f"a bug in refimpl, {type(error).__name__}: {error} (--debug shows where)", BUG


def _fail(message: str, code: int, session: Session, everywhere: bool = False) -> NoReturn:
    """Of an error that is raised on every rank the first one tells, and each ends by itself; another one ends all."""
    ranks = session.ranks
    if not everywhere:
        _tell(message, ranks)
        ranks.abort(code)
    elif ranks.rank == 0:
        _tell(message, ranks)
    if code == INTERRUPTED and session.own_process:
        _leave(code)
    sys.exit(code)


def _leave(code: int) -> NoReturn:
    """At once: Python's own way out waits for threads until each has done its part of an update."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _tell(message: str, ranks: Ranks) -> None:
    whose = f"rank {ranks.rank}: " if ranks.rank else ""
    note(f"refimpl: {whose}{' '.join(message.split())}")


def together(session: Session, function: Callable[[], Result]) -> Result:
    """function() on every rank; if it fails on one, that one tells why, and all end.

    The first of each machine has finished when the others begin, and find what it has left in the store.
    """
    ranks, problem, code = session.ranks, "", 0
    if not ranks.first_here:
        ranks.stacked([0])
    try:
        result = function()
    except Exception as error:
        if ranks.size == 1:
            raise
        if session.debugging:
            traceback.print_exc()
        problem, code = _verdict(error)
    if ranks.first_here:
        ranks.stacked([0])
    codes = [int(each) for each in ranks.stacked([code])[:, 0]]
    first = next((rank for rank, each in enumerate(codes) if each), None)
    if first is None:
        return result
    if ranks.rank == first:
        _tell(problem, ranks)
    raise EndedError(codes[first])


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.obj.debugging = context.obj.debugging or value


debug_option = click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug,
                            help="Show the traceback of an error.")
