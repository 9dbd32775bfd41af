"""A failing check as one file: the point, the cotangent and the settings, enough to run it again."""

import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl.gradcheck.errors import GradcheckError

SCHEMA = 1
META, ARGUMENT, COTANGENT = "meta", "argument ", "cotangent "


class Witness(NamedTuple):
    """arguments by name; cotangent by forward's outputs, alone if forward returns one array; settings of check_vjp."""

    arguments: Mapping[str, Any]
    cotangent: Any
    settings: Mapping[str, Any]
    verdict: Mapping[str, Any]


def save(path: str | os.PathLike[str], witness: Witness) -> Path:
    """Writes a .npz file without pickles, whole or not at all. A folder gets a file named after its content.

    A path without the suffix .npz is a folder, made if it is not there.
    """
    several = isinstance(witness.cotangent, tuple)
    cotangents = witness.cotangent if several else (witness.cotangent,)
    meta = json.dumps({"schema": SCHEMA, "several": several, "settings": witness.settings, "verdict": witness.verdict})
    arrays: dict[str, Any] = {ARGUMENT + name: array for name, array in witness.arguments.items()}
    arrays |= {f"{COTANGENT}{i}": array for i, array in enumerate(cotangents)}
    file = io.BytesIO()
    np.savez(file, **arrays | {META: np.array(meta)})
    data = file.getvalue()
    target = Path(path)
    if target.suffix != ".npz" or target.is_dir():
        digest = hashlib.sha256(meta.encode() + b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()))
        target = target / f"gradcheck-{digest.hexdigest()[:12]}.npz"
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, part = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
        os.replace(part, target)
    except BaseException:
        Path(part).unlink(missing_ok=True)
        raise
    return target


def load(path: str | os.PathLike[str]) -> Witness:
    """A witness from its file. Raises GradcheckError for a file that is none."""
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        meta = json.loads(str(arrays.pop(META)))
        schema = meta["schema"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise GradcheckError(f"{path}: expected a witness of a failed check, got {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise GradcheckError(f"{path}: expected a witness of schema {SCHEMA}, got {schema!r}")
    arguments = {name.removeprefix(ARGUMENT): a for name, a in arrays.items() if name.startswith(ARGUMENT)}
    cotangents = tuple(arrays[f"{COTANGENT}{i}"] for i in range(len(arrays) - len(arguments)))
    return Witness(arguments, cotangents if meta["several"] else cotangents[0], meta["settings"], meta["verdict"])
