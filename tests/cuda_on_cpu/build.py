"""Build the CPU stand-in for a CUDA device: python build.py DEST [--python PYTHON].

Installs CuPy and the CUDA headers into the virtual environment of PYTHON (default: the one that runs this script) and
writes everything that is built under DEST. Run again, it rebuilds only what changed.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native"
REQUIREMENTS = HERE / "requirements.txt"
CUPY_VERSION = re.findall(r"^cupy-cuda12x==([\d.]+)$", REQUIREMENTS.read_text(), re.M)[0]
CUDA_VERSION = "12090"

# Library, the CuPy extensions that link to it, the source that loads it at run time, its "not supported" status.
STUB_LIBRARIES = [
    ("libcurand.so.10", "curand", ["cupy_backends/cuda/libs/curand"], None, 999),
    ("libcusolver.so.11", "cusolver", ["cupy_backends/cuda/libs/cusolver", "cupyx/_cusolver"], "cusolver", 9),
    ("libcusparse.so.12", "cusparse", ["cupy_backends/cuda/libs/cusparse"], "cusparse", 10),
    ("libcufft.so.11", "cufft", ["cupy/cuda/cufft"], None, 16),
]

# Also used to compile kernels: a precompiled header only fits the options that it was made with.
KERNEL_OPTIONS = ["-std=c++17", "-O1", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off", "-w"]
ASAN_OPTIONS = ["-g", "-fsanitize=address"]


class BuildError(Exception):
    """A step failed; the message says which and why."""


def run(*command: object, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    """The command's output; BuildError with its last lines when it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=cwd, env=env)
    if result.returncode:
        tail = "\n".join(result.stdout.splitlines()[-30:])
        raise BuildError(f"{' '.join(words[:6])} ...: exit status {result.returncode}\n{tail}")
    return result.stdout


def find_compiler() -> str:
    """The C++ compiler: $CXX or g++."""
    name = os.environ.get("CXX", "g++")
    path = shutil.which(name)
    if not path:
        raise BuildError(f"{name} not found: a GNU C++ compiler is needed (Debian, Ubuntu: apt-get install g++)")
    return path


def outdated(target: Path, *sources: Path) -> bool:
    """Whether the target is missing or older than one of the sources."""
    return not target.exists() or any(source.stat().st_mtime > target.stat().st_mtime for source in sources)


def link(compiler: str, target: Path, *words: object, soname: str | None = None) -> None:
    """Make a shared library; its version symbols carry its name, as those of the real ones do."""
    names = ["-Wl,--default-symver", f"-Wl,-soname,{soname}"] if soname else []
    run(compiler, "-std=c++17", "-O2", "-fPIC", "-shared", "-U_FORTIFY_SOURCE", *names, "-o", target, *words)


def undefined_symbols(path: Path, prefix: str) -> set[str]:
    """Functions with this prefix that an object or extension expects from elsewhere."""
    dynamic = ["-D"] if path.suffix == ".so" else []
    names = re.findall(r"\bU (\w+)", run("nm", *dynamic, "--undefined-only", path))
    return {name for name in names if name.startswith(prefix)}


def defined_symbols(path: Path) -> set[str]:
    """Functions that a shared library defines."""
    return set(re.findall(r"\bT (\w+)", run("nm", "-D", "--defined-only", path)))


def softlinked(source: Path, prefix: str) -> set[str]:
    """Functions that a source of CuPy looks up by name at run time."""
    found = re.findall(r"\.get\(f?'(\w+)(\{version\})?'\)", source.read_text())
    return {prefix + name + ("_v2" if version else "") for name, version in found}


def write_stubs(path: Path, names: set[str], status: int) -> None:
    """A C++ file in which each function reports its name and fails."""
    lines = [f'int {name}() {{ return device_unimplemented("{name}", {status}); }}' for name in sorted(names)]
    path.write_text('#include "device.h"\nextern "C" {\n' + "\n".join(lines) + "\n}\n")


