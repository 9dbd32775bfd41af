"""The `refimpl` command: parse, call, print. No computation."""

import math
from dataclasses import replace
from pathlib import Path

import click

from refimpl import __version__, exits
from refimpl.checks.commands import gradcheck
from refimpl.convert_commands import convert
from refimpl.datasets.commands import data
from refimpl.errors import InputError
from refimpl.exits import debug_option
from refimpl.golden.commands import golden
from refimpl.report.commands import report
from refimpl.starts import (
    as_json,
    asked_tf32,
    checkpoint_option,
    computing_options,
    data_options,
    graph_option,
    join_ranks,
    kernels_option,
    mpi_option,
    store_folder,
    store_option,
    use_device,
    use_kernels,
    use_threads,
)


def main(arguments: list[str] | None = None) -> None:
    """The `refimpl` command; exits with its code."""
    exits.run(commands, arguments)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@debug_option
def commands() -> None:
    """All-attention transformers with adaptive spans, in NumPy, forward and backward by hand.

    \b
    refimpl train --out runs/sample                train on the built-in sample
    refimpl train --data my.txt --out runs/mine    train on your own file
    refimpl eval runs/mine                         bits per byte of the validation split
    refimpl generate runs/mine --prompt "The "     text from the model
    refimpl report runs/mine                       what the run logged and learned, as a page
    refimpl golden verify --adapter mine:adapter   hold an implementation to the golden vectors
    """


@commands.command()
@click.option("--preset", help="Settings that come with refimpl; `refimpl info` lists them.  [default: laptop]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A TOML file of settings.")
@data_options
@click.option("--set", "assignments", multiple=True, metavar="TABLE.KEY=VALUE", help="Override one setting; repeatable.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/PRESET]")
@click.option("--resume", is_flag=True, help="Go on from the run's newest checkpoint.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True),
              help="Stop after so many seconds, with a checkpoint; exit code 75 says that --resume has more to do.")
@click.option("--on-nonfinite", type=click.Choice(["stop", "skip"]),
              help="Whether an update that is not finite ends the run, or changes nothing.  [default: stop]")
@click.option("--dry-run", is_flag=True, help="Print parameters, memory and operations per token; train nothing.")
@computing_options
@graph_option
@mpi_option
@as_json
def train(
    preset: str | None, config_file: Path | None, data_path: str | None, vocabulary: str | None, store: Path | None,
    assignments: tuple[str, ...], out: Path | None, resume: bool, time_limit: float | None, on_nonfinite: str | None,
    dry_run: bool, kernels: str, threads: int | None, device: str, cuda_graph: bool, mpi: bool | None, as_json: bool,
) -> None:
    """Train a model; Ctrl-C stops with a checkpoint.

    \b
    refimpl train --preset laptop --data my.txt --out runs/mine --set model.layers=4
    refimpl train --out runs/mine --resume
    refimpl train --preset enwik8-all-attention --dry-run
    mpiexec -n 4 refimpl train --data my.txt --out runs/mine
    """
    if not dry_run:
        use_kernels(kernels, store)
    from refimpl import console, jobs, runs, terminal

    if on_nonfinite:
        assignments = (*assignments, f"train.on_nonfinite={on_nonfinite}")
    request = jobs.Request(preset, config_file, data_path, vocabulary, assignments, out, store_folder(store), device)
    session = join_ranks(False if dry_run else mpi)
    use_threads(threads or session.ranks.threads())
    if dry_run:
        result = jobs.dry_run(request)
        console.show(result, console.dry_run_text(result), as_json)
        return
    if time_limit is not None and not math.isfinite(time_limit):
        raise InputError(f"--time-limit: expected a finite number of seconds, got {time_limit}")
    here = session.ranks.number_here if session.ranks.size > 1 else None
    place = exits.together(session, lambda: use_device(device, here, cuda_graph))
    placed = replace(request, place=place, tf32=asked_tf32(), cuda_graph=cuda_graph)
    run, unit, evaluate = exits.together(session, lambda: jobs.open_run(placed, resume, session.ranks))
    runs.check_alike(run)
    if not session.ranks.rank:
        _tell_passed_over(run.saved.passed_over, str(run.saved.path))
    run.time_limit = time_limit
    later = jobs.later_shortage(run.saved, device, session.ranks)
    if later and not session.ranks.rank:
        console.note(f"refimpl: should every span grow to its end: {later}")
    terminal.train(run, unit, evaluate, as_json)


@commands.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", "data_path", help="Another text than the run's, encoded with its vocabulary's rules.")
@store_option
@click.option("--split", type=click.Choice(["train", "valid", "test"]), default="valid", show_default=True)
@click.option("--protocol", type=click.Choice(["every-token", "published", "transformer-xl"]), default="every-token",
              show_default=True, help="Every token once; or as the published code of all-attention, or of Transformer-XL.")
@click.option("--streams", type=click.IntRange(1), help="Rows that the text is cut into.  [default: 8, transformer-xl 10]")
@click.option("--block", type=click.IntRange(1), help="Tokens of a segment.  [default: as trained, transformer-xl 80 or 64]")
@click.option("--past", type=click.IntRange(1),
              help="Positions that a token may see.  [default: the model's span, transformer-xl 2100 or, of words, 640]")
