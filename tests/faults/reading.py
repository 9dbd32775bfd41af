"""Damaged files, read by the commands in a process with 1 GB to spare and 10 seconds for each.

python tests/faults/reading.py [COUNT] [SEED] [TARGET …]: as many files of every target, or of those named. Figures as JSON.
"""

import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import damage
from outcome import asked, call, judged
from prepared_texts import Archives, PreparedTexts, TextsToPrepare

from refimpl import checkpoint, settings
from refimpl.errors import InputError
from refimpl.golden import exchange, vectors

ROOM, SECONDS = 1 << 30, 10
SETTINGS = ("model.width=8", "model.heads=2", "model.layers=1", "model.span=8", "model.span_ramp=4", "model.memory=2",
            "train.batch=2", "train.block=8", "train.updates=3", "train.last_updates=0", "train.warm_up=0",
            "train.evaluate_every=1", "train.evaluate_tokens=64", "train.checkpoint_every=1")
HAND_WRITTEN = """\
# a small model
[model]
vocabulary = 61
width = 32      # D
heads = 4
layers = 3
span = 48
memory = 5

[train]
optimizer = "adam"
learning_rate = 0.0025
updates = 2000
"""


class Checkpoints:
    """Files of a checkpoint; signed: with checksums that fit, so that all that is behind them is reached."""

    def __init__(self, folder: Path, sign: bool = False) -> None:
        code, lines = call("train", "--out", folder / "run", *(word for value in SETTINGS for word in ("--set", value)))
        assert code == 0, lines
        self.whole, self.trial, self.sign = checkpoint.load(folder / "run"), folder / "trial", sign
        assert self.whole.path is not None
        shutil.copytree(self.whole.path, self.trial)
        self.files = {path.name: path.read_bytes() for path in sorted(self.trial.iterdir())}

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it) for one of the files in turn."""
        names = [name for name in self.files if not self.sign or name != checkpoint.MANIFEST]
        name = names[number % len(names)]
        kind, content = damage.damaged(self.files[name], seed, number)
        (self.trial / name).write_bytes(content)
        if self.sign:
            (self.trial / checkpoint.MANIFEST).write_bytes(damage.signed(self.files[checkpoint.MANIFEST], name, content))
        found = judged(*call("generate", self.trial, "--length", "0"), same=False)
        if self.sign and found == "accepted":  # what generate leaves on the disk a resumed run reads
            found = asked(lambda: checkpoint.load(self.trial), (InputError,))[0] or "another one's"
        for changed in (name, checkpoint.MANIFEST):
            (self.trial / changed).write_bytes(self.files[changed])
        return kind, found


class Settings:
    """A settings file: a run's own, or one written by hand, which after damage may well be another one that is valid."""

    def __init__(self, folder: Path, by_hand: bool = False) -> None:
        self.file, self.by_hand = folder / "file.toml", by_hand
        self.content = HAND_WRITTEN.encode()
        if not by_hand:
            code, lines = call("train", "--out", folder / "run", *(word for value in SETTINGS for word in ("--set", value)))
            assert code == 0, lines
            self.content = (folder / "run" / "config.toml").read_bytes()
        self.file.write_bytes(self.content)
        self.tables = settings.read(self.file)

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it)."""
        kind, content = damage.damaged(self.content, seed, number)
        self.file.write_bytes(content)
        code, lines = call("train", "--config", self.file, "--dry-run")
        found = judged(code, lines, code == 0 and settings.read(self.file) == self.tables)
        return kind, "another one's" if self.by_hand and found == "accepted" else found


class GoldenVectors:
    """A group of the golden vectors: its manifest, its checksum and its tensors."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(vectors.FOLDER / "linear", folder / "linear")
        self.folder = folder
        self.files = {path.name: path.read_bytes() for path in sorted((folder / "linear").iterdir())}

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it); every second time it is the manifest's."""
        names = list(self.files)
        name = "manifest.json" if number % 2 else names[number // 2 % len(names)]
        kind, content = damage.damaged(self.files[name], seed, number)
        (self.folder / "linear" / name).write_bytes(content)
        found, _ = asked(lambda: [vectors.load_case(entry, self.folder) for entry in vectors.entries(self.folder)],
                         (InputError,))
        (self.folder / "linear" / name).write_bytes(self.files[name])
        return kind, found or "accepted"


class Exchanged:
    """What another's program hands in: results of a golden case, which no checksum protects."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        case = vectors.load_case(next(iter(vectors.entries())))
        exchange.write_case(folder / "case", case, "float64")
        exchange.write_results(folder / "out", case.results)
        self.files = {path: path.read_bytes() for path in sorted(folder.glob("*/*"))}

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it) for one of the files in turn."""
        path = list(self.files)[number % len(self.files)]
        kind, content = damage.damaged(self.files[path], seed, number)
        path.write_bytes(content)
        errors = (InputError, exchange.BadResultsError, exchange.WrongNumbersError)
        read = (lambda: exchange.read_results(path, "float64")) if path.parent.name == "out" else (
            lambda: exchange.read_case(self.folder / "case"))
        found, _ = asked(read, errors)
        path.write_bytes(self.files[path])
        return kind, found or "another one's"


TARGETS: dict[str, Any] = {
    "checkpoints": Checkpoints,
    "checkpoints, checksums made to fit": lambda folder: Checkpoints(folder, sign=True),
    "settings of runs": Settings,
    "settings written by hand": lambda folder: Settings(folder, by_hand=True),
    "golden vectors": GoldenVectors,
    "golden cases and results of others": Exchanged,
    "prepared texts": PreparedTexts,
    "prepared texts, checksums made to fit": lambda folder: PreparedTexts(folder, sign=True),
    "texts to prepare": TextsToPrepare,
    "archives of texts, checksum made to fit": Archives,
}


def attempts(name: str, first: int, last: int, seed: int) -> Iterator[tuple[int, str, str, float]]:
    """(number, kind, outcome, seconds) of each, in this process, which is given 1 GB more than it has."""
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        target.attempt(0, seed)  # whatever is imported late
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + ROOM, resource.RLIM_INFINITY))
        for number in range(first, last):
            signal.alarm(SECONDS)
            start = time.monotonic()
            kind, outcome = target.attempt(number, seed)
            signal.alarm(0)
            yield number, kind, outcome, time.monotonic() - start


