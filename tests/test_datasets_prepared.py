"""Prepared texts: what `data prepare` writes, what is read from it, and every damage told."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from refimpl.config import DataConfig
from refimpl.datasets import encoding
from refimpl.datasets.corpus import open_corpus, prepare, with_defaults
from refimpl.datasets.prepared import SUMS, read_prepared
from refimpl.datasets.published import fetched_folder
from refimpl.errors import InputError

FILES = ["SHA256SUMS", "prepared.json", "test-tokens.bin", "train-tokens.bin", "valid-tokens.bin"]
TEXTS = {"train.txt": "b a\n\nc a b\nd", "valid.txt": "a b\nc", "test.txt": "d d\n"}


@pytest.fixture
def texts(tmp_path):
    place = tmp_path / "text"
    place.mkdir()
    for name, text in TEXTS.items():
        (place / name).write_bytes(text.encode())
    return place


@pytest.fixture
def prepared(texts, tmp_path):
    """Words with three numbers of the larger kind each, so that a byte's flip may leave the vocabulary."""
    prepare(DataConfig(str(texts), "word"), tmp_path / "no store", tmp_path / "prepared")
    return tmp_path / "prepared"


def rehashed(folder, name="prepared.json"):
    """The folder's sums, made right again after a change: what an error in the content itself is then told by."""
    lines = [line.split("  ") for line in (folder / SUMS).read_text().splitlines()]
    (folder / SUMS).write_text("".join(
        f"{hashlib.sha256((folder / file).read_bytes()).hexdigest() if file == name else value}  {file}\n"
        for value, file in lines))


def test_what_is_written(prepared, texts, tmp_path):
    assert sorted(path.name for path in prepared.iterdir()) == FILES
    assert not (tmp_path / "no store").exists()
    meaning = json.loads((prepared / "prepared.json").read_text())
    assert meaning == {
        "format": 2, "source": str(texts), "sha256": hashlib.sha256("".join(TEXTS.values()).encode()).hexdigest(),
        "conventions": {"vocabulary": "word", "convention": "words", "numbering": "frequency", "ties": "first",
                        "minimum_count": 1, "unknown": "error"},
        "bytes": {"train": 12, "valid": 5, "test": 4}, "tokens": {"train": 10, "valid": 5, "test": 3},
        "unknown_tokens": {"train": 0, "valid": 0, "test": 0}, "dtype": "|u1",
        "vocabulary": {"kind": "word", "symbols": ["<eos>", "b", "a", "c", "d"], "unknown": "error", "newline": "<eos>"},
        "counts": {"train": [4, 2, 2, 1, 1], "valid": [2, 1, 1, 1, 0], "test": [1, 0, 0, 0, 2]}}
    assert np.fromfile(prepared / "valid-tokens.bin", np.uint8).tolist() == [2, 1, 0, 3, 0]
    for line in (prepared / SUMS).read_text().splitlines():
        value, name = line.split("  ")
        assert hashlib.sha256((prepared / name).read_bytes()).hexdigest() == value


@pytest.mark.parametrize(("count", "dtype"), [(200, "|u1"), (300, "<u2"), (66_000, "<i4")])
def test_the_smallest_numbers_that_hold_the_vocabulary(tmp_path, count, dtype):
    words = " ".join(map(str, range(count)))
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(words)
    corpus = prepare(DataConfig(str(tmp_path), "word"), tmp_path, tmp_path / "prepared")
    assert corpus.train.dtype == np.dtype(dtype)
    assert corpus.vocabulary.decode(corpus.test[-2:-1]) == str(count - 1)
    assert corpus.counts == (1,) * (count + 1)


