"""Texts encoded into a store: what is read back, what is written when, and what is refused."""

import hashlib
import json

import numpy as np
import pytest

from refimpl.config import DataConfig
from refimpl.datasets import encoding, sources
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.sample import sample_bytes
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError

FILES = ["SHA256SUMS", "prepared.json", "test-tokens.bin", "train-tokens.bin", "valid-tokens.bin"]
SPLITS = {"train.txt": "b a\n\nc a b\nd", "valid.txt": "a b\nc", "test.txt": "d d\n"}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "deep" / "store"


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "text"
    place.mkdir()
    for name, text in SPLITS.items():
        (place / name).write_bytes(text.encode())
    return place


def splits(corpus):
    return [corpus.train.tolist(), corpus.valid.tolist(), corpus.test.tolist()]


def test_words_of_a_folder(folder, store):
    corpus = open_corpus(DataConfig(str(folder), "word"), store)
    assert corpus.vocabulary.symbols == ("<eos>", "b", "a", "c", "d")
    assert splits(corpus) == [[1, 2, 0, 0, 3, 2, 1, 0, 4, 0], [2, 1, 0, 3, 0], [4, 4, 0]]
    assert corpus.train.dtype == np.uint8
    assert corpus.describe() == json.loads(json.dumps(corpus.describe())) == {
        "source": str(folder), "sha256": hashlib.sha256("".join(SPLITS.values()).encode()).hexdigest(),
        "bytes": {"train": 12, "valid": 5, "test": 4}, "tokens": {"train": 10, "valid": 5, "test": 3},
        "vocabulary": {"kind": "word", "size": 5},
        "conventions": {"name": "words", "numbering": "frequency", "ties": "first", "minimum_count": 1, "unknown": "error"},
        "unknown_share": {"train": 0.0, "valid": 0.0, "test": 0.0}}


def test_rare_words_of_a_folder(folder, store):
    (folder / "test.txt").write_text("d new\n")
    corpus = open_corpus(DataConfig(str(folder), "word", "reversed", 2), store)
    assert corpus.vocabulary.symbols == ("<eos>", "<unk>", "a", "b")
    assert splits(corpus) == [[3, 2, 0, 0, 1, 2, 3, 0, 1, 0], [2, 3, 0, 1, 0], [1, 1, 0]]
    assert corpus.describe()["unknown_share"] == {"train": 0.2, "valid": 0.2, "test": 2 / 3}
    assert corpus.describe()["conventions"] == {
        "name": "words", "numbering": "frequency", "ties": "reversed", "minimum_count": 2, "unknown": "<unk>"}


def test_unseen_words(folder, store):
    (folder / "test.txt").write_text("d new\n")
    with pytest.raises(InputError, match=r"""test\.txt: .* of 5, got 'new' at position 1 \(unknown = "<unk>" would"""):
        open_corpus(DataConfig(str(folder), "word"), store)
    assert list(store.iterdir()) == []
    corpus = open_corpus(DataConfig(str(folder), "word", unknown="<unk>"), store)
    assert corpus.vocabulary.symbols == ("<eos>", "b", "a", "c", "d", "<unk>")
    assert corpus.test.tolist() == [4, 5, 0]


def test_characters_of_all_splits(folder, store):
    (folder / "test.txt").write_text("dé\n", "utf-8")
    corpus = open_corpus(DataConfig(str(folder), "character"), store)
    assert corpus.vocabulary.symbols == ("\n", " ", "a", "b", "c", "d", "é")
    assert splits(corpus)[1:] == [[2, 1, 3, 0, 4], [5, 6, 0]]
    assert corpus.describe()["conventions"] == {"name": "characters"}
    assert "unknown_share" not in corpus.describe()
    assert corpus.sizes["test"] == 4