def campaign(name: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Figures of one target: outcomes, the slowest, and of what must not be the first cases. A crash counts, and goes on."""
    outcomes: Counter[str] = Counter()
    figures: dict[str, Any] = {"files": count, "slowest": 0.0, "first": []}
    done = 0
    while done < count:
        line = [sys.executable, __file__, "--worker", name, str(done), str(count), str(seed)]
        with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for text in process.stdout:
                number, kind, outcome, seconds = json.loads(text)
                done, figures["slowest"] = number + 1, max(figures["slowest"], seconds)
                outcomes[outcome.partition(":")[0]] += 1
                if outcome not in ("refused", "harmless", "another one's"):
                    figures["first"] = [*figures["first"], (number, kind, outcome)][:10]
        if done < count or process.returncode:
            outcomes["crashed"] += 1
            figures["first"] = [*figures["first"], (done, "", f"crashed with {process.returncode}")][:10]
            done += 1
    return {**figures, "slowest": round(figures["slowest"], 3), "outcomes": dict(outcomes)}


def main(count: int = 10_000, seed: int = 0, *names: str) -> dict[str, Any]:
    """All targets, or those named."""
    return {name: campaign(name, count, seed) for name in names or TARGETS}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        for row in attempts(sys.argv[2], *map(int, sys.argv[3:])):
            print(json.dumps(row), flush=True)
    else:
        print(json.dumps(main(*map(int, sys.argv[1:3]), *sys.argv[3:])))
