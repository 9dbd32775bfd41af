"""Stream capture, graphs and TF32 on the stand-in: what is kept, what it does when launched, what CUDA forbids meanwhile."""

import contextlib
import ctypes

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import HARDWARE, cupy

if HARDWARE:
    pytest.skip("tests of the stand-in itself", allow_module_level=True)

RELAXED, LOCAL = cupy.cuda.runtime.streamCaptureModeRelaxed, cupy.cuda.runtime.streamCaptureModeThreadLocal
ADD = cupy.RawKernel("extern \"C\" __global__ void add(double* y, double x, const double* more) "
                     "{ y[threadIdx.x] += x + (more ? *more : 0); }", "add")


@contextlib.contextmanager
def capture(non_blocking=True, mode=RELAXED):
    """Yields a list, to which the graph is appended at the end."""
    stream, graphs = cupy.cuda.Stream(non_blocking=non_blocking), []
    with stream:
        stream.begin_capture(mode)
        try:
            yield graphs
        finally:
            graphs.append(stream.end_capture())


def test_what_is_captured_is_done_when_the_graph_is_launched_with_the_arguments_it_had():
    y, more, x = cupy.zeros(3), cupy.ones(()), np.float64(2)
    with capture() as graphs:
        ADD((1,), (3,), (y, x, more))
        x += 100
        y *= 2
        y[0] = y[1]
        y[2:].data.memset_async(0, 8)
    np.testing.assert_array_equal(y.get(), 0)
    more[...] = 10  # read where it lies, at each launch
    cuda_on_cpu.reset_counters()
    graphs[0].launch()
    np.testing.assert_array_equal(y.get(), [24, 24, 0])
    counted = cuda_on_cpu.counters()
    assert (counted["launches"], counted["graph_launches"], counted["graph_nodes"]) == (0, 1, 4)
    assert counted["device_to_device_copies"] == counted["memsets"] == counted["gemms"] == 0
    graphs[0].launch()
    np.testing.assert_array_equal(y.get(), [72, 72, 0])


def test_a_product_is_captured_with_its_scalars_and_counted_by_its_operations():
    a, y, alpha, beta = cupy.full((2, 2), 3.0), cupy.empty((2, 2)), np.array(2.0), np.array(0.0)
    blas, handle = ctypes.CDLL("libcublas.so.12"), cupy.cuda.get_cublas_handle()
    with capture() as graphs:
        stream = cupy.cuda.get_current_stream()
        blas.cublasSetStream_v2(ctypes.c_void_p(handle), ctypes.c_void_p(stream.ptr))
        pointer = ctypes.c_void_p
        assert not blas.cublasDgemm_v2(pointer(handle), 0, 0, 2, 2, 2, pointer(alpha.ctypes.data), pointer(a.data.ptr), 2,
                                       pointer(a.data.ptr), 2, pointer(beta.ctypes.data), pointer(y.data.ptr), 2)
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            a @ a  # CuPy's own refusal, which is not the stand-in's
    alpha[...] = 0
    cuda_on_cpu.reset_counters()
    graphs[0].launch()
    np.testing.assert_array_equal(y.get(), 36)
    assert (cuda_on_cpu.counters()["gemm_operations"], cuda_on_cpu.counters()["gemms"]) == (16, 0)
    np.testing.assert_array_equal((a @ a).get(), 18)


