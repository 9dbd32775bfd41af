"""Opening a GPU by name, and why one can't be: every reason in one line."""

from typing import Any, NamedTuple

from refimpl import arrays
from refimpl.arrays import Array, Place
from refimpl.device.products import set_tf32
from refimpl.errors import InputError


class Found(NamedTuple):
    """CuPy and how many devices it can use, or None and why there is none."""

    library: Any
    devices: int
    problem: str = ""


def on_host(array: Array) -> Array:
    """The place of `--device cpu`: the array itself."""
    return array


def number_of(name: str) -> int | None:
    """The device's number in `gpu` or `gpu:N`; None for `cpu`. Raises InputError for anything else."""
    kind, colon, number = name.partition(":")
    if name == "cpu":
        return None
    if kind != "gpu" or (colon and not (number.isascii() and number.isdigit())):
        raise InputError(f"--device: expected cpu, gpu or gpu:N, got {name!r}")
    return int(number or 0)


def opened(name: str, tf32: bool = False) -> Place:
    """The place of this name; a GPU becomes the one that this thread computes on, float32 products in TF32 if so asked.

    Raises InputError, with what to do about it, if there is no such GPU or CuPy can't compute there.
    """
    number = number_of(name)
    if number is None:
        if tf32:
            raise InputError("--tf32: expected a GPU with it (--device gpu), got --device cpu")
        return on_host
    found = find()
    if found.problem:
        raise InputError(f"--device {name}: {found.problem}")
    if number >= found.devices:
        raise InputError(f"--device {name}: expected a number below {found.devices}, how many GPUs there are, got {number}")
    found.library.cuda.Device(number).use()
    problem = _trial(found.library)
    if problem:
        raise InputError(f"--device {name}: {problem}")
    if tf32 and not has_tf32(found.library, number):
        raise InputError(f"--tf32: expected a GPU of compute capability 8.0 or more, got {described(found.library, number)}")
    set_tf32(tf32)
    return placed_in_tf32 if tf32 else found.library.asarray


def placed_in_tf32(array: Array) -> Array:
    """The place of a GPU with TF32. Raises InputError for float64, which it leaves as it is."""
    if array.dtype.char == "d":
        raise InputError("--tf32: expected float32 (train.dtype), got float64, whose products it does not concern")
    return arrays.module_of_device().asarray(array)


def has_tf32(cupy: Any, number: int) -> bool:
    """Whether its products can be computed in TF32."""
    return bool(cupy.cuda.runtime.getDeviceProperties(number)["major"] >= 8)


def find() -> Found:
    """CuPy, imported, and the number of devices."""
    try:
        cupy = arrays.import_device_library()
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return Found(None, 0, "CuPy is not installed: pip install 'refimpl[cuda12]', or cuda13 for a driver of CUDA 13")
        return Found(None, 0, f"CuPy does not load: {first_line(error)}")
    except Exception as error:  # whatever a library of CUDA does when it is loaded
        return Found(None, 0, f"CuPy does not load: {first_line(error)}")
    try:
        made_for, driver = cupy.cuda.runtime.runtimeGetVersion(), cupy.cuda.runtime.driverGetVersion()
    except Exception as error:
        return Found(None, 0, f"CUDA does not answer: {first_line(error)}")
    if not driver:
        return Found(None, 0, "no NVIDIA driver is loaded (`nvidia-smi` should list a GPU)")
    if driver // 1000 < made_for // 1000:
        return Found(None, 0, f"the driver knows CUDA {version(driver)}, CuPy is made for CUDA {version(made_for)}: install "
                              f"refimpl[cuda{driver // 1000}] in its place, or a newer driver")
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return Found(None, 0, f"the driver finds no GPU: {first_line(error)}")
    return Found(cupy, devices, "" if devices else "the driver finds no GPU")


def free_bytes(name: str) -> int | None:
    """Bytes that nothing holds on the device of this name, CuPy's pool included; None where there is no such device."""
    found, number = find(), number_of(name)
    if number is None or number >= found.devices:
        return None
    with found.library.cuda.Device(number):
        free, _ = found.library.cuda.runtime.memGetInfo()
        return int(free + found.library.get_default_memory_pool().free_bytes())


def _trial(cupy: Any) -> str:
    """Why CuPy can't compute here, though it loads: its compiler or its matrix library may be missing."""
    try:
        ones = cupy.ones((2, 2), "float32") + 1
        return "" if float((ones @ ones).sum()) == 32 else "CuPy computes wrong sums: 2 × 2 ones plus one, squared"
    except Exception as error:
        return (f"CuPy can't compute: {first_line(error)} (its CUDA libraries come with pip install 'refimpl[cuda12]', or "
                "cuda13)")


def report() -> str:
    """Whether a GPU is usable, and which, or why not: one line."""
    found = find()
    if found.problem:
        return f"not usable: {found.problem}"
    cupy = found.library
    problem = _trial(cupy)
    if problem:
        return f"not usable: {problem}"
    versions = f"CuPy {cupy.__version__}, CUDA {version(cupy.cuda.runtime.runtimeGetVersion())}"
    names = [f"gpu:{number} {described(cupy, number)}" for number in range(found.devices)]
    return f"usable: {', '.join(names)}; {versions}"


def described(cupy: Any, number: int) -> str:
    """A device's name, memory and compute capability."""
    properties = cupy.cuda.runtime.getDeviceProperties(number)
    return (f"{properties['name'].decode()}, {properties['totalGlobalMem'] / 2**30:.0f} GiB, compute capability "
            f"{properties['major']}.{properties['minor']}{', TF32' if has_tf32(cupy, number) else ''}")


def version(number: int) -> str:
    """12.9 of 12090."""
    return f"{number // 1000}.{number % 1000 // 10}"


def first_line(error: Exception) -> str:
    """The first line of an error's text that says something, or its type."""
    lines = [line.strip(" =") for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
