"""The command where all is well: what it writes, prints and leaves in the run's folder."""

import hashlib
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import refimpl
from refimpl import accounting, arrays, checkpoint, model, parameters, runs, settings, workers
from refimpl.computing import computing
from refimpl.config import DataConfig, TrainConfig
from refimpl.datasets.corpus import open_corpus

COMMANDS = (("train",), ("eval",), ("generate",), ("data", "info"), ("info",), ("bench",), ("report",))
RECORD = {"update", "updates", "loss", "bits", "span_penalty", "gradient_norm", "learning_rate", "tokens",
          "tokens_per_second", "seconds", "seconds_left", "clipped", "spans", "span_mean", "span_max", "numpy", "blas",
          "threads", "ranks"}


@pytest.fixture
def train_on(command, text, tiny, tmp_path):
    """train_on("word"): the folder of a run on the text's words."""

    def train(kind, *options):
        end = command("train", "--data", text, "--vocabulary", kind, "--out", tmp_path / kind, *tiny, *options)
        assert end.code == 0, end.err
        return tmp_path / kind

    return train


def strict(text):
    """JSON without the NaN and Infinity that only Python reads."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def log_of(run):
    return [strict(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


def test_the_version_and_the_commands_are_told(command):
    assert refimpl.__version__ in command("--version").out
    told = command("--help")
    assert told.code == 0
    assert all(words[0] in told.out for words in COMMANDS)


@pytest.mark.parametrize("words", [(), *COMMANDS], ids=" ".join)
def test_help_has_an_example(command, words):
    end = command(*words, "--help")
    assert (end.code, end.err) == (0, "")
    examples = [line for line in end.out.splitlines() if line.strip().startswith(" ".join(["refimpl", *words]))]
    assert examples
    if words and words != ("info",):
        assert any(len(line.split()) > len(words) + 1 for line in examples)


def test_without_words_the_help_is_shown_as_it_is_written(command):
    end = command()
    assert (end.out or end.err).splitlines() == command("--help").out.splitlines()


def test_a_group_without_a_command_shows_its_help_or_one_line(command):
    end = command("data")
    shown = end.out or end.err
    assert shown.splitlines() == command("data", "--help").out.splitlines() or (
        end.code == 2 and shown.count("\n") == 1 and "Missing command" in shown)


def test_training_leaves_a_whole_run(command, text, tiny, tmp_path):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--set", "train.evaluate_every=3")
    assert end.code == 0
    run = tmp_path / "run"
    assert sorted(path.name for path in run.iterdir()) == [".lock", "checkpoints", "config.toml", "log.jsonl"]
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert names == {"update-00000003", "update-00000006"}  # what was the best, and the last
    log = log_of(run)
    assert [(record["update"], "valid_bits" in record) for record in log] == [
        (2, False), (3, True), (4, False), (6, False), (6, True)]
    for record in log:
        if "valid_bits" in record:
            assert set(record) == {"update", "valid_loss", "valid_bits", "valid_tokens"}
            assert record["valid_bits"] == pytest.approx(record["valid_loss"] / math.log(2), rel=1e-12)
        else:
            assert set(record) == RECORD
            assert record["tokens"] == record["update"] * 2 * 8
            assert record["updates"] == 6
            assert record["bits"] == pytest.approx(record["loss"] / math.log(2), rel=1e-12)
            assert 0 < record["span_mean"] <= record["span_max"] <= 8
            assert np.shape(record["spans"]) == (1, 2)
            assert np.mean(record["spans"]) == pytest.approx(record["span_mean"], abs=0.05 + 1e-9)
            assert np.max(record["spans"]) == pytest.approx(record["span_max"], abs=0.05 + 1e-9)
            assert 0 <= record["clipped"] <= 1
    assert str(run / "checkpoints" / "update-00000006") in end.out
    assert f"{log[-1]['valid_bits']:.4f} bits per byte" in end.out
    assert "tokens/s" not in end.out


def test_progress_is_on_stderr_and_says_how_it_goes(command, text, tiny, tmp_path):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny)
    lines = end.err.splitlines()
    assert len(lines) == 4  # updates 2, 4, 6 and the validation
    for line in lines[:3]:
        for part in ("loss ", " bits per byte", " tokens/s", "rate 0.003", "span ", "mean", "largest", " left"):
            assert part in line
    assert "6/6" in lines[2]
    assert "validation" in lines[3]


def test_validation_on_the_way_may_take_a_part_of_the_split(command, text, tiny, tmp_path):
    run = tmp_path / "run"
    assert command("train", "--data", text, "--out", run, *tiny, "--set", "train.evaluate_tokens=20").code == 0
    assert log_of(run)[-1]["valid_tokens"] == 19
    more = ("--set", "train.updates=8", "--set", "train.evaluate_tokens=0")
    assert command("train", "--out", run, "--resume", *more).code == 0
    whole = strict(command("eval", run, "--json").out)
    assert log_of(run)[-1]["valid_tokens"] == whole["tokens"] > 19
    assert log_of(run)[-1]["valid_loss"] == pytest.approx(whole["loss"], rel=1e-12)


def test_training_as_json(command, text, tiny, tmp_path):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--json")
    result = strict(end.out)
    assert result["run"] == str(tmp_path / "run")
    assert result["checkpoint"] == str(tmp_path / "run" / "checkpoints" / "update-00000006")
    assert result["update"] == 6
    records = log_of(tmp_path / "run")
    assert result["valid_loss"] == records[-1]["valid_loss"]
    assert result["loss"] == records[-2]["loss"]


def test_the_same_seed_gives_the_same_model(command, text, tiny, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert command("train", "--data", text, "--out", tmp_path / name, *tiny, "--set", f"train.seed={seed}").code == 0
    files = [tmp_path / name / "checkpoints" / "update-00000006" / "parameters.safetensors" for name in "abc"]
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_training_learns(command, text, tiny, tmp_path):
    """The text has twelve words: 60 updates must leave the start, log2 256 = 8 bits, far behind."""
    options = ("--set", "train.updates=60", "--set", "train.learning_rate=0.05", "--set", "train.batch=8")
    assert command("train", "--data", text, "--out", tmp_path / "run", *tiny, *options).code == 0
    log = log_of(tmp_path / "run")
    assert log[0]["bits"] > 7
    assert log[-1]["valid_bits"] < 5


def test_the_text_stays_mapped_and_the_store_is_where_asked(command, text, tiny, tmp_path, store):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--store", tmp_path / "other")
    assert end.code == 0
    assert not store.exists()
    assert len(list((tmp_path / "other").glob("*/train-tokens.bin"))) == 1


def test_a_folder_with_splits(command, tiny, tmp_path):
    (tmp_path / "texts").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "texts" / f"{name}.txt").write_text(f"the {name} split has some words of its own\n" * 3)
    assert command("train", "--data", tmp_path / "texts", "--out", tmp_path / "run", *tiny).code == 0
    splits = ["train", "valid", "test"]
    scores = [strict(command("eval", tmp_path / "run", "--split", split, "--json").out) for split in splits]
    assert len({score["loss"] for score in scores}) == 3
    assert [score["split"] for score in scores] == splits
    size = (tmp_path / "texts" / "test.txt").stat().st_size
    assert scores[2]["tokens"] == size - 1


def test_a_dry_run_counts_and_writes_no_run(command, text, tiny, tmp_path, tree):
    before = tree()
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--dry-run", "--json")
    assert end.code == 0
    assert {name for name in tree() if not name.startswith("store")} == set(before)
    result = strict(end.out)
    assert command("train", "--data", text, "--out", tmp_path / "run", *tiny).code == 0
    config = checkpoint.load(tmp_path / "run").config
    assert result["parameters"]["total"] == parameters.total(config) == sum(result["parameters"]["by_group"].values())
    assert result["parameters"]["by_group"]["input"] == 256 * 8
    assert result["tokens_per_update"] == 2 * 8
    assert result["memory"]["total"] == sum(result["memory"]["by_purpose"].values())
    assert result["memory"]["by_purpose"]["parameters"] == 4 * result["parameters"]["total"]


def test_a_dry_run_as_a_table(command, text, tiny):
    end = command("train", "--data", text, *tiny, "--dry-run")
    rows = {name: value for name, value, *_ in (re.split(r"  +", line) for line in end.out.splitlines())}
    result = strict(command("train", "--data", text, *tiny, "--dry-run", "--json").out)
    assert rows["parameters"] == f"{result['parameters']['total']:,}"
    assert rows["tokens per update"] == "16"
    assert rows["memory, past"].endswith("B")


@pytest.mark.parametrize("name", settings.preset_names())
def test_every_preset_can_be_looked_at(command, name):
    result = strict(command("train", "--preset", name, "--dry-run", "--json").out)
    tables = settings.preset(name)
    config = settings.model_config({"vocabulary": 256, **tables["model"]})
    assert result["parameters"] == accounting.describe(config, TrainConfig(**tables["train"]))["parameters"]
    assert result["tokens_per_update"] == tables["train"]["batch"] * tables["train"]["block"]


def test_a_dry_run_tells_that_an_adaptive_softmax_in_chunks_keeps_no_logits():
    """float32: the textbook's keeps the head's, three tails' columns among them, and at worst those of the widest tail."""
    tables = settings.preset("wikitext103-all-attention")
    config = settings.model_config(tables["model"])
    tokens = tables["train"]["batch"] * tables["train"]["block"]

    def told(attention, **changes):
        train_config = TrainConfig(**tables["train"] | {"attention": attention, "workers": 1})
        return accounting.bytes_by_purpose(replace(config, **changes), train_config)

    plain, in_chunks = told("tiled", cutoffs=(), tie_projections=False), told("tiled")
    scored = 4 * tokens * accounting.ROUNDING
    assert plain["saved"] - in_chunks["saved"] == pytest.approx(scored * 267735, abs=8)
    plain, textbook = told("textbook", cutoffs=(), tie_projections=False), told("textbook")
    assert plain["saved"] - textbook["saved"] == pytest.approx(scored * (267735 - 20003 - 160000), abs=8)
    few, many = (told("tiled", cutoffs=cutoffs) for cutoffs in ((200_000,), (20_000, 40_000, 200_000)))
    assert abs(few["scratch"] - many["scratch"]) < 4 * tokens * 50_000  # though the head has 180,000 words more


