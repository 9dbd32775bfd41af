"""The command where something is wrong: the exit code, one line that says what, and nothing written or overwritten."""

import errno
import hashlib
import json
import os
import pathlib
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest

from refimpl import checkpoint, results, settings

CHECKPOINT = ("checkpoint.json", "optimizer.safetensors", "parameters.safetensors", "past.safetensors", "vocabulary.json")


@pytest.fixture
def refused(command, tree, tmp_path, monkeypatch):
    """refused(arguments, *fragments): exit 2 and one line with all fragments; not a file is new, gone or changed.

    encoded: the text itself is fine, so that the store may hold it afterwards.
    """
    monkeypatch.chdir(tmp_path)  # where the default --out lies

    def check(arguments, *fragments, encoded=False):
        before = tree()
        end = command(*arguments)
        assert end.code == 2, end.err
        assert end.out == ""
        assert end.err.startswith("refimpl: ")
        assert end.err.endswith("\n")
        assert end.err.count("\n") == 1
        for fragment in fragments:
            assert str(fragment) in end.err
        after = tree()
        if encoded:
            before, after = ({name: content for name, content in look.items() if not name.startswith("store")}
                             for look in (before, after))
        assert after == before

    return check


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def options(*values):
    return [word for value in values for word in ("--set", value)]


@pytest.mark.parametrize(("arguments", "fragments"), [
    (("trian",), ["No such command 'trian'"]),
    (("train", "--presett", "laptop"), ["No such option", "--presett", "--preset"]),
    (("train", "surplus"), ["unexpected extra argument", "surplus"]),
    (("train", "--vocabulary", "bytes"), ["bytes", "byte", "character", "word"]),
    (("eval",), ["Missing argument", "RUN"]),
    (("eval", "run", "--block", "0"), ["--block", "0"]),
    (("eval", "run", "--split", "dev"), ["dev", "train", "valid", "test"]),
    (("eval", "run", "--protocol", "fast"), ["fast", "every-token", "published", "transformer-xl"]),
    (("eval", "run", "--past", "0"), ["--past", "0"]),
    (("generate", "run", "--length", "-1"), ["--length", "-1"]),
    (("generate", "run", "--seed", "x"), ["--seed", "x"]),
    (("data", "inof"), ["inof"]),
])
def test_wrong_usage(refused, arguments, fragments):
    refused(arguments, *fragments)


@pytest.mark.parametrize("limit", ["0", "-1", "soon"])
def test_a_time_limit_that_is_none(refused, text, out, tiny, limit):
    refused(("train", "--data", text, "--out", out, *tiny, "--time-limit", limit), "--time-limit", limit, encoded=True)


@pytest.mark.parametrize("words", [("train", "--data"), ("data", "info")], ids=" ".join)
@pytest.mark.parametrize(("make", "fragments"), [
    (lambda path: None, ["expected a file, a folder", "got nothing"]),
    (lambda path: path.write_bytes(b""), ["expected text", "empty"]),
    (lambda path: path.mkdir(), ["expected one file each for train, valid and test", "no files"]),
], ids=["missing", "empty", "empty folder"])
def test_a_text_that_is_not_there(refused, tmp_path, out, words, make, fragments):
    make(tmp_path / "text")
    refused((*words, tmp_path / "text", *(("--out", out) if words[0] == "train" else ())), tmp_path / "text", *fragments)


@pytest.mark.parametrize("missing", ["train", "valid", "test"])
def test_a_folder_without_a_split(refused, tmp_path, out, missing):
    (tmp_path / "texts").mkdir()
    for name in {"train", "valid", "test"} - {missing}:
        (tmp_path / "texts" / f"{name}.txt").write_text("some words\n" * 9)
    refused(("train", "--data", tmp_path / "texts", "--out", out), f"0 for {missing}", tmp_path / "texts")


def test_an_empty_split(refused, tmp_path, out):
    (tmp_path / "texts").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "texts" / f"{name}.txt").write_text("" if name == "valid" else "some words\n" * 9)
    refused(("train", "--data", tmp_path / "texts", "--out", out), "valid.txt", "empty")


def test_a_text_shorter_than_one_block_per_stream(refused, tmp_path, out, tiny):
    """19 bytes: 17 to train on, where 2 × (8 + 1) = 18 are needed."""
    (tmp_path / "short.txt").write_bytes(b"x" * 19)
    arguments = ("train", "--data", tmp_path / "short.txt", "--out", out, *tiny)
    refused(arguments, "expected", "2 × 9 = 18", "got 17", encoded=True)


