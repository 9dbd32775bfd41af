"""Run the real CuPy without a GPU: kernels are checked by NVIDIA's compiler and executed on the CPU.

    import cuda_on_cpu
    cuda_on_cpu.activate("path/of/the/build")   # before cupy is imported
    import cupy

See README.md for what this shows and what it can't.
"""

import contextlib
import ctypes
import hashlib
import importlib.abc
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import compile_check

# Extensions of CuPy that contain NVIDIA's runtime themselves, some of which would fail silently.
BLOCKED_MODULES = {"cupy.cuda.jitify": "jitify", "cupy.cuda.cufft": "cupy.fft"}
BLOCKED_FUNCTIONS = {
    "cupy.cuda.cub": "sums, scans and histograms by CUB",
    "cupy.cuda.thrust": "sorting",
    "cupy.random._generator_api": "generators of cupy.random.default_rng",
}
LIBRARIES = {
    "cublas": "libcublas.so.12",
    "curand": "libcurand.so.10",
    "cusolver": "libcusolver.so.11",
    "cusparse": "libcusparse.so.12",
    "cufft": "libcufft.so.11",
}
ERROR_CLASSES = ("cublas.CUBLASError", "curand.CURANDError", "cusolver.CUSOLVERError", "cusparse.CuSparseError")
COUNTERS = (
    "launches", "gemms", "host_to_device_copies", "host_to_device_bytes", "device_to_host_copies",
    "device_to_host_bytes", "device_to_device_copies", "device_to_device_bytes", "memsets", "synchronizations",
    "mallocs", "malloc_bytes", "held_bytes", "peak_bytes",
    "gemm_operations", "tf32_gemms", "graph_launches", "graph_nodes", "graphs",
)  # fmt: skip
LINKING = ["-shared", "-Wl,-Bsymbolic"]  # a kernel may have the name of a function of some library in the process
POISON = 0xFF  # every float of these bytes is NaN, every signed integer -1


class KernelSource(NamedTuple):
    """A source that CuPy compiled, the kernels in it, and the options."""

    kernels: tuple[str, ...]
    code: str
    options: tuple[str, ...]


class _Settings(ctypes.Structure):
    """`Settings` of native/device.h."""

    _fields_ = [("strict", ctypes.c_int64), ("thread_order_seed", ctypes.c_uint64)]


class _Device:
    """The loaded libraries, and what was compiled."""

    def __init__(self, folder: Path, asan: bool) -> None:
        self.folder, self.asan = folder, asan
        self.build = json.loads((folder / "build.json").read_text())
        self.core = ctypes.CDLL(str(folder / "lib" / "libcuda_on_cpu.so"))
        self.libraries = {name: ctypes.CDLL(str(folder / "lib" / file)) for name, file in LIBRARIES.items()}
        self.counters = (ctypes.c_int64 * len(COUNTERS)).in_dll(self.core, "device_counters")
        self.settings = _Settings.in_dll(self.core, "device_settings")
        self.core.device_take_error.restype = ctypes.c_char_p
        self.sources: list[KernelSource] = []


_device: _Device | None = None


def _active() -> _Device:
    if _device is None:
        raise RuntimeError("call cuda_on_cpu.activate(build_dir) first")
    return _device


def activate(
    build_dir: str | os.PathLike[str],
    *,
    asan: bool = False,
    strict_seed: int | None = None,
    poison: bool = False,
    pool: bool = True,
) -> None:
    """Load CuPy on top of the stand-in device. Once per process, before cupy is imported.

    asan: report accesses outside arrays and shared memory, and abort; start Python with `asan_environment`.
    strict_seed: see `strict_order`. poison: fill every new array with NaN (shared memory always is, but under asan).
    pool=False: give memory back as soon as an array dies, so that counters show each allocation (always so with asan).
    """
    global _device
    if _device is not None or "cupy" in sys.modules:
        raise RuntimeError("activate() has to be called once, and before cupy is imported")
    folder = Path(build_dir).resolve()
    if not (folder / "build.json").exists():
        raise FileNotFoundError(f"{folder}: no build here; run build.py {folder}")
    if asan and not hasattr(ctypes.CDLL(None), "__asan_init"):
        raise RuntimeError("asan=True: start Python in cuda_on_cpu.asan_environment(build_dir)")
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB and cuTENSOR need a device
    os.environ["CUPY_CACHE_IN_MEMORY"] = "1"  # CuPy's own cache must not see these kernels
    compile_check.load_compiler()
    _device = _Device(folder, asan)
    sys.meta_path.insert(0, _Importer(folder / "lib" / _device.build["runtime_extension"]))
    _replace_libraries(_device)
    with _replaced_driver(folder):
        import cupy
    _block_functions()
    _explain_errors(_device)
    from cupy.cuda import compiler

    compiler._compile_using_nvrtc_no_warning = _make_compile(_device, compiler._compile_using_nvrtc_no_warning)
    _set_allocator(cupy, poison=poison, pool=pool and not asan)
    if strict_seed is not None:
        _device.settings.strict, _device.settings.thread_order_seed = 1, strict_seed


