"""`mpiexec -n R refimpl train`: real processes, each a rank; what they compute, how they stop, fail and are resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import mpi_kills
import numpy as np
import pytest

from refimpl import arrays, checkpoint

MPIEXEC = str(Path(sys.executable).with_name("mpiexec"))
MAIN = "from refimpl.cli import main; main()"
# float64: sums of a few hundred terms in another order, through six steps of Adam, whose first is the gradient's sign
CLOSE = 1e-11


@pytest.fixture
def mpi(store):
    """mpi(ranks, *words, **environment): the command's exit code, stdout and stderr; words after "-c" are a program."""

    def run(ranks, *words, **environment):
        program = words if words[0] == "-c" else ("-m", "refimpl", *words)
        ended = subprocess.run([MPIEXEC, "-n", str(ranks), sys.executable, *map(str, program)], capture_output=True,
                               encoding="utf-8", env={**os.environ, "REFIMPL_STORE": str(store), **environment}, check=False)
        return ended.returncode, ended.stdout, ended.stderr

    return run


@pytest.fixture
def arguments(text, tiny):
    values = ("train.batch=4", "train.dtype=float64", "model.dropout=0.2", "train.evaluate_every=3",
              "train.checkpoint_every=2")
    return ["train", "--data", text, *tiny, *(word for value in values for word in ("--set", value)), "--threads", "1"]


def on_rank(rank, lines):
    """The command, but that one rank first does something else."""
    return f"import os\nif os.environ['PMI_RANK'] == '{rank}':\n{textwrap.indent(textwrap.dedent(lines), '    ')}\n{MAIN}"


def state(run):
    newest = max((run / "checkpoints").iterdir())
    return {name: (newest / f"{name}.safetensors").read_bytes() for name in ("parameters", "optimizer", "past")}


def losses(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    return [(record["update"], record.get("loss", record.get("valid_loss"))) for record in records]


def one_line(err):
    """The only line on stderr but MPI's own of an abort."""
    (line,) = [line for line in err.splitlines() if line and not line.startswith("Abort(")]
    return line


def test_ranks_train_the_model_that_one_process_trains(command, mpi, arguments, tmp_path):
    """Two and four ranks divide the four rows, three do not."""
    assert command(*arguments, "--out", tmp_path / "1").code == 0
    alone = checkpoint.load(tmp_path / "1")
    for name, ranks in (("2", 2), ("again", 2), ("3", 3), ("4", 4)):
        code, out, err = mpi(ranks, *arguments, "--out", tmp_path / name)
        assert code == 0, err
        assert out.count("checkpoint ") == 1
        assert [line.split()[1].partition("/")[0] for line in err.splitlines()] == ["2", "3", "4", "6", "6"]
        found = checkpoint.load(tmp_path / name)
        assert np.linalg.norm(found.parameters.vector - alone.parameters.vector) <= CLOSE
        np.testing.assert_allclose(found.past, alone.past, rtol=0, atol=CLOSE)
        assert found.progress["computing"]["ranks"] == ranks
        assert found.progress["tokens"] == alone.progress["tokens"]
        assert [update for update, _ in losses(tmp_path / name)] == [update for update, _ in losses(tmp_path / "1")]
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "1"), rtol=CLOSE)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == sorted(p.name for p in (tmp_path / "1").iterdir())
    assert state(tmp_path / "2") == state(tmp_path / "again")
    assert losses(tmp_path / "2") == losses(tmp_path / "again")


@pytest.mark.parametrize(("given", "told"), [
    (["--device", "gpu:1"], "--device: expected cpu, or gpu, with several ranks, each with a GPU of its own, got gpu:1"),
    (["--cuda-graph"], "--cuda-graph: expected one process, got several ranks"),
])
def test_what_ranks_on_gpus_cannot_have_is_told_once(mpi, arguments, tmp_path, given, told):
    code, _, err = mpi(2, *arguments, "--out", tmp_path / "run", *given)
    assert (code, err) == (2, f"refimpl: {told}\n")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_another_number_of_ranks_and_says_so(command, mpi, arguments, tmp_path):
    """Dropout's masks belong to rows, not to ranks, and a checkpoint holds the past of all rows."""
    assert command(*arguments, "--out", tmp_path / "1", "--set", "train.updates=12").code == 0
    code, _, err = mpi(3, *arguments, "--out", tmp_path / "run")
    assert code == 0, err
    code, _, err = mpi(2, "train", "--out", tmp_path / "run", "--resume", "--set", "train.updates=9", "--threads", "1")
    assert code == 0, err
    assert [line for line in err.splitlines() if "same bits" in line] == [
        "refimpl: goes on, no longer to the same bits as without the stop: ranks 3 before, 2 now"]
    end = command("train", "--out", tmp_path / "run", "--resume", "--set", "train.updates=12", "--threads", "1")
    assert end.code == 0
    assert "ranks 2 before, 1 now" in end.err
    found, expected = checkpoint.load(tmp_path / "run"), checkpoint.load(tmp_path / "1")
    assert np.linalg.norm(found.parameters.vector - expected.parameters.vector) <= CLOSE


