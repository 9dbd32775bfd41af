"""Damage to what `data prepare` writes, to what it reads, and to the archives that texts come in.

What is read in spite of it is held to a second reading, in plain Python: a text that is not UTF-8 must be refused where
tokens are characters or words, and any other must become its own tokens.
"""

import hashlib
import json
import random
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import damage
import numpy as np
from outcome import asked, call, judged

from refimpl.datasets import fetch
from refimpl.datasets.published import File, Item, Member
from refimpl.errors import InputError

SPLITS = ("train", "valid", "test")
WORDS = tuple(f"{stem}{ending}" for stem in ("räum", "to", "ἀρχ", "x", "7") for ending in range(60))
LONGEST = 1 << 20  # characters of a word
TINY = ("model.width=4", "model.heads=1", "model.layers=1", "model.span=2", "model.span_ramp=2", "model.memory=1",
        "train.batch=2", "train.block=4", "train.updates=1", "train.last_updates=0", "train.warm_up=0", "train.workers=1")
FORMS = (("word", ("data.unknown=<unk>",)), ("character", ()), ("byte", ()), ("word", ("data.minimum_count=2",)),
         ("character", ("data.convention=transformer-xl",)), ("byte", ("data.convention=transformer-xl",)))


def write_texts(folder: Path, lines: int) -> dict[str, bytes]:
    """Three files of lines of words, more than 256 of them, so that two bytes hold a token; by name."""
    draw, files = random.Random(0), {}
    folder.mkdir()
    for split in SPLITS:
        rows = (" ".join(draw.choices(WORDS, k=8)) for _ in range(lines))
        files[f"{split}.txt"] = ("\n".join([*rows, " ".join(WORDS)]) + "\n").encode()
        (folder / f"{split}.txt").write_bytes(files[f"{split}.txt"])
    return files


