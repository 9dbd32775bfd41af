"""`refimpl gradcheck`: what it checks, what it prints, and how it ends."""

import json
import textwrap

import pytest

from refimpl import settings
from refimpl.checks import run
from refimpl.layers import layer_norm, span

EXACT, EXTRAPOLATED = 1e-12, 1e-9


def report(command, *arguments):
    end = command("gradcheck", *arguments, "--json")
    return end.code, json.loads(end.out)


@pytest.mark.parametrize(("method", "limit"), [("complex-step", EXACT), ("richardson", EXTRAPOLATED)])
def test_every_pair_and_every_form_of_the_model_passes(command, method, limit):
    code, found = report(command, "all", "--method", method, *([] if method == "complex-step" else ["--directions", "3"]))
    assert code == found["exit_code"] == 0
    kinds = {entry["kind"] for entry in found["gradients"]}
    names = {entry["check"] for entry in found["gradients"]}
    assert kinds == {"pair", "model"}
    assert names == {*run.pair_checks(), *run.model_checks()}
    for entry in found["gradients"]:
        kink = entry["check"] == "span-at-kinks"
        assert entry["verdict"] == ("KINK" if kink else "PASS"), entry
        assert kink or entry["relative_error"] <= limit, entry
        assert kink or entry["controls_caught"] == entry["controls_planted"], entry


@pytest.mark.parametrize("dtype", ["float32", "longdouble"])
def test_gradients_of_other_dtypes_are_held_to_their_own_roundoff(command, dtype):
    code, found = report(command, "attention", "--dtype", dtype)
    assert code == 0
    assert {entry["dtype"] for entry in found["gradients"]} <= {dtype, "float128"}
    assert found["largest_relative_error"] < {"float32": 1e-4, "longdouble": 1e-15}[dtype]


def test_a_name_may_mean_a_pair_and_a_form_of_the_model(command):
    code, found = report(command, "head-split")
    assert code == 0
    assert {entry["kind"] for entry in found["gradients"]} == {"pair", "model"}


@pytest.mark.parametrize("name", ["enwik8-all-attention", "wikitext103-all-attention"])
def test_a_preset_is_scaled_down(command, name):
    assert name in settings.preset_names()
    assert report(command, name, "--directions", "2")[0] == 0


def test_a_file_of_settings_is_scaled_down(command, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[model]\nwidth = 64\nheads = 4\nlayers = 5\nspan = 128\nmemory = 16\nvariant = "attention-split"\n')
    code, found = report(command, path, "--directions", "2")
    assert code == 0
    assert {entry["check"] for entry in found["gradients"]} == {"mine", "mine-tiled"}


def test_the_table_names_every_gradient(command):
    end = command("gradcheck", "layer-norm")
    assert end.code == 0
    lines = end.out.splitlines()
    assert lines[0] == "layer-norm: PASS"
    assert lines[1].split() == ["verdict", "relative", "error", "limit", "noise", "floor", "margin", "controls"]
    assert [line.split()[0] for line in lines[2:5]] == ["x", "gain", "bias"]
    assert lines[-1].startswith("1 checks, 3 gradients; largest relative error of those that passed ")


def test_a_wrong_gradient_is_told_by_name_and_ends_with_1(command, monkeypatch):
    right = layer_norm.backward
    monkeypatch.setattr(layer_norm, "backward", lambda dy, saved: (right(dy, saved)[0] * 1.001, *right(dy, saved)[1:]))
    end = command("gradcheck", "layer-norm")
    assert end.code == 1
    assert "layer-norm: FAIL" in end.out
    code, found = report(command, "layer-norm")
    assert code == found["exit_code"] == 1
    assert [entry["verdict"] for entry in found["gradients"]] == ["FAIL", "PASS", "PASS"]


def test_a_gradient_outside_the_slopes_of_a_kink_fails_and_one_among_them_is_told(command, monkeypatch):
    code, found = report(command, "span-at-kinks")
    (entry,) = found["gradients"]
    assert (code, entry["verdict"]) == (0, "KINK")
    assert all(kink["among"] for kink in entry["kinks"])
    assert {(kink["left"] == pytest.approx(0), kink["right"] == pytest.approx(0)) for kink in entry["kinks"]} == {
        (True, False), (False, True)}
    right = span.mask_backward
    monkeypatch.setattr(span, "mask_backward", lambda d_mask, saved: -right(d_mask, saved))
    assert report(command, "span-at-kinks")[0] == 1


def test_what_could_not_be_decided_ends_with_4(command):
    """One unit of relu at size 1 may lie where it is 0 throughout: nothing is compared."""
    end = command("gradcheck", "relu", "--size", "1")
    assert end.code == 4
    assert "UNCHECKED" in end.out


@pytest.mark.parametrize(("arguments", "message"), [
    (["atention"], "did you mean attention?"),
    ([], "expected a name (`all` for everything) or --mine, got neither"),
    (["all", "--mine", "a:b"], "got both"),
    (["nowhere.toml"], "expected a TOML file"),
    (["all", "--directions", "0"], "expected full or a number of 1 or more"),
    (["--mine", "nothing"], "expected package.module:function"),
    (["--mine", "nothing_of_that_name:pair"], "a module that can be imported from here"),
])
def test_bad_input_is_one_line(command, arguments, message):
    end = command("gradcheck", *arguments)
    assert end.code == 2
    assert message in end.err
    assert end.err.count("\n") == 1


MINE = """
import numpy as np

def pair():
    forward = lambda x: x ** 3
    return forward, lambda dy, x: 3 * x ** 2 * dy, {"x": np.array([0.5, 2.0, 3.0])}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(name, source): the reference of `pair` in a module of the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return f"{name}:pair"

    return write


def test_a_users_own_pair(command, module):
    assert report(command, "--mine", module("own_right", MINE))[0] == 0
    assert report(command, "--mine", module("own_wrong", MINE.replace("3 * x ** 2", "3.003 * x ** 2")))[0] == 1


@pytest.mark.parametrize(("name", "source", "code", "message"), [
    ("own_absent", "", 2, "expected a function pair in own_absent"),
    ("own_broken", "1 / 0", 3, "importing it raised ZeroDivisionError"),
    ("own_import", "import nowhere_to_be_found", 3, "importing it raised ModuleNotFoundError"),
    ("own_raising", "def pair():\n    raise OSError('no data')", 3, "it raised OSError: no data"),
    ("own_odd", "def pair():\n    return 3", 3, "expected (forward, vjp, arguments) from it, got int"),
    ("own_count", MINE.replace("3 * x ** 2 * dy", "(dy, dy)"), 2, "expected one gradient for each of x, got 2"),
    ("own_integers", MINE.replace("[0.5, 2.0, 3.0]", "[1, 2, 3]"), 2, "own_integers:pair: "),
])
def test_a_users_pair_that_can_not_be_checked(command, module, name, source, code, message):
    end = command("gradcheck", "--mine", module(name, source))
    assert end.code == code
    assert message in end.err
    assert end.err.count("\n") == 1

