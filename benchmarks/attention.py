"""python benchmarks/attention.py: the tiled attention beside PyTorch and JAX, float32, forward and backward.

All run in turn in one process, on all cores; results are compared before anything is timed. Prints for each the median time
over the repeats, the spread, the median of the ratios to ours within a repeat, and which share of the measured rate of large
matrix products the products that the function needs would make. `--json FILE` keeps every time.

Which kernels NumPy's BLAS takes is decided when it is loaded: set OPENBLAS_CORETYPE beforehand to choose others.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

sys.path.insert(0, str(Path(__file__).parent))
from attention_peers import FIELDS, jax_runner, torch_runner

from refimpl.arrays import available_cores, map_in_threads
from refimpl.layers import attention, tiled_attention

CASES = {  # B, H, T, S, N, E and each head's z
    "full": (4, 8, 512, 1024, 1024, 64, (1024,) * 8),
    "uneven": (4, 8, 512, 1024, 1024, 64, (16, 16, 32, 32, 64, 64, 128, 1024)),
    "short": (4, 8, 512, 1024, 1024, 64, (64,) * 8),
    "long": (1, 8, 512, 8192, 1024, 64, (8192,) * 8),
}
RAMP = 32
AGREEMENT = 1e-4  # of the largest entry: float32 sums over a few thousand terms, in different orders
PEERS = {
    "torch": lambda *given: torch_runner(*given, compiled=False),
    "torch.compile": lambda *given: torch_runner(*given, compiled=True),
    "jax": jax_runner,
}


def draw(batch, heads, block, size, slots, width, spans):
    """Standard normal arguments with keys and values of unit scale, and a cotangent."""
    rng = np.random.default_rng(0)
    shapes = [(batch, block, heads, width), *[(batch, size + block, heads, width)] * 2, (size, width),
              *[(heads, slots, width)] * 2]
    arrays = [rng.standard_normal(shape, dtype="float32") for shape in shapes]
    arrays[4] /= np.sqrt(np.float32(width))
    arrays[5] /= np.sqrt(np.float32(slots))
    rho = np.array(spans, "float32") / size
    return attention.Arguments(*arrays, rho), rng.standard_normal(shapes[0], dtype="float32")


def operations(batch, heads, block, size, slots, width, spans):
    """In the matrix products that the function needs, without any beside the band: 5 forward and 13 backward."""
    seen = [min(size, span + RAMP) for span in spans]
    return 2 * batch * block * width * sum((3 + 8) * positions + (2 + 5) * slots for positions in seen)


def matrix_rate():
    """Operations per second of 1024 × 1024 products, one on each core at a time."""
    left, out = np.ones((available_cores(), 1024, 1024), "float32"), np.empty((available_cores(), 1024, 1024), "float32")
    start = time.perf_counter()
    map_in_threads(lambda i: [np.matmul(left[i], left[i], out=out[i]) for _ in range(8)], range(len(left)), len(left))
    return 8 * len(left) * 2 * 1024**3 / (time.perf_counter() - start)


def our_runner(arguments, dy):
    """The same form as the peers'."""
    options = attention.Options(arguments.positions.shape[0], RAMP)

    def run():
        start = time.perf_counter()
        y, saved = tiled_attention.forward(arguments, options)
        middle = time.perf_counter()
        gradients = tiled_attention.backward(dy, saved)
        return middle - start, time.perf_counter() - middle, [y, *(getattr(gradients, name) for name in FIELDS)]

    return run


def compare(case, runners):
    """Runs each once and raises SystemExit unless all agree with ours."""
    expected = runners["refimpl"]()[2]
    for name, run in runners.items():
        for field, ours, theirs in zip(("y", *FIELDS), expected, run()[2], strict=True):
            error, size = np.abs(ours - theirs).max(), np.abs(ours).max()
            if not error <= AGREEMENT * size:
                raise SystemExit(f"{case}: {field} of {name} differs by {error:.1e}, the largest entry is {size:.1e}")


def measure(case, peers, repeats):
    """Prints one case; returns its record."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    arguments, dy = draw(*CASES[case])
    runners = {"refimpl": our_runner(arguments, dy), **{name: PEERS[name](arguments, RAMP, dy) for name in peers}}
    compare(case, runners)
    times, rates = {name: [] for name in runners}, []
    for _ in range(repeats):
        rates.append(matrix_rate())
        for name, run in runners.items():
            times[name].append(run()[:2])
    ours, rate = [sum(pair) for pair in times["refimpl"]], max(rates)
    for name, pairs in times.items():
        both = [sum(pair) for pair in pairs]
        median, ratio = statistics.median(both), statistics.median(a / b for a, b in zip(both, ours, strict=True))
        forward = statistics.median(pair[0] for pair in pairs)
        print(f"{case:7} {name:14} {median * 1e3:8.1f} ms ({min(both) * 1e3:.1f} … {max(both) * 1e3:.1f}), forward "
              f"{forward * 1e3:.1f}   {ratio:5.1f} x   {operations(*CASES[case]) / median / rate:4.0%} of "
              f"{rate / 1e9:.0f} GFLOP/s", flush=True)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    if not peers:
        print(f"{case:7} memory, arguments and results included: +{memory / 1024:.0f} MiB")
    return {"case": case, "seconds": times, "matrix_rates": rates, "memory_kib": memory}


def environment():
    """What the figures depend on."""
    versions = {}
    for name in ("numpy", "torch", "jax"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    blas = [{key: library.get(key) for key in ("internal_api", "version", "architecture")}
            for library in threadpool_info() if library["user_api"] == "blas"]
    return {"python": platform.python_version(), "machine": platform.machine(), "cores": available_cores(),
            "versions": versions, "blas": blas, "load": os.getloadavg()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["full", "uneven", "short"], help=f"of {', '.join(CASES)}")
    parser.add_argument("--peers", nargs="*", default=["torch"], choices=PEERS)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    about = environment()
    print(f"{about['cores']} cores, NumPy {about['versions']['numpy']} with {about['blas']}, load {about['load']}")
    records = [measure(case, given.peers, given.repeats) for case in given.cases]
    if given.json:
        given.json.write_text(json.dumps({"environment": about, "records": records}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
