"""Reports and the command: what is wrong and where, in every form; hostile text stays text; exit codes."""

import json
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from refimpl.golden import reports
from refimpl.golden.diagnose import Match
from refimpl.golden.verdicts import CRASHED, MISMATCH, PASS, SKIPPED, UNCHECKED, Difference, Run, Verdict
from refimpl.golden.verify import Selection, select

HOSTILE = "<script>alert('x')</script> | **bold** \x1b[31m\x00\ud800\nnext line"
ENTRIES = {entry["id"]: entry for entry in select(Selection(groups=("linear", "softmax", "layer-norm")))}
BUG = Match("bug", "scale-by-model-width", "Logits are divided by √D in place of √E.", 3e-8, True, False)
FAR = Match("bug", "span-ramp-sign", "The span counts the wrong way.", 0.3, False, False)
OTHER = Match("convention", "published", "The published code.", 1e-9, True, False)


def run(*verdicts, matches=None, name="mine:adapter"):
    return Run(name, "float32", ENTRIES, list(verdicts), 3, matches or {}, 1.5)


def wrong(case, off=2e5, tensor="d_bias", where=(1,)):
    worst = (Difference(tensor, where, 0.5, -0.25, off), Difference("y", (0, 0), 1.0, 1.0, 0.1))
    return Verdict(case, MISMATCH, worst, 0, 12, "")


MIXED = run(
    Verdict("linear/rows", PASS, (Difference("y", (0, 0, 0), 1.0, 1.0, 0.25),), 0, 12, ""), wrong("linear/wide"),
    wrong("softmax/rows", 3e7, "attention", (2, 0)), wrong("layer-norm/large-mean", 40.0, "y", ()),
    Verdict("softmax/large", CRASHED, (), 0, 0, HOSTILE), Verdict("layer-norm/two", SKIPPED, (), 0, 0, "not implemented"),
    Verdict("layer-norm/wide", UNCHECKED, (), 8, 8, "float32 is too coarse for d_x"), name=HOSTILE,
    matches={"linear/wide": [BUG], "softmax/rows": [BUG, OTHER], "layer-norm/large-mean": []})


def test_the_terminal_report_says_where_and_which_bug():
    text = reports.terminal(MIXED)
    lines = text.splitlines()
    assert "7 cases, 1 pass, 3 wrong, 1 not checked, 1 skipped, 1 crashed; left out: 3 of functions" in lines[0]
    assert "Worst: softmax/rows, attention[2, 0]: expected -0.25, got 0.5 (3e+07 bounds off)" in text
    assert "2 of 3 wrong cases match scale-by-model-width to 3e-8. Logits are divided by √D in place of √E." in text
    assert "1 of 3 wrong cases follow the convention published to 1e-9." in text
    table = text.partition("the worst first\n")[2].splitlines()
    assert [row.split()[0] for row in table[1:7]] == [
        "softmax/rows", "linear/wide", "layer-norm/large-mean", "softmax/large", "layer-norm/wide", "layer-norm/two"]
    assert "y: expected -0.25, got 0.5" in table[3]
    assert "large-mean" in text
    assert "A variance from E[x²] - E[x]² loses all digits." in text
    assert not {"\x1b", "\x00", "\ud800"} & set(text)


def test_no_known_bug_is_said_with_the_nearest():
    text = reports.terminal(run(wrong("linear/rows"), matches={"linear/rows": [FAR]}))
    assert "No known bug gives these values. The nearest in 1 of 1 wrong cases: span-ramp-sign, off by 0.3" in text


def test_a_bug_that_passing_cases_contradict_comes_after_one_that_they_do_not():
    ours = {**ENTRIES, "linear/rows": {**ENTRIES["linear/rows"], "catches": {BUG.name: [0, 50, 0, 0]}}}
    passed = Verdict("linear/rows", PASS, (), 0, 12, "")
    found = run(passed, wrong("linear/wide"), matches={"linear/wide": [BUG, FAR._replace(matches=True)]})
    summary = reports.summary(found._replace(entries=ours))
    assert [FAR.name in line for line in summary[2:]] == [True]
    alone = found._replace(entries=ours, matches={"linear/wide": [BUG]})
    assert "(but 1 cases passed that it would fail)" in reports.summary(alone)[2]


def test_all_pass_shows_the_nearest_to_their_bounds():
    near = [Verdict(name, PASS, (Difference("y", (i,), 1.0, 1.0, i / 10),), 0, 1, "") for i, name in enumerate(ENTRIES)]
    text = reports.terminal(run(*near))
    assert text.count("PASS") == reports.CLOSEST
    assert text.index(near[-1].id + " ") < text.index(near[-2].id + " ")


