"""What the settings' dataclasses check of their fields; every error names table, field, what was expected, what came."""

import math
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

from refimpl.errors import InputError

LARGEST = 2**63  # products of a few of these are still numbers of every kind


def check_types(config: Any, table: str) -> None:
    """Refuses a value of another type than its field declares; whole numbers pass as floats, NumPy's as Python's own."""
    for field in fields(config):
        value, kind = getattr(config, field.name), field.type
        if kind is bool or kind is str:
            right = isinstance(value, kind)
        elif kind is int or kind is float:
            right = _is_number(value, kind)
            if right and kind is int and abs(value) >= LARGEST and field.name != "seed":
                raise InputError(f"{table}.{field.name}: expected a whole number below 2^63, got one of "
                                 f"{int(value).bit_length()} bits")
            if right:
                object.__setattr__(config, field.name, kind(value))
        else:
            item = int if field.name == "cutoffs" else float
            right = isinstance(value, tuple) and all(_is_number(number, item) for number in value)
        if not right:
            wanted = kind.__name__ if kind in (bool, str, int, float) else "a list of numbers"
            raise InputError(f"{table}.{field.name}: expected {wanted}, got {value!r}")


def _is_number(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, Integral) if kind is int else isinstance(value, Real) and math.isfinite(value)


def at_least(config: Any, table: str, name: str, least: int) -> None:
    """Refuses a value below `least`."""
    if getattr(config, name) < least:
        raise InputError(f"{table}.{name}: expected {least} or more, got {getattr(config, name)}")


def share(config: Any, table: str, name: str, most: int, open_above: bool = False) -> None:
    """Refuses a value outside [0, most], or at `most` itself if open_above."""
    value = getattr(config, name)
    if not 0 <= value <= most or (open_above and value == most):
        raise InputError(f"{table}.{name}: expected a number in [0, {most}{')' if open_above else ']'}, got {value}")


def one_of(config: Any, table: str, name: str, choices: tuple[str, ...]) -> None:
    """Refuses a value that is not among the choices."""
    if getattr(config, name) not in choices:
        raise InputError(f"{table}.{name}: expected one of {', '.join(choices)}, got {getattr(config, name)!r}")
