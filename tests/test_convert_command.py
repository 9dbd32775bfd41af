"""`refimpl convert` from end to end: published checkpoints become runs that are evaluated, trained on and given back."""

import json
import resource
from collections import OrderedDict

import numpy as np
import published
import pytest
import torch

from refimpl import checkpoint, convert, durable, model
from refimpl.config import DataConfig
from refimpl.datasets.batches import every_token_once
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.sources import find_source
from refimpl.evaluation import evaluate

SMALL_BATCH = ["--set", "train.batch=2", "--set", "train.block=8", "--set", "train.workers=1"]
WORDS = ["--set", "data.vocabulary=word", "--set", "data.unknown=<unk>"]


@pytest.fixture
def saved_by_torch(tmp_path):
    """saved_by_torch(architecture, **entries): a checkpoint's path, `module.` before each name; and its tensors."""

    def save(of, prefix="module.", **entries):
        tensors = published.tensors(of, prefix=prefix)
        for name in tensors:  # ρ is a share
            if name.endswith("current_val"):
                tensors[name] = np.full_like(tensors[name], 0.4)
        kept = {}
        state = OrderedDict((name, kept.setdefault(id(array), torch.from_numpy(array))) for name, array in tensors.items())
        path = tmp_path / "checkpoint.pt"
        torch.save({"model": state, "iter_no": 7, **entries}, path)
        return path, tensors

    return save


def adagrad_state(tensors):
    """As torch.optim.Adagrad's state_dict() holds it, each sum a constant of its parameter's number."""
    names = [name for name in tensors if "mask_template" not in name and "persistent_memory.adaptive_span" not in name]
    state = {i: {"step": torch.tensor(5.0), "sum": torch.full(tensors[name].shape, float(i))}
             for i, name in enumerate(names)}
    return {"state": state, "param_groups": [{"lr": 0.07, "params": list(state), "weight_decay": 0}]}


def test_a_published_checkpoint_is_evaluated_as_the_model_itself_scores(command, saved_by_torch, text, store, tmp_path):
    corpus = open_corpus(DataConfig(str(text), "character", convention="published"), store)
    of = published.Architecture(vocabulary=corpus.vocabulary.size)
    path, tensors = saved_by_torch(of)
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "run", *SMALL_BATCH,
                  "--set", "data.vocabulary=character", "--json")
    assert end.code == 0, end.err
    result = json.loads(end.out)
    assert result["told"]["heads"] == 2
    assert result["assumed"]["normalizer_epsilon"] == 1e-8
    assert result["assumed"]["span_ramp"] == 32
    assert result["preset"] == "enwik8-all-attention-small"
    assert result["passed_over"] == ["iter_no"]
    assert result["vocabulary"] is None
    scored = json.loads(command("eval", tmp_path / "run", "--data", text, "--block", 8, "--json").out)
    config = checkpoint.load(tmp_path / "run").config
    expected = evaluate(convert.from_adaptive_span(tensors, config), config, every_token_once(corpus.valid, 8, 8))
    assert scored["loss"] == expected.loss
    assert config.zero_past
    end = command("eval", tmp_path / "run")
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "expected --data with a text" in end.err
    end = command("generate", tmp_path / "run")
    assert (end.code, "refimpl convert … --data" in end.err) == (2, True)
    end = command("train", "--resume", "--out", tmp_path / "run", "--data", text)
    assert (end.code, end.err.count("\n")) == (2, 1)


def test_with_its_text_it_is_trained_on_and_given_back(command, saved_by_torch, text, tmp_path):
    of = published.Architecture(vocabulary=14, cutoffs=(4, 8), tie_tables=True, tie_projections=True)
    path, tensors = saved_by_torch(of)
    run = tmp_path / "run"
    end = command("convert", "adaptive-span", path, "--out", run, "--data", text, *SMALL_BATCH, *WORDS,
                  "--set", "train.updates=2", "--set", "train.last_updates=0")
    assert end.code == 0, end.err
    assert "they do not tell" in end.out
    assert "no state" in end.out
    again = tmp_path / "again.pt"
    assert command("convert", "adaptive-span", run, "--out", again).code == 0
    back = {name: tensor.numpy() for name, tensor in torch.load(again, weights_only=True).items()}
    assert {f"module.{name}" for name in back} == set(tensors)
    for name, array in back.items():
        assert array.tobytes() == tensors[f"module.{name}"].tobytes(), name
    assert command("generate", run, "--length", 3, "--prompt", "the cat").code == 0
    end = command("train", "--resume", "--out", run)
    assert end.code == 0, end.err
    assert checkpoint.load(run).optimizer.updates == 2
    assert command("eval", run).code == 0


