"""What a terminal shows: passages, and the pace at which they came."""

import json

import pytest

from refimpl import console


@pytest.fixture
def passages(monkeypatch, capsys):
    """passages(prompts, pieces, length, as_json): stdout and stderr of passages that took two seconds."""
    times = iter([10.0, 12.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(times))

    def write(*arguments):
        console.write_passages(*arguments[:3], "there", arguments[3])
        return capsys.readouterr()

    return write


def test_the_pace_is_that_of_all_passages(passages):
    told = passages(["a", "b"], [["c", "d"]] * 3000, 3000, False)
    assert told.err == "6,000 tokens, 3,000 tokens/s\n"
    assert told.out == "a" + "c" * 3000 + "\n\nb" + "d" * 3000 + "\n"


def test_one_passage_is_written_as_it_comes(passages, capsys):
    seen = []

    def pieces():
        for piece in "xyz":
            yield [piece]
            seen.append(capsys.readouterr().out)

    assert passages(["a"], pieces(), 3, False).out == "\n"
    assert seen == ["ax", "y", "z"]


def test_json_lists_passages(passages):
    told = passages(["a", "b"], [["c", "d"], ["e", ""]], 0, True)
    assert json.loads(told.out) == {"checkpoint": "there", "prompt": "a", "text": "ce",
                                    "passages": [{"prompt": "a", "text": "ce"}, {"prompt": "b", "text": "d"}]}
    assert told.err == ""
