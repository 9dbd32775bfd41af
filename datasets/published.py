"""The published texts: where each comes from, what it is known by, and the splits that it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class File:
    """A file by name, bytes and checksums in hexadecimal; exact: `size` is what it has, else more than it has."""

    name: str
    size: int
    checksums: Mapping[str, str]
    exact: bool = True


@dataclass(frozen=True)
class Member:
    """A file of an archive, and the files that it is cut into, in order."""

    whole: File
    parts: tuple[File, ...]


@dataclass(frozen=True)
class Item:
    """A published text. `vocabulary`: what its tokens are unless said otherwise; `decimal`: its splits as prepared there."""

    name: str
    url: str
    archive: File
    members: tuple[Member, ...]
    vocabulary: str
    decimal: tuple[File, ...] = ()

    @property
    def splits(self) -> tuple[File, ...]:
        """The files that a folder of this text holds."""
        return tuple(part for member in self.members for part in member.parts)


def _thirds(train: Mapping[str, str], valid: Mapping[str, str], test: Mapping[str, str]) -> tuple[File, ...]:
    return (File("train.txt", 90_000_000, train), File("valid.txt", 5_000_000, valid), File("test.txt", 5_000_000, test))


def _tokens(split: str, largest: int, sha1: str) -> Member:
    name = f"wiki.{split}.tokens"
    whole = File(f"wikitext-103/{name}", largest, {"sha1": sha1}, exact=False)
    return Member(whole, (File(name, largest, {}, exact=False),))


# Text8's splits have no checksums of their own, and the SHA-256 that one page gives for the whole is left out.
# WikiText-103's files are known by SHA-1 alone: their sizes here are bounds, against an archive that swells.
ITEMS = {item.name: item for item in (
    Item(
        "enwik8", "http://mattmahoney.net/dc/enwik8.zip",
        File("enwik8.zip", 36_445_475, {
            "sha256": "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            "sha1": "d856b1ccd937c51aeb9c342e47666fb8c38e7e72"}),
        (Member(File("enwik8", 100_000_000, {"sha1": "57b8363b814821dc9d47aa4d41f58733519076b2"}), _thirds(
            {"sha1": "d8a8d0ca2a95f20c9d243cb60a579a59d12b0f48"}, {"sha1": "2e6218a15c1d5c3c2d23f8092bf07bc24da0d922"},
            {"sha1": "c30edaac372090c10a562b8777a6703fa3dd9f7e"})),),
        "byte",
        (File("train.txt", 360_000_000, {"sha1": "eff044567358678cd81b9eda516cb146fdba7360"}, exact=False),
         File("valid.txt", 20_000_000, {"sha1": "2076ad59caee0099b6c68e66f92d7ef7d0975113"}, exact=False),
         File("test.txt", 20_000_000, {"sha1": "1389fdf312b253350a959d4fd63e5e9ae7fe74d4"}, exact=False))),
    Item(
        "text8", "http://mattmahoney.net/dc/text8.zip",
        File("text8.zip", 31_344_016, {"sha1": "6c70299b93b7e1f927b42cd8f6ac1a31547c7a2e"}),
        (Member(File("text8", 100_000_000, {"sha1": "0dc3edebc970dcc96137e7deda4d9995af9d93de"}), _thirds({}, {}, {})),),
        "character"),
    Item(
        "wikitext103", "https://wikitext.smerity.com/wikitext-103-v1.zip",
        File("wikitext-103-v1.zip", 190_229_076, {
            "sha256": "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
            "sha1": "0aec09a7537b58d4bb65362fee27650eeaba625a"}),
        (_tokens("train", 600_000_000, "b7497e2dfe77e72cfef5e3dbc61b7b53712ac211"),
         _tokens("valid", 4_000_000, "c326ac59dc587676d58c422eb8a03e119582f92b"),
         _tokens("test", 4_000_000, "8a5befc548865cec54ed4273cf87dbbad60d1e47")),
        "word"),
)}


def fetched_folder(name: str, store: Path) -> Path:
    """Where `data fetch` puts a published text, and where its name is looked up."""
    return store / "texts" / name
