"""The pytest plugin: a test for each case with --refimpl-adapter, and nothing at all without it."""

import os
import subprocess
import sys
import textwrap

import pytest

RIGHT = """
import numpy as np

def adapter(function, settings, inputs):
    if function == "softmax":
        return None
    if function == "embedding":
        if inputs["tokens"].max() >= len(inputs["table"]):
            raise ValueError
        os_exit()
    x, w, d = inputs["x"], inputs["weight"], inputs["d_y"]
    rows, d_rows = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
    return {"y": x @ w.T + inputs["bias"], "d_x": d @ w, "d_weight": d_rows.T @ rows, "d_bias": d_rows.sum(0)}

def os_exit():
    import os
    os._exit(3)

adapter.functions = ["linear", "softmax", "embedding"]
"""


@pytest.fixture
def tests(tmp_path):
    """tests(source, *options): how pytest ends in a folder with that module `mine` and one test of its own."""

    def run(source, *options):
        (tmp_path / "mine.py").write_text(textwrap.dedent(source))
        (tmp_path / "test_own.py").write_text("def test_own():\n    pass\n")
        line = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"})

    return run


def test_each_case_is_a_test_beside_the_users_own(tests):
    done = tests(RIGHT, "--refimpl-adapter", "mine:adapter", "--refimpl-group", "linear")
    assert done.returncode == 0, done.stdout
    assert "4 passed" in done.stdout
    assert "linear/one-by-one" in done.stdout


def test_wrong_skipped_and_crashed_cases(tests):
    done = tests(RIGHT.replace("d_rows.sum(0)", "d_rows.mean(0)"), "--refimpl-adapter", "mine:adapter")
    assert done.returncode == 1
    assert "6 failed, 2 passed, 4 skipped" in done.stdout, done.stdout
    assert "MISMATCH: d_bias[" in done.stdout
    assert "match bias-gradient-averaged" in done.stdout
    assert "CRASHED: the process ended with exit code 3" in done.stdout
    assert "SKIPPED: not implemented" in done.stdout


def test_cases_are_chosen_by_name_and_dtype(tests):
    done = tests(RIGHT, "--refimpl-adapter", "mine:adapter", "--refimpl-dtype", "float32", "-k", "wide")
    assert "1 passed" in done.stdout
    assert "deselected" in done.stdout


@pytest.mark.parametrize(("options", "said"), [
    (["--refimpl-adapter", "mine:nothing"], "expected a function nothing in mine"),
    (["--refimpl-adapter", "mine:adapter", "--refimpl-group", "linea"], "--group: expected one of"),
    (["--refimpl-adapter", "mine:adapter", "--refimpl-command", "x"], "expected one of --adapter, --command"),
])
def test_what_can_not_be_tested_is_a_usage_error(tests, options, said):
    done = tests(RIGHT, *options)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert said in done.stderr


def test_without_the_option_nothing_is_imported_but_the_plugin(tests, tmp_path):
    (tmp_path / "conftest.py").write_text(textwrap.dedent("""
        import sys

        def pytest_unconfigure(config):
            print("IMPORTED", sorted(name for name in sys.modules if name.partition(".")[0] in ("refimpl", "numpy")))
    """))
    done = tests(RIGHT)
    assert "IMPORTED ['refimpl', 'refimpl.golden', 'refimpl.golden.pytest_plugin']" in done.stdout
    assert "1 passed" in done.stdout
