"""The published conventions: by hand, against their published preparation read as words, and in what a result names."""

import json
from itertools import chain

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl.config import CONVENTIONS, DataConfig
from refimpl.datasets import sources
from refimpl.datasets.corpus import open_corpus
from refimpl.datasets.counting import counted_vocabulary
from refimpl.datasets.fetch import decimal
from refimpl.datasets.sources import SPLITS
from refimpl.datasets.vocabulary import Vocabulary, codes_of
from refimpl.errors import InputError

TEXTS = {"train": b"ba ab\n\nb", "valid": b"a\n", "test": b" b"}


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "text", TEXTS)


def written(place, texts):
    place.mkdir()
    for name, text in texts.items():
        (place / f"{name}.txt").write_bytes(text)
    return place


def opened(folder, store, *values):
    return open_corpus(DataConfig(str(folder), *values), store)


def splits(corpus):
    return [getattr(corpus, name).tolist() for name in SPLITS]


def published(kind, folder, store, convention="published", numbering="frequency"):
    return opened(folder, store, kind, "", 1, "error", convention, numbering)


def test_published_bytes_by_hand(folder, tmp_path):
    """Of "ba ab⏎⏎b" and the end after it: b 3, <eos> 3, a 2, one space; of b and <eos> the one that came last goes first."""
    corpus = published("byte", folder, tmp_path / "store")
    assert corpus.vocabulary == Vocabulary("byte", ("<eos>", "98", "97", "32"), newline="<eos>")
    assert splits(corpus) == [[1, 2, 3, 2, 1, 0, 0, 1, 0], [2, 0], [3, 1, 0]]
    assert corpus.counts == (3, 3, 2, 1)
    assert corpus.train.dtype == np.uint8
    assert corpus.vocabulary.end_of_line == 0
    assert corpus.vocabulary.decode(corpus.train) == "ba ab\n\nb\n"


def test_published_characters_by_hand(folder, tmp_path):
    corpus = published("character", folder, tmp_path / "store")
    assert corpus.vocabulary == Vocabulary("character", ("<eos>", "b", "a", " "), newline="<eos>")
    assert splits(corpus) == [[1, 2, 3, 2, 1, 0, 0, 1, 0], [2, 0], [3, 1, 0]]


@pytest.mark.parametrize("kind", ["byte", "character"])
def test_newlines_dropped(folder, tmp_path, kind):
    """b 4, a 3 and two spaces in all splits."""
    corpus = published(kind, folder, tmp_path / "store", "transformer-xl")
    assert corpus.vocabulary.symbols == (("98", "97", "32") if kind == "byte" else ("b", "a", " "))
    assert splits(corpus) == [[0, 1, 2, 1, 0, 0], [1], [2, 0]]
    assert corpus.vocabulary.end_of_line is None
    assert corpus.vocabulary.decode(corpus.train) == "ba abb"


@pytest.mark.parametrize(("kind", "symbols"), [
    ("byte", ("98", "97", "32", "<eos>")), ("character", ("b", "a", " ", "<eos>"))])
def test_numbers_by_first_appearance(folder, tmp_path, kind, symbols):
    assert published(kind, folder, tmp_path / "store", numbering="appearance").vocabulary.symbols == symbols
    words = opened(folder, tmp_path / "store", "word", "", 1, "<unk>", "words", "appearance")
    assert words.vocabulary.symbols == ("ba", "ab", "<eos>", "b", "<unk>")


def test_all_of_a_kind(tmp_path):
    """As in enwik8, with 205 of the 256 values, newline among them: 256, 205 or 204 symbols. As in text8: 27 or 28."""
    many = bytes(value for value in range(256) if value not in range(128, 179)) * 40
    few = b" ".join([b"abcdefghijklmnopqrstuvwxyz"] * 40)
    for name, text in (("many", many), ("few", few)):
        (tmp_path / name).write_bytes(text)
    sizes = [opened(tmp_path / "many", tmp_path, "byte", "", 1, "error", name).vocabulary.size
             for name in ("bytes", "published", "transformer-xl")]
    assert sizes == [256, 205, 204]
    sizes = [opened(tmp_path / "few", tmp_path, "character", "", 1, "error", name).vocabulary.size
             for name in ("characters", "published", "transformer-xl")]
    assert sizes == [27, 28, 27]


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=3, max_size=3), st.sampled_from(["first", "reversed"]))
@example([b"\n", b"\n", b"\n"], "first")
@example([b"a\n\n", b"a", b"\n"], "reversed")
def test_published_bytes_are_the_words_of_the_published_preparation(tmp_path_factory, texts, ties):
    """The same symbols, numbers and tokens as the words of the file of decimal values that the published code reads."""
    place = tmp_path_factory.mktemp("texts")
    texts = dict(zip(SPLITS, [b"".join([*texts, *texts]), *texts[1:]], strict=True))
    raw = written(place / "raw", texts)
    prepared = written(place / "prepared", {name: b"".join(decimal([text])) for name, text in texts.items()})
    convention = "published" if ties == "reversed" else "words"
    words = opened(prepared, place / "store", "word", ties, 1, "error", convention)
    corpus = published("byte", raw, place / "store") if ties == "reversed" else None
    if corpus is None:  # the convention has its ties: another order is looked at without it
        codes = codes_of("byte", [texts["train"] + (b"" if texts["train"].endswith(b"\n") else b"\n")], "")
        assert counted_vocabulary("byte", codes, "<eos>", ties).symbols == words.vocabulary.symbols
    else:
        assert corpus.vocabulary.symbols == words.vocabulary.symbols
        assert splits(corpus) == splits(words)


