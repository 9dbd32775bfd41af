"""What of an argument's derivative is measured: every element, or random directions through all of them."""

from typing import Any

import numpy as np

from refimpl.gradcheck import complex_step, differences
from refimpl.gradcheck.differences import Estimate
from refimpl.gradcheck.experiment import Experiment, power_of_two


def derive(
    experiment: Experiment, method: str, number: int, direction: Any, size: float, rows: Any, point: list[Any] | None = None
) -> Estimate:
    """d (rows · forward) / dt along a direction in one argument, and its error; size is what real steps are relative to."""
    line = experiment.line(number, direction, point)
    if method == "complex-step":
        value = rows @ complex_step.along(line)
        return Estimate(value, np.finfo(value.dtype).eps * np.abs(value))
    return differences.best(line, rows, method, experiment.noise, size)


class Elements:
    """Each element of an argument, but those left out; rows are cotangents, columns elements."""

    def __init__(self, experiment: Experiment, number: int, left_out: list[int]) -> None:
        self.experiment, self.number = experiment, number
        self.positions = np.setdiff1d(np.arange(experiment.exact[number].size), left_out)
        self.count = len(self.positions)

    def project(self, gradients: Any) -> Any:
        """(K, *shape) -> (K, columns)."""
        return gradients.reshape(len(gradients), -1)[:, self.positions]

    def direction(self, column: int) -> Any:
        """1 at the element, 0 elsewhere."""
        x = self.experiment.exact[self.number]
        unit = np.zeros(x.size, x.dtype)
        unit[self.positions[column]] = 1
        return unit.reshape(x.shape)

    def derivative(self, method: str, columns: Any, point: list[Any] | None = None) -> Estimate:
        """The derivatives by the elements of these columns, (K, columns)."""
        experiment, x = self.experiment, self.experiment.exact[self.number].reshape(-1)
        found = []
        for column in columns:
            size = max(experiment.size(self.number), power_of_two(abs(float(x[self.positions[column]] or 1e-30))))
            direction = self.direction(column)
            found.append(derive(experiment, method, self.number, direction, size, experiment.cotangents, point))
        parts = zip(*found, strict=True) if found else ([], [])
        return Estimate(*(np.array(part, x.dtype).reshape(-1, len(experiment.cotangents)).T for part in parts))

    def index(self, column: int) -> tuple[int, ...] | None:
        """The element's index in the argument."""
        shape = self.experiment.exact[self.number].shape
        return tuple(int(i) for i in np.unravel_index(int(self.positions[column]), shape)) if shape else ()

    def rows_of(self, row: int, column: int) -> int:
        """Which cotangent an entry was measured with."""
        return row

    def sizes(self, value: Any) -> Any:
        """The largest derivative for each cotangent."""
        return np.abs(value).max(1, initial=0)

    def scaled(self, value: Any, factors: Any) -> Any:
        """Derivatives after each cotangent was multiplied by its factor."""
        return value * factors[:, None]


class Directions:
    """Random directions, each with a cotangent of its own; one row, a column for each. Elements left out stay 0."""

    def __init__(self, experiment: Experiment, number: int, left_out: list[int], count: int) -> None:
        self.experiment, self.number, self.count = experiment, number, count
        self.directions = []
        for i in range(count):
            direction = experiment.direction(number, i + 1)
            direction.reshape(-1)[left_out] = 0
            self.directions.append(direction)

    def project(self, gradients: Any) -> Any:
        """(K, *shape) -> (1, columns)."""
        return np.array([[(gradients[self.rows_of(0, i)] * u).sum() for i, u in enumerate(self.directions)]])

    def direction(self, column: int) -> Any:
        """One of the directions."""
        return self.directions[column]

    def derivative(self, method: str, columns: Any, point: list[Any] | None = None) -> Estimate:
        """The derivatives along these directions, (1, columns)."""
        experiment, found = self.experiment, []
        for i in columns:
            row = experiment.cotangents[[self.rows_of(0, i)]]
            size = experiment.size(self.number)
            found.append(derive(experiment, method, self.number, self.directions[i], size, row, point))
        return Estimate(*(np.array(parts).reshape(1, -1) for parts in zip(*found, strict=True)))

    def index(self, column: int) -> tuple[int, ...] | None:
        """A direction has no element."""
        return None

    def rows_of(self, row: int, column: int) -> int:
        """Which cotangent an entry was measured with."""
        return column % len(self.experiment.cotangents)

    def sizes(self, value: Any) -> Any:
        """About the largest derivative for each cotangent."""
        found = np.zeros(len(self.experiment.cotangents))
        for i, size in enumerate(np.abs(value[0])):
            found[self.rows_of(0, i)] = np.fmax(found[self.rows_of(0, i)], size)
        return found

    def scaled(self, value: Any, factors: Any) -> Any:
        """Derivatives after each cotangent was multiplied by its factor."""
        return value * factors[[self.rows_of(0, i) for i in range(self.count)]]
