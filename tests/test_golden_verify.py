"""Verification of implementations: right ones pass, broken and hostile ones are rows of a report and nothing else."""

import json
import os
import sys
import textwrap

import numpy as np
import pytest

from refimpl.errors import CalledFailedError, InputError
from refimpl.golden import exchange, vectors, verdicts
from refimpl.golden.adapters import opened
from refimpl.golden.processes import Limits
from refimpl.golden.verify import Selection, exit_code, select, verify

LINEAR = Selection(groups=("linear",))
RIGHT = """
import numpy as np

def adapter(function, settings, inputs):
    if function != "linear":
        return None
    x, w, d = inputs["x"], inputs["weight"], inputs["d_y"]
    rows, d_rows = x.reshape(-1, x.shape[-1]), d.reshape(-1, d.shape[-1])
    return {"y": x @ w.T + inputs["bias"], "d_x": d @ w, "d_weight": d_rows.T @ rows, "d_bias": d_rows.sum(0)}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """module(source): the source as module `mine` in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(source):
        (tmp_path / "mine.py").write_text(textwrap.dedent(source))

    return write


def run(selection=LINEAR, dtype="float64", time_limit=20.0, memory=1.0, **given):
    chosen, limits = (given.get(name) for name in ("adapter", "command", "results")), Limits(time_limit, memory)
    with opened(*chosen, limits, given.get("attention")) as implementation:
        return verify(implementation, select(selection), dtype)


