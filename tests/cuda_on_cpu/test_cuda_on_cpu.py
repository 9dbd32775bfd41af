"""Tests of the stand-in device itself: what it computes, what it catches, what it counts."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import compile_check
import cuda_on_cpu
import numpy as np
import pytest
from stand_in import BUILD, cupy, cupyx

HERE = Path(__file__).resolve().parent
RNG = np.random.default_rng(0)

SOFTMAX = r"""
extern "C" __global__ __launch_bounds__(128) void softmax(const float* x, float* y, int n) {
    __shared__ float partial[128];
    int t = threadIdx.x;
    x += blockIdx.x * n;
    y += blockIdx.x * n;
    float largest = -1e30f, total = 0;
    for (int i = t; i < n; i += 128) largest = fmaxf(largest, x[i]);
    partial[t] = largest;
    __syncthreads();
    for (int half = 64; half; half >>= 1) {
        if (t < half) partial[t] = fmaxf(partial[t], partial[t + half]);
        __syncthreads();
    }
    largest = partial[0];
    __syncthreads();
    for (int i = t; i < n; i += 128) total += y[i] = expf(x[i] - largest);
    partial[t] = total;
    __syncthreads();
    for (int half = 64; half; half >>= 1) {
        if (t < half) partial[t] += partial[t + half];
        __syncthreads();
    }
    for (int i = t; i < n; i += 128) y[i] /= partial[0];
}
"""

WARP_SOFTMAX = r"""
extern "C" __global__ void softmax(const float* x, float* y, int n) {  // one warp a row
    int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    x += row * n;
    y += row * n;
    float largest = -1e30f, total = 0;
    for (int i = lane; i < n; i += 32) largest = fmaxf(largest, x[i]);
    for (int offset = 16; offset; offset >>= 1)
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, offset));
    for (int i = lane; i < n; i += 32) total += expf(x[i] - largest);
    for (int offset = 16; offset; offset >>= 1) total += __shfl_down_sync(0xffffffff, total, offset);
    total = __shfl_sync(0xffffffff, total, 0);
    for (int i = lane; i < n; i += 32) y[i] = expf(x[i] - largest) / total;
}
"""

# In ascending order each thread finds what its neighbour has written, so the missing barrier is not noticed.
SHIFT = r"""
extern "C" __global__ void shift(const float* x, float* y) {
    __shared__ float row[256];
    row[threadIdx.x] = x[threadIdx.x];
    BARRIER
    y[threadIdx.x] = threadIdx.x ? row[threadIdx.x - 1] : 0;
}
"""


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def normal(*shape, dtype="float32"):
    return RNG.standard_normal(shape).astype(dtype)


def run_python(code, **environment):
    """Run code in a fresh interpreter that finds the tool."""
    merged = {**os.environ, **environment, "PYTHONPATH": str(HERE)}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.run(command, env=merged, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_softmax_with_shared_memory(seed):
    x = normal(5, 700)
    y = cupy.empty((5, 700), "float32")
    if seed is None:
        cupy.RawKernel(SOFTMAX, "softmax")((5,), (128,), (cupy.asarray(x), y, np.int32(700)))
    else:
        with cuda_on_cpu.strict_order(seed):
            cupy.RawKernel(SOFTMAX, "softmax")((5,), (128,), (cupy.asarray(x), y, np.int32(700)))
    np.testing.assert_allclose(y.get(), softmax(x), rtol=2e-6)


def test_softmax_with_warp_shuffles():
    x = normal(6, 77)
    y = cupy.empty((6, 77), "float32")
    with cuda_on_cpu.strict_order(3):
        cupy.RawKernel(WARP_SOFTMAX, "softmax")((2,), (32, 3), (cupy.asarray(x), y, np.int32(77)))
    np.testing.assert_allclose(y.get(), softmax(x), rtol=2e-6)


def test_warp_operations():
    code = r"""
    extern "C" __global__ void votes(int* y) {
        int t = threadIdx.x;
        int* own = y + 8 * t;
        own[0] = __ballot_sync(0xffffffff, t % 3 == 0);
        own[1] = __any_sync(0xffffffff, t == 40) + 2 * __all_sync(0xffffffff, t < 40);
        own[2] = __shfl_up_sync(0xffffffff, t, 2);
        own[3] = __shfl_sync(0xffffffff, t, 1, 8);
        own[4] = __reduce_add_sync(0xffffffff, t);
        if (t % 32 < 16) own[5] = __shfl_xor_sync(0x0000ffff, t, 1);
        else own[5] = __shfl_down_sync(0xffff0000, t, 1, 16);
        own[6] = __syncthreads_count(t % 2);
        __syncwarp();
        own[7] = __popc(__ballot_sync(0xffffffff, 1));
    }"""
    y = cupy.zeros((64, 8), "int32")
    cupy.RawKernel(code, "votes")((1,), (64,), (y,))
    t = np.arange(64)
    lane, warp = t % 32, t // 32 * 32
    ballot = [sum(1 << i for i in range(32) if (w + i) % 3 == 0) for w in warp]
    expected = [
        np.array(ballot, "uint32").view("int32"),
        np.where(t < 32, 2, 1),
        np.where(lane < 2, t, t - 2),
        t // 8 * 8 + 1,
        np.where(t < 32, np.arange(32).sum(), np.arange(32, 64).sum()),
        np.where(lane < 16, t ^ 1, np.where(lane == 31, t, t + 1)),
        np.full(64, 32),
        np.full(64, 32),
    ]
    np.testing.assert_array_equal(y.get(), np.stack(expected, 1))


def test_dynamic_shared_memory_templates_and_constants():
    code = r"""
    __constant__ float scale[2];
    __global__ void not_asked_for(float* x) {}
    template <class T>
    __global__ void reverse(T* x) {
        extern __shared__ __align__(16) char memory[];
        T* held = reinterpret_cast<T*>(memory);
        held[threadIdx.x] = x[threadIdx.x];
        __syncthreads();
        x[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x] * T(scale[1]);
    }"""
    names = ["reverse<float>", "reverse<long long>"]
    module = cupy.RawModule(code=code, name_expressions=names, options=("-std=c++17",))
    pointer = module.get_global("scale")
    cupy.ndarray(2, "float32", pointer)[:] = cupy.asarray([1, 3], "float32")
    for dtype, name in zip(("float32", "int64"), names, strict=True):
        x = cupy.arange(96, dtype=dtype)
        module.get_function(name)((1,), (96,), (x,), shared_mem=96 * x.itemsize)
        np.testing.assert_array_equal(x.get(), 3 * np.arange(96)[::-1])


def test_a_kernel_may_have_the_name_of_a_library_function():
    y = cupy.zeros(4)
    cupy.RawKernel('extern "C" __global__ void step(double* y) { y[threadIdx.x] = 3; }', "step")((1,), (4,), (y,))
    np.testing.assert_array_equal(y.get(), 3)


def test_cupy_kernel_classes():
    x = normal(5, 70)
    device = cupy.asarray(x)
    chosen = cupy.ElementwiseKernel("T x, T y", "T z", "z = x > 0 ? x * y : y", "chosen")
    np.testing.assert_array_equal(chosen(device, device).get(), np.where(x > 0, x * x, x))
    row_norm = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = sqrt(a)", "0", "row_norm")
    np.testing.assert_allclose(row_norm(device, axis=1).get(), np.sqrt((x * x).sum(1)), rtol=1e-6)

    @cupy.fuse()
    def squared(v):
        return cupy.sum(v * v + 1, axis=1)

    np.testing.assert_allclose(squared(device).get(), (x * x + 1).sum(1), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_matrix_products(dtype):
    def matrix(*shape):
        return normal(*shape, dtype="float64").astype(dtype) + (1j * normal(*shape) if dtype[0] == "c" else 0)

    pairs = [((4, 6), (6, 3)), ((2, 4, 6), (2, 6, 3)), ((2, 4, 6), (6, 3)), ((3, 1, 4, 6), (2, 6, 5)), ((6,), (6,))]
    tolerance = 1e-5 if dtype in ("float32", "complex64") else 1e-12
    for a_shape, b_shape in pairs:
        a, b = matrix(*a_shape).astype(dtype), matrix(*b_shape).astype(dtype)
        result = cupy.matmul(cupy.asarray(a), cupy.asarray(b))
        assert result.dtype == dtype
        np.testing.assert_allclose(result.get(), a @ b, rtol=tolerance, atol=tolerance)
    a, b = matrix(6, 4).astype(dtype), matrix(3, 6).astype(dtype)
    np.testing.assert_allclose((cupy.asarray(a).T @ cupy.asarray(b).T).get(), a.T @ b.T, rtol=tolerance, atol=tolerance)
    a, b = matrix(2, 3, 4, 5).astype(dtype), matrix(3, 5, 6).astype(dtype)
    product = cupy.einsum("bhld,hde->bhle", cupy.asarray(a), cupy.asarray(b))
    np.testing.assert_allclose(product.get(), np.einsum("bhld,hde->bhle", a, b), rtol=tolerance, atol=tolerance)


FUNCTIONS = {
    "reductions": lambda xp, x, i: xp.stack([x.sum(1), x.max(1), x.min(1), x.mean(1), x.var(1)]),
    "cumsum": lambda xp, x, i: xp.cumsum(x, axis=1),
    "argmax": lambda xp, x, i: x.argmax(1),
    "elementwise": lambda xp, x, i: xp.exp(x) + xp.sqrt(xp.abs(x)) + xp.tanh(x) * xp.log1p(x * x),
    "where": lambda xp, x, i: xp.where(x > 0, x, -xp.inf),
    "concatenate": lambda xp, x, i: xp.concatenate([x, 2 * x], axis=1),
    "take_along_axis": lambda xp, x, i: xp.take_along_axis(x, i[None] * xp.ones((4, 1), int), axis=1),
    "fancy": lambda xp, x, i: x[:, i],
    "mask": lambda xp, x, i: x[x > 0],
    "clip": lambda xp, x, i: xp.clip(x, 0, 1),
    "tril": lambda xp, x, i: xp.tril(x),
    "pad": lambda xp, x, i: xp.pad(x, ((0, 0), (1, 2))),
    "as_strided": lambda xp, x, i: xp.lib.stride_tricks.as_strided(x, (4, 3, 4), (24, 4, 4)) + 0,
    "complex": lambda xp, x, i: xp.exp(x + 1e-20j) / (x + 2j) - xp.tanh(x * (1 + 1j)) + xp.sqrt(x + 0j),
    "half": lambda xp, x, i: (x.astype("float16") + 1).sum(1),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_array_functions(name):
    x, i = normal(4, 6), np.array([0, 2, 2, 5])
    expected = FUNCTIONS[name](np, x, i)
    with cuda_on_cpu.strict_order(5):
        result = FUNCTIONS[name](cupy, cupy.asarray(x), cupy.asarray(i))
    assert result.dtype == expected.dtype
    np.testing.assert_allclose(result.get(), expected, rtol=1e-3 if name == "half" else 2e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:`ndarray.scatter_add` is deprecated")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_scattered_additions(dtype):
    x, i = (10 * normal(4, 6)).astype(dtype), np.array([0, 2, 2, 5])
    by_at, by_scatter, put = cupy.asarray(x), cupy.asarray(x), cupy.asarray(x)
    expected = x.copy()
    np.add.at(expected, (slice(None), i), 1)
    cupy.add.at(by_at, (slice(None), cupy.asarray(i)), 1)
    cupyx.scatter_add(by_scatter, (slice(None), cupy.asarray(i)), 1)
    np.testing.assert_allclose(by_at.get(), expected, rtol=1e-6)
    np.testing.assert_allclose(by_scatter.get(), expected, rtol=1e-6)
    np.put_along_axis(x, i[:, None], 7, axis=1)
    cupy.put_along_axis(put, cupy.asarray(i)[:, None], 7, axis=1)
    np.testing.assert_array_equal(put.get(), x)


def test_complex_step():
    a, b = normal(3, 4, dtype="float64"), normal(4, 2, dtype="float64")
    direction = normal(3, 4, dtype="float64")

    def loss(x):
        e = cupy.exp(x @ cupy.asarray(b))
        return cupy.log(e / e.sum(1, keepdims=True))[:, 0].sum()

    step = loss(cupy.asarray(a + 1e-30j * direction)).get().imag / 1e-30
    p = softmax(a @ b)
    gradient = (np.eye(2)[0] - p) @ b.T
    np.testing.assert_allclose(step, (gradient * direction).sum(), rtol=1e-13)


def shifted(barrier, seed):
    x, y = cupy.arange(1, 257, dtype="float32"), cupy.empty(256, "float32")
    shift = cupy.RawKernel(SHIFT.replace("BARRIER", barrier), "shift")
    if seed is None:
        shift((1,), (256,), (x, y))
    else:
        with cuda_on_cpu.strict_order(seed):
            shift((1,), (256,), (x, y))
    return y.get()


def test_missing_barrier_shows_in_random_order():
    right = np.arange(256)
    np.testing.assert_array_equal(shifted("", None), right)  # hidden by the plain order
    for seed in range(3):
        assert not np.array_equal(shifted("", seed), right)
        np.testing.assert_array_equal(shifted("__syncthreads();", seed), right)


def test_barriers_in_both_branches_are_refused_in_strict_order():
    code = r"""
    extern "C" __global__ void branches() {
        if (threadIdx.x < 40)
            __syncthreads();
        else
            __syncthreads();
    }"""
    cupy.RawKernel(code, "branches")((1,), (64,), ())
    message = r"kernel branches.*not all threads.*line 4.*line 6"
    with cuda_on_cpu.strict_order(0), pytest.raises(cupy.cuda.driver.CUDADriverError, match=message):
        cupy.RawKernel(code, "branches")((1,), (64,), ())


def test_deadlock_is_reported():
    code = r"""
    extern "C" __global__ void stuck() {
        if (threadIdx.x == 5) __syncthreads();
        else __syncwarp();
    }"""
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match=r"kernel stuck.*deadlock.*lanes 0xffffffff.*thread 5"):
        cupy.RawKernel(code, "stuck")((1,), (32,), ())
    assert float(cupy.ones(3).sum()) == 3  # the next launch works


def test_launch_limits():
    x, y = cupy.zeros((1, 10), "float32"), cupy.zeros((1, 10), "float32")
    softmax_kernel = cupy.RawKernel(SOFTMAX, "softmax")
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="softmax: threads is 256, the limit is 128"):
        softmax_kernel((1,), (256,), (x, y, np.int32(10)))
    with pytest.raises(cupy.cuda.driver.CUDADriverError, match="dynamic shared memory"):
        softmax_kernel((1,), (128,), (x, y, np.int32(10)), shared_mem=48 << 10)
    assert softmax_kernel.max_threads_per_block == 128
    assert softmax_kernel.shared_size_bytes == 512


def test_kernels_that_only_the_cpu_would_accept_are_refused():
    with pytest.raises(cupy.cuda.compiler.CompileException, match="std::vector"):
        cupy.RawKernel('extern "C" __global__ void f() { std::vector<int> x; }', "f").compile()


def test_copies_outside_an_allocation_are_refused():
    memory = cupy.cuda.Memory(100)
    host = np.zeros(200, "uint8")
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="cudaMemcpy: 200 bytes"):
        cupy.cuda.runtime.memcpy(host.ctypes.data, memory.ptr, 200, cupy.cuda.runtime.memcpyDeviceToHost)


UNIMPLEMENTED = {
    "default_rng": (lambda: cupy.random.default_rng(0).standard_normal(4), "default_rng"),
    "bit generator": (lambda: cupy.random.XORWOW(1), "default_rng"),
    "curand": (lambda: cupy.random.rand(4), "curandCreateGenerator"),
    "sort": (lambda: cupy.sort(cupy.arange(4)), "cupy.cuda.thrust.sort"),
    "argsort": (lambda: cupy.argsort(cupy.arange(4)), "cupy.cuda.thrust.argsort"),
    "cub": (lambda: cupy.cuda.cub.device_reduce(cupy.ones(3), 0, (0,), (), None, False), "cupy.cuda.cub.device_reduce"),
    "fft": (lambda: cupy.fft.fft(cupy.ones(4)), "cupy.fft"),
    "cusolver": (lambda: cupy.linalg.cholesky(cupy.eye(3)), "cusolver"),
    "cublas": (lambda: cupy.linalg.inv(cupy.ones((2, 3, 3))), "cublas|cusolver"),
    "half product": (lambda: cupy.ones((2, 2), "float16") @ cupy.ones((2, 2), "float16"), "element types 2, 2, 2"),
    "memory pool": (lambda: cupy.cuda.runtime.deviceGetDefaultMemPool(0), "cudaDeviceGetDefaultMemPool"),
    "driver": (lambda: cupy.cuda.driver.moduleLoad("x"), "cuModuleLoad"),
}


@pytest.mark.parametrize("name", UNIMPLEMENTED)
def test_what_is_not_implemented_raises_and_names_the_call(name):
    call, message = UNIMPLEMENTED[name]
    with pytest.raises(Exception, match=f"cuda-on-cpu: .*({message}).* not implemented"):
        call()


ASAN_SCRIPT = """
import cuda_on_cpu
cuda_on_cpu.activate({build!r}, asan=True)
import cupy
source = '''
extern "C" __global__ void fill(float* x, int n) {{
    __shared__ float row[128];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    row[threadIdx.x + {shared_offset}] = 1;
    __syncthreads();
    if (i < n + {extra}) x[i] = row[threadIdx.x];
}}'''
x = cupy.zeros(200, "float32")
cupy.RawKernel(source, "fill")((2,), (128,), (x, 200))
print("sum", float(x.sum()))
"""


def run_with_asan(**values):
    code = ASAN_SCRIPT.format(build=str(BUILD), **values)
    return run_python(code, **cuda_on_cpu.asan_environment(BUILD))


def test_asan_accepts_a_right_kernel():
    result = run_with_asan(extra=0, shared_offset=0)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "sum 200.0\n"


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"extra": 1, "shared_offset": 0}, "heap-buffer-overflow"),
        ({"extra": 0, "shared_offset": 1}, "global-buffer-overflow"),
    ],
)
def test_asan_catches_an_overrun(values, problem):
    result = run_with_asan(**values)
    assert result.returncode != 0
    assert problem in result.stderr
    assert re.search(r"in fill \S*kernel\.cu:\d", result.stderr)


def test_new_arrays_hold_nan_when_poisoned():
    code = f"""
    import cuda_on_cpu
    cuda_on_cpu.activate({str(BUILD)!r}, poison=True)
    import cupy
    cupy.ones(1000, "float32")
    assert bool(cupy.isnan(cupy.empty(1000, "float32")).all())  # though its memory held ones
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_shared_memory_holds_nan_before_each_block():
    code = """
    extern "C" __global__ void total(float* y) {
        __shared__ float sum;
        extern __shared__ float more[];
        y[blockIdx.x] = sum;
        y[blockIdx.x + 2] = more[3];
        sum = more[3] = 0;
    }"""
    y = cupy.zeros(4, "float32")
    cupy.RawKernel(code, "total")((2,), (1,), (y,), shared_mem=16)
    assert bool(cupy.isnan(y).all())