class Build:
    """The paths of one build, and its steps in order."""

    def __init__(self, destination: Path, python: str) -> None:
        self.destination = destination
        self.python = python
        self.compiler = find_compiler()
        self.lib = destination / "lib"
        self.generated = destination / "generated"
        for folder in (self.lib, self.generated, destination / "kernels"):
            folder.mkdir(parents=True, exist_ok=True)

    def install(self) -> None:
        """Install what is needed, then ask the environment where things are."""
        run(self.python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", REQUIREMENTS)
        script = (
            "import json, sysconfig, numpy, scipy_openblas32 as blas;"
            "print(json.dumps([sysconfig.get_path('purelib'), sysconfig.get_path('include'),"
            "sysconfig.get_config_var('EXT_SUFFIX'), numpy.get_include(), blas.get_lib_dir(), blas.get_library()]))"
        )
        answers = json.loads(run(self.python, "-c", script).splitlines()[-1])
        self.site, self.python_include = Path(answers[0]), answers[1]
        self.suffix, self.numpy_include, self.blas_folder, self.blas_name = answers[2:]
        self.cuda_includes = [
            f"-I{self.site / 'nvidia' / name / 'include'}" for name in ("cuda_runtime", "cuda_nvcc", "cuda_nvrtc")
        ]

    def fetch_source(self) -> None:
        """CuPy's source, for the one extension that is rebuilt."""
        self.source = self.destination / f"cupy-{CUPY_VERSION}"
        if (self.source / "cupy_backends").is_dir():
            return
        archive = self.destination / f"cupy-{CUPY_VERSION}.tar.gz"
        if not archive.exists():  # pip runs setup.py for the metadata; a stub build of CuPy needs no CUDA for that
            environment = {**os.environ, "CUPY_INSTALL_USE_STUB": "1"}
            run(self.python, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "cupy",
                "--dest", self.destination, f"cupy=={CUPY_VERSION}", env=environment)  # fmt: skip
        with tarfile.open(archive) as opened:
            opened.extractall(self.destination, filter="data")

    def compile_runtime_object(self) -> None:
        """CuPy's runtime extension, from its own source; the wheel's has NVIDIA's runtime linked in."""
        folder = self.source / "cupy_backends" / "cuda" / "api"
        constants = f"CUPY_USE_CUDA_PYTHON=False,CUPY_CUDA_VERSION={CUDA_VERSION},CUPY_HIP_VERSION=0"
        directives = "embedsignature=True,binding=False,c_api_binop_methods=True,warn.deprecated.IF=False"
        cpp, self.runtime_object = folder / "runtime.cpp", self.generated / "runtime_extension.o"
        if outdated(cpp, folder / "runtime.pyx"):
            run(self.python, "-m", "cython", "--cplus", "-3", "-E", constants, "-X", directives,
                "cupy_backends/cuda/api/runtime.pyx", cwd=self.source)  # fmt: skip
        profiler = self.generated / "cuda_profiler_api.h"  # in no wheel
        if not profiler.exists():
            functions = ("cudaProfilerStart", "cudaProfilerStop")
            profiler.write_text("#pragma once\n" + "".join(f'extern "C" int {name}();\n' for name in functions))
        if outdated(self.runtime_object, cpp):
            run(self.compiler, "-c", "-O1", "-fPIC", "-w", '-DCYTHON_EXTERN_C=extern "C"', "-DCUPY_CACHE_KEY=1",
                "-DNPY_TARGET_VERSION=NPY_2_0_API_VERSION", f"-I{self.generated}", *self.cuda_includes,
                f"-I{self.numpy_include}", f"-I{self.python_include}", f"-I{self.source}",
                f"-I{self.source / 'cupy_backends'}", f"-I{folder}", cpp, "-o", self.runtime_object)  # fmt: skip

    def build_device(self) -> None:
        """The stand-in runtime and driver in one library, with stubs for the rest, and the extension on top."""
        device, extension = self.lib / "libcuda_on_cpu.so", self.lib / f"runtime{self.suffix}"
        sources = [NATIVE / name for name in ("runtime.cpp", "driver.cpp", "capture.cpp", "block_runner.cpp")]
        headers = [NATIVE / "device.h", NATIVE / "capture.h", NATIVE / "block_runner.h"]
        if not outdated(device, self.runtime_object, *sources, *headers, Path(__file__)):
            return
        words = [f"-I{NATIVE}", *self.cuda_includes, *sources, "-ldl", "-pthread"]
        link(self.compiler, device, *words)
        missing_runtime = undefined_symbols(self.runtime_object, "cuda") - defined_symbols(device)
        driver_source = self.source / "cupy_backends" / "cuda" / "api" / "_driver_extern.pxi"
        missing_driver = softlinked(driver_source, "cu") - defined_symbols(device)
        stubs = self.generated / "device_stubs.cpp"
        write_stubs(stubs, missing_runtime | missing_driver, 801)
        link(self.compiler, device, *words, stubs, "-Wl,-soname,libcuda_on_cpu.so")
        link(self.compiler, extension, self.runtime_object, f"-L{self.lib}", "-lcuda_on_cpu", "-Wl,-rpath,$ORIGIN")

    def extension(self, name: str) -> Path:
        """One of the wheel's extensions."""
        return self.site / f"{name}{self.suffix}"

    def build_libraries(self) -> None:
        """cuBLAS with the matrix products, and the libraries of which nothing is implemented."""
        common = [f"-I{NATIVE}", f"-L{self.lib}", "-lcuda_on_cpu", "-Wl,-rpath,$ORIGIN"]
        blas, stubs = self.lib / "libcublas.so.12", self.generated / "cublas_stubs.cpp"
        if outdated(blas, NATIVE / "blas.cpp", NATIVE / "capture.h", NATIVE / "device.h", Path(__file__)):
            openblas = [f"-L{self.blas_folder}", f"-l{self.blas_name}", f"-Wl,-rpath,{self.blas_folder}"]
            sources = [NATIVE / "blas.cpp"]
            link(self.compiler, blas, *sources, *common, *openblas, soname=blas.name)
            names = undefined_symbols(self.extension("cupy_backends/cuda/libs/cublas"), "cublas")
            defined = {name.split("@")[0] for name in defined_symbols(blas)}
            write_stubs(stubs, names - defined, 15)
            link(self.compiler, blas, *sources, stubs, *common, *openblas, soname=blas.name)
        for file_name, prefix, extensions, loader, status in STUB_LIBRARIES:
            library, stubs = self.lib / file_name, self.generated / f"{prefix}_stubs.cpp"
            if not outdated(library, NATIVE / "device.h", Path(__file__)):
                continue
            names = set().union(*(undefined_symbols(self.extension(name), prefix) for name in extensions))
            if loader:
                names |= softlinked(self.source / "cupy_backends" / "cuda" / "libs" / f"{loader}.pyx", prefix)
            write_stubs(stubs, names, status)
            link(self.compiler, library, stubs, *common, soname=file_name)

    def precompile_shim(self) -> None:
        """The header that every kernel starts with, once for each way to compile kernels."""
        self.shim_headers = [*sorted((NATIVE / "shim").rglob("*.*h")), NATIVE / "block_runner.h"]
        self.kernel_includes = [f"-I{NATIVE / 'shim'}", f"-I{NATIVE}", *self.cuda_includes]
        for folder, extra in (("shim", []), ("shim_asan", ASAN_OPTIONS)):
            target = self.destination / folder / "cuda_shim.h.gch"
            target.parent.mkdir(exist_ok=True)
            if outdated(target, *self.shim_headers, Path(__file__)):
                run(self.compiler, *KERNEL_OPTIONS, *extra, *self.kernel_includes, "-x", "c++-header",
                    NATIVE / "shim" / "cuda_shim.h", "-o", target)  # fmt: skip

    def record(self) -> None:
        """Leave what cuda_on_cpu.py needs to know."""
        shim = b"".join(path.read_bytes() for path in self.shim_headers)
        build = {
            "compiler": self.compiler,
            "compiler_version": run(self.compiler, "-dumpfullversion").strip(),
            "runtime_extension": f"runtime{self.suffix}",
            "options": KERNEL_OPTIONS,
            "asan_options": ASAN_OPTIONS,
            "includes": self.kernel_includes,
            "asan_library": run(self.compiler, "-print-file-name=libasan.so").strip(),
            "fingerprint": hashlib.sha256(shim).hexdigest(),
        }
        (self.destination / "build.json").write_text(json.dumps(build, indent=2) + "\n")

    def run(self) -> None:
        """All steps."""
        self.install()
        self.fetch_source()
        self.compile_runtime_object()
        self.build_device()
        self.build_libraries()
        self.precompile_shim()
        self.record()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("destination", metavar="DEST", type=Path, help="folder for everything that is built")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the virtual environment to build for")
    arguments = parser.parse_args()
    try:
        Build(arguments.destination.resolve(), os.path.abspath(arguments.python)).run()
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    print(f"built in {arguments.destination}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
