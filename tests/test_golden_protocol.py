"""The page on the file protocol: what it shows is what is written, and what it says of codes and limits is so."""

import inspect
import json
import re
import struct
import subprocess
from pathlib import Path

import pytest

from refimpl.functions import FUNCTIONS
from refimpl.golden import adapters, exchange, processes, vectors
from refimpl.golden.commands import verify as command
from refimpl.golden.verify import Selection, select

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "golden-protocol.md").read_text(encoding="utf-8")
SOURCES = ROOT / "examples" / "adapters" / "c"
CASE = "linear/one-by-one"


def blocks(language):
    """(title, text) of every block of a language; the title stands behind its name."""
    return re.findall(rf"^ *```{language}(?: ([^\n]*))?\n(.*?)^ *```$", PAGE, re.M | re.S)


def lines(text):
    """Without indentation, which a list on the page changes."""
    return "\n".join(line.strip() for line in text.strip().splitlines())


def names(arrays):
    """As the table writes them: name.i for name.0, name.1, …; cotangents and gradients follow from the others."""
    return {re.sub(r"[.][0-9]+$", ".i", name) for name in arrays if not name.startswith("d_")}


def header(data):
    """A safetensors file's header, and its length."""
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), length


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What goes out and comes back for the page's case, by the page's titles."""
    folder = tmp_path_factory.mktemp("protocol")
    exchange.write_case(folder / "case", vectors.load_case(select(Selection(ids=(CASE,)))[0]), "float64")
    program, out = str(folder / "example"), folder / "out"
    out.mkdir()
    (compile_it,) = re.findall(r"^cc .*$", PAGE, re.M)
    line = compile_it.replace("-o example", f"-o {program}").replace(
        "examples/adapters/c/*.c", " ".join(map(str, sorted(SOURCES.glob("*.c")))))
    subprocess.run(line.split(), check=True)
    subprocess.run([program, str(folder / "case"), str(out)], check=True)
    described = subprocess.run([program, "--describe"], check=True, capture_output=True, text=True).stdout
    inputs, results = (folder / "case" / "inputs.safetensors").read_bytes(), (out / exchange.RESULTS).read_bytes()
    return {"case.json": json.loads((folder / "case" / "case.json").read_text()), "--describe": json.loads(described),
            "header of inputs.safetensors": header(inputs)[0], "header of results.safetensors": header(results)[0],
            "length": header(inputs)[1]}


def test_every_json_block_is_what_is_written(written):
    shown = dict(blocks("json"))
    assert set(shown) == set(written) - {"length"}
    for title, text in shown.items():
        assert json.loads(text) == written[title], title
    assert f"{written['length']} bytes with the spaces" in PAGE


def test_every_block_of_c_is_the_example_s():
    sources = [lines(path.read_text(encoding="utf-8")) for path in SOURCES.glob("*.c")]
    assert len(blocks("c")) == 3
    for _, text in blocks("c"):
        assert any(lines(text) in source for source in sources), text


def test_fields_types_and_settings(written):
    fields = set(re.findall(r"^\| `(\w+)` \| [^|]+\|$", PAGE, re.M))
    assert fields == set(written["case.json"])
    assert all(f"`{dtype}`" in PAGE for dtype in exchange.DIGITS)


def test_codes_and_limits():
    assert f"| {adapters.NOT_IMPLEMENTED} | not implemented |" in PAGE
    assert f"{exchange.LARGEST // 2**20} MiB" in PAGE
    default, limits = {option.name: option.default for option in command.params}, processes.Limits()
    assert (default["time_limit"], default["memory_limit"]) == (limits.seconds, limits.memory)
    assert f"Each case has {limits.seconds:g} seconds" in PAGE
    assert f"each process may ask for {limits.memory:g} GiB" in PAGE
    assert set(re.findall(r"^\| (\d) \| ", PAGE.split("## How a run ends")[1], re.M)) == set("01234")


def test_names_of_folders_of_results_are_those_that_are_read():
    source = inspect.getsource(adapters.ResultsFolder.answer)
    assert ".refused" in source
    assert "linear/one-by-one.results.safetensors" in PAGE
    assert exchange.RESULTS == "results.safetensors"


BY_PATTERN = {"attention-layer", "transformer-layer", "model", "optimizer"}  # their inputs are parameters: name.…
AS_ANOTHER = {"attention-split", "single-head", "head-split"}


def test_every_function_stands_in_the_table_with_its_settings_inputs_and_outputs():
    rows = [line.split("|")[1:5] for line in PAGE.split("## The functions")[1].splitlines() if line.startswith("| `")]
    table = {name.strip(" `"): cells for name, *cells in rows}
    assert set(table) == set(FUNCTIONS)
    for entry in select(Selection()):
        if entry["function"] in BY_PATTERN | AS_ANOTHER:
            continue
        case, cells = vectors.load_case(entry), table[entry["function"]]
        for kind, cell in zip((entry["settings"], case.inputs, case.results), cells, strict=True):
            assert names(kind) <= set(re.findall(r"`([^`]+)`", cell)), entry["id"]
