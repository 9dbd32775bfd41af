"""`refimpl report`: runs as one HTML page. Parse, call, write, print."""

import os
from importlib.util import find_spec
from pathlib import Path

import click

from refimpl.errors import InputError
from refimpl.starts import as_json, kernels_option, store_folder, store_option, threads_option, use_kernels, use_threads

NEEDED = ("jinja2", "matplotlib")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN [RUN...]")
@click.option("--out", type=click.Path(path_type=Path), help="The page's file.  [default: report.html in the first run]")
@click.option("--passage", help="A text whose attention is looked at.  [default: the start of the validation text]")
@store_option
@kernels_option
@threads_option
@as_json
def report(
    runs: tuple[Path, ...], out: Path | None, passage: str | None, store: Path | None, kernels: str, threads: int | None,
    as_json: bool,
) -> None:
    """Write what runs logged and learned into one HTML page; several runs stand side by side.

    \b
    refimpl report runs/mine
    refimpl report runs/small runs/large --out both.html --passage "In the beginning "
    """
    check_installed()
    for path in runs:
        if not path.is_dir():
            raise InputError(f"{path}: expected a run's folder, got {'a file' if path.exists() else 'nothing of that name'}")
    file = out or runs[0] / "report.html"
    if file.is_dir() or not file.parent.is_dir():
        raise InputError(f"--out: expected a file in a folder that is there, got {file}")
    use_kernels(kernels, store)
    use_threads(threads)
    from refimpl import console
    from refimpl.report import page, reading

    found = [reading.read(run, store_folder(store)) for run in runs]
    _write(file, page.render(found, passage))
    result = {"report": str(file), "notes": {str(run.path): run.notes for run in found}}
    console.show(result, f"report      {file}", as_json)
    for run in found:
        for note in run.notes:
            console.note(f"refimpl: {run.path}: {note}")


def check_installed() -> None:
    """Raises InputError that names the extra to install, unless what the report is made with is there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise InputError(f"report: expected {' and '.join(NEEDED)} (pip install 'refimpl[report]'), got no "
                         f"{' and no '.join(missing)}")


def _write(file: Path, text: str) -> None:
    """The page whole, or on any error what was there before."""
    aside = file.with_name(f".{file.name}.aside")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
        aside.replace(file)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