@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from(["first", "reversed"]),
       st.sampled_from(["<eos>", "dropped"]))
def test_counting_in_chunks(text, size, ties, newline):
    text += b"\nz"
    chunks = [np.frombuffer(text[place:place + size], np.uint8) for place in range(0, len(text), size)]
    found = counted_vocabulary("byte", chunks, newline, ties, "frequency").symbols
    seen = [value for value in dict.fromkeys(text) if newline == "<eos>" or value != 10]
    if ties == "reversed":
        seen.reverse()
    expected = sorted(seen, key=lambda value: -text.count(value))
    assert [10 if name == "<eos>" else int(name) for name in found] == expected


@given(st.binary(max_size=80), st.lists(st.integers(0, 200), max_size=5), st.sampled_from(["<eos>", "dropped"]))
def test_chunks_may_end_anywhere_and_bytes_come_back(text, places, newline):
    symbols = tuple(str(value) for value in reversed(range(256)) if value != 10)
    vocabulary = Vocabulary("byte", (*symbols, "<eos>")[:255 + (newline == "<eos>")], newline=newline)
    ends = sorted(place % (len(text) + 1) for place in places)
    chunks = [text[low:high] for low, high in zip([0, *ends], [*ends, len(text)], strict=True)]
    tokens = [*chain.from_iterable(piece.tolist() for piece in vocabulary.encode_chunks(chunks, "text"))]
    assert tokens == vocabulary.encode(text).tolist()
    assert vocabulary.to_bytes(tokens) == (text if newline == "<eos>" else text.replace(b"\n", b""))
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


def test_a_symbol_that_training_never_saw(folder, tmp_path):
    (folder / "test.txt").write_bytes(b"ab\nc")
    with pytest.raises(InputError, match=r"test\.txt: expected bytes of the vocabulary of 4, got 0x63 at position 3"):
        published("byte", folder, tmp_path / "store")
    with pytest.raises(InputError, match=r"characters of the vocabulary of 4, got 'c' \(U\+0063\) at position 3"):
        published("character", folder, tmp_path / "store")
    assert published("byte", folder, tmp_path / "store", "transformer-xl").vocabulary.size == 4


def test_nothing_left_of_a_split(folder, tmp_path):
    (folder / "valid.txt").write_bytes(b"\n\n")
    with pytest.raises(InputError, match=r"valid\.txt: expected text, got nothing but what the convention drops"):
        published("byte", folder, tmp_path / "store", "transformer-xl")


def test_conventions_are_kept_apart(folder, tmp_path):
    """Each has a place of its own in the store."""
    every = [DataConfig(str(folder), kind, "", 1, "<unk>", convention, numbering)
             for kind, names in CONVENTIONS.items() for convention in names for numbering in ("frequency", "appearance")]
    for config in every:
        open_corpus(config, tmp_path / "store")
    plain = 2  # bytes and characters, whose numbers are what they are
    assert len([*(tmp_path / "store").iterdir()]) == len(every) - plain


@pytest.mark.parametrize(("values", "expected"), [
    ({}, {"vocabulary": "byte", "convention": "bytes"}),
    ({"vocabulary": "character"}, {"vocabulary": "character", "convention": "characters"}),
    ({"vocabulary": "word"}, {"vocabulary": "word", "convention": "words", "numbering": "frequency", "ties": "first",
                              "minimum_count": 1, "unknown": "error"}),
    ({"vocabulary": "word", "ties": "reversed"}, {"vocabulary": "word", "convention": "words", "numbering": "frequency",
                                                  "ties": "reversed", "minimum_count": 1, "unknown": "error"}),
    ({"convention": "published"}, {"vocabulary": "byte", "convention": "published", "numbering": "frequency",
                                   "ties": "reversed"}),
    ({"convention": "transformer-xl", "ties": "first"}, {"vocabulary": "byte", "convention": "transformer-xl",
                                                         "numbering": "frequency", "ties": "first"}),
])
def test_what_a_convention_implies(values, expected):
    config = DataConfig(**values)
    assert config.conventions == expected
    assert DataConfig(**expected) == config


