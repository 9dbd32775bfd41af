"""Diagnosis: an implementation with a known bug fails, and the bug is named first; a convention is recognised."""

import copy

import numpy as np
import pytest

from refimpl.golden import adapters, diagnose, planted, vectors, verify
from refimpl.golden.conventions import CONVENTIONS, in_convention
from refimpl.golden.findings import findings
from refimpl.golden.verdicts import MISMATCH

ENTRIES = verify.select(verify.Selection())
CAUGHT = {bug for entry in ENTRIES for bug in entry["catches"]}


class Recorded:
    """An implementation that answered before."""

    name, functions = "recorded", None

    def __init__(self, answers):
        self.answers = answers

    def answer(self, case, dtype):
        return self.answers[case.id]


@pytest.fixture(scope="module")
def cases():
    return {entry["id"]: vectors.load_case(entry) for entry in ENTRIES}


@pytest.fixture(scope="module", params=["float64", "float32"])
def held(request, cases):
    """held(bugs, ids): the run of refimpl with these bugs; loads each case and plants each candidate only once."""
    dtype = request.param
    valid = [case for case in cases.values() if case.entry["result"] == "valid"]
    known = list(diagnose.candidates(valid, dtype))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "load_case", lambda entry, folder: cases[entry["id"]])
        patch.setattr(verify, "diagnose", lambda wrong, dtype: diagnose.diagnose(wrong, dtype, known))

        def run(bugs, settings=lambda case: case.entry["settings"], chosen=ENTRIES):
            return verify.verify(Recorded(answers(cases, bugs, settings, dtype)), chosen, dtype)

        run.dtype = dtype
        yield run


def answers(cases, bugs, settings, dtype):
    """What refimpl with these bugs answers, by case."""
    sources = {}
    for bug in bugs:
        sources |= planted.changed_sources(bug)
    found = {}
    with planted.replaced(sources):
        for case in cases.values():
            changed = case._replace(entry={**case.entry, "settings": settings(case)})
            try:
                found[case.id] = adapters.Reference().answer(changed, dtype)
            except Exception as error:
                found[case.id] = adapters.Answer("crashed", {}, str(error))
    return found


def test_every_bug_that_a_value_can_show_is_named_first(held, record_property):
    at = ("float64", "float32").index(held.dtype)
    bugs = [bug for bug in planted.bugs().values() if any(entry["catches"].get(bug.id, [0, 0])[at] for entry in ENTRIES)]
    bugs = bugs if held.dtype == "float64" else bugs[::4]
    missed, tied = [], []
    for bug in bugs:
        run = held([bug])
        first, *others = [*findings(run, "bug"), None]
        assert verify.exit_code(run) in (1, 3), bug.id
        if first is None or not first.exact or first.name != bug.id:
            missed.append(bug.id)
        elif others[0] is not None and others[0][3:7] == first[3:7]:
            tied.append((bug.id, others[0].name))
    rate = f"{held.dtype}: {len(bugs) - len(missed)} of {len(bugs)} named first"
    print(rate)
    record_property("rate", rate)
    assert not missed, rate
    assert held.dtype == "float32" or not tied, tied
    assert len(bugs) >= (140 if held.dtype == "float64" else 35)


def test_every_group_of_a_bug_catches_it():
    for bug in planted.bugs().values():
        for group in bug.groups:
            assert any(bug.id in entry["catches"] for entry in ENTRIES if entry["group"] == group), (bug.id, group)


@pytest.mark.parametrize(("one", "other"), [
    ("scale-by-model-width", "layer-norm-unbiased-variance"), ("span-off-by-one", "memory-values-without-root-slots"),
    ("clip-by-the-global-norm", "self-attended"),
])
def test_two_bugs_at_once_are_a_mismatch_and_each_is_named_where_it_stands_alone(held, one, other):
    bugs = planted.bugs()
    run = held([bugs[one], bugs[other]])
    named = [finding.name for finding in findings(run, "bug")]
    assert verify.exit_code(run) == 1
    assert {one, other} <= set(named)


def test_two_bugs_in_the_same_values_are_a_mismatch_with_the_nearest_named(held):
    bugs = planted.bugs()
    chosen = [entry for entry in ENTRIES if entry["id"] == "attention/ordinary@exact"]
    run = held([bugs["span-off-by-one"], bugs["memory-values-without-root-slots"]], chosen=chosen)
    (first, *_) = findings(run, "bug")
    assert run.verdicts[0].verdict == MISMATCH
    assert not first.exact
    assert 0 < first.distance < 10


@pytest.mark.parametrize("name", CONVENTIONS)
def test_an_implementation_of_another_convention_is_recognised(held, name):
    run = held([], lambda case: in_convention(case.entry, name), [entry for entry in ENTRIES if entry["result"] == "valid"])
    wrong = {verdict.id for verdict in run.verdicts if verdict.verdict == MISMATCH}
    assert wrong
    assert not any(run.entries[case]["convention"] == name for case in wrong)
    first = findings(run, "convention")[0]
    assert (first.name, first.exact) == (name, True)
    # an ε of 1e-8 shows in float32 only where a number is 0 without it, and there roundoff is as large
    assert len(first.cases) >= (len(wrong) if held.dtype == "float64" else 0.9 * len(wrong))


def test_what_is_no_known_bug_is_said_to_be_none(held, cases):
    case = cases["layer-norm/rows"]
    got = copy.deepcopy(dict(case.results))
    got["d_x"] *= 1.01
    (matches,) = diagnose.diagnose([(case, got)], held.dtype).values()
    assert 1 <= len(matches) <= 3
    assert not any(match.matches for match in matches)


def test_values_that_are_not_numbers_match_only_such(cases):
    case = cases["softmax/larger"]
    with np.errstate(all="ignore"):
        naive = np.exp(case.inputs["logits"])
        naive = naive / naive.sum(-1, keepdims=True)
        d = naive * (case.inputs["d_attention"] - (naive * case.inputs["d_attention"]).sum(-1, keepdims=True))
    (matches,) = diagnose.diagnose([(case, {"attention": naive, "d_logits": d})], "float64").values()
    assert [(match.name, match.matches) for match in matches] == [("softmax-maximum-not-subtracted", True)]
