"""Published texts brought here: from a server on this machine that misbehaves, from archives that do, and from copies."""

import errno
import hashlib
import io
import resource
import shutil
import subprocess
import sys
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from refimpl.datasets import fetch as module
from refimpl.datasets.download import Patience, download
from refimpl.datasets.fetch import check_splits, decimal, fetch, write_decimal
from refimpl.datasets.published import ITEMS, File, Item, Member
from refimpl.errors import InputError, OutsideError

TEXT = b"<mediawiki>\n a b\n\n" + bytes(range(1, 256)) * 5000  # more than a chunk
CUT = (1_000_000, 200_000)
WORDS = {"train": b" = A =\n one two\n", "valid": b" = B =\n", "test": b" two\n"}


def sums(data):
    return {"sha256": hashlib.sha256(data).hexdigest(), "sha1": hashlib.sha1(data).hexdigest()}


def file_of(name, data):
    return File(name, len(data), sums(data))


def entry(name, kind=0o100644, **attributes):
    """A member's head, the same whenever it is made."""
    info = zipfile.ZipInfo("text")
    info.filename, info.external_attr = name, kind << 16
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def zipped(*members, method=zipfile.ZIP_DEFLATED):
    """An archive; a member is a name or a ZipInfo, and bytes."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, data in members:
            archive.writestr(name if isinstance(name, zipfile.ZipInfo) else entry(name, compress_type=method), data)
    return packed.getvalue()


def parts():
    train, valid = CUT
    cut = {"train.txt": TEXT[:train], "valid.txt": TEXT[train:train + valid], "test.txt": TEXT[train + valid:]}
    return cut, tuple(file_of(name, data) for name, data in cut.items())


def item_of(archive, **changed):
    """A small text like enwik8, whose archive is known to be that one."""
    whole = Member(file_of("text", TEXT), parts()[1])
    made = Item("small", "http://127.0.0.1:1/small.zip", file_of("small.zip", archive), (whole,), "byte",
                tuple(file_of(part.name, b"".join(decimal([parts()[0][part.name]]))) for part in parts()[1]))
    return replace(made, **changed)


def words_item(archive, **changed):
    """A small text like WikiText-103: three members in a folder, of sizes not known exactly."""
    members = tuple(Member(File(f"words/wiki.{split}.tokens", 1000, {"sha1": sums(data)["sha1"]}, exact=False),
                           (File(f"wiki.{split}.tokens", 1000, {}, exact=False),)) for split, data in WORDS.items())
    return replace(Item("words", "http://127.0.0.1:1/words.zip", file_of("words.zip", archive), members, "word"), **changed)


ARCHIVE = zipped(("text", TEXT))
WORD_MEMBERS = [("words/", b""), *((f"words/wiki.{split}.tokens", data) for split, data in WORDS.items())]


class Listener:
    """Keeps what a meter is told."""

    def __init__(self):
        self.begun, self.done, self.notes = [], 0, []

    def begin(self, name, total):
        self.begun.append((name, total))
        self.done = 0

    def add(self, count):
        self.done += count

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def meter():
    return Listener()


@pytest.fixture
def waited():
    return []


@pytest.fixture
def patience(waited):
    return Patience((1, 2), 5, waited.append)


@pytest.fixture
def serve(monkeypatch):
    """serve(*answers): an address whose n-th request gets the n-th answer, the last one ever after; counts requests."""
    monkeypatch.setenv("NO_PROXY", "*")
    started = []

    def start(*answers):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                server.requests.append(self.path)
                answers[min(len(server.requests), len(answers)) - 1](self)
                self.close_connection = True

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.requests = True, []
        server.url = f"http://127.0.0.1:{server.server_port}/small.zip"
        server.ended = threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.ended.set()
        server.shutdown()
        server.server_close()


def answer(data, length=None, status=200, **headers):
    """An answer with these bytes, and a Content-Length that may be another's (False: none)."""

    def send(handler):
        handler.send_response(status)
        handler.send_header("Connection", "close")
        if length is not False:
            handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    return send


def in_pieces(handler):
    """Slow: byte by byte at first, each sent on its own."""
    handler.send_response(200)
    handler.end_headers()
    for place in range(200):
        handler.wfile.write(ARCHIVE[place:place + 1])
        handler.wfile.flush()
    handler.wfile.write(ARCHIVE[200:])