def test_a_text_too_short_to_validate_on(refused, tmp_path, out, tiny):
    """20 bytes: 18 to train on, which is enough, but one to validate on, which has no next one. Told before training."""
    (tmp_path / "short.txt").write_bytes(b"x" * 20)
    refused(("train", "--data", tmp_path / "short.txt", "--out", out, *tiny), "valid", "2", "got 1", encoded=True)


def test_too_few_tokens_asked_to_validate_on(refused, text, out, tiny):
    """One token has no next one; told before training."""
    arguments = ("train", "--data", text, "--out", out, *tiny, "--set", "train.evaluate_tokens=1")
    refused(arguments, "evaluate_tokens", "2", "got 1", encoded=True)


@pytest.mark.parametrize("kind", ["character", "word"])
@pytest.mark.parametrize("place", [100, 1600])
def test_invalid_utf8(refused, text, out, tiny, kind, place, store):
    content = text.read_bytes()
    text.write_bytes(content[:place] + b"\xff" + content[place + 1:])
    arguments = ("train", "--data", text, "--vocabulary", kind, "--out", out, *tiny)
    refused(arguments, text, "expected UTF-8", "got byte 0xff", f"offset {place}")
    refused(("data", "info", text, "--vocabulary", kind), "expected UTF-8", f"offset {place}")


def test_a_word_of_another_split_that_training_never_saw(refused, text, out, tiny):
    with text.open("a") as file:
        file.write("novel words\n")
    refused(("train", "--data", text, "--vocabulary", "word", "--out", out, *tiny), "novel", "<unk>")


@pytest.mark.parametrize("added", [1, 7])
def test_a_store_altered_behind_our_back(command, text, out, tiny, store, added):
    """A token of the vocabulary or none of it: never trained on, the text is encoded anew."""
    end = command("data", "info", text, "--vocabulary", "character", "--json")
    size = json.loads(end.out)["vocabulary"]["size"]
    file = next(store.glob("*/train-tokens.bin"))
    tokens = np.fromfile(file, np.uint8)
    altered = tokens.copy()
    altered[3] = (tokens[3] + added) % (size + added)
    assert altered[3] != tokens[3]
    altered.tofile(file)
    end = command("train", "--data", text, "--vocabulary", "character", "--out", out, *tiny)
    assert end.code == 0, end.err
    assert (np.fromfile(file, np.uint8) == tokens).all()


@pytest.mark.parametrize(("content", "fragments"), [
    ("[model]\nwdith = 8\n", ["unknown key model.wdith", "nearest: model.width"]),
    ("[train]\nlerning_rate = 0.1\n", ["unknown key train.lerning_rate", "nearest: train.learning_rate"]),
    ("[data]\nvocab = 'byte'\n", ["unknown key data.vocab", "nearest: data.vocabulary"]),
    ("[modle]\nwidth = 8\n", ["model, train, data", "modle", "nearest: model"]),
    ("width = 8\n", ["model, train, data", "width"]),
    ("[model\n", ["expected TOML"]),
    ("[model]\nwidth = 8\nwidth = 9\n", ["expected TOML"]),
    ("[model]\nwidth = 'wide'\n", ["model.width", "expected int", "got 'wide'"]),
    ("[model]\nheads = 3\n", ["model.heads", "expected"]),
    (b"\xff\xfe", ["expected TOML"]),
    (None, ["expected a TOML file", "nothing of that name"]),
])
def test_a_wrong_settings_file(refused, tmp_path, text, out, content, fragments):
    base = {"width": 8, "heads": 2, "layers": 1, "span": 8, "memory": 2}
    file = tmp_path / "mine.toml"
    if isinstance(content, str) and content.startswith("[model]"):
        named = content.split()[1]
        content += "".join(f"{key} = {value}\n" for key, value in base.items() if key not in (named, "wdith"))
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    for extra in ((), ("--dry-run",)):
        refused(("train", "--config", file, "--data", text, "--out", out, *extra), *fragments, encoded=bool(extra))