def test_it_is_opened_in_place_of_the_text(prepared, texts, tmp_path):
    text = open_corpus(DataConfig(str(texts), "word"), tmp_path / "store")
    shutil.rmtree(texts)
    corpus = open_corpus(DataConfig(str(prepared), "word"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    for name in ("train", "valid", "test"):
        assert getattr(corpus, name).tolist() == getattr(text, name).tolist()
        assert isinstance(getattr(corpus, name), np.memmap)
    assert {**corpus.describe(), "source": str(texts)} == text.describe()
    assert corpus.source == str(prepared)
    assert corpus.folder == prepared


def test_settings_left_open_are_those_of_the_prepared_text(texts, tmp_path):
    config = DataConfig(str(texts), "character", "", 1, "error", "published", "appearance")
    prepare(config, tmp_path, tmp_path / "prepared")
    values = with_defaults({"path": str(tmp_path / "prepared")})
    assert values == {"path": str(tmp_path / "prepared"), "vocabulary": "character", "convention": "published",
                      "numbering": "appearance", "ties": "reversed"}
    assert with_defaults({**values, "convention": "transformer-xl"})["convention"] == "transformer-xl"
    assert with_defaults({"path": str(texts)}) == {"path": str(texts)}
    assert with_defaults({}) == {}
    other = {"path": str(tmp_path / "prepared"), "vocabulary": "byte"}
    assert with_defaults(other) == other
    assert with_defaults({"path": "text8"}) == {"path": "text8", "vocabulary": "character"}


@pytest.mark.parametrize(("config", "message"), [
    ({"vocabulary": "byte"}, "expected data.vocabulary 'word', as the text was prepared, got 'byte'"),
    ({"convention": "published"}, "expected data.convention 'words', as the text was prepared, got 'published'"),
    ({"ties": "reversed"}, "expected data.ties 'first'"),
    ({"numbering": "appearance"}, "expected data.numbering 'frequency'"),
    ({"minimum_count": 2}, "expected data.minimum_count 1"),
    ({"unknown": "<unk>"}, "expected data.unknown 'error'"),
])
def test_other_conventions_than_it_has(prepared, tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        open_corpus(DataConfig(str(prepared), **{"vocabulary": "word", **config}), tmp_path)


def test_another_vocabulary_than_the_models(prepared, texts, tmp_path):
    config = DataConfig(str(prepared), "word")
    own = open_corpus(config, tmp_path).vocabulary
    assert open_corpus(config, tmp_path, own).vocabulary == own
    (texts / "train.txt").write_text("d c b a a a e")
    other = open_corpus(DataConfig(str(texts), "word"), tmp_path / "store").vocabulary
    with pytest.raises(InputError, match=r"the model's vocabulary of 6, got one prepared with its own of 5 \(name the text"):
        open_corpus(config, tmp_path, other)


@pytest.mark.parametrize("name", FILES)
def test_every_bit_counts(prepared, name):
    """Not one flipped bit, anywhere in a folder, passes."""
    content = (prepared / name).read_bytes()
    places = range(len(content)) if len(content) < 1000 else range(0, len(content), 7)
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        (prepared / name).write_bytes(flipped)
        with pytest.raises(InputError, match="prepared") as refusal:
            read_prepared(prepared)
        assert "\n" not in str(refusal.value)
    (prepared / name).write_bytes(content)
    read_prepared(prepared)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["missing", "empty", "shorter", "longer", "folder"])
def test_files_that_are_no_longer_what_they_were(prepared, name, change, tmp_path):
    path = prepared / name
    content = path.read_bytes()
    path.unlink()
    if change == "folder":
        path.mkdir()
    elif change != "missing":
        path.write_bytes({"empty": b"", "shorter": content[:-1], "longer": content + b"\0"}[change])
    with pytest.raises(InputError, match="prepared"):
        open_corpus(DataConfig(str(prepared), "word"), tmp_path)


def test_what_is_left_of_it_is_no_text(prepared, tmp_path):
    """Without what says that it was prepared, the tokens are still not taken for a text of bytes."""
    for name in ("SHA256SUMS", "prepared.json"):
        (prepared / name).unlink()
    with pytest.raises(InputError, match=r"SHA256SUMS: expected a prepared text's file, got No such file"):
        open_corpus(DataConfig(str(prepared)), tmp_path)


def altered(*path_and_value):
    *path, value = path_and_value

    def alter(meaning):
        place = meaning
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return meaning

    return alter


@pytest.mark.parametrize("change", [
    altered("format", 1), altered("format", "2"), lambda _: [], lambda _: "text", lambda _: None, altered("more", 1),
    lambda meaning: {key: value for key, value in meaning.items() if key != "bytes"},
    altered("vocabulary", "symbols", ["<eos>"]), altered("vocabulary", "kind", "letter"), altered("vocabulary", []),
    altered("conventions", {}), altered("conventions", "vocabulary", "byte"), altered("conventions", "ties", 3),
    altered("conventions", "path2", "x"), altered("conventions", 7), altered("bytes", "train", "12"), altered("bytes", []),
    altered("tokens", "train", 11), altered("tokens", "train", True), altered("tokens", "valid", -5),
    altered("counts", {}), altered("counts", "train", [10]), altered("counts", "train", None),
    altered("counts", "valid", [2, 1, 1, 1, 1]), altered("counts", "valid", [2, 1, 1, 1.0, 0]),
    altered("counts", "train", 0, float("inf")), altered("counts", "valid", [3, 2, 1, -1, 0]),
    altered("unknown_tokens", "test", -1), altered("dtype", "<u2"),
])
def test_folders_that_say_what_cannot_be(prepared, change, tmp_path):
    """Their sums are right: someone else's folder, or another version's."""
    path = prepared / "prepared.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    rehashed(prepared)
    with pytest.raises(InputError, match=r"prepared\.json: expected a prepared text|-tokens\.bin: expected") as refusal:
        open_corpus(DataConfig(str(prepared), "word"), tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b'{"format": 2}', b"NaN"])
def test_folders_that_say_nothing(prepared, content, tmp_path):
    (prepared / "prepared.json").write_bytes(content)
    rehashed(prepared)
    with pytest.raises(InputError, match=r"prepared\.json: expected a prepared text"):
        read_prepared(prepared)
    with pytest.raises(InputError, match=r"prepared\.json: expected a prepared text"):
        with_defaults({"path": str(prepared)})


@pytest.mark.parametrize(("count", "value"), [(200, 201), (300, 301), (66_000, 66_001), (66_000, -1)])
def test_tokens_outside_the_vocabulary(tmp_path, count, value):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(" ".join(map(str, range(count))))
    folder = tmp_path / "prepared"
    corpus = prepare(DataConfig(str(tmp_path), "word"), tmp_path, folder)
    tokens = np.array(corpus.valid)
    tokens[count // 2] = value
    tokens.tofile(folder / "valid-tokens.bin")
    rehashed(folder, "valid-tokens.bin")
    told = value if value > 0 else 2**32 - 1
    with pytest.raises(InputError, match=f"tokens below {count + 1:,}, .* bytes and {told:,}$"):
        read_prepared(folder)


@pytest.mark.parametrize("name", FILES)
def test_files_without_end_and_pipes_are_not_read(prepared, name):
    """A terabyte that takes no room; a pipe, whose writer would be waited for."""
    content = (prepared / name).read_bytes()
    with (prepared / name).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match="got 1099511627776 bytes: the file was altered"):
        read_prepared(prepared)
    (prepared / name).unlink()
    os.mkfifo(prepared / name)
    with pytest.raises(InputError, match="got another kind of file"):
        read_prepared(prepared)
    (prepared / name).unlink()
    (prepared / name).write_bytes(content)
    read_prepared(prepared)


def test_lines_of_the_sums_in_another_order(prepared):
    lines = (prepared / SUMS).read_text().splitlines(keepends=True)
    (prepared / SUMS).write_text("".join(reversed(lines)))
    with pytest.raises(InputError, match="SHA256SUMS: expected a line with SHA-256 for each of"):
        read_prepared(prepared)


def test_a_vocabulary_too_large_to_be_read_again(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "LARGEST", 100)
    with pytest.raises(InputError, match=r"takes at most 100 bytes, got 5 symbols in .*minimum_count"):
        prepare(DataConfig(str(texts), "word"), tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_places_that_are_taken(prepared, texts, tmp_path):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    with pytest.raises(InputError, match="prepared: expected a new or empty folder for the prepared text, got one that"):
        prepare(DataConfig(str(texts)), tmp_path, prepared)
    with pytest.raises(InputError, match="expected a new or empty folder"):
        prepare(DataConfig(str(texts)), tmp_path, texts / "train.txt")
    with pytest.raises(InputError, match="prepared: expected a text to prepare, got one that is prepared already"):
        prepare(DataConfig(str(prepared), "word"), tmp_path, tmp_path / "again")
    with pytest.raises(InputError, match=r"train\.txt: expected a folder that can be written, got (Not a dir|File exists)"):
        prepare(DataConfig(str(texts)), tmp_path, texts / "train.txt" / "deeper")
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == before
    (tmp_path / "empty").mkdir()
    assert prepare(DataConfig(str(texts)), tmp_path, tmp_path / "empty").sizes["train"] == 12


def test_a_full_disk_leaves_nothing(texts, tmp_path, monkeypatch):
    original = Path.open

    def full(path, mode="r", *rest):
        if mode == "wb" and path.name == "valid-tokens.bin":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(path, mode, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        with pytest.raises(InputError, match="expected a folder that can be written, got No space left on device"):
            prepare(DataConfig(str(texts)), tmp_path, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text"]


@pytest.mark.parametrize("name", ["sample", "text8"])
def test_names_of_texts_are_no_folders(texts, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    prepare(DataConfig(str(texts)), tmp_path, tmp_path / name)
    assert open_corpus(DataConfig(f"./{name}"), tmp_path / "store").sizes["train"] == 12
    if name == "sample":
        assert open_corpus(DataConfig(name), tmp_path / "store").sizes["train"] > 1000
    else:
        with pytest.raises(InputError, match="text8: expected its text in"):
            open_corpus(DataConfig(name), tmp_path / "store")


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(InputError, match="expected a file or folder that can be read, got File name too long"):
        open_corpus(DataConfig("x" * 5000), tmp_path)


def test_texts_that_were_fetched_have_names(texts, tmp_path, monkeypatch):
    store = tmp_path / "store"
    monkeypatch.setattr("refimpl.datasets.corpus.check_splits", lambda *_: None)  # a short text in the published one's place
    with pytest.raises(InputError, match=r"text8: expected its text in .*store/texts/text8, got nothing there"):
        open_corpus(DataConfig("text8", "character"), store)
    shutil.copytree(texts, fetched_folder("text8", store))
    corpus = open_corpus(DataConfig("text8", "character"), store)
    assert corpus.source == "text8"
    assert corpus.sizes == {"train": 12, "valid": 5, "test": 4}
    assert prepare(DataConfig("text8"), store, tmp_path / "out").train.tolist() == [*TEXTS["train.txt"].encode()]