def silent(handler):
    """Falls silent in the middle, until the test is over."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(ARCHIVE)))
    handler.end_headers()
    handler.wfile.write(ARCHIVE[:99])
    handler.wfile.flush()
    handler.server.ended.wait()


def endless(handler):
    """More and more bytes, until the reader has had enough."""
    handler.send_response(200)
    handler.end_headers()
    try:
        while True:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        handler.server.ended.set()


def hang_up(handler):
    handler.connection.shutdown(2)


def nothing_but(folder, *names):
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def splits_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_archive_from_a_server(tmp_path, serve, meter, patience, waited):
    server = serve(answer(ARCHIVE))
    told = fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, patience)
    assert splits_in(tmp_path / "out") == parts()[0]
    assert told == {"name": "small", "folder": str(tmp_path / "out"), "from": server.url,
                    "bytes": {name: len(data) for name, data in parts()[0].items()}}
    assert nothing_but(tmp_path, "out")
    assert meter.begun == [("small.zip", len(ARCHIVE)), ("text, unpacked", len(TEXT))]
    assert meter.done == len(TEXT)
    assert not waited


def test_the_items_own_address_is_asked_unless_another_is_named(tmp_path, serve, meter, patience):
    server = serve(answer(ARCHIVE))
    fetch(item_of(ARCHIVE, url=server.url), tmp_path / "out", meter, patience=patience)
    assert server.requests == ["/small.zip"]


def test_members_in_a_folder_of_the_archive(tmp_path, serve, meter, patience):
    archive = zipped(*WORD_MEMBERS)
    fetch(words_item(archive), tmp_path / "out", meter, serve(answer(archive)).url, None, patience)
    assert splits_in(tmp_path / "out") == {f"wiki.{split}.tokens": data for split, data in WORDS.items()}


def test_what_is_there_is_not_fetched_again(tmp_path, serve, meter, patience):
    server = serve(answer(ARCHIVE))
    for _ in range(2):
        told = fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, patience)
    assert told["from"] == "there already"
    assert len(server.requests) == 1


@pytest.mark.parametrize("change", ["byte", "longer", "missing", "other"])
def test_a_folder_that_holds_something_else_stays_as_it_is(tmp_path, meter, serve, patience, change):
    out, server = tmp_path / "out", serve(answer(ARCHIVE))
    fetch(item_of(ARCHIVE), out, meter, server.url, None, patience)
    if change == "byte":
        (out / "valid.txt").write_bytes(b"!" + parts()[0]["valid.txt"][1:])
    if change == "longer":
        (out / "test.txt").write_bytes(parts()[0]["test.txt"] + b"!")
    if change in ("missing", "other"):
        for path in out.iterdir():
            path.unlink()
        (out / ("train.txt" if change == "missing" else "mine")).write_bytes(parts()[0]["train.txt"])
    before = splits_in(out)
    with pytest.raises(InputError, match="out: expected a new or empty folder, or the splits of small, got something else"):
        fetch(item_of(ARCHIVE), out, meter, server.url, None, patience)
    assert splits_in(out) == before
    assert len(server.requests) == 1


def test_splits_without_checksums_are_known_by_the_whole(tmp_path, meter):
    whole = Member(file_of("text", TEXT), tuple(replace(part, checksums={}) for part in parts()[1]))
    item = item_of(ARCHIVE, members=(whole,))
    (tmp_path / "text").write_bytes(TEXT)
    fetch(item, tmp_path / "out", meter, given=tmp_path / "text")
    check_splits(item, tmp_path / "out")
    (tmp_path / "out" / "valid.txt").write_bytes(b"!" + parts()[0]["valid.txt"][1:])
    with pytest.raises(InputError, match="expected SHA-256"):
        check_splits(item, tmp_path / "out")


REFUSED = [
    (answer(ARCHIVE[:-1] + b"!"), f"SHA-256 {sums(ARCHIVE)['sha256']}, got {sums(ARCHIVE[:-1] + b'!')['sha256']}"),
    (answer(ARCHIVE + b"!"), f"expected {len(ARCHIVE):,} bytes, got an answer of {len(ARCHIVE) + 1:,}"),
    (answer(b"<html>no such page</html>"), "got an answer of 25"),
    (answer(ARCHIVE + b"!", length=False), f"expected {len(ARCHIVE):,} bytes, got more"),
    (answer(ARCHIVE + b"!", length="9" * 5000), "got more"),
    (answer(b"gone", status=404), "expected small.zip, got 404 Not Found"),
    (answer(b"no", status=403), "got 403 Forbidden"),
    (answer(b"", status=204), "got 204 No Content"),
]


@pytest.mark.parametrize(("send", "message"), REFUSED)
def test_answers_that_are_refused_at_once(tmp_path, serve, meter, patience, waited, send, message):
    server = serve(send)
    with pytest.raises(OutsideError) as refusal:
        fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, patience)
    assert message in str(refusal.value)
    assert server.url in str(refusal.value)
    assert nothing_but(tmp_path)
    assert not waited
    assert len(server.requests) == 1


def test_an_answer_without_end_is_left(tmp_path, serve, meter, patience):
    server = serve(endless)
    with pytest.raises(OutsideError, match="got more; nothing was kept"):
        fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, patience)
    assert server.ended.wait(60)
    assert nothing_but(tmp_path)


PASSING = [
    (answer(b"", status=500), "got 500 Internal Server Error"),
    (answer(b"", status=503), "got 503 Service Unavailable"),
    (answer(b"", status=429), "got 429 Too Many Requests"),
    (answer(ARCHIVE[:-9], length=len(ARCHIVE)), "IncompleteRead"),
    (answer(ARCHIVE[:-9], length=False), f"expected {len(ARCHIVE):,} bytes, got {len(ARCHIVE) - 9:,}"),
    (hang_up, "Remote end closed connection without response"),
    (silent, "Read timed out"),
]


@pytest.mark.parametrize(("send", "message"), PASSING)
def test_failures_that_pass(tmp_path, serve, meter, waited, send, message):
    server = serve(send, answer(ARCHIVE))
    fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, Patience((3, 7), 0.2, waited.append))
    assert splits_in(tmp_path / "out") == parts()[0]
    assert waited == [3]
    (note,) = meter.notes
    assert message in note
    assert note.endswith("; once more in 3 s")


@pytest.mark.parametrize(("send", "message"), PASSING)
def test_failures_that_do_not_pass(tmp_path, serve, meter, waited, send, message):
    server = serve(send)
    with pytest.raises(OutsideError) as refusal:
        fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, Patience((3, 7), 0.2, waited.append))
    assert message in str(refusal.value)
    assert "at each of 3 attempts (--from takes a copy of small.zip)" in str(refusal.value)
    assert waited == [3, 7]
    assert len(server.requests) == 3
    assert nothing_but(tmp_path)


def test_a_slow_answer(tmp_path, serve, meter, patience):
    fetch(item_of(ARCHIVE), tmp_path / "out", meter, serve(in_pieces).url, None, patience)
    assert splits_in(tmp_path / "out") == parts()[0]


def test_redirections(tmp_path, serve, meter, patience):
    there = serve(answer(ARCHIVE))
    here = serve(answer(b"", status=302, Location=there.url))
    fetch(item_of(ARCHIVE), tmp_path / "out", meter, here.url, None, patience)
    assert splits_in(tmp_path / "out") == parts()[0]
    circle = serve(answer(b"", status=302, Location="/again"))
    with pytest.raises(OutsideError, match="expected an answer, got Exceeded 30 redirects"):
        fetch(item_of(ARCHIVE), tmp_path / "more", meter, circle.url, None, patience)
    elsewhere = serve(answer(b"", status=302, Location="file:///etc/passwd"))
    with pytest.raises(OutsideError, match="expected an answer, got No connection adapters"):
        fetch(item_of(ARCHIVE), tmp_path / "more", meter, elsewhere.url, None, patience)
    assert nothing_but(tmp_path, "out")


def test_no_network(tmp_path, serve, meter, patience, waited):
    server = serve(answer(ARCHIVE))
    server.shutdown()
    server.server_close()
    with pytest.raises(OutsideError, match=r"expected a server to connect to, got \[Errno 111\] Connection refused .no net"):
        fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, patience)
    assert not waited
    assert nothing_but(tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "small.zip", ""])
def test_addresses_that_are_none(tmp_path, meter, patience, url):
    with pytest.raises(InputError, match="--url: expected an address that begins with http"):
        download(url, file_of("small.zip", ARCHIVE), tmp_path, meter, patience)


def test_without_pooch(tmp_path, meter, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(InputError, match=r"pip install 'refimpl\[fetch\]'`, or --from"):
        fetch(item_of(ARCHIVE), tmp_path / "out", meter)
    (tmp_path / "small.zip").write_bytes(ARCHIVE)
    fetch(item_of(ARCHIVE), tmp_path / "out", meter, given=tmp_path / "small.zip")
    assert splits_in(tmp_path / "out") == parts()[0]


@pytest.mark.parametrize("name", ["small.zip", "text", "folder"])
def test_copies(tmp_path, meter, name):
    given = tmp_path / name
    if name == "folder":
        given.mkdir()
    (given / "text" if name == "folder" else given).write_bytes(ARCHIVE if name == "small.zip" else TEXT)
    (tmp_path / "out").mkdir()
    assert fetch(item_of(ARCHIVE), tmp_path / "out", meter, given=given)["from"] == str(given)
    assert splits_in(tmp_path / "out") == parts()[0]
    assert nothing_but(tmp_path, name, "out")


def test_a_folder_of_words(tmp_path, meter):
    for split, data in WORDS.items():
        (tmp_path / f"wiki.{split}.tokens").write_bytes(data)
    fetch(words_item(ARCHIVE), tmp_path / "out", meter, given=tmp_path)
    assert splits_in(tmp_path / "out") == {f"wiki.{split}.tokens": data for split, data in WORDS.items()}
    (tmp_path / "wiki.test.tokens").write_bytes(b"other\n")
    with pytest.raises(InputError, match=r"wiki\.test\.tokens: expected SHA-1 "):
        fetch(words_item(ARCHIVE), tmp_path / "more", meter, given=tmp_path)
    (tmp_path / "wiki.test.tokens").unlink()
    with pytest.raises(InputError, match=r"wiki\.test\.tokens: expected a file that can be read, got No such file"):
        fetch(words_item(ARCHIVE), tmp_path / "more", meter, given=tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    (ARCHIVE[:-1] + b"!", "expected SHA-256"), (ARCHIVE + b"!", "got more"), (b"PK\3\4", "bytes, got 4"),
    (TEXT[:-1], "bytes, got 1,275,017"), (TEXT[:-1] + b"!", f"expected SHA-256 {sums(TEXT)['sha256']}, got"), (b"", "got 0"),
    (TEXT + b"!", "got more"),
])
def test_copies_of_something_else(tmp_path, meter, content, message):
    (tmp_path / "given").write_bytes(content)
    with pytest.raises(InputError, match="given") as refusal:
        fetch(item_of(ARCHIVE), tmp_path / "out", meter, given=tmp_path / "given")
    assert message in str(refusal.value)
    assert nothing_but(tmp_path, "given")


def test_copies_that_are_not_there(tmp_path, meter):
    with pytest.raises(InputError, match="given: expected a file that can be read, got No such file"):
        fetch(item_of(ARCHIVE), tmp_path / "out", meter, given=tmp_path / "given")
    (tmp_path / "given").write_bytes(b"text")
    with pytest.raises(InputError, match=r"given: expected words\.zip, or a folder with what it holds, got neither"):
        fetch(words_item(ARCHIVE), tmp_path / "out", meter, given=tmp_path / "given")


def twice():
    with pytest.warns(UserWarning, match="Duplicate name"):
        return zipped(("text", TEXT), ("text", TEXT))


def encrypted():
    """The archive with the flag of encryption, in the member's head and in the list at the end."""
    made = bytearray(ARCHIVE)
    made[6] |= 1
    made[made.rindex(b"PK\1\2") + 8] |= 1
    return bytes(made)