@pytest.mark.parametrize(("assignment", "fragments"), [
    ("model.wdith=8", ["unknown key model.wdith", "nearest: model.width"]),
    ("train.update=8", ["unknown key train.update", "nearest: train.updates"]),
    ("models.width=8", ["expected model.KEY=VALUE", "models.width=8"]),
    ("width=8", ["expected model.KEY=VALUE", "width=8"]),
    ("model.width", ["expected model.KEY=VALUE", "model.width"]),
    ("model.width=wide", ["model.width", "expected int", "'wide'"]),
    ("model.width=8.5", ["model.width", "expected int", "8.5"]),
    ("model.width=true", ["model.width", "expected int", "True"]),
    ("model.attend_self=1", ["model.attend_self", "expected bool", "1"]),
    ("model.heads=3", ["model.heads", "divisor of width 8", "got 3"]),
    ("model.heads=0", ["model.heads", "expected 1 or more", "got 0"]),
    ("model.dropout=1.0", ["model.dropout", "[0, 1)", "1.0"]),
    ("model.norm=both", ["model.norm", "post, pre", "'both'"]),
    ("model.memory=0", ["memory", "attend_self"]),
    ("model.feed_forward=8", ["model.feed_forward", "memory 2"]),
    ("model.vocabulary=300", ["model.vocabulary", "256", "300"]),
    ("train.learning_rate=nan", ["train.learning_rate", "nan"]),
    ("train.learning_rate=-1", ["train.learning_rate", "0 or more", "-1"]),
    ("train.optimizer=sdg", ["train.optimizer", "sgd, adagrad, adam", "'sdg'"]),
    ("train.updates=0", ["train.updates", "1 or more"]),
    ("train.dtype=float16", ["train.dtype", "float32, float64", "'float16'"]),
    ("data.vocabulary=bytes", ["data.vocabulary", "byte, character, word", "'bytes'"]),
])
def test_a_wrong_setting(refused, text, out, tiny, assignment, fragments):
    refused(("train", "--data", text, "--out", out, *tiny, "--set", assignment), *fragments, encoded=True)


def test_an_unknown_preset(refused, text, out):
    for extra in ((), ("--dry-run",)):
        arguments = ("train", "--preset", "enwik9", "--data", text, "--out", out, *extra)
        refused(arguments, "'enwik9'", "nearest: enwik8", "laptop")


def test_a_preset_and_a_settings_file(refused, trained, out):
    config = trained / "config.toml"
    refused(("train", "--preset", "laptop", "--config", config, "--out", out), "--preset and --config", "got both")
    refused(("train", "--preset", "laptop", "--config", config, "--out", trained, "--resume"), "--preset and --config")


def test_a_folder_that_holds_a_run(refused, trained, text, tiny):
    refused(("train", "--data", text, "--out", trained, *tiny), trained, "expected a new or empty folder", "--resume")


def test_a_folder_that_holds_something_else(refused, tmp_path, text, tiny):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for place in (tmp_path / "mine", tmp_path / "mine" / "thesis.txt"):
        refused(("train", "--data", text, "--out", place, *tiny), place, "expected a new or empty folder", "something else")


def test_a_folder_below_a_file(refused, text, tiny):
    refused(("train", "--data", text, "--out", text / "run", *tiny), text, encoded=True)


def test_nothing_to_resume(refused, tmp_path, text, tiny, out):
    refused(("train", "--out", out, "--resume", *tiny), out, "no folder")
    (tmp_path / "empty").mkdir()
    refused(("train", "--out", tmp_path / "empty", "--resume"), tmp_path / "empty", "expected a checkpoint's folder")


def test_a_checkpoint_is_no_run_to_resume(refused, trained):
    """A run that goes on inside its own checkpoint would be lost from sight, and from the next pruning on from the disk."""
    folder = trained / "checkpoints" / "update-00000006"
    refused(("train", "--out", folder, "--resume", *options("train.updates=8")), folder, "expected a run's folder")


@pytest.mark.parametrize("words", [("eval",), ("generate",), ("train", "--resume", "--out")], ids=" ".join)
def test_a_folder_that_is_not_a_checkpoint(refused, tmp_path, text, words):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("not a checkpoint")
    for place in (tmp_path / "nothing", tmp_path / "other", text):
        refused((*words, place), place, "expected a checkpoint's folder")


@pytest.mark.parametrize("name", CHECKPOINT)
@pytest.mark.parametrize("damage", ["truncated", "emptied", "altered", "missing"])
@pytest.mark.parametrize("words", [("eval",), ("generate",), ("train", *options("train.updates=9"), "--resume", "--out")],
                         ids=["eval", "generate", "resume"])
