"""Training at a terminal: progress, signals, and what is said at the end."""

import signal
from collections.abc import Callable
from typing import Any

from refimpl import console, exits, runs
from refimpl.evaluation import Evaluation
from refimpl.runs import Run


def train(run: Run, unit: str, evaluate: Callable[[], Evaluation], as_json: bool) -> None:
    """Trains until done or signalled, showing each record; prints where the result is."""
    if run.moved:
        console.note(f"refimpl: goes on, no longer to the same bits as without the stop: {run.moved}")
    received: list[int] = []

    def remember(number: int, frame: object) -> None:
        if received:  # a second Ctrl-C does not wait for the update to end
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    result: dict[str, Any] = {"run": str(run.folder)}
    try:
        with console.ProgressLine(unit) as line:
            for record in runs.train(run, evaluate, lambda: bool(received)):
                result.update(record)
                if "update" in record:
                    line.show(record)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        updates = run.saved.optimizer.updates
        console.note(f"stopped at update {updates}; wrote {result['checkpoint']}; --resume goes on from it")
        raise exits.EndedError(exits.INTERRUPTED if received[0] == signal.SIGINT else exits.TERMINATED)
    if run.saved.optimizer.updates < run.saved.train_config.updates:
        console.note(f"the time limit came at update {run.saved.optimizer.updates} of {run.saved.train_config.updates}")
    text = [("run", result["run"]), ("checkpoint", result["checkpoint"])]
    if "valid_bits" in result:
        text.insert(0, ("validation", f"{result['valid_bits']:.4f} bits per {unit}, update {run.saved.optimizer.updates}"))
    console.show(result, "\n".join(f"{name:<12}{value}" for name, value in text), as_json)