@click.option("--clamp", type=click.IntRange(1),
              help="Farther positions count as so far.  [default: none, transformer-xl 820 or, of words, 400]")
@checkpoint_option
@click.option("--yardsticks", is_flag=True, help="Print the same text's score under count models of order 1, 2 and 4 too.")
@computing_options
@as_json
def evaluate(
    run: Path, data_path: str | None, store: Path | None, split: str, protocol: str, streams: int | None, block: int | None,
    past: int | None, clamp: int | None, which: str, yardsticks: bool, kernels: str, threads: int | None, device: str,
    as_json: bool,
) -> None:
    """Score a split of the text, with a 95 % interval, by a run's newest checkpoint or another one.

    \b
    refimpl eval runs/mine --split test --checkpoint best --yardsticks
    refimpl eval runs/mine --protocol transformer-xl --json
    """
    use_kernels(kernels, store)
    use_threads(threads)
    from refimpl import console, results

    how = results.HowToScore(protocol, streams, block, past, clamp)
    result = results.evaluate_run(run, data_path, store_folder(store), split, how, yardsticks, which, use_device(device))
    _tell_passed_over(result["passed_over"], result["checkpoint"])
    console.show(result, console.evaluation_text(result), as_json)


@commands.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", "given", multiple=True, help="Text to go on from; repeatable.  [default: the start of a line]")
@click.option("--prompts", "prompts_file", type=click.Path(path_type=Path), help="A file with a prompt on each line.")
@click.option("--length", type=click.IntRange(0), default=400, show_default=True, help="Tokens to draw.")
@click.option("--temperature", type=click.FloatRange(0), default=0.8, show_default=True, help="0 takes the likeliest token.")
@click.option("--top-k", type=click.IntRange(0), default=0, help="Draw from the k likeliest tokens only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@checkpoint_option
@computing_options
@as_json
def generate(
    run: Path, given: tuple[str, ...], prompts_file: Path | None, length: int, temperature: float, top_k: int, seed: int,
    which: str, kernels: str, threads: int | None, device: str, as_json: bool,
) -> None:
    """Write text with a run's model. Of several prompts, number i goes on as it would alone with a seed higher by i.

    \b
    refimpl generate runs/mine --prompt "The " --length 1000 --temperature 0.7
    refimpl generate runs/mine --prompts prompts.txt --json
    """
    use_kernels(kernels)
    use_threads(threads)
    from refimpl import console, results

    prompts = results.read_prompts(given, prompts_file)
    passages = results.generate(run, prompts, length, temperature, top_k, seed, which, use_device(device))
    _tell_passed_over(passages.saved.passed_over, str(passages.saved.path))
    console.write_passages(passages.prompts, passages.pieces, length, str(passages.saved.path), as_json)


@commands.command()
@click.option("--preset", help="Settings that come with refimpl; `refimpl info` lists them.  [default: laptop]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="A TOML file of settings.")
@click.option("--set", "assignments", multiple=True, metavar="TABLE.KEY=VALUE", help="Override one setting; repeatable.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Turns that medians are taken of.")
@click.option("--ledger", is_flag=True, help="Measure nothing: what an update asks of a GPU, and a bound of its time there.")
@computing_options
@graph_option
@as_json
def bench(
    preset: str | None, config_file: Path | None, assignments: tuple[str, ...], repeats: int, ledger: bool, kernels: str,
    threads: int | None, device: str, cuda_graph: bool, as_json: bool,
) -> None:
    """Measure how fast this machine trains and writes with a model.

    \b
    refimpl bench --preset enwik8-all-attention-small --set train.batch=1 --json
    """
    from refimpl import console, jobs

    if ledger:
        result = jobs.ledger(jobs.Request(preset, config_file, None, None, assignments, None, store_folder()))
        console.show(result, console.ledger_text(result), as_json)
        return
    use_kernels(kernels)
    use_threads(threads)
    request = jobs.Request(preset, config_file, None, None, assignments, None, store_folder(), device, use_device(device),
                           asked_tf32(), cuda_graph)
    result = jobs.bench(request, repeats)
    console.show(result, console.bench_text(result), as_json)


@commands.command()
@kernels_option
@store_option
@as_json
def info(kernels: str, store: Path | None, as_json: bool) -> None:
    """Versions, presets, and what this machine offers.

    \b
    refimpl info --json
    """
    from refimpl import console, results

    result = results.describe_installation(kernels, store_folder(store))
    console.show(result, "\n".join(f"{name:<9} {value if isinstance(value, str) else ', '.join(value)}"
                                   for name, value in result.items()), as_json)


commands.add_command(convert)
commands.add_command(data)
commands.add_command(golden)
commands.add_command(gradcheck)
commands.add_command(report)


def _tell_passed_over(reasons: list[str], used: str) -> None:
    from refimpl import console

    for reason in reasons:
        console.note(f"refimpl: passed over a damaged checkpoint: {reason}; using {used}")


if __name__ == "__main__":
    main()