def test_a_damaged_checkpoint(refused, trained, name, damage, words):
    file = trained / "checkpoints" / "update-00000006" / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "altered":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:])
    else:
        file.write_bytes(content[:-1] if damage == "truncated" else b"")
    refused((*words, trained), name, "expected")


@pytest.mark.parametrize(("assignment", "fragments"), [
    ("model.width=16", ["model.width", "expected 8", "got 16"]),
    ("model.memory=3", ["model.memory", "expected 2", "got 3"]),
    ("model.dropout=0.5", ["model.dropout", "expected 0.0", "got 0.5"]),
    ("train.optimizer=sgd", ["train.optimizer", "expected 'adam'", "got 'sgd'"]),
    ("train.batch=4", ["train.batch", "expected 2", "got 4"]),
    ("train.block=16", ["train.block", "expected 8", "got 16"]),
    ("train.dtype=float64", ["train.dtype", "expected 'float32'", "got 'float64'"]),
    ("train.seed=1", ["train.seed", "expected 0", "got 1"]),
    ("train.adam_betas=[0.8, 0.9]", ["train.adam_betas", "0.999", "0.8"]),
    ("model.vocabulary=300", ["model.vocabulary", "256", "300"]),
    ("data.vocabulary=word", ["data.vocabulary", "byte", "word"]),
    ("data.ties=reversed", ["data.ties", "first", "reversed"]),
    ("train.updates=-3", ["train.updates", "1 or more", "-3"]),
    ("train.learning_rate=fast", ["train.learning_rate", "expected float", "'fast'"]),
])
def test_settings_that_contradict_the_checkpoint(refused, trained, assignment, fragments):
    refused(("train", "--out", trained, "--resume", "--set", assignment), *fragments)


def test_options_and_files_that_contradict_the_checkpoint(refused, trained, tmp_path):
    refused(("train", "--out", trained, "--resume", "--vocabulary", "word"), "vocabulary", "byte", "word")
    refused(("train", "--out", trained, "--resume", "--preset", "laptop"), "model.width", "expected 8", "got 128")
    other = tmp_path / "other.toml"
    changed = (trained / "config.toml").read_text().replace("layers = 1", "layers = 2")
    other.write_text(changed)
    refused(("train", "--out", trained, "--resume", "--config", other), other, "SHA-256", "remove that line")
    other.write_text(changed.partition("\n")[2])
    refused(("train", "--out", trained, "--resume", "--config", other), "model.layers", "expected 1", "got 2")


