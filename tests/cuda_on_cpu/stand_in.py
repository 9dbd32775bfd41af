"""`from stand_in import cupy`: the real CuPy on the stand-in device, for a test file; without a build its tests are skipped.

CUDA_ON_CPU_ASAN=1 has accesses outside arrays reported; the process must run in cuda_on_cpu.asan_environment.
With CI=true in the environment they fail instead: there the build is never missing for a good reason.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cuda_on_cpu
import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("CUDA_ON_CPU_BUILD", ROOT / "build" / "cuda-on-cpu")).resolve()

HARDWARE = os.environ.get("REFIMPL_GPU") == "1"  # `make gpu-check`: a GPU in the stand-in's place

if not HARDWARE and not (BUILD / "build.json").is_file():
    compiler = os.environ.get("CXX", "g++")
    hint = "`make cuda-on-cpu` makes one" if shutil.which(compiler) else f"it needs {compiler}, which is not installed"
    reason = f"{BUILD}: no build of the stand-in device; {hint}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)

if not HARDWARE:
    cuda_on_cpu.activate(BUILD, asan=os.environ.get("CUDA_ON_CPU_ASAN") == "1")

import cupy  # noqa: E402, F401 - nothing may import it before
import cupyx  # noqa: E402, F401


def under_asan(code: str) -> subprocess.CompletedProcess[str]:
    """How Python code ends in a process of its own where accesses outside arrays are reported."""
    environment = {**cuda_on_cpu.asan_environment(BUILD), "PYTHONPATH": str(Path(cuda_on_cpu.__file__).parent),
                   "CUDA_ON_CPU_ASAN": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
