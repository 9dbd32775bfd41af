"""The fault campaigns of tests/faults, reduced and seeded; each notices what is planted for it to find."""

import json
import os
import re
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import calls
import damage
import endurance
import kills
import pytest
import reading

from refimpl import checkpoint, checkpoint_files, durable, settings
from refimpl.datasets import held, prepared, vocabulary

LEAKING = 480  # updates, half of which a leak has to show in
TRACE = """\
openat(AT_FDCWD, "r/.u8", O_WRONLY|O_CREAT|O_TRUNC, 0666) = 3
write(3, "x", 1) = 1
fsync(3) = 0
mkdir("r", 0777) = 0
openat(AT_FDCWD, "r", O_RDONLY) = 3
fsync(3) = 0
rename("r", "u8") = 0
openat(AT_FDCWD, ".", O_RDONLY) = 3
fsync(3) = 0
rmdir("u6") = 0"""


def test_ten_kills_lose_nothing(tmp_path):
    found = kills.campaign(tmp_path, 10, seed=int(os.environ.get("FAULTS_SEED", "3")))
    assert (found["kills"], found["lost"], found["different"]) == (10, 0, 0), found


@pytest.mark.parametrize(("plant", "count", "noticed"), [
    ("no past", 3, "different"), ("text from its beginning", 3, "different"), ("removed first", 10, "lost")])
def test_planted_errors_of_resuming_are_noticed(tmp_path, plant, count, noticed):
    assert kills.campaign(tmp_path, count, seed=1, plant=plant)[noticed] > 0


def test_a_trace_shows_what_was_not_yet_on_the_disk():
    assert calls.unsynced(TRACE.splitlines()) == []
    for forgotten, told in ((2, ["r/.u8"]), (5, ["r"]), (8, ["."])):
        lines = TRACE.splitlines()
        del lines[forgotten]
        assert calls.unsynced(lines) == told


def test_calls_are_counted_from_the_start_and_taken_between_the_marks():
    lines = ["openat(1) = 3", 'access("/refimpl-begins", F_OK) = -1', "openat(2) = 3", "close(3) = 0",
             'access("/refimpl-ends", F_OK) = -1', "openat(3) = 3"]
    assert [place[:2] for place in calls.places(lines)] == [("openat", 2), ("close", 1)]


@pytest.mark.parametrize("name", reading.TARGETS)
def test_damaged_files_are_refused_in_one_line_or_harmless(tmp_path, monkeypatch, name):
    monkeypatch.setenv("REFIMPL_STORE", str(tmp_path / "store"))
    target = reading.TARGETS[name](tmp_path)
    found = [target.attempt(number, seed=0) for number in range(150)]
    assert {kind for kind, _ in found} == getattr(target, "kinds", damage.KINDS).keys()
    assert {outcome for _, outcome in found} <= {"refused", "harmless", "another one's"}
    assert sum(outcome == "refused" for _, outcome in found) > (30 if name == "texts to prepare" else 75)


@pytest.mark.parametrize(("name", "owner", "function", "weak"), [
    ("checkpoints", checkpoint_files, "_read", lambda path, listed: path.read_bytes()),
    ("settings of runs", settings, "_seal", lambda text: ""),
    ("prepared texts", prepared, "_check_sum", lambda *_: None),
    ("texts to prepare", vocabulary, "decoded", lambda chunks, *_: [b"".join(chunks).decode("utf-8", "replace")]),
], ids=["no checksum of tensors", "no seal", "no checksum of tokens", "UTF-8 mended"])
def test_a_reader_that_does_not_look_is_noticed(tmp_path, monkeypatch, name, owner, function, weak):
    monkeypatch.setenv("REFIMPL_STORE", str(tmp_path / "store"))
    target = reading.TARGETS[name](tmp_path)
    monkeypatch.setattr(owner, function, weak)
    if name == "settings of runs":
        monkeypatch.setattr(settings, "SEAL", "")
        target.content = target.content.partition(b"\n")[2]
    assert "accepted" in {target.attempt(number, seed=0)[1] for number in range(150)}


