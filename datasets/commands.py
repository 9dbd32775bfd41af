"""`refimpl data`: parse, call, print."""

from pathlib import Path

import click

from refimpl.starts import as_json, store_folder, store_option


@click.group()
def data() -> None:
    """Texts: what they hold and how they are read."""


@data.command("info")
@click.argument("path", default="sample")
@click.option("--vocabulary", type=click.Choice(["byte", "character", "word"]), default="byte", show_default=True)
@click.option("--set", "assignments", multiple=True, metavar="data.KEY=VALUE", help="Override one setting; repeatable.")
@store_option
@as_json
def data_info(path: str, vocabulary: str, assignments: tuple[str, ...], store: Path | None, as_json: bool) -> None:
    """Tokens, vocabulary and hash of a text: a file, a folder with train, valid and test files, or `sample`.

    \b
    refimpl data info my.txt --vocabulary word --set 'data.unknown=<unk>'
    """
    from refimpl import console, results

    result = results.describe_text(path, vocabulary, assignments, store_folder(store))
    console.show(result, console.corpus_text(result), as_json)
