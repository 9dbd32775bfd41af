"""How the command ends: its exit codes, and one line for every expected error."""

import sys
import traceback
from dataclasses import dataclass
from typing import NoReturn

import click

from refimpl.errors import CalledFailedError, InputError, NonFiniteError, OutsideError

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
    """One call of the command: whether errors show tracebacks, and whether the process is there for the command alone."""

    own_process: bool
    debugging: bool = False


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
        sys.exit(0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        sys.exit(USAGE)
    except Exception as error:
        if session.debugging:
            traceback.print_exc()
        _fail(*_verdict(error))
    except KeyboardInterrupt:
        _fail("interrupted", INTERRUPTED)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _verdict(error: Exception) -> tuple[str, int]:
    """The line and the exit code for an error: a crash must read neither as a mismatch nor as bad input."""
    if isinstance(error, click.exceptions.Abort):
        return "interrupted", INTERRUPTED
    if isinstance(error, NonFiniteError):
        return str(error), PROBLEM
    if isinstance(error, CalledFailedError | OutsideError):
        return str(error), OUTSIDE
    if isinstance(error, click.ClickException):
        hint = " (--help shows an example)" if isinstance(error, click.UsageError) else ""
        return error.format_message() + hint, USAGE
    if isinstance(error, MemoryError) and type(error).__module__.startswith("cupy"):
        return (f"the GPU's memory is full: {error}; reduce train.batch or train.block, or model.span; a run's newest "
                "checkpoint is whole, and --resume goes on from it"), USAGE
    if isinstance(error, InputError | OSError | MemoryError):
        return str(error) or "not enough memory", USAGE
    return f"a bug in refimpl, {type(error).__name__}: {error} (--debug shows where)", BUG


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"refimpl: {' '.join(message.split())}", err=True)
    sys.exit(code)


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    context.obj.debugging = context.obj.debugging or value


debug_option = click.option("--debug", is_flag=True, expose_value=False, is_eager=True, callback=_set_debug,
                            help="Show the traceback of an error.")