def test_the_optimizers_state_comes_along_or_stays(command, saved_by_torch, tmp_path):
    of = published.Architecture()
    _, tensors = saved_by_torch(of)
    path, tensors = saved_by_torch(of, optimizer=adagrad_state(tensors), scheduler={"last_epoch": 5})
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "run", "--json")
    assert json.loads(end.out)["optimizer"] == {"kind": "adagrad", "updates": 5}
    saved = checkpoint.load(tmp_path / "run")
    assert (saved.optimizer.updates, saved.train_config.optimizer, saved.train_config.learning_rate) == (5, "adagrad", 0.07)
    assert saved.train_config.clip_each
    squares = saved.optimizer.accumulators["squares"]
    assert (squares["positions"] == 0).all()
    assert (squares["input.table"] == 1).all()
    assert (squares["layers.0.attention.span"] == 4).all()
    left = json.loads(command("convert", "adaptive-span", path, "--out", tmp_path / "b", "--no-optimizer", "--json").out)
    assert left["optimizer"] is None
    assert left["passed_over"] == ["iter_no", "optimizer", "scheduler"]
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "c", "--set", "train.optimizer=adam")
    assert (end.code, "--no-optimizer" in end.err) == (2, True)


def test_a_run_becomes_one_file_and_a_run_again(command, trained, tmp_path):
    file = tmp_path / "model.safetensors"
    assert command("convert", "safetensors", trained, "--out", file).code == 0
    again = tmp_path / "again"
    end = command("convert", "safetensors", file, "--out", again, "--json")
    assert end.code == 0, end.err
    before, after = checkpoint.load(trained), checkpoint.load(again)
    assert after.parameters.vector.tobytes() == before.parameters.vector.tobytes()
    assert (after.config, after.train_config, after.vocabulary) == (before.config, before.train_config, before.vocabulary)
    assert json.loads(end.out)["vocabulary"] == 256
    passages = [command("generate", run, "--length", 20).out for run in (trained, again)]
    assert passages[0] == passages[1]


def test_a_second_model_scores_alike_under_either_name(command, trained, tmp_path):
    """Ours, through the published names and back, computes the same."""
    assert command("convert", "adaptive-span", trained, "--out", tmp_path / "a.pt").code == 0
    end = command("convert", "adaptive-span", tmp_path / "a.pt", "--out", tmp_path / "b", "--set", "model.span_ramp=4",
                  "--set", "model.normalizer_epsilon=0", "--set", "model.zero_past=false")
    assert end.code == 0, end.err
    ours, theirs = checkpoint.load(trained), checkpoint.load(tmp_path / "b")
    tokens = np.arange(16).reshape(2, 8)
    losses = [model.forward(of.parameters, of.config, tokens, tokens,
                            model.initial_past(of.config, 2, of.parameters.vector)).loss for of in (ours, theirs)]
    assert losses[0] == losses[1]


def test_what_nothing_tells_is_asked_for(command, tmp_path):
    tensors = published.tensors(published.Architecture(memory=0, feed_forward=6, adaptive_span=False))
    del tensors["key_pe"]
    path = tmp_path / "a.pt"
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, path)
    given, missing = [], []
    for key, value in (("heads", 2), ("span", 5)):
        end = command("convert", "adaptive-span", path, "--out", tmp_path / "run", *given)
        missing.append((end.code, f"expected --set model.{key}=" in end.err))
        given += ["--set", f"model.{key}={value}"]
    assert missing == [(2, True), (2, True)]
    assert not (tmp_path / "run").exists()
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "run", *given, "--json")
    assert end.code == 0, end.err
    assert json.loads(end.out)["assumed"]["heads"] == 2


@pytest.mark.parametrize(("change", "arguments", "message"), [
    (lambda t: t.pop("module.layers.1.norm1.bias"), (), "expected also layers.1.norm1.bias; got, not expected, nothing"),
    (lambda t: t.update({"module.layers.0.gate": torch.ones(1)}), (),
     "expected also nothing; got, not expected, layers.0.gate"),
    (lambda t: t.update({"module.step": 3}), (), "expected nothing but tensors by name, got also step (int)"),
    (lambda t: t.update({"key_pe": torch.ones(1, 4, 5)}), (), "names both with and without `module.`"),
    (lambda t: t.clear(), (), "expected tensors under the names of the published adaptive-span code"),
    (lambda t: None, ("--set", "model.heads=4"), "model.heads: expected 2, as the tensors say, got 4"),
    (lambda t: None, ("--preset", "enwik8"), "as the tensors say"),
    (lambda t: None, ("--preset", "enwik9"), "preset: expected one of"),
    (lambda t: None, ("--set", "model.wide=4"), "unknown key model.wide"),
    (lambda t: None, ("--data", "sample"), "expected a vocabulary of 9, as the model has, got one of"),
    (lambda t: t.update({"module.key_pe": torch.ones(1, 4, 5, dtype=torch.int64)}), ("--data", "sample"), "expected"),
])
def test_what_does_not_fit_is_told_and_nothing_is_written(command, saved_by_torch, tmp_path, change, arguments, message):
    path, _ = saved_by_torch(published.Architecture())
    content = torch.load(path, weights_only=True)
    change(content["model"])
    torch.save(content, path)
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "run", *arguments)
    assert (end.code, end.out, end.err.count("\n")) == (2, "", 1)
    assert message in end.err
    assert not (tmp_path / "run").exists()