HOSTILE = {
    "up": (lambda: zipped(("text", TEXT), (entry("../evil"), b"x")), "'../evil' that leads out of its folder"),
    "up inside": (lambda: zipped((entry("a/../../text"), TEXT)), "that leads out of its folder"),
    "up the other way": (lambda: zipped((entry("..\\evil"), TEXT)), "that leads out of its folder"),
    "absolute": (lambda: zipped((entry("/tmp/evil"), TEXT)), "'/tmp/evil' with an absolute name"),
    "drive": (lambda: zipped((entry("C:evil"), TEXT)), "with an absolute name"),
    "link": (lambda: zipped((entry("text", 0o120777), b"/etc/passwd")), "'text' that is a link or a special file"),
    "pipe": (lambda: zipped((entry("text", 0o010644), b"")), "that is a link or a special file"),
    "more": (lambda: zipped(("text", TEXT), ("more", b"x")), "'more' where only text should be"),
    "folder": (lambda: zipped(("text", TEXT), ("more/", b"")), "'more/' where only text should be"),
    "none": (lambda: zipped(("other", TEXT)), "'other' where only text should be"),
    "empty": (zipped, "expected a zip archive|expected a member text, got none|bytes, got 22"),
    "twice": (twice, "'text' twice"),
    "encrypted": (encrypted, "'text' that is encrypted"),
    "bomb": (lambda: zipped(("text", bytes(1 << 24))), "that swells to 16,777,216 bytes where 1,275,018 are known"),
    "short": (lambda: zipped(("text", TEXT[:-1])), "expected 1,275,018 bytes, got 1,275,017"),
    "other text": (lambda: zipped(("text", TEXT[:-1] + b"!")), "text: expected SHA-256|expected SHA-256"),
    "packed otherwise": (lambda: zipped(("text", TEXT), method=zipfile.ZIP_BZIP2), "packed by method 12, not deflated"),
    "cut off": (lambda: ARCHIVE[:-30], "expected a zip archive, got File is not a zip file"),
    "changed": (lambda: ARCHIVE[:60] + bytes(9) + ARCHIVE[69:], "expected a member that can be unpacked|expected SHA-256"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_archives_that_are_refused(tmp_path, meter, name):
    """As if the checksum were right: what an archive holds is not trusted even then."""
    make, message = HOSTILE[name]
    archive = make()
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "given.zip").write_bytes(archive)
    with pytest.raises(InputError, match=message):
        fetch(item_of(archive), tmp_path / "inner" / "out", meter, given=tmp_path / "inner" / "given.zip")
    assert nothing_but(tmp_path, "inner")
    assert nothing_but(tmp_path / "inner", "given.zip")


def test_an_archive_that_tells_a_size_too_small(tmp_path, meter):
    """16 MB of zeros under the text's size: no more than that is ever unpacked."""
    made = bytearray(zipped(("text", bytes(1 << 24))))
    for place in (22, made.rindex(b"PK\1\2") + 24):
        made[place:place + 4] = len(TEXT).to_bytes(4, "little")
    (tmp_path / "given.zip").write_bytes(made)
    with pytest.raises(InputError, match=r"given\.zip"):
        fetch(item_of(bytes(made)), tmp_path / "out", meter, given=tmp_path / "given.zip")
    assert meter.done <= len(TEXT)
    assert nothing_but(tmp_path, "given.zip")


def full_after(count):
    """A Path.open whose files hold so many bytes together, and then the disk is full."""
    original, left = Path.open, [count]

    def opened(path, mode="r", *rest):
        file = original(path, mode, *rest)
        if mode != "wb":
            return file
        write = file.write

        class Full(io.RawIOBase):
            def writable(self):
                return True

            def write(self, data):
                left[0] -= len(data)
                if left[0] < 0:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return write(data)

            def close(self):
                file.close()
                super().close()

        return Full()

    return opened


@pytest.mark.parametrize("room", [100, len(ARCHIVE) + 100, len(ARCHIVE) + len(TEXT) - 100])
def test_a_full_disk(tmp_path, serve, meter, patience, waited, monkeypatch, room):
    """While it downloads, as it begins to unpack, just before the end."""
    server = serve(answer(ARCHIVE))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_after(room))
        with pytest.raises(InputError, match=r"out: expected .* room for the archive and 1 MB of text, got No space left"):
            fetch(item_of(ARCHIVE), tmp_path / "out", meter, server.url, None, patience)
    assert nothing_but(tmp_path)
    assert not waited


