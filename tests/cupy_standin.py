"""A stand-in for CuPy on machines without a GPU: NumPy's own results, behind CuPy's refusals.

It has only names that CuPy 14 has (a list below; more belong here when they are used). What CuPy refuses raises TypeError:
host arrays beside device arrays, numpy functions and np.asarray on device arrays (of which CuPy takes some, silently: here
none is), `where=` and `initial=` in reductions. What CuPy doesn't notice isn't noticed: index arrays out of range wrap. What
waits for the device, or copies to or from it, is counted.
"""

import operator
import types
from collections import Counter

import numpy as np

events: Counter = Counter()
"""How often something waited or copied, by what it was: "bool", "float", "nonzero", "boolean mask", "get", "asarray", …"""


def lowered(value):
    """The host value of a device array, alone or inside a list, tuple or slice; a host array is refused."""
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError(f"cupy: a host array of shape {value.shape} among device arrays")
    if isinstance(value, list | tuple):
        return type(value)(lowered(item) for item in value)
    return value


def raised(result):
    """Results of NumPy as device arrays: scalars as arrays without dimensions, lists and tuples item by item."""
    if isinstance(result, list | tuple):
        return type(result)(raised(item) for item in result)
    return DeviceArray(result) if isinstance(result, np.ndarray | np.generic) else result


def delegated(name, function):
    """NumPy's function, taking and giving device arrays only."""

    def call(*arguments, **keywords):
        if {"where", "initial"} & keywords.keys():
            raise TypeError(f"cupy.{name}: where= and initial= are not there")
        out = keywords.get("out")
        result = function(*lowered(arguments), **{key: lowered(value) for key, value in keywords.items()})
        return out if out is not None else raised(result)

    call.__name__ = name
    return call


def waiting(name, function):
    """The same for what waits for the device."""
    call = delegated(name, function)

    def counted(*arguments, **keywords):
        events[name] += 1
        return call(*arguments, **keywords)

    return counted


class DeviceArray:
    """An array on the device: what NumPy does, without NumPy's way in."""

    __module__ = "cupy"
    __slots__ = ("_host",)
    __hash__ = None

    def __init__(self, host):
        self._host = np.asarray(host)

    def __array__(self, *_, **__):
        raise TypeError("cupy: implicit conversion to a NumPy array is not allowed; use .get()")

    def __array_function__(self, function, *_):
        raise TypeError(f"numpy.{function.__name__} called on a device array")

    def __array_ufunc__(self, ufunc, method, *inputs, **keywords):
        """Only what a NumPy scalar's own operators ask for: scalar * array."""
        scalars = [value for value in inputs if isinstance(value, np.generic)]
        if method != "__call__" or keywords or not scalars:
            raise TypeError(f"numpy.{ufunc.__name__} called on a device array")
        return delegated(ufunc.__name__, ufunc)(*inputs)

    def __getitem__(self, index):
        return raised(self._host[subscript(index, self._host.shape)])

    def __setitem__(self, index, value):
        self._host[subscript(index, self._host.shape)] = lowered(value)

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def get(self):
        events["get"] += 1
        return self._host.copy()

    @property
    def flags(self):
        return self._host.flags


def subscript(index, shape):
    """An index for NumPy: boolean masks counted, index arrays wrapped around as a GPU does, host arrays refused."""
    items, axis, lowered_items = index if isinstance(index, tuple) else (index,), 0, []
    consumed = sum(item.ndim if is_mask(item) else item is not None and item is not Ellipsis for item in items)
    for item in items:
        if isinstance(item, slice) and any(isinstance(bound, DeviceArray) for bound in (item.start, item.stop, item.step)):
            events["slice bounded by an array"] += 1
        if is_mask(item):
            events["boolean mask"] += 1
            lowered_items.append(item._host)
            axis += item.ndim
        elif isinstance(item, DeviceArray):
            lowered_items.append(item._host % max(1, shape[axis]))
            axis += 1
        else:
            lowered_items.append(lowered(item))
            axis += len(shape) - consumed if item is Ellipsis else item is not None
    return tuple(lowered_items)


