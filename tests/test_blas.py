"""BLAS kernels: the choice, the measurement behind it, what is remembered, and the command that starts again."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from refimpl import arrays, blas, blas_candidate
from refimpl.errors import InputError

ROOT = blas.PROGRAM.parent.parent
CHOSEN = ("OPENBLAS_CORETYPE", "REFIMPL_BLAS_APPLIED", "REFIMPL_BLAS_KERNELS")
FAST, SLOW, WRONG = blas.Measured(200.0, ""), blas.Measured(100.0, ""), blas.Measured(0.0, "wrong products")


@pytest.fixture
def machine(tmp_path):
    """machine(OPENBLAS_CORETYPE="Haswell"): one with AVX-512 and this environment."""

    def make(has_avx512=True, processor="a processor", build="numpy 1", **environment):
        return blas.Machine(environment, processor, has_avx512, build, tmp_path / "kept")

    return make


@pytest.fixture
def results():
    """results(default, other): what each candidate gives; `.asked` says which were run."""

    class Results:
        def __init__(self, default, other):
            self.given, self.asked = {"default": default, "SkylakeX": other}, []

        def __call__(self, kernels, environment):
            self.asked.append(kernels)
            return self.given[kernels]

    return Results


def refuse(kernels, environment):
    raise AssertionError("nothing is to be measured here")


@pytest.mark.parametrize(("default", "other", "chosen", "reason"), [
    (SLOW, FAST, "SkylakeX", "SkylakeX 200, its own 100 GFLOP/s"), (FAST, SLOW, None, "OpenBLAS's own choice; SkylakeX 100"),
    (SLOW, SLOW, None, "own choice"), (SLOW, blas.Measured(109.0, ""), None, "own choice"),
    (SLOW, blas.Measured(111.0, ""), "SkylakeX", "111"), (SLOW, WRONG, None, "wrong products"),
    (SLOW, blas.Measured(999.0, "a crash"), None, "a crash"), (WRONG, SLOW, "SkylakeX", "SkylakeX"),
    (WRONG, WRONG, None, "wrong"),
])
def test_the_faster_candidate_that_works_is_chosen(machine, results, default, other, chosen, reason):
    choice = blas.choose("auto", machine(), results(default, other))
    assert choice.kernels == chosen
    assert reason in choice.reason


@pytest.mark.parametrize(("asked", "environment", "reason"), [
    ("auto", {"OPENBLAS_CORETYPE": "Haswell"}, "Haswell: OPENBLAS_CORETYPE is set"),
    ("auto", {"OPENBLAS_CORETYPE": "SkylakeX", "REFIMPL_BLAS_APPLIED": "SkylakeX"}, "started again"),
    ("auto", {"has_avx512": False}, "no others to try"),
    ("default", {}, "as asked for"),
    ("default", {"OPENBLAS_CORETYPE": "Haswell"}, "Haswell: OPENBLAS_CORETYPE is set"),
    ("Zen", {"OPENBLAS_CORETYPE": "Zen"}, "Zen: OPENBLAS_CORETYPE is set"),
])
def test_nothing_is_measured_or_changed_where_there_is_nothing_to_choose(machine, tmp_path, asked, environment, reason):
    choice = blas.choose(asked, machine(**environment), refuse)
    assert choice.kernels is None
    assert reason in choice.reason
    assert list(tmp_path.iterdir()) == []


def test_a_name_stands_above_the_environment_and_above_what_was_applied(machine):
    here = machine(OPENBLAS_CORETYPE="Haswell", REFIMPL_BLAS_APPLIED="Haswell")
    assert blas.choose("Zen", here, lambda *_: SLOW).kernels == "Zen"


def test_a_name_that_does_not_work_is_refused(machine):
    with pytest.raises(InputError, match="--blas-kernels Zen: expected kernels that work here, got wrong products"):
        blas.choose("Zen", machine(), lambda *_: WRONG)


def test_candidates_are_measured_once(machine, results):
    run = results(SLOW, FAST)
    for _ in range(3):
        assert blas.choose("auto", machine(), run).kernels == "SkylakeX"
    assert run.asked == ["default", "SkylakeX"]
    assert blas.choose("Zen", machine(), lambda *_: SLOW).kernels == blas.choose("Zen", machine(), refuse).kernels == "Zen"
    assert blas.choose("auto", machine(), refuse).kernels == "SkylakeX"


@pytest.mark.parametrize("other", [{"processor": "another"}, {"build": "numpy 2"}])
def test_another_processor_or_numpy_is_measured_anew_and_both_are_remembered(machine, results, other):
    first, second = results(SLOW, FAST), results(FAST, SLOW)
    blas.choose("auto", machine(), first)
    assert blas.choose("auto", machine(**other), second).kernels is None
    assert second.asked == ["default", "SkylakeX"]
    assert blas.choose("auto", machine(), refuse).kernels == "SkylakeX"
    assert blas.choose("auto", machine(**other), refuse).kernels is None


@pytest.mark.parametrize("content", [
    b"", b"\xff\x00", b"[]", b"{}", b'"text"', b"[" * 100_000, b'{"processor": "a processor", "build": "numpy 1"}',
    b'{"processor": "another", "build": "numpy 1", "measured": {"default": [1, ""], "SkylakeX": [9, ""]}}',
    b'{"processor": "a processor", "build": "numpy 1", "measured": {"default": [1], "SkylakeX": [9, ""]}}',
    b'{"processor": "a processor", "build": "numpy 1", "measured": {"default": ["x", ""], "SkylakeX": [9, ""]}}',
])
def test_a_file_that_is_not_ours_is_ignored_and_written_anew(machine, results, content):
    blas.choose("auto", machine(), results(SLOW, FAST))
    (path,) = machine().store.iterdir()
    path.write_bytes(content)
    run = results(FAST, SLOW)
    assert blas.choose("auto", machine(), run).kernels is None
    assert run.asked == ["default", "SkylakeX"]
    assert list(machine().store.iterdir()) == [path]
    assert blas.choose("auto", machine(), refuse).kernels is None


def test_what_is_remembered_is_replaced_whole_or_not_at_all(machine, results, monkeypatch):
    blas.choose("auto", machine(), results(SLOW, FAST))
    (path,) = machine().store.iterdir()
    before = path.read_bytes()

    def fail(*_):
        raise OSError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(blas.Path, "replace", fail)
        assert blas.choose("Zen", machine(), lambda *_: SLOW).kernels == "Zen"
    assert [p.read_bytes() for p in machine().store.iterdir()] == [before]


def test_a_folder_that_cannot_be_written_costs_a_measurement_only(machine, results):
    machine().store.write_text("a file where the folder would be")
    assert blas.choose("auto", machine(), results(SLOW, FAST)).kernels == "SkylakeX"


@pytest.mark.parametrize(("program", "kernels", "problem"), [
    ("print('{\"architecture\": \"Zen\", \"right\": true, \"speed\": 7.5}')", "Zen", ""),
    ("print('{\"architecture\": \"zen\", \"right\": true, \"speed\": 7.5}')", "Zen", ""),
    ("print('{\"architecture\": \"Zen\", \"right\": true, \"speed\": 7.5}')", "default", ""),
    ("print('{\"library\": \"mkl\", \"architecture\": null, \"right\": true, \"speed\": 7.5}')", "Zen", "None of mkl"),
    ("print('{\"architecture\": \"Zen\", \"right\": false, \"speed\": 7.5}')", "Zen", "wrong products"),
    ("print('{\"architecture\": \"Zen\", \"speed\": 7.5}')", "Zen", "wrong products"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "Zen", "a crash, exit status -4"),
    ("raise SystemExit(3)", "Zen", "a crash, exit status 3"),
    ("print('no JSON')", "Zen", "no measurement"), ("print('[]')", "Zen", "no measurement"),
    ("while True: pass", "Zen", "nothing within 0.5 s"),
])
def test_a_candidate_that_crashes_hangs_or_errs_is_a_problem(tmp_path, program, kernels, problem):
    (tmp_path / "program.py").write_text(program)
    limit = 0.5 if "while" in program else 60
    found = blas.measure(kernels, os.environ, tmp_path / "program.py", limit)
    assert found.problem.startswith(problem)
    assert (found.problem == "") == (problem == "")
    assert found.speed == (7.5 if not problem else 0)


def test_a_candidate_is_told_its_kernels_and_the_usual_one_nothing(tmp_path):
    (tmp_path / "program.py").write_text(
        "import json, os; name = os.environ.get('OPENBLAS_CORETYPE', 'none')\n"
        "print(json.dumps({'architecture': name, 'right': True, 'speed': len(name)}))")
    told = {**os.environ, "OPENBLAS_CORETYPE": "Haswell"}
    without = {name: value for name, value in told.items() if name != "OPENBLAS_CORETYPE"}
    assert blas.measure("Zen", told, tmp_path / "program.py") == blas.Measured(3, "")
    assert blas.measure("default", told, tmp_path / "program.py") == blas.Measured(7, "")
    assert blas.measure("default", without, tmp_path / "program.py") == blas.Measured(4, "")


def test_the_kernels_at_hand_are_measured_and_right():
    found = blas.measure("default", os.environ)
    assert found.problem == ""
    assert found.speed > 0


def spoil(place, by):
    def matmul(a, b):
        c = a @ b
        c[place] += by
        return c

    return matmul


@pytest.mark.parametrize(("place", "by"), [((0, 0), 1), ((-1, -1), -1), ((200, 300), 1), ((500, 3), np.nan)])
def test_one_wrong_element_makes_a_candidate_wrong(place, by):
    assert blas_candidate.right(np.matmul)
    assert not blas_candidate.right(spoil(place, by))


@pytest.mark.parametrize("which", [("float32", True), ("float64", True), ("float32", False), ("float64", False)])
def test_either_precision_and_either_order_is_looked_at(which):
    def matmul(a, b):
        return spoil((5, 5), 1)(a, b) if (a.dtype.name, a.flags.c_contiguous) == which else a @ b

    assert not blas_candidate.right(matmul)


FLAGS = "fpu avx512f avx512cd avx512bw avx512dq avx512vl"


@pytest.mark.parametrize(("cpuinfo", "name", "has_avx512"), [
    (f"model name\t: One\nmodel\t\t: 2\nflags\t\t: {FLAGS}\n\nmodel name\t: Two\n", "2  One", True),
    ("model name\t: One\nflags\t\t: fpu avx512f\n", "One", False), ("", "", False), (None, "", False),
])
def test_the_processor_is_read(tmp_path, monkeypatch, cpuinfo, name, has_avx512):
    monkeypatch.setattr(blas.platform, "machine", lambda: "x86_64")
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    here = blas.this_machine(tmp_path, tmp_path / "cpuinfo")
    assert here.has_avx512 == has_avx512
    assert here.processor.strip() == name
    assert np.__version__ in here.build
    monkeypatch.setattr(blas.platform, "machine", lambda: "aarch64")
    assert not blas.this_machine(tmp_path, tmp_path / "cpuinfo").has_avx512


def test_a_system_that_cannot_replace_a_process_says_what_to_do(monkeypatch):
    monkeypatch.setattr(blas.os, "name", "nt")
    monkeypatch.setattr(blas.os, "execve", refuse)
    assert "set OPENBLAS_CORETYPE=Zen before the command" in blas.restart("Zen")


def test_a_start_that_fails_is_told(monkeypatch):
    def fail(*_):
        raise OSError("too long")

    monkeypatch.setattr(blas.os, "execve", fail)
    assert "could not be started again: too long" in blas.restart("Zen")


def test_called_from_python_a_command_never_replaces_the_callers_process(command, trained, monkeypatch):
    monkeypatch.setattr(blas.os, "execve", refuse)
    monkeypatch.setattr(blas, "choose", refuse)
    for words in (("eval", trained), ("generate", trained, "--length", 2)):
        assert command(*words, "--blas-kernels", "auto").code == 0
        end = command(*words, "--blas-kernels", "Zen")
        assert end.code == 0
        assert "--blas-kernels Zen: left as they are, in a process that is not the command's own" in end.err


def test_the_installation_tells_the_choice(command, monkeypatch):
    assert "OpenBLAS's own choice" in command("info").out or "OPENBLAS_CORETYPE is set" in command("info").out
    monkeypatch.setattr(blas, "choose", lambda asked, here: blas.Choice(None, f"{asked} at {here.store.name}"))
    assert json.loads(command("info", "--json", "--blas-kernels", "auto").out)["kernels"] == "auto at store"


@pytest.fixture
def architecture():
    """The kernels that this process uses: a name that surely works here."""
    return arrays.blas_libraries()[0]["architecture"]


@pytest.fixture
def started(tmp_path, store):
    """started("-m", "refimpl", ...): the process, what it wrote, and for each start of Python in it the two variables."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import json, os\nwith open(os.environ['STARTS'], 'a') as file:\n"
        "    names = 'OPENBLAS_CORETYPE', 'REFIMPL_BLAS_APPLIED'\n"
        "    print(json.dumps([os.getpid(), *map(os.environ.get, names)]), file=file)\n")

    def run(*words, **environment):
        (tmp_path / "starts").write_text("")
        kept = {name: value for name, value in os.environ.items() if name not in CHOSEN}
        path = os.pathsep.join([str(tmp_path / "site"), *([kept["PYTHONPATH"]] if "PYTHONPATH" in kept else [])])
        kept |= {"STARTS": str(tmp_path / "starts"), "PYTHONPATH": path, **environment}
        with subprocess.Popen([sys.executable, *map(str, words)], env=kept, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, encoding="utf-8") as process:
            out, err = process.communicate()
        starts = [json.loads(line) for line in (tmp_path / "starts").read_text().splitlines()]
        return process, out, err, [start[1:] for start in starts if start[0] == process.pid]

    return run


