"""`--device`: what is opened, and every reason why it can't be, in one line."""

from types import SimpleNamespace

import pytest

from refimpl import arrays
from refimpl.device import opening
from refimpl.errors import InputError


def raising(error):
    def call(*_):
        raise error

    return call


def library(made_for=12090, driver=12040, devices=lambda: 1):
    """Of CuPy what is asked before anything is computed, which it then can't."""
    ones = raising(RuntimeError("no libnvrtc"))
    runtime = SimpleNamespace(runtimeGetVersion=lambda: made_for, driverGetVersion=lambda: driver, getDeviceCount=devices)
    device = lambda number: SimpleNamespace(use=lambda: None)  # noqa: E731 - CuPy's class
    return SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, Device=device), ones=ones, __version__="14.2.0")


BROKEN = {
    "not installed": (raising(ModuleNotFoundError("No module named 'cupy'", name="cupy")),
                      r"CuPy is not installed: pip install 'refimpl\[cuda12\]'"),
    "incomplete": (raising(ModuleNotFoundError("No module named 'numpy'", name="numpy")), "does not load: No module"),
    "broken": (raising(ImportError("\n=====\nlibcudart.so.12: cannot open\nmore")),
               "does not load: libcudart.so.12: cannot open"),
    "no driver": (lambda: library(driver=0), "no NVIDIA driver is loaded"),
    "wrong package": (lambda: library(13000, 12040), r"the driver knows CUDA 12.4, CuPy is made for CUDA 13.0: install "
                                                     r"refimpl\[cuda12\] in its place"),
    "no device": (lambda: library(devices=raising(RuntimeError("cudaErrorNoDevice: no CUDA-capable device"))),
                  "the driver finds no GPU: cudaErrorNoDevice"),
    "no compiler": (library, r"CuPy can't compute: no libnvrtc .*refimpl\[cuda12\]"),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_each_reason_is_one_line(monkeypatch, reason):
    found, message = BROKEN[reason]
    monkeypatch.setattr(arrays, "import_device_library", found)
    with pytest.raises(InputError, match=f"^--device gpu: .*{message}") as error:
        opening.opened("gpu")
    assert "\n" not in str(error.value)
    assert opening.report().startswith("not usable: ")
    assert "\n" not in opening.report()


@pytest.mark.parametrize("name", ["gpu:1", "gpu:999"])
def test_a_number_that_there_is_not(monkeypatch, name):
    monkeypatch.setattr(arrays, "import_device_library", library)
    with pytest.raises(InputError, match=f"{name}: expected a number below 1"):
        opening.opened(name)


@pytest.mark.parametrize("name", ["cuda", "gpu:", "gpu:-1", "gpu:x", "GPU", "", "gpu:²"])
def test_a_name_that_is_none(name):
    with pytest.raises(InputError, match="--device: expected cpu, gpu or gpu:N"):
        opening.opened(name)


def test_the_cpu_needs_nothing(monkeypatch):
    monkeypatch.setattr(arrays, "import_device_library", raising(AssertionError))
    assert opening.opened("cpu") is opening.on_host
    assert opening.on_host("an array") == "an array"