def test_another_text_than_the_runs(refused, trained, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_bytes(text.read_bytes() + b"more\n")
    end = ("train", "--out", trained, "--resume", "--data", other)
    refused(end, other, "expected the text that the run was trained on", "SHA-256", encoded=True)
    text.write_bytes(other.read_bytes())
    refused(("train", "--out", trained, "--resume"), text, "expected the text that the run was trained on", encoded=True)
    text.unlink()
    refused(("train", "--out", trained, "--resume"), text, "nothing of that name")


def test_another_vocabulary_than_the_runs(refused, command, text, tiny, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.txt"
    assert command("train", "--data", text, "--vocabulary", "character", "--out", run, *tiny).code == 0
    other.write_text("ÄÖÜ" * 100, "utf-8")
    refused(("eval", run, "--data", other), other, "expected", "vocabulary", encoded=True)
    refused(("generate", run, "--prompt", "cat Ü"), "expected characters of the vocabulary", "'Ü'", "position 4")


@pytest.mark.parametrize(("arguments", "fragments"), [
    (("--prompt", ""), ["prompt", "expected"]), (("--temperature", "nan"), ["temperature", "nan"]),
    (("--temperature", "inf"), ["temperature", "inf"]), (("--temperature", "-1"), ["temperature", "-1"]),
    (("--top-k", "-1"), ["--top-k", "-1"]),
])
def test_passages_that_cannot_be(refused, trained, arguments, fragments):
    refused(("generate", trained, *arguments), *fragments)


def test_an_evaluation_that_cannot_be(refused, trained):
    arguments = ("eval", trained, "--protocol", "published", "--streams", 80)
    refused(arguments, "expected at least", "80 × 9", "got 8", encoded=True)


def test_a_run_without_its_settings(refused, command, trained):
    """Its checkpoints hold them too; one of another writer may not."""
    (trained / "config.toml").unlink()
    assert command("eval", trained).code == 0
    assert command("train", "--out", trained, "--resume", *options("train.updates=8")).code == 0
    saved = checkpoint.load(trained)
    del saved.progress["data"]
    checkpoint.save(trained, saved)
    (trained / "config.toml").unlink()
    refused(("eval", trained), "expected config.toml", trained)


def diverge(*more):
    return options("train.optimizer=sgd", "train.clip=0", "train.log_every=1", "train.updates=20", *more)


def only_the_error(end):
    lines = end.err.splitlines()
    assert [line for line in lines if line.startswith("refimpl: ")] == lines[-1:]
    assert "Traceback" not in end.err
    assert all(line.startswith("update ") for line in lines[:-1])
    return lines[-1]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(command, text, out, tiny, tree):
    assert command("train", "--data", text, "--out", out, *tiny, *diverge(), *options("train.updates=4")).code == 0
    before = {name: content for name, content in tree().items() if "checkpoints" in name}
    assert len(before) == 2 + len(CHECKPOINT)
    end = command("train", "--out", out, "--resume", *options("train.learning_rate=1e30", "train.updates=20"))
    assert end.code == 1
    line = only_the_error(end)
    assert "update 6" in line
    assert "first tensor that is not finite: " in line
    assert line.split("first tensor that is not finite: ")[1].startswith(("input of layers.", "last hidden", "token loss"))
    assert {name: content for name, content in tree().items() if "checkpoints" in name} == before
    assert end.out == ""
    assert command("eval", out).code == 0


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_good_checkpoint_is_not_replaced_by_a_lost_model(command, text, out, tiny, keep):
    """With a checkpoint at every update, the one after the fatal step must not push out those before it."""
    every = (f"train.keep_checkpoints={keep}", "train.checkpoint_every=1")
    assert command("train", "--data", text, "--out", out, *tiny, *diverge(*every), *options("train.updates=4")).code == 0
    end = command("train", "--out", out, "--resume", *options("train.learning_rate=1e30", "train.updates=20"))
    assert end.code == 1
    line = only_the_error(end)
    assert "first tensor that is not finite: " in line
    assert str(out / "checkpoints" / "update-00000004") in line
    scored = command("eval", out, "--json")
    assert scored.code == 0, scored.err
    assert json.loads(scored.out)["updates"] == 4


@pytest.mark.parametrize("rate", ["1e30", "1e39"])
def test_a_model_lost_in_the_very_last_update_is_an_error_too(command, text, out, tiny, rate):
    """Its loss was finite before the step; validation finds it out, and the tensor is named all the same."""
    end = command("train", "--data", text, "--out", out, *tiny, *diverge(f"train.learning_rate={rate}", "train.updates=1"))
    assert end.code == 1
    assert "not finite: " in only_the_error(end)
    assert not list(out.glob("checkpoints/*"))


def test_a_run_that_failed_before_its_first_checkpoint_begins_again_when_resumed(command, refused, text, out, tiny):
    """From its settings; they may change as with any resume. The text need not be named again."""
    end = command("train", "--data", text, "--out", out, *tiny, *diverge("train.learning_rate=1e30"))
    assert end.code == 1
    refused(("train", "--data", text, "--out", out, *tiny), "--resume goes on with it")
    refused(("eval", out), out, "a run that has no checkpoint yet")
    again = command("train", "--out", out, "--resume")
    assert (again.code, only_the_error(again)) == (1, only_the_error(end))
    refused(("train", "--out", out, "--resume", *options("model.width=16")), "model.width", "expected 8")
    assert command("train", "--out", out, "--resume", *options("train.learning_rate=0.1")).code == 0
    whole = out.with_name("whole")
    assert command("train", "--data", text, "--out", whole, *tiny, *diverge("train.learning_rate=0.1")).code == 0
    assert checkpoint.load(out).parameters.vector.tobytes() == checkpoint.load(whole).parameters.vector.tobytes()


def test_a_run_without_a_checkpoint_whose_text_has_changed(command, refused, text, out, tiny):
    lost = diverge("train.learning_rate=1e30")
    end = command("train", "--data", text, "--vocabulary", "character", "--out", out, *tiny, *lost)
    assert end.code == 1
    text.write_text("abcdefghijklmnopqrstuvwxyz0123456789" * 50)
    refused(("train", "--out", out, "--resume"), text, "expected a text of", "got 36", encoded=True)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("target", [(os, "fsync"), (pathlib.Path, "mkdir"), (pathlib.Path, "rename")],
                         ids=["fsync", "mkdir", "rename"])
def test_no_room_for_a_checkpoint(command, trained, tree, target, monkeypatch):
    before = {name: content for name, content in tree().items() if "checkpoints" in name}
    with monkeypatch.context() as patch:
        patch.setattr(*target, full)
        end = command("train", "--out", trained, "--resume", *options("train.updates=8"))
    assert end.code == 3
    assert "No space left on device" in only_the_error(end)
    assert ("update-00000006" if "update      8" in end.err else str(trained)) in only_the_error(end)
    assert {name: content for name, content in tree().items() if "checkpoints" in name} == before
    assert command("eval", trained).code == 0
    assert command("train", "--out", trained, "--resume", *options("train.updates=8")).code == 0
    assert checkpoint.load(trained).optimizer.updates == 8


@pytest.fixture
def cramped(tmp_path, store):
    """cramped(room, arguments): the command where the system itself refuses to let any file grow beyond `room` bytes."""

    def run(room, arguments):
        end = subprocess.run([sys.executable, "-m", "refimpl", *map(str, arguments)], capture_output=True, encoding="utf-8",
                             preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)), check=False,
                             env={**os.environ, "REFIMPL_STORE": str(store)})
        assert end.returncode in (2, 3)  # before training, and in it
        assert end.stderr.splitlines()[-1].startswith("refimpl: ")
        assert "File too large" in end.stderr
        assert "Traceback" not in end.stderr

    return run