def test_json_is_all_of_it():
    endless = run(Verdict("linear/rows", MISMATCH, (Difference("y", (), float("nan"), 1.0, float("inf")),), 0, 1, ""))
    assert json.loads(json.dumps(reports.as_json(endless), allow_nan=False))["cases"][0]["off"] is None
    content = json.loads(json.dumps(reports.as_json(MIXED), allow_nan=False))
    assert (content["exit_code"], content["counts"]["MISMATCH"], len(content["cases"])) == (1, 3, 7)
    assert content["bugs"][0]["name"] == BUG.name
    assert content["bugs"][0]["cases"] == ["linear/wide", "softmax/rows"]
    assert content["cases"][0]["worst"][0] == {"tensor": "attention", "where": [2, 0], "got": 0.5, "expected": -0.25,
                                               "off": 3e7}


def test_junit_is_xml_with_a_test_for_each_case():
    suite = ElementTree.fromstring(reports.junit(MIXED))
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "7", "failures": "3", "errors": "1", "skipped": "2"}
    cases = {case.get("name"): case for case in suite.iter("testcase")}
    assert len(suite.findall("testcase")) == 7
    assert [child.tag for child in cases["large"]] == ["error"]
    assert "alert('x')" in cases["large"][0].get("message")
    assert "scale-by-model-width" in cases["wide"][0].text or "too coarse" in cases["wide"][0].text


class Outline(HTMLParser):
    """Collects the tags and everything that refers to something outside."""

    def __init__(self):
        super().__init__()
        self.tags, self.outside, self.text = set(), [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.outside += [value for name, value in attributes if name in ("src", "href", "action", "style")]

    def handle_data(self, data):
        self.text += data


def test_html_is_one_file_in_which_text_stays_text():
    page = reports.html(MIXED)
    outline = Outline()
    outline.feed(page)
    assert outline.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "tr", "th", "td"}
    assert not outline.outside
    assert "url(" not in page
    assert "@import" not in page
    assert "<script>alert('x')</script>" in outline.text


def test_markdown_has_no_markup_of_others():
    text = reports.markdown(MIXED)
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert r"\*\*bold\*\*" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace(r"\|", "").count("|") in (4, 5) for line in rows)


def adapter(tmp_path, monkeypatch, body):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(f"def adapter(function, settings, inputs):\n    {body}\n")


@pytest.mark.parametrize(("body", "options", "code"), [
    ("return {'attention': inputs['logits'] * 0, 'd_logits': inputs['logits'] * 0}", ["--group", "softmax"], 1),
    ("return None", ["--group", "softmax"], 4),
    ("raise ValueError", ["--group", "softmax"], 3),
    ("raise ValueError", ["--flag", "refused"], 0),
    ("raise ValueError", ["--group", "sofmax"], 2),
])
def test_exit_codes(command, tmp_path, monkeypatch, body, options, code):
    adapter(tmp_path, monkeypatch, body)
    end = command("golden", "verify", "--adapter", "mine:adapter", *options)
    assert end.code == code
    assert bool(end.out) == (code != 2)


@pytest.mark.parametrize("option", ["--html", "--junit", "--markdown"])
def test_a_report_that_can_not_be_written_is_refused_before_the_run(command, tmp_path, option):
    for path in (tmp_path, tmp_path / "nowhere" / "report"):
        end = command("golden", "verify", "--adapter", "not_even_started:adapter", option, path)
        assert end.code == 2
        assert f"expected a file in a folder that is there, got {path}" in end.err


def test_refimpl_verifies_itself(command):
    end = command("golden", "verify", "--group", "masked-softmax", "--convention", "exact")
    assert (end.code, "0 wrong" in end.out) == (0, False)
    assert "refimpl in float64" in end.out
    assert command("golden", "verify", "--dtype", "bfloat16").code == 2


def test_reports_are_written(command, tmp_path, monkeypatch):
    adapter(tmp_path, monkeypatch, "return {'attention': inputs['logits'], 'd_logits': inputs['logits']}")
    end = command("golden", "verify", "--adapter", "mine:adapter", "--group", "softmax", "--json", "--html", "r.html",
                  "--junit", "r.xml", "--markdown", "r.md", "--dtype", "float32")
    assert json.loads(end.out)["dtype"] == "float32"
    assert ElementTree.parse(tmp_path / "r.xml").getroot().tag == "testsuite"
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "r.md").read_text().startswith("# Golden vectors")


def test_list_show_and_write(command, tmp_path):
    cases = json.loads(command("golden", "list", "--json").out)["cases"]
    assert len(cases) >= 250
    assert "span/at-zero" in command("golden", "list", "--group", "span").out
    shown = command("golden", "show", "span/at-zero").out
    assert "z = 0, where training starts" in shown
    assert "catches     span-clamp-open-at-the-top: " in shown
    numbers = json.loads(command("golden", "show", "span/at-zero", "--json").out)
    assert numbers["inputs"]["rho"] == [0.0]
    assert command("golden", "write", tmp_path / "cases", "--group", "span").code == 0
    assert {path.name for path in (tmp_path / "cases/span/at-zero").iterdir()} == {"case.json", "inputs.safetensors"}
    assert command("golden", "write", tmp_path / "cases").code == 2
    assert command("golden", "show", "span/nothing").code == 2
