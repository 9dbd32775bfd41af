"""The vectors that ship: whole, justified, what is made here, and such that refimpl passes them in every precision."""

import json
import re
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from refimpl.golden import bounds, compare, generate, margins, planted, vectors, verdicts
from refimpl.golden.cases import all_cases
from refimpl.golden.conventions import CONVENTIONS
from refimpl.golden.verdicts import tolerance

CASES = {case.id: case for case in all_cases()}
ENTRIES = {entry["id"]: entry for entry in vectors.entries()}  # each manifest is held to its schema when it is read
TENTH = sorted(np.random.default_rng(0).choice(sorted(CASES), len(CASES) // 10, replace=False))


def test_ids_are_unique_and_those_of_the_definitions():
    ids = [case.id for case in all_cases()]
    assert len(set(ids)) == len(ids) >= 250
    assert set(ENTRIES) == set(ids)


def test_every_flag_is_used_and_explained():
    notes = tomllib.loads(generate.FLAGS.read_text(encoding="utf-8"))
    assert {flag for case in CASES.values() for flag in case.flags} == notes.keys()
    for note in notes.values():
        assert note.keys() == {"kind", "effect"}
        assert note["effect"].endswith(".")
        assert note["effect"].count(note["effect"][:20]) == 1


def test_conventions_are_named_sets():
    assert {case.convention for case in CASES.values()} == {*CONVENTIONS, "any"}


def test_all_of_it_is_small():
    files = [path for path in vectors.FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 4_000_000


def test_inputs_start_every_implementation_from_the_same_numbers():
    """Eight binary digits are exact in bfloat16, and in all others."""
    for case in CASES.values():
        for name, array in case.inputs.items():
            if array.dtype.kind == "f" and "denormal" not in case.flags:
                digits, _ = np.frexp(array)
                assert np.array_equal(digits * 2**8, np.round(digits * 2**8)), (case.id, name)
                assert np.abs(array).max(initial=0) < 65504, (case.id, name)  # the largest number of float16


def test_every_case_catches_a_bug_ten_bounds_off():
    bugs = planted.bugs()
    for entry in ENTRIES.values():
        if entry["result"] == "valid":
            assert entry["catches"]
        assert entry["catches"].keys() <= bugs.keys()
        assert all(margin == 0 or margin >= 10 for found in entry["catches"].values() for margin in found)


@pytest.mark.parametrize("name", TENTH)
def test_a_tenth_of_the_vectors_is_made_anew(name):
    """Values, bounds and margins; all of them are by `make vectors-check`, byte for byte where they were made as here."""
    case, stored = CASES[name], vectors.load_case(ENTRIES[name])
    assert compare.each(stored.inputs, case.inputs, lambda name, x, y: bool(np.array_equal(x, y)))
    assert ENTRIES[name]["settings"] == json.loads(json.dumps(case.settings))
    if case.refused:
        return
    results = bounds.expected(case)
    responses = bounds.responses(case, results)
    alike = compare.made_by(vectors.FOLDER) == generate.maker()
    for tensor, y in results.items():
        found, expected = y.astype(np.float64), stored.results[tensor]
        limit = 0 if alike else tolerance(expected, stored.bounds[tensor], "float64")[0]
        assert (np.abs(found - expected) <= limit).all(), tensor
        assert np.allclose(responses[tensor], stored.bounds[tensor], rtol=compare.BOUNDS, atol=0), tensor
    found = margins.catches([case], {name: results}, {name: responses})[name]
    assert compare.margins_agree(found, ENTRIES[name]["catches"])
    assert found


def test_refimpl_in_extended_precision_is_within_a_roundoff_of_float64():
    for entry in ENTRIES.values():
        if entry["result"] == "valid":
            case = vectors.load_case(entry)
            found = bounds.expected(CASES[case.id])
            verdict = verdicts.judge(case, found, "float64")
            assert verdict.verdict == "PASS"
            assert verdict.off <= 1 / bounds.FACTOR, case.id


def test_files_are_the_same_twice(tmp_path):
    for folder in ("one", "two"):
        generate.generate_group("span", tmp_path / folder)
    assert not compare.differences(tmp_path / "one", tmp_path / "two", exact=True)


@pytest.fixture
def altered(tmp_path):
    """altered(change): a copy of the linear group whose expected tensors of one case, or whose manifest, are changed."""

    def copy(tensors=None, entry=None):
        shutil.copytree(vectors.FOLDER / "linear", tmp_path / "linear")
        manifest = json.loads((tmp_path / "linear" / "manifest.json").read_text())
        case = manifest["cases"][0]
        if tensors is not None:
            stored = vectors.load_case(ENTRIES[case["id"]])
            all_of_them = {name: array.copy() for name, array in stored.results.items()}
            all_of_them |= {vectors.BOUND + name: array.copy() for name, array in stored.bounds.items()}
            tensors(all_of_them)
            data = vectors.tensors_to_bytes(all_of_them)
            (tmp_path / "linear" / f"{vectors.stem(case['id'])}.expected.safetensors").write_bytes(data)
            case["expected"] = vectors.described(data, all_of_them)
        if entry is not None:
            entry(case)
        vectors.write_manifest(tmp_path / "linear", manifest)
        return tmp_path

    return copy


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    folder = tmp_path_factory.mktemp("right")
    shutil.copytree(vectors.FOLDER / "linear", folder / "linear")
    return folder


def test_a_roundoff_of_another_machine_is_no_difference_but_a_bound_is(linear, altered):
    def move(tensors):
        tensors["y"][0, 0, 0] *= 1 + 2.0**-52

    folder = altered(move)
    assert not compare.differences(linear, folder, exact=False)
    assert compare.differences(linear, folder, exact=True) == [
        "linear/manifest.json: another content", "linear/manifest.sha256: another content",
        "linear/rows.expected.safetensors: another content"]


@pytest.mark.parametrize(("tensors", "entry", "said"), [
    (lambda t: t["y"].__imul__(1 + 1e-14), None, "linear/rows: results farther apart than the bound"),
    (lambda t: t["bound of y"].__imul__(1.1), None, "linear/rows: other bounds"),
    (None, lambda case: case["catches"].popitem(), "linear/rows: catches other bugs"),
    (None, lambda case: case.update(settings={"a": 1}), "linear/rows: another manifest entry"),
])
def test_differences_between_machines_are_seen(linear, altered, tensors, entry, said):
    folder = altered(tensors, entry)
    assert compare.differences(linear, folder, exact=False) == [said]
    without_range = [] if "bounds" in said or "catches" in said else [said]
    assert compare.differences(linear, folder, exact=False, extended=False) == without_range


def test_vectors_of_another_platform_are_checked_within_the_bounds(monkeypatch, capsys, tmp_path):
    """As on a machine whose widest type is float64: other digits, near the same bounds, and `--check` says which it is."""
    groups = ("linear", "span", "adaptive-input", "masked-softmax")
    for group in groups:
        shutil.copytree(vectors.FOLDER / group, tmp_path / group)
    generator = {**json.loads((vectors.FOLDER / compare.MAKER).read_text()), "machine": "another", "longdouble_bits": 52}
    (tmp_path / compare.MAKER).write_text(json.dumps(generator))
    chosen = [case for case in all_cases() if case.group in groups]
    monkeypatch.setattr(generate, "all_cases", lambda: chosen)
    monkeypatch.setattr(vectors, "FOLDER", tmp_path)
    as_here = bounds.in_dtype

    def in_dtype(inputs, dtype):
        return as_here(inputs, "float64" if dtype == "longdouble" else dtype)

    def one_after_another(folder):
        for group in groups:
            generate.generate_group(group, folder / group)
        (folder / compare.MAKER).write_text(json.dumps(generate.maker()))

    monkeypatch.setattr(generate, "generate", one_after_another)
    for module in (bounds, margins):
        monkeypatch.setattr(module, "in_dtype", in_dtype)
    assert generate.main(["--check"]) == 0
    assert "within the bounds of float64" in capsys.readouterr().out
    monkeypatch.setattr(bounds, "in_dtype", lambda inputs, dtype: as_here(inputs, "float32"))
    assert generate.main(["--check"]) == 1
    assert "span/ramp: results farther apart than the bound" in capsys.readouterr().out


def test_files_that_only_one_has_are_told(linear, altered):
    folder = altered()
    (folder / "linear" / "more.txt").touch()
    assert compare.differences(linear, folder, exact=False) == [f"linear/more.txt: only in {folder}"]


def test_a_case_that_catches_nothing_and_a_bug_that_passes_are_refused():
    cases = [case for case in CASES.values() if case.group == "linear"]
    with pytest.raises(ValueError, match="cases that catch none: linear/rows"):
        margins.check_power(cases, {case.id: {} for case in cases})
    with pytest.raises(ValueError, match="bugs that pass: bias-gradient-averaged"):
        margins.check_power(cases, {case.id: {"span-ramp-sign": [10.0] * 4} for case in cases})


def test_vectors_stay_as_they_are_if_new_ones_can_not_be_made(monkeypatch, tmp_path):
    chosen = [case for case in all_cases() if case.group == "linear"]
    monkeypatch.setattr(generate, "all_cases", lambda: chosen)
    folder = tmp_path / "v1"
    folder.mkdir()
    (folder / "old").touch()

    def refuse(cases, caught):
        raise ValueError("a bug that passes")

    with monkeypatch.context() as patch:
        patch.setattr(generate, "check_power", refuse)
        with pytest.raises(ValueError, match="a bug that passes"):
            generate.generate(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["v1", "old"]
    generate.generate(folder)
    assert {path.name for path in folder.iterdir()} == {"linear", compare.MAKER}
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_a_manifest_has_a_line_for_each_case():
    for group in vectors.groups():
        text = (vectors.FOLDER / group / "manifest.json").read_text(encoding="utf-8")
        manifest = json.loads(text)
        assert vectors.manifest_text(manifest) == text
        assert text.count("\n") == len(manifest) + 3 + len(manifest["cases"])


DOCS = (Path(__file__).resolve().parent.parent / "docs" / "golden.md").read_text(encoding="utf-8")


def test_the_bound_derived_by_hand_is_the_stored_one():
    case = vectors.load_case(ENTRIES["linear/one-by-one"])
    x, weight, bias = (float(case.inputs[name].flat[0]) for name in ("x", "weight", "bias"))
    y, bound = float(case.results["y"].flat[0]), float(case.bounds["y"].flat[0])
    assert 3 * abs(x * weight) + abs(bias) + abs(y) == bound
    assert f"x = {x}   w = {weight}   b = {bias}   x w = {x * weight}   y = {y}" in DOCS
    assert f"B = 3 · {x * weight} + {-bias} + {y} = {bound}" in DOCS
    said = [f"{bounds.FACTOR * bounds.ROUNDOFF[dtype] * bound:.2g}" for dtype in ("float64", "float32", "bfloat16")]
    assert said == ["4.4e-15", "2.3e-06", "0.15"]
    assert verdicts.tolerance(case.results["y"], case.bounds["y"], "bfloat16")[1].flat[0]


def test_the_page_names_bugs_groups_and_conventions_that_exist():
    known = {*planted.bugs(), *CONVENTIONS, *vectors.groups()}
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", DOCS)) <= known
    assert set(CONVENTIONS) <= set(re.findall(r"\n\| `([a-z-]+)` \|", DOCS))