def test_an_archive_that_is_not_held_to_its_sums_is_noticed(tmp_path, monkeypatch):
    target = reading.TARGETS["archives of texts, checksum made to fit"](tmp_path)
    monkeypatch.setattr(held.Held, "end", lambda self: None)
    monkeypatch.setattr(zipfile.ZipExtFile, "_update_crc", lambda *_: None)
    assert "accepted" in {target.attempt(number, seed=0)[1] for number in range(150)}


def test_what_comes_of_a_damaged_file_is_told_apart():
    line = ["refimpl: file: expected this, got that"]
    assert reading.judged(2, line, same=False) == "refused"
    assert reading.judged(0, [], same=True) == "harmless"
    assert reading.judged(0, [], same=False) == "accepted"
    assert reading.judged(2, ["refimpl: not enough memory"], same=False) == "out of memory"
    for code, lines in ((70, line), (1, line), (2, [*line, "more"]), (2, ["Traceback"]), (2, [])):
        assert reading.judged(code, lines, same=False).startswith("unclear")


@pytest.mark.parametrize("name", sorted(damage.KINDS))
def test_damage_is_drawn_by_its_number_alone(name):
    content = b'{"a": 1, "b": [2, 3]}' * 9
    kinds = [damage.damaged(content, 5, number) for number in range(120)]
    assert kinds == [damage.damaged(content, 5, number) for number in range(120)]
    assert name in {kind for kind, _ in kinds}
    assert all(altered != content for _, altered in kinds)


def traced(folder, spoil=""):
    """What a run in a process of its own holds at 12 moments: other tests' leftovers come and go in this one."""
    program = f"""
        import json, sys
        from pathlib import Path
        sys.path.insert(0, {str(Path(endurance.__file__).parent)!r})
        import endurance
        from refimpl import running
        kept, advance = [], running._advance
        def hoarding(*arguments):
            kept.append(None)
            advance(*arguments)
        {spoil}
        print(json.dumps(endurance.endure(Path({str(folder)!r}), {LEAKING}, endurance.held, looks=12)))
        """
    end = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    return json.loads(end.stdout)


def test_memory_stays_flat_and_is_measured(tmp_path):
    found = endurance.endure(tmp_path, 40, looks=4)
    assert len(found) == 4
    assert all(size > 1 << 20 for size in found)
    assert endurance.flat([0, 0], traced(tmp_path / "traced"), LEAKING)


def test_a_slot_of_a_list_for_each_update_is_a_growth(tmp_path):
    assert not endurance.flat([0, 0], traced(tmp_path, "running._advance = hoarding"), LEAKING)


def test_growth_is_what_the_second_half_adds():
    assert endurance.growth([5, 9, 3, 4, 4, 2, 4, 4]) == 0
    assert endurance.growth([9, 9, 9, 4, 5, 6, 7, 6]) == 3
    slots = [8 * update for update in range(25_000, 1_000_001, 25_000)]  # what a list of all updates takes
    assert not endurance.flat(slots, [0, 0], 1)
    assert endurance.flat([7 << 20] * 40, [0, 0], 1)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte that takes no room
    with pytest.raises(Exception, match=re.escape(f"{path}: expected little, got {1 << 40} bytes")):
        durable.read(path, 100, "little")


def test_a_pipe_in_a_files_place_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="got another kind of file"):
        durable.read(tmp_path / "pipe", 100, "a file")


def test_what_is_removed_is_never_half_there(tmp_path, monkeypatch):
    folder = tmp_path / "update-00000001"
    (folder / "inner").mkdir(parents=True)
    monkeypatch.setattr(durable.shutil, "rmtree", lambda *_, **__: None)  # killed before it could delete anything
    durable.remove(folder)
    assert [path.name for path in tmp_path.iterdir()] == [".update-00000001.removed"]
    assert checkpoint.folders(tmp_path) == []


def test_a_disk_that_takes_a_part_of_what_is_written(tmp_path, monkeypatch):
    """A write may be short: the rest is written again, or the disk refuses it."""
    monkeypatch.setattr(durable, "written", lambda file, part: file.write(part[:7]))
    durable.write(tmp_path / "file", [b"x" * 100, b"y"])
    assert (tmp_path / "file").read_bytes() == b"x" * 100 + b"y"