@pytest.mark.parametrize("words", [("-m", "refimpl"), (ROOT / "cli.py",), ("-c", "from refimpl.cli import main; main()")])
def test_a_named_set_starts_the_command_again_once_in_the_same_process(started, trained, architecture, words):
    process, out, err, starts = started(*words, "generate", trained, "--length", 5, "--prompt", "a b", "--blas-kernels",
                                        architecture)
    assert (process.returncode, err.count("\n")) == (0, 1)  # the pace
    assert out.startswith("a b")
    assert starts == [[None, None], [architecture, architecture]]


def test_the_exit_code_is_that_of_the_second_start(started, tmp_path, architecture):
    process, _, err, starts = started("-m", "refimpl", "eval", tmp_path / "nothing", "--blas-kernels", architecture)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert len(starts) == 2


def test_kernels_that_do_not_exist_are_one_line_and_exit_code_2(started, trained):
    process, _, err, starts = started("-m", "refimpl", "eval", trained, "--blas-kernels", "Pentium0")
    assert process.returncode == 2
    assert err.startswith("refimpl: --blas-kernels Pentium0: expected kernels that work here, got ")
    assert err.count("\n") == 1
    assert len(starts) == 1


def test_what_is_remembered_to_be_faster_is_applied_once(started, trained, store, architecture):
    """The choice rests on the file alone: the second candidate is called as this process's kernels are."""
    here = blas.this_machine(store)
    blas.remember(here, {"default": SLOW, "SkylakeX": WRONG, architecture: FAST})  # FAST where they are SkylakeX too
    code = (f"from refimpl import blas; blas.OTHER = {architecture!r}; blas.AVX512.clear(); blas.platform.machine = lambda: "
            "'x86_64'; from refimpl.cli import main; main()")
    process, out, err, starts = started("-c", code, "eval", trained)
    assert (process.returncode, err) == (0, "")
    assert "bits per byte" in out
    assert starts == [[None, None], [architecture, architecture]]
    *_, starts = started("-c", code, "eval", trained, "--blas-kernels", "default")
    assert starts == [[None, None]]
    *_, starts = started("-c", code, "eval", trained, OPENBLAS_CORETYPE=architecture)
    assert starts == [[architecture, None]]
    *_, starts = started("-c", code, "train", "--dry-run", "--data", "sample")
    assert starts == [[None, None]]


def test_importing_the_package_changes_neither_kernels_nor_threads(started):
    code = ("import os; before = dict(os.environ); import numpy, threadpoolctl; threads = threadpoolctl.threadpool_info()\n"
            "import refimpl.cli, refimpl.training, refimpl.results\n"
            "assert dict(os.environ) == before and threadpoolctl.threadpool_info() == threads")
    process, _, err, starts = started("-c", code)
    assert (process.returncode, err) == (0, "")
    assert starts == [[None, None]]


def test_a_signal_reaches_a_run_that_was_started_again(store, text, tiny, tmp_path, architecture):
    more = ("--set", "train.updates=100000", "--set", "train.log_every=1", "--blas-kernels", architecture)
    arguments = ["train", "--data", str(text), "--out", str(tmp_path / "run"), *tiny, *more]
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    with subprocess.Popen([sys.executable, "-m", "refimpl", *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          encoding="utf-8", env=environment, pipesize=4096) as process:
        assert process.stderr.readline().startswith("update ")
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
