"""One update on a GPU: refimpl beside PyTorch, eager and through torch.compile, on the same device in one run.

    python -m pip install torch==2.13.0
    python benchmarks/update_gpu.py

Model and update are those of update.py. Before anything is timed, losses and updated parameters are compared; then the
contenders take turns, and each waits for the device before the clock is read.
"""

import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import update

from refimpl import optimizers, training
from refimpl.arrays import to_host, wait
from refimpl.device import opening
from refimpl.errors import InputError

TURNS, TOLERANCE = 11, 1e-3  # relative to the largest element: two libraries' float32, through two layers and back


class Ours:
    """training.update on the device."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        place = opening.opened("gpu")
        self.config, self.train, p, *given = update.draw(settings)
        self.p, self.given = p.with_vector(place(p.vector)), [place(array) for array in given]
        self.first, self.state = self.p.vector.copy(), optimizers.initialize(self.train, self.p)

    def run(self) -> float:
        """Seconds of one update."""
        self.p.vector[...] = self.first
        self.state.updates = 0
        self.state.accumulators["squares"].vector.fill(update.SQUARES)
        wait(self.first)
        start = time.perf_counter()
        self.result = training.update(self.p, self.state, self.config, self.train, *self.given)
        wait(self.first)
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """Loss and updated parameters."""
        self.run()
        return {"loss": to_host(self.result.loss), **{name: to_host(self.p[name]) for name in self.p}}


def compare(subjects: Mapping[str, Any]) -> None:
    """Raises SystemExit unless all give what the first gives."""
    (first, expected), *others = ((name, subject.results()) for name, subject in subjects.items())
    for other, found in others:
        for name, value in expected.items():
            there = found.get(name, found.get(f"updated {name}"))
            error = np.abs(there - value).max() / max(np.abs(value).max(), 1e-30)
            if not error <= TOLERANCE:
                raise SystemExit(f"{other} differs from {first} in {name} by {error:.1e} of its size")


def main() -> int:
    """Prints each contender's median, least and largest milliseconds."""
    try:
        opening.opened("gpu")
    except InputError as error:
        print(f"update_gpu: {error}", file=sys.stderr)
        return 3
    import update_torch

    for case, share in update.SPANS.items():
        settings = update.settings_of(replace(update.MODEL, span_initial=share), update.TRAIN)
        subjects = {"refimpl": Ours(settings)}
        for name, make in (("torch eager", update_torch.eager), ("torch.compile", update_torch.compiled)):
            subjects[name] = make(settings)
            subjects[name].move("cuda")
        compare(subjects)
        times: dict[str, list[float]] = {name: [] for name in subjects}
        for turn in range(-1, TURNS):
            for name, subject in subjects.items():
                taken = subject.run()
                if turn >= 0:  # the first turn warms up
                    times[name].append(1e3 * taken)
        for name, found in times.items():
            print(f"{case:<12} {name:<14} {statistics.median(found):9.3f} ms, {min(found):.3f} … {max(found):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
