"""`make gpu-check`: what it does without a GPU, and the file that it writes with one."""

import json
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    end = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), str(tmp_path / "found.md")],
                         capture_output=True, text=True)
    assert (end.returncode, end.stdout) == (3, "")
    assert end.stderr.startswith("gpu-check: not usable: ")
    assert end.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.fixture
def short(monkeypatch):
    """Steps that do nothing, one of which fails; the bench command's JSON."""
    def command(text, code=0):
        return [sys.executable, "-c", f"print({text!r}); raise SystemExit({code})"]

    steps = [gpu_check.Step("Works", command("fine")), gpu_check.Step("Fails", command("wrong", 1))]
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(gpu_check.opening, "report", lambda: "usable: gpu:0 of a test")
    told = json.dumps({"seconds": {"update": {"median": 0.5}, "A100": 0.25}})
    monkeypatch.setattr(gpu_check, "ratios", lambda *_: "half of it")
    monkeypatch.setattr(gpu_check, "REFIMPL", command(told))
    return steps


def test_with_one_it_writes_a_file_and_tells_what_failed(short, tmp_path, monkeypatch, capsys):
    path = tmp_path / "found.md"
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", str(path)])
    assert gpu_check.main() == 1
    text = path.read_text()
    for words in ("gpu:0 of a test", "| Works | passed |", "| Fails | exit status 1 |", "half of it", "fine", "wrong"):
        assert words in text
    assert "failed: ['Fails']" in capsys.readouterr().err
    short.pop()
    assert gpu_check.main() == 0


def test_the_measured_update_stands_beside_the_bounds():
    told = json.dumps({"span_initial": {"seconds": {"A100": 0.25}}})
    text = gpu_check.ratios(told, json.dumps({"seconds": {"update": {"median": 0.5}}}))
    assert "- A100: bound 250.00 ms, measured here 500.00 ms" in text


def test_the_tests_that_it_runs_are_there():
    end = subprocess.run([*gpu_check.STEPS[1].command, "--collect-only"], cwd=ROOT, capture_output=True, text=True)
    assert end.returncode == 0, end.stdout[-500:]
    assert end.stdout.count("::") > 200 or "tests collected" in end.stdout
