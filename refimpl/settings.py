"""Settings from TOML files, presets and `--set`, and back to TOML: [model], [train] and [data] tables."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from refimpl import durable
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.errors import InputError

TABLES = {"model": ModelConfig, "train": TrainConfig, "data": DataConfig}
PRESETS = Path(__file__).parent / "presets"
LARGEST = 1 << 20  # bytes of a settings file
DOTS = 200  # in a key: the parser takes a minute for one of some ten thousand parts, and a key has none
SEAL = "# SHA-256 of what follows (to change it, remove this line): "

Tables = dict[str, dict[str, Any]]


def preset_names() -> list[str]:
    """The presets that come with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset(name: str) -> Tables:
    """A preset's tables. Raises InputError, with the nearest known name, for an unknown one."""
    known = preset_names()
    if name not in known:
        raise InputError(f"preset: expected one of {', '.join(known)}, got {name!r}{_nearest(name, known)}")
    return read(PRESETS / f"{name}.toml")


def read(path: Path) -> Tables:
    """The tables of a TOML file. Raises InputError for a file that is not TOML, and for an unknown table or key.

    A file that `to_toml` wrote begins with its checksum, and is refused if it was altered.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a TOML file, got {'a folder' if path.is_dir() else 'nothing of that name'}")
    try:
        text = durable.read(path, LARGEST, f"a TOML file of at most {LARGEST} bytes").decode()
        if any(line.partition("=")[0].count(".") > DOTS for line in text.splitlines()):
            raise ValueError(f"a key of more than {DOTS} parts")
        found = tomllib.loads(text)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected TOML, got {error}") from error
    first, _, rest = text.partition("\n")
    if ("SHA-256 of what" in text or "remove this line" in text) and first != _seal(rest):
        raise InputError(f"{path}: expected the SHA-256 of its first line, got {_seal(rest)[len(SEAL):]}: the file was "
                         f"altered (remove that line if you have changed it)")
    for table, values in found.items():
        if table not in TABLES or not isinstance(values, dict):
            raise InputError(f"{path}: expected tables {', '.join(TABLES)}, got {table!r}{_nearest(table, TABLES)}")
        for key in values:
            check_key(table, key, f"{path}: ")
    return {table: dict(found.get(table, {})) for table in TABLES}


def override(tables: Tables, assignments: Iterable[str]) -> Tables:
    """The tables with each `table.key=value` put in; the value is TOML, or else a plain word."""
    result = {table: dict(tables.get(table, {})) for table in TABLES}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        table, dot, key = name.strip().partition(".")
        if not equals or not dot or table not in TABLES:
            raise InputError(f"--set: expected model.KEY=VALUE, train.KEY=VALUE or data.KEY=VALUE, got {assignment!r}")
        check_key(table, key, "--set: ")
        try:
            result[table][key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            result[table][key] = _number_or_word(text.strip())
    return result


def _number_or_word(text: str) -> float | str:
    """What is not TOML: .5 is a number all the same."""
    try:
        return float(text)
    except ValueError:
        return text


def check_key(table: str, key: str, where: str = "") -> None:
    """Raises InputError, with the nearest known key, unless the table has this key."""
    known = [field.name for field in fields(TABLES[table])]
    if key not in known:
        raise InputError(f"{where}unknown key {table}.{key}{_nearest(key, known, f'{table}.')}; expected one of "
                         f"{', '.join(known)}")


def model_config(values: Mapping[str, Any]) -> ModelConfig:
    """A ModelConfig from a [model] table. Raises InputError that names a required key that is missing."""
    for field in fields(ModelConfig):
        if field.default is MISSING and field.name not in values:
            raise InputError(f"model.{field.name}: expected a value, got none")
    return ModelConfig(**values)


def to_toml(model: ModelConfig, train: TrainConfig, data: DataConfig) -> str:
    """Every setting, as a file that `read` takes, with its checksum in the first line."""
    lines = []
    for table, config in (("model", model), ("train", train), ("data", data)):
        lines.append(f"[{table}]")
        # a JSON number, string, boolean or list of numbers is TOML too, but for the one control character that JSON leaves
        content = {key: json.dumps(value, ensure_ascii=False) for key, value in asdict(config).items()}
        lines += [f"{key} = {value}".replace("\x7f", "\\u007f") for key, value in content.items()]
        lines.append("")
    text = "\n".join(lines)
    return f"{_seal(text)}\n{text}"


def _seal(text: str) -> str:
    return SEAL + hashlib.sha256(text.encode()).hexdigest()


def _nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (nearest: {prefix}{near[0]})" if near else ""
