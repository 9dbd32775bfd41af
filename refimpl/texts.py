"""What `data` was asked for: a text fetched, prepared, described."""

import time
from pathlib import Path
from typing import Any

from refimpl import settings
from refimpl.config import DataConfig
from refimpl.datasets import fetch
from refimpl.datasets.corpus import open_corpus, prepare, with_defaults
from refimpl.datasets.held import Meter
from refimpl.datasets.published import ITEMS, fetched_folder


def describe(path: str, vocabulary: str | None, assignments: tuple[str, ...], store: Path) -> dict[str, Any]:
    """The result of `data info`; a published text that was fetched was held to its checksums as it was opened."""
    config = _config(path, vocabulary, assignments)
    result = open_corpus(config, store).describe()
    return {**result, "checksums": "as published"} if config.path in ITEMS else result


def prepare_text(
    path: str, vocabulary: str | None, assignments: tuple[str, ...], store: Path, out: Path | None
) -> dict[str, Any]:
    """The result of `data prepare`: the text encoded into a folder, or into the store."""
    config, start = _config(path, vocabulary, assignments), time.monotonic()
    corpus = open_corpus(config, store) if out is None else prepare(config, store, out)
    seconds = time.monotonic() - start
    return {**corpus.describe(), "folder": str(corpus.folder), "seconds": seconds}


def fetch_text(
    name: str, out: Path | None, store: Path, url: str | None, given: Path | None, decimal: bool, meter: Meter
) -> dict[str, Any]:
    """The result of `data fetch`; decimal: with the files that the published preparation makes."""
    folder = out or fetched_folder(name, store)
    if decimal:
        fetch.check_decimal(ITEMS[name])
    result = fetch.fetch(ITEMS[name], folder, meter, url, given)
    return {**result, "decimal": str(fetch.write_decimal(ITEMS[name], folder))} if decimal else result


def _config(path: str, vocabulary: str | None, assignments: tuple[str, ...]) -> DataConfig:
    values = {"path": path} if vocabulary is None else {"path": path, "vocabulary": vocabulary}
    return DataConfig(**with_defaults(settings.override({"data": values}, assignments)["data"]))
