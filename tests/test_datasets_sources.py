"""Where texts are found and cut: by hand, as properties of any file, and every refusal."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refimpl.datasets import sources
from refimpl.datasets.sample import sample_bytes
from refimpl.datasets.sources import find_source
from refimpl.errors import InputError


def texts(source):
    return [b"".join(split.chunks()) for split in source.splits]


def written(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_bytes(text)
    return str(folder)


def test_bytes_are_cut_at_nine_tenths_and_nineteen_twentieths(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(50)))
    source = find_source(str(tmp_path / "a"), "byte")
    assert texts(source) == [bytes(range(45)), bytes((45, 46)), bytes((47, 48, 49))]
    assert source.sizes == {"train": 45, "valid": 2, "test": 3}


def test_characters_are_never_cut(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 88 + "€é𝄞".encode() + b"yyy")  # 100 bytes: cuts at 90 and 95
    assert texts(find_source(str(tmp_path / "a"), "character")) == [b"x" * 88 + "€".encode(), "é𝄞".encode(), b"yyy"]
    assert [len(text) for text in texts(find_source(str(tmp_path / "a"), "byte"))] == [90, 5, 5]


def test_lines_are_never_cut(tmp_path):
    (tmp_path / "a").write_bytes(b"123456789\n" * 8 + b"12345678901\n123\n5\n78")  # 100 bytes: cuts at 90 and 95
    assert texts(find_source(str(tmp_path / "a"), "word"))[1:] == [b"123\n", b"5\n78"]


def test_a_cut_that_is_a_boundary_stays(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 8 + b"\n" + b"y" * 8 + b"\n" + b"\n" + b"z")  # cuts at 18 and 19 of 20
    assert texts(find_source(str(tmp_path / "a"), "word"))[1:] == [b"\n", b"z"]


@given(st.text(alphabet="aé€𝄞\n", min_size=40, max_size=120))
@settings(derandomize=True, deadline=None)
def test_splits_make_up_the_text_at_boundaries(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a"
    path.write_bytes(text.encode() + b"\na\nb\nc")
    whole, size = path.read_bytes(), path.stat().st_size
    for kind in ("byte", "character", "word"):
        source = sources._cut("a", path, kind)
        assert b"".join(texts(source)) == whole
        ends = [source.splits[0].stop, source.splits[1].stop]
        for end, least in zip(ends, (size * 9 // 10, size * 95 // 100), strict=True):
            allowed = {"byte": lambda at: True, "word": lambda at: at == size or whole[at - 1:at] == b"\n",
                       "character": lambda at: at == size or whole[at] & 0xC0 != 0x80}[kind]
            assert end == next(at for at in range(least, size + 1) if allowed(at))


def test_a_newline_far_away_and_chunks_of_any_size(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x" * 95 + b"\n123456789\n" + b"y")
    monkeypatch.setattr(sources, "CHUNK", 3)
    assert texts(find_source(str(tmp_path / "a"), "word")) == [b"x" * 95 + b"\n", b"123456789\n", b"y"]


def test_the_sample():
    source = find_source("sample", "byte")
    assert source.name == "sample"
    assert b"".join(texts(source)) == sample_bytes()
    assert source.sha256() == hashlib.sha256(sample_bytes()).hexdigest()
    assert 400_000 < len(sample_bytes()) < 2_000_000


@pytest.mark.parametrize("names", [("train.txt", "valid.txt", "test.txt"), ("train", "validation", "test"),
                                   ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens"),
                                   ("train.bin", "corpus.validation.bin", "test.bin")])
def test_a_folder_has_a_file_for_each_split(tmp_path, names):
    for name, text in zip(names, (b"one", b"two", b"three"), strict=True):
        (tmp_path / name).write_bytes(text)
    (tmp_path / "README").write_bytes(b"not text")
    (tmp_path / ".train.swp").write_bytes(b"an editor's")
    (tmp_path / "trainer.txt").write_bytes(b"another word")
    (tmp_path / "test.d").mkdir()
    source = find_source(str(tmp_path), "word")
    assert texts(source) == [b"one", b"two", b"three"]
    assert source.sha256() == hashlib.sha256(b"onetwothree").hexdigest()
    assert source.name == str(tmp_path)


@pytest.mark.parametrize(("files", "message"), [
    ({}, "got 0 for train, 0 for valid, 0 for test among no files"),
    ({"train_txt": b"a", "test_txt": b"b"}, "got 1 for train, 0 for valid, 1 for test among test.txt, train.txt"),
    ({"train_txt": b"a", "train": b"a", "valid": b"v", "test": b"b"}, "got 2 .*, 1 .* test, train, train.txt, valid"),
    ({"valid": b"a", "validation": b"a", "train": b"v", "test": b"b"}, "got 1 for train, 2 for valid"),
    ({"train_test": b"a", "valid": b"b"}, "expected one file each"),
])
def test_folders_with_splits_missing_or_ambiguous(tmp_path, files, message):
    with pytest.raises(InputError, match=message):
        find_source(written(tmp_path, **files), "byte")


def test_a_long_listing_is_shortened(tmp_path):
    for number in range(30):
        (tmp_path / f"{number:02}").touch()
    with pytest.raises(InputError, match=r"18, 19, \.\.\.$"):
        find_source(str(tmp_path), "byte")


def test_texts_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r'nowhere: expected a file, a folder or "sample", got nothing of that name'):
        find_source(str(tmp_path / "nowhere"), "byte")
    with pytest.raises(InputError, match=r"/dev/null: .* got something else"):
        find_source("/dev/null", "byte")
    with pytest.raises(InputError, match="expected a file or folder that can be read, got File name too long"):
        find_source(str(tmp_path / ("x" * 300)), "byte")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(100))
    source = find_source(str(tmp_path / "a"), "byte")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match="a: expected a file or folder that can be read, got Permission denied"):
        find_source(str(tmp_path / "a"), "byte")
    with pytest.raises(InputError, match="a, split train: expected a file that can be read, got Permission denied"):
        source.sha256()


@pytest.mark.parametrize(("text", "kind", "message"), [
    (b"", "byte", "a: expected text, got an empty file"),
    (b"a", "byte", "a, split train: expected text, got an empty split"),
    (b"abcdefghij", "byte", "a, split valid: expected text, got an empty split"),
    (b"one line of words and no more\n", "word", "a, split valid: expected text, got an empty split"),
    (b"x" * 90 + b"\n1234567\n", "word", "a, split test: expected text, got an empty split"),
    (b"x" * 30 + "𝄞".encode(), "character", "a, split test: expected text, got an empty split"),
])
def test_files_that_leave_a_split_empty(tmp_path, text, kind, message):
    (tmp_path / "a").write_bytes(text)
    with pytest.raises(InputError, match=f"/{message}$"):
        find_source(str(tmp_path / "a"), kind)


def test_a_folder_with_an_empty_split(tmp_path):
    with pytest.raises(InputError, match=r"valid\.txt: expected text, got an empty split"):
        find_source(written(tmp_path, train_txt=b"a", valid_txt=b"", test_txt=b"c"), "byte")
