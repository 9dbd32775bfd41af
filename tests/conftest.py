"""What several test files share, as fixtures: tests can't import one another."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import numpy as np
import pytest

from refimpl.cli import main
from refimpl.golden import exchange
from refimpl.golden.adapters import Answer
from refimpl.golden.vectors import Stored
from refimpl.gradcheck.complex_step import gradient, norm_wise_error

os.environ["REFIMPL_BLAS_KERNELS"] = "default"  # kernels are measured, and commands started again, only where a test says so

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# The complex step has no truncation error: what is left is the rounding of two computations of a few hundred terms,
# about 1e-15 each relative to the tensor's norm.
EXACT = 1e-12


def pair_errors(
    forward: Callable[..., Any], backward: Callable[..., Sequence[Any]], arguments: Sequence[Any], seed: int
) -> list[float]:
    """Norm-wise relative error of each gradient in backward(dy, *arguments) against the complex step of Σ dy · forward.

    dy is a random cotangent: with ones a sum over softmax's rows would hide errors.
    """
    dy = np.random.default_rng(seed).standard_normal(np.shape(forward(*arguments)))
    found = backward(dy, *arguments)
    assert len(found) == len(arguments)
    errors = []
    for i, (d_argument, argument) in enumerate(zip(found, arguments, strict=True)):

        def scalar(moved: Any, i: int = i) -> Any:
            return (forward(*arguments[:i], moved, *arguments[i + 1 :]) * dy).sum()

        assert d_argument.dtype == argument.dtype
        errors.append(norm_wise_error(d_argument, gradient(scalar, argument)))
    return errors


@pytest.fixture
def check_pair() -> Callable[..., None]:
    """check_pair(forward, backward, arguments, seed=0): every gradient within 1e-12 of the complex step."""

    def check(forward: Any, backward: Any, arguments: Sequence[Any], seed: int = 0) -> None:
        errors = pair_errors(forward, backward, arguments, seed)
        assert max(errors) <= EXACT, errors

    return check


@pytest.fixture
def errors_of_pair() -> Callable[..., list[float]]:
    """The same errors, for tests that expect a check to fail."""
    return pair_errors


class Ended(NamedTuple):
    """How a command ended: its exit code and what it wrote."""

    code: int
    out: str
    err: str


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands of a test keep encoded texts: never in the user's own folders."""
    monkeypatch.setenv("REFIMPL_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def command(store: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """command("eval", run, "--json"): the command run in this process."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        return Ended(int(end.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 60 lines of seven words each, 1.7 kB; all twelve words occur in its first 90 %."""
    rng = np.random.default_rng(5)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "home"]
    lines = [" ".join(rng.choice(words, 7)) for _ in range(60)]
    path = tmp_path / "text.txt"
    path.write_bytes(("\n".join(lines) + "\n").encode())
    return path


@pytest.fixture
def tiny() -> list[str]:
    """Options of `train` for a model of a few hundred parameters and six updates."""
    values = ["model.width=8", "model.heads=2", "model.layers=1", "model.span=8", "model.span_ramp=4", "model.memory=2",
              "train.batch=2", "train.block=8", "train.updates=6", "train.last_updates=0", "train.warm_up=0",
              "train.workers=1", "train.log_every=2", "train.evaluate_every=0", "train.checkpoint_every=0"]
    return [word for value in values for word in ("--set", value)]


@pytest.fixture
def trained(tmp_path: Path, text: Path, tiny: list[str], command: Callable[..., Ended]) -> Path:
    """The folder of a run of six updates on the text's bytes."""
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny)
    assert end.code == 0, end.err
    return tmp_path / "run"


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[], dict[str, bytes | None]]:
    """tree(): every file below tmp_path with its content, and every folder, but not the store itself."""

    def look() -> dict[str, bytes | None]:
        return {str(path.relative_to(tmp_path)): path.read_bytes() if path.is_file() else None
                for path in sorted(tmp_path.rglob("*")) if path != tmp_path / "store"}

    return look


class InProcess:
    """An adapter's function without the process around it: what golden.adapters.Function does, faster."""

    def __init__(self, function: Callable[..., Any]) -> None:
        declared: Any = function
        self.name, self.functions, self._function = "in process", frozenset(declared.functions), function

    def answer(self, case: Stored, dtype: str) -> Answer:
        """Results, or what the worker would tell of the error."""
        inputs = exchange.inputs_in(case, dtype)
        try:
            return Answer("results", self._function(case.entry["function"], case.entry["settings"], inputs))
        except NotImplementedError as error:
            return Answer("skipped", {}, str(error))
        except Exception as error:
            return Answer("refused", {}, f"{type(error).__name__}: {error}")


@pytest.fixture(scope="session")
def in_process() -> type[InProcess]:
    """in_process(function): an adapter for golden.verify."""
    return InProcess


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """changed(package, file, old, new): an adapter's package, imported anew with one of its lines changed."""

    def load(package: Any, file: str, old: str, new: str) -> Any:
        folder = tmp_path / "with_an_error"
        shutil.copytree(Path(package.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__"))
        text = (folder / file).read_text(encoding="utf-8")
        assert text.count(old) == 1
        (folder / file).write_text(text.replace(old, new), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        try:
            return importlib.import_module(folder.name)
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == folder.name]:
                del sys.modules[name]

    return load
