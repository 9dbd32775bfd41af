"""`refimpl data` as a person meets it: what is fetched and prepared is trained on, and every error is one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from refimpl import texts
from refimpl.cli import main
from refimpl.config import DataConfig
from refimpl.datasets import download
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.published import ITEMS, File, Item, Member
from refimpl.meter import TransferMeter

TEXT = b"the cat sat\non a mat\n" * 60


@pytest.fixture
def small(monkeypatch):
    """A published text of 1,260 bytes in enwik8's place."""
    import hashlib

    def known(name, data):
        return File(name, len(data), {"sha1": hashlib.sha1(data).hexdigest()})

    cut = (TEXT[:1000], TEXT[1000:1120], TEXT[1120:])
    parts = tuple(known(f"{name}.txt", data) for name, data in zip(("train", "valid", "test"), cut, strict=True))
    whole = Member(known("text", TEXT), parts)
    item = Item("enwik8", "http://127.0.0.1:1/enwik8.zip", known("enwik8.zip", b"none"), (whole,), "byte")
    monkeypatch.setitem(ITEMS, "enwik8", item)
    monkeypatch.setenv("NO_PROXY", "*")
    return item


@pytest.fixture
def copy(tmp_path):
    path = tmp_path / "copy"
    path.write_bytes(TEXT)
    return path


def failed(end, code, *fragments):
    assert end.code == code, end.err
    assert end.out == ""
    assert end.err.startswith("refimpl: ")
    assert end.err.count("\n") == 1
    for fragment in fragments:
        assert fragment in end.err


def test_from_a_copy_to_a_model(small, copy, command, store, tiny, tmp_path):
    end = command("data", "fetch", "enwik8", "--from", copy, "--json")
    assert end.code == 0, end.err
    told = json.loads(end.out)
    assert told == {"name": "enwik8", "folder": str(store / "texts" / "enwik8"), "from": str(copy),
                    "bytes": {"train.txt": 1000, "valid.txt": 120, "test.txt": 140}}
    info = json.loads(command("data", "info", "enwik8", "--json").out)
    assert (info["source"], info["bytes"], info["checksums"]) == (
        "enwik8", {"train": 1000, "valid": 120, "test": 140}, "as published")
    end = command("train", "--data", "enwik8", "--set", "data.convention=published", "--out", tmp_path / "run", *tiny)
    assert end.code == 0, end.err
    assert 'path = "enwik8"' in (tmp_path / "run" / "config.toml").read_text()
    assert json.loads(command("eval", tmp_path / "run", "--json").out)["source"] == "enwik8"
    assert command("train", "--resume", "--out", tmp_path / "run", "--set", "train.updates=8").code == 0


def test_a_prepared_text_is_trained_on(copy, command, tiny, tmp_path):
    """As the text itself is, once its conventions are known; they need not be said again."""
    options = ["--vocabulary", "word", "--set", "data.convention=published"]
    end = command("data", "prepare", copy, *options, "--out", tmp_path / "prepared", "--json")
    assert end.code == 0, end.err
    told = json.loads(end.out)
    assert told["folder"] == str(tmp_path / "prepared")
    assert told["conventions"]["name"] == "published"
    assert told["seconds"] > 0
    runs = {}
    for name, data in (("text", [copy, *options]), ("prepared", [tmp_path / "prepared"])):
        end = command("train", "--data", *data, "--out", tmp_path / f"{name} run", *tiny, "--json")
        assert end.code == 0, end.err
        runs[name] = json.loads(end.out)["loss"]
    assert runs["text"] == runs["prepared"]
    info = json.loads(command("data", "info", tmp_path / "prepared", "--json").out)
    assert {key: value for key, value in told.items() if key not in ("folder", "seconds")} == info
    failed(command("train", "--data", tmp_path / "prepared", "--vocabulary", "byte", "--out", tmp_path / "no", *tiny),
           2, "prepared: expected data.vocabulary 'word', as the text was prepared, got 'byte'")
    failed(command("train", "--data", tmp_path / "prepared", "--set", "data.ties=first", "--out", tmp_path / "no", *tiny), 2,
           "data.ties: expected reversed")
    (tmp_path / "prepared" / "valid-tokens.bin").write_bytes(b"\0")
    failed(command("train", "--data", tmp_path / "prepared", "--out", tmp_path / "no", *tiny), 2, "valid-tokens.bin",
           "expected SHA-256", "damaged")
    failed(command("data", "info", tmp_path / "prepared"), 2, "valid-tokens.bin", "expected SHA-256", "damaged")
    assert not (tmp_path / "no").exists()