@pytest.mark.parametrize(("values", "message"), [
    ({"convention": "byte"}, "data.convention: expected one of bytes, published, transformer-xl with vocabulary byte"),
    ({"vocabulary": "word", "convention": "bytes"}, "expected one of words, published, transformer-xl with vocabulary word"),
    ({"vocabulary": "word", "convention": "published", "ties": "first"},
     "data.ties: expected reversed with convention published, got 'first'"),
    ({"convention": "transformer-xl", "ties": "reversed"}, "data.ties: expected first with convention transformer-xl"),
    ({"ties": "last"}, "data.ties: expected one of first, reversed, got 'last'"),
    ({"numbering": "size"}, "data.numbering: expected one of frequency, appearance, got 'size'"),
    ({"convention": 1}, "data.convention: expected str, got 1"),
])
def test_conventions_that_are_none(values, message):
    with pytest.raises(InputError, match=message):
        DataConfig(**values)


@pytest.mark.parametrize(("values", "message"), [
    (("byte", ("65",), "error", "eos"), "vocabulary.newline: expected one of kept, <eos>, dropped, got 'eos'"),
    (("byte", ("65",), "error", "<eos>"), "expected <eos> among the symbols, got none"),
    (("byte", (), "error", "dropped"), "expected one among the symbols, got none"),
    (("byte", ("65", "<eos>"), "error", "dropped"), "expected decimal bytes but that of a newline, got '<eos>'"),
    (("byte", ("10",), "error", "dropped"), "expected decimal bytes but that of a newline, got '10'"),
    (("byte", ("065",), "error", "dropped"), "expected decimal bytes"),
    (("byte", ("256",), "error", "dropped"), "expected decimal bytes"),
    (("byte", ("65", "65"), "error", "dropped"), "expected distinct symbols, got one twice"),
    (("character", ("ab",), "error", "dropped"), "expected single characters but the newline, got 'ab'"),
    (("character", ("\n",), "error", "dropped"), "expected single characters but the newline"),
    (("character", ("b", "b", "<eos>"), "error", "<eos>"), "expected distinct symbols"),
    (("word", ("<eos>",), "error", "dropped"), "vocabulary.newline: expected <eos> for words, got 'dropped'"),
])
def test_vocabularies_that_are_none(values, message):
    with pytest.raises(InputError, match=message):
        Vocabulary(*values)


def test_a_vocabulary_written_before_there_were_conventions():
    assert Vocabulary.from_json({"kind": "word", "symbols": ["<eos>"], "unknown": "error"}).newline == "<eos>"
    assert Vocabulary.from_json({"kind": "character", "symbols": ["a"], "unknown": "error"}).newline == "kept"


def test_chunks_of_a_file(folder, tmp_path, monkeypatch):
    whole = [published(kind, folder, tmp_path / "store", convention) for kind in ("byte", "character")
             for convention in ("published", "transformer-xl")]
    monkeypatch.setattr(sources, "CHUNK", 1)
    again = [published(kind, folder, tmp_path / "again", convention) for kind in ("byte", "character")
             for convention in ("published", "transformer-xl")]
    for first, second in zip(whole, again, strict=True):
        assert first.vocabulary == second.vocabulary
        assert splits(first) == splits(second)


@pytest.mark.parametrize(("convention", "size"), [("bytes", 256), ("published", 17), ("transformer-xl", 16)])
def test_every_result_names_the_convention(command, text, tiny, tmp_path, convention, size):
    """From settings to a run, its evaluation, its text and its resumption."""
    run = tmp_path / "run"
    options = ["--data", text, "--set", f"data.convention={convention}", "--out", run, *tiny]
    told = json.loads(command("train", "--dry-run", "--json", *options).out)
    assert told["data"]["convention"] == convention
    assert told["parameters"]["total"] == 17 * size + 338  # two tables of width 8 and a bias; the layer
    end = command("train", *options)
    assert end.code == 0, end.err
    assert f'convention = "{convention}"' in (run / "config.toml").read_text()
    score = json.loads(command("eval", run, "--json").out)
    assert score["conventions"]["name"] == convention
    described = json.loads(command("data", "info", text, "--set", f"data.convention={convention}", "--json").out)
    assert described["conventions"]["name"] == convention
    written = command("generate", run, "--length", 50)
    assert written.code == 0, written.err
    assert command("train", "--resume", "--out", run, "--set", "train.updates=8").code == 0
    other = command("train", "--resume", "--out", run, "--set", "data.convention=other")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert f"data.convention: expected '{convention}' as in the checkpoint" in other.err
