"""What a right implementation may be off by: derived from the function itself, not chosen.

|y - ŷ| ≤ c u B + η: u the unit roundoff of the tested dtype, η its smallest normal number, B the largest response of y, per
unit of change, to runs in which every input and the result of every operation is changed by a random sign times that unit
(Monte Carlo arithmetic: Parker, UCLA CSD-970002, 1997): 64 in our order of operations, and 32 in each of the others of
orders.py. A sum or product of matrices is changed in proportion to the sum of its terms' sizes: its roundoff does not
shrink when terms cancel. Where y is moved more by results below η that are lost, as processors may flush them to 0, B is
that loss / u.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refimpl import arrays
from refimpl.arrays import Array, random_stream
from refimpl.functions import Results, evaluate
from refimpl.golden import orders
from refimpl.golden.cases import Case

ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float64": 2.0**-1022, "float32": 2.0**-126, "float16": 2.0**-14, "bfloat16": 2.0**-126}
RUNS, OTHERS_RUNS, CHANGE = 64, 32, 2.0**-36  # far above longdouble's roundoff, far below the inputs' spacing of 1/64
LOSING_RUNS, FLUSHED = 8, ("float64", "float32")  # the dtypes in which processors flush; float16 keeps its denormals
FACTOR = 4  # c: the reference itself stays below 1 in float64 and float32; another order of operations may need more
CHECKED = 0.1  # an element whose bound exceeds this share of its value is not checked in that dtype
MAKERS = {"zeros", "empty", "asarray", "ascontiguousarray"}  # not arange: distances stand on the kinks of the span mask
EXACT = {"negative", "maximum", "minimum", "absolute", "add.at", "logical_and", "logical_or"}  # operations that do not round


class Operation(NamedTuple):
    """One that a function consists of, and its result."""

    ufunc: Any
    method: str
    inputs: list[Any]
    options: dict[str, Any]
    result: Any

    def sizes(self) -> tuple[Any, int]:
        """Σ |terms| of a sum, |result| of anything else, and how many terms; 0 where nothing is rounded."""
        if self.method == "__call__" and self.ufunc.__name__ in EXACT:
            return 0, 1
        if self.ufunc is np.matmul:
            return np.matmul(*(np.abs(x) for x in self.inputs)), self.inputs[0].shape[-1]
        if self.method != "reduce":
            return np.abs(self.result), 1
        if self.ufunc is not np.add:
            return 0, 1
        terms = np.abs(self.inputs[0])
        return np.add.reduce(terms, **self.options), terms.size // max(1, np.size(self.result))


def _roundoff(operation: Operation, stream: np.random.Generator) -> Any:
    """CHANGE times a random sign times the size of what was summed or computed."""
    size, _ = operation.sizes()
    return CHANGE * np.where(np.isfinite(size), size, 0) * stream.choice([-1.0, 1.0], np.shape(operation.result))


def _loss(operation: Operation, stream: np.random.Generator, smallest: Any) -> Any:
    """Of what is below `smallest`, results and terms of sums: all or nothing, at random."""
    size, terms = operation.sizes()
    if terms > 1:
        return np.minimum(size, terms * smallest) * stream.choice([-1.0, 1.0], np.shape(operation.result))
    return np.where(size < smallest, -np.sign(operation.result) * size, 0) * stream.choice([0.0, 1.0], np.shape(size))


class Changed(np.ndarray):
    """An array of which every operation's result is changed; `change`, of an operation, is set before a run."""

    change: ClassVar[Callable[[Operation], Any]]

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:  # NumPy's protocol
        out = options.pop("out", None)
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        given = {"out": tuple(np.asarray(array) for array in out)} if out is not None else {}
        result = getattr(ufunc, method)(*plain, **options, **given)
        if method == "at" or not isinstance(result, np.ndarray | np.floating) or result.dtype.kind != "f":
            return result
        changed = np.asarray(result) + Changed.change(Operation(ufunc, method, plain, options, result))
        if out is not None:
            np.copyto(np.asarray(out[0]), changed)
            return out[0]
        return changed.view(Changed)

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
def _changing(change: Callable[[Operation], Any]) -> Iterator[None]:
    """The package computes with changed arrays until the block ends."""
    Changed.change = staticmethod(change)
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
    largest = {name: np.abs(y) for name, y in results.items()}
    runs = [("ours", run) for run in range(RUNS)] + list(product(_others(case, results), range(OTHERS_RUNS)))
    for order, run in runs:
        stream = random_stream(0, f"golden bound {case.id} {order}", run)
        _raise(largest, _moved(case, order, partial(_roundoff, stream=stream)), results, CHANGE)
    for dtype, run in product(FLUSHED, range(LOSING_RUNS)):
        stream, smallest = random_stream(0, f"golden loss {case.id} {dtype}", run), np.longdouble(SMALLEST[dtype])
        _raise(largest, _moved(case, "ours", partial(_loss, stream=stream, smallest=smallest)), results, ROUNDOFF[dtype])
    return {name: _rounded_up(response) for name, response in largest.items()}


def _others(case: Case, results: Results) -> list[str]:
    """The names of orders other than ours, but those that give the same bits."""
    found = []
    for name in [name for name in orders.ORDERS if name != "ours"]:
        with orders.ORDERS[name]():
            others = expected(case)
        if not all(np.array_equal(y, others[tensor]) for tensor, y in results.items()):
            found.append(name)
    return found


def _moved(case: Case, order: str, change: Callable[[Operation], Any]) -> Results:
    """The results when the inputs, too, are changed, unless they are fixed."""
    inputs = in_dtype(case.inputs, "longdouble")
    for name, array in inputs.items():
        if array.dtype.kind == "f" and name not in case.fixed:
            inputs[name] = (array + change(Operation(np.positive, "__call__", [array], {}, array))).view(Changed)
    with _changing(change), orders.ORDERS[order]():
        return evaluate(case.function, case.settings, inputs)


def _raise(largest: Results, moved: Results, results: Results, unit: float) -> None:
    """Puts changes, in units, where they are larger than those so far."""
    for name, y in moved.items():
        largest[name] = np.maximum(largest[name], np.abs(np.asarray(y) - results[name]) / unit)


def _rounded_up(response: Array) -> Array:
    """In float32, and no smaller."""
    single = response.astype(np.float32)
    return np.where(single < response, np.nextafter(single, np.float32(np.inf)), single).astype(np.float32)
