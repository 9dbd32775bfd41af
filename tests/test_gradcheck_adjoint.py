"""jvp against vjp: the two products with one Jacobian."""

import numpy as np
import pytest

from refimpl.gradcheck import GradcheckError, check_jvp_vjp

RNG = np.random.default_rng(0)


def point(dtype=np.float64):
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((3, 4)).astype(dtype), "w": rng.standard_normal((4, 2)).astype(dtype)}


def jvp(tangents, x, w):
    return (tangents[0] * np.cos(x)) @ w + np.sin(x) @ tangents[1]


def vjp(dy, x, w):
    return dy @ w.T * np.cos(x), np.sin(x).T @ dy


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("directions", [1, 8])
def test_products_of_one_jacobian_pass(dtype, directions):
    report = check_jvp_vjp(jvp, vjp, point(dtype), directions=directions)
    assert report.ok, str(report)
    assert [entry.controls_caught for entry in report.arguments] == [4, 4]
    assert str(report).startswith(f"PASS: gradients against jvp, {directions} random directions")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("change", [lambda a: a * (1 + 1e-9), np.negative, np.zeros_like, lambda a: np.roll(a, 1)])
def test_a_wrong_vjp_fails_in_its_argument(which, change):
    def wrong(dy, x, w):
        gradients = list(vjp(dy, x, w))
        gradients[which] = change(gradients[which])
        return gradients

    verdicts = [entry.verdict for entry in check_jvp_vjp(jvp, wrong, point()).arguments]
    assert verdicts == (["FAIL", "PASS"] if which == 0 else ["PASS", "FAIL"])


def test_a_wrong_jvp_fails_in_the_argument_whose_part_is_wrong():
    report = check_jvp_vjp(lambda t, x, w: jvp((t[0], t[1] * (1 + 1e-9)), x, w), vjp, point())
    assert [entry.verdict for entry in report.arguments] == ["PASS", "FAIL"]
    dropped = check_jvp_vjp(lambda t, x, w: jvp((t[0], 0 * t[1]), x, w), vjp, point())
    assert [entry.verdict for entry in dropped.arguments] == ["PASS", "FAIL"]


def test_one_argument_and_several_outputs():
    def two(tangent, x):
        return tangent * np.cos(x), np.asarray((2 * x * tangent).sum())

    x = np.array([0.1, 0.7])
    assert check_jvp_vjp(two, lambda dys, x: dys[0] * np.cos(x) + 2 * x * dys[1], [x]).ok
    assert not check_jvp_vjp(two, lambda dys, x: dys[0] * np.cos(x), [x]).ok


def test_changes_in_place_and_randomness_are_told():
    def clobbers(tangents, x, w):
        found = jvp(tangents, x, w)
        tangents[0][:] = 0
        return found

    report = check_jvp_vjp(clobbers, vjp, point())
    assert (report.verdict, report.problems) == ("FAIL", ("jvp changes its tangents in place",))
    random = check_jvp_vjp(lambda t, x, w: jvp(t, x, w) * RNG.standard_normal(), vjp, point())
    assert random.verdict == "UNCHECKED"
    assert "jvp's result differs from run to run" in random["x"].reason


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(GradcheckError, match="vjp: gradient of x: expected shape"):
        check_jvp_vjp(jvp, lambda dy, x, w: (dy, dy), point())
    with pytest.raises(GradcheckError, match="jvp: expected floating results"):
        check_jvp_vjp(lambda t, x, w: np.arange(3), vjp, point())
    with pytest.raises(GradcheckError, match="directions: expected a number of 1 or more, got 0"):
        check_jvp_vjp(jvp, vjp, point(), directions=0)
