"""What a case is, and the exact numbers that its inputs are made of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from refimpl.arrays import Array, random_stream

ANY = "any"  # of cases on which the conventions agree


class Case(NamedTuple):
    """One call of a function: the group that it is listed in, its settings, its inputs, and what it is there for.

    `convention`: the named set that its settings follow, or ANY. `flags` name what is special, as flags.toml explains.
    `fixed` inputs stand exactly on a kink, so no bound is measured by moving them. `refused`: must be an error.
    """

    id: str
    group: str
    function: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Array]
    convention: str = ANY
    flags: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    refused: bool = False


class Draw:
    """Numbers that depend on the case's id alone. Real ones are k / 64 with |k| ≤ 127: exact in every floating type."""

    def __init__(self, name: str) -> None:
        self._stream = random_stream(0, f"golden {name}")

    def numbers(self, *shape: int) -> Array:
        """k / 64, |k| ≤ 127, none 0."""
        k = self._stream.integers(1, 128, shape) * self._stream.choice([-1, 1], shape)
        return k / 64

    def shares(self, *shape: int, low: int = 4, high: int = 40) -> Array:
        """k / 64 for spans, off the kinks of the cases' masks: an odd k."""
        return (2 * self._stream.integers(low // 2, high // 2, shape) + 1) / 64

    def integers(self, high: int, *shape: int) -> Array:
        """Token ids below `high`."""
        return self._stream.integers(0, high, shape)

    def keep(self, *shape: int) -> Array:
        """A keep-mask of dropout: about a quarter dropped, in every mask at least one kept and one dropped."""
        mask = self._stream.random(shape) >= 0.25
        mask.reshape(-1)[0], mask.reshape(-1)[-1] = True, False
        return mask
