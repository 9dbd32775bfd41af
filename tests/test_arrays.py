"""The array module: libraries, random streams, views, threads."""

import sys
import types

import numpy as np
import pytest

from refimpl import arrays, computing
from refimpl.errors import InputError


@pytest.fixture
def cupy(monkeypatch):
    """A stand-in for CuPy: an array type of its name in a module of its name."""
    module = types.ModuleType("cupy")
    module.ndarray = type("ndarray", (), {"__module__": "cupy", "get": lambda self: np.ones(2)})
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def test_the_library_comes_from_the_arrays(cupy):
    device = cupy.ndarray()
    assert arrays.array_module({"x": np.zeros(1), "y": None}) is np
    assert arrays.array_module({"x": device, "y": None}) is cupy
    assert arrays.is_device(device)
    assert not arrays.is_device(np.zeros(1))
    np.testing.assert_array_equal(arrays.to_host(device), [1, 1])


def test_mixing_host_and_device_names_both_arguments(cupy):
    with pytest.raises(InputError, match="one device, got keys on the GPU and queries on the host"):
        arrays.array_module({"queries": np.zeros(1), "keys": cupy.ndarray()})


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
@pytest.mark.parametrize("width", [1, arrays.WIDE - 1, arrays.WIDE, 300])
def test_scattered_rows_add_up_to_the_bits_of_add_at(width, dtype):
    rng = np.random.default_rng(0)
    index, rows = rng.integers(0, 7, (3, 50)).astype("uint8"), rng.standard_normal((3, 50, width)).astype(dtype)
    found, expected = (rng.standard_normal((9, width)).astype(dtype) for _ in range(2))
    found[...] = expected
    arrays.scatter_add(found, index, rows)
    np.add.at(expected, index, rows)
    np.testing.assert_array_equal(found, expected)
    arrays.scatter_add(found, index[:0], rows[:0])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(IndexError):
        arrays.scatter_add(found, index + 9, rows)
    with pytest.raises(ValueError, match=r"broadcast|argument 2"):
        arrays.scatter_add(found, index, rows[:2])


def test_random_streams_depend_on_seed_purpose_and_indices_alone():
    first = arrays.random_stream(1, "a", 2).random(4)
    arrays.random_stream(5, "b").random(100)
    np.testing.assert_array_equal(arrays.random_stream(1, "a", 2).random(4), first)
    for other in (arrays.random_stream(2, "a", 2), arrays.random_stream(1, "b", 2), arrays.random_stream(1, "a", 3)):
        assert (other.random(4) != first).all()


def test_diagonals_by_hand():
    """T = 2, S = 3: row 0 sees columns 2, 1, 0 and row 1 columns 3, 2, 1; the view writes through."""
    product = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(arrays.diagonals(product, 3), [[2, 1, 0], [7, 6, 5]])
    arrays.diagonals(product, 3)[...] = -1
    np.testing.assert_array_equal(product, [[-1, -1, -1, 3], [4, -1, -1, -1]])


def test_square_roots_are_as_exact_as_the_dtype():
    assert arrays.square_root(2, np.longdouble) == np.sqrt(np.longdouble(2))
    assert arrays.square_root(2, np.longdouble) != np.sqrt(2.0)
    assert arrays.square_root(2, np.complex128) == np.sqrt(2.0)
    assert arrays.square_root(2, np.float32).dtype == np.float32


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
def test_the_largest_exponent_survives_division_by_a_small_weight(dtype):
    largest = np.exp(np.array(arrays.largest_exponent(dtype), dtype))
    assert np.isfinite(largest / np.finfo(dtype).eps)


def most_blas_threads():
    return max(library["num_threads"] for library in arrays.blas_libraries())


def test_a_limit_of_threads_holds_blas_and_workers_and_ends():
    before = most_blas_threads(), arrays.available_cores()
    with arrays.limit_threads(3):
        assert (most_blas_threads(), arrays.available_cores()) == (3, 3)
        with arrays.limit_threads(1):
            assert (most_blas_threads(), arrays.available_cores()) == (1, 1)
        assert (most_blas_threads(), arrays.available_cores()) == (3, 3)
    assert (most_blas_threads(), arrays.available_cores()) == before


def test_without_a_number_the_limit_is_the_cores_and_what_blas_was_told(monkeypatch):
    monkeypatch.setattr(arrays.cores, "available", lambda: 2)
    with arrays.limit_threads(1), arrays.limit_threads(None):
        assert (most_blas_threads(), arrays.available_cores()) == (1, 1)
    with arrays._blas().limit(limits=5, user_api="blas"), arrays.limit_threads():
        assert (most_blas_threads(), arrays.available_cores()) == (2, 2)
    with arrays._blas().limit(limits=1, user_api="blas"), arrays.limit_threads():
        assert (most_blas_threads(), arrays.available_cores()) == (1, 2)


def test_the_installed_name_is_what_this_process_computes_with():
    with arrays.limit_threads(3):
        now = computing.computing()
    libraries = {(lib["version"], lib["architecture"]) for lib in arrays.blas_libraries()}  # the stand-in device has its own
    assert now["numpy"] == np.__version__
    assert now["threads"] == 3
    assert any(all(word in now["blas"] for word in library) for library in libraries)


def test_what_differs_is_told_by_name():
    now = {"numpy": "2", "blas": "openblas 1 Zen", "threads": 2}
    assert computing.difference(now, dict(now)) == ""
    assert computing.difference({**now, "threads": 4}, now) == "threads 4 before, 2 now"
    assert computing.difference({"threads": 2}, now) == "numpy None before, 2 now; blas None before, openblas 1 Zen now"


def test_threads_return_results_in_order_and_hold_blas_to_one_thread_each():
    from threadpoolctl import threadpool_info

    def threads(item):
        return item, max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")

    assert arrays.map_in_threads(threads, range(5), 2) == [(i, 1) for i in range(5)]
    with pytest.raises(ZeroDivisionError):
        arrays.map_in_threads(lambda item: 1 // item, [1, 0], 2)