@pytest.mark.parametrize("attention", ["textbook", "tiled"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_refimpl_passes_every_case(dtype, attention):
    result = run(Selection(), dtype, attention=attention)
    assert result.counts() == {**dict.fromkeys(result.counts(), 0), "PASS": len(result.entries)}
    assert len(result.entries) >= 250
    assert exit_code(result) == 0
    assert max(verdict.off for verdict in result.verdicts) < 0.5


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_right_adapter_passes_and_a_wrong_one_is_told_where(module, dtype):
    module(RIGHT)
    assert exit_code(run(adapter="mine:adapter", dtype=dtype)) == 0
    module(RIGHT.replace("d_rows.sum(0)", "d_rows.mean(0)"))
    result = run(adapter="mine:adapter", dtype=dtype)
    assert exit_code(result) == 1
    for verdict in result.verdicts:
        several = verdict.id != "linear/one-by-one"
        assert (verdict.verdict, verdict.worst[0].tensor) == ("MISMATCH", "d_bias")
        assert verdict.worst[0].off > 1e3
        assert several or verdict.worst[0].where == (0,)


def test_functions_that_are_not_declared_are_left_out_and_undeclared_gaps_are_incomplete(module):
    module(RIGHT)
    chosen = Selection(groups=("linear", "softmax"))
    assert exit_code(run(chosen, adapter="mine:adapter")) == 4
    module(RIGHT + "adapter.functions = ['linear']\n")
    result = run(chosen, adapter="mine:adapter")
    assert (exit_code(result), result.undeclared, len(result.verdicts)) == (0, 4, 3)
    with pytest.raises(InputError, match="to declare a function of the chosen cases, got linear"):
        run(Selection(groups=("softmax",)), adapter="mine:adapter")


INTO_EVERY_PIPE = """import contextlib, os
        for pipe in range(3, 20):
            with contextlib.suppress(OSError):
                os.write(pipe, {})"""
HOSTILE = {  # body of the adapter in the first case; the verdict on that case, and what its reason says
    "crash": ("import os; os.kill(os.getpid(), 11)", "CRASHED", "SIGSEGV"),
    "exit": ("import os; os._exit(7)", "CRASHED", "exit code 7"),
    "hang": ("while True: pass", "CRASHED", "no answer within 1 s"),
    "error": ("raise RuntimeError('out of cheese')", "CRASHED", "RuntimeError: out of cheese"),
    "wrong shape": ("right['d_x'] = right['d_x'][0]", "MISMATCH", r"d_x: expected real numbers of shape \(3, 2, 4\), got"),
    "complex": ("right['y'] = right['y'] + 1j", "MISMATCH", "y: expected real numbers"),
    "NaN": ("right['y'][0] = np.nan", "MISMATCH", ""),
    "missing": ("del right['d_bias']", "MISMATCH", r"d_bias: expected shape \(2,\), got nothing; got d_weight, d_x, y"),
    "more": ("right['extra'] = np.zeros(3)", "PASS", ""),
    "no arrays": ("right['y'] = 'nonsense'", "CRASHED", "expected arrays by name"),
    "not a mapping": ("return 3", "CRASHED", "expected arrays by name, got int: no mapping"),
    "a list": ("return list(right.values())", "CRASHED", "expected arrays by name, got list: a list does not say which"),
    "transposed": ("right['d_weight'] = right['d_weight'].T", "MISMATCH",
                   r"d_weight: expected real numbers of shape \(2, 4\), got float64 \(4, 2\)"),
    "half the digits": ("right = {k: a.astype('f4') for k, a in right.items()}", "MISMATCH",
                        "d_bias: expected float64, got float32 .--dtype float32 holds it to the bound of that"),
    "objects": ("right['y'] = np.array([{}])", "CRASHED", "expected arrays by name"),
    "memory": ("np.ones(2**28)", "CRASHED", "out of memory: Unable to allocate 2.00 GiB"),
    "memory that it keeps": ("while True: held.append(bytes(100))", "CRASHED", "out of memory"),
    "printing": ("print('{\"kind\": \"results\"}', flush=True)", "PASS", ""),
    "half an answer": (INTO_EVERY_PIPE.format("b'{'") + "\n        while True: pass", "CRASHED", "no answer within 1 s"),
    "another's answer": (INTO_EVERY_PIPE.format("b'[3]\\n'"), "CRASHED", "the process ended with"),
    "strings": ("right['y'] = np.full(right['y'].shape, 'x')", "CRASHED", "expected arrays by name"),
    "booleans": ("right['y'] = right['y'] > 0", "MISMATCH", "y: expected float64, got safetensors' BOOL"),
    "extended precision": ("right = {k: a.astype(np.longdouble) for k, a in right.items()}", "PASS", ""),
    "low precision": ("right = {k: (a / 3).astype('f4') * np.float32(3) for k, a in right.items()}", "MISMATCH", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_broken_adapter_is_a_row_and_the_run_goes_on(module, name):
    body, expected, reason = HOSTILE[name]
    code = RIGHT.replace("def adapter(", "def good(").rstrip() + f"""

held = []

def adapter(function, settings, inputs):
    right = good(function, settings, inputs)
    if inputs["weight"].shape == (2, 4):
        {body}
    return right
"""
    module(code)
    result = run(adapter="mine:adapter", time_limit=1.0 if "1 s" in reason else 20.0)
    by_id = {verdict.id: verdict for verdict in result.verdicts}
    verdict = by_id.pop("linear/rows")
    assert verdict.verdict == expected
    if reason:
        import re

        assert re.search(reason, verdict.reason), verdict.reason
    assert {other.id: other.verdict for other in by_id.values()} == {"linear/one-by-one": "PASS", "linear/wide": "PASS"}
    assert exit_code(result) == {"PASS": 0, "MISMATCH": 1, "CRASHED": 3}[expected]


def test_cases_to_be_refused(module):
    chosen = Selection(ids=("embedding/outside",))
    module("def adapter(function, settings, inputs):\n    raise ValueError('token 3 of 3')\n")
    assert exit_code(run(chosen, adapter="mine:adapter")) == 0
    module("def adapter(function, settings, inputs):\n    return {'x': inputs['d_x']}\n")
    result = run(chosen, adapter="mine:adapter")
    assert exit_code(result) == 1
    assert "expected an error" in result.verdicts[0].reason
    module("import os\ndef adapter(function, settings, inputs):\n    os.abort()\n")
    assert exit_code(run(chosen, adapter="mine:adapter")) == 3


@pytest.mark.parametrize(("source", "reference", "error", "message"), [
    ("", "mine", InputError, "expected package.module:function"),
    ("", "./mine.py:adapter", InputError, "expected package.module:function"),
    ("def adapter(): pass\nadapter.functions = 'linear'", "mine:adapter", InputError, "list of names as adapter.functions"),
    ("def adapter(): pass\nadapter.functions = 3", "mine:adapter", InputError, "list of names as adapter.functions, got 3"),
    ("def adapter(): pass\nadapter.functions = ['linear', 'layernorm']", "mine:adapter", InputError,
     "expected it to declare functions among .*layer-norm.*; got 'layernorm'"),
    ("", "nothing:adapter", InputError, "a module that can be imported from here"),
    ("", "mine:adapter", InputError, "expected a function adapter in mine, got None"),
    ("adapter = 3", "mine:adapter", InputError, "expected a function adapter in mine, got 3"),
    ("import nowhere_to_be_found", "mine:adapter", CalledFailedError, "nowhere_to_be_found"),
    ("1 / 0", "mine:adapter", CalledFailedError, "importing it raised ZeroDivisionError"),
    ("import os; os._exit(3)", "mine:adapter", CalledFailedError, "did not start"),
])
def test_an_adapter_that_can_not_be_used(module, source, reference, error, message):
    module(source)
    with pytest.raises(error, match=message):
        run(adapter=reference)


PROGRAM = """
import json, sys
from pathlib import Path
from refimpl.golden import exchange
if sys.argv[1] == "--describe":
    print(json.dumps({{"functions": ["linear"]}}))
    sys.exit()
from mine import adapter
results = adapter(*exchange.read_case(Path(sys.argv[1])))
out = Path(sys.argv[2])
first = results["d_bias"].shape == (2,)
{body}
exchange.write_results(out, results)
"""
PROGRAMS = {
    "right": ("", "PASS", ""),
    "fails": ("if first: sys.exit('no memory')", "CRASHED", "exit code 1: no memory"),
    "killed": ("import os\nif first: os.kill(os.getpid(), 9)", "CRASHED", "ended by SIGKILL"),
    "not implemented": ("if first: sys.exit(10)", "SKIPPED", "not implemented"),
    "no file": ("if first: sys.exit(0)", "CRASHED", "got no such file"),
    "link": ("if first:\n    (out / 'results.safetensors').symlink_to('/etc/hostname'); sys.exit(0)", "CRASHED",
             "symbolic link"),
    "folder": ("if first:\n    (out / 'results.safetensors').mkdir(); sys.exit(0)", "CRASHED", "as a plain file"),
    "pipe": ("import os\nif first:\n    os.mkfifo(out / 'results.safetensors'); sys.exit(0)", "CRASHED", "as a plain file"),
    "truncated": ("if first:\n    exchange.write_results(out, results)\n    path = out / 'results.safetensors'\n"
                  "    path.write_bytes(path.read_bytes()[:-9]); sys.exit(0)", "CRASHED", "safetensors format"),
    "no tensors": ("if first:\n    (out / 'results.safetensors').write_text('hello'); sys.exit(0)", "CRASHED",
                   "safetensors format"),
    "huge": ("if first:\n    import os\n    file = os.open(out / 'results.safetensors', os.O_CREAT | os.O_WRONLY)\n"
             "    os.truncate(file, 2**33); sys.exit(0)", "CRASHED", "at most 16,777,216 bytes"),
    "linked folder": ("if first:\n    other = out.with_name('other')\n    exchange.write_results(other, results)\n"
                      "    out.rmdir()\n    out.symlink_to(other); sys.exit(0)", "CRASHED", "in a plain folder"),
    "beside the folder": ("if first:\n    exchange.write_results(out.parent, results); sys.exit(0)", "CRASHED",
                          "got no such file"),
    "no folder left": ("if first:\n    import shutil; shutil.rmtree(out.parent); sys.exit(0)", "CRASHED",
                       "got no such file"),
    "memory": ("import numpy\nif first: numpy.ones(2**28)", "CRASHED", "Unable to allocate 2.00 GiB"),
    "more files": ("(out / 'notes.txt').write_text('mine')", "PASS", ""),
    "loud": ("print('x' * 1000000)", "PASS", ""),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program(module, tmp_path, name):
    body, expected, reason = PROGRAMS[name]
    module(RIGHT)
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
    result = run(command=f"{sys.executable} program.py")
    by_id = {verdict.id: verdict for verdict in result.verdicts}
    verdict = by_id.pop("linear/rows")
    assert (verdict.verdict, reason in verdict.reason) == (expected, True), verdict.reason
    assert {other.id: other.verdict for other in by_id.values()} == {"linear/one-by-one": "PASS", "linear/wide": "PASS"}


def test_a_program_that_hangs_and_its_children_are_ended(module, tmp_path):
    module(RIGHT)
    body = "import subprocess, time\nif first:\n    subprocess.Popen(['sleep', '60']); time.sleep(60)"
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body))
    result = run(Selection(ids=("linear/rows",)), command=f"{sys.executable} program.py", time_limit=3.0)
    assert result.verdicts[0].reason == "no answer within 3 s"
    assert result.seconds < 30


@pytest.mark.parametrize(("command", "error", "message"), [
    ("", InputError, "expected a program, got nothing"),
    ("./nowhere", InputError, "expected a program that starts"),
    (f"{sys.executable} -c 1", CalledFailedError, "expected JSON with functions"),
    (f"{sys.executable} -c raise(SystemExit(4))", CalledFailedError, "ended with 4"),
    ("printf '{\"functions\": \"linear\"}%.0s'", CalledFailedError, r"expected JSON with functions, got '{.*}'"),
    ("printf '{\"functions\": [\"linea\"]}%.0s'", InputError, "to declare functions among .* got 'linea'"),
])
def test_a_program_that_can_not_be_used(command, error, message):
    with pytest.raises(error, match=message):
        run(command=command)


def test_results_made_elsewhere(tmp_path):
    for entry in select(Selection(groups=("linear", "embedding"))):
        case = vectors.load_case(entry)
        place = tmp_path / entry["group"]
        exchange.write_results(place, case.results)
        os.rename(place / "results.safetensors", place / f"{vectors.stem(case.id)}.results.safetensors")
    (tmp_path / "embedding" / "outside.results.safetensors").unlink()
    (tmp_path / "embedding" / "outside.refused").touch()
    chosen = Selection(groups=("linear", "embedding"))
    assert exit_code(run(chosen, results=tmp_path)) == 0
    (tmp_path / "embedding" / "outside.refused").unlink()
    assert exit_code(run(chosen, results=tmp_path)) == 4
    with pytest.raises(InputError, match="--results: expected a folder"):
        run(results=tmp_path / "nowhere")


def test_results_made_elsewhere_by_the_careless_and_the_hostile(tmp_path):
    """Half of the cases, a link, a file cut off, one that is not asked for: rows, and the others are judged."""
    written = {}
    for entry in select(Selection(groups=("linear", "span"))):
        case = vectors.load_case(entry)
        place = tmp_path / entry["group"]
        exchange.write_results(place, case.results)
        written[case.id] = place / f"{vectors.stem(case.id)}.results.safetensors"
        os.rename(place / "results.safetensors", written[case.id])
    written["linear/rows"].rename(tmp_path / "elsewhere")
    written["linear/rows"].symlink_to(tmp_path / "elsewhere")
    written["linear/wide"].write_bytes(written["linear/wide"].read_bytes()[:-9])
    written["span/at-zero"].unlink()
    (tmp_path / "linear" / "more.results.safetensors").touch()
    result = run(Selection(groups=("linear", "span")), results=tmp_path)
    reasons = {verdict.id: (verdict.verdict, verdict.reason) for verdict in result.verdicts if verdict.verdict != "PASS"}
    assert reasons.keys() == {"linear/rows", "linear/wide", "span/at-zero"}
    assert reasons["linear/rows"] == ("CRASHED", "expected rows.results.safetensors as a plain file, got a symbolic link")
    assert reasons["linear/wide"][0] == "CRASHED"
    assert "in the safetensors format" in reasons["linear/wide"][1]
    assert reasons["span/at-zero"] == ("SKIPPED", "no at-zero.results.safetensors")
    assert exit_code(result) == 3


@pytest.mark.parametrize("limits", [
    {"seconds": 0}, {"seconds": np.inf}, {"seconds": np.nan}, {"memory": 0}, {"memory": np.nan},
])
def test_limits_that_can_not_be(limits):
    with pytest.raises(InputError, match="limit: expected a"):
        Limits(**limits)


def test_one_at_a_time(tmp_path):
    with pytest.raises(InputError, match="expected one of"), opened("a:b", "c", None, Limits()):
        pass


@pytest.mark.parametrize(("selection", "message"), [
    (Selection(groups=("atention",)), "--group: expected one of adaptive-input"),
    (Selection(flags=("x",)), "--flag: expected one of"),
    (Selection(conventions=("tensorflow",)), "--convention: expected one of exact"),
    (Selection(ids=("linear/none",)), "--case: expected an id"),
    (Selection(groups=("linear",), flags=("overflow",)), "expected a selection with cases in it"),
])
def test_selections_that_can_not_be(selection, message):
    with pytest.raises(InputError, match=message):
        select(selection)


def test_conventions_bring_those_on_which_all_agree():
    ids = {entry["convention"] for entry in select(Selection(conventions=("published",)))}
    assert ids == {"published", "any"}


def test_an_element_one_bound_off_passes_and_two_do_not():
    case = vectors.load_case(select(Selection(ids=("linear/rows",)))[0])
    limit, _ = verdicts.tolerance(case.results["y"], case.bounds["y"], "float64")
    for bounds, expected in ((0.9, "PASS"), (2.0, "MISMATCH")):
        moved = case.results["y"].copy()
        moved[1, 0, 1] += bounds * limit[1, 0, 1]
        verdict = verdicts.judge(case, {**case.results, "y": moved}, "float64")
        assert verdict.verdict == expected
    assert verdict.worst[0].where == (1, 0, 1)


def test_a_dtype_too_coarse_for_a_whole_tensor_is_unchecked():
    case = vectors.load_case(select(Selection(ids=("linear/rows",)))[0])
    wide = case._replace(bounds={**case.bounds, "y": np.full_like(case.bounds["y"], 1e16)})
    verdict = verdicts.judge(wide, case.results, "float64")
    assert (verdict.verdict, verdict.unchecked) == ("UNCHECKED", case.results["y"].size)
    assert "too coarse for y" in verdict.reason


def test_altered_vectors_are_refused(tmp_path):
    import shutil

    shutil.copytree(vectors.FOLDER / "linear", tmp_path / "linear")
    entry = next(e for e in vectors.entries(tmp_path) if e["id"] == "linear/rows")
    path = tmp_path / "linear" / "rows.expected.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="the file was altered"):
        vectors.load_case(entry, tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="expected a file of the golden vectors"):
        vectors.load_case(entry, tmp_path)
    manifest = tmp_path / "linear" / "manifest.json"
    right = json.loads(manifest.read_text())
    spoilt = {"schema": (99, "data.schema must be same as const"), "cases": ([3], r"cases\[0\] must be object"),
              "smallest": (None, "smallest must be object")}
    for key, (value, said) in spoilt.items():
        manifest.write_text(json.dumps({**right, key: value}))
        with pytest.raises(InputError, match=f"manifest.json: expected a golden manifest, got .*{said}"):
            list(vectors.entries(tmp_path))
    manifest.write_text(json.dumps(right))  # the same to every reader of JSON
    with pytest.raises(InputError, match=r"expected the SHA-256 that manifest\.sha256 holds"):
        list(vectors.entries(tmp_path))
    manifest.write_text("{")
    with pytest.raises(InputError, match="expected a golden manifest, got Expecting"):
        list(vectors.entries(tmp_path))
    with pytest.raises(InputError, match="expected golden vectors"):
        vectors.groups(tmp_path / "nowhere")


def test_bfloat16_numbers_are_read(tmp_path):
    header = b'{"y":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]}}'
    numbers = np.array([0x3F80, 0xC040, 0x0000, 0x7F80], "<u2")  # 1, -3, 0, infinity
    path = tmp_path / "results.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + numbers.tobytes())
    assert np.array_equal(exchange.read_results(path, "bfloat16")["y"], [[1, -3], [0, np.inf]])
    with pytest.raises(exchange.WrongNumbersError, match="y: expected float32, got bfloat16"):
        exchange.read_results(path, "float32")


def test_inputs_go_out_in_the_dtype_under_test(tmp_path):
    case = vectors.load_case(select(Selection(ids=("embedding/distinct",)))[0])
    for dtype, sent in {"float32": "float32", "float16": "float16", "bfloat16": "float32"}.items():
        exchange.write_case(tmp_path / dtype, case, dtype)
        _, _, inputs = exchange.read_case(tmp_path / dtype)
        assert {name: array.dtype.name for name, array in inputs.items()} == {"table": sent, "d_x": sent, "tokens": "int64"}
        assert all(np.array_equal(inputs[name], array) for name, array in case.inputs.items())
        assert "expected" not in (tmp_path / dtype / "case.json").read_text()


def test_what_a_program_prints_without_end_is_not_kept():
    from refimpl.golden import processes

    endless = [sys.executable, "-c", "import sys\nwhile True: sys.stdout.write('x' * 99999)"]
    code, said, out = processes.run(endless, Limits(2.0))
    assert code is None
    assert len(out) <= processes.KEPT
    assert said == ""