@pytest.mark.parametrize("room", [0, 300, 4096])
def test_no_room_in_earnest(command, cramped, trained, text, tree, room):
    """What was there survives, and works as soon as there is room."""
    resume = ("train", "--out", trained, "--resume", *options("train.updates=8"))
    before = tree()
    cramped(room, resume)
    after = tree()
    log, config = "run/log.jsonl", "run/config.toml"
    assert not [name for name in after if name not in before and not name.startswith("store")]
    assert {name: after.get(name) for name in before if name not in (log, config)} == {
        name: content for name, content in before.items() if name not in (log, config)}
    assert after[log].startswith(before[log])
    assert settings.read(trained / "config.toml")["data"]["path"] == str(text)
    assert command("eval", trained).code == 0
    assert command(*resume).code == 0


def test_no_room_for_a_new_run(command, cramped, text, tiny, out):
    """Nothing half-written stands in the way of the next try."""
    assert command("data", "info", text).code == 0  # the text is in the store already
    cramped(0, ("train", "--data", text, "--out", out, *tiny))
    assert not (out / "config.toml").exists()
    assert command("train", "--data", text, "--out", out, *tiny).code == 0


def test_no_room_for_the_first_checkpoint(command, text, tiny, out, monkeypatch):
    """The run begins again when resumed."""
    assert command("data", "info", text).code == 0  # the text is in the store already
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "rename", full)
        end = command("train", "--data", text, "--out", out, *tiny)
    assert end.code == 3
    assert "no checkpoint was written yet" in only_the_error(end)
    assert command("train", "--data", text, "--out", out, *tiny).code == 2
    assert command("train", "--out", out, "--resume").code == 0


def test_no_memory(refused, trained, monkeypatch):
    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(results, "evaluate_run", exhausted)
    refused(("eval", trained), "memory")


def test_a_model_that_no_machine_can_hold(refused, text, out, tiny):
    huge = options("model.width=4194304", "model.memory=4194304", "model.layers=4096")
    refused(("train", "--data", text, "--out", out, *tiny, *huge), encoded=True)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyError("boom"), TypeError("boom\nboom"), AssertionError("boom"),
                                   ValueError("boom"), RecursionError("boom")])