def test_counters_are_exact():
    code = f"""
    import cuda_on_cpu
    cuda_on_cpu.activate({str(BUILD)!r}, pool=False)
    import cupy, numpy
    cuda_on_cpu.reset_counters()
    x = cupy.asarray(numpy.ones((64, 32), "float32"))        # 8192 bytes: one allocation, one copy
    y = x + 1                                                # one launch, 8192 bytes
    z = x @ y.T                                              # one product, 16384 bytes
    del y
    w = z * 2                                                # one launch, 16384 bytes
    host = w.get()                                           # one copy, one synchronisation
    cupy.cuda.Stream.null.synchronize()
    counted = {{name: value for name, value in cuda_on_cpu.counters().items() if value}}
    assert counted == dict(
        launches=2, gemms=1, gemm_operations=262144,
        host_to_device_copies=1, host_to_device_bytes=8192, device_to_host_copies=1,
        device_to_host_bytes=16384, synchronizations=2, mallocs=4, malloc_bytes=49152, held_bytes=40960,
        peak_bytes=40960), counted
    """
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_sources_name_their_kernels():
    cupy.RawKernel(SHIFT.replace("BARRIER", "/* of test_sources */"), "shift").compile()
    last = cuda_on_cpu.sources()[-1]
    assert last.kernels == ("shift",)
    assert "of test_sources" in last.code


