"""`refimpl golden`: list, show, write and verify golden vectors. Parse, call, print."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from refimpl import exits
from refimpl.exits import debug_option
from refimpl.starts import device_option, use_device

DTYPES = ("float64", "float32", "float16", "bfloat16")


def _selecting(command: Any) -> Any:
    for option in (
        click.option("--convention", "conventions", multiple=True, help="Only cases of this convention; repeatable."),
        click.option("--flag", "flags", multiple=True, help="Only cases with this flag; repeatable."),
        click.option("--group", "groups", multiple=True, help="Only cases of this group; repeatable."),
    ):
        command = option(command)
    return command


def _writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """A report's file, refused before the run where it can't be written after it."""
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        raise click.BadParameter(f"expected a file in a folder that is there, got {path}")
    return path


@click.group()
def golden() -> None:
    """Golden vectors: exact cases to hold any implementation against, in any language.

    \b
    refimpl golden list --group attention --convention published
    refimpl golden verify --adapter mypackage.mymodule:adapter
    refimpl golden write DIR
    """


@golden.command("list")
@_selecting
@click.option("--json", "as_json", is_flag=True, help="Print the manifest's entries as JSON.")
@debug_option
def list_cases(groups: tuple[str, ...], flags: tuple[str, ...], conventions: tuple[str, ...], as_json: bool) -> None:
    """The cases: id, function, convention, flags.

    \b
    refimpl golden list --flag overflow
    """
    from refimpl import console
    from refimpl.golden.verify import Selection, select

    entries = select(Selection(groups, flags, conventions))
    rows = [("case", "function", "flags"), *((e["id"], e["function"], ", ".join(e["flags"])) for e in entries)]
    text = "\n".join(f"{case:<58}{function:<22}{flags}".rstrip() for case, function, flags in rows)
    console.show({"cases": entries}, f"{text}\n{len(entries)} cases", as_json)


@golden.command()
@click.argument("case")
@click.option("--json", "as_json", is_flag=True, help="Print settings and every number as JSON.")
@debug_option
def show(case: str, as_json: bool) -> None:
    """One case: its settings, inputs, expected results, what it is there for and which bugs it catches.

    \b
    refimpl golden show attention/past-short@published
    """
    from refimpl import console
    from refimpl.golden import listing
    from refimpl.golden.vectors import load_case
    from refimpl.golden.verify import Selection, select

    stored = load_case(select(Selection(ids=(case,)))[0])
    console.show(listing.as_dict(stored), listing.text(stored), as_json)


@golden.command()
@click.argument("folder", type=click.Path(path_type=Path))
@_selecting
@click.option("--dtype", type=click.Choice(DTYPES), default="float64", show_default=True)
@debug_option
def write(folder: Path, groups: tuple[str, ...], flags: tuple[str, ...], conventions: tuple[str, ...], dtype: str) -> None:
    """Writes cases as folders of case.json and inputs.safetensors, without expected values; `verify --results` reads back.

    \b
    refimpl golden write cases --group attention
    """
    from refimpl.errors import InputError
    from refimpl.golden.exchange import write_case
    from refimpl.golden.vectors import load_case
    from refimpl.golden.verify import Selection, select

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: expected a new or empty folder, got one with something in it")
    entries = select(Selection(groups, flags, conventions))
    for entry in entries:
        write_case(folder / entry["id"], load_case(entry), dtype)
    click.echo(f"wrote {len(entries)} cases to {folder}; put results into DIR/GROUP/CASE.results.safetensors and call "
               "`refimpl golden verify --results DIR`")


@golden.command()
@_selecting
@click.option("--case", "ids", multiple=True, help="Only this case; repeatable.")
@click.option("--adapter", metavar="MODULE:FUNCTION", help="A Python function: (name, settings, inputs) -> results by name.")
@click.option("--command", "program", help="A program: `COMMAND CASE OUT` reads a case and writes results.")
@click.option("--results", type=click.Path(path_type=Path), help="A folder of results made elsewhere.")
@click.option("--attention", type=click.Choice(["textbook", "tiled"]),
              help="Which of refimpl's own two attentions.  [default: textbook]")
@device_option
@click.option("--dtype", type=click.Choice(DTYPES), default="float64", show_default=True, help="Sets the bound.")
@click.option("--time-limit", type=click.FloatRange(0, min_open=True), default=30.0, help="Seconds a case.  [default: 30]")
@click.option("--memory-limit", type=click.FloatRange(0, min_open=True), default=8.0,
              help="GiB that a process may ask for, inf = all there is; on Linux.  [default: 8]")
@click.option("--junit", type=click.Path(path_type=Path), callback=_writable, help="Also write JUnit XML to this file.")
@click.option("--markdown", type=click.Path(path_type=Path), callback=_writable, help="Also write Markdown to this file.")
@click.option("--html", type=click.Path(path_type=Path), callback=_writable, help="Also write a report as one HTML file.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on stdout.")
@debug_option
def verify(
    groups: tuple[str, ...], flags: tuple[str, ...], conventions: tuple[str, ...], ids: tuple[str, ...], adapter: str | None,
    program: str | None, results: Path | None, attention: str | None, device: str, dtype: str, time_limit: float,
    memory_limit: float, junit: Path | None, markdown: Path | None, html: Path | None, as_json: bool,
) -> None:
    """Hold an implementation to the vectors; without one, refimpl itself.

    Exit code 0: all pass. 1: a mismatch. 3: it crashed or ran out of time. 4: something was skipped or too coarse to check.

    \b
    refimpl golden verify --adapter mypackage.mymodule:adapter --group attention --convention published
    refimpl golden verify --command ./mine --dtype float32 --html report.html
    """
    from refimpl import console
    from refimpl.golden import reports
    from refimpl.golden.adapters import opened
    from refimpl.golden.processes import Limits
    from refimpl.golden.verify import Selection, exit_code, select
    from refimpl.golden.verify import verify as hold

    limits, entries = Limits(time_limit, memory_limit), select(Selection(groups, flags, conventions, ids))
    bar = click.progressbar(length=len(entries), file=sys.stderr, hidden=not sys.stderr.isatty())
    with opened(adapter, program, results, limits, attention, use_device(device)) as implementation, bar:
        run = hold(implementation, entries, dtype, tell=lambda verdict: bar.update(1))
    forms: list[tuple[Path | None, Callable[[Any], str]]] = [
        (junit, reports.junit), (markdown, reports.markdown), (html, reports.html)]
    for path, form in forms:
        if path is not None:
            path.write_text(form(run), encoding="utf-8")
    console.show(reports.as_json(run), reports.terminal(run), as_json)
    if code := exit_code(run):
        raise exits.EndedError(code)
