"""A file from the network: in one piece or not at all, with patience for what passes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refimpl import __version__
from refimpl.datasets.held import Held, Meter
from refimpl.datasets.published import File
from refimpl.errors import InputError, OutsideError

BLOCK = 1 << 16
OK = 200
AGAIN = {408, 425, 429, *range(500, 600)}
# a text that is packed already comes as it is; some servers refuse the names of libraries
HEADERS = {"Accept-Encoding": "identity", "User-Agent": f"refimpl/{__version__}"}


@dataclass(frozen=True)
class Patience:
    """Seconds before each further attempt, seconds without a byte that end one, and how to wait."""

    waits: tuple[float, ...] = (1.0, 3.0, 10.0)
    timeout: float = 30.0
    pause: Callable[[float], None] = time.sleep


class _PassingError(Exception):
    """A failure that may be gone at the next attempt."""


def download(url: str, file: File, folder: Path, meter: Meter, patience: Patience) -> Path:
    """The file, in that folder under its name once its size and checksums are right; else nothing stays.

    Attempts again after a lost connection, an answer cut off, silence, and errors of a server's own. Raises OutsideError for
    the last of these, without a connection, and for any other answer; OSError where the folder cannot be written.
    """
    try:
        import pooch
    except ImportError:
        raise InputError("data fetch: expected pooch to download with, got none (`pip install 'refimpl[fetch]'`, or --from "
                         "with a copy of the file)") from None
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(f"--url: expected an address that begins with http:// or https://, got {url!r}")
    pooch.get_logger().setLevel("ERROR")
    algorithm, value = next(iter(file.checksums.items()))

    def receive(address: str, path: str, _: Any) -> None:
        _receive(address, Path(path), file, meter, patience.timeout)

    for wait in (*patience.waits, None):
        try:
            return Path(pooch.retrieve(url, f"{algorithm}:{value}", file.name, folder, downloader=receive))
        except InputError as error:
            raise OutsideError(f"{error}; nothing was kept") from error
        except _PassingError as error:
            if wait is None:
                times = f"at each of {len(patience.waits) + 1} attempts"
                raise OutsideError(f"{error}, {times} (--from takes a copy of {file.name})") from error
            meter.note(f"{error}; once more in {wait:g} s")
            patience.pause(wait)
    raise AssertionError("the last attempt returns or raises")


def _receive(url: str, path: Path, file: File, meter: Meter, timeout: float) -> None:
    """Writes one answer. Raises InputError for another file's bytes, OutsideError or _PassingError for none."""
    import requests
    import urllib3

    held = Held(file, url)
    try:
        with requests.get(url, stream=True, timeout=timeout, headers=HEADERS) as answer, path.open("wb") as out:
            _check_status(answer.status_code, f"{url}: expected {file.name}, got {answer.status_code} {answer.reason}")
            told = answer.headers.get("Content-Length", "")
            if told.isdecimal() and len(told) < 20 and int(told) != file.size:
                raise InputError(f"{url}: expected {file.size:,} bytes, got an answer of {int(told):,}")
            meter.begin(file.name, file.size)
            for block in answer.iter_content(BLOCK):
                held.add(block)
                out.write(block)
                meter.add(len(block))
    except requests.exceptions.SSLError as error:
        raise OutsideError(f"{url}: expected a server with a certificate that holds, got {_reason(error)}") from error
    except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
        if isinstance(_cause(error), urllib3.exceptions.MaxRetryError):  # no connection at all: no use in waiting
            raise OutsideError(f"{url}: expected a server to connect to, got {_reason(error)} (no network? --from takes a "
                               f"copy of {file.name})") from error
        raise _PassingError(f"{url}: expected {file.name}, got {_reason(error)}") from error
    except requests.RequestException as error:
        raise OutsideError(f"{url}: expected an answer, got {_reason(error)}") from error
    if held.size < file.size:
        raise _PassingError(f"{url}: expected {file.size:,} bytes, got {held.size:,}")
    held.end()


def _check_status(status: int, message: str) -> None:
    if status in AGAIN:
        raise _PassingError(message)
    if status != OK:
        raise OutsideError(f"{message} (--url takes another place, --from a copy)")


def _reason(error: Exception) -> str:
    """What lies at the bottom of the network library's nested errors, in a line."""
    cause = _cause(error)
    cause = getattr(cause, "reason", None) or cause
    if len(cause.args) > 1 and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    text = " ".join(str(cause).split())
    return (text.rpartition(": ")[2] or text)[:200]


def _cause(error: Exception) -> Any:
    return error.args[0] if error.args and isinstance(error.args[0], Exception) else error