def test_prepared_into_the_store(copy, command, store):
    told = json.loads(command("data", "prepare", copy, "--json").out)
    assert Path(told["folder"]).parent == store
    assert json.loads(command("data", "prepare", copy, "--json").out)["folder"] == told["folder"]
    assert open_corpus(DataConfig(str(copy)), store).folder == Path(told["folder"])


def test_a_prepared_text_of_another_vocabulary_than_the_checkpoints(copy, command, tiny, tmp_path):
    assert command("train", "--data", copy, "--vocabulary", "word", "--out", tmp_path / "run", *tiny).code == 0
    (tmp_path / "other").write_bytes(b"seven other words and the same line again\n" * 20)
    assert command("data", "prepare", tmp_path / "other", "--vocabulary", "word", "--out", tmp_path / "prepared").code == 0
    failed(command("eval", tmp_path / "run", "--data", tmp_path / "prepared"), 2, "the model's vocabulary of 7",
           "prepared with its own of 9")
    failed(command("eval", tmp_path / "run", "--data", tmp_path / "other"), 2, "words of the vocabulary of 7, got 'seven'")


def test_what_people_read(small, copy, command, tmp_path):
    end = command("data", "fetch", "enwik8", "--from", copy, "--out", tmp_path / "here")
    assert f"enwik8: in {tmp_path / 'here'}, from {copy}, checksums as published\n" in end.out
    assert end.err == ""
    end = command("data", "prepare", tmp_path / "here", "--set", "data.convention=published", "--out", tmp_path / "prepared")
    first, second, *rest = end.out.splitlines()
    told = "byte vocabulary of 11, conventions: published, numbering frequency, ties reversed"
    assert first == f"{tmp_path / 'prepared'}: {told}"
    assert re.fullmatch("SHA-256 [0-9a-f]{64}", second)
    assert re.fullmatch(rf"in {tmp_path}/prepared, [\d.]+ s", rest[-1])
    assert "its splits have the published checksums" not in end.out


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with TransferMeter() as meter:
        for name in ("first", "second"):
            meter.begin(name, 2_000_000)
            meter.add(2_000_000)
        meter.note("more [of] it")
    shown = capsys.readouterr().err
    assert "second" in shown
    assert "2.0/2.0 MB" in shown
    assert "more [of] it" in shown


def test_a_line_now_and_then(capsys, monkeypatch):
    """Two seconds apart: those at 3 and 5.5, but not at once, at 4.5 or at 6."""
    now = iter([10.0, 11.0, 13.0, 14.5, 15.5, 16.0])
    monkeypatch.setattr("refimpl.meter.time.monotonic", lambda: next(now))
    with TransferMeter() as meter:
        meter.begin("text", 1000)
        for count in (99, 201, 100, 150, 450):
            meter.add(count)
        meter.note("done")
    assert capsys.readouterr().err.splitlines() == [
        "text  300 B of 1.0 kB  100 B/s  0:07 left", "text  550 B of 1.0 kB  100 B/s  0:04 left", "refimpl: done"]


