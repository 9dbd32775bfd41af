"""The PyTorch adapter: autograd on an independent forward agrees with every golden vector, and errors in it are seen."""

from pathlib import Path

import pytest
import torch_adapter

from refimpl.functions import FUNCTIONS
from refimpl.golden.adapters import opened
from refimpl.golden.findings import findings
from refimpl.golden.processes import Limits
from refimpl.golden.reports import summary
from refimpl.golden.vectors import load_case
from refimpl.golden.verify import Selection, exit_code, judged, select, verify

EXAMPLES = Path(torch_adapter.__file__).parent.parent


def test_it_declares_every_function():
    assert set(torch_adapter.adapter.functions) == set(FUNCTIONS)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_case_passes(in_process, dtype):
    entries = select(Selection())
    run = verify(in_process(torch_adapter.adapter), entries, dtype)
    assert run.counts() == {**dict.fromkeys(run.counts(), 0), "PASS": len(entries)}
    assert exit_code(run) == 0


def test_it_runs_as_a_process(monkeypatch):
    monkeypatch.chdir(EXAMPLES)
    chosen = Selection(ids=("attention/ordinary@published", "model/adaptive-tied@published", "embedding/outside"))
    with opened("torch_adapter:adapter", None, None, Limits(60)) as implementation:
        assert exit_code(verify(implementation, select(chosen), "float64")) == 0


ERRORS = [  # file, line, what stands in its place, a case that sees it
    ("basic.py", "torch.clamp((ramp + size * rho[:, None] - x) / ramp, 0, 1)",
     "1 - torch.relu(1 - torch.relu((ramp + size * rho[:, None] - x) / ramp))", "span/at-zero"),
    ("basic.py", "size * rho.mean()", "size * rho.sum()", "span/penalty-heads"),
    ("basic.py", "x / (1 - rate)", "x", "dropout/quarter"),
    ("basic.py", "10000 **", "1000 **", "model/positions-sinusoid@exact"),
    ("attention.py", "past + attend_self - 1 + torch", "past + attend_self + torch", "attention/past-short@exact"),
    ("attention.py", "math.sqrt(slots) * x", "x", "attention/ordinary@exact"),
    ("attention.py", "(weight + epsilon) * present", "weight + 0 * epsilon * present", "attention/ordinary@published"),
    ("attention.py", "queries + x.get(\"position_bias\", 0)", "queries", "attention/transformer-xl-positions@exact"),
    ("attention.py", "y + persistent(queries, memory", "y - persistent(queries, memory", "single-head/ordinary@exact"),
    ("attention.py", "    check(settings, x)", "", "attention/refused-memory-of-another-head"),
    ("clusters.py", "math.sqrt(rows.shape[1])", "1", "adaptive-input/two"),
    ("clusters.py", "of_clusters.flip(-1)", "of_clusters", "adaptive-softmax/three@published"),
    ("clusters.py", "of_clusters.masked_fill(empty, -torch.inf)", "of_clusters", "adaptive-softmax/empty-tail@exact"),
    ("whole.py", "past.detach(), h", "past, h", "model/all-attention@exact"),
    ("whole.py", "0 if settings[\"attend_self\"] else 1", "0", "model/positions-transformer-xl@exact"),
    ("whole.py", "\"input\" if config[\"tie_tables\"] else \"output\"", "\"output\"", "model/plain-tied@exact"),
    ("whole.py", "x.get(\"keep.hidden\")", "None", "model/dropout@exact"),
    ("optimizers.py", "factor in zip(chosen.param_groups", "_ in zip(chosen.param_groups", "optimizer/adagrad-20-updates"),
    ("optimizers.py", "update / (warm_up or 1)", "(update - 1) / (warm_up or 1)", "optimizer/sgd-20-updates-warm-up"),
    ("autograd.py", "WITH_ONE = {\"span_penalty\"}", "WITH_ONE = set()", "model/all-attention@exact"),
]


@pytest.mark.parametrize(("file", "old", "new", "case"), ERRORS)
def test_an_error_in_it_is_seen(in_process, changed, file, old, new, case):
    stored = load_case(select(Selection(ids=(case,)))[0])
    assert judged(in_process(torch_adapter.adapter), stored, "float64")[0].verdict == "PASS"
    wrong = changed(torch_adapter, file, old, new)
    assert judged(in_process(wrong.adapter), stored, "float64")[0].verdict != "PASS"