@pytest.mark.parametrize("kind", ["byte", "character", "word"])
def test_a_file_in_small_chunks(tmp_path, store, monkeypatch, kind):
    text = "".join(f"é{number} 𝄞 €\n" for number in range(40))  # 550 bytes: lines of words are cut from the 37th on
    (tmp_path / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(sources, "CHUNK", 3)
    corpus = open_corpus(DataConfig(str(tmp_path / "a.txt"), kind, unknown="<unk>"), store)
    expected = text if kind != "word" else text[:text.index("é37")] + 3 * "<unk> 𝄞 €\n"
    tokens = np.concatenate([corpus.train, corpus.valid, corpus.test])
    assert corpus.vocabulary.decode(tokens) == expected
    assert sum(corpus.sizes.values()) == len(text.encode())


def test_any_file_is_bytes(tmp_path, store):
    (tmp_path / "a.bin").write_bytes(bytes(range(256)) * 4)
    corpus = open_corpus(DataConfig(str(tmp_path / "a.bin")), store)
    assert np.concatenate([corpus.train, corpus.valid, corpus.test]).tolist() == list(range(256)) * 4
    assert corpus.vocabulary.kind == "byte"


def test_the_sample(store):
    corpus = open_corpus(DataConfig(), store)
    assert b"".join(bytes(tokens) for tokens in (corpus.train, corpus.valid, corpus.test)) == sample_bytes()
    assert corpus.source == "sample"
    assert len(corpus.train) == len(sample_bytes()) * 9 // 10


def test_tokens_are_mapped_and_read_only(folder, store):
    corpus = open_corpus(DataConfig(str(folder)), store)
    assert isinstance(corpus.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1


def test_a_text_is_encoded_once(folder, store, monkeypatch):
    first = open_corpus(DataConfig(str(folder), "word"), store)
    moved = folder.rename(folder.with_name("moved"))

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(encoding, "encode_source", refuse)
    second = open_corpus(DataConfig(str(moved), "word"), store)
    assert splits(first) == splits(second)
    assert second.source == str(moved)
    for other in (DataConfig(str(moved)), DataConfig(str(moved), "word", "reversed"),
                  DataConfig(str(moved), "word", "first", 2), DataConfig(str(moved), "word", "first", 1, "<unk>")):
        with pytest.raises(AssertionError, match="encoded again"):
            open_corpus(other, store)


def test_one_file_is_not_taken_for_three_of_the_same_bytes(folder, tmp_path, store):
    whole = tmp_path / "whole.txt"
    whole.write_bytes("".join(SPLITS.values()).encode())
    assert len(open_corpus(DataConfig(str(folder)), store).train) == 12
    assert len(open_corpus(DataConfig(str(whole)), store).train) == 18


def test_later_changes_of_the_source_do_not_reach_the_corpus(folder, store):
    corpus = open_corpus(DataConfig(str(folder)), store)
    (folder / "train.txt").write_bytes(b"other text!!")  # as long as it was
    assert bytes(corpus.train) == SPLITS["train.txt"].encode()
    assert bytes(open_corpus(DataConfig(str(folder)), store).train) == b"other text!!"


def damage_nothing_left(place):
    for file in place.iterdir():
        file.unlink()


@pytest.mark.parametrize("damage", [
    lambda place: (place / "train-tokens.bin").write_bytes(b"\1"),
    lambda place: (place / "test-tokens.bin").unlink(),
    lambda place: (place / "prepared.json").write_text("{"),
    lambda place: (place / "prepared.json").write_text("[]"),
    lambda place: (place / "prepared.json").write_text(json.dumps({"vocabulary": Vocabulary("byte").to_json()})),
    lambda place: (place / "prepared.json").write_bytes(b"\xff"),
    lambda place: (place / "SHA256SUMS").write_text(""),
    lambda place: (place / "train-tokens.bin").write_bytes(bytes(10)),
    damage_nothing_left,
])
def test_a_damaged_corpus_is_encoded_again(folder, store, damage):
    config = DataConfig(str(folder), "word")
    expected = splits(open_corpus(config, store))
    (place,) = store.iterdir()
    damage(place)
    assert splits(open_corpus(config, store)) == expected
    assert [*store.iterdir()] == [place]
    assert sorted(file.name for file in place.iterdir()) == FILES


@pytest.mark.parametrize(("kind", "where", "offset"), [
    ("character", "valid", 96), ("word", "valid", 96), ("character", "test", 100), ("word", "train", 4)])
def test_text_that_is_not_utf_8(tmp_path, store, kind, where, offset):
    text = bytearray(b"ab c\n" * 21)  # 105 bytes: cut after 94 → 95 and 99 → 100
    text[offset if offset < 100 else 101] = 0xff
    (tmp_path / "a").write_bytes(text)
    place = offset if offset < 100 else 101
    with pytest.raises(InputError, match=f"a, split {where}: expected UTF-8, got byte 0xff at byte offset {place}$"):
        open_corpus(DataConfig(str(tmp_path / "a"), kind, unknown="<unk>"), store)
    assert list(store.iterdir()) == []


def test_a_text_that_changes_while_it_is_read(folder, store, monkeypatch):
    original = encoding.source_vocabulary

    def change(source, config):
        (folder / "valid.txt").write_text("b b\nc")
        return original(source, config)

    monkeypatch.setattr(encoding, "source_vocabulary", change)
    with pytest.raises(InputError, match="expected a text that stays the same while it is read"):
        open_corpus(DataConfig(str(folder), "character"), store)
    assert list(store.iterdir()) == []


def test_whoever_is_first_wins(folder, store, monkeypatch):
    original = encoding.encode_source

    def slow(source, sha256, config, vocabulary, place):
        monkeypatch.setattr(encoding, "encode_source", original)
        open_corpus(config, store)
        (winner,) = (entry for entry in store.iterdir() if not entry.name.startswith("encoding-"))
        (winner / "mark").touch()
        original(source, sha256, config, vocabulary, place)

    monkeypatch.setattr(encoding, "encode_source", slow)
    assert splits(open_corpus(DataConfig(str(folder)), store))[1] == list(b"a b\nc")
    (place,) = store.iterdir()
    assert (place / "mark").exists()


def test_a_store_that_is_a_file(folder, tmp_path):
    (tmp_path / "store").touch()
    with pytest.raises(InputError, match="store: expected a folder that can be written, got File exists"):
        open_corpus(DataConfig(str(folder)), tmp_path / "store")


def test_a_given_vocabulary_takes_the_place_of_the_texts_own(tmp_path):
    first, other = tmp_path / "first.txt", tmp_path / "other.txt"
    first.write_text("abcd" * 30)
    other.write_text("cad" * 30)
    config = DataConfig(str(other), "character")
    known = open_corpus(DataConfig(str(first), "character"), tmp_path / "store").vocabulary
    own, given = open_corpus(config, tmp_path / "store"), open_corpus(config, tmp_path / "store", known)
    assert (own.vocabulary.size, given.vocabulary.size) == (3, 4)
    assert own.train[:3].tolist() == [1, 0, 2]
    assert given.train[:3].tolist() == [2, 0, 3]
    with pytest.raises(InputError, match="expected characters of the vocabulary of 3, got 'b'"):
        open_corpus(DataConfig(str(first), "character"), tmp_path / "store", own.vocabulary)
