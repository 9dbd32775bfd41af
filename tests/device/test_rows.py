"""Layer norm, softmax loss and the embedding's gradient on the device beside the host's, and their kernels' barriers."""

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import cupy

from refimpl.layers import embedding, layer_norm, softmax_loss

WITHIN = {"float32": 2e-5, "float64": 1e-13}


def normal(*shape, dtype="float64", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def assert_close(found, expected, dtype):
    for there, here in zip(found, expected, strict=True):
        assert there.dtype == here.dtype
        np.testing.assert_allclose(there.get(), here, rtol=WITHIN[dtype], atol=WITHIN[dtype] * np.abs(here).max())


def both(function, *arguments):
    """Of the host, and of the device with its threads in a random order."""
    with cuda_on_cpu.strict_order(4):
        return function(*arguments), function(*map(cupy.asarray, arguments))


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 300), (1, 1), (40, 33)])
def test_layer_norm(dtype, shape):
    def function(x, gain, bias, dy):
        y, saved = layer_norm.forward(x, gain, bias)
        return y, *layer_norm.backward(dy, saved)

    width = shape[-1:]
    weights = normal(*width, dtype=dtype, seed=1), normal(*width, dtype=dtype)
    here, there = both(function, normal(*shape, dtype=dtype), *weights, normal(*shape, dtype=dtype, seed=2))
    assert_close(there, here, dtype)


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 300), (2, 1)])
def test_softmax_loss(dtype, shape):
    def function(scores, targets, d_loss):
        loss, saved = softmax_loss.forward(scores, targets)
        return loss, softmax_loss.backward(d_loss, saved)

    targets = np.random.default_rng(3).integers(0, shape[-1], shape[:-1]).astype("int32")
    here, there = both(function, 30 * normal(*shape, dtype=dtype), targets, normal(*shape[:-1], dtype=dtype))
    assert_close(there, here, dtype)


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("words", [1, 4, 400])
def test_embeddings_gradient(dtype, words):
    def function(table, tokens, dx):
        return (embedding.backward(dx, embedding.forward(table, tokens)[1]),)

    tokens = np.random.default_rng(3).integers(0, words, (3, 90)).astype("uint8" if words < 256 else "int64")
    given = normal(words, 7, dtype=dtype), tokens, normal(3, 90, 7, dtype=dtype)
    here, there = both(function, *given)
    assert_close(there, here, dtype)
    np.testing.assert_array_equal(function(*map(cupy.asarray, given))[0].get(), there[0].get())