def asan_environment(build_dir: str | os.PathLike[str]) -> dict[str, str]:
    """The environment to start Python in for activate(asan=True)."""
    build = json.loads((Path(build_dir) / "build.json").read_text())
    options = "detect_leaks=0:detect_stack_use_after_return=0:" + os.environ.get("ASAN_OPTIONS", "")
    return {**os.environ, "LD_PRELOAD": build["asan_library"], "ASAN_OPTIONS": options.rstrip(":")}


def counters() -> dict[str, int]:
    """What the device was asked to do since activation, or since `reset_counters`."""
    return dict(zip(COUNTERS, _active().counters, strict=True))


def reset_counters() -> None:
    """Start counting from zero; the peak starts from what is held now."""
    values = _active().counters
    held, graphs = (values[COUNTERS.index(name)] for name in ("held_bytes", "graphs"))
    for i, name in enumerate(COUNTERS):
        values[i] = held if name in ("held_bytes", "peak_bytes") else graphs if name == "graphs" else 0


def sources() -> list[KernelSource]:
    """The sources that CuPy compiled or took from the stand-in's own store, in order."""
    return list(_active().sources)


@contextlib.contextmanager
def strict_order(seed: int) -> Iterator[None]:
    """Resume threads in a random order after each barrier, and refuse barriers that not all threads reach.

    A kernel whose result depends on the seed has a race.
    """
    settings = _active().settings
    before = settings.strict, settings.thread_order_seed
    settings.strict, settings.thread_order_seed = 1, seed
    try:
        yield
    finally:
        settings.strict, settings.thread_order_seed = before


class _Importer(importlib.abc.MetaPathFinder):
    """Finds the rebuilt runtime extension; refuses extensions that can't work."""

    def __init__(self, runtime_extension: Path) -> None:
        self.runtime_extension = runtime_extension

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name == "cupy_backends.cuda.api.runtime":
            return importlib.util.spec_from_file_location(name, self.runtime_extension)
        if name in BLOCKED_MODULES:
            raise NotImplementedError(f"cuda-on-cpu: {BLOCKED_MODULES[name]} is not implemented")
        return None


def _replace_libraries(device: _Device) -> None:
    """CuPy asks this package to load NVIDIA's libraries; ours are loaded already, under the same names."""
    from cuda import pathfinder

    original = pathfinder.load_nvidia_dynamic_lib

    def load(name: str) -> Any:
        if name not in device.libraries:
            return original(name)
        return types.SimpleNamespace(_handle_uint=device.libraries[name]._handle, abs_path=LIBRARIES[name])

    pathfinder.load_nvidia_dynamic_lib = load


@contextlib.contextmanager
def _replaced_driver(folder: Path) -> Iterator[None]:
    """Give CuPy our driver when it loads one. Only then: the compiler looks for a real driver by the same name."""
    original = ctypes.CDLL

    def load(name: Any = None, *arguments: Any, **options: Any) -> Any:
        path = str(folder / "lib" / "libcuda_on_cpu.so") if name == "libcuda.so.1" else name
        return original(path, *arguments, **options)

    ctypes.CDLL = load  # type: ignore[assignment, misc]
    try:
        yield
        from cupy_backends.cuda.api import driver

        driver.ctxGetCurrent()
    finally:
        ctypes.CDLL = original  # type: ignore[misc]


def _block_functions() -> None:
    """Functions with NVIDIA's runtime inside raise instead."""
    for module_name, purpose in BLOCKED_FUNCTIONS.items():
        module = importlib.import_module(module_name)
        for name, value in vars(module).copy().items():
            if isinstance(value, types.BuiltinFunctionType) and not name.startswith(("_", "get_build_version")):
                setattr(module, name, _raiser(f"{module_name}.{name} ({purpose})"))


def _raiser(name: str) -> Callable[..., Any]:
    def refuse(*arguments: Any, **options: Any) -> Any:
        raise NotImplementedError(f"cuda-on-cpu: {name} is not implemented")

    return refuse


def _explain_errors(device: _Device) -> None:
    """Errors of the libraries name the call that is not implemented (CuPy's own text is only the status)."""
    for path in ERROR_CLASSES:
        library, class_name = path.split(".")
        error = getattr(importlib.import_module(f"cupy_backends.cuda.libs.{library}"), class_name)
        error.__init__ = _explained(device, error.__init__)


def _explained(device: _Device, original: Callable[..., None]) -> Callable[..., None]:
    def initialize(self: Exception, status: int) -> None:
        original(self, status)
        detail = device.core.device_take_error().decode()
        self.args = (f"{self.args[0]}: {detail}",) if detail else self.args

    return initialize