def test_activation_is_refused_when_late():
    with pytest.raises(RuntimeError, match="before cupy is imported"):
        cuda_on_cpu.activate(BUILD)


# --- compile_check ---------------------------------------------------------------------------------------------------

SPILL = (
    'extern "C" __global__ __launch_bounds__(1024, 2) void spills(float* x) { float a[64];'
    + "".join(f"a[{i}] = x[{i} * threadIdx.x];" for i in range(64))
    + "__syncthreads();"
    + "".join(f"x[threadIdx.x * {i} + 7] = a[{i}] * a[{i * 7 % 64}];" for i in range(64))
    + "}"
)


def test_compile_check_sees_a_spill():
    reports = compile_check.check(SPILL) + compile_check.check(SOFTMAX)
    spilled = {(report.kernel, report.architecture): report.resources.spill_bytes > 0 for report in reports}
    assert spilled == {("spills", 80): True, ("spills", 90): True, ("softmax", 80): False, ("softmax", 90): False}


def test_compile_check_reports():
    (report,) = compile_check.check(SOFTMAX, architectures=[80])
    assert (report.threads, report.resources.max_threads, report.resources.shared_bytes) == (128, 128, 512)
    assert (report.blocks, report.occupancy, report.limited_by) == (16, 1.0, "threads")
    (report,) = compile_check.check(SOFTMAX, architectures=[90], dynamic_shared_bytes=100 << 10)
    assert (report.blocks, report.limited_by) == (2, "shared memory")
    with pytest.raises(compile_check.CompileError, match="undefined_name"):
        compile_check.check("__global__ void f() { undefined_name(); }")
    with pytest.raises(ValueError, match="architectures"):
        compile_check.check(SOFTMAX, architectures=[35])


def test_occupancy_by_registers():
    assert compile_check.occupancy(80, 256, 128, 0) == (2, 0.25, "registers")
    assert compile_check.occupancy(90, 1024, 33, 0) == (1, 0.5, "registers")


def test_compile_check_command(tmp_path):
    sources = {
        "good": (SOFTMAX, 0, "softmax"),
        "bad": (SPILL, 1, "spills"),
        "wrong": ("__global__ void f(", 1, "error"),
    }
    for name, (code, status, message) in sources.items():
        path = tmp_path / f"{name}.cu"
        path.write_text(code)
        command = [sys.executable, str(HERE / "compile_check.py"), str(path), "--fail-on-spill"]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == status, result.stderr
        assert message in result.stdout + result.stderr


def test_build_without_a_compiler(tmp_path):
    command = [sys.executable, str(HERE / "build.py"), str(tmp_path)]
    result = subprocess.run(command, env={**os.environ, "CXX": "no-such-g++"}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "no-such-g++ not found" in result.stderr
