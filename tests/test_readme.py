"""What the README says holds: its example runs, its settings are read, its commands exist."""

import re
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


@pytest.mark.parametrize("line", sorted(set(re.findall(r"refimpl ((?:train|eval|generate|data|info)\b[^`\n#]*)", README))))
def test_the_commands_have_these_options(line):
    command = commands.commands[line.split()[0]]
    known = {option for parameter in command.params for option in parameter.opts if isinstance(parameter, click.Option)}
    assert set(re.findall(r"--[a-z-]+", line)) <= known


def test_the_drawing_names_files_that_exist():
    drawing = README.partition("## The house")[2]
    for name in set(re.findall(r"[\w/]+\.py", drawing)):
        assert any((ROOT / folder / name).is_file() for folder in ("", "refimpl", "refimpl/layers", "tests")), name


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_two_commands_are_in_the_makefile(target):
    assert f"make {target}" in README
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def test_continuous_integration_calls_the_readmes_test_command():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("\nmake test")
