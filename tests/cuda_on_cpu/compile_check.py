"""Compile CUDA kernels for real GPUs without one, and report registers, spills, shared memory and occupancy.

    python compile_check.py kernel.cu --arch 80 --arch 90 --threads 256 --fail-on-spill

Needs the nvidia-cuda-nvrtc-cu12 package; imports nothing else of the project.
"""

import argparse
import ctypes
import functools
import importlib.metadata
import re
import struct
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

REGISTERS_PER_MULTIPROCESSOR = 65536
WARP = 32


@dataclass(frozen=True)
class Limits:
    """What one multiprocessor holds (CUDA C++ Programming Guide, table of technical specifications)."""

    threads: int
    blocks: int
    shared_bytes: int
    shared_granularity: int = 128
    reserved_shared_bytes: int = 1024  # that the system takes for each block


LIMITS = {
    70: Limits(2048, 32, 96 << 10, shared_granularity=256, reserved_shared_bytes=0),
    75: Limits(1024, 16, 64 << 10, shared_granularity=256, reserved_shared_bytes=0),
    80: Limits(2048, 32, 164 << 10),
    86: Limits(1536, 16, 100 << 10),
    87: Limits(1536, 16, 164 << 10),
    89: Limits(1536, 24, 100 << 10),
    90: Limits(2048, 32, 228 << 10),
    100: Limits(2048, 32, 228 << 10),
    120: Limits(1536, 24, 100 << 10),
}


@dataclass(frozen=True)
class Resources:
    """What the compiler gave one kernel, per thread (registers, stack, spills) or per block (shared)."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    max_threads: int


@dataclass(frozen=True)
class Report:
    """One kernel on one architecture, and how many of its blocks a multiprocessor holds."""

    kernel: str
    architecture: int
    threads: int
    dynamic_shared_bytes: int
    resources: Resources
    blocks: int
    occupancy: float  # active warps over the most that are possible
    limited_by: str


class CompileError(Exception):
    """The kernel does not compile; the message is the compiler's log."""


