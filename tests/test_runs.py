"""A run's guarantees: one process in a folder, the best checkpoint kept, writing beside training, updates skipped."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from refimpl import checkpoint, jobs, locks, optimizers, parameters, runs, training, writer
from refimpl.config import ModelConfig, TrainConfig
from refimpl.errors import InputError, NonFiniteError
from refimpl.evaluation import Evaluation

CONFIG = ModelConfig(vocabulary=16, width=8, heads=2, layers=1, span=6, memory=2, span_ramp=4, dropout=0.1)
TRAIN = TrainConfig(learning_rate=0.01, batch=2, block=4, updates=9, warm_up=3, on_nonfinite="skip")


def options(*values):
    return [word for value in values for word in ("--set", value)]


def names(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


def end_of(run):
    saved = checkpoint.load(run)
    accumulators = [p.vector.tobytes() for p in saved.optimizer.accumulators.values()]
    progress = {key: value for key, value in saved.progress.items() if key != "seconds"}
    return saved.parameters.vector.tobytes(), accumulators, saved.past.tobytes(), progress, saved.optimizer.skipped


# one process in a folder


def test_a_second_process_is_refused_and_told_who_is_there(command, trained):
    lock = locks.take(trained)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    end = command("train", "--out", trained, "--resume", *options("train.updates=8"))
    assert end.code == 2
    assert end.err.count("\n") == 1
    assert f"process {os.getpid()} of " in end.err
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert command("eval", trained).code == 0
    assert command("generate", trained, "--length", 3).code == 0
    lock.release()
    lock.release()
    assert command("train", "--out", trained, "--resume", *options("train.updates=8")).code == 0


def test_without_the_lock_a_second_process_would_train(command, trained, monkeypatch):
    """The test above fails where no lock is taken."""
    monkeypatch.setattr(locks, "take", lambda folder: locks.Lock(None, "planted"))
    lock = locks.take(trained)
    end = command("train", "--out", trained, "--resume", *options("train.updates=8"))
    assert end.code == 0
    assert "could not be locked (planted)" in end.err
    lock.release()


def test_a_dead_process_does_not_hold_it(trained):
    hold = (f"import pathlib; from refimpl import locks; lock = locks.take(pathlib.Path({str(trained)!r})); "
            f"print('held', flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"process {other.pid} of "):
            locks.take(trained)
        other.send_signal(signal.SIGKILL)
        other.wait()
        locks.take(trained).release()


def test_a_file_system_without_locks(trained, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", none)
    assert locks.take(trained).missing == "No locks available"


def test_a_lock_is_gone_with_whoever_failed(command, trained):
    for value in ("model.width=16", "train.sparkle=1"):
        assert command("train", "--out", trained, "--resume", *options(value)).code == 2
    assert command("train", "--out", trained, "--resume").code == 0


def test_a_folder_that_another_process_takes_meanwhile(command, text, tiny, tmp_path, monkeypatch):
    """Both found it empty; the second sees the first one's settings once it has the lock."""
    hold = locks.hold

    def late(folder, held):
        (folder / "config.toml").write_text("")
        return hold(folder, held)

    monkeypatch.setattr(locks, "hold", late)
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny)
    assert (end.code, (tmp_path / "run" / "config.toml").read_text()) == (2, "")


# the best checkpoint


@pytest.fixture
def validated(command, text, tiny, tmp_path, monkeypatch):
    """validated(losses, …): a run validated at every second update with these losses."""

    def train(losses, *values, code=0):
        given = iter(losses)
        monkeypatch.setattr(jobs, "score", lambda *_, **__: Evaluation(next(given), 100))
        settings = options("train.evaluate_every=2", "train.keep_checkpoints=1", "train.checkpoint_every=2", *values)
        run = tmp_path / "run"
        begin = ["--resume"] if run.exists() else ["--data", text, *tiny]
        end = command("train", "--out", run, *begin, *settings)
        assert end.code == code, end.err
        return run

    return train


def test_the_best_is_kept_beside_the_last(validated, command):
    run = validated([3.0, 1.0, 2.0, 1.5, 1.0, 1.2], "train.updates=12")
    assert names(run) == ["update-00000004", "update-00000012"]
    assert checkpoint.load(run).progress["best"] == {"update": 4, "loss": 1.0}
    assert checkpoint.load(run, "best").optimizer.updates == 4
    assert checkpoint.load(run, "latest").optimizer.updates == 12
    assert checkpoint.load(run, "update-00000004").optimizer.updates == 4
    end = command("generate", run, "--checkpoint", "best", "--length", 2, "--json")
    assert json.loads(end.out)["checkpoint"].endswith("update-00000004")
    for name in ("worst", "update-00000005", "../run"):
        assert "one of update-00000004, update-00000012" in command("eval", run, "--checkpoint", name).err