def _set_allocator(cupy: Any, *, poison: bool, pool: bool) -> None:
    def without_pool(size: int) -> Any:
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(size), 0)

    allocate = cupy.get_default_memory_pool().malloc if pool else without_pool

    def poisoned(size: int) -> Any:
        memory = allocate(size)
        if size:
            ctypes.memset(memory.ptr, POISON, size)
        return memory

    cupy.cuda.set_allocator(poisoned if poison else allocate)


def _make_compile(device: _Device, compile_for_gpu: Callable[..., Any]) -> Callable[..., Any]:
    """What CuPy calls to compile a source: returns an image for our driver, and the names of templates' kernels."""

    def compile_source(
        source: str,
        options: tuple[str, ...] = (),
        arch: str | None = None,
        filename: str = "kern.cu",
        name_expressions: Any = None,
        log_stream: Any = None,
        cache_in_memory: bool = False,
        jitify: Any = None,
        method: str | None = None,
    ) -> tuple[bytes, dict[str, str] | None]:
        if jitify or method:
            raise NotImplementedError("cuda-on-cpu: jitify and link-time optimisation are not implemented")
        kept = _stored_path(device, source, options, name_expressions)
        description = kept.with_suffix(".json")
        if not description.exists():
            log = io.StringIO()
            verbose = (*options, "--ptxas-options=-v")
            cubin, names = compile_for_gpu(source, verbose, arch, filename, name_expressions, log, True, None, None)
            used = compile_check.resources(cubin, log.getvalue())
            _compile_for_cpu(device, kept, source, options, used, names or {})
            _write(description, json.dumps({"kernels": sorted(used), "names": names, "log": log.getvalue()}))
        known = json.loads(description.read_text())
        if log_stream is not None:
            log_stream.write(known["log"])
        device.sources.append(KernelSource(tuple(known["kernels"]), source, tuple(options)))
        return b"cuda-on-cpu:" + os.fsencode(kept) + b"\0", known["names"]

    return compile_source


def _stored_path(device: _Device, source: str, options: tuple[str, ...], name_expressions: Any) -> Path:
    parts = [device.build["fingerprint"], device.build["compiler_version"], device.asan, LINKING, source, options]
    digest = hashlib.sha256(repr([*parts, name_expressions]).encode()).hexdigest()
    return device.folder / "kernels" / f"{digest[:32]}.so"


def _write(path: Path, text: str) -> None:
    """Write a file so that other processes see all of it or nothing."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(text)
    os.replace(file.name, path)


def _compile_for_cpu(
    device: _Device,
    target: Path,
    source: str,
    options: tuple[str, ...],
    used: dict[str, compile_check.Resources],
    names: dict[str, str],
) -> None:
    expressions = {mangled: expression for expression, mangled in names.items()}
    translated = re.sub(
        r"\bextern\s+__shared__\s+(?P<type>[^;\[\]]+?)\s*\b(?P<name>\w+)\s*\[\s*\]\s*;",
        r"auto \g<name> = (std::remove_reference_t<\g<type>>*)device_dynamic_shared;",
        source,
    )
    lines = ['#include "cuda_shim.h"', '#line 1 "kernel.cu"', translated, "CUDA_ON_CPU_MODULE"]
    for symbol, kernel in used.items():
        if symbol.startswith("_Z") and symbol not in expressions:
            continue  # a C++ name that was not asked for
        numbers = f"{kernel.max_threads}, {kernel.shared_bytes}, {kernel.registers}, {kernel.stack_bytes}"
        lines.append(f"CUDA_ON_CPU_KERNEL({symbol}, {numbers}, {expressions.get(symbol, symbol)})")
    code = target.with_suffix(".cpp")
    _write(code, "\n".join(lines) + "\n")
    build, extra = device.build, device.build["asan_options"] if device.asan else []
    precompiled = device.folder / ("shim_asan" if device.asan else "shim")
    passed_on = [option for option in options if option.startswith(("-D", "-U", "-I"))]
    unfinished = target.with_suffix(f".{os.getpid()}")
    words = [build["compiler"], *build["options"], *extra, *LINKING, f"-I{precompiled}", *build["includes"]]
    words += [*passed_on, str(code), "-o", str(unfinished), f"-L{device.folder / 'lib'}", "-lcuda_on_cpu"]
    result = subprocess.run(words, capture_output=True, text=True, env=_without_preload())
    if result.returncode:
        raise RuntimeError(f"cuda-on-cpu: valid CUDA that native/shim/cuda_shim.h lacks:\n{result.stderr[:4000]}")
    os.replace(unfinished, target)


def _without_preload() -> dict[str, str]:
    """The address sanitizer is for kernels, not for their compiler."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
