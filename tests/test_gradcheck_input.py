"""What can't be checked is refused with one clear line, and what the functions do wrong on the way is told."""

import math

import numpy as np
import pytest

from refimpl.gradcheck import GradcheckError, check_vjp, derivative


def sine(dy, x):
    return dy * np.cos(x)


def refused(forward, vjp, arguments, *rest, **settings):
    """The message."""
    with pytest.raises(GradcheckError) as raised:
        check_vjp(forward, vjp, arguments, *rest, **settings)
    assert "\n" not in str(raised.value)
    return str(raised.value)


X = np.array([0.3, -0.8, 1.4])


@pytest.mark.parametrize(("vjp", "told"), [
    (lambda dy, x: np.ones((3, 1)), "vjp: gradient of x: expected shape (3,), got (3, 1)"),
    (lambda dy, x: dy.sum(), "vjp: gradient of x: expected shape (3,), got ()"),
    (lambda dy, x: (dy, dy), "vjp: expected one gradient for each of x, got 2"),
    (lambda dy, x: (), "vjp: expected one gradient for each of x, got 0"),
    (lambda dy, x: dy.astype(np.float32), "vjp: gradient of x: expected float64, got float32"),
    (lambda dy, x: None, "vjp: gradient of x: expected shape (3,), got ()"),
    (lambda dy, x: x, "vjp: expected a result of its own, got a view of x: return a copy"),
])
def test_gradients_of_another_form_are_refused(vjp, told):
    assert refused(np.sin, vjp, {"x": X}) == told


@pytest.mark.parametrize(("cotangent", "told"), [
    (np.ones(4), "cotangent of output: expected shape (3,), got (4,)"),
    ((np.ones(3),), "cotangent: expected one array, as forward returns, got a tuple (1)"),
    (np.zeros(3), "cotangent: expected a number other than 0 in it, got zeros alone"),
    (np.array([1, np.nan, 1]), "cotangent of output: expected finite real numbers, got float64"),
    (np.ones(3, complex), "cotangent of output: expected finite real numbers, got complex128"),
])
def test_cotangents_of_another_form_are_refused(cotangent, told):
    assert refused(np.sin, sine, {"x": X}, cotangent) == told


def test_a_cotangent_must_have_the_structure_of_several_results():
    def two(x):
        return np.sin(x), np.cos(x)

    told = refused(two, sine, {"x": X}, np.ones(3))
    assert told == "cotangent: expected a tuple of 2 arrays, as forward returns, got one array (1)"
    assert refused(two, sine, {"x": X}, (np.ones(3), np.ones(2))).startswith("cotangent of output 1: expected shape (3,)")


@pytest.mark.parametrize(("arguments", "told"), [
    ({"x": np.array([1.0, np.inf])}, "argument x: expected finite numbers, got inf"),
    ({"x": np.arange(3)}, "argument x: expected float32, float64 or longdouble, got int64"),
    ([np.ones(2, np.float16)], "argument 0: expected float32, float64 or longdouble, got float16"),
    ([np.ones(2, complex)], "argument 0: expected float32, float64 or longdouble, got complex128"),
    (np.ones((2, 2)), "arguments: expected a mapping by name or a list of arrays, got ndarray"),
    ([], "arguments: expected at least one array, got none"),
])
def test_arguments_that_have_no_derivative_are_refused(arguments, told):
    assert refused(np.sin, sine, arguments).startswith(told)


@pytest.mark.parametrize(("forward", "told"), [
    (lambda x: np.log(x), "output: expected finite numbers, got nan"),
    (lambda x: (x * 1.0, x / 0), "output 1: expected finite numbers, got inf"),
    (lambda x: x.astype(int), "forward: expected floating results, got int64 as result 0"),
    (lambda x: x[:0] * 1.0, "forward: expected a result, got no elements"),
    (lambda x: x, "forward: expected a result of its own, got a view of x: return a copy"),
    (lambda x: x[::2], "forward: expected a result of its own, got a view of x: return a copy"),
    (lambda x: (x * 2, x.reshape(3, 1)), "forward: expected a result of its own, got a view of x: return a copy"),
])
def test_results_of_another_form_are_refused(forward, told):
    assert refused(forward, sine, {"x": X}, method="richardson") == told