def test_a_log_with_lines_of_other_bytes_keeps_no_run_from_going_on(command, trained):
    before = log_of(trained)
    with (trained / "log.jsonl").open("ab") as log:
        log.write(b'\xff\xfe\n{"update": 6\xe9}\n{"update": 1' + b"0" * 400 + b"}\n" + b"[" * 100_000 + b"\n")
    end = command("train", "--out", trained, "--resume", *options("train.updates=8"))
    assert end.code == 0, end.err
    assert log_of(trained)[: len(before)] == before


def test_a_better_validation_is_saved_where_no_checkpoint_is_due(validated):
    run = validated([3.0, 1.0, 2.0], "train.checkpoint_every=0")
    assert names(run) == ["update-00000004", "update-00000006"]


def test_the_best_stands_through_a_resume(validated):
    validated([3.0, 1.0, 2.0], "train.updates=6")
    run = validated([1.1, 1.2], "train.updates=10")
    assert names(run) == ["update-00000004", "update-00000010"]


def test_a_damaged_best_is_refused_and_no_other_taken(validated, command):
    run = validated([1.0, 2.0, 3.0])
    (run / "checkpoints" / "update-00000002" / "past.safetensors").write_bytes(b"")
    end = command("eval", run, "--checkpoint", "best")
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "past.safetensors" in end.err


def test_a_run_without_validation_has_no_best(trained):
    saved = checkpoint.load(trained)
    del saved.progress["best"]
    checkpoint.save(trained, saved)
    with pytest.raises(InputError, match="expected a run with a validation"):
        checkpoint.load(trained, "best")
    with pytest.raises(InputError, match="expected a run's folder to choose"):
        checkpoint.load(checkpoint.load(trained).path, "best")


def test_losses_of_other_stretches_of_text_are_not_compared(validated):
    validated([1.0, 2.0, 3.0], "train.updates=6")
    run = validated([2.5, 2.4], "train.updates=10", "train.evaluate_tokens=50")
    assert checkpoint.load(run).progress["best"] == {"update": 10, "loss": 2.4}


def test_a_validation_that_a_signal_ends_is_done_when_resumed(command, text, tiny, tmp_path, monkeypatch):
    """A signal does not wait for it; log, best and parameters are those of a run without a stop."""
    values = options("train.evaluate_every=2", "train.updates=8", "train.checkpoint_every=0", "train.log_every=1")
    whole, run, score = tmp_path / "whole", tmp_path / "run", jobs.score
    assert command("train", "--data", text, "--out", whole, *tiny, *values).code == 0

    def interrupted(*given, **named):
        if (run / "log.jsonl").exists() and log_of(run)[-1]["update"] == 4:
            signal.raise_signal(signal.SIGTERM)
        return score(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "score", interrupted)
        end = command("train", "--data", text, "--out", run, *tiny, *values)
    assert end.code == 143
    assert "stopped at update 4" in end.err
    assert names(run)[-1] == "update-00000004"
    assert [record["update"] for record in log_of(run) if "valid_loss" in record] == [2]
    assert command("train", "--out", run, "--resume").code == 0
    assert end_of(run) == end_of(whole)
    assert [(r["update"], r.get("loss"), r.get("valid_loss")) for r in log_of(run)] == [
        (r["update"], r.get("loss"), r.get("valid_loss")) for r in log_of(whole)]


# writing beside training


@pytest.fixture
def made():
    """A checkpoint of update 7."""
    p = parameters.initialize(CONFIG, 1, "float32")
    state = optimizers.initialize(TRAIN, p)
    state.updates = 7
    for accumulator in state.accumulators.values():
        accumulator.vector[...] = np.arange(len(accumulator.vector))
    past = np.ones((1, 2, 3, 8), "float32")
    return checkpoint.Checkpoint(CONFIG, TRAIN, p, state, {"batches": {"position": 4}}, past, None)


def test_what_is_written_is_the_state_of_one_moment(made, tmp_path, monkeypatch):
    """Training changes everything while the files are being written."""
    begun, go_on = threading.Event(), threading.Event()
    write = checkpoint.write_files

    def slowly(folder, saved):
        begun.set()
        assert go_on.wait(60)
        write(folder, saved)

    monkeypatch.setattr(checkpoint, "write_files", slowly)
    expected, pen = made.parameters.vector.tobytes(), writer.Writer()
    pen.begin(tmp_path, made, 2)
    assert begun.wait(60)
    made.parameters.vector += 1
    made.optimizer.accumulators["mean"].vector += 1
    made.optimizer.updates, made.progress["batches"]["position"] = 8, 5
    go_on.set()
    pen.wait()
    saved = checkpoint.load(tmp_path)
    assert (saved.optimizer.updates, saved.progress) == (7, {"batches": {"position": 4}})
    assert saved.parameters.vector.tobytes() == expected
    assert saved.optimizer.accumulators["mean"].vector.tolist() == list(range(len(saved.parameters.vector)))
    assert made.path == saved.path
    assert "refimpl checkpoint" not in {thread.name for thread in threading.enumerate()}


