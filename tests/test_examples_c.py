"""The C example: compiled without a warning, right on every case that it declares, and unharmed by malformed files."""

import json
import math
import os
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from refimpl.golden import exchange
from refimpl.golden.adapters import opened
from refimpl.golden.processes import Limits
from refimpl.golden.vectors import load_case
from refimpl.golden.verify import Selection, exit_code, judged, select, verify

SOURCES = Path(__file__).parent.parent / "examples" / "adapters" / "c"
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
SANITIZED = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
FUNCTIONS = {"all-attention", "layer-norm", "linear", "softmax", "softmax-loss", "span-mask", "span-penalty"}


def compiled(folder, out, *options):
    """The program, compiled as its header says."""
    files = sorted(str(path) for path in folder.glob("*.c"))
    subprocess.run([os.environ.get("CC", "cc"), *STRICT, *options, "-o", str(out), *files, "-lm"], check=True)
    return str(out)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return compiled(SOURCES, tmp_path_factory.mktemp("c") / "example", "-O2")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The program that ends on the first access outside its memory, leak, or undefined operation."""
    return compiled(SOURCES, tmp_path_factory.mktemp("sanitized") / "example", *SANITIZED)


def held(command, dtype, memory=8.0):
    with opened(None, command, None, Limits(memory=memory)) as implementation:
        assert implementation.functions == FUNCTIONS
        entries = [entry for entry in select(Selection()) if entry["function"] in FUNCTIONS]
        return verify(implementation, entries, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_declared_case_passes(program, dtype):
    run = held(program, dtype)
    assert run.counts() == {**dict.fromkeys(run.counts(), 0), "PASS": len(run.entries)}
    assert exit_code(run) == 0
    assert len(run.entries) >= 90


def test_every_declared_case_passes_under_the_sanitizers(sanitized):
    assert exit_code(held(sanitized, "float64", memory=math.inf)) == 0


ERRORS = [
    ("basic.c", "d_bias[o] += d;", "d_bias[o] = d;", "linear/rows"),
    ("basic.c", "fraction >= 0 && fraction <= 1", "fraction > 0 && fraction <= 1", "span/at-zero"),
    ("attention.c", "memory ? root : 1", "memory ? 1 / root : 1", "attention/ordinary@exact"),
    ("attention.c", "s->share * (s->weight * s->d_logit - s->counted * mean)", "s->share * s->weight * (s->d_logit - mean)",
     "attention/ordinary@published"),
    ("attention.c", "token + a->attend_self;", "token;", "attention/ordinary@transformer-xl"),
    ("tensors.c", "c->single ? \"F32\" : \"F64\"", "\"F64\"", "linear/rows"),
]


@pytest.mark.parametrize(("file", "old", "new", "case"), ERRORS)
def test_an_error_in_it_is_seen(tmp_path, file, old, new, case):
    folder = tmp_path / "c"
    shutil.copytree(SOURCES, folder)
    text = (folder / file).read_text()
    assert text.count(old) == 1
    (folder / file).write_text(text.replace(old, new))
    dtype = "float32" if file == "tensors.c" else "float64"
    with opened(None, compiled(folder, tmp_path / "wrong"), None, Limits()) as implementation:
        verdict, _ = judged(implementation, load_case(select(Selection(ids=(case,)))[0]), dtype)
    assert verdict.verdict == ("CRASHED" if file == "tensors.c" else "MISMATCH")


def called(command, *arguments):
    """(exit code, stderr) of a call, which no sanitizer ended."""
    done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, errors="replace", timeout=60)
    assert "Sanitizer" not in done.stderr
    assert "runtime error" not in done.stderr
    return done.returncode, done.stderr


def test_other_functions_and_types_are_not_implemented(sanitized, tmp_path):
    for case, dtype in (("embedding/repeated", "float64"), ("linear/rows", "float16")):
        exchange.write_case(tmp_path / dtype, load_case(select(Selection(ids=(case,)))[0]), dtype)
        assert called(sanitized, tmp_path / dtype, tmp_path)[0] == 10
    assert called(sanitized)[0] == 1
    assert called(sanitized, tmp_path / "nowhere", tmp_path)[0] == 1


@pytest.fixture
def case(tmp_path):
    """case(id): the folder of a case, with its results in a folder beside it."""

    def write(name):
        (tmp_path / "out").mkdir()
        exchange.write_case(tmp_path / "case", load_case(select(Selection(ids=(name,)))[0]), "float64")
        return tmp_path / "case"

    return write


def with_header(header):
    """A safetensors file of a header and 64 bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def tensor(shape, offsets, dtype="F64"):
    return {"x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


MALFORMED = {
    "empty": b"", "short": b"\1\0\0", "long header": struct.pack("<Q", 2**64 - 1) + b"{}",
    "no object": with_header([]), "no tensors": with_header({}), "no JSON": with_header(b"{'x': 1}"),
    "open string": with_header(b'{"x'), "open escape": with_header(b'{"x\\'), "half a character": with_header(b'{"\\u12'),
    "deep": with_header(b'{"x":' + b"[" * 100_000), "text behind": with_header(b"{} {}"),
    "negative": with_header(tensor([-1], [0, 8])), "fraction": with_header(tensor([0.5], [0, 8])),
    "infinite": with_header(b'{"x":{"dtype":"F64","shape":[1e999],"data_offsets":[0,8]}}'),
    "huge": with_header(tensor([2**32, 2**32], [0, 0])), "zero times huge": with_header(tensor([0, 2**24, 2**24], [0, 0])),
    "many axes": with_header(tensor([1] * 9, [0, 8])), "outside": with_header(tensor([9], [0, 72])),
    "reversed": with_header(tensor([1], [8, 0])), "wrong size": with_header(tensor([2], [0, 8])),
    "one offset": with_header(tensor([1], [0])), "no shape": with_header({"x": {"dtype": "F64"}}),
    "hexadecimal": with_header(b'{"x":{"dtype":"F64","shape":[0x1],"data_offsets":[0,8]}}'),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_tensors_are_refused(sanitized, case, name):
    folder = case("linear/rows")
    (folder / "inputs.safetensors").write_bytes(MALFORMED[name])
    code, said = called(sanitized, folder, folder.parent / "out")
    assert code == 1
    assert said.startswith("expected")


@pytest.mark.parametrize("name", ["linear/rows", "attention/dropout@published", "attention/transformer-xl-positions@exact"])
def test_damaged_cases_do_no_harm(sanitized, case, name):
    """Bytes changed anywhere, an axis changed, a setting changed, an end cut off: an exit code, never a crash."""
    folder, rng = case(name), np.random.default_rng(3)
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for path, data in whole.items():
        for _ in range(20):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 2000), 3):
                damaged[at] = rng.integers(256)
            path.write_bytes(damaged[: rng.integers(len(data) // 2, len(data) + 1)])
            assert called(sanitized, folder, folder.parent / "out")[0] in (0, 1, 10)
        path.write_bytes(data)


def test_settings_that_can_not_be_are_refused(sanitized, case):
    folder = case("attention/ordinary@exact")
    told = json.loads((folder / "case.json").read_text())
    for name, value in (("span", 0), ("span", 1e9), ("span", None), ("ramp", "2"), ("attend_self", [])):
        settings = {**told["settings"], name: value}
        (folder / "case.json").write_text(json.dumps({**told, "settings": settings}))
        assert called(sanitized, folder, folder.parent / "out")[0] == 1, name


def test_what_it_writes_is_what_the_page_says(program, case):
    folder = case("linear/rows")
    assert called(program, folder, folder.parent / "out") == (0, "")
    results = load_file(folder.parent / "out" / "results.safetensors")
    told = json.loads((folder / "case.json").read_text())["results"]
    assert {name: {"shape": list(array.shape)} for name, array in results.items()} == told