def test_files_of_limited_size(tmp_path):
    """The system itself refuses to write on: a command of its own, one line, exit 2."""
    (tmp_path / "small.zip").write_bytes(ARCHIVE)
    program = f"""
import signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import test_datasets_fetch as tests
from refimpl import texts
from refimpl.cli import main
texts.ITEMS["enwik8"] = tests.item_of(tests.ARCHIVE)
main(["data", "fetch", "enwik8", "--from", "small.zip", "--out", "out"])
"""
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, preexec_fn=limit)
    *progress, last = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert last.startswith("refimpl: out: expected a folder that can be written")
    assert last.endswith("got File too large")
    assert all(line.startswith("text, unpacked  ") for line in progress)
    assert nothing_but(tmp_path, "small.zip")


def test_a_place_that_cannot_be_written(tmp_path, meter):
    (tmp_path / "text").write_bytes(TEXT)
    with pytest.raises(InputError, match=r"text/out: expected a folder .* written, .* got (Not a directory|File exists)"):
        fetch(item_of(ARCHIVE), tmp_path / "text" / "out", meter, given=tmp_path / "text")


def test_decimal_by_hand():
    assert b"".join(decimal([b"<m>\n", b"\n a"])) == b"60 109 62 \n \n 32 97"
    assert b"".join(decimal([])) == b""