def test_a_failed_write_is_told_at_the_next_update(command, text, tiny, tmp_path, monkeypatch):
    save, failed = checkpoint.save, threading.Event()

    def full(run, saved, keep):
        if saved.optimizer.updates == 2:
            failed.set()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return save(run, saved, keep)

    update = training.update

    def after(p, state, *rest):
        if state.updates == 2:
            assert failed.wait(60)
            for thread in threading.enumerate():
                if thread.name == "refimpl checkpoint":
                    thread.join()
        return update(p, state, *rest)

    monkeypatch.setattr(checkpoint, "save", full)
    monkeypatch.setattr(training, "update", after)
    run = tmp_path / "run"
    end = command("train", "--data", text, "--out", run, *tiny, *options("train.checkpoint_every=1", "train.log_every=1"))
    assert end.code == 3
    assert "No space left on device; the last good checkpoint is " in end.err.splitlines()[-1]
    assert "update-00000001" in end.err.splitlines()[-1]
    assert names(run) == ["update-00000001"]
    assert [record["update"] for record in log_of(run)] == [1, 2]


@pytest.mark.parametrize("calls", ["check", "wait"])
def test_an_error_is_raised_once(made, tmp_path, calls):
    pen = writer.Writer()
    (tmp_path / "checkpoints").write_text("no folder")
    pen.begin(tmp_path, made, 2)
    while pen._thread.is_alive():
        pen._thread.join()
    with pytest.raises(OSError, match="checkpoints"):
        getattr(pen, calls)()
    pen.wait()


# updates that are not finite


def segments(spoiled=(), count=9):
    """Segments of which some have targets that `spoil` looks out for."""
    rng = np.random.default_rng(0)
    for number in range(1, count + 1):
        rows = rng.integers(0, 15, (2, 5))
        if number in spoiled:
            rows[0, 0] = 15
        yield SimpleNamespace(tokens=rows[:, :-1], targets=rows[:, 1:], restart=number == 1)


@pytest.fixture
def spoil(monkeypatch):
    """A model whose loss is not a number where token 15 is read: as a segment that overflows."""
    honest = training.model.loss_and_gradients

    def call(p, config, tokens, *rest, **named):
        out, g = honest(p, config, tokens, *rest, **named)
        if (tokens == 15).any():
            out.past[...] = np.nan
            out = out._replace(loss=out.loss * np.nan)
            g.vector[...] = np.nan
        return out, g

    monkeypatch.setattr(training.model, "loss_and_gradients", call)


def trained_on(pieces, train_config=TRAIN):
    p = parameters.initialize(CONFIG, 1)
    state, past = optimizers.initialize(train_config, p), training.model.initial_past(CONFIG, 2, p.vector)
    return p, state, list(training.run(p, state, CONFIG, train_config, pieces, past))


@pytest.mark.usefixtures("spoil")
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_a_skipped_update_changes_nothing_but_the_count_and_the_past(optimizer):
    train_config = replace(TRAIN, optimizer=optimizer, momentum=0.9 if optimizer == "sgd" else 0.0)
    p = parameters.initialize(CONFIG, 1)
    state, past = optimizers.initialize(train_config, p), training.model.initial_past(CONFIG, 2, p.vector)
    loop = training.run(p, state, CONFIG, train_config, segments({4}), past)
    for _ in range(3):
        next(loop)
    before = p.vector.copy(), {name: a.vector.copy() for name, a in state.accumulators.items()}
    result = next(loop)
    assert "first tensor that is not finite" in result.skipped
    assert (state.updates, state.skipped, state.skipped_in_a_row, state.steps) == (4, 1, 1, 3)
    np.testing.assert_array_equal(p.vector, before[0])
    for name, accumulator in state.accumulators.items():
        np.testing.assert_array_equal(accumulator.vector, before[1][name])
    assert result.past.shape[2] == 0
    after = next(loop)
    assert (after.skipped, after.past.shape[2], state.skipped_in_a_row) == ("", 4, 0)
    assert np.isfinite(p.vector).all()
    assert after.learning_rate == train_config.learning_rate
    assert not np.array_equal(p.vector, before[0])


