"""Training that a signal stops: a checkpoint, an exit code, and a resumed run that can't be told from one without it."""

import json
import os
import signal
import subprocess
import sys

import kills
import pytest
import small_runs

from refimpl import checkpoint, jobs, training
from refimpl.errors import InputError

UPDATES = 800
TWO_WORKERS = ("train.workers=2",)
HANGS = 120  # seconds after which a process that should have ended is given up
PIPE = 4096  # bytes, where the system lets us choose: a run that is not read cannot run away


@pytest.fixture
def arguments(text, tiny):
    values = (f"train.updates={UPDATES}", "train.log_every=1", "train.workers=1")
    return ["train", "--data", str(text), *tiny, *(word for value in values for word in ("--set", value))]


@pytest.fixture
def stopped(tmp_path, store):
    """stopped(number, arguments): the exit code, stdout and stderr of a run that got the signal after four updates."""

    def start(number, arguments):
        with subprocess.Popen([sys.executable, "-m", "refimpl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              encoding="utf-8", env={**os.environ, "REFIMPL_STORE": str(store)}, pipesize=PIPE) as process:
            seen = [process.stderr.readline() for _ in range(4)]
            assert all(line.startswith("update ") for line in seen), seen
            process.send_signal(number)
            out, err = process.communicate()
        return process.returncode, out, "".join(seen) + err

    return start


def losses(run):
    records = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    return [(record["update"], record["loss"]) for record in records if "loss" in record]


def state(run):
    newest = max((run / "checkpoints").iterdir())
    return {name: (newest / f"{name}.safetensors").read_bytes() for name in ("parameters", "optimizer", "past")}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("extra", [(), ("model.dropout=0.2", "model.embedding_dropout=0.1"), ("train.warm_up=500",
                                   "train.last_updates=200", "train.optimizer=sgd", "train.momentum=0.9"),
                                   ("train.parallel=processes", *TWO_WORKERS)],
                         ids=["plain", "dropout", "schedule", "processes"])
def test_a_stopped_run_resumes_to_the_same_bits(command, arguments, stopped, tmp_path, number, code, extra):
    arguments = [*arguments, *(word for value in extra for word in ("--set", value))]
    run, whole = tmp_path / "run", tmp_path / "whole"
    ended, out, err = stopped(number, [*arguments, "--out", str(run)])
    assert ended == code, err
    assert out == ""
    reached = checkpoint.load(run).optimizer.updates
    assert 4 <= reached < UPDATES
    last = err.splitlines()[-1]
    assert f"stopped at update {reached}" in last
    assert str(run / "checkpoints" / f"update-{reached:08d}") in last
    assert "--resume" in last
    assert "Traceback" not in err
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"update-{reached:08d}"]

    assert command("train", "--out", run, "--resume").code == 0
    assert command(*arguments, "--out", whole).code == 0
    assert state(run) == state(whole)
    assert losses(run) == losses(whole)
    assert len(losses(whole)) == UPDATES


def test_a_run_stopped_twice(command, arguments, stopped, tmp_path):
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert stopped(signal.SIGINT, [*arguments, "--out", str(run)])[0] == 130
    first = checkpoint.load(run).optimizer.updates
    assert stopped(signal.SIGTERM, ["train", "--out", str(run), "--resume"])[0] == 143
    assert first + 4 <= checkpoint.load(run).optimizer.updates < UPDATES
    assert command("train", "--out", run, "--resume").code == 0
    assert command(*arguments, "--out", whole).code == 0
    assert state(run) == state(whole)


def test_resuming_with_other_threads_is_allowed_and_close(command, arguments, stopped, tmp_path):
    """More workers add the rows in another order: the same model up to rounding, which training may well amplify."""
    run = tmp_path / "run"
    assert stopped(signal.SIGINT, [*arguments, "--out", str(run)])[0] == 130
    reached = checkpoint.load(run).optimizer.updates
    assert command("train", "--out", run, "--resume", "--set", "train.workers=2").code == 0
    assert checkpoint.load(run).train_config.workers == 2
    assert [update for update, _ in losses(run)] == list(range(1, UPDATES + 1))
    assert reached < UPDATES


def test_a_second_signal_does_not_wait(command, text, tiny, tmp_path, monkeypatch):
    """Two signals within one validation: it ends at once, with one line and the checkpoints that there are."""

    def impatient(*_, stop, ranks):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal must end this")

    monkeypatch.setattr(jobs, "score", impatient)
    values = ("--set", "train.evaluate_every=3", "--set", "train.checkpoint_every=1")
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, *values)
    assert end.code == 130
    assert end.err.splitlines()[-1] == "refimpl: interrupted"
    assert checkpoint.load(tmp_path / "run").optimizer.updates in (1, 2)  # the second one's may still be written


