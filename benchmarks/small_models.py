"""An update of small models, attention in tiles and as the equations read, beside PyTorch eager: where tiles are worth it,
and worker processes in place of threads.

    python -m pip install torch==2.13.0
    python benchmarks/small_models.py --json small_models.json

Of each case T, S and N are told, and T (S + N), the logits of one head and text, by which `train.attention = "auto"`
decides. The first has the sizes of the preset `laptop`. Otherwise as update.py.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import click
import measure
import update
from contender import Contender

MODEL = replace(update.MODEL, width=128, heads=4, layers=3, span_initial=0.25, normalizer_epsilon=0.0)
TRAIN = replace(update.TRAIN, batch=16)
SIZES = [(64, 64, 64), (64, 128, 128), (128, 128, 128), (128, 256, 256), (256, 256, 256)]  # T, S, N
TOLERANCE = 1e-3  # as update.py, through a layer more and with shorter spans, whose gradients cancel more
PEER = "torch eager"


@click.command()
@measure.repeats_option(7)
@measure.options()
def main(repeats: int, threads: int, kernels: str, quick: bool, path: Path | None) -> None:
    """Prints the time of an update for each size and path."""
    made, rows = measure.machine(threads, kernels), []
    measure.print_machine(made)
    environment = measure.our_environments(kernels)[measure.OURS]
    for block, span, memory in [(8, 8, 8)] if quick else SIZES:
        config, train = replace(MODEL, span=span, memory=memory), replace(TRAIN, block=block)
        ours = {path: replace(train, attention=path) for path in ("textbook", "tiled")}
        ours["tiled, on threads"] = replace(ours["tiled"], parallel="threads")
        subjects = {name: ("update:Ours", chosen, environment) for name, chosen in ours.items()}
        subjects[PEER] = update.PEERS[PEER], train, {}
        with ExitStack() as stack:
            contenders = [
                stack.enter_context(Contender(name, subject, update.settings_of(config, chosen), threads, variables))
                for name, (subject, chosen, variables) in subjects.items()]
            errors = measure.check_agreement(contenders, TOLERANCE)
            times = measure.summarize(measure.take_turns(contenders, repeats))
        case = f"{block}, {span}, {memory}: {block * (span + memory):,}"
        rows.append({"case": case, "settings": update.settings_of(config, train), "times": times, "largest_errors": errors})
        measure.print_times(case, times)
    measure.write(path, made, rows)


if __name__ == "__main__":
    main()
