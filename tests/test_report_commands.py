"""`refimpl report`: what it writes, that it writes the same again, and what it makes of runs that are not whole."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from refimpl import checkpoint
from refimpl.report import commands


class Reader(HTMLParser):
    """The text of a page, and whether its elements are closed as they were opened."""

    def __init__(self):
        super().__init__()
        self.text, self.open = [], []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "wbr", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(file):
    """The page's text, in one line."""
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    assert reader.open == []
    return " ".join("".join(reader.text).split())


def ids(file):
    return re.findall(r'\sid="([^"]*)"', file.read_text(encoding="utf-8"))


@pytest.fixture
def logged(trained, command):
    """The run of six updates, gone on to eight, with a second checkpoint."""
    assert command("train", "--out", trained, "--resume", "--set", "train.updates=8").code == 0
    return trained


def change_log(run, change):
    log = run / "log.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    log.write_text("".join(json.dumps(change(record)) + "\n" for record in records))


def test_a_run_becomes_a_page_in_its_folder(command, logged):
    end = command("report", logged)
    assert (end.code, end.err) == (0, "")
    assert end.out.split() == ["report", str(logged / "report.html")]
    said = read(logged / "report.html")
    saved = checkpoint.load(logged)
    for part in ("Training", "Spans", "Persistent vectors", "Attention over distance", "Prediction", "Settings", "Origin",
                 "8 of 8", f"{saved.parameters.vector.size:,}", saved.progress["text_sha256"], "update-00000008",
                 "The most used", "% of updates", "span_ramp4", "learning rate", "tokens per second"):
        assert part in said, part
    assert len(ids(logged / "report.html")) == len(set(ids(logged / "report.html")))
    assert command("train", "--out", logged, "--resume", "--set", "train.updates=9").code == 0