def test_results_must_keep_their_shape():
    def forward(x):
        return np.sin(x)[: 3 if x[0] == X[0] else 2]

    assert "expected results of shapes [(3,)] at every call, got [(2,)]" in refused(forward, sine, {"x": X})


@pytest.mark.parametrize(("operation", "forward"), [
    ("numpy.absolute", lambda x: np.abs(x) * x),
    ("numpy.absolute", lambda x: np.abs(x)),
    ("numpy.absolute", lambda x: abs(x[0]) + np.sin(x)),
    ("numpy.conjugate", lambda x: np.conj(x) * x),
    ("conj()", lambda x: x.conj() * x),
    ("numpy.sign", lambda x: np.sign(x) * x),
    ("numpy.linalg.norm", lambda x: x / np.linalg.norm(x)),
    ("numpy.var", lambda x: x / np.sqrt(np.var(x))),
    (".real", lambda x: x.real * x),
    (".real", lambda x: np.exp(x - x.real.max())),
    ("np.floor(x)", lambda x: x - np.floor(x)),
    ("x.astype(float)", lambda x: np.sin(x.astype(float))),
    ("math.exp", lambda x: np.array([math.exp(v) for v in x])),
    ("float(v)", lambda x: np.array([float(v) ** 2 for v in x])),
    ("np.arctan2", lambda x: np.arctan2(x, 1.0)),
])
@pytest.mark.parametrize("directions", ["full", 2])
def test_a_path_that_does_not_carry_complex_numbers_is_refused_by_name(operation, forward, directions):
    told = refused(forward, sine, {"x": X}, directions=directions)
    assert operation in told
    assert "test_gradcheck_input.py:" in told, "the place is named"
    assert 'use method "richardson"' in told
    check_vjp(forward, sine, {"x": X}, method="richardson")


def test_a_preallocated_real_array_is_refused_with_its_line():
    def forward(x):
        y = np.empty(3)
        y[:] = np.sin(x)
        return y

    assert "y[:] = np.sin(x)" in refused(forward, sine, {"x": X})


@pytest.mark.parametrize("forward", [
    lambda x: np.where(x.real > 0, x, 0), lambda x: np.maximum(x, 0), lambda x: x * (x > 0),
    lambda x: np.exp(x - (m := x.real.max())) / np.exp(x - m).sum(),
])
def test_comparisons_and_shifts_by_the_real_part_are_right(forward):
    slope = np.stack([np.imag(forward(X + 1e-30j * unit)) / 1e-30 for unit in np.eye(3)])
    assert check_vjp(forward, lambda dy, x: slope @ dy, {"x": X}).ok


def test_a_small_part_that_drops_the_imaginary_part_does_not_read_as_a_wrong_gradient():
    """1e-7 of the function: below what the first comparison of slopes sees, and yet no FAIL of the gradient."""

    def forward(x):
        return np.sin(x) + 1e-7 * np.abs(x)

    x = np.abs(X)
    assert "numpy.absolute" in refused(forward, lambda dy, x: dy * (np.cos(x) + 1e-7), {"x": x})


@pytest.mark.parametrize("method", ["complex-step", "richardson"])
def test_changes_in_place_are_told_and_fail(method):
    def forward(x, w):
        x *= 2
        return np.sin(x) * w

    def vjp(dy, x, w):
        w += 1
        dy *= 2
        return dy * np.cos(2 * x) * (w - 1), dy / 2 * np.sin(2 * x)

    report = check_vjp(forward, vjp, {"x": X, "w": X + 1}, method=method)
    assert report.verdict == "FAIL"
    assert report.problems == ("forward changes x in place", "vjp changes w in place", "vjp changes its cotangent in place")
    assert [entry.verdict for entry in report.arguments] == ["PASS", "PASS"], "copies keep the numbers right"
    assert "problem: vjp changes w in place" in str(report)