class PreparedTexts:
    """Files of a prepared text; sign: with checksums that fit, and what is taken then is trained on."""

    def __init__(self, folder: Path, sign: bool = False) -> None:
        write_texts(folder / "text", 20)
        self.place, self.run, self.sign = folder / "prepared", folder / "run", sign
        code, lines = call("data", "prepare", folder / "text", "--vocabulary", "word", "--out", self.place)
        assert code == 0, lines
        self.files = {path.name: path.read_bytes() for path in sorted(self.place.iterdir())}

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it) for one of the files in turn."""
        names = [name for name in self.files if not self.sign or name != "SHA256SUMS"]
        name = names[number % len(names)]
        kind, content = damage.damaged(self.files[name], seed, number)
        (self.place / name).write_bytes(content)
        if self.sign:
            self._sign(name, content)
        code, lines = call("data", "info", self.place)
        if self.sign and code == 0:
            shutil.rmtree(self.run, ignore_errors=True)
            code, lines = call("train", "--data", self.place, "--out", self.run, *(w for s in TINY for w in ("--set", s)))
        found = judged(code, lines, same=False)
        for changed in (name, "SHA256SUMS"):
            (self.place / changed).write_bytes(self.files[changed])
        return kind, "another one's" if self.sign and found == "accepted" else found

    def _sign(self, name: str, content: bytes) -> None:
        """SHA256SUMS that fits the damaged file, as one who means harm would write it."""
        sums = dict(reversed(line.split("  ")) for line in self.files["SHA256SUMS"].decode().splitlines())
        sums[name] = hashlib.sha256(content).hexdigest()
        (self.place / "SHA256SUMS").write_text("".join(f"{value}  {file}\n" for file, value in sums.items()))


class TextsToPrepare:
    """The text files that `data prepare` reads: no checksum protects them, so each is read a second time, plainly."""

    kinds = damage.OF_TEXTS

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder / "text", folder / "out"
        self.files = write_texts(self.folder, 5)

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it) for one of the files and one form of tokens in turn."""
        name, (vocabulary, settings) = [*self.files][number % 3], FORMS[number // 3 % len(FORMS)]
        kind, content = damage.damaged(self.files[name], seed, number, self.kinds)
        (self.folder / name).write_bytes(content)
        shutil.rmtree(self.out, ignore_errors=True)
        code, lines = call("data", "prepare", self.folder, "--vocabulary", vocabulary, "--out", self.out,
                           *(word for setting in settings for word in ("--set", setting)))
        found = judged(code, lines, same=False)
        texts = [content if name == file else text for file, text in self.files.items()]
        (self.folder / name).write_bytes(self.files[name])
        try:
            expected = plainly(texts, vocabulary, settings)
        except ValueError:
            return kind, found
        if found == "refused":
            return kind, f"refused though whole: {lines}"[:300]
        return kind, "another one's" if found == "accepted" and same_symbols(self.out, expected) else found


def plainly(texts: list[bytes], vocabulary: str, settings: tuple[str, ...]) -> list[list[Any]]:
    """The symbols of each split, of words `<unk>` where training has too few; ValueError where that can't be."""
    if not all(texts):
        raise ValueError("an empty split")
    dropped = "data.convention=transformer-xl" in settings
    if vocabulary == "byte":
        found: list[list[Any]] = [[value for value in text if not dropped or value != 10] for text in texts]
    elif vocabulary == "character":
        found = [[c for c in text.decode() if not dropped or c != "\n"] for text in texts]
    else:
        lines = [text.decode() if text.endswith(b"\n") else text.decode() + "\n" for text in texts]
        found = [line.replace("\n", " <eos> ").split() for line in lines]
        if max(len(word) for words in found for word in words) > LONGEST:
            raise ValueError("a word without end")
        least = 2 if "data.minimum_count=2" in settings else 1
        counts: dict[str, int] = {}
        for word in found[0]:
            counts[word] = counts.get(word, 0) + 1
        known = {word for word, count in counts.items() if count >= least or word == "<eos>"}
        found = [[word if word in known else "<unk>" for word in words] for words in found]
    if not all(found):
        raise ValueError("nothing but what is dropped")
    return found


def same_symbols(folder: Path, expected: list[list[Any]]) -> bool:
    """Whether the prepared text's tokens stand for these symbols."""
    told = json.loads((folder / "prepared.json").read_text())
    symbols = told["vocabulary"]["symbols"] or range(256)
    if told["vocabulary"]["kind"] == "byte":
        symbols = [int(symbol) for symbol in symbols]
    for split, wanted in zip(SPLITS, expected, strict=True):
        tokens = np.fromfile(folder / f"{split}-tokens.bin", np.dtype(told["dtype"])).tolist()
        if [symbols[token] for token in tokens] != wanted:
            return False
    return True


class Nobody:
    """Who is told how far a transfer is, and does not care."""

    def begin(self, name: str, total: int) -> None: ...
    def add(self, count: int) -> None: ...
    def note(self, text: str) -> None: ...


class Archives:
    """A zip archive as texts are fetched in; its own checksum is made to fit, what it holds is known by SHA-1."""

    def __init__(self, folder: Path) -> None:
        texts = write_texts(folder / "text", 20)
        self.path, self.out, self.texts = folder / "given.zip", folder / "out", texts
        with zipfile.ZipFile(self.path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in texts.items():
                archive.writestr(f"texts/{name}", text)
        self.content = self.path.read_bytes()
        whole = [File(f"texts/{name}", len(text), {"sha1": hashlib.sha1(text).hexdigest()}) for name, text in texts.items()]
        self.members = tuple(Member(each, (File(each.name[6:], each.size, {}),)) for each in whole)

    def attempt(self, number: int, seed: int) -> tuple[str, str]:
        """(kind of damage, what came of it)."""
        kind, content = damage.damaged(self.content, seed, number)
        self.path.write_bytes(content)
        shutil.rmtree(self.out, ignore_errors=True)
        known = File("given.zip", len(content), {"sha256": hashlib.sha256(content).hexdigest()})
        item = Item("texts", "", known, self.members, "byte")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found, _ = asked(lambda: fetch.fetch(item, self.out, Nobody(), given=self.path), (InputError,))
        held = {path.name: path.read_bytes() for path in self.out.iterdir()} if self.out.exists() else {}
        return kind, found or ("harmless" if held == self.texts else "accepted")
