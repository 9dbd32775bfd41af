"""Points without a gradient: they are found, never passed, and with `bracket` the gradient must lie among the slopes."""

import numpy as np
import pytest

from refimpl.checks import pairs
from refimpl.gradcheck import check_vjp
from refimpl.layers import span

METHODS = ("complex-step", "richardson", "central")
DIRECTIONS = ("full", 3)


def relu(x):
    return np.where(x.real > 0, x, 0 * x)


def at_zero(slope):
    """The gradient of relu with this slope at 0."""
    return lambda dy, x: dy * np.where(x > 0, 1, np.where(x == 0, slope, 0))


X = np.array([[0.3, 0.0, -0.4], [0.0, 2.0, -1.0]])


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_a_kink_is_refused_by_name_with_index_and_both_slopes(method, directions):
    entry = check_vjp(relu, at_zero(0), {"x": X}, method=method, directions=directions)["x"]
    assert entry.verdict == "KINK"
    assert [(kink.index, kink.output) for kink in entry.kinks] == [((0, 1), "output[0, 1]"), ((1, 0), "output[1, 0]")]
    for kink in entry.kinks:
        assert (kink.left, kink.right) == pytest.approx((0, 1), abs=1e-6)
        assert kink.gradient is kink.among is None
    text = str(check_vjp(relu, at_zero(0), {"x": X}, method=method))
    assert "x[0, 1]: a kink of output[0, 1], slopes 0 and 1" in text


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("slope", "verdict"), [(0, "KINK"), (1, "KINK"), (0.5, "KINK"), (-0.01, "FAIL"), (1.01, "FAIL")])
def test_bracket_takes_either_slope_and_what_is_between(method, directions, slope, verdict):
    report = check_vjp(relu, at_zero(slope), {"x": X}, method=method, directions=directions, kinks="bracket")
    assert report.verdict == verdict
    assert [kink.among for kink in report["x"].kinks] == [verdict == "KINK"] * 2
    assert [kink.gradient for kink in report["x"].kinks] == pytest.approx([slope] * 2)


@pytest.mark.parametrize("kinks", ["refuse", "bracket"])
@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("method", METHODS)
def test_elsewhere_than_at_its_kinks_the_gradient_must_be_right_all_the_same(method, directions, kinks):
    report = check_vjp(relu, lambda dy, x: dy * np.where(x > 0, 1.001, 0), {"x": X}, method=method, directions=directions,
                       kinks=kinks)
    assert report.verdict == "FAIL"


def test_outputs_without_a_kink_must_be_right_even_for_an_element_at_a_kink_of_others():
    def forward(x):
        return np.concatenate([relu(x), np.sin(x)])

    def vjp(wrong):
        return lambda dy, x: at_zero(0)(dy[:3], x) + wrong * dy[3:] * np.cos(x)

    x = np.array([0.0, 1.0, -1.0])
    assert check_vjp(forward, vjp(np.ones(3)), [x], kinks="bracket").verdict == "KINK"
    report = check_vjp(forward, vjp(np.array([1.001, 1, 1])), [x], kinks="bracket")
    assert report.verdict == "FAIL"
    assert report[0].kinks[-1].output == "the other outputs"


@pytest.mark.parametrize("method", METHODS)
def test_kinks_of_a_hidden_layer_are_found_in_every_argument_that_reaches_them(method):
    """The hidden unit 1 is exactly 0: by the second row of w, by its bias, and by every x that meets a weight."""
    x, w, b = np.array([1.0, 2.0]), np.array([[0.5, 1.0], [2.0, -1.0], [0.3, 0.4]]), np.array([0.1, 0.0, -2.0])

    def forward(x, w, b):
        return relu(w @ x + b) * np.array([1.0, 2.0, 3.0])

    def vjp(dy, x, w, b):
        d = dy * np.array([1.0, 2.0, 3.0]) * (w @ x + b > 0)
        return w.T @ d, np.outer(d, x), d

    report = check_vjp(forward, vjp, {"x": x, "w": w, "b": b}, method=method)
    assert {entry.name: [kink.index for kink in entry.kinks] for entry in report.arguments} == {
        "x": [(0,), (1,)], "w": [(1, 0), (1, 1)], "b": [(1,)]}
    assert {kink.output for entry in report.arguments for kink in entry.kinks} == {"output[1]"}


@pytest.mark.parametrize("distance", [1e-6, -1e-6, 3e-5, 1e-3, -0.02])
@pytest.mark.parametrize("method", METHODS)
def test_beside_a_kink_there_is_a_gradient(method, distance):
    """Real steps that reach across the kink are seen to, and shorter ones are taken."""
    x = np.array([distance, 1.0, -2.0])
    assert check_vjp(relu, at_zero(0.5), [x], method=method).verdict == "PASS"
    half = check_vjp(relu, lambda dy, x: dy * np.where(abs(x) < 0.1, 0.5, x > 0), [x], method=method)
    assert half.verdict == "FAIL"


@pytest.mark.parametrize("distance", [1.6e-7, -1.4e-7])
def test_a_kink_as_near_as_the_smallest_step_is_taken_for_nothing_else(distance):
    """Larger steps agree on the mean of both slopes, but not with what is nearest: neither gradient is judged by them."""
    x = np.array([distance, 1.0, -2.0])
    assert check_vjp(relu, at_zero(0), [x], method="richardson").verdict in ("PASS", "UNCHECKED")
    half = check_vjp(relu, lambda dy, x: dy * np.where(abs(x) < 0.1, 0.5, x > 0), [x], method="richardson")
    assert half.verdict in ("FAIL", "UNCHECKED")