@pytest.mark.parametrize(("name", "file", "old", "new", "case"), [
    ("in_columns", "columns.py", "index.expand(", "(index - 1).clamp(0).expand(", "attention/ordinary@exact"),
    ("in_columns", "columns.py", "(0, slots), value=1)", "(0, slots), value=0)", "attention/ordinary@exact"),
    ("in_columns", "columns.py", "(distance >= size)", "(distance > size)", "attention/one-position@exact"),
    ("torch_modules", "modules.py", "-1), distance).log()", "-1), distance)", "attention/ordinary@exact"),
])
def test_an_error_in_another_attention_is_seen(in_process, changed, name, file, old, new, case):
    stored = load_case(select(Selection(ids=(case,)))[0])
    assert judged(in_process(getattr(torch_adapter, name)), stored, "float64")[0].verdict == "PASS"
    wrong = changed(torch_adapter, file, old, new)
    assert judged(in_process(getattr(wrong, name)), stored, "float64")[0].verdict == "MISMATCH"


def test_the_modules_as_they_are_pass_under_the_conventions_of_pytorch(in_process):
    run = verify(in_process(torch_adapter.torch_modules), select(Selection(conventions=("torch",))), "float64")
    assert run.counts()["MISMATCH"] == run.counts()["CRASHED"] == 0
    passed = {run.entries[verdict.id]["function"] for verdict in run.verdicts if verdict.verdict == "PASS"}
    assert passed == set(torch_adapter.torch_modules.functions) - {"relu", "all-attention"}  # no case any or torch of these
    assert exit_code(run) == 4  # what they can't express: empty clusters, dropout with a given mask


ATTENTION = [entry for entry in select(Selection(groups=("attention",))) if entry["function"] == "all-attention"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scaled_dot_product_attention_is_all_attention_with_log_m_in_its_mask(in_process, dtype):
    """With the exact normaliser, which has no ε, and but for what the module does not take, dropout among it."""
    entries = [entry for entry in ATTENTION if not entry["settings"]["normalizer_epsilon"]]
    run = verify(in_process(torch_adapter.torch_modules), entries, dtype)
    assert {verdict.verdict for verdict in run.verdicts} == {"PASS", "SKIPPED"}
    skipped = {verdict.id for verdict in run.verdicts if verdict.verdict == "SKIPPED"}
    unknown = ("span-zero", "span-kink", "dropout", "transformer-xl-positions")  # no slope of log 0; no such arguments
    assert skipped == {f"attention/{name}@{convention}" for name in unknown for convention in ("exact", "transformer-xl")}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_published_order_of_operations_passes(in_process, dtype):
    """But for logits far above those that count where the span is closed: softmax leaves 0 / 0 there, which has a name."""
    run = verify(in_process(torch_adapter.in_columns), ATTENTION, dtype)
    closed = [verdict for verdict in run.verdicts if verdict.id.startswith("attention/closed-above")]
    assert {verdict.id for verdict in run.verdicts if verdict.verdict != "PASS"} == {verdict.id for verdict in closed}
    assert [verdict.verdict for verdict in closed] == ["MISMATCH"] * 2
    assert findings(run, "bug")[0].name == "row-maximum-over-masked-slots"


def test_adaptive_log_softmax_with_loss_is_told_that_it_does_not_follow_published_and_why(in_process):
    chosen = Selection(groups=("adaptive-softmax",), conventions=("published",))
    run = verify(in_process(torch_adapter.torch_modules), select(chosen), "float64")
    wrong = sum(verdict.verdict == "MISMATCH" for verdict in run.verdicts)
    said = "\n".join(summary(run))
    assert wrong >= 2
    assert f"{wrong} of {wrong} wrong cases follow the convention torch, not published, to " in said
    assert f"{wrong} of {wrong} wrong cases match cluster-order-ignored to " in said


def test_the_modules_as_they_are_fail_as_published_and_are_told_why(in_process):
    named = {"adaptive-softmax/three@published": {"exact", "torch"}, "attention/no-span@published": {"exact"},
             "optimizer/adagrad-each-clipped-20-updates@published": {"torch"}}
    run = verify(in_process(torch_adapter.torch_modules), select(Selection(ids=tuple(named))), "float64")
    assert {verdict.verdict for verdict in run.verdicts} == {"MISMATCH"}
    assert exit_code(run) == 1
    for case, conventions in named.items():
        matches = {match.name for match in run.matches[case] if match.kind == "convention" and match.matches}
        assert matches >= conventions