CALLS = """
import numpy as np
from refimpl import ranks
group = ranks.join(ranks.launched(__import__("os").environ))
for dtype in ("float32", "float64", "longdouble"):
    for length in (0, 1, 2, 3, 7, 1000):
        every = np.random.default_rng(length).standard_normal((3, length)).astype(dtype)
        vector = every[group.rank].copy()
        told = group.add(vector, (group.rank, 7))
        assert np.array_equal(vector, (every[0] + every[1]) + every[2]), (dtype, length)
        assert told.tolist() == [[0, 7], [1, 7], [2, 7]]
all_rows, bounds = np.arange(2 * 6 * 5.0).reshape(2, 6, 5), (0, 1, 3, 6)
whole = group.to_first(all_rows[:, bounds[group.rank] : bounds[group.rank + 1]])
assert whole is None if group.rank else np.array_equal(whole, all_rows)
assert group.stacked([group.rank]).tolist() == [[0], [1], [2]]
assert group.size == group.here == 3 and group.first_here == (group.rank == 0)
assert ranks.differences(group, {"a": group.rank // 2}) == "a 0 on rank 0, 1 on rank 2"
from refimpl import cores
assert group.threads() == max(1, cores.available() // 3)
"""


def test_the_calls_of_mpi(mpi):
    assert mpi(3, "-c", CALLS) == (0, "", "")


def test_a_call_that_goes_wrong_is_seen(mpi):
    """The same program with numbers of the sum in another order."""
    code, _, err = mpi(3, "-c", CALLS.replace("(every[0] + every[1]) + every[2]", "every[0] + (every[1] + every[2])"))
    assert code != 0
    assert "AssertionError: ('float32', " in err


def test_a_rank_of_a_core_of_its_own_computes_on_one_thread(mpi):
    """As launchers do that bind ranks to cores: the core is not divided once more."""
    code = """
import os
from refimpl import ranks
may, rank = sorted(os.sched_getaffinity(0)), int(os.environ["PMI_RANK"])
os.sched_setaffinity(0, {may[rank % len(may)]})
assert ranks.join(ranks.launched(os.environ)).threads() == 1
"""
    assert mpi(2, "-c", code) == (0, "", "")


@pytest.mark.parametrize(("number", "code", "whom"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 0),
                                                      (signal.SIGTERM, 143, None)], ids=["int-1", "term-0", "mpiexec"])
def test_a_signal_to_any_rank_stops_all_at_the_same_update(command, arguments, store, tmp_path, number, code, whom):
    words = [MPIEXEC, "-n", "2", sys.executable, "-m", "refimpl", *map(str, arguments), "--set", "train.updates=5000",
             "--set", "train.log_every=1", "--out", str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", pipesize=4096,
                          env={**os.environ, "REFIMPL_STORE": str(store)}) as process:
        assert all(process.stderr.readline().startswith("update ") for _ in range(4))
        (pid,) = [process.pid] if whom is None else mpi_kills.processes_of(process.pid, whom)
        os.kill(pid, number)
        out, err = process.communicate()
    assert process.returncode == code, err
    assert out == ""
    reached = checkpoint.load(tmp_path / "run").optimizer.updates
    assert [line for line in err.splitlines() if "stopped at update" in line] == [
        f"stopped at update {reached}; wrote {tmp_path / 'run' / 'checkpoints' / f'update-{reached:08d}'}; --resume goes on "
        "from it"]
    assert command("train", "--out", tmp_path / "run", "--resume", "--set", f"train.updates={reached + 1}").code == 0


def test_a_time_limit_ends_all(mpi, arguments, tmp_path):
    code, _, err = mpi(2, *arguments, "--out", tmp_path / "run", "--time-limit", "1e-9")
    assert code == 75
    assert err.count("the time limit came at update 1 of 6") == 1


def test_kills_of_a_rank_lose_nothing(tmp_path):
    found = mpi_kills.campaign(tmp_path, kills=2, seed=5)
    assert (found["kills"], found["lost"], found["different"]) == (2, 0, [])