def test_the_same_run_gives_the_same_bytes(command, logged, store, tmp_path):
    assert command("report", logged, "--out", tmp_path / "here.html").code == 0
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo", "REFIMPL_STORE": str(store)}
    done = subprocess.run([sys.executable, "-m", "refimpl", "report", str(logged), "--out", str(tmp_path / "there.html")],
                          env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here.html").read_bytes() == (tmp_path / "there.html").read_bytes()


def test_several_runs_stand_side_by_side(command, logged, train_another):
    other = train_another("model.memory=0", "model.feed_forward=6", "model.attend_self=true", "train.clip_each=true")
    end = command("report", logged, other, "--json")
    assert json.loads(end.out) == {"report": str(logged / "report.html"), "notes": {str(logged): [], str(other): []}}
    said = read(logged / "report.html")
    assert "2 runs side by side" in said
    assert "no persistent vectors" in said
    assert "% of tensors or updates" in said
    assert re.search(r'class="differs"><th scope="row">memory</th><td><bdi>2</bdi></td><td><bdi>0</bdi>',
                     (logged / "report.html").read_text(encoding="utf-8"))
    assert len(ids(logged / "report.html")) == len(set(ids(logged / "report.html")))


@pytest.fixture
def train_another(command, text, tiny, tmp_path):
    """train_another("model.span=4", …): another run's folder."""

    def train(*values):
        run = tmp_path / f"other-{len(list(tmp_path.glob('other-*')))}"
        options = [word for value in values for word in ("--set", value)]
        assert command("train", "--data", text, "--out", run, *tiny, *options).code == 0
        return run

    return train


@pytest.mark.parametrize("values", [
    ("model.variant=attention-split",), ("model.variant=head-split",), ("model.variant=single-head",),
    ("model.variant=ff-attention", "model.memory=0", "model.feed_forward=6", "model.attend_self=true"),
    ("model.adaptive_span=false", "model.positions=sinusoid"), ("train.clip=0",), ("data.vocabulary=character",),
    ("data.vocabulary=word", "model.cutoffs=[4,8]", "model.divisor=2")])
def test_models_of_every_kind_have_a_report(command, train_another, values):
    run = train_another(*values)
    end = command("report", run)
    assert (end.code, end.err) == (0, "")
    said = read(run / "report.html")
    assert "The most used" in said
    assert ("No adaptive spans" in said) == ("adaptive_span" in values[0])
    assert ("there is no share to tell" in said) == (values[0].partition("=")[2] in ("attention-split", "single-head"))


def test_a_log_of_before_tells_what_is_missing(command, logged):
    def as_before(record):
        return {name: value for name, value in record.items() if name not in ("spans", "clipped")}

    change_log(logged, as_before)
    assert command("report", logged).code == 0
    said = read(logged / "report.html")
    assert "Spans of single heads over time are not in the log." in said
    assert "The share of clipped tensors is not in the log." in said
    assert "At the end, in positions" in said


def test_numbers_that_are_none_leave_gaps_and_a_note(command, logged):
    change_log(logged, lambda record: {**record, "loss": float("nan"), "gradient_norm": float("inf"), "bits": None})
    end = command("report", logged)
    assert end.code == 0
    assert "not a finite number" in end.err
    assert "not a finite number" in read(logged / "report.html")


def test_a_damaged_newest_checkpoint_is_passed_over_and_told(command, logged):
    (logged / "checkpoints" / "update-00000008" / "parameters.safetensors").write_bytes(b"none")
    end = command("report", logged)
    assert end.code == 0
    said = read(logged / "report.html")
    for text in (said, end.err):
        assert "A damaged checkpoint was passed over" in text
    assert "update-00000006" in said


def test_a_run_without_any_whole_checkpoint_shows_its_log(command, logged):
    for folder in (logged / "checkpoints").iterdir():
        (folder / "checkpoint.json").write_text("{")
    end = command("report", logged)
    assert end.code == 0
    assert "No checkpoint could be read" in end.err
    said = read(logged / "report.html")
    assert "Loss, bits per byte" in said
    assert "At the end, in positions" in said  # by the log's last record
    assert "No model, or no text for it, could be read." in said


def test_a_run_that_has_only_begun_has_a_page(command, logged):
    shutil.rmtree(logged / "checkpoints")
    (logged / "log.jsonl").unlink()
    end = command("report", logged)
    assert end.code == 0
    said = read(logged / "report.html")
    assert "Nothing was logged yet." in said
    assert "No log could be read" in said
    assert "0 of 8" in said


def test_a_text_that_has_moved_is_told_and_a_passage_still_looked_at(command, logged, text):
    text.unlink()
    end = command("report", logged)
    assert end.code == 0
    assert "The text could not be read" in end.err
    said = read(logged / "report.html")
    assert "No model, or no text for it, could be read." in said
    assert command("report", logged, "--passage", "the cat sat").code == 0
    said = read(logged / "report.html")
    assert "Looked at: the passage given; 11 queries." in said
    assert "the·cat·sat" in said


def test_a_run_without_its_settings_takes_the_checkpoints(command, logged):
    (logged / "config.toml").write_text("not TOML")
    assert command("report", logged).code == 0
    said = read(logged / "report.html")
    assert "The settings are the checkpoint's" in said
    assert "span_ramp4" in said


@pytest.mark.parametrize(("arguments", "message"), [
    (("nothing",), "nothing: expected a run's folder, with config.toml or checkpoints, got neither"),
    (("gone",), "gone: expected a run's folder, got nothing of that name"),
    (("run", "gone"), "gone: expected a run's folder, got nothing of that name"),
    (("run/log.jsonl",), "run/log.jsonl: expected a run's folder, got a file"),
    (("run", "--out", "gone/report.html"), "--out: expected a file in a folder that is there, got"),
    (("run", "--out", "run"), "--out: expected a file in a folder that is there, got"),
    (("run", "--passage", ""), "--passage: expected at least one byte, got ''"),
    ((), "Missing argument 'RUN [RUN...]'."),
])
def test_what_cannot_be_is_one_line_and_leaves_nothing(command, trained, tmp_path, monkeypatch, tree, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    before = tree()
    end = command("report", *arguments)
    assert (end.code, end.out, end.err.count("\n")) == (2, "", 1)
    assert message in end.err
    assert {path for path in tree() if not path.startswith("store")} == set(before) - {p for p in before if "store" in p}


def test_symbols_that_the_model_lacks_are_refused(command, train_another):
    run = train_another("data.vocabulary=character")
    end = command("report", run, "--passage", "the Cat")
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert f"--passage, for {run}: text: expected characters of the vocabulary" in end.err
    assert not (run / "report.html").exists()


def test_what_it_is_made_with_is_named_where_it_is_missing(command, trained, monkeypatch):
    monkeypatch.setattr(commands, "find_spec", lambda name: None if name == "jinja2" else object())
    end = command("report", trained)
    assert end.code == 2
    assert end.err == ("refimpl: report: expected jinja2 and matplotlib (pip install 'refimpl[report]'), got no jinja2\n")


def test_a_page_that_cannot_be_written_leaves_the_old_one(command, trained, monkeypatch):
    (trained / "report.html").write_text("old")

    def no_room(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands.os, "fsync", no_room)
    end = command("report", trained)
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "No space left on device" in end.err
    assert (trained / "report.html").read_text() == "old"
    assert not list(trained.glob(".*aside"))
