"""Training at a terminal: progress, signals, and what is said at the end."""

import signal
from typing import Any

from refimpl import console, exits, running
from refimpl.runs import Run


def train(run: Run, unit: str, evaluate: running.Evaluate, as_json: bool) -> None:
    """Trains until done, out of time or signalled, showing each record; prints where the result is: the first rank does."""
    first = run.ranks.rank == 0
    if run.unlocked and first:
        console.note(f"refimpl: {run.folder} could not be locked ({run.unlocked}): let no other process train in it")
    if run.moved and first:
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
            for record in running.train(run, evaluate, lambda: received[0] if received else 0):
                result.update(record)
                if "update" in record and first:
                    line.show(record)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        run.held.close()
    if first:
        _tell(run, unit, result, as_json)
    if run.stopped:
        raise exits.EndedError(exits.INTERRUPTED if run.stopped == signal.SIGINT else exits.TERMINATED)
    if run.saved.optimizer.updates < run.saved.train_config.updates:
        raise exits.EndedError(exits.AGAIN)


def _tell(run: Run, unit: str, result: dict[str, Any], as_json: bool) -> None:
    """How the run ended, and where its result is."""
    updates, asked = run.saved.optimizer.updates, run.saved.train_config.updates
    if run.stopped:
        console.note(f"stopped at update {updates}; wrote {result['checkpoint']}; --resume goes on from it")
        return
    text = [("run", result["run"]), ("checkpoint", result["checkpoint"])]
    if "valid_bits" in result:
        text.insert(0, ("validation", f"{result['valid_bits']:.4f} bits per {unit}, update {updates}"))
    console.show(result, "\n".join(f"{name:<12}{value}" for name, value in text), as_json)
    if updates < asked:
        console.note(f"the time limit came at update {updates} of {asked}; wrote {result['checkpoint']}; --resume goes on "
                     f"from it")
