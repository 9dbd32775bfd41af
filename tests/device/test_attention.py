"""Attention on the device beside the textbook's on the host, in every form; and its kernels under every check there is."""

import re
from pathlib import Path

import compile_check
import cuda_on_cpu
import numpy as np
import pytest
from stand_in import cupy, under_asan

from refimpl.arrays import KERNELS, kernel_source
from refimpl.device import attention as on_device
from refimpl.layers import attention
from refimpl.layers.attention import Arguments, Options
from refimpl.masks import Mask

WITHIN = {"float32": 3e-5, "float64": 1e-12}
FORMS = {
    "plain": {}, "self": {"attend_self": True}, "published": {"normalizer_epsilon": 1e-8, "past": 9},
    "trimmed": {"normalizer_epsilon": 1e-4, "span": 150, "past": 100, "block": 5, "rho": 0.05},
    "no memory": {"slots": 0}, "no positions": {"table": None}, "table by head": {"table": "by head"},
    "biases": {"table": "by head", "biases": True}, "fixed span": {"rho": None}, "nothing before": {"past": 0},
    "wide block": {"block": 300, "span": 7, "past": 2}, "long": {"span": 400, "past": 30, "block": 3},
    "dropout": {"dropout": 0.3, "past": 3}, "dropout drawn": {"dropout": 0.3, "drawn": True, "block": 40, "span": 50},
}


def case(past=4, block=6, heads=3, span=9, slots=2, table="shared", biases=False, rho=0.4, drawn=False, dtype="float64",
         dropout=0.0, **options):
    """Arguments, options, the two keep-masks and a cotangent."""
    rng, batch, width = np.random.default_rng(1), 2, 4

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    tables = {"shared": (span, width), "by head": (heads, span, width)}
    memory = [normal(heads, slots, width) if slots else None for _ in range(2)]
    arguments = Arguments(
        normal(batch, block, heads, width), *(normal(batch, past + block, heads, width) for _ in range(2)),
        normal(*tables[table]) if table else None, *memory,
        None if rho is None else (rho * rng.random(heads)).astype(dtype),
        *(normal(heads, width) if biases else None for _ in range(2)))
    keep = keep_memory = None
    if dropout:
        shapes = (heads, block, span), (heads, block, slots)
        keep, keep_memory = (Mask(5, name, 3, 1, batch, shape, dropout)
                             for name, shape in zip(("attention", "memory"), shapes, strict=True))
        if not drawn:
            keep, keep_memory = (mask.whole(np.zeros(1)) for mask in (keep, keep_memory))
    return arguments, Options(span, 3, dropout=dropout, **options), keep, keep_memory, normal(batch, block, heads, width)


def there(array):
    return cupy.asarray(array) if isinstance(array, np.ndarray) else array


def both(arguments, options, keep, keep_memory, dy):
    """y and gradients by name, of the textbook on the host and of the device."""
    found = []
    for module, up in ((attention, lambda array: array), (on_device, there)):
        y, saved = module.forward(Arguments(*map(up, arguments)), options, up(keep), up(keep_memory))
        gradients = module.backward(up(dy), saved)._asdict()
        found.append({"y": y, **{name: d for name, d in gradients.items() if d is not None}})
    return found


def assert_same(here, on_the_device, within):
    assert here.keys() == on_the_device.keys()
    for name, expected in here.items():
        scale = np.abs(expected).max() + 1e-30
        np.testing.assert_allclose(on_the_device[name].get() / scale, expected / scale, atol=within, rtol=0, err_msg=name)


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_textbooks(form, dtype):
    assert_same(*both(*case(dtype=dtype, **FORMS[form])), WITHIN[dtype])


@pytest.mark.parametrize("elements", [1, 500, 1500])
@pytest.mark.parametrize("form", ["plain", "biases", "dropout drawn"])
def test_small_tiles_give_the_same(monkeypatch, form, elements):
    """Several tiles of queries; some heads, or some texts of one head, at once."""
    monkeypatch.setattr(on_device, "ROWS", 4)
    monkeypatch.setattr(on_device, "ELEMENTS", elements)
    assert_same(*both(*case(**{"span": 5, **FORMS[form], "block": 22})), WITHIN["float64"])


