"""What a right implementation may be off by: derived from the function itself, not chosen.

|y - ŷ| ≤ c u B + η: u the unit roundoff of the tested dtype, η its smallest normal number (for what underflows), B the
largest response of y, per unit of change, to 64 runs in which every input and the result of every operation is changed by a
random sign times that unit (Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997). A sum or product of matrices is changed
in proportion to the sum of its terms' sizes: its roundoff does not shrink when terms cancel.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from refimpl import arrays
from refimpl.arrays import Array, random_stream
from refimpl.functions import Results, evaluate
from refimpl.golden.cases import Case

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
RUNS, CHANGE = 64, 2.0**-36  # far above longdouble's roundoff, far below the inputs' spacing of 1/64
FACTOR = 4  # c: the reference itself stays below 1 in float64 and float32; another order of operations may need more
CHECKED = 0.1  # an element whose bound exceeds this share of its value is not checked in that dtype
MAKERS = {"zeros", "empty", "asarray", "ascontiguousarray"}  # not arange: distances stand on the kinks of the span mask
EXACT = {"negative", "maximum", "minimum", "absolute", "add.at", "logical_and", "logical_or"}  # operations that do not round


class Changed(np.ndarray):
    """An array of which every operation's result is changed at random; `stream` is set before a run."""

    stream: np.random.Generator

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:  # NumPy's protocol
        out = options.pop("out", None)
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(array) for array in out)
        result = getattr(ufunc, method)(*plain, **options)
        if method == "at" or not isinstance(result, np.ndarray | np.floating) or result.dtype.kind != "f":
            return result
        changed = np.asarray(result) + self._change(ufunc, method, plain, options, result)
        if out is not None:
            np.copyto(np.asarray(out[0]), changed)
            return out[0]
        return changed.view(Changed)

    def _change(self, ufunc: Any, method: str, plain: list[Any], options: Mapping[str, Any], result: Any) -> Any:
        """CHANGE times a random sign times the size of what was summed or computed."""
        if method == "__call__" and ufunc.__name__ in EXACT:
            return 0
        given = {name: value for name, value in options.items() if name != "out"}
        if ufunc is np.matmul:
            size = np.matmul(*(np.abs(x) for x in plain))
        elif method == "reduce" and ufunc is np.add:
            size = np.add.reduce(np.abs(plain[0]), **given)
        elif method == "reduce":
            return 0
        else:
            size = np.abs(result)
        return CHANGE * np.where(np.isfinite(size), size, 0) * self.stream.choice([-1.0, 1.0], np.shape(result))

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        result = super().__array_function__(function, (np.ndarray,), arguments, options)
        return result.view(Changed) if isinstance(result, np.ndarray) and result.dtype.kind == "f" else result


class _Library:
    """NumPy, of which what makes arrays of real numbers makes changed ones: what is filled in place is computed, too."""

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        return _marking(found) if name in MAKERS else found

    @property
    def lib(self) -> Any:
        """Its strided view, which drops subclasses."""
        return SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=_marking(np.lib.stride_tricks.as_strided)))


def _marking(function: Callable[..., Any]) -> Callable[..., Any]:
    def marked(*arguments: Any) -> Any:
        made = function(*arguments)
        return made.view(Changed) if made.dtype.kind == "f" else made

    return marked


@contextmanager
def _changing() -> Iterator[None]:
    """The package computes with changed arrays until the block ends."""
    vars(arrays)["np"] = _Library()
    try:
        yield
    finally:
        vars(arrays)["np"] = np


def in_dtype(inputs: Mapping[str, Array], dtype: str) -> dict[str, Array]:
    """The floating inputs in another dtype, the others as they are."""
    return {name: array.astype(dtype) if array.dtype.kind == "f" else array for name, array in inputs.items()}


def expected(case: Case) -> Results:
    """The reference's results in extended precision."""
    return evaluate(case.function, case.settings, in_dtype(case.inputs, "longdouble"))


def responses(case: Case, results: Results) -> Results:
    """B for every element of every result, at least |y|."""
    inputs, largest = in_dtype(case.inputs, "longdouble"), {name: np.abs(y) for name, y in results.items()}
    moving = [name for name, array in inputs.items() if array.dtype.kind == "f" and name not in case.fixed]
    for run in range(RUNS):
        Changed.stream = stream = random_stream(0, f"golden bound {case.id}", run)
        moved = {name: (inputs[name] * (1 + CHANGE * stream.choice([-1.0, 1.0], inputs[name].shape))).view(Changed)
                 for name in moving}
        with _changing():
            changed = evaluate(case.function, case.settings, {**inputs, **moved})
        for name, y in changed.items():
            largest[name] = np.maximum(largest[name], np.abs(np.asarray(y) - results[name]) / CHANGE)
    return {name: _rounded_up(response) for name, response in largest.items()}


def _rounded_up(response: Array) -> Array:
    """In float32, and no smaller."""
    single = response.astype(np.float32)
    return np.where(single < response, np.nextafter(single, np.float32(np.inf)), single).astype(np.float32)
