"""`refimpl data`: parse, call, print."""

from pathlib import Path

import click

from refimpl.datasets.published import ITEMS
from refimpl.errors import InputError
from refimpl.starts import as_json, store_folder, store_option

vocabulary_option = click.option("--vocabulary", type=click.Choice(["byte", "character", "word"]),
                                 help="What a token is.  [default: byte, or as the text was prepared or is known for]")
set_option = click.option("--set", "assignments", multiple=True, metavar="data.KEY=VALUE",
                          help="Override one setting; repeatable.")


@click.group()
def data() -> None:
    """Texts: fetched, prepared, and what they hold."""


@data.command("fetch")
@click.argument("name", type=click.Choice([*ITEMS]))
@click.option("--url", help="Another place than the usual one; the checksums stay.")
@click.option("--from", "given", type=click.Path(path_type=Path), metavar="FILE",
              help="A copy that is here already: the archive, or what it holds.")
@click.option("--out", type=click.Path(path_type=Path), help="A new or empty folder.  [default: where --data NAME looks]")
@click.option("--decimal", is_flag=True, help="enwik8: also write the published preparation, held to its checksums.")
@store_option
@as_json
def data_fetch(
    name: str, url: str | None, given: Path | None, out: Path | None, decimal: bool, store: Path | None, as_json: bool
) -> None:
    """Bring a published text: downloaded, held to its checksums, cut into train, valid and test.

    \b
    refimpl data fetch enwik8
    refimpl data fetch wikitext103 --from Downloads/wikitext-103-v1.zip --out texts/wikitext103
    """
    from refimpl import console, texts
    from refimpl.meter import TransferMeter

    if url is not None and given is not None:
        raise InputError("--url and --from: expected one of them, got both")
    if str(given).lower().startswith(("http:/", "https:/")):  # a path's double slash is one
        raise InputError("--from: expected a file, got an address, which --url takes")
    with TransferMeter() as meter:
        result = texts.fetch_text(name, out, store_folder(store), url, given, decimal, meter)
    console.show(result, console.fetched_text(result), as_json)


@data.command("prepare")
@click.argument("path", default="sample")
@vocabulary_option
@set_option
@click.option("--out", type=click.Path(path_type=Path),
              help="A new or empty folder, which --data then takes.  [default: where texts are kept once they are encoded]")
@store_option
@as_json
def data_prepare(
    path: str, vocabulary: str | None, assignments: tuple[str, ...], out: Path | None, store: Path | None, as_json: bool
) -> None:
    """Encode a text once: tokens to map into memory, their vocabulary, counts, conventions and hashes.

    \b
    refimpl data prepare enwik8 --set data.convention=published --out prepared/enwik8
    refimpl data prepare my.txt --vocabulary word --set 'data.unknown=<unk>'
    """
    from refimpl import console, texts

    result = texts.prepare_text(path, vocabulary, assignments, store_folder(store), out)
    console.show(result, f"{console.corpus_text(result)}\nin {result['folder']}, {result['seconds']:.1f} s", as_json)


@data.command("info")
@click.argument("path", default="sample")
@vocabulary_option
@set_option
@store_option
@as_json
def data_info(
    path: str, vocabulary: str | None, assignments: tuple[str, ...], store: Path | None, as_json: bool
) -> None:
    """Tokens, vocabulary, conventions and hash of a text: a file, a folder with train, valid and test files, one that was
    prepared, `sample`, or the name of one that was fetched.

    \b
    refimpl data info my.txt --vocabulary word --set 'data.unknown=<unk>'
    """
    from refimpl import console, texts

    result = texts.describe(path, vocabulary, assignments, store_folder(store))
    console.show(result, console.corpus_text(result), as_json)