runtime = cupy.cuda.runtime
HOST = np.zeros(2)
FORBIDDEN = {  # the call, the stream's kind, the mode, the error
    "malloc": (lambda y: runtime.malloc(64), True, LOCAL, "cudaErrorStreamCaptureUnsupported"),
    "free": (lambda y: runtime.free(y.data.ptr), True, LOCAL, "cudaErrorStreamCaptureUnsupported"),
    "pinned": (lambda y: runtime.hostAlloc(64, 0), True, LOCAL, "cudaErrorStreamCaptureUnsupported"),
    "copy": (lambda y: runtime.memcpy(y.data.ptr, HOST.ctypes.data, 16, 1), True, LOCAL,
             "cudaErrorStreamCaptureUnsupported"),
    "copy on the legacy stream": (lambda y: runtime.memcpy(y.data.ptr, HOST.ctypes.data, 16, 1), False, RELAXED,
                                  "cudaErrorStreamCaptureImplicit"),
    "copy of unpinned memory": (lambda y: runtime.memcpyAsync(
        y.data.ptr, HOST.ctypes.data, 16, 1, cupy.cuda.get_current_stream().ptr), True, RELAXED,
        "cudaErrorStreamCaptureUnsupported"),
    "wait": (lambda y: cupy.cuda.get_current_stream().synchronize(), True, RELAXED, "cudaErrorStreamCaptureUnsupported"),
    "wait for all": (lambda y: runtime.deviceSynchronize(), True, RELAXED, "cudaErrorStreamCaptureUnsupported"),
    "launch on the legacy stream": (lambda y: ADD((1,), (2,), (y, 1.0, None), stream=cupy.cuda.Stream.null), False,
                                    RELAXED, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT"),
    "event from outside": (lambda y: cupy.cuda.get_current_stream().wait_event(EVENT), True, RELAXED,
                           "cudaErrorStreamCaptureIsolation"),
    "event from within": (lambda y: cupy.cuda.get_current_stream().record().synchronize(), True, RELAXED,
                          "cudaErrorCapturedEvent"),
}
EVENT = cupy.cuda.Stream.null.record()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_capture_forbids_fails_and_ends_it(name):
    call, non_blocking, mode, error = FORBIDDEN[name]
    y = cupy.zeros(2)
    with pytest.raises(Exception, match="Invalidated"), capture(non_blocking, mode):  # noqa: PT012
        with pytest.raises(Exception, match=error):
            call(y)
        with pytest.raises(Exception, match=r"INVALIDATED|Invalidated|invalidated"):
            ADD((1,), (2,), (y, 1.0, None))
    y += 1  # and what comes after is done again
    np.testing.assert_array_equal(y.get(), 1)


@pytest.mark.parametrize("name", ["read", "nothing"])
def test_what_cupy_forbids_itself_does_not_end_it(name):
    y = cupy.zeros(2)
    with capture() as graphs:
        if name == "read":
            with pytest.raises(RuntimeError, match="capturing"):
                y.get()
        y += 1
    graphs[0].launch()
    np.testing.assert_array_equal(y.get(), 1)


def test_memory_may_be_had_in_a_relaxed_capture_and_on_independent_streams_work_goes_on():
    with capture() as graphs:
        runtime.free(runtime.malloc(64))
        y = cupy.zeros(2)
        with cupy.cuda.Stream.null:
            z = cupy.ones(2) + 1
    np.testing.assert_array_equal(z.get(), 2)
    graphs[0].launch()
    np.testing.assert_array_equal(y.get(), 0)


def test_the_legacy_stream_and_one_that_captures_cant_begin():
    with pytest.raises(RuntimeError, match="legacy"):
        cupy.cuda.Stream.null.begin_capture()
    with capture(), pytest.raises(Exception, match="cudaErrorIllegalState"):
        cupy.cuda.get_current_stream().begin_capture()
    with pytest.raises(Exception, match="cudaErrorIllegalState"):
        cupy.cuda.Stream().end_capture()


def test_a_graph_that_is_dropped_is_gone():
    before = cuda_on_cpu.counters()["graphs"]
    with capture() as graphs:
        cupy.zeros(2)
    assert cuda_on_cpu.counters()["graphs"] == before + 1
    graphs.clear()
    assert cuda_on_cpu.counters()["graphs"] == before


@pytest.mark.parametrize("columns", [3, 1])
@pytest.mark.parametrize("turned", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_products_in_tf32_round_factors_to_ten_bits(columns, turned):
    rng, handle, cublas = np.random.default_rng(3), cupy.cuda.get_cublas_handle(), cupy.cuda.cublas
    factors = rng.standard_normal((4, 5), "float32"), rng.standard_normal((5, columns), "float32")
    steps = (2.0 ** (np.floor(np.log2(np.abs(x))) - 10) for x in factors)
    rounded = [np.round(x / step) * step for x, step in zip(factors, steps, strict=True)]
    there = [cupy.asarray(np.ascontiguousarray(x if turn else x.T)) for x, turn in zip(factors, turned, strict=True)]
    lines = [x.shape[1 if turn else 0] for x, turn in zip(factors, turned, strict=True)]
    y, one, zero = cupy.empty((columns, 4), "float32"), np.ones(1, "float32"), np.zeros(1, "float32")
    cuda_on_cpu.reset_counters()
    for mode, (a, b) in ((3, rounded), (0, factors)):
        cublas.setMathMode(handle, mode)
        cublas.sgemm(handle, *turned, 4, columns, 5, one.ctypes.data, there[0].data.ptr, lines[0], there[1].data.ptr,
                     lines[1], zero.ctypes.data, y.data.ptr, 4)
        np.testing.assert_allclose(y.get().T, a @ b, rtol=1e-5, atol=1e-6)
    assert (cuda_on_cpu.counters()["tf32_gemms"], cuda_on_cpu.counters()["gemms"]) == (1, 2)