@pytest.mark.parametrize("seed", range(3))
def test_no_result_depends_on_the_order_of_threads(seed):
    with cuda_on_cpu.strict_order(seed):
        assert_same(*both(*case(**FORMS["dropout drawn"])), WITHIN["float64"])


def planted(monkeypatch, old, new):
    """The device computes with a changed source."""
    source = kernel_source("attention")
    assert old in source
    compiled = {}

    def kernel(file, name, dtype):
        key = name, np.dtype(dtype).char
        if key not in compiled:
            real = "double" if key[1] == "d" else "float"
            compiled[key] = cupy.RawKernel(source.replace(old, new), name, options=(f"-DREAL={real}", "--fmad=false"))
        return compiled[key]

    monkeypatch.setattr(on_device, "kernel", kernel)


def test_a_removed_barrier_is_caught(monkeypatch):
    total = "for (int warp = 0; warp < WARPS; warp++) total += shared[warp];"
    planted(monkeypatch, f"__syncthreads();\n    REAL total = 0;\n    {total}", f"REAL total = 0;\n    {total}")
    wrong = 0
    for seed in range(3):
        with cuda_on_cpu.strict_order(seed):
            here, on_the_device = both(*case(span=300, past=300))
            wrong += not np.allclose(on_the_device["y"].get(), here["y"])
    assert wrong


OVERRUN = """
import sys
from refimpl import arrays
source = arrays.kernel_source
arrays.kernel_source = lambda file: source(file).replace({old!r}, {new!r})
sys.path.insert(0, {tests!r})
import test_attention
test_attention.assert_same(*test_attention.both(*test_attention.case()), 1e-12)
print("done")
"""


@pytest.mark.parametrize(("old", "new", "caught"), [
    ("#define WARPS", "#define WARPS", False),
    ("column < t.width; column", "column <= t.width + t.slots; column", True),
    ("if (i >= count) return;", "if (i > count) return;", True),
])
def test_an_overrun_by_one_is_caught(old, new, caught):
    end = under_asan(OVERRUN.format(old=old, new=new, tests=str(Path(__file__).parent)))
    assert ("heap-buffer-overflow" in end.stderr) == caught, end.stderr[-2000:]
    assert (end.returncode == 0) == (not caught)


SPILL = ("extern \"C\" __global__ __launch_bounds__(1024, 2) void spills(REAL* x) { REAL a[64];"
         + "".join(f"a[{i}] = x[{i} * threadIdx.x];" for i in range(64)) + "__syncthreads();"
         + "".join(f"x[threadIdx.x * {i} + 7] = a[{i}] * a[{i * 7 % 64}];" for i in range(64)) + "}")
ARCHITECTURES = (70, 80, 89, 90)


def reports(file, real, more=""):
    return compile_check.check(kernel_source(file) + more, ARCHITECTURES, options=(f"-DREAL={real}", "--fmad=false"))


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("path", [path for path in sorted(KERNELS.glob("*.cu")) if "\nextern " in path.read_text()],
                         ids=lambda path: path.stem)
def test_kernels_compile_for_every_architecture_without_spills(path, real, capsys):
    file = path.stem
    found = reports(file, real)
    with capsys.disabled():
        print(f"\n{file}, {real}\n{compile_check.table(found)}")
    assert {report.architecture for report in found} == set(ARCHITECTURES)
    assert {report.kernel for report in found} == set(re.findall(r"^extern .* void (\w+)\(", path.read_text(), re.M))
    assert not [report for report in found if report.resources.spill_bytes]
    assert min(report.occupancy for report in found) >= 0.25


def test_a_planted_spill_is_seen():
    spilled = {(report.kernel, report.architecture) for report in reports("attention", "float", SPILL)
               if report.resources.spill_bytes}
    assert spilled == {("spills", architecture) for architecture in ARCHITECTURES}