def test_the_resolved_settings_train_the_same_model_again(command, trained, text, tmp_path):
    end = command("train", "--config", trained / "config.toml", "--out", tmp_path / "again")
    assert end.code == 0, end.err
    file = "checkpoints/update-00000006/parameters.safetensors"
    assert (trained / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert (trained / "config.toml").read_text() == (tmp_path / "again" / "config.toml").read_text()
    tables = settings.read(trained / "config.toml")
    saved = checkpoint.load(trained)
    assert settings.model_config(tables["model"]) == saved.config
    assert TrainConfig(**tables["train"]) == saved.train_config
    assert tables["data"]["path"] == str(text)


def test_a_run_is_named_after_its_preset_or_file(command, trained, tiny, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("train", "--data", text, *tiny).code == 0
    assert command("train", "--config", trained / "config.toml").code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["config", "laptop"]


def test_words_by_cutoffs_from_the_command_line(train_on):
    run = train_on("word", "--set", "model.cutoffs=[4, 8]", "--set", "model.divisor=2", "--set", "data.unknown=<unk>")
    saved = checkpoint.load(run)
    assert saved.config.cutoffs == (4, 8)
    assert saved.config.vocabulary == 14  # twelve words, <eos>, <unk>


@pytest.mark.parametrize("kind", ["byte", "character", "word"])
def test_evaluation_gives_the_units_of_its_tokens(command, train_on, kind, text):
    run = train_on(kind)
    result = strict(command("eval", run, "--json").out)
    valid = text.read_bytes()
    start, stop = len(valid) * 9 // 10, len(valid) * 95 // 100
    if kind == "word":
        start, stop = (valid.index(b"\n", place - 1) + 1 for place in (start, stop))
    valid = valid[start:stop].decode()
    count = len(valid) if kind != "word" else len(valid.replace("\n", " <eos> ").split())
    assert result["tokens"] == count - 1
    assert result["unit"] == kind
    assert result[f"bits_per_{kind}"] == pytest.approx(result["loss"] / math.log(2), rel=1e-12)
    assert result["updates"] == 6
    assert result["source"] == str(text)
    assert (result["split"], result["protocol"], result["block"]) == ("valid", "every-token", 8)
    assert ("perplexity" in result) == (kind == "word")
    bits_of_all = result["loss"] / math.log(2) * count
    assert result["bits_per_byte"] == pytest.approx(bits_of_all / len(valid), rel=1e-12)  # the text is ASCII
    if kind == "byte":
        assert result["bits_per_character"] == result["bits_per_byte"]
    if kind == "word":
        line_ends = valid.count("\n")  # the first token is a word: every <eos> is a target
        assert result["perplexity"] == pytest.approx(math.exp(result["loss"]), rel=1e-12)
        words = (count - 1 - line_ends) / (count - 1)
        assert result["perplexity_without_eos"] == pytest.approx(math.exp(result["loss"] / words), rel=1e-12)


def test_bits_per_byte_of_wide_characters(command, tiny, tmp_path):
    """Every character takes two bytes, so a byte costs half as many bits."""
    (tmp_path / "wide.txt").write_text("äöüß" * 200, "utf-8")
    options = ("--data", tmp_path / "wide.txt", "--vocabulary", "character", "--out", tmp_path / "run")
    assert command("train", *options, *tiny).code == 0
    result = strict(command("eval", tmp_path / "run", "--json").out)
    assert result["bits_per_byte"] == pytest.approx(result["bits_per_character"] / 2, rel=1e-12)


@pytest.mark.parametrize(("kind", "lines"), [
    ("byte", ["bits per byte"]), ("character", ["bits per character", "bits per byte"]),
    ("word", ["perplexity, <eos> counted", "perplexity per word without <eos>"])])
def test_evaluation_as_a_table(command, train_on, kind, lines):
    run = train_on(kind)
    end = command("eval", run, "--yardsticks")
    result = strict(command("eval", run, "--yardsticks", "--json").out)
    assert (end.code, end.err) == (0, "")
    for line in (*lines, "order-1 count model", "order-2 count model", "order-4 count model"):
        assert line in end.out
    assert f"{result[f'bits_per_{kind}']:.4f} bits per {kind}" in end.out
    assert f"{result['yardsticks']['order-2 count model']:.4f}" in end.out


def test_both_protocols_score_what_they_say(command, trained):
    """By hand from the checkpoint: every token once, weighted; or whole blocks only and the mean of their means."""
    saved, data = checkpoint.load(trained), settings.read(trained / "config.toml")["data"]
    valid = np.asarray(open_corpus(DataConfig(**data), trained.parent / "store").valid, np.int64)
    once = strict(command("eval", trained, "--json", "--streams", 1, "--block", len(valid)).out)
    past = model.initial_past(saved.config, 1, saved.parameters.vector)
    out = model.forward(saved.parameters, saved.config, valid[None, :-1], valid[None, 1:], past)
    assert once["tokens"] == len(valid) - 1
    assert once["loss"] == pytest.approx(float(out.token_loss.mean(dtype="float64")), rel=1e-6)  # float32 model

    published = strict(command("eval", trained, "--json", "--protocol", "published", "--streams", 3, "--block", 7).out)
    rows = valid[: len(valid) // 3 * 3].reshape(3, -1)
    past, means = model.initial_past(saved.config, 3, saved.parameters.vector), []
    for low in range(0, rows.shape[1] - 7, 7):
        out = model.forward(saved.parameters, saved.config, rows[:, low : low + 7], rows[:, low + 1 : low + 8], past)
        past = out.past
        means.append(float(out.token_loss.mean(dtype="float64")))
    assert published["tokens"] == 3 * 7 * len(means) < len(valid) - 1
    assert published["protocol"] == "published"
    assert published["loss"] == pytest.approx(sum(means) / len(means), rel=1e-6)


@pytest.mark.parametrize(("kind", "block", "past"), [("byte", 80, 2100), ("word", 64, 640)])
def test_transformer_xls_protocol_by_its_own_values(command, train_on, kind, block, past):
    """Ten rows; the learned distances of this model, 8 of them, are the farthest that it tells apart."""
    run = train_on(kind)
    result = strict(command("eval", run, "--protocol", "transformer-xl", "--json").out)
    assert [result[key] for key in ("streams", "block", "past", "clamp")] == [10, block, past, 8]
    once = strict(command("eval", run, "--json").out)
    assert [once[key] for key in ("streams", "block", "past", "clamp")] == [8, 8, 8, None]
    assert result["tokens"] == 10 * ((once["tokens"] + 1) // 10 - 1)
    assert "conventions" in result
    asked = strict(command("eval", run, "--streams", 2, "--block", 5, "--past", 20, "--clamp", 3, "--json").out)
    assert [asked[key] for key in ("streams", "block", "past", "clamp")] == [2, 5, 20, 3]
    assert "clamped to 3" in command("eval", run, "--past", 20, "--clamp", 3).out


def test_the_interval_is_told(command, trained):
    """The training split of 1.5 kB: every measure lies within its own interval, as a table too."""
    result = strict(command("eval", trained, "--split", "train", "--json").out)
    interval = result["interval"]
    assert (interval["level"], interval["method"], interval["seed"]) == (0.95, "circular block bootstrap", 0)
    for name in ("loss", "bits_per_character", "bits_per_byte"):
        low, high = interval[name]
        assert low < result[name] < high < low * 1.2
    low, high = interval["bits_per_byte"]
    assert f"95 %: {low:.4f} to {high:.4f}" in command("eval", trained, "--split", "train").out
    short = strict(command("eval", trained, "--streams", 1, "--block", 99, "--json").out)
    assert (short["tokens"] < 9 * 16, short["interval"]) == (True, None)  # so few say nothing of their spread


def test_a_past_beyond_the_learned_distances_is_refused(command, trained):
    end = command("eval", trained, "--past", 9)
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert "--past: expected at most 8" in end.err
    assert "--clamp" in end.err


def test_evaluation_of_another_text_with_the_models_words(command, train_on, tmp_path):
    """The other text has other words in another order: it is read with the model's, an unknown one as <unk>."""
    run = train_on("word", "--set", "data.unknown=<unk>")
    (tmp_path / "other.txt").write_text("home cat a zebra\n" * 60)
    result = strict(command("eval", run, "--data", tmp_path / "other.txt", "--json").out)
    assert result["tokens"] == 3 * 5 - 1
    assert result["loss"] != strict(command("eval", run, "--json").out)["loss"]


def test_evaluation_of_another_text(command, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_bytes(bytes(range(256)) * 4)
    mine, others = (strict(command("eval", trained, "--json", *data).out) for data in ((), ("--data", other)))
    assert others["source"] == str(other)
    assert others["text_sha256"] != mine["text_sha256"]
    assert others["loss"] != mine["loss"]


def test_a_checkpoints_own_folder_will_do(command, trained):
    folder = trained / "checkpoints" / "update-00000006"
    assert strict(command("eval", folder, "--json").out)["loss"] == strict(command("eval", trained, "--json").out)["loss"]
    assert command("generate", folder, "--length", 5).out == command("generate", trained, "--length", 5).out


def test_a_checkpoint_named_from_beside_it(command, trained, monkeypatch):
    loss = strict(command("eval", trained, "--json").out)["loss"]
    for folder, name in (("checkpoints", "update-00000006"), ("checkpoints/update-00000006", "."), (".", ".")):
        monkeypatch.chdir(trained / folder)
        end = command("eval", name, "--json")
        assert end.code == 0, end.err
        assert strict(end.out)["loss"] == loss


def test_a_damaged_newest_checkpoint_is_passed_over_and_told(command, text, tiny, tmp_path):
    run = tmp_path / "run"
    assert command("train", "--data", text, "--out", run, *tiny, "--set", "train.checkpoint_every=3").code == 0
    damaged = run / "checkpoints" / "update-00000006" / "parameters.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    for words in (("eval", run), ("generate", run, "--length", 3), ("train", "--out", run, "--resume")):
        end = command(*words)
        assert end.code == 0
        told = [line for line in end.err.splitlines() if "passed over" in line]
        assert len(told) == 1, words
        assert "update-00000006" in told[0]
        assert "update-00000003" in told[0]


@pytest.mark.parametrize(("kind", "prompt"), [("byte", "the c"), ("character", "the c"), ("word", "the cat")])
def test_generation(command, train_on, kind, prompt):
    run = train_on(kind, "--set", "train.updates=20")
    first = command("generate", run, "--prompt", prompt, "--length", 40, "--seed", 3)
    assert first.code == 0
    assert re.fullmatch(r"40 tokens, [\d,]+ tokens/s\n", first.err)
    assert first.out.startswith(prompt)
    assert first.out == command("generate", run, "--prompt", prompt, "--length", 40, "--seed", 3).out
    assert first.out != command("generate", run, "--prompt", prompt, "--length", 40, "--seed", 4).out
    drawn = first.out.removeprefix(prompt)
    if kind == "character":
        assert len(drawn) == 40 + 1  # and the newline at the end
    if kind == "word":
        assert drawn[0].isspace()  # the prompt's last word stays a word of its own
        words = drawn.rstrip(" ").removesuffix("\n").replace("\n", " <eos> ").split()
        assert len(words) in (39, 40)  # a last <eos> and the newline after it look alike
    result = strict(command("generate", run, "--prompt", prompt, "--length", 40, "--seed", 3, "--json").out)
    assert result["prompt"] == prompt
    assert result["passages"] == [{"prompt": prompt, "text": result["text"]}]
    assert (prompt + result["text"]).strip() == first.out.strip()


@pytest.mark.parametrize("prompt", ["the ", "the cat\n", "the\tcat"])
def test_a_prompt_of_words_keeps_its_white_space(command, train_on, prompt):
    run = train_on("word")
    drawn = command("generate", run, "--prompt", prompt, "--length", 20, "--seed", 1).out.removeprefix(prompt)
    assert drawn[0] in (" ", "\n") if prompt.endswith("t") else drawn[0] != " "
    assert "  " not in drawn


def test_generated_bytes_are_as_many_as_asked(command, trained):
    """Temperature 0 and top-k 1 take the likeliest token, so both are the same text whatever the seed."""
    greedy = command("generate", trained, "--length", 30, "--temperature", 0, "--seed", 1).out
    assert greedy == command("generate", trained, "--length", 30, "--top-k", 1, "--seed", 2).out
    none = command("generate", trained, "--length", 0, "--prompt", "ab")
    assert (none.out, none.err) == ("ab\n", "")


@pytest.mark.parametrize("kind", ["byte", "character", "word"])
def test_several_prompts_go_on_as_each_would_alone(command, train_on, tmp_path, kind):
    """Prompt number i with a seed higher by i; prompts from options or from a file's lines, blank space kept."""
    run, prompts = train_on(kind, "--set", "train.updates=20"), ["the cat sat ", "a", "dog ran"]
    (tmp_path / "prompts.txt").write_bytes(("\r\n".join(prompts) + "\n").encode())
    options = ("--length", 15, "--seed", 3)
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    end = command("generate", run, *words, *options, "--json")
    passages = strict(end.out)["passages"]
    assert end.err.startswith("45 tokens, ")
    for row, prompt in enumerate(prompts):
        alone = strict(command("generate", run, "--prompt", prompt, "--length", 15, "--seed", 3 + row, "--json").out)
        assert passages[row] == {"prompt": prompt, "text": alone["text"]}
    read = command("generate", run, "--prompts", tmp_path / "prompts.txt", *options, "--json")
    assert strict(read.out)["passages"] == passages
    told = command("generate", run, *words, *options).out
    assert told == "\n\n".join(passage["prompt"] + passage["text"] for passage in passages) + "\n"


def test_words_are_written_as_they_would_be_read(command, train_on, text):
    """A passage of words, read again, has the words that were drawn: one space between words, none at a line's end."""
    run = train_on("word", "--set", "train.updates=40", "--set", "train.learning_rate=0.05")
    drawn = strict(command("generate", run, "--length", 60, "--json").out)["text"]
    assert set(drawn.split()) <= set(text.read_text().split())
    assert "\n" in drawn
    assert " \n" not in drawn
    assert "\n " not in drawn
    assert len(drawn.rstrip(" ").replace("\n", " <eos> ").split()) == 60


@pytest.mark.parametrize("kind", ["byte", "character", "word"])
def test_what_a_text_holds(command, text, kind):
    result = strict(command("data", "info", text, "--vocabulary", kind, "--json").out)
    content = text.read_bytes()
    assert result["sha256"] == hashlib.sha256(content).hexdigest()
    assert sum(result["bytes"].values()) == len(content)
    sizes = {"byte": 256, "character": len(set(content.decode())), "word": 13}
    assert result["vocabulary"] == {"kind": kind, "size": sizes[kind]}
    counts = {"byte": len(content), "character": len(content), "word": 60 * 8}
    assert sum(result["tokens"].values()) == counts[kind]
    table = command("data", "info", text, "--vocabulary", kind).out
    assert result["sha256"] in table
    for split in ("train", "valid", "test"):
        row = next(line for line in table.splitlines() if line.startswith(split))
        assert row.split()[1:3] == [f"{result['bytes'][split]:,}", f"{result['tokens'][split]:,}"]


def test_what_the_sample_holds(command):
    result = strict(command("data", "info", "--json").out)
    assert result["source"] == "sample"
    assert sum(result["bytes"].values()) > 100_000


def test_the_share_of_unknown_words(command, tmp_path):
    (tmp_path / "rare.txt").write_text("a b a b rare\n" * 1 + "a b a b a\n" * 60)
    result = strict(command("data", "info", tmp_path / "rare.txt", "--vocabulary", "word", "--set", "data.minimum_count=2",
                            "--json").out)
    assert result["unknown_share"]["train"] == pytest.approx(1 / result["tokens"]["train"])
    assert result["unknown_share"]["valid"] == 0


def test_what_is_installed(command):
    result = strict(command("info", "--json").out)
    assert result["refimpl"] == refimpl.__version__
    assert result["numpy"] == np.__version__
    assert result["presets"] == settings.preset_names()
    table = command("info")
    assert (table.code, table.err) == (0, "")
    for name in settings.preset_names():
        assert name in table.out


def test_a_time_limit_ends_with_a_checkpoint_and_training_goes_on_from_it(command, text, tiny, tmp_path):
    """A limit that the first update already exceeds."""
    run = tmp_path / "run"
    end = command("train", "--data", text, "--out", run, *tiny, "--time-limit", "1e-9", "--json")
    assert end.code == 75
    assert strict(end.out)["update"] == 1
    assert checkpoint.load(run).optimizer.updates == 1
    assert command("train", "--out", run, "--resume").code == 0
    assert checkpoint.load(run).optimizer.updates == 6


def test_resuming_a_finished_run_with_more_updates(command, trained, text, tiny, tmp_path):
    """6 updates and then 6 more are 12 updates, to the bit; without more there is nothing to do."""
    whole = tmp_path / "whole"
    assert command("train", "--data", text, "--out", whole, *tiny, "--set", "train.updates=12").code == 0
    again = command("train", "--out", trained, "--resume")
    assert again.code == 0
    assert "update-00000006" in again.out
    assert command("train", "--out", trained, "--resume", "--set", "train.updates=12").code == 0
    name = "checkpoints/update-00000012"
    for file in ("parameters", "optimizer", "past"):
        assert (trained / name / f"{file}.safetensors").read_bytes() == (whole / name / f"{file}.safetensors").read_bytes()
    assert 'updates = 12' in (trained / "config.toml").read_text()
    assert [record["update"] for record in log_of(trained) if "loss" in record] == [2, 4, 6, 8, 10, 12]


def test_a_run_finds_its_text_from_any_folder(command, text, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(text.parent)
    run = tmp_path / "run"
    assert command("train", "--data", text.name, "--out", run, *tiny).code == 0
    assert command("train", "--data", text.name, "--out", run, "--resume", "--set", "train.updates=8").code == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    end = command("eval", run)
    assert end.code == 0, end.err


@pytest.mark.parametrize("name", ["ünï.txt", "notes 📓.txt", 'quote".txt', "back\\slash.txt", "tab\there.txt"])
def test_any_file_name(command, text, tiny, tmp_path, name):
    text.rename(tmp_path / name)
    assert command("train", "--data", tmp_path / name, "--out", tmp_path / "run", *tiny).code == 0
    end = command("eval", tmp_path / "run", "--json")
    assert end.code == 0, end.err
    assert strict(end.out)["source"] == str(tmp_path / name)


def test_checkpoints_on_the_way_are_kept_as_many_as_asked(command, text, tiny, tmp_path):
    options = ("--set", "train.checkpoint_every=1", "--set", "train.keep_checkpoints=3")
    assert command("train", "--data", text, "--out", tmp_path / "run", *tiny, *options).code == 0
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["update-00000004", "update-00000005", "update-00000006"]


@pytest.mark.parametrize("option", [("model.memory=0", "model.feed_forward=16", "model.attend_self=true"),
                                    ("model.norm=pre", "model.positions=none"), ("model.adaptive_span=false",),
                                    ("train.dtype=float64", "train.optimizer=adagrad", "train.clip_each=true"),
                                    ("train.workers=2", "model.dropout=0.2", "model.embedding_dropout=0.1"),
                                    ("model.zero_past=true", "train.optimizer=sgd", "train.momentum=0.9")])
def test_models_of_every_kind_train_resume_evaluate_and_write(command, text, tiny, tmp_path, option):
    run, chosen = tmp_path / "run", [word for value in option for word in ("--set", value)]
    assert command("train", "--data", text, "--out", run, *tiny, *chosen).code == 0
    assert command("train", "--out", run, "--resume", "--set", "train.updates=8").code == 0
    assert strict(command("eval", run, "--json").out)["updates"] == 8
    assert len(command("generate", run, "--length", 12).out) > 0
    spans = ["span_mean" in record for record in log_of(run) if "loss" in record]
    assert all(spans) == any(spans) == ("model.adaptive_span=false" not in option)


def test_results_are_json_even_when_the_model_is_lost(train_on, command):
    """A loss beyond 710 nats has no finite perplexity in float64, but log and --json stay JSON for everyone."""
    values = ("train.optimizer=sgd", "train.clip=0", "train.learning_rate=1e5", "train.updates=1")
    run = train_on("word", *(word for value in values for word in ("--set", value)))
    assert log_of(run)[-1]["valid_loss"] > 710
    result = strict(command("eval", run, "--json").out)
    assert result["loss"] > 710
    assert command("eval", run).code == 0


@pytest.mark.parametrize("words", [("-m", "refimpl"), ("-c", "from refimpl.cli import main; main()")])
def test_as_a_process(words, text, tiny, tmp_path):
    environment = {**os.environ, "REFIMPL_STORE": str(tmp_path / "store")}

    def run(*arguments):
        return subprocess.run([sys.executable, *words, *map(str, arguments)], capture_output=True, encoding="utf-8",
                              env=environment, cwd=tmp_path, check=False)

    trained = run("train", "--data", "text.txt", "--out", "run", *tiny, "--json")
    assert trained.returncode == 0, trained.stderr
    assert strict(trained.stdout)["checkpoint"] == os.path.join("run", "checkpoints", "update-00000006")
    assert len(trained.stderr.splitlines()) == 4
    passage = run("generate", "run", "--length", 20)
    assert passage.returncode == 0
    assert re.fullmatch(r"20 tokens, [\d,]+ tokens/s\n", passage.stderr)
    assert len(passage.stdout) > 10
    assert run("eval", "nothing").returncode == 2


def test_a_reader_that_has_had_enough_is_no_error(trained):
    """`refimpl generate ... | head -c 1`: more text than a pipe holds, to a reader that is gone."""
    process = subprocess.Popen([sys.executable, "-m", "refimpl", "generate", str(trained), "--length", "5000"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.read(1)
    process.stdout.close()
    complaints = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), complaints) == (0, b"")


def test_a_runs_own_text_is_encoded_once(command, trained, store):
    assert command("eval", trained).code == 0
    assert len(list(store.iterdir())) == 1


def test_a_run_that_its_time_limit_ended_says_so(command, text, tiny, tmp_path):
    end = command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--time-limit", 1e-9)
    assert end.code == 75  # a scheduler's script goes by it
    assert end.err.splitlines()[-1].startswith("the time limit came at update 1 of 6; wrote ")
    assert "--resume" in end.err


def test_a_garbled_log_does_not_keep_a_run_from_going_on(command, trained):
    log = trained / "log.jsonl"
    before = log.read_text()
    log.write_text(before + '{"update": 99}\nnot json\n{"upd')
    assert command("train", "--out", trained, "--resume", "--set", "train.updates=8").code == 0
    assert log.read_text().startswith(before)
    assert [record["update"] for record in log_of(trained)] == [2, 4, 6, 6, 8, 8]


def test_threads_hold_for_a_command_and_are_recorded(command, text, tiny, tmp_path):
    before = arrays.available_cores(), computing()
    assert command("train", "--data", text, "--out", tmp_path / "run", *tiny, "--threads", 3).code == 0
    assert (arrays.available_cores(), computing()) == before
    held = {**before[1], "threads": 3}
    assert checkpoint.load(tmp_path / "run").progress["computing"] == held
    assert all(held.items() <= record.items() for record in log_of(tmp_path / "run") if "loss" in record)
    for words in (("eval", tmp_path / "run"), ("generate", tmp_path / "run", "--length", 3)):
        assert command(*words, "--threads", 1).code == 0
        assert command(*words, "--threads", 0).code == 2


def test_workers_are_as_many_as_threads_unless_said(command, text, tiny, tmp_path, monkeypatch):
    """Rows in `workers` parts, whatever the threads; 0 is one part for each thread. At most so many run at a time."""
    seen = []
    monkeypatch.setattr(workers, "map_in_threads",
                        lambda compute, shares, count: seen.append((len(shares), count)) or list(map(compute, shares)))
    for name, count, threads in (("a", 0, 2), ("b", 2, 1), ("c", 2, 8), ("d", 0, 1)):
        options = ("--set", "train.updates=1", "--set", f"train.workers={count}", "--threads", threads)
        assert command("train", "--data", text, "--out", tmp_path / name, *tiny, *options).code == 0
    assert seen == [(2, 2), (2, 1), (2, 2)]


def test_workers_give_the_same_bits_on_any_number_of_threads(command, text, tiny, tmp_path):
    for threads in (1, 2):
        options = ("--set", "train.workers=2", "--threads", threads)
        assert command("train", "--data", text, "--out", tmp_path / str(threads), *tiny, *options).code == 0
    file = "checkpoints/update-00000006/parameters.safetensors"
    assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "2" / file).read_bytes()


def test_a_run_that_goes_on_with_other_kernels_or_threads_says_so_in_one_line(command, trained, monkeypatch):
    def resumed(*options):
        updates = checkpoint.load(trained).optimizer.updates + 1
        end = command("train", "--out", trained, "--resume", "--set", f"train.updates={updates}", *options)
        assert end.code == 0, end.err
        return [line for line in end.err.splitlines() if "same bits" in line]

    now = computing()
    assert resumed() == []
    assert resumed("--threads", 7) == ["refimpl: goes on, no longer to the same bits as without the stop: threads "
                                       f"{now['threads']} before, 7 now"]
    assert resumed("--threads", 7) == []
    monkeypatch.setattr(runs, "computing", lambda ranks: {**now, "threads": 7, "blas": "openblas 9 Zen"})
    assert resumed("--threads", 7)[0].endswith(f"blas {now['blas']} before, openblas 9 Zen now")
    assert [record["threads"] for record in log_of(trained) if "loss" in record][-3:] == [7, 7, 7]


def test_a_checkpoint_that_does_not_know_its_kernels_goes_on_quietly(command, trained):
    saved = checkpoint.load(trained)
    del saved.progress["computing"]
    checkpoint.save(trained, saved)
    end = command("train", "--out", trained, "--resume", "--set", "train.updates=7")
    assert end.code == 0
    assert "same bits" not in end.err
    assert checkpoint.load(trained).progress["computing"] == computing()