def test_kills_that_lose_something_are_seen(tmp_path, monkeypatch):
    """The same campaign over runs whose checkpoints forget the past of the last rank's rows."""
    start = mpi_kills.Campaign.start
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent("""\
        from refimpl import ranks
        kept = ranks.Mpi.to_first
        def forgetful(self, rows):
            return kept(self, 0 * rows if self.rank else rows)
        ranks.Mpi.to_first = forgetful
        """))

    def planted(self, run):
        with monkeypatch.context() as patch:
            if run.name != "whole":
                patch.setenv("PYTHONPATH", str(tmp_path / "site"))
            return start(self, run)

    monkeypatch.setattr(mpi_kills.Campaign, "start", planted)
    found = mpi_kills.campaign(tmp_path, kills=2, seed=5)
    assert "parameters.safetensors" in found["different"] or "past.safetensors" in found["different"]


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_one_rank_while_training_ends_all(mpi, command, arguments, tmp_path, rank):
    spoil = """
        from refimpl import training
        update = training.update
        def failing(p, state, *rest):
            if state.updates == 4:
                raise RuntimeError("a planted failure")
            return update(p, state, *rest)
        training.update = failing
        """
    code, out, err = mpi(2, "-c", on_rank(rank, spoil), *arguments, "--out", tmp_path / "run")
    assert (code, out) == (70, "")
    whose = "rank 1: " if rank else ""
    assert err.count(f"refimpl: {whose}a bug in refimpl, RuntimeError: a planted failure") == 1
    assert checkpoint.load(tmp_path / "run").optimizer.updates in (2, 3, 4)
    mpi_kills.wait_for_lock(tmp_path / "run")
    assert command("train", "--out", tmp_path / "run", "--resume").code == 0
    assert not list(tmp_path.glob("run/checkpoints/.*"))


@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_one_rank_before_training_ends_all(mpi, arguments, tmp_path, rank):
    spoil = """
        from refimpl import jobs
        from refimpl.errors import InputError
        def failing(*_):
            raise InputError("no text here")
        jobs.open_corpus = failing
        """
    code, out, err = mpi(2, "-c", on_rank(rank, spoil), *arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert one_line(err) == f"refimpl: {'rank 1: ' if rank else ''}no text here"
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("words", "code", "line"), [
    (("--set", "train.batch=1"), 2, "train.batch: expected a row for each of the 2 ranks, got 1"),
    (("--data", "nowhere.txt"), 2, "nowhere.txt"),
    (("--set", "train.optimizer=sgd", "--set", "train.learning_rate=1e300", "--set", "train.clip=0"), 1, "not finite: "),
], ids=["rows", "text", "nonfinite"])
def test_what_fails_on_all_ranks_is_said_once(mpi, arguments, tmp_path, words, code, line):
    ended, out, err = mpi(2, *arguments, "--out", tmp_path / "run", *words)
    assert (ended, out) == (code, ""), err
    assert line in one_line("\n".join(row for row in err.splitlines() if not row.startswith("update ")))
    assert "rank 1" not in err


def test_a_folder_that_holds_a_run_is_refused_once(mpi, trained, arguments):
    before = (trained / "log.jsonl").read_bytes()
    code, _, err = mpi(2, *arguments, "--out", trained)
    assert code == 2
    assert "expected a new or empty folder" in one_line(err)
    assert (trained / "log.jsonl").read_bytes() == before


def test_ranks_that_compute_otherwise_do_not_begin(mpi, arguments, tmp_path):
    spoil = """
        from refimpl import runs
        told = runs.computing
        runs.computing = lambda ranks: {**told(ranks), "numpy": "1.0"}
        """
    code, _, err = mpi(2, "-c", on_rank(1, spoil), *arguments, "--out", tmp_path / "run")
    assert code == 3
    assert re.fullmatch(r"refimpl: expected the same run on every rank, got numpy \S+ on rank 0, 1.0 on rank 1",
                        one_line(err))


def test_of_settings_that_differ_those_are_named(arguments, store, tmp_path):
    words = [sys.executable, "-m", "refimpl", *map(str, arguments), "--out", str(tmp_path / "run")]
    end = subprocess.run([MPIEXEC, "-n", "1", *words, ":", "-n", "1", *words, "--set", "train.seed=2"], capture_output=True,
                         encoding="utf-8", env={**os.environ, "REFIMPL_STORE": str(store)}, check=False)
    assert end.returncode == 3
    assert one_line(end.stderr) == ("refimpl: expected the same run on every rank, got train.seed 0 on rank 0, 2 on rank 1")


