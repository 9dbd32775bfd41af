"""What a check found: a verdict for each argument, and the numbers behind it."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from refimpl.gradcheck.judging import FAIL, KINK, PASS, UNCHECKED

SHOWN = 4  # kinks of one argument in the table


@dataclass(frozen=True)
class KinkReport:
    """One element of an argument at a kink of one output: d output / d element to the left and to the right.

    gradient: what vjp returns for this output alone, None if it was not asked for; among: whether it is one of the slopes or
    between.
    """

    index: tuple[int, ...]
    output: str
    left: float
    right: float
    gradient: float | None
    among: bool | None


@dataclass(frozen=True)
class ArgumentReport:
    """One argument's verdict: PASS, FAIL, KINK (the point has no gradient) or UNCHECKED (could not be decided).

    relative_error: ‖gradient - derivative‖ / ‖derivative‖, the largest over cotangents. limit: what it may be: the method's,
    or more where noise_floor, the relative error that rounding explains, asks for it. worst: the element that decided,
    None along random directions. controls: disturbed gradients that were rejected, of those planted.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    verdict: str
    relative_error: float
    noise_floor: float
    limit: float
    worst: tuple[int, ...] | None
    gradient: float
    derivative: float
    controls_caught: int
    controls_planted: int
    controls_missed: tuple[str, ...]
    kinks: tuple[KinkReport, ...]
    reason: str

    @property
    def margin(self) -> float:
        """The limit over the relative error; infinite if there is no error."""
        return self.limit / self.relative_error if self.relative_error else math.inf


@dataclass(frozen=True)
class Report:
    """verdict: the gravest of all. problems: what the functions did that they must not, whatever their numbers."""

    verdict: str
    arguments: tuple[ArgumentReport, ...]
    problems: tuple[str, ...]
    method: str
    directions: str
    witness: Path | None = None

    @property
    def ok(self) -> bool:
        """Whether every gradient passed: neither KINK nor UNCHECKED is a pass."""
        return self.verdict == PASS

    def __getitem__(self, name: str | int) -> ArgumentReport:
        """An argument's entry by its name, or by its number if the arguments came as a list."""
        return next(entry for entry in self.arguments if entry.name == str(name))

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not finite becomes None."""
        found = asdict(self) | {"ok": self.ok, "witness": str(self.witness) if self.witness else None}
        for entry, written in zip(self.arguments, found["arguments"], strict=True):
            written["margin"] = entry.margin
        plain = _finite(found)
        assert isinstance(plain, dict)
        return plain

    def __str__(self) -> str:
        rows = [("", "verdict", "relative error", "limit", "noise floor", "margin", "controls")]
        rows += [(entry.name, entry.verdict, f"{entry.relative_error:.1e}", f"{entry.limit:.1e}", f"{entry.noise_floor:.1e}",
                  f"{entry.margin:.2g}", f"{entry.controls_caught} of {entry.controls_planted}") for entry in self.arguments]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [f"{self.verdict}: gradients against {self.method}, {self.directions}"]
        lines += ["  ".join(cell.rjust(width) if i > 1 else cell.ljust(width)
                            for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows]
        lines += [line for entry in self.arguments for line in explained(entry)]
        lines += [f"problem: {problem}" for problem in self.problems]
        lines += [f"witness: {self.witness}"] if self.witness else []
        return "\n".join(line.rstrip() for line in lines)


def explained(entry: ArgumentReport) -> list[str]:
    """In words, why an entry did not pass; nothing if it did."""
    lines = []
    if entry.verdict != PASS and entry.reason:
        lines.append(f"{entry.name}: {entry.reason}")
    if entry.verdict == FAIL and math.isfinite(entry.derivative):
        where = "" if entry.worst is None else f"{list(entry.worst)}"
        lines.append(f"{entry.name}{where}: gradient {entry.gradient:.17g}, derivative {entry.derivative:.17g}")
    for kink in entry.kinks[:SHOWN]:
        told = "" if kink.gradient is None else (f"; the gradient {kink.gradient:.6g} lies "
                                                 f"{'at or between them' if kink.among else 'outside'}")
        lines.append(f"{entry.name}{list(kink.index)}: a kink of {kink.output}, slopes {kink.left:.6g} and "
                     f"{kink.right:.6g}{told}")
    if len(entry.kinks) > SHOWN:
        lines.append(f"{entry.name}: {len(entry.kinks) - SHOWN} more kinks")
    return lines


def gravest(verdicts: Iterable[str]) -> str:
    """FAIL before UNCHECKED before KINK before PASS."""
    found = set(verdicts)
    return next((verdict for verdict in (FAIL, UNCHECKED, KINK) if verdict in found), PASS)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
