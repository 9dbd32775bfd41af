"""The one form in which every function of the model can be called: settings and named arrays in, named arrays out."""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from refimpl.arrays import Array

Settings = Mapping[str, Any]
Arrays = Mapping[str, Array]
Results = dict[str, Array]


class Function(NamedTuple):
    """forward(settings, inputs) -> (outputs, saved);  backward(cotangents by output, saved) -> gradients by input.

    Inputs without a gradient (tokens, keep-masks, a past) are just not among the gradients.
    """

    forward: Callable[[Settings, Arrays], tuple[Results, Any]]
    backward: Callable[[Arrays, Any], Results]


def simple(module: ModuleType, *names: str, output: str = "y", part: str = "") -> Function:
    """A pair of a module whose arguments are arrays, then settings by keyword; its gradients come in the arrays' order.

    part: what stands before forward and backward in the functions' names.
    """

    def forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
        y, saved = getattr(module, f"{part}forward")(*(inputs[name] for name in names), **settings)
        return {output: y}, saved

    def backward(d: Arrays, saved: Any) -> Results:
        found = getattr(module, f"{part}backward")(d[output], saved)
        return dict(zip(names, found if isinstance(found, tuple) else (found,), strict=False))

    return Function(forward, backward)


def numbered(inputs: Arrays, name: str) -> list[Array]:
    """The arrays name.0, name.1, … in order."""
    return [inputs[f"{name}.{i}"] for i in range(sum(given.startswith(f"{name}.") for given in inputs))]


def number(name: str, arrays: Sequence[Array]) -> Results:
    """The arrays as name.0, name.1, …"""
    return {f"{name}.{i}": array for i, array in enumerate(arrays)}