def test_errors_of_fetching(small, copy, command, tmp_path, monkeypatch):
    """No network is exit 3; a copy of something else, a folder that is taken and wrong use are exit 2."""
    out = tmp_path / "out"
    failed(command("data", "fetch", "enwik8", "--out", out), 3, "http://127.0.0.1:1/enwik8.zip", "no network", "--from")
    failed(command("data", "fetch", "enwik8", "--url", "file:///x", "--out", out), 2, "--url", "http://")
    failed(command("data", "fetch", "enwik8", "--url", "http://x/y", "--from", copy), 2, "--url and --from: expected one")
    failed(command("data", "fetch", "enwik8", "--from", "HTTPS://x/y"), 2, "--from: expected a file, got an address, which")
    failed(command("data", "fetch", "enwik8", "--decimal", "--from", copy, "--out", out), 2, "--decimal: expected enwik8")
    copy.write_bytes(TEXT[:-1] + b"!")
    failed(command("data", "fetch", "enwik8", "--from", copy, "--out", tmp_path / "more"), 2, "expected SHA-1", "got")
    failed(command("data", "fetch", "enwik8", "--from", tmp_path / "nowhere", "--out", tmp_path / "more"), 2, "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").touch()
    failed(command("data", "fetch", "enwik8", "--from", copy, "--out", tmp_path / "mine"), 2, "mine", "new or empty folder")
    failed(command("data", "fetch", "enwik9"), 2, "enwik8", "text8", "wikitext103")
    failed(command("data", "info", "text8"), 2, "refimpl data fetch text8")
    assert not (tmp_path / "more").exists()


def test_attempts_are_told_and_the_last_line_is_the_error(small, command, tmp_path, monkeypatch):
    def fail(*_):
        raise download._PassingError("http://127.0.0.1:1/enwik8.zip: expected enwik8.zip, got 503 Service Unavailable")

    monkeypatch.setattr(download, "_receive", fail)
    monkeypatch.setattr(texts.fetch, "Patience", lambda: download.Patience((0.0, 0.0)))
    end = command("data", "fetch", "enwik8", "--out", tmp_path / "out")
    assert end.code == 3
    assert [line.rpartition("; ")[2] for line in end.err.splitlines()[:-1]] == ["once more in 0 s"] * 2
    assert "at each of 3 attempts" in end.err.splitlines()[-1]


def test_a_bug_of_ours_is_none_of_these(small, copy, command, monkeypatch, tmp_path):
    """An archive that is right but whose reader fails is exit 70, not a wrong archive."""
    monkeypatch.setattr(texts.fetch, "_write_member", lambda *_: 1 / 0)
    assert command("data", "fetch", "enwik8", "--from", copy, "--out", tmp_path / "out").code == 70
    assert not (tmp_path / "out").exists()


def test_help_has_examples(command):
    for name in ("fetch", "prepare", "info"):
        assert f"refimpl data {name}" in command("data", name, "--help").out


def test_nothing_heavy_until_it_is_needed():
    code = ("import sys, refimpl.cli; from refimpl import texts; "
            "print([name for name in ('pooch', 'requests', 'rich', 'zipfile') if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['zipfile']\n", done.stderr
    assert callable(main)


def test_another_text_under_a_published_name_is_refused(small, copy, command, store, tiny, tmp_path):
    """A file in the store that was changed is not the published text any longer, whatever is to be done with it."""
    assert command("data", "fetch", "enwik8", "--from", copy).code == 0
    valid = store / "texts" / "enwik8" / "valid.txt"
    valid.write_bytes(valid.read_bytes().replace(b"cat", b"dog"))
    for arguments in (["data", "prepare", "enwik8"], ["data", "prepare", "enwik8", "--out", tmp_path / "new"],
                      ["data", "info", "sample", "--set", "data.path=enwik8"], ["data", "info", "enwik8"],
                      ["train", "--data", "enwik8", "--out", tmp_path / "new", *tiny]):
        failed(command(*arguments), 2, "or the splits of enwik8", "valid.txt: expected SHA-1")
    assert not (tmp_path / "new").exists()
