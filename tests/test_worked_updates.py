"""The optimisers' updates by numbers worked out on paper: what each accumulates, where each ε stands, when each u counts.

Only one tensor has a gradient, `output.bias`; two numbers of it, 3 and 4 in some unit, so that its norm is 5.
"""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest

from refimpl import optimizers, parameters
from refimpl.config import ModelConfig, TrainConfig

CONFIG = ModelConfig(vocabulary=2, width=4, heads=1, layers=1, span=2, memory=1)
# Four roundings of 2.2e-16 relative to each number: the arithmetic of one element.
TOLERANCE = 1e-15


def steps(gradients, **settings):
    """What `output.bias` loses in each update by these gradients of it, all others 0."""
    train_config = TrainConfig(**{"learning_rate": 0.5, "clip": 0.0, "updates": len(gradients), **settings})
    p = parameters.initialize(CONFIG)
    state = optimizers.initialize(train_config, p)
    lost = []
    for gradient in gradients:
        g = p.zeros_like()
        g["output.bias"] = gradient
        p["output.bias"] = 0
        optimizers.update(p, g, state, train_config)
        lost.append(-p["output.bias"])
    return np.array(lost)


def assert_equal(values, expected):
    expected = np.array([[float(number) for number in row] for row in expected])
    assert values.shape == expected.shape
    assert (np.abs(values - expected) <= TOLERANCE * np.abs(expected)).all(), (values, expected)


def test_sgd_adds_the_gradient_to_the_velocity_before_the_step():
    """v = 8, then 8/4 + 16 = 18; half of each."""
    assert_equal(steps([[8, -8], [16, 0]], optimizer="sgd", momentum=0.25), [[4, -4], [9, -1]])


def test_adagrad_accumulates_squares_from_nothing():
    """Σ g² = 9, then 25: steps of 1/2 · 3/3, then 1/2 · 4/5; beside the unit 10^15 ε is nothing."""
    unit = 10.0**15
    assert_equal(steps([[3 * unit, 5 * unit], [4 * unit, 12 * unit]], optimizer="adagrad"),
                 [[Fraction(1, 2), Fraction(1, 2)], [Fraction(1, 2) * 4 / 5, Fraction(1, 2) * 12 / 13]])


def test_adagrad_s_epsilon_of_1e_10_stands_outside_the_root():
    """√(9e-20) + 1e-10 = 4e-10, then √(25e-20) + 1e-10 = 6e-10."""
    assert_equal(steps([[3e-10, 0], [4e-10, 0]], optimizer="adagrad"),
                 [[Fraction(1, 2) * 3 / 4, 0], [Fraction(1, 2) * 4 / 6, 0]])


def test_adagrad_s_clip_of_each_tensor_scales_its_rate_and_not_what_it_accumulates():
    """Norm 5 against 1: rate 1/2 · 1/5; then alone 4 against 1, 1/4, on an accumulator of 9 + 16 and not of 9/25 + 1."""
    unit = 10.0**15
    found = steps([[3 * unit, 4 * unit], [4 * unit, 0]], optimizer="adagrad", clip=unit, clip_each=True)
    assert_equal(found, [[Fraction(1, 10), Fraction(1, 10)], [Fraction(1, 8) * Fraction(4, 5), 0]])


def test_adagrad_s_global_clip_scales_what_it_accumulates():
    """Norm 5 against 1, and 10 against 1, both scaled to the same: Σ g² doubles, so the second step is 1/√2 of the first."""
    unit = 10.0**15
    found = steps([[3 * unit, 4 * unit], [6 * unit, 8 * unit]], optimizer="adagrad", clip=unit)
    assert_equal(found, [[Fraction(1, 2)] * 2, [Decimal("0.5") / Decimal(2).sqrt()] * 2])


def test_adam_by_algorithm_1_with_40_digits():
    """m ← 9/10 m + g/10, v ← 999/1000 v + g²/1000; m̂ and v̂ by their shares 1 - βᵘ of the weight, u = 1 at first."""
    gradients, expected = [Fraction(1, 4), Fraction(-3), Fraction(1, 2)], []
    beta1, beta2, mean, square = Fraction(9, 10), Fraction(999, 1000), Fraction(0), Fraction(0)
    for u, g in enumerate(gradients, 1):
        mean, square = beta1 * mean + (1 - beta1) * g, beta2 * square + (1 - beta2) * g**2
        m, v = mean / (1 - beta1**u), square / (1 - beta2**u)
        with localcontext(prec=40):
            root = (Decimal(v.numerator) / v.denominator).sqrt() + Decimal("1e-8")
            expected.append(float(Decimal(m.numerator) / m.denominator / root / 2))
    found = steps([[float(g), 0] for g in gradients], optimizer="adam")
    # 1 - 0.999ᵘ in floats is off by 1.1e-16 of 2e-3 from u = 2 on, and the root halves that: 3e-14
    assert np.abs(found[:, 0] / expected - 1).max() <= 5e-14
    assert not found[:, 1].any()