HELD = {  # where it stands still, the launcher's numbers, what is seen before the first signal, and after it
    "beside training": (["beside", 2, 5], {"launcher: held", "launcher: waiting"}, set()),
    "at the end": (["before", 1, 5], {"launcher: held"}, set()),
    "at a signal": (["before", 1, 5], {"update 7/"}, {"launcher: held"}),
    "in a worker": (["worker", 2, 0], {"launcher: held"}, set()),
    "beside a process": (["worker", 2, 0], {"launcher: held"}, set()),
}


def signalled_twice(trial, run, place, second):
    """The exit code and the last line of a run that stands still where HELD says, for ever, and gets two signals there."""
    hold, before, after = HELD[place]

    def read_until(wanted):
        while wanted:
            line = " ".join(process.stderr.readline().split())
            assert line, wanted
            wanted = {start for start in wanted if not line.startswith(start)}

    with trial.start(run, {"hold": hold}) as process:
        read_until(before)
        process.send_signal(signal.SIGINT)
        read_until({*after, f"launcher: signal {signal.SIGINT:d}"})
        process.send_signal(second)
        try:
            _, err = process.communicate(timeout=HANGS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return process.returncode, err.splitlines()[-1]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """What a run of two workers ends with that nobody stops."""
    return kills.Campaign(tmp_path_factory.mktemp("whole"), settings=TWO_WORKERS).whole()[0]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", HELD)
def test_a_second_signal_while_a_checkpoint_is_written(tmp_path, uninterrupted, place, second):
    """It ends at once, the last checkpoint is whole, and the run goes on to the bits of the one without a stop."""
    settings = (*TWO_WORKERS, "train.parallel=processes") if place == "beside a process" else TWO_WORKERS
    trial, run = kills.Campaign(tmp_path, settings=settings), tmp_path / "run"
    assert signalled_twice(trial, run, place, second) == (130, "refimpl: interrupted")
    assert checkpoint.load(run).optimizer.updates >= 3
    assert checkpoint.load(run).passed_over == []
    with trial.start(run, None) as process:
        _, err = process.communicate()
    assert process.returncode == 0, err
    assert small_runs.end_of(run) == uninterrupted
    assert not list(run.glob("checkpoints/.*"))


def test_a_second_signal_that_costs_a_checkpoint_is_noticed(tmp_path):
    """Where the older one gives way before the new one is whole."""
    trial, run = kills.Campaign(tmp_path, plant="removed first"), tmp_path / "run"
    signalled_twice(trial, run, "beside training", signal.SIGINT)
    with pytest.raises(InputError, match="a run that has no checkpoint yet"):
        checkpoint.load(run)


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: what a shell runs in the background starts with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_signal_before_training_writes_nothing(command, text, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "open_corpus", lambda *_: signal.raise_signal(signal.SIGINT))
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny)
    assert end.code == 130
    assert end.err.strip() == "refimpl: interrupted"  # after an empty line: the terminal has written ^C
    assert not (tmp_path / "run").exists()


def test_a_signal_in_the_first_update_still_leaves_a_checkpoint(command, text, tiny, tmp_path, monkeypatch):
    update = training.update

    def during(*arguments):
        signal.raise_signal(signal.SIGINT)
        return update(*arguments)

    monkeypatch.setattr(training, "update", during)
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny)
    assert end.code == 130
    assert checkpoint.load(tmp_path / "run").optimizer.updates == 1


def test_the_signal_handlers_are_put_back(command, text, tiny, tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert command("train", "--data", text, "--out", tmp_path / "run", *tiny).code == 0
    lost = ("--set", "train.learning_rate=1e30", "--set", "train.optimizer=sgd", "--set", "train.clip=0")
    assert command("train", "--data", text, "--out", tmp_path / "lost", *tiny, *lost).code == 1
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
