"""Symbols and numbers: hand-worked vocabularies, round trips, and every refusal."""

import json
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refimpl.datasets.counting import character_vocabulary, word_vocabulary
from refimpl.datasets.text import LONGEST, decoded, finished_lines, words_of
from refimpl.datasets.vocabulary import Vocabulary
from refimpl.errors import InputError

BYTES = Vocabulary("byte")
TEXT = b"b a\n\nc a b\nd"  # b 2, a 2, <eos> 4, c 1, d 1, the unfinished last line included
WORDS = Vocabulary("word", ("<eos>", "b", "a", "c", "d"))


def words_in(text, ties="first", minimum_count=1, unknown="error", chunk=1000):
    chunks = [text[i:i + chunk] for i in range(0, len(text), chunk)]
    words = chain.from_iterable(words_of(decoded(finished_lines(chunks), "text")))
    return word_vocabulary(Counter(words), ties, minimum_count, unknown)


def cut(data, places):
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[low:high] for low, high in zip([0, *ends], [*ends, len(data)], strict=True)]


def test_words_are_ordered_by_frequency_then_first_appearance():
    assert words_in(TEXT) == WORDS
    assert words_in(TEXT, ties="reversed").symbols == ("<eos>", "a", "b", "d", "c")


def test_rare_words_are_counted_as_unknown_where_the_first_of_them_stood():
    assert words_in(TEXT, minimum_count=2).symbols == ("<eos>", "b", "a", "<unk>")
    assert words_in(b"q b b a a\nq", minimum_count=3).symbols == ("<unk>", "<eos>")
    assert words_in(b"x <unk> y y y z\n", minimum_count=2).symbols == ("<unk>", "y", "<eos>")


def test_unknown_comes_last_when_no_word_is():
    assert words_in(b"a a b\n", unknown="<unk>") == Vocabulary("word", ("a", "b", "<eos>", "<unk>"), "<unk>")
    assert words_in(b"a <unk> <unk>\n", unknown="<unk>").symbols == ("<unk>", "a", "<eos>")
    assert words_in(b"a a a a\na\n", minimum_count=2) == Vocabulary("word", ("a", "<eos>", "<unk>"), "<unk>")


def test_words_end_at_white_space_and_lines_at_newlines_alone():
    text = "a\r\nb\x85c\u2028d\u00a0e\x0bf\x0c\tg\x1ch\n \n".encode()
    assert next(words_of([text.decode()])) == ["a", "<eos>", "b", "c", "d", "e", "f", "g", "h", "<eos>", "<eos>"]


@given(st.text(alphabet="ab é\n\r\u2028𝄞", max_size=30), st.lists(st.integers(0, 200), max_size=6))
@settings(derandomize=True, deadline=None)
@example("a𝄞 b", [1, 2, 3, 4, 5])
def test_chunks_may_end_anywhere(text, places):
    data = text.encode()
    words = [word for line in text.split("\n") for word in (*line.split(), "<eos>")][:-1]
    assert [*chain.from_iterable(words_of(decoded(cut(data, places), "text")))] == words
    by_word = word_vocabulary(Counter([*words, "<eos>"]), "first", 1, "error")
    for vocabulary in (BYTES, character_vocabulary([text + "a"]), by_word):
        pieces = list(vocabulary.encode_chunks(cut(data, places), "text"))
        assert np.concatenate([np.empty(0, int), *pieces]).tolist() == vocabulary.encode(data).tolist()


def test_a_word_without_end_is_refused_before_it_is_read_whole():
    """A piece at a time: what is behind the limit is not asked for, and a word of just that length passes."""
    read = []

    def pieces(count):
        for _ in range(count):
            read.append(1)
            yield "x" * LONGEST

    with pytest.raises(InputError, match="file: expected words of at most 1,048,576 characters, got one that begins with"):
        [*words_of(pieces(10), "file")]
    assert len(read) == 2
    assert [*chain.from_iterable(words_of(pieces(1)))] == ["x" * LONGEST]


def test_finished_lines_adds_a_newline_only_inside_a_line():
    assert b"".join(finished_lines([b"a\nb", b""])) == b"a\nb\n"
    assert b"".join(finished_lines([b"a\n", b""])) == b"a\n"
    assert b"".join(finished_lines([])) == b""


def test_characters_are_ordered_by_code_point():
    assert character_vocabulary(["ba\n", "é𝄞a"]) == Vocabulary("character", ("\n", "a", "b", "é", "𝄞"))
    assert Vocabulary("character", ("\n", "a", "b", "é", "𝄞")).encode("𝄞a\né".encode()).tolist() == [4, 1, 0, 3]


def test_encoding_by_hand():
    assert BYTES.encode(b"\x00a\xff").tolist() == [0, 97, 255]
    assert WORDS.encode(TEXT).tolist() == [1, 2, 0, 0, 3, 2, 1, 0, 4]
    assert WORDS.encode(b"").tolist() == []
    unknown = Vocabulary("word", ("<eos>", "a", "<unk>"), "<unk>")
    assert unknown.encode(b"a zebra\na <unk>").tolist() == [1, 2, 0, 1, 2]


def test_decoding_by_hand():
    assert BYTES.decode([0x61, 0xff, 0xc3, 0xa9]) == "a\ufffdé"
    assert WORDS.decode([0, 0, 1, 2, 0, 0, 0, 3]) == "\n\nb a\n\n\nc"
    assert WORDS.decode(np.array([], np.uint8)) == WORDS.decode([]) == ""