@pytest.mark.parametrize("which", ["forward's result", "vjp's gradient of x"])
def test_results_that_differ_from_run_to_run_leave_nothing_to_check(which):
    rng = np.random.default_rng(0)

    def shaken(y):
        return y * (1 + 1e-6 * rng.standard_normal(np.shape(y)))

    if which == "forward's result":
        report = check_vjp(lambda x: shaken(np.sin(x)), sine, {"x": X})
    else:
        report = check_vjp(np.sin, lambda dy, x: shaken(sine(dy, x)), {"x": X})
    assert report.verdict == "UNCHECKED"
    assert report["x"].reason.startswith(f"{which} differs from run to run by ")
    assert f"problem: {which} differs" in str(report)


def test_differences_of_rounding_from_run_to_run_are_no_trouble():
    rng = np.random.default_rng(0)
    assert check_vjp(np.sin, lambda dy, x: sine(dy, x) * (1 + 2e-16 * rng.standard_normal(3)), {"x": X}).ok


def test_buffers_that_are_used_again_and_views_of_each_other_do_no_harm():
    buffers = {}

    def forward(x):
        y = buffers.setdefault(x.dtype, np.empty(3, x.dtype))
        y[:] = np.sin(x)
        return y

    kept = np.empty(3)

    def vjp(dy, x, shift):
        kept[:] = dy * np.cos(x + shift)
        return kept, kept[:]

    assert check_vjp(forward, lambda dy, x: vjp(dy, x, 0)[0], [X]).ok
    assert check_vjp(lambda x, s: np.sin(x + s), vjp, [X, X + 1]).ok
    assert check_vjp(lambda x, s: x + s, lambda dy, x, s: (dy, dy), [X, X + 1]).ok


def test_an_error_of_the_users_function_is_theirs():
    def broken(dy, x):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        check_vjp(np.sin, broken, [X])
    with pytest.raises(ZeroDivisionError, match="mine"):
        check_vjp(lambda x: broken(x, x), sine, [X], method="richardson")


@pytest.mark.parametrize(("method", "error"), [("complex-step", 1e-15), ("richardson", 1e-11), ("central", 1e-8)])
def test_a_derivative_alone_with_its_error(method, error):
    found = derivative(lambda x: np.exp(x) / x, 0.7, method=method)
    exact = np.exp(0.7) / 0.7 - np.exp(0.7) / 0.49
    assert abs(found.value - exact) <= found.error <= error
    toward = np.array([1.0, 2.0, -1.0])
    found = derivative(np.sin, X, toward, method=method)
    assert found.value.shape == found.error.shape == (3,)
    assert (np.abs(found.value - np.cos(X) * toward) <= found.error + 1e-16).all()
    assert derivative(lambda x: np.sum(x**3), np.longdouble(2), method=method).value.dtype == np.longdouble


@pytest.mark.parametrize("method", ["central", "richardson", "complex-step"])
def test_the_error_follows_a_given_step(method):
    """Differences lose digits with a step that is too large or too small, the complex step with a large one only."""
    found = [derivative(np.exp, 1.0, method=method, step=step) for step in (1.0, 1e-3, 1e-13)]
    off = [abs(d.value - math.e) for d in found]
    assert all(o <= 2 * d.error + 4e-16 for o, d in zip(off, found, strict=True))
    assert off[0] > 1e3 * off[1]
    assert (off[2] > 1e3 * off[1]) == (method != "complex-step")


@pytest.mark.parametrize(("given", "told"), [
    ({"x": np.ones(2)}, "direction: expected one of shape (2,), got none"),
    ({"x": np.ones(2), "direction": np.ones(3)}, "direction: expected shape (2,), got (3,)"),
    ({"x": 1.0, "method": "forward"}, "method: expected one of"),
    ({"x": 1.0, "step": -1e-3}, "step: expected a number above 0, got -0.001"),
    ({"x": 1}, "argument 0: expected float32, float64 or longdouble, got int64"),
])
def test_derivatives_that_there_are_not_are_refused(given, told):
    with pytest.raises(GradcheckError) as raised:
        derivative(np.sin, **given)
    assert str(raised.value).startswith(told)


def test_a_derivative_through_a_float_only_path_is_refused():
    with pytest.raises(GradcheckError, match=r"numpy\.absolute"):
        derivative(lambda x: np.abs(x) * x, 0.5)
    with pytest.raises(GradcheckError, match=r"math\.sin"):
        derivative(lambda x: math.sin(x), 0.5)
