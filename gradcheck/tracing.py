"""Finds what in a function does not carry complex numbers through, and names it with its place in the source."""

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

NOT_ANALYTIC = {"absolute", "fabs", "conjugate", "sign", "norm", "vdot", "angle", "var", "std", "nanvar", "nanstd",
                "real_if_close"}
OURS, NUMPY = Path(__file__).parent, Path(np.__file__).parent


class Traced(np.ndarray[Any, Any]):
    """An array that notes, with their places, the operations that drop or conjugate an imaginary part."""

    log: dict[str, None]

    def __array_finalize__(self, parent: Any) -> None:
        self.log = getattr(parent, "log", {})

    def note(self, operation: str) -> None:
        """Adds an operation, at the place in the user's source that called it."""
        if self.dtype.kind == "c":
            self.log[f"{operation}{_place([(f.filename, f.lineno, f.line) for f in traceback.extract_stack()])}"] = None

    def __getitem__(self, key: Any) -> Any:
        return _traced(super().__getitem__(key), self.log)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        log = next(a.log for a in (*inputs, *kwargs.get("out", ())) if isinstance(a, Traced))
        if ufunc.__name__ in NOT_ANALYTIC:
            next(a for a in (*inputs, self) if isinstance(a, Traced)).note(f"numpy.{ufunc.__name__}")
        plain = [a.view(np.ndarray) if isinstance(a, Traced) else a for a in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(a.view(np.ndarray) if isinstance(a, Traced) else a for a in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        return _traced(result, log) if not isinstance(result, tuple) else tuple(_traced(r, log) for r in result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function.__name__ in NOT_ANALYTIC:
            self.note(f"numpy.{'linalg.' if function.__name__ == 'norm' else ''}{function.__name__}")
        return super().__array_function__(function, types, args, kwargs)

    def conj(self) -> Any:
        """Noted."""
        self.note("conj()")
        return np.conjugate(self.view(np.ndarray)).view(Traced)

    conjugate = conj

    def astype(self, dtype: Any, *rest: Any) -> Any:
        """Noted if it drops the imaginary part."""
        if np.dtype(dtype).kind != "c":
            self.note(f"astype({np.dtype(dtype)})")
        return super().astype(dtype, *rest)

    @property  # type: ignore[misc]  # no setter: assigning raises, and is noted so
    def real(self) -> Any:
        """Noted: right for comparisons and shifts, wrong for all else."""
        self.note(".real")
        return self.view(np.ndarray).real

    @property  # type: ignore[misc]  # as real
    def imag(self) -> Any:
        """Noted."""
        self.note(".imag")
        return self.view(np.ndarray).imag


def suspects(forward: Callable[..., Any], arguments: Sequence[Any]) -> list[str]:
    """The operations that may be at fault, likeliest first: `.real` is often right, so it comes last."""
    log: dict[str, None] = {}
    traced = [_traced(np.array(argument, np.complex128), log) for argument in arguments]
    with np.errstate(all="ignore"):
        try:
            forward(*traced)
        except Exception as error:  # an array of another kind may not suit the function: what it met until then counts
            log.setdefault(f"{type(error).__name__}{place_of(error.__traceback__)}")
    return sorted(log, key=lambda found: found.startswith((".real", ".imag")))


def place_of(trace: TracebackType | None) -> str:
    """Where in the user's source an error was raised: ` at file.py:12 (the line)`."""
    return _place([(f.filename, f.lineno, f.line) for f in traceback.extract_tb(trace)])


def _place(frames: list[tuple[str, int | None, str | None]]) -> str:
    """The innermost frame that is neither NumPy's nor this package's."""
    for name, number, line in reversed(frames):
        if not {OURS, NUMPY} & set(Path(name).parents):
            return f" at {Path(name).name}:{number}" + (f" ({line.strip()})" if line else "")
    return ""


def _traced(result: Any, log: dict[str, None]) -> Any:
    if not isinstance(result, np.ndarray | np.complexfloating):
        return result
    view = np.asarray(result).view(Traced)
    view.log = log
    return view
