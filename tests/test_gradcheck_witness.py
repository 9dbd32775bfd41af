"""A failing check as a file that runs again."""

import os

import numpy as np
import pytest

from refimpl.gradcheck import GradcheckError, check_vjp, replay, witness

X = {"layers.0/x": np.array([0.3, -0.8, 1.4]), "w": np.array(0.5, np.float32)}


def forward(x, w):
    return np.sin(x) * w, np.asarray(np.sum(x * x))


def vjp(dys, x, w):
    dx = dys[0] * np.cos(x) * w + 2 * x * dys[1]
    return dx, np.asarray((dys[0] * np.sin(x)).sum(), w.dtype)


def wrong(dys, x, w):
    dx, dw = vjp(dys, x, w)
    return dx * np.array([1, 1.1, 1]), dw


@pytest.mark.parametrize("settings", [{}, {"method": "richardson", "directions": 3, "seed": 7, "kinks": "bracket"}])
def test_a_failure_is_saved_and_fails_again_with_its_numbers(tmp_path, settings):
    report = check_vjp(forward, wrong, X, save=tmp_path / "failed.npz", **settings)
    assert report.witness == tmp_path / "failed.npz"
    again = replay(report.witness, forward, wrong)
    assert again.verdict == "FAIL"
    assert [entry.verdict for entry in again.arguments] == [entry.verdict for entry in report.arguments] == ["FAIL", "PASS"]
    assert (again.method, again.directions) == (report.method, report.directions)
    assert again.arguments[0].relative_error == pytest.approx(report.arguments[0].relative_error, rel=0.5)
    assert replay(report.witness, forward, vjp).ok, "the right gradient passes at the same place"
    assert f"witness: {report.witness}" in str(report)
    assert report.as_dict()["witness"] == str(report.witness)


def test_the_file_holds_the_point_and_the_cotangent_without_pickles(tmp_path):
    path = check_vjp(forward, wrong, X, save=tmp_path / "failed.npz").witness
    with np.load(path, allow_pickle=False) as file:
        assert set(file.files) == {"meta", "argument layers.0/x", "argument w", "cotangent 0", "cotangent 1"}
        assert file["argument w"].dtype == np.float32
    found = witness.load(path)
    assert np.array_equal(found.arguments["layers.0/x"], X["layers.0/x"])
    assert [dy.shape for dy in found.cotangent] == [(3,), ()]
    assert dict(found.verdict) == {"layers.0/x": "FAIL", "w": "PASS"}


def test_a_folder_gets_a_file_for_each_failure_and_one_for_the_same_again(tmp_path):
    first = check_vjp(forward, wrong, X, save=tmp_path / "new" / "folder").witness
    assert first.parent == tmp_path / "new" / "folder"
    assert check_vjp(forward, wrong, X, save=tmp_path / "new" / "folder").witness == first
    other = check_vjp(forward, wrong, X, save=str(tmp_path / "new" / "folder"), seed=1).witness
    assert sorted(first.parent.iterdir()) == sorted([first, other])


def test_nothing_is_saved_of_what_did_not_fail(tmp_path):
    assert check_vjp(forward, vjp, X, save=tmp_path / "failed.npz").witness is None
    assert check_vjp(lambda x: abs(x), lambda dy, x: dy, [np.zeros(1)], save=tmp_path, method="central").witness is None
    assert not list(tmp_path.iterdir())


def test_a_change_in_place_is_saved_too(tmp_path):
    def clobbers(dys, x, w):
        found = vjp(dys, x, w)
        x[:] = 0
        return found

    report = check_vjp(forward, clobbers, X, save=tmp_path)
    assert replay(report.witness, forward, clobbers).problems == ("vjp changes layers.0/x in place",)


def test_a_write_that_is_cut_off_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "failed.npz"
    check_vjp(forward, wrong, X, save=path)
    before = path.read_bytes()

    def fails(*names):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no space left"):
        check_vjp(forward, wrong, X, save=path, seed=1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path], "no part of the new file stays"


@pytest.mark.parametrize("content", [b"", b"not a zip", None])
def test_a_file_that_is_no_witness_is_refused(tmp_path, content):
    path = tmp_path / "failed.npz"
    if content is None:
        np.savez(path, x=np.ones(2))
    else:
        path.write_bytes(content)
    with pytest.raises(GradcheckError, match=r"failed\.npz: expected a witness of a failed check, got"):
        replay(path, forward, vjp)
    with pytest.raises(GradcheckError, match="expected a witness"):
        replay(tmp_path / "missing.npz", forward, vjp)


def test_a_pickle_in_the_file_is_refused(tmp_path):
    np.savez(tmp_path / "evil.npz", meta=np.array([{"schema": 1}], object))
    with pytest.raises(GradcheckError, match="expected a witness"):
        replay(tmp_path / "evil.npz", forward, vjp)


def test_another_schema_is_refused(tmp_path):
    np.savez(tmp_path / "new.npz", meta=np.array('{"schema": 2}'))
    with pytest.raises(GradcheckError, match="expected a witness of schema 1, got 2"):
        replay(tmp_path / "new.npz", forward, vjp)