@functools.cache
def load_compiler() -> ctypes.CDLL:
    """NVIDIA's run-time compiler. What it opens itself is loaded first: under the sanitizer it would not find it."""
    files = importlib.metadata.files("nvidia-cuda-nvrtc-cu12") or []
    (builtins,) = (file for file in files if re.fullmatch(r"libnvrtc-builtins\.so\.[\d.]+", file.name))
    (compiler,) = (file for file in files if file.name == "libnvrtc.so.12")
    ctypes.CDLL(str(builtins.locate()))
    return ctypes.CDLL(str(compiler.locate()))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    """One of the outputs of a compilation: ProgramLog, CUBIN."""
    size = ctypes.c_size_t()
    getattr(load_compiler(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(load_compiler(), f"nvrtcGet{what}")(program, buffer)
    return buffer.raw


def compile_source(
    source: str, architecture: int, options: Sequence[str] = (), instantiate: Sequence[str] = ()
) -> tuple[bytes, str]:
    """Machine code and the log of its assembler. `instantiate` names templates: `softmax<float>`."""
    compiler, program = load_compiler(), ctypes.c_void_p()
    compiler.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)
    try:
        for expression in instantiate:
            compiler.nvrtcAddNameExpression(program, expression.encode())
        words = [f"-arch=sm_{architecture}", "--ptxas-options=-v", *options]
        encoded = (ctypes.c_char_p * len(words))(*(word.encode() for word in words))
        failed = compiler.nvrtcCompileProgram(program, len(words), encoded)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode()
        if failed:
            raise CompileError(f"for sm_{architecture}:\n{log}")
        return _text(program, "CUBIN"), log
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def launch_bounds(cubin: bytes) -> dict[str, int]:
    """The most threads that each kernel may be launched with, where it says so (__launch_bounds__)."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    entry_size, count, names_index = struct.unpack_from("<HHH", cubin, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * entry_size) for i in range(count)]
    names_start = sections[names_index][4]
    bounds = {}
    for name_offset, _, _, _, start, size in sections:
        begin = names_start + name_offset
        name = cubin[begin : cubin.index(b"\0", begin)].decode()
        if name.startswith(".nv.info."):
            for attribute, value in _kernel_attributes(cubin[start : start + size]):
                if attribute == 0x05:  # EIATTR_MAX_THREADS: x, y, z
                    x, y, z = struct.unpack_from("<III", value)
                    bounds[name.removeprefix(".nv.info.")] = x * y * z
    return bounds


def _kernel_attributes(section: bytes) -> Iterable[tuple[int, bytes]]:
    """The (attribute, value) pairs of an .nv.info section; a value is inline unless its format is 4."""
    position = 0
    while position + 4 <= len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, position)
        length = size if form == 4 else 0
        yield attribute, section[position + 4 : position + 4 + length]
        position += 4 + length


def resources(cubin: bytes, log: str) -> dict[str, Resources]:
    """What each kernel in the assembler's log uses."""

    def number(pattern: str, text: str) -> int:
        return sum(int(found) for found in re.findall(pattern, text))

    bounds = launch_bounds(cubin)
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        name = part.split("'", 1)[0]
        found[name] = Resources(
            registers=number(r"Used (\d+) registers", part),
            stack_bytes=number(r"(\d+) bytes stack frame", part),
            spill_bytes=number(r"(\d+) bytes spill", part),
            shared_bytes=number(r"(\d+) bytes smem", part),
            max_threads=bounds.get(name, 1024),
        )
    return found


def occupancy(architecture: int, threads: int, registers: int, shared_bytes: int) -> tuple[int, float, str]:
    """Blocks that one multiprocessor holds at once, its share of active warps, and what limits it."""
    limits = LIMITS[architecture]
    warps = -(-threads // WARP)
    registers_per_warp = -(-registers * WARP // 256) * 256
    warps_by_registers = 4 * (REGISTERS_PER_MULTIPROCESSOR // 4 // registers_per_warp) if registers else limits.threads
    granularity = limits.shared_granularity
    shared = -(-(shared_bytes + limits.reserved_shared_bytes) // granularity) * granularity
    most = {  # of those that are equal, the first is named
        "threads": limits.threads // WARP // warps,
        "blocks": limits.blocks,
        "registers": warps_by_registers // warps,
        "shared memory": limits.shared_bytes // shared if shared else limits.blocks,
    }
    limited_by = min(most, key=most.__getitem__)
    blocks = most[limited_by]
    return blocks, blocks * warps / (limits.threads // WARP), limited_by


def check(
    source: str,
    architectures: Sequence[int] = (80, 90),
    threads: int | None = None,
    dynamic_shared_bytes: int = 0,
    options: Sequence[str] = (),
    instantiate: Sequence[str] = (),
) -> list[Report]:
    """A report for each kernel of the source and each architecture.

    Threads per block are those of __launch_bounds__ where none are given, 256 without either, and never more than
    __launch_bounds__ allows.
    """
    unknown = set(architectures) - set(LIMITS)
    if unknown:
        raise ValueError(f"architectures: expected some of {sorted(LIMITS)}, got {sorted(unknown)}")
    reports = []
    for architecture in architectures:
        cubin, log = compile_source(source, architecture, options, instantiate)
        for kernel, used in resources(cubin, log).items():
            block = min(threads or (used.max_threads if used.max_threads < 1024 else 256), used.max_threads)
            shared = used.shared_bytes + dynamic_shared_bytes
            held = occupancy(architecture, block, used.registers, shared)
            reports.append(Report(kernel, architecture, block, dynamic_shared_bytes, used, *held))
    return reports


def table(reports: Iterable[Report]) -> str:
    """The reports as aligned columns."""
    heading = ("kernel", "arch", "threads", "registers", "spill", "shared", "blocks/SM", "occupancy", "limited by")
    rows: list[tuple[str, ...]] = [heading]
    for report in reports:
        used = report.resources
        shared = used.shared_bytes + report.dynamic_shared_bytes
        numbers = (report.architecture, report.threads, used.registers, used.spill_bytes, shared, report.blocks)
        rows.append((report.kernel, *map(str, numbers), f"{report.occupancy:.0%}", report.limited_by))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]))
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="CUDA C++ source with kernels")
    parser.add_argument("--arch", action="append", type=int, choices=sorted(LIMITS), help="default: 80 and 90")
    parser.add_argument("--threads", type=int, help="threads per block (default: __launch_bounds__, else 256)")
    parser.add_argument("--shared", type=int, default=0, metavar="BYTES", help="dynamic shared memory per block")
    parser.add_argument("--option", action="append", default=[], help="passed to the compiler, such as --option=-Ipath")
    parser.add_argument("--instantiate", action="append", default=[], metavar="NAME", help="template: 'f<float>'")
    parser.add_argument("--fail-on-spill", action="store_true", help="exit status 1 when a kernel spills registers")
    arguments = parser.parse_args()
    reports = []
    for path in arguments.files:
        try:
            reports += check(path.read_text(), arguments.arch or (80, 90), arguments.threads, arguments.shared,
                             arguments.option, arguments.instantiate)  # fmt: skip
        except (CompileError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    print(table(reports))
    spilled = [report for report in reports if report.resources.spill_bytes]
    if arguments.fail_on_spill and spilled:
        names = ", ".join(f"{report.kernel} (sm_{report.architecture})" for report in spilled)
        print(f"registers spilled: {names}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
