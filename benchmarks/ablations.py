"""The ablation of arXiv 1907.01470 at a size for two cores: six variants, equal parameter budgets, three seeds.

    make ablations

Each run is a folder of `refimpl train` under runs/ablations; what is finished is not repeated, what was stopped goes on.
The table of mean and spread goes into docs/ablations.md.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from refimpl import checkpoint, parameters, settings
from refimpl.config import ModelConfig

HERE = Path(__file__).resolve().parent
SETTINGS, PAGE = HERE / "ablations.toml", HERE.parent / "docs" / "ablations.md"
SEEDS = (0, 1, 2)
BLOCK = "64"  # tokens of a segment in every evaluation
BUDGET = 0.01  # largest difference between two variants' counts of parameters, as a share
# persistent vectors and feed-forward width. In head-split half of the heads have vectors, and the others alone have keys and
# values of the context: 2 · 256 + D vectors make up for both
SIZES = {"all-attention": (256, 0), "attention-split": (256, 0), "head-split": (640, 0), "single-head": (256, 0),
         "ff-attention": (0, 256), "transformer": (0, 256)}
QUICK = ("model.width=8", "model.heads=2", "model.layers=1", "model.span=8", "train.updates=2", "train.last_updates=0",
         "train.warm_up=0", "train.batch=2", "train.block=8", "train.evaluate_tokens=64")
EVALUATION, START, END = "evaluation.json", "<!-- table -->", "<!-- end of table -->"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/ablations"), show_default=True)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE, help="Where the table is put in.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--variant", "variants", type=click.Choice(list(SIZES)), multiple=True, help="Train these only; repeatable.")
@click.option("--quick", is_flag=True, help="Two updates of a tiny model, one seed: whether it runs, not what comes out.")
@click.option("--table-only", is_flag=True, help="Of the runs that are finished; train nothing.")
def main(out: Path, page: Path, threads: int, variants: tuple[str, ...], quick: bool, table_only: bool) -> None:
    """Trains what is not there yet, one seed of all variants after another, and writes the table."""
    counts = budgets()
    seeds = SEEDS[:1] if quick else SEEDS
    for seed in () if table_only else seeds:
        for variant in variants or SIZES:
            finish(out / f"{variant}-{seed}", assignments(variant, seed) + (list(QUICK) if quick else []), threads)
    found = {variant: [json.loads(path.read_text("utf-8")) for seed in seeds
                       if (path := out / f"{variant}-{seed}" / EVALUATION).exists()] for variant in SIZES}
    text = table(found, counts)
    click.echo(text)
    insert(page, text)


def assignments(variant: str, seed: int) -> list[str]:
    """What distinguishes a run."""
    memory, feed_forward = SIZES[variant]
    return [f"model.variant={variant}", f"model.memory={memory}", f"model.feed_forward={feed_forward}", f"train.seed={seed}"]


def budgets() -> dict[str, int]:
    """Parameters of each variant for a vocabulary of bytes. Raises SystemExit unless all are within BUDGET of the least."""
    tables = settings.override(settings.read(SETTINGS), ["model.vocabulary=256", "model.memory=1"])
    base: ModelConfig = settings.model_config(tables["model"])
    counts = {variant: parameters.total(replace(base, variant=variant, memory=memory, feed_forward=feed_forward))
              for variant, (memory, feed_forward) in SIZES.items()}
    if max(counts.values()) > (1 + BUDGET) * min(counts.values()):
        raise SystemExit(f"expected parameters within {BUDGET:.0%} of each other, got {counts}")
    return counts


def finish(folder: Path, chosen: Sequence[str], threads: int) -> None:
    """Begins the run or goes on with it, to its end and its evaluation, unless it has got there."""
    if (folder / EVALUATION).exists():
        return
    there = checkpoint.folders(folder)
    if folder.exists() and not there:
        shutil.rmtree(folder)  # it was stopped before its first checkpoint: nothing is lost
    settings_given = [option for assignment in chosen for option in ("--set", assignment)]
    refimpl("train", "--config", str(SETTINGS), "--data", "sample", *settings_given, "--out", str(folder),
            "--threads", str(threads), *(["--resume"] if there else []))
    result = refimpl("eval", str(folder), "--protocol", "every-token", "--block", BLOCK, "--threads", str(threads), "--json")
    aside = folder / f".{EVALUATION}.aside"
    aside.write_text(result, encoding="utf-8")
    aside.replace(folder / EVALUATION)


def refimpl(*arguments: str) -> str:
    """Standard output of the command; raises SystemExit if it fails."""
    done = subprocess.run([sys.executable, "-m", "refimpl", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"refimpl {' '.join(arguments)}: expected exit code 0, got {done.returncode}")
    return done.stdout


def table(found: Mapping[str, Sequence[Mapping[str, Any]]], counts: Mapping[str, int]) -> str:
    """Bits per byte of the validation split, best first: mean and sample standard deviation over seeds, and each seed's.

    Raises SystemExit if the evaluations are not of one text under one protocol.
    """
    how = {tuple(result[key] for key in ("text_sha256", "split", "protocol", "streams", "block", "tokens", "updates"))
           for results in found.values() for result in results}
    if len(how) > 1:
        raise SystemExit(f"expected evaluations under one protocol, got {sorted(map(str, how))}")
    rows = []
    for variant, results in found.items():
        bits = [result["bits_per_byte"] for result in results]
        mean = statistics.mean(bits) if bits else float("inf")
        spread = f"{statistics.stdev(bits):.4f}" if len(bits) > 1 else "–"
        each = " ".join(f"{value:.4f}" for value in bits) or "–"
        rows.append((mean, f"| {variant} | {counts[variant]:,} | {f'{mean:.4f}' if bits else '–'} | {spread} | {each} |"))
    head = "| variant | parameters | bits per byte, mean | spread (s) | each seed |\n|---|---|---|---|---|"
    return "\n".join([head, *(row for _, row in sorted(rows))])


def insert(page: Path, text: str) -> None:
    """Puts the table in place of the page's, or makes a page of it."""
    old = page.read_text("utf-8") if page.exists() else f"{START}\n{END}\n"
    before, found, rest = old.partition(START)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{page}: expected {START} and {END}, got none")
    page.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
