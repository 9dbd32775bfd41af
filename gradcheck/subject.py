"""The two functions under check and the point that they are checked at; called so that nothing they do goes unseen."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from refimpl.gradcheck.errors import GradcheckError

FLOATS = tuple(np.dtype(kind) for kind in (np.float32, np.float64, np.longdouble))


class Subject:
    """forward(*arguments) -> an array or a tuple of arrays; vjp(cotangent, *arguments) -> one gradient per argument.

    Both are called on copies. `point` holds the arguments as given, `problems` what the functions did that they must not.
    Outputs and cotangents are flat vectors here, all outputs one behind another.
    """

    def __init__(self, forward: Callable[..., Any], vjp: Callable[..., Any], arguments: Any, name: str = "forward") -> None:
        self.forward, self.vjp, self.name = forward, vjp, name
        self.names, self.point = named_arrays(arguments)
        self.work = np.result_type(np.float64, *(a.dtype for a in self.point))
        self.problems: dict[str, None] = {}  # a set that keeps its order
        self.alone = True
        self.shapes: list[tuple[int, ...]] | None = None
        self.dtypes: list[np.dtype[Any]] = []
        value = self.outputs(self.point)
        for name, part in zip(self._output_names(), self.parts(value), strict=True):
            if not np.isfinite(part).all():
                raise GradcheckError(f"{name}: expected finite numbers, got {part.ravel()[~np.isfinite(part.ravel())][0]}")

    @cached_property
    def exact_point(self) -> list[Any]:
        """The point in the dtype in which derivatives are taken: float64, or longdouble if an argument is."""
        return [argument.astype(self.work) for argument in self.point]

    def outputs(self, arguments: Sequence[Any]) -> Any:
        """forward's results in one vector, of the dtype in which derivatives are taken, or complex like that one."""
        return self.called_with(self.forward, arguments)

    def called_with(self, forward: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """The same of another function of this kind."""
        given = [argument.copy() for argument in arguments]
        found = forward(*given)
        self._notice_changes(self.name, self.names, arguments, given)
        results = [np.asarray(result) for result in (found if isinstance(found, tuple | list) else (found,))]
        self._check_outputs(results, isinstance(found, tuple | list))
        self._refuse_views(self.name, given, results)
        is_complex = any(argument.dtype.kind == "c" for argument in arguments)
        dtype = np.result_type(self.work, np.complex64) if is_complex else self.work
        return np.concatenate([result.astype(dtype).reshape(-1) for result in results])

    def gradients(self, cotangent: Any, arguments: Sequence[Any]) -> list[Any]:
        """vjp's results, each of its argument's shape and dtype."""
        given = [argument.copy() for argument in arguments]
        dy = self.structured(cotangent)
        handed = [part.copy() for part in self._listed(dy)]
        found = self.vjp(dy, *given)
        self._notice_changes("vjp", self.names, arguments, given)
        self._notice_changes("vjp", ["its cotangent"] * len(handed), handed, self._listed(dy))
        results = list(found) if isinstance(found, tuple | list) else [found]
        if len(results) != len(self.names):
            raise GradcheckError(f"vjp: expected one gradient for each of {', '.join(self.names)}, got {len(results)}")
        results = [np.asarray(result) for result in results]
        for name, argument, result in zip(self.names, arguments, results, strict=True):
            if result.shape != argument.shape:
                raise GradcheckError(f"vjp: gradient of {name}: expected shape {argument.shape}, got {result.shape}")
            if result.dtype != argument.dtype:
                raise GradcheckError(f"vjp: gradient of {name}: expected {argument.dtype}, got {result.dtype}")
        self._refuse_views("vjp", given, results)
        return [result.copy() for result in results]

    def structured(self, cotangent: Any) -> Any:
        """A flat cotangent in forward's structure, shapes and dtypes."""
        parts = [part.astype(dtype) for part, dtype in zip(self.parts(cotangent), self.dtypes, strict=True)]
        return parts[0] if self.alone else tuple(parts)

    def flat(self, cotangent: Any) -> Any:
        """A cotangent as a caller gives it, flat. Raises GradcheckError unless it has forward's structure."""
        parts = [np.asarray(part) for part in self._listed(cotangent)]
        if isinstance(cotangent, tuple | list) == self.alone or len(parts) != len(self.dtypes):
            expected = "one array" if self.alone else f"a tuple of {len(self.dtypes)} arrays"
            got = "a tuple" if isinstance(cotangent, tuple | list) else "one array"
            raise GradcheckError(f"cotangent: expected {expected}, as forward returns, got {got} ({len(parts)})")
        for part, shape, name in zip(parts, self.shapes or [], self._output_names(), strict=True):
            if part.shape != shape:
                raise GradcheckError(f"cotangent of {name}: expected shape {shape}, got {part.shape}")
            if part.dtype.kind not in "fiu" or not np.isfinite(part).all():
                raise GradcheckError(f"cotangent of {name}: expected finite real numbers, got {part.dtype}")
        vector = np.concatenate([part.astype(dtype).astype(self.work).reshape(-1)
                                 for part, dtype in zip(parts, self.dtypes, strict=True)])
        if not vector.any():
            raise GradcheckError("cotangent: expected a number other than 0 in it, got zeros alone")
        return vector

    def shaken(self, cotangent: Any, random: np.random.Generator, dtype: Any) -> Any:
        """A flat cotangent moved by the roundoff of a dtype."""
        return np.concatenate([part.astype(self.work).reshape(-1)
                               for part in shaken(self._listed(self.structured(cotangent)), random, dtype)])

    def parts(self, vector: Any) -> list[Any]:
        """A flat vector cut into arrays of the outputs' shapes."""
        shapes = self.shapes or []
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
        return [part.reshape(shape) for part, shape in zip(np.split(vector, ends), shapes, strict=True)]

    def output_name(self, position: int) -> str:
        """The name of one element of the outputs, by its position in the flat vector."""
        for name, shape in zip(self._output_names(), self.shapes or [], strict=True):
            size = int(np.prod(shape))
            if position < size:
                index = np.unravel_index(position, shape) if shape else ()
                return name + (str([int(i) for i in index]) if shape else "")
            position -= size
        raise IndexError(position)

    def _output_names(self) -> list[str]:
        return ["output"] if self.alone else [f"output {i}" for i in range(len(self.shapes or []))]

    def _listed(self, structured: Any) -> list[Any]:
        return list(structured) if isinstance(structured, tuple | list) else [structured]

    def _check_outputs(self, results: list[Any], several: bool) -> None:
        """Raises GradcheckError unless these are floating, and of the structure of the first call's."""
        for i, result in enumerate(results):
            if result.dtype.kind not in "fc":
                raise GradcheckError(f"{self.name}: expected floating results, got {result.dtype} as result {i}")
        shapes = [result.shape for result in results]
        if self.shapes is None:
            if not sum(result.size for result in results):
                raise GradcheckError(f"{self.name}: expected a result, got no elements")
            self.alone, self.shapes, self.dtypes = not several, shapes, [result.dtype for result in results]
        elif shapes != self.shapes or several == self.alone:
            raise GradcheckError(f"{self.name}: expected results of shapes {self.shapes} at every call, got {shapes}")

    def _refuse_views(self, function: str, given: list[Any], results: list[Any]) -> None:
        """Raises GradcheckError if a result lies in an argument's memory: writing to one would change the other."""
        for name, argument in zip(self.names, given, strict=True):
            if any(result.size and np.may_share_memory(argument, result) for result in results):
                raise GradcheckError(f"{function}: expected a result of its own, got a view of {name}: return a copy")

    def _notice_changes(self, function: str, names: Iterable[str], before: Sequence[Any], after: Sequence[Any]) -> None:
        for name, old, new in zip(names, before, after, strict=True):
            if not np.array_equal(old, new, equal_nan=True):
                self.problems[f"{function} changes {name} in place"] = None


def shaken(arrays: list[Any], random: np.random.Generator, dtype: Any) -> list[Any]:
    """Each element moved relatively by about the roundoff of a dtype, as far as its own dtype can show it."""
    eps = np.finfo(dtype).eps
    return [(a * (1 + eps * random.standard_normal(a.shape))).astype(a.dtype) for a in arrays]


def named_arrays(arguments: Any) -> tuple[list[str], list[Any]]:
    """Names and copies of the arguments. Raises GradcheckError unless all are finite arrays of real floating numbers."""
    if isinstance(arguments, np.ndarray) or not isinstance(arguments, Mapping | Sequence) or isinstance(arguments, str):
        raise GradcheckError(f"arguments: expected a mapping by name or a list of arrays, got {type(arguments).__name__}")
    pairs = list(arguments.items() if isinstance(arguments, Mapping) else enumerate(arguments))
    if not pairs:
        raise GradcheckError("arguments: expected at least one array, got none")
    arrays = []
    for name, given in pairs:
        array = np.array(given)
        if array.dtype not in FLOATS:
            raise GradcheckError(f"argument {name}: expected float32, float64 or longdouble, got {array.dtype}; what has no "
                                 "gradient belongs inside forward and vjp, not among the arguments")
        if not np.isfinite(array).all():
            raise GradcheckError(f"argument {name}: expected finite numbers, got {array[~np.isfinite(array)][0]}")
        arrays.append(array)
    return [str(name) for name, _ in pairs], arrays