@pytest.mark.parametrize("small", [3e-7, 1e-10])
def test_a_kink_too_small_for_real_steps_does_not_read_as_a_wrong_gradient(small):
    """The complex step sees one side of it, vjp the other."""
    x = np.array([0.0, *np.linspace(0.3, 2, 30)])
    scale = np.array([small] + [1.0] * 30)

    def forward(x):
        return np.asarray((scale * np.where(np.arange(31) > 0, np.sin(x), relu(x))).sum()), np.sin(x) ** 2

    def vjp(wrong):
        return lambda dys, x: (dys[0] * wrong * scale * np.where(np.arange(31) > 0, np.cos(x), 1)
                               + dys[1] * 2 * np.sin(x) * np.cos(x))

    entry = check_vjp(forward, vjp(1), {"x": x})["x"]
    assert (entry.verdict, [kink.index for kink in entry.kinks]) == ("KINK", [(0,)])
    assert entry.kinks[0].output == "output 0"
    assert entry.kinks[0].right == pytest.approx(small)
    assert check_vjp(forward, vjp(1), {"x": x}, kinks="bracket").verdict == "KINK"
    factor = np.where(np.arange(31) > 0, 1, 1.001)
    assert check_vjp(forward, vjp(factor), {"x": x}, kinks="bracket").verdict == "FAIL"
    assert check_vjp(forward, vjp(1 + 1e-9 * (np.arange(31) == 3)), {"x": x}).verdict == "FAIL", "another element"


@pytest.mark.parametrize("steep", [
    lambda x: np.exp(30 * x), lambda x: np.sin(200 * x), lambda x: 1 / (1 + np.exp(-500 * x)), lambda x: x**9,
])
@pytest.mark.parametrize("method", METHODS[:2])
def test_curvature_is_no_kink(method, steep):
    x = np.array([0.01, 0.4, -0.03])
    slope = [np.imag(steep(v + 1e-30j)) / 1e-30 for v in x]
    assert check_vjp(steep, lambda dy, x: dy * slope, [x], method=method)[0].verdict == "PASS"


def test_a_kink_that_the_cotangent_does_not_see_does_not_matter():
    x = np.array([0.0, 1.0])
    assert check_vjp(relu, at_zero(0), [x], np.array([0.0, 1.0])).verdict == "PASS"


@pytest.mark.parametrize("infinite", [np.sqrt, lambda x: x * np.log(x + 1e-300)])
def test_an_infinite_slope_is_a_kink(infinite):
    entry = check_vjp(infinite, lambda dy, x: dy / (2 * np.sqrt(np.where(x == 0, 1, x))), [np.array([0.0])])[0]
    assert entry.verdict == "KINK"


def test_the_ends_of_the_span_mask_are_kinks_and_its_closed_interval_is_among_the_slopes():
    """S = 12, R = 3: z = 0 and z = 6 stand on both kinks, z = 12 on one within reach of no position."""
    pair = pairs.of_span_at_kinks(np.random.default_rng(0), 3)
    assert list(pair.arguments["rho"]) == [0, 0.5, 1]
    report = check_vjp(pair.forward, pair.vjp, pair.arguments, kinks="bracket")
    found = [(kink.index, kink.output, round(kink.left, 6), round(kink.right, 6), kink.gradient)
             for kink in report["rho"].kinks]
    assert found == [((0,), "output[0, 0]", 4, 0, 4), ((0,), "output[0, 3]", 0, 4, 4),
                     ((1,), "output[1, 6]", 4, 0, 4), ((1,), "output[1, 9]", 0, 4, 4)]
    assert report.verdict == "KINK"
    assert check_vjp(pair.forward, pair.vjp, pair.arguments).verdict == "KINK"


@pytest.mark.parametrize(("method", "change"), [
    ("complex-step", lambda g: -g), ("complex-step", lambda g: 1.001 * g), ("richardson", lambda g: 1.001 * g),
])
def test_a_wrong_mask_gradient_at_its_kinks_fails(monkeypatch, method, change):
    right = span.mask_backward
    monkeypatch.setattr(span, "mask_backward", lambda d, saved: change(right(d, saved)))
    pair = pairs.of_span_at_kinks(np.random.default_rng(0), 3)
    assert check_vjp(pair.forward, pair.vjp, pair.arguments, kinks="bracket", method=method).verdict == "FAIL"


def test_the_open_interval_is_among_the_slopes_too(monkeypatch):
    right = span.mask_backward

    def of_open(d_mask, saved):
        rho, size, ramp = np.array([0.0, 0.5, 1.0]), saved.size, saved.ramp
        fraction = (ramp + size * rho[:, None] - np.arange(size)) / ramp
        return right(d_mask, saved._replace(on_ramp=(fraction > 0) & (fraction < 1)))

    monkeypatch.setattr(span, "mask_backward", of_open)
    pair = pairs.of_span_at_kinks(np.random.default_rng(0), 3)
    report = check_vjp(pair.forward, pair.vjp, pair.arguments, kinks="bracket")
    assert report.verdict == "KINK"
    assert {kink.gradient for kink in report["rho"].kinks} == {0}
