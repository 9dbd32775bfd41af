"""Planted bugs: the registry is sound, each changes some result, and all is as before when its block ends."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl.errors import InputError
from refimpl.functions import evaluate
from refimpl.golden import planted
from refimpl.golden.cases import all_cases

BUGS = planted.bugs()
CASES = [case for case in all_cases() if not case.refused]
GROUPS = {case.group for case in CASES}


def results(case):
    with np.errstate(all="ignore"):
        return evaluate(case.function, case.settings, case.inputs)


@pytest.fixture(scope="module")
def right():
    """Every case's results without a bug."""
    return {case.id: results(case) for case in CASES}


def differs(case, right):
    """Whether a result is another one, or whether there is none."""
    try:
        found = results(case)
    except Exception:
        return True
    return any(not np.array_equal(found[name], right[case.id][name], equal_nan=True) for name in found)


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_changes_results_of_its_groups_and_leaves_no_trace(right, name):
    bug = BUGS[name]
    assert bug.sentence.endswith(".")
    assert set(bug.groups) <= GROUPS
    cases = [case for case in CASES if case.group in bug.groups] or CASES
    with planted.planted(bug):
        assert any(differs(case, right) for case in cases) or not bug.groups
    assert not any(differs(case, right) for case in cases[:40])


def test_everything_is_put_back_after_an_exception():
    bug = BUGS["scale-by-model-width"]
    before = {name: dict(vars(module)) for name, module in sys.modules.items() if name.startswith("refimpl")}
    with pytest.raises(KeyError), planted.planted(bug):
        raise KeyError
    for name, names in before.items():
        assert all(vars(sys.modules[name])[key] is value for key, value in names.items()), name


def test_what_others_imported_by_name_is_the_changed_one():
    from refimpl import inputs, model

    text = planted.source_of("inputs").replace("kept = min(config.span, length + block)", "kept = min(1, length + block)")
    right = model.extend_past
    with planted.replaced({"inputs": text}):
        assert model.extend_past is inputs.extend_past
        assert model.extend_past is not right
    assert model.extend_past is inputs.extend_past is right


def test_a_change_that_does_not_fit_is_an_error():
    bug = BUGS["scale-by-model-width"]
    for expression in ("no such text", "queries"):
        wrong = bug._replace(changes=(planted.Change("layers.attention", expression, ""),))
        with pytest.raises(InputError, match=r"expected its expression once in layers.attention, got it \d+ times"):
            planted.changed_sources(wrong)
    with pytest.raises(InputError, match="expected a module of refimpl"):
        planted.source_of("layers.nothing")


def test_every_test_file_is_sorted_into_a_kind(tmp_path, monkeypatch):
    """Or `make mutants` would refuse to begin."""
    spec = importlib.util.spec_from_file_location("kinds", Path(__file__).parent / "mutants" / "kinds.py")
    kinds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kinds)
    kinds.check_complete()
    (tmp_path / "test_new.py").touch()
    monkeypatch.setattr(kinds, "TESTS", tmp_path)
    with pytest.raises(ValueError, match="not there: \\['test_new'\\]"):
        kinds.check_complete()
