"""A program, started by workers.py: computes parts of a batch as the process that started it would on a thread.

It is told in lines of JSON: settings first, then each update. Arrays stand in memory that both share.
"""

import json
import mmap
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import IO, Any

from refimpl import model, settings, training
from refimpl.arena import Arena, lent
from refimpl.arrays import limit_threads, map_in_threads, quiet
from refimpl.config import TrainConfig
from refimpl.parameters import Parameters
from refimpl.shared import Part, Plan


def main(shared: int) -> None:
    """Computes until there is nobody to tell it; shared: the descriptor of the memory."""
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all of a job's processes: the run ends by itself, with this one
        signal.signal(number, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    told = json.loads(sys.stdin.readline())
    plan = Plan(settings.model_config(told["model"]), TrainConfig(**told["train"]), told["processes"])
    vector, parts = plan.lay_out(mmap.mmap(shared, plan.bytes()))
    os.close(shared)
    p, mine = Parameters(plan.config, lent(vector)), [parts[number] for number in plan.of(told["number"])]
    arena = Arena()
    with limit_threads(1), suppress(BrokenPipeError):
        _answer(answers, {})
        for line in sys.stdin:
            compute = partial(_compute, plan, p, json.loads(line))
            try:
                with arena:
                    lengths = map_in_threads(compute, mine, 1)
            except Exception as error:  # whatever it is, the other process meets it too, on a thread, and can tell of it
                _answer(answers, {"error": f"{type(error).__name__}: {error}"})
                return
            _answer(answers, {"length": lengths[0]})


def _answer(answers: IO[str], what: dict[str, Any]) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


def _compute(plan: Plan, p: Parameters, told: dict[str, int], part: Part) -> int:
    """Fills in the part's loss, gradients and new past; returns that one's length."""
    past, rows = lent(part.past(told["length"])), slice(0, len(part.tokens))
    with quiet():
        out, g = training.on_rows(model.loss_and_gradients, p, plan.config, plan.train, part.tokens, part.targets, past,
                                  told["update"], rows, part.rows.start)
    part.loss[...], part.gradients.vector[...] = out.loss, g.vector
    length: int = out.past.shape[2]
    part.past(length)[...] = out.past
    return length