def test_a_bug_is_neither_bad_input_nor_a_mismatch(command, trained, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr(results, "evaluate_run", broken)
    end = command("eval", trained)
    assert end.code == 70
    assert end.out == ""
    assert end.err.count("\n") == 1
    for fragment in ("refimpl: ", "bug", type(error).__name__, "boom", "--debug"):
        assert fragment in end.err
    for words in (("--debug", "eval", trained), ("eval", trained, "--debug")):
        shown = command(*words)
        assert shown.code == 70
        assert shown.err.startswith("Traceback")
        assert "in broken" in shown.err
        assert shown.err.splitlines()[-1] == end.err.strip()


def test_debug_shows_where_bad_input_was_found(command, tmp_path):
    shown = command("--debug", "eval", tmp_path / "nothing")
    assert shown.code == 2
    assert shown.err.startswith("Traceback")
    assert shown.err.splitlines()[-1] + "\n" == command("eval", tmp_path / "nothing").err


def test_debug_shows_where_a_loss_was_lost(command, text, out, tiny):
    end = command("--debug", "train", "--data", text, "--out", out, *tiny, *diverge("train.learning_rate=1e30"))
    assert end.code == 1
    assert "Traceback" in end.err


def test_a_checkpoint_cannot_run_code(refused, trained, tmp_path):
    """A pickle in place of the parameters, with a checksum that fits, is refused and never opened as one."""
    folder = trained / "checkpoints" / "update-00000006"
    sign(folder, "parameters.safetensors", pickle.dumps(Intruder(str(tmp_path / "intruder"))))
    refused(("eval", trained), "expected safetensors")
    assert not (tmp_path / "intruder").exists()


class Intruder:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (pathlib.Path(self.path),))


def sign(folder, name, content):
    """Puts a file into a checkpoint, with checksums as the format has them."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "checkpoint.json").read_text())
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(manifest, indent=1))


def run_process(tmp_path, *arguments, **environment):
    return subprocess.run([sys.executable, "-m", "refimpl", *arguments], capture_output=True, check=False, cwd=tmp_path,
                          env={**os.environ, "REFIMPL_STORE": str(tmp_path / "store"), **environment})


def test_a_terminal_that_knows_only_ascii(trained, tmp_path):
    end = run_process(tmp_path, "generate", str(trained), "--length", "80", PYTHONIOENCODING="ascii")
    assert end.returncode == 0, end.stderr


def test_a_prompt_that_is_not_utf8(trained, tmp_path):
    end = run_process(tmp_path, "generate", str(trained), "--length", "3", "--prompt", b"caf\xe9")
    assert end.returncode in (0, 2), end.stderr
    assert end.returncode or end.stdout.startswith(b"caf")


def test_a_file_name_that_is_not_utf8(text, tiny, tmp_path):
    """It works, or it is refused before anything is written."""
    os.rename(os.fsencode(text), os.fsencode(tmp_path) + b"/caf\xe9.txt")
    end = run_process(tmp_path, "train", "--data", b"caf\xe9.txt", "--out", "run", *tiny)
    if end.returncode:
        assert end.returncode == 2, end.stderr
        assert not (tmp_path / "run").exists()
    else:
        assert run_process(tmp_path, "eval", "run").returncode == 0


def test_no_room_for_the_result(trained, tmp_path):
    with open("/dev/full", "w") as nowhere:
        end = subprocess.run([sys.executable, "-m", "refimpl", "eval", str(trained)], stdout=nowhere, stderr=subprocess.PIPE,
                             env={**os.environ, "REFIMPL_STORE": str(tmp_path / "store")}, check=False)
    assert end.returncode == 2
    assert end.stderr.decode().splitlines() == ["refimpl: [Errno 28] No space left on device"]


def test_a_published_preset_needs_its_text(refused, out):
    refused(("train", "--preset", "enwik8", "--out", out), "enwik8", "expected --data")


def test_more_last_updates_than_updates(refused, text, out):
    refused(("train", "--data", text, "--out", out, *options("train.updates=100", "train.last_updates=200")),
            "train.last_updates", "at most the 100", "got 200")


@pytest.mark.parametrize(("content", "more", "fragments"), [
    (b"a\n\nb\n", (), ["line 2", "expected a prompt", "empty line"]), (b"", (), ["line 1", "empty line"]),
    (b"a\n\r\n", (), ["line 2"]), (b"a\n", ("--prompt", "b"), ["--prompt and --prompts", "got both"]),
    (None, (), ["prompts.txt", "No such file"]),
])
def test_prompts_that_cannot_be(refused, trained, tmp_path, content, more, fragments):
    if content is not None:
        (tmp_path / "prompts.txt").write_bytes(content)
    refused(("generate", trained, "--prompts", tmp_path / "prompts.txt", *more), *fragments)