def is_mask(item):
    """Whether an index is a boolean array."""
    return isinstance(item, DeviceArray) and item.dtype == bool


def operators():
    """Arithmetic and comparisons; in-place ones write into the array that is there."""
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"):
        function = getattr(operator, f"{name}_" if name in ("and", "or") else name)
        yield f"__{name}__", binary(function)
        yield f"__r{name}__", binary(lambda right, left, function=function: function(left, right))
        yield f"__i{name}__", in_place(f"__i{name}__")
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield f"__{name}__", binary(getattr(operator, name))
    for name in ("neg", "abs", "invert"):
        yield f"__{name}__", unary(getattr(operator, name))


def binary(function):
    return lambda self, other: raised(function(self._host, lowered(other)))


def unary(function):
    return lambda self: raised(function(self._host))


def in_place(name):
    def change(self, other):
        getattr(self._host, name)(lowered(other))
        return self

    return change


def method(name, wrap):
    """An array's method."""
    return lambda self, *arguments, **keywords: wrap(name, getattr(self._host, name))(*arguments, **keywords)


def scalar(name, kind):
    """A conversion to a Python number or text, which waits."""

    def convert(self, *arguments):
        events[name] += 1
        return kind(self._host, *arguments)

    return convert


METHODS = ("reshape", "transpose", "swapaxes", "sum", "mean", "max", "min", "any", "all", "astype", "copy", "clip", "argmax")
ATTRIBUTES = ("shape", "ndim", "size", "dtype", "strides")
VIEWS = ("T", "real", "imag")
FUNCTIONS = (
    "arange", "ascontiguousarray", "broadcast_to", "concatenate", "cos", "divide", "empty", "empty_like", "exp", "floor",
    "full", "full_like", "isfinite", "log", "maximum", "minimum", "multiply", "ones", "result_type", "sin", "sqrt",
    "take_along_axis", "vdot", "where", "zeros", "zeros_like",
)
WAITING = ("nonzero",)

for _name, _function in operators():
    setattr(DeviceArray, _name, _function)
for _name in METHODS:
    setattr(DeviceArray, _name, method(_name, delegated))
for _name in ("item", "tolist", "nonzero"):
    setattr(DeviceArray, _name, method(_name, waiting))
for _name in ATTRIBUTES:
    setattr(DeviceArray, _name, property(lambda self, name=_name: getattr(self._host, name)))
for _name in VIEWS:
    setattr(DeviceArray, _name, property(lambda self, name=_name: raised(getattr(self._host, name))))
for _name, _kind in (("bool", bool), ("float", float), ("int", int), ("index", operator.index), ("complex", complex),
                     ("repr", repr), ("str", str), ("format", format)):
    setattr(DeviceArray, f"__{_name}__", scalar(_name, _kind))


def asarray(value, dtype=None):
    """A device array; a host array is copied to the device, on request: that is counted, and allowed."""
    if isinstance(value, DeviceArray):
        return value if dtype is None or value.dtype == dtype else value.astype(dtype)
    events["asarray"] += 1
    return DeviceArray(np.array(value, dtype))


def add_at(array, index, value):
    """a[index] += value with repeated indices added up; index arrays wrap around."""
    np.add.at(array._host, subscript(index, array.shape), lowered(value))


def module():
    """A module named cupy with these functions; any other name is an AttributeError."""
    made = types.ModuleType("cupy")
    made.ndarray, made.asarray = DeviceArray, asarray
    for name in FUNCTIONS:
        setattr(made, name, delegated(name, getattr(np, name)))
    made.add = types.SimpleNamespace(at=add_at)
    for name in WAITING:
        setattr(made, name, waiting(name, getattr(np, name)))
    made.inf = np.inf
    strides = types.SimpleNamespace(as_strided=delegated("as_strided", np.lib.stride_tricks.as_strided))
    made.lib = types.SimpleNamespace(stride_tricks=strides)
    return made
