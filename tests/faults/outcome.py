"""What comes of reading a damaged file, told apart: refused in one line, read, or something that must not be."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

from refimpl.cli import main as command


def call(*arguments: object) -> tuple[int, list[str]]:
    """The command in this process: its exit code, and its lines on stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command([str(argument) for argument in arguments])
        except SystemExit as end:
            return int(end.code or 0), err.getvalue().splitlines()
    raise AssertionError("the command did not exit")


def judged(code: int, lines: list[str], same: bool) -> str:
    """What came of a damaged file. same: whether what was read is what there was before the damage."""
    if code == 0:
        return "harmless" if same else "accepted"
    if code != 2 or len(lines) != 1 or not lines[0].startswith("refimpl: ") or len(lines[0]) > 2000:
        return f"unclear: {code} {lines[-1:]}"[:300]
    return "out of memory" if "not enough memory" in lines[0] else "refused"


def asked(read: Callable[[], Any], expected: tuple[type[Exception], ...]) -> tuple[str, Any]:
    """What came of a call in place of a command: "refused" by an expected error of one line, or "" and the result.

    Of another error its name: a bug, as the command would call it.
    """
    try:
        return "", read()
    except expected as error:
        return ("refused" if "\n" not in str(error) and len(str(error)) < 2000 else f"unclear: {error}"), None
    except Exception as error:
        return f"unclear: {type(error).__name__}: {error}"[:300], None
