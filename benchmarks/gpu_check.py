"""Everything that only a machine with a GPU can show, in one Markdown file to attach to an issue.

    python benchmarks/gpu_check.py gpu-check.md

Exit status: 0 all passed; 1 something failed, which the file tells; 3 there is no usable GPU, and no file is written.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from refimpl.device import opening

ROOT = Path(__file__).resolve().parents[1]
REFIMPL = [sys.executable, "-m", "refimpl"]
MODEL = ["--preset", "laptop"]
TAIL = 4000  # characters of what a step said
TESTS = ("(hosts or every_form or small_tiles or not_finite or twenty or checkpoint or masks_are or the_textbooks or "
         "bits_are) and not (reads_back or counted)")  # those that need no counters


class Step(NamedTuple):
    """A heading, and the command below it."""

    name: str
    command: list[str]


class Done(NamedTuple):
    """How a step ended."""

    step: Step
    code: int
    seconds: float
    said: str


STEPS = [
    Step("Installation", [*REFIMPL, "info"]),
    Step("Tests beside the host", [sys.executable, "-m", "pytest", "-q", "--no-header", "-k", TESTS, *(
        str(ROOT / "tests" / name) for name in ("test_device_model.py", "device"))]),
    Step("Golden vectors, float32, textbook", [*REFIMPL, "golden", "verify", "--device", "gpu", "--dtype", "float32"]),
    Step("Golden vectors, float32, tiled",
         [*REFIMPL, "golden", "verify", "--device", "gpu", "--dtype", "float32", "--attention", "tiled"]),
    Step("Gradients", [*REFIMPL, "gradcheck", "all", "--device", "gpu", "--directions", "2"]),
    Step("Ledger: the bound", [*REFIMPL, "bench", *MODEL, "--ledger"]),
    Step("Measured", [*REFIMPL, "bench", *MODEL, "--device", "gpu"]),
    Step("Measured, as a CUDA graph", [*REFIMPL, "bench", *MODEL, "--device", "gpu", "--cuda-graph"]),
    Step("Measured, in TF32", [*REFIMPL, "bench", *MODEL, "--device", "gpu", "--tf32"]),
    Step("Beside PyTorch on the same device", [sys.executable, str(ROOT / "benchmarks" / "update_gpu.py")]),
]


def run(step: Step) -> Done:
    """The step, with the last of what it said."""
    start = time.monotonic()
    end = subprocess.run(step.command, cwd=ROOT, env={**os.environ, "REFIMPL_GPU": "1"}, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    return Done(step, end.returncode, time.monotonic() - start, end.stdout[-TAIL:])


def ratios(bound: str, measured: str) -> str:
    """The measured update beside each device's bound, from the JSON of both commands."""
    seconds, bounds = json.loads(measured)["seconds"]["update"]["median"], json.loads(bound)["span_initial"]["seconds"]
    head = "An update of `laptop`, measured on this device, beside the bounds of those on the list, spans as they begin:"
    lines = [f"- {name}: bound {1e3 * least:.2f} ms, measured here {1e3 * seconds:.2f} ms" for name, least in bounds.items()]
    return "\n".join([head, "", *lines])


def markdown(device: str, done: list[Done], comparison: str) -> str:
    """The report."""
    verdicts = "\n".join(f"| {d.step.name} | {'passed' if d.code == 0 else f'exit status {d.code}'} | {d.seconds:.0f} s |"
                         for d in done)
    parts = [f"# refimpl on a GPU\n\n{device}\n\n| step | result | time |\n|---|---|---|\n{verdicts}\n\n{comparison}\n"]
    parts += [f"## {d.step.name}\n\n`{' '.join(Path(word).name if '/' in word else word for word in d.step.command)}`\n\n"
              f"```\n{d.said.strip()}\n```\n" for d in done]
    return "\n".join(parts)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", default=Path("gpu-check.md"), help="default: gpu-check.md")
    arguments = parser.parse_args()
    device = opening.report()
    if not device.startswith("usable"):
        print(f"gpu-check: {device}", file=sys.stderr)
        return 3
    done = []
    for step in STEPS:
        print(f"{step.name} …", file=sys.stderr)
        done.append(run(step))
    told = [run(Step("", [*REFIMPL, "bench", *MODEL, *more, "--json"])) for more in (["--ledger"], ["--device", "gpu"])]
    comparison = ratios(told[0].said, told[1].said) if not any(d.code for d in told) else "The bench command failed."
    arguments.file.write_text(markdown(device, done, comparison), encoding="utf-8")
    failed = [d.step.name for d in done if d.code]
    print(f"wrote {arguments.file}; {f'failed: {failed}' if failed else 'all passed'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