@given(st.text(max_size=40))
@settings(derandomize=True, deadline=None)
def test_decoding_undoes_encoding(text):
    assert BYTES.decode(BYTES.encode(text.encode())) == text
    characters = character_vocabulary([text + "a"])
    assert characters.decode(characters.encode(text.encode())) == text
    lines = "\n".join(" ".join(line.split()) for line in text.split("\n"))
    words = words_in(text.encode()) if text else WORDS
    assert words.decode(words.encode(text.encode())) == lines


@pytest.mark.parametrize(("size", "dtype"), [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"),
                                             (65537, "int32")])
def test_the_smallest_dtype_that_holds_every_token(size, dtype):
    vocabulary = Vocabulary("word", ("<eos>", *map(str, range(size - 1))))
    assert vocabulary.size == size
    assert vocabulary.dtype == vocabulary.encode(str(size - 2).encode()).dtype == np.dtype(dtype)
    assert vocabulary.encode(str(size - 2).encode()).tolist() == [size - 1]


def test_end_of_line():
    assert Vocabulary("word", ("a", "<eos>")).end_of_line == 1
    assert BYTES.end_of_line is Vocabulary("character", ("\n",)).end_of_line is None
    assert BYTES.size == 256


@pytest.mark.parametrize(("vocabulary", "text", "message"), [
    (Vocabulary("character", ("a", "b")), "ab\u00e9".encode(), r"text: .* of 2, got 'é' \(U\+00E9\) at position 2"),
    (WORDS, b"a b\nzebra a", r'text: .* of 5, got \'zebra\' at position 3 \(unknown = "<unk>" would'),
    (WORDS, b"a \xff", "text: expected UTF-8, got byte 0xff at byte offset 2"),
    (Vocabulary("character", ("a",)), b"aa\xe2\x82", "text: expected UTF-8, got byte 0xe2 at byte offset 2"),
])
def test_what_cannot_be_encoded(vocabulary, text, message):
    with pytest.raises(InputError, match=message):
        vocabulary.encode(text)


def test_offsets_count_over_all_chunks():
    with pytest.raises(InputError, match="here: expected UTF-8, got byte 0xc3 at byte offset 104"):
        list(decoded([b"ab", b"cd\xc3", b"x"], "here", 100))
    characters = Vocabulary("character", ("a", "b"))
    with pytest.raises(InputError, match=r"here: .* at position 4"):
        list(characters.encode_chunks([b"ab", b"ab", b"c"], "here"))
    with pytest.raises(InputError, match=r"here: .*'no' at position 4"):
        list(WORDS.encode_chunks([b"a b\na", b" n", b"o a"], "here"))


@pytest.mark.parametrize("tokens", [[5], [-1], [0.5], [[1]], [True]])
def test_what_cannot_be_decoded(tokens):
    with pytest.raises(InputError, match="tokens: expected"):
        WORDS.decode(tokens)


@pytest.mark.parametrize("vocabulary", [BYTES, WORDS, Vocabulary("character", ("\n", "é")),
                                        Vocabulary("word", ("<unk>", "<eos>"), "<unk>")])
def test_json_and_back(vocabulary):
    assert Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary


@pytest.mark.parametrize(("value", "message"), [
    ([], "expected kind, symbols and unknown"),
    ({"kind": "byte", "symbols": []}, "expected kind, symbols and unknown"),
    ({"kind": "letter", "symbols": [], "unknown": "error"}, "vocabulary.kind: .* got 'letter'"),
    ({"kind": ["byte"], "symbols": [], "unknown": "error"}, "vocabulary.kind"),
    ({"kind": "byte", "symbols": [], "unknown": "skip"}, "vocabulary.unknown: .* got 'skip'"),
    ({"kind": "byte", "symbols": ["a"], "unknown": "error"}, "expected none for bytes, got 1"),
    ({"kind": "byte", "symbols": [], "unknown": "<unk>"}, "expected <unk> among them"),
    ({"kind": "word", "symbols": ["<eos>"], "unknown": "<unk>"}, "expected <unk> among them"),
    ({"kind": "word", "symbols": ["a"], "unknown": "error"}, "expected <eos> among the words"),
    ({"kind": "word", "symbols": ["<eos>", "a", "a"], "unknown": "error"}, "expected distinct words"),
    ({"kind": "word", "symbols": ["<eos>", "a b"], "unknown": "error"}, "without white space, got 'a b'"),
    ({"kind": "word", "symbols": ["<eos>", ""], "unknown": "error"}, "without white space, got ''"),
    ({"kind": "word", "symbols": ["<eos>", "a\ud800"], "unknown": "error"}, "expected words of characters"),
    ({"kind": "word", "symbols": ["<eos>", 1], "unknown": "error"}, "expected a list of strings"),
    ({"kind": "word", "symbols": "<eos>", "unknown": "error"}, "expected a list of strings"),
    ({"kind": "character", "symbols": [], "unknown": "error"}, "expected single characters"),
    ({"kind": "character", "symbols": ["ab"], "unknown": "error"}, "expected single characters"),
    ({"kind": "character", "symbols": ["\ud800"], "unknown": "error"}, "expected single characters"),
    ({"kind": "character", "symbols": ["b", "a"], "unknown": "error"}, "ascending code points, got 'b' before 'a'"),
])
def test_json_that_describes_no_vocabulary(value, message):
    with pytest.raises(InputError, match=message) as refusal:
        Vocabulary.from_json(value)
    assert "\n" not in str(refusal.value)