def test_the_published_preparation(tmp_path, meter, monkeypatch):
    (tmp_path / "text").write_bytes(TEXT)
    item, out = item_of(ARCHIVE), tmp_path / "out"
    fetch(item, out, meter, given=tmp_path / "text")
    assert write_decimal(item, out) == write_decimal(item, out) == out / "decimal"
    numbers = (out / "decimal" / "valid.txt").read_bytes().replace(b"\n", b"10").split(b" ")
    assert bytes(map(int, numbers)) == parts()[0]["valid.txt"]
    assert fetch(item, out, meter)["from"] == "there already"
    with pytest.raises(InputError, match=r"--decimal: expected enwik8, .* got small"):
        write_decimal(replace(item, decimal=()), out)
    other = replace(item, decimal=(*item.decimal[:2], replace(item.decimal[2], checksums={"sha1": "0" * 40})))
    with pytest.raises(InputError, match=r"decimal/test\.txt: expected SHA-1 0{40}, got [0-9a-f]{40}"):
        write_decimal(other, out)
    assert nothing_but(out, "decimal", *parts()[0])
    assert write_decimal(item, out) == out / "decimal"
    shutil.rmtree(out / "decimal")
    (out / "decimal").mkdir()
    (out / "decimal" / "mine").write_bytes(b"kept")
    with pytest.raises(InputError, match=r"decimal/train\.txt: expected a file that can be read"):
        write_decimal(item, out)
    assert (out / "decimal" / "mine").read_bytes() == b"kept"
    shutil.rmtree(out / "decimal")
    with pytest.raises(InputError, match=r"decimal/test\.txt: expected SHA-1 0{40}, got [0-9a-f]{40}"):
        write_decimal(other, out)
    assert nothing_but(out, *parts()[0])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full_after(1000))
        with pytest.raises(InputError, match="decimal: expected a folder that can be written, got No space left"):
            write_decimal(item, out)


def test_the_table_of_published_texts():
    """What the code needs of it; checksums of the right form are held to the right sizes."""
    assert list(ITEMS) == ["enwik8", "text8", "wikitext103"]
    lengths = {"sha1": 40, "sha256": 64}
    for name, item in ITEMS.items():
        files = [item.archive, *item.decimal, *item.splits, *(member.whole for member in item.members)]
        assert all(len(value) == lengths[kind] == len(f"{int(value, 16):0{lengths[kind]}x}")
                   for file in files for kind, value in file.checksums.items())
        assert item.archive.checksums
        assert item.archive.exact
        for member in item.members:
            assert member.whole.checksums
            assert sum(part.size for part in member.parts) == member.whole.size
        assert item.name == name
        assert item.url.endswith(f"/{item.archive.name}")
    sizes = [tuple(file.size for file in ITEMS[name].splits) for name in ("enwik8", "text8")]
    assert sizes == [(90_000_000, 5_000_000, 5_000_000)] * 2
    assert ARCHIVE[:4] == module.ZIP