def test_files_of_the_wrong_kind(command, trained, tmp_path, monkeypatch):
    plain = tmp_path / "a.safetensors"
    assert command("convert", "safetensors", trained, "--out", plain).code == 0
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    refused = [
        (("adaptive-span", plain, "--out", tmp_path / "x"), "a.safetensors: expected "),
        (("adaptive-span", tmp_path / "list.pt", "--out", tmp_path / "x"), "expected a dict of tensors or with `model`"),
        (("safetensors", tmp_path / "a.pt", "--out", tmp_path / "x"), "expected safetensors"),
        (("safetensors", tmp_path / "absent", "--out", tmp_path / "x"), "nothing of that name"),
        (("safetensors", plain, "--out", trained), "expected a new or empty folder"),
        (("safetensors", trained, "--out", plain), "expected a new file's name"),
        (("safetensors", trained, "--out", tmp_path / "x", "--set", "model.width=3"), "is a run: expected --out alone"),
        (("adaptive-span", tmp_path, "--out", tmp_path / "x"), "expected a checkpoint's folder"),
    ]
    for arguments, message in refused:
        end = command("convert", *arguments)
        assert (end.code, end.err.count("\n")) == (2, 1), end.err
        assert message in end.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("change", "message"), [
    (lambda t, m: t.pop("positions"), "expected also positions; got, not expected, nothing"),
    (lambda t, m: t.update({"other": t["positions"]}), "expected also nothing; got, not expected, other"),
    (lambda t, m: t.update({"positions": t["positions"].T.copy()}), "positions: expected shape (8, 4), got (4, 8)"),
    (lambda t, m: m.pop("config"), "expected metadata `config`"),
    (lambda t, m: m.update(config="[]"), "expected metadata `config`"),
    (lambda t, m: m.update(config=m["config"].replace('"width"', '"wide"')), "unknown key model.wide"),
    (lambda t, m: m.update(vocabulary='{"kind": "byte", "size": 3}'), "vocabulary"),
])
def test_a_safetensors_file_that_was_changed(command, trained, tmp_path, change, message):
    from safetensors.numpy import save_file

    from refimpl.convert.files import read_safetensors

    assert command("convert", "safetensors", trained, "--out", tmp_path / "a").code == 0
    tensors, metadata = read_safetensors(tmp_path / "a")
    change(tensors, metadata)
    save_file(tensors, tmp_path / "b", metadata)
    end = command("convert", "safetensors", tmp_path / "b", "--out", tmp_path / "new")
    assert (end.code, end.err.count("\n")) == (2, 1), end.err
    assert message in end.err
    assert not (tmp_path / "new").exists()


def test_a_disk_that_is_full_leaves_nothing(command, trained, tmp_path, monkeypatch):
    assert command("convert", "safetensors", trained, "--out", tmp_path / "a").code == 0

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "replace", full)
    end = command("convert", "safetensors", tmp_path / "a", "--out", tmp_path / "new")
    assert (end.code, "No space left" in end.err) == (2, True)
    assert not (tmp_path / "new").exists()


def test_the_name_of_a_fetched_text_stays_a_name(command, saved_by_torch, text, store, tmp_path, monkeypatch):
    corpus = open_corpus(DataConfig(str(text), "character", convention="published"), store)
    path, _ = saved_by_torch(published.Architecture(vocabulary=corpus.vocabulary.size))
    monkeypatch.setattr("refimpl.datasets.corpus.named_source", lambda config, store: find_source(str(text), "character"))
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "run", "--data", "enwik8", *SMALL_BATCH,
                  "--set", "data.vocabulary=character")
    assert end.code == 0, end.err
    assert 'path = "enwik8"' in (tmp_path / "run" / "config.toml").read_text()
    assert command("eval", tmp_path / "run").code == 0


@pytest.mark.parametrize("kind", ["adaptive-span", "safetensors"])
def test_a_disk_that_is_full_leaves_no_file(kind, command, saved_by_torch, tmp_path):
    """Held to a real limit, in the files' libraries' own writing."""
    path, _ = saved_by_torch(published.Architecture())
    assert command("convert", "adaptive-span", path, "--out", tmp_path / "run").code == 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        end = command("convert", kind, tmp_path / "run", "--out", tmp_path / "out" / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (end.code, end.err.count("\n")) == (3, 1), end.err
    assert "file: expected a file that can be written, got" in end.err
    assert "File too large" in end.err
    assert not [*(tmp_path / "out").iterdir()]


def test_names_in_a_file_give_a_terminal_no_orders(command, saved_by_torch, tmp_path):
    torch.save({"\x1b]0;name\x07": torch.zeros(3)}, tmp_path / "a.pt")
    end = command("convert", "adaptive-span", tmp_path / "a.pt", "--out", tmp_path / "new")
    assert (end.code, "\x1b" in end.err, r"got \x1b]0;name\x07" in end.err) == (2, False, True)
    path, _ = saved_by_torch(published.Architecture(), **{"\x1b[31mlogger": 1})
    end = command("convert", "adaptive-span", path, "--out", tmp_path / "run")
    assert (end.code, "\x1b" in end.out, r"\x1b[31mlogger" in end.out) == (0, False, True)
