"""Bounds hold for right implementations that are not ours: another order of operations, a processor that flushes to 0."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from refimpl.functions import evaluate
from refimpl.golden import bounds, orders, vectors, verdicts
from refimpl.golden.cases import all_cases
from refimpl.layers import masked_softmax

CASES = {case.id: case for case in all_cases()}
STORED = [vectors.load_case(entry) for entry in vectors.entries() if entry["result"] == "valid"]


@contextmanager
def flushing():
    """The processor takes what is below the smallest normal number for 0, before and after every operation."""
    assert torch.set_flush_denormal(True)
    try:
        assert np.float32(2**-126) / np.float32(2) == 0
        yield
    finally:
        torch.set_flush_denormal(False)


def farthest(stored, dtype, implementation):
    """By how many bounds what the package computes in a dtype is off."""
    case = CASES[stored.id]
    inputs = bounds.in_dtype(case.inputs, dtype)
    with np.errstate(under="ignore"), implementation():
        got = evaluate(case.function, case.settings, inputs)
    return verdicts.judge(stored, got, dtype).off


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["published", "log-sum-exp", "flushing"])
def test_another_right_implementation_is_well_within_all_bounds(name, dtype):
    """But for a closed slot far above the others, which the published order's softmax lets underflow all that count."""
    implementation = flushing if name == "flushing" else orders.ORDERS[name]
    off = {stored.id: farthest(stored, dtype, implementation) for stored in STORED}
    lost = {"attention/closed-above@exact", "attention/closed-above@transformer-xl"}
    beyond = {name for name, distance in off.items() if distance > 0.5}
    assert beyond == (lost if name == "published" else set())


@pytest.mark.parametrize("name", ["published", "log-sum-exp"])
def test_another_order_is_the_same_function(name):
    rng = np.random.default_rng(3)
    logits, d_attention = rng.standard_normal((2, 2, 3, 4, 7)).astype(np.longdouble)
    weight = np.clip(rng.uniform(-0.5, 1.5, (3, 4, 7)), 0, 1).astype(np.longdouble)
    present = rng.random((4, 7)) < 0.8
    present[1] = False
    weight *= present
    assert (weight == 0).any()
    for epsilon in (0.0, 1e-8, 0.25):
        ours, saved = masked_softmax.forward(logits, weight, present, epsilon)
        with orders.ORDERS[name]():
            theirs, theirs_saved = masked_softmax.forward(logits, weight, present, epsilon)
            theirs_gradients = masked_softmax.backward(d_attention, theirs_saved)
        gradients = masked_softmax.backward(d_attention, saved), theirs_gradients
        for one, other in [(ours, theirs), *zip(*gradients, strict=True)]:
            assert np.abs((one - other) * present).max() <= 1e-17 * np.abs(one).max()


def test_orders_that_give_the_same_bits_are_one():
    for name, count in (("linear/one-by-one", 0), ("attention/ordinary@exact", 2), ("persistent-attention/heads", 0)):
        assert len(bounds._others(CASES[name], bounds.expected(CASES[name]))) == count, name


def test_what_is_lost_below_the_smallest_number_is_measured():
    """y = (x₁ + x₂) · 2¹⁰⁰ with x of half the smallest number: up to 2¹⁰⁰ η may be lost, which is 2¹²⁴ η in units of u."""
    smallest = np.longdouble(bounds.SMALLEST["float32"])
    stream = np.random.default_rng(0)
    x = np.full(64, smallest / 2)
    seen = {float(change / smallest) for change in
            bounds._loss(bounds.Operation(np.positive, "__call__", [x], {}, x), stream, smallest)}
    assert seen == {0, -0.5}
    total = bounds.Operation(np.add, "reduce", [x.reshape(1, 64)], {"axis": 1}, x.reshape(1, 64).sum(1))
    assert np.abs(bounds._loss(total, stream, smallest)) == 32 * smallest
    large = bounds.Operation(np.add, "reduce", [np.ones((1, 64), np.longdouble)], {"axis": 1}, np.full(1, np.longdouble(64)))
    assert np.abs(bounds._loss(large, stream, smallest)) == 64 * smallest
    exact = bounds.Operation(np.negative, "__call__", [x], {}, -x)
    assert not np.any(bounds._loss(exact, stream, smallest))
