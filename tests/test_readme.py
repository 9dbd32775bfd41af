"""What the README says holds: its example runs, its settings are read, its commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from refimpl import settings
from refimpl.cli import commands
from refimpl.config import DataConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language, containing=""):
    (found,) = (text for text in re.findall(rf"```{language}\n(.*?)```", README, re.S) if containing in text)
    return found


def test_the_example_prints_an_exact_gradient(capsys):
    exec(compile(block("python", "model.backward"), "README.md", "exec"), {})
    error = float(capsys.readouterr().out.rpartition(" ")[2])
    assert error < 1e-12


def test_the_example_checks_a_users_own_gradients(capsys):
    source = block("python", "def vjp")
    exec(compile(source, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("PASS")
    exec(compile(source.replace("d @ w.T", "1.001 * d @ w.T"), "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("FAIL")


def test_the_settings_are_read(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text(block("toml"))
    tables = settings.read(path)
    config = settings.model_config({"vocabulary": 100, **tables["model"]})
    assert (config.variant, config.width) == ("all-attention", 256)
    TrainConfig(**tables["train"])
    DataConfig(**tables["data"])


NAMES = "train|eval|generate|report|data|info|bench|golden"


@pytest.mark.parametrize("line", sorted(set(re.findall(rf"refimpl ((?:{NAMES})\b[^`\n#]*)", README))))
def test_the_commands_have_these_options(line):
    first, *words = line.split()
    command = commands.commands[first]
    if first == "golden":
        command = command.commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts if isinstance(parameter, click.Option)}
    assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_drawing_names_files_that_exist():
    drawing = README.partition("## The house")[2]
    for name in set(re.findall(r"[\w/]+\.py", drawing)):
        assert any((ROOT / folder / name).is_file() for folder in ("", "refimpl", "refimpl/layers", "tests")), name


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """verify(adapter's text): how the README's command ends, run where nothing of refimpl is but its installed wheel."""
    built, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)], cwd=ROOT, check=True)
    (wheel,) = built.glob("*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--disable-pip-version-check",
                    "--target", str(site), str(wheel)], check=True)
    (line,) = re.findall(r"^refimpl golden verify --adapter mine:adapter", README, re.M)

    def verify(text):
        mine = tmp_path_factory.mktemp("mine")
        (mine / "mine.py").write_text(text)
        environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONWARNINGS": "error",
                       "PATH": os.pathsep.join([str(site / "bin"), os.environ["PATH"]])}
        return subprocess.run(line, cwd=mine, env=environment, capture_output=True, text=True, shell=True)

    return verify


def test_from_the_wheel_to_a_verdict_in_ten_lines(installed):
    adapter = block("python", "def adapter")
    assert len(adapter.splitlines()) <= 11
    done = installed(adapter)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 cases, 5 pass" in done.stdout


def test_the_mistake_that_the_readme_makes_is_named_in_its_words(installed):
    adapter = block("python", "def adapter")
    wrong = adapter.replace("x.var(-1, keepdims=True)", "x.var(-1, keepdims=True, ddof=1)")
    assert wrong != adapter
    done = installed(wrong)
    assert done.returncode == 1
    said = re.escape(block("text")).replace(r"1e\-16", r"(\de-1\d|the last digit)")
    assert re.search(said, done.stdout), done.stdout


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_two_commands_are_in_the_makefile(target):
    assert f"make {target}" in README
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_continuous_integration_calls_the_readmes_test_command():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
