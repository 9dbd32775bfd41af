"""`refimpl convert`: models from and to the files of others."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from refimpl.starts import as_json, options, store_folder, store_option


@click.group()
def convert() -> None:
    """Take a model from another implementation's file, or give it one.

    \b
    refimpl convert adaptive-span checkpoint.pt --preset enwik8 --out runs/published
    refimpl convert adaptive-span runs/mine --out mine.pt
    refimpl convert safetensors runs/mine --out mine.safetensors
    """


conversion_options = options(
    click.argument("source", type=click.Path(path_type=Path)),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="A new run's folder, or a new file."),
    click.option("--data", "data_path", help="The model's text: gives a run its vocabulary, and lets it be trained on."),
    store_option,
    click.option("--set", "assignments", multiple=True, metavar="TABLE.KEY=VALUE",
                 help="A setting that the file does not tell; repeatable."),
)


@convert.command("adaptive-span")
@conversion_options
@click.option("--preset", help="Settings that the tensors do not tell.  [default: the nearest published run's]")
@click.option("--no-optimizer", is_flag=True, help="Leave the optimiser's state.")
@as_json
def adaptive_span(
    source: Path, out: Path, data_path: str | None, store: Path | None, assignments: tuple[str, ...], preset: str | None,
    no_optimizer: bool, as_json: bool,
) -> None:
    """A checkpoint of the published code becomes a run; a run's folder becomes a state dict under the published names.

    Sizes are read from the tensors. Nothing in the file is run.

    \b
    refimpl convert adaptive-span checkpoint.pt --preset enwik8 --data enwik8.txt --out runs/published
    refimpl convert adaptive-span runs/published --out again.pt
    """
    from refimpl.conversions import Request

    _convert("adaptive-span", Request(source, out, preset, assignments, data_path, not no_optimizer, store_folder(store)),
             as_json)


@convert.command("safetensors")
@conversion_options
@as_json
def plain(
    source: Path, out: Path, data_path: str | None, store: Path | None, assignments: tuple[str, ...], as_json: bool,
) -> None:
    """A run's folder becomes one safetensors file, our names with settings and vocabulary in its metadata; or the reverse.

    \b
    refimpl convert safetensors runs/mine --out mine.safetensors
    refimpl convert safetensors mine.safetensors --out runs/again
    """
    from refimpl.conversions import Request

    _convert("safetensors", Request(source, out, None, assignments, data_path, True, store_folder(store)), as_json)


def _convert(kind: str, request: Any, as_json: bool) -> None:
    from refimpl import console, conversions

    if request.source.is_dir():
        result = conversions.from_run(kind, request)
        for reason in result["passed_over"]:
            console.note(f"refimpl: passed over a damaged checkpoint: {reason}; using {result['source']}")
    else:
        result = conversions.to_run(kind, request)
    console.show(result, _text(result), as_json)


def _text(result: Mapping[str, Any]) -> str:
    """What was made of what, and, of a published checkpoint, where each setting comes from."""
    from refimpl import console

    rows = [("parameters", f"{result['parameters']:,}")]
    if "told" in result:
        rows.append(("the tensors tell", _settings(result["told"])))
        rows.append(("they do not tell", f"{_settings(result['assumed'])} (preset {result['preset']}, --set)"))
    if "checkpoint" in result:
        state = result["optimizer"]
        rows.append(("optimiser", f"{state['kind']} after {state['updates']:,} updates" if state else "no state"))
        rows.append(("vocabulary", f"{result['vocabulary']:,}" if result["vocabulary"] else
                     "none: eval and train need --data here, or eval --data"))
        if result["passed_over"]:
            rows.append(("left in the file", console.printable(", ".join(result["passed_over"]))))
    rows.append(("written", result.get("checkpoint") or result["file"]))
    return "\n".join(f"{name:<18}{value}" for name, value in rows)


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {list(value) if isinstance(value, tuple) else value}" for key, value in values.items())