def test_what_spans_may_come_to_need_is_told_once(mpi, arguments, tmp_path):
    program = f"from refimpl import jobs\njobs.later_shortage = lambda *given: 'more than there is'\n{MAIN}"
    code, _, err = mpi(2, "-c", program, *arguments, "--out", tmp_path / "run")
    assert code == 0, err
    assert err.count("more than there is") == 1


def test_parameters_that_are_not_finite_on_one_rank_end_all(mpi, arguments, tmp_path):
    """As after a fault of memory, just before a checkpoint: no rank waits for one that has ended."""
    spoil = """
        import numpy as np
        from refimpl import running
        save = running._save
        def spoilt(run, *rest, **options):
            run.saved.parameters.vector[5] = np.nan
            return save(run, *rest, **options)
        running._save = spoilt
        """
    code, _, err = mpi(2, "-c", on_rank(1, spoil), *arguments, "--out", tmp_path / "run")
    assert code == 1
    assert err.count("first tensor that is not finite: parameter ") == 1
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_sums_that_differ_never_reach_a_checkpoint(mpi, arguments, tmp_path):
    """One rank's parameters are off by one unit: nothing of it is written."""
    spoil = """
        import numpy as np
        from refimpl import optimizers
        update = optimizers.update
        def off(p, g, *rest):
            update(p, g, *rest)
            p.vector[5] = np.nextafter(p.vector[5], 1)
        optimizers.update = off
        """
    code, _, err = mpi(2, "-c", on_rank(1, spoil), *arguments, "--out", tmp_path / "run")
    assert code == 3
    assert err.count("expected the same sums on every rank, got parameters") == 1
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_without_the_extra_one_line_names_it(mpi, arguments, tmp_path):
    code, out, err = mpi(2, "-c", f"import sys; sys.modules['mpi4py'] = None; {MAIN}", *arguments, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "2 ranks of one run: expected the extra `mpi` (pip install 'refimpl[mpi]'), got " in one_line(err)
    assert not (tmp_path / "run").exists()


def test_ranks_that_do_not_meet_are_not_as_many_runs(arguments, store, tmp_path):
    """What the launcher of another MPI starts: for mpi4py's, each process is alone."""
    for rank, lines in ((0, 1), (1, 0)):
        told = {"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "REFIMPL_STORE": str(store)}
        end = subprocess.run([sys.executable, "-m", "refimpl", *map(str, arguments), "--out", str(tmp_path / "run")],
                             capture_output=True, encoding="utf-8", env={**os.environ, **told}, check=False)
        assert (end.returncode, end.stdout, end.stderr.count("\n")) == (3, "", lines)
        assert not lines or "expected the launcher of mpi4py's own MPI (MPICH" in end.stderr
    assert not (tmp_path / "run").exists()


def test_a_process_by_itself_never_imports_mpi4py(mpi, arguments, store, tmp_path):
    """Nor one that mpiexec started alone, nor one that is told to stay out of it."""
    code = (f"import atexit, sys\natexit.register(lambda: print('mpi4py' in sys.modules))\n{MAIN}")
    environment = {**os.environ, "REFIMPL_STORE": str(store)}
    end = subprocess.run([sys.executable, "-c", code, *map(str, arguments), "--out", str(tmp_path / "a")], check=True,
                         capture_output=True, encoding="utf-8", env=environment)
    assert end.stdout.endswith("False\n")
    assert mpi(1, "-c", code, *arguments, "--out", tmp_path / "b")[1].endswith("False\n")
    assert mpi(1, "-c", code, *arguments, "--out", tmp_path / "c", "--mpi")[1].endswith("True\n")
    assert "False\n" in mpi(2, "-c", code, "train", "--dry-run", "--data", "sample")[1]


def test_kernels_are_applied_before_mpi_begins(mpi, arguments, tmp_path):
    """Each rank starts its command again in its own place, and still meets the others."""
    (library, *_) = arrays.blas_libraries()
    apart = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    words = [MPIEXEC, "-n", "2", sys.executable, "-m", "refimpl", *map(str, arguments), "--out", str(tmp_path / "run"),
             "--blas-kernels", library["architecture"]]
    end = subprocess.run(words, capture_output=True, encoding="utf-8", env=apart, check=False)
    assert end.returncode == 0, end.stderr
    held = checkpoint.load(tmp_path / "run").progress["computing"]
    assert held["ranks"] == 2
    assert library["architecture"] in held["blas"]