def test_adam_s_epsilon_of_1e_8_stands_outside_the_root_of_the_unbiased_square():
    """First update: m̂ = g and √v̂ = g, so g / (g + ε): 3/4 for g = 3e-8, 1/2 for g = 1e-8."""
    found = steps([[3e-8, 1e-8]], optimizer="adam")
    assert np.abs(found - [[0.5 * 3 / 4, 0.5 * 1 / 2]]).max() <= 1e-14


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_global_clipping_has_an_epsilon_of_1e_6(optimizer):
    """Norm 5e-6 against 3e-6: factor 3 / (5 + 1); Adam's first step is then g/2 over |g|/2 + 1e-8."""
    unit = 1e-6
    found = steps([[3 * unit, 4 * unit]], optimizer=optimizer, clip=3 * unit)
    expected = {"sgd": [0.5 * 1.5 * unit, 0.5 * 2 * unit], "adam": [0.5 * 150 / 151, 0.5 * 200 / 201]}[optimizer]
    assert np.abs(found / [expected] - 1).max() <= 1e-14


def test_clipping_each_tensor_has_an_epsilon_of_1e_10_and_begins_above_the_limit():
    """Norm 5e-10 against 3e-10: factor 3 / (5 + 1). A norm of exactly the limit is left as it is."""
    unit = 1e-10
    assert_equal(steps([[3 * unit, 4 * unit]], optimizer="sgd", clip=3 * unit, clip_each=True),
                 [[0.5 * 1.5 * unit, 0.5 * 2 * unit]])
    assert_equal(steps([[3, 4]], optimizer="sgd", clip=5, clip_each=True), [[1.5, 2]])


def test_the_global_norm_counts_every_tensor_and_spans_with_them():
    """A span's 12 beside the bias's 3 and 4: √(144 + 25) = 13."""
    train_config = TrainConfig(optimizer="sgd", learning_rate=1.0, clip=1.0)
    p = parameters.initialize(CONFIG)
    p["output.bias"] = 0
    g = p.zeros_like()
    g["layers.0.attention.span"], g["output.bias"] = np.array([12.0]), np.array([3.0, 4.0])
    optimizers.update(p, g, optimizers.initialize(train_config, p), train_config)
    assert np.abs(-p["output.bias"] * (13 + 1e-6) - [3, 4]).max() <= 1e-14


def test_spans_are_clamped_after_the_update():
    """1/4 - 1 · 1/2 and 1/4 + 1 · 1 lie outside; 1/4 - 1/8 does not."""
    train_config = TrainConfig(optimizer="sgd", learning_rate=1.0, clip=0.0)
    p = parameters.initialize(CONFIG)
    for gradient, after in [(0.5, 0.0), (-1.0, 1.0), (0.125, 0.125)]:
        p["layers.0.attention.span"] = np.array([0.25])
        g = p.zeros_like()
        g["layers.0.attention.span"] = np.array([gradient])
        optimizers.update(p, g, optimizers.initialize(train_config, p), train_config)
        assert p["layers.0.attention.span"].tolist() == [after]


def test_warm_up_counts_from_one_and_the_last_updates_are_scaled():
    """W = 4 of 6 updates, the last 2 at a quarter: 1/4, 2/4, 3/4, 1, 1/4, 1/4 of the rate 1/2."""
    found = steps(6 * [[8, -8]], optimizer="sgd", warm_up=4, last_updates=2, last_factor=0.25)
    assert_equal(found, [[rate, -rate] for rate in (1, 2, 3, 4, 1, 1)])


def test_warm_up_and_last_updates_multiply():
    """W = 4 and the last two of three: u = 2 and 3 at 2/4 and 3/4 of a quarter of 1/2."""
    found = steps(3 * [[32, -32]], optimizer="sgd", warm_up=4, last_updates=2, last_factor=0.25)
    assert_equal(found, [[4, -4], [2, -2], [3, -3]])
