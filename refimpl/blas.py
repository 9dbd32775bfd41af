"""Which kernels NumPy's OpenBLAS uses: measured once, and applied by starting the command again with a variable set.

OpenBLAS reads OPENBLAS_CORETYPE when NumPy is imported. On its own it takes Haswell kernels on newer AMD processors, where
those for AVX-512, SkylakeX, may be nearly twice as fast. What the user has set is never changed unless by name.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

from refimpl.errors import InputError

VARIABLE = "OPENBLAS_CORETYPE"
APPLIED = "REFIMPL_BLAS_APPLIED"  # set beside VARIABLE by `restart`, so that the process that follows does not start again
DEFAULT, OTHER = "default", "SkylakeX"
MARGIN = 1.1  # a gain below a tenth may be noise, and a second start costs a tenth of a second
LIMIT = 5.0  # seconds; a candidate takes about 0.2
PROGRAM = Path(__file__).with_name("blas_candidate.py")
AVX512 = {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}  # what SkylakeX kernels use


class Machine(NamedTuple):
    """What the choice depends on, and the folder where measurements are remembered."""

    environment: Mapping[str, str]
    processor: str
    has_avx512: bool
    build: str
    store: Path


class Measured(NamedTuple):
    """A candidate's GFLOP/s, float32 on one thread; or why it can't be used, "" if it can."""

    speed: float
    problem: str


class Choice(NamedTuple):
    """The kernels to start again with, None to go on with those at hand; and why, for people."""

    kernels: str | None
    reason: str


def this_machine(store: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """This machine's. Only Linux tells of AVX-512; NumPy is described by its package, not imported: that takes longer."""
    try:
        first = cpuinfo.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        first = ""
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    names = [told.get(name, "") for name in ("vendor_id", "cpu family", "model", "stepping", "model name")]
    wide = platform.machine() == "x86_64" and set(told.get("flags", "").split()) >= AVX512
    try:
        package = distribution("numpy")
        files = hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()[:16]  # BLAS's file among them
        build = f"numpy {package.version}, files {files}"
    except PackageNotFoundError:
        build = "numpy"
    return Machine(os.environ, " ".join(names) or platform.processor(), wide, build, store)


def measure(kernels: str, environment: Mapping[str, str], program: Path = PROGRAM, limit: float = LIMIT) -> Measured:
    """Runs one candidate. A crash, a wrong product, kernels other than those asked for and a time-out are problems."""
    asked = {} if kernels == DEFAULT else {VARIABLE: kernels}
    try:
        done = subprocess.run([sys.executable, "-P", str(program)], env={**environment, **asked}, timeout=limit,
                              stdin=subprocess.DEVNULL, capture_output=True, check=False)
        told = json.loads(done.stdout) if done.returncode == 0 else {}
        found, speed = told.get("architecture"), float(told.get("speed", 0))
    except subprocess.TimeoutExpired:
        return Measured(0.0, f"nothing within {limit:g} s")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        return Measured(0.0, f"no measurement: {error}")
    if done.returncode:
        return Measured(0.0, f"a crash, exit status {done.returncode}")
    if asked and str(found).lower() != kernels.lower():
        return Measured(0.0, f"{found} of {told.get('library')}")
    return Measured(speed, "") if told.get("right") is True else Measured(0.0, "wrong products")


def choose(asked: str, here: Machine, run: Callable[[str, Mapping[str, str]], Measured] = measure) -> Choice:
    """What `--blas-kernels` asks for: auto, default or a name. Raises InputError for a name whose kernels can't be used."""
    theirs, applied = here.environment.get(VARIABLE), here.environment.get(APPLIED)
    if asked == "auto" and applied:
        return Choice(None, f"{applied}, with which the command was started again")
    if theirs and (asked in ("auto", DEFAULT) or asked == theirs):
        return Choice(None, f"{theirs}: {VARIABLE} is set in the environment")
    if asked == DEFAULT:
        return Choice(None, "OpenBLAS's own choice, as asked for")
    if asked != "auto":
        found = _results(here, (asked,), run)[asked]
        if found.problem:
            raise InputError(f"--blas-kernels {asked}: expected kernels that work here, got {found.problem}")
        return Choice(asked, f"{asked}, as asked for")
    if not here.has_avx512:
        return Choice(None, "OpenBLAS's own choice; there are no others to try on this processor")
    results = _results(here, (DEFAULT, OTHER), run)
    usual, other = results[DEFAULT], results[OTHER]
    if other.problem:
        return Choice(None, f"OpenBLAS's own choice; {OTHER} gave {other.problem}")
    figures = f"{OTHER} {other.speed:.0f}, its own {usual.speed:.0f} GFLOP/s on one thread"
    if other.speed > MARGIN * usual.speed:
        return Choice(OTHER, f"{OTHER}; {figures}")
    return Choice(None, f"OpenBLAS's own choice; {figures}")


def _results(
    here: Machine, names: tuple[str, ...], run: Callable[[str, Mapping[str, str]], Measured]
) -> dict[str, Measured]:
    """The candidates' measurements; those that are not remembered are made, and remembered."""
    results = remembered(here)
    if all(name in results for name in names):
        return results
    with _measuring(here.store):
        results = remembered(here)
        missing = [name for name in names if name not in results]
        if missing:
            results |= {name: run(name, here.environment) for name in missing}
            remember(here, results)
    return results


@contextmanager
def _measuring(store: Path) -> Iterator[None]:
    """One process at a time: those that start together, as ranks do, would slow each other and choose differently."""
    with ExitStack() as stack:
        with suppress(OSError, ImportError):  # no such store, no such locks: each measures for itself
            import fcntl

            store.mkdir(parents=True, exist_ok=True)
            folder = os.open(store, os.O_RDONLY)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _memory(here: Machine) -> tuple[Path, dict[str, str]]:
    """The file of this processor and NumPy build, and what it says of them: home folders are shared between machines."""
    about = {"processor": here.processor, "build": here.build}
    return here.store / f"kernels-{hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]}.json", about


def remembered(here: Machine) -> dict[str, Measured]:
    """Measurements by candidate; {} if there is no file, or one that is not ours."""
    path, about = _memory(here)
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        found = {str(name): Measured(float(speed), str(problem)) for name, (speed, problem) in content["measured"].items()}
        return found if {key: content[key] for key in about} == about else {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def remember(here: Machine, results: Mapping[str, Measured]) -> None:
    """Writes the measurements whole or not at all; where nothing can be written they are made again the next time."""
    path, about = _memory(here)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(json.dumps({**about, "measured": results}, indent=1), encoding="utf-8")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def restart(kernels: str) -> str:
    """Starts the process's own command again with these kernels, in its place; returns only with why that can't be."""
    if os.name != "posix":
        return f"this system can't replace a process: set {VARIABLE}={kernels} before the command"
    sys.stdout.flush()
    sys.stderr.flush()
    environment = {**os.environ, VARIABLE: kernels, APPLIED: kernels}
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    except OSError as error:
        return f"the command could not be started again: {error}"