@pytest.mark.usefixtures("spoil")
def test_adams_means_count_the_steps_that_were_taken():
    """After a skipped first update the second one's step is a first step: ± the rate, for every gradient."""
    plain = replace(TRAIN, warm_up=0, clip=0.0)
    p = parameters.initialize(CONFIG, 1)
    state, past = optimizers.initialize(plain, p), training.model.initial_past(CONFIG, 2, p.vector)
    loop, before = training.run(p, state, CONFIG, plain, segments({1}), past), p.vector.copy()
    next(loop), next(loop)
    moved = np.abs(p.vector - before)
    assert np.median(moved[moved > 0]) == pytest.approx(plain.learning_rate, rel=1e-3)


@pytest.mark.usefixtures("spoil")
def test_stop_is_the_default_and_a_run_of_skips_has_an_end(monkeypatch):
    with pytest.raises(NonFiniteError, match=r"^update 2: loss nan"):
        trained_on(segments({2}), replace(TRAIN, on_nonfinite="stop"))
    monkeypatch.setattr(training, "SKIPS_IN_A_ROW", 3)
    assert trained_on(segments({2, 3, 5, 6}))[1].skipped == 4
    with pytest.raises(NonFiniteError, match=r"^update 7, the last of 3 in a row: loss nan"):
        trained_on(segments({2, 5, 6, 7}))


@pytest.fixture
def faulty(monkeypatch):
    """Two updates of every run that are not finite, by their numbers."""
    honest = training.model.loss_and_gradients

    def call(p, config, tokens, targets, past, masks, **named):
        out, g = honest(p, config, tokens, targets, past, masks, **named)
        if any(mask.update in (3, 6) for mask in masks.values()):
            g.vector[0] = np.inf
        return out, g

    monkeypatch.setattr(training.model, "loss_and_gradients", call)


@pytest.mark.usefixtures("faulty")
def test_skips_are_told_and_a_resumed_run_is_the_same_to_the_bit(command, text, tiny, tmp_path):
    values = options("model.dropout=0.1", "train.updates=9", "train.log_every=1", "train.checkpoint_every=3")
    whole, run = tmp_path / "whole", tmp_path / "run"
    end = command("train", "--data", text, "--out", whole, *tiny, *values, "--on-nonfinite", "skip")
    assert end.code == 0
    assert "update      3  skipped, 1 so far: loss " in end.err
    assert "  2 skipped  " in end.err.splitlines()[-2]
    told = [(r["update"], r["skipped"]) for r in log_of(whole) if "not_finite" in r]
    assert told == [(3, 1), (6, 2)]
    assert [r["update"] for r in log_of(whole) if "loss" in r] == [1, 2, 4, 5, 7, 8, 9]
    assert json.loads((whole / "log.jsonl").read_text().splitlines()[-2])["skipped"] == 2

    end = command("train", "--data", text, "--out", run, *tiny, *values)
    assert (end.code, "update 3: loss" in end.err) == (1, True)
    assert "the last good checkpoint" in end.err or "no checkpoint was written yet" in end.err
    assert command("train", "--out", run, "--resume", "--on-nonfinite", "skip", "--time-limit", "1e-9").code == 75
    for _ in range(2):
        assert command("train", "--out", run, "--resume", "--time-limit", "1e-9").code == 75
    assert checkpoint.load(run).optimizer.skipped == 1
    assert command("train", "--out", run, "--resume").code == 0
    assert end_of(run) == end_of(whole)


# other settings of the machine


def test_more_workers_are_named_as_a_reason_for_other_bits(command, trained):
    end = command("train", "--out", trained, "--resume", *options("train.updates=8", "train.workers=2"))
    assert end.code == 0
    assert "no longer to the same bits" in end.err
    assert "workers 1 before, 2 now" in end.err
    again = command("train", "--out", trained, "--resume", *options("train.updates=9"))
    assert "no longer to the same bits" not in again.err


def test_a_resumed_runs_text_is_read_with_its_own_vocabulary(command, text, tiny, tmp_path, monkeypatch):
    """Whatever a later version would make of the text."""
    run = tmp_path / "run"
    assert command("train", "--data", text, "--vocabulary", "word", "--out", run, *tiny).code == 0
    given = []
    honest = jobs.open_corpus
    monkeypatch.setattr(jobs, "open_corpus", lambda *arguments: given.append(arguments[2]) or honest(*arguments))
    assert command("train", "--out", run, "--resume", *options("train.updates=8")).code == 0
    assert given[0].to_json() == checkpoint.load(run).vocabulary
    assert runs.CHANGEABLE[-1] == "on_nonfinite"
