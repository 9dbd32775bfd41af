"""docs/gradients: each pair has a page, each quoted line stands in its function, links, figures and mathematics hold."""

import ast
import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from refimpl.golden.planted import bugs

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "gradients"
PAGES = sorted(FOLDER.glob("*.md"))
BUGS = bugs()
SOURCES = [*sorted((ROOT / "refimpl" / "layers").glob("*.py")), ROOT / "refimpl" / "model.py"]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")
REFERENCE = re.compile(r"\[`(\w+)\.((?!py`)\w+)`\]\(([^)\s]+\.py)\)")
INLINE = re.compile(r"\$`([^`\n]+)`\$|(?<![\w$\\])\$(?![\s$])([^$\n]*[^\s$])\$(?![\w$])")


def functions(path):
    """The stripped lines of each top-level function's source, without its docstring."""
    source = path.read_text(encoding="utf-8")
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            found[node.name] = [line.strip() for line in lines[body[0].lineno - 1 : node.end_lineno]] if body else []
    return found


def backwards(path):
    """Every public backward of a file, by name; none in files that have a forward alone."""
    return {name for name in functions(path) if re.fullmatch(r"([a-z]\w*_)?backward", name)}


def quotations(text, folder):
    """(file, function, stripped lines) of every quoted block; the reference is the last one above it."""
    for block in BLOCK.finditer(text):
        if block[1] == "python":
            paragraph = text[: block.start()].rstrip().rpartition("\n\n")[2]
            _, function, target = (REFERENCE.findall(paragraph) or [("", "", "")])[-1]
            yield folder / target, function, [line.strip() for line in block[2].splitlines() if line.strip()]


def stands_in(lines, source):
    """The first of `lines` that does not stand in `source` as a whole line, in this order; None if all do."""
    rest = iter(source)
    return next((line for line in lines if line not in rest), None)


def quotation_problems(text, folder):
    """Functions that do not exist, quoted lines that do not stand in theirs, quotations of nothing named."""
    for module, function, target in REFERENCE.findall(text):
        path = folder / target
        if path.is_file() and (path.stem != module or function not in functions(path)):
            yield f"no function {module}.{function} in {target}"
    for path, function, lines in quotations(text, folder):
        if not path.is_file():
            yield f"a quotation of no function: {lines[0]}"
        else:
            missing = stands_in(lines, functions(path).get(function, []))
            if missing:
                yield f"not in {path.stem}.{function}: {missing}"


def anchors(text):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", BLOCK.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_problems(text):
    """Mistakes named that the registry of planted bugs does not have."""
    yield from (f"no planted bug {name}" for name in re.findall(r"\*`([^`]+)`\*", text) if name not in BUGS)


def link_problems(text, folder):
    """Files and headings that do not exist, figures without a text."""
    for label, target in LINK.findall(BLOCK.sub("", text)):
        name, _, anchor = target.partition("#")
        path = folder / name
        if name.startswith("https://"):
            continue
        if not path.is_file():
            yield f"no file {target} ({label})"
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            yield f"no heading {target}"


def unbalanced(formula):
    """What is opened in a formula and not closed, or the other way round."""
    bare = re.sub(r"\\[{}]", "", formula)
    if bare.count("{") != bare.count("}"):
        yield "braces"
    if len(re.findall(r"\\left\b", bare)) != len(re.findall(r"\\right\b", bare)):
        yield "left and right"
    if sorted(re.findall(r"\\begin{(\w+)}", bare)) != sorted(re.findall(r"\\end{(\w+)}", bare)):
        yield "begin and end"
    if "$" in formula:
        yield "a dollar sign"


def math_problems(text):
    """Fences and dollar signs without partner, unbalanced formulas, and formulas that Markdown itself would change."""
    if text.count("\n```") != 2 * len(BLOCK.findall(text)):
        yield "a fence without its partner"
    formulas = [block[2] for block in BLOCK.finditer(text) if block[1] == "math"]
    prose = BLOCK.sub("\n", text)
    for guarded, bare in INLINE.findall(prose):
        formulas.append(guarded or bare)
        if re.search(r"\\[^A-Za-z\s]|[^\w\\]_|\*|<|`", bare):
            yield f"Markdown changes ${bare}$: write it as $`…`$"
    for formula in formulas:
        yield from (f"{what} unbalanced in {formula.strip()}" for what in unbalanced(formula))
    rest = re.sub(r"`[^`\n]*`", "", INLINE.sub("", prose))
    yield from (f"a dollar sign without its partner: {line}" for line in rest.splitlines() if "$" in line)


def problems(text, folder=FOLDER):
    """Everything wrong with a page."""
    return [*quotation_problems(text, folder), *name_problems(text), *link_problems(text, folder), *math_problems(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_sound(page):
    assert not problems(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [path for path in SOURCES if backwards(path)], ids=lambda path: path.stem)
def test_every_pair_has_a_page_that_quotes_it(path):
    text = (FOLDER / f"{path.stem}.md").read_text(encoding="utf-8")
    quoted = {function for at, function, _ in quotations(text, FOLDER) if at.resolve() == path}
    assert backwards(path) <= quoted


def test_a_page_is_of_a_file_with_a_backward():
    assert {page.stem for page in PAGES} - {"README"} == {path.stem for path in SOURCES if backwards(path)}


def test_the_index_links_every_page():
    linked = {target for _, target in LINK.findall((FOLDER / "README.md").read_text(encoding="utf-8"))}
    assert {page.name for page in PAGES} - {"README.md"} <= linked


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "README"], ids=lambda page: page.stem)
def test_a_page_has_its_four_parts_in_a_readable_length(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.M) == ["Equation", "Gradient", "What goes wrong", "Numbers"]
    assert text.count("\n") <= 160


SOUND = """
Text, $a_j$ and $`\\{b\\}_j`$, *`positions-reversed`*, [there](linear.md#gradient). In
[`softmax.backward`](../../refimpl/layers/softmax.py):

```python
return attention * (d_attention - (attention * d_attention).sum(-1, keepdims=True))
```

```math
\\left( \\frac{1}{2} \\right)
```
"""


@pytest.mark.parametrize(("right", "wrong", "found"), [
    ("`softmax.backward`", "`softmax.backwards`", "no function softmax.backwards"),
    ("`softmax.backward`", "`linear.backward`", "no function linear.backward"),
    ("softmax.py", "softmin.py", "no file"),
    ("(d_attention -", "(d_attention +", "not in softmax.backward"),
    ("return attention * (d_attention - (attention * d_attention).sum(-1, keepdims=True))", "return attention",
     "not in softmax.backward"),
    ("In\n[`softmax.backward`](../../refimpl/layers/softmax.py):", "So:", "a quotation of no function"),
    ("linear.md#gradient", "linear.md#gradients", "no heading"),
    ("linear.md", "lineal.md", "no file"),
    ("positions-reversed", "positions-inverted", "no planted bug"),
    ("$a_j$", "$a_j", "a dollar sign without"),
    ("$a_j$", "$a_j +\nb_j$", "a dollar sign without"),
    ("$a_j$", "$\\{a\\}$", "Markdown changes"),
    ("$a_j$", "$\\hat{a}_j$", "Markdown changes"),
    ("\\frac{1}{2}", "\\frac{1}{2", "braces"),
    ("\\right", "", "left and right"),
    ("\\left(", "\\begin{aligned}", "begin and end"),
    ("\\right)\n```", "\\right)", "fence"),
])
def test_a_fault_planted_in_a_page_is_found(right, wrong, found):
    assert not problems(SOUND)
    assert right in SOUND
    assert any(found in problem for problem in problems(SOUND.replace(right, wrong)))


def drawing():
    """docs/gradients/draw.py, which imports matplotlib only when it draws."""
    spec = importlib.util.spec_from_file_location("draw", FOLDER / "draw.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_those_that_the_script_draws_and_the_pages_show():
    shown = {match for page in PAGES for match in re.findall(r"figures/(\w+)\.svg", page.read_text(encoding="utf-8"))}
    assert {path.stem for path in (FOLDER / "figures").iterdir()} == shown == set(drawing().PAIRS)


def test_the_errors_have_the_shape_that_the_pages_describe():
    draw = drawing()
    found, steps = draw.errors("attention"), draw.STEPS
    complex_step = found["complex step"]
    assert complex_step[steps < 1.1e-8].max() <= 1e-14  # 45 roundoffs
    # the largest of each decade: a single step may be right by luck
    central, richardson = (np.lib.stride_tricks.sliding_window_view(found[name], 5).max(-1)
                           for name in ("central difference", "Richardson"))
    middle, best = steps[2:-2], central.argmin()
    # the index's balance: rounding u / h against truncation h² gives u^(2/3) = 2e-11 at u^(1/3) = 5e-6
    assert 2e-7 < middle[best] < 1e-4
    assert 2e-13 < central[best] < 2e-9
    assert central[middle < 1e-14].min() > 1e6 * central[best]
    assert central[middle > 0.1].min() > 1e6 * central[best]
    assert richardson.min() < central[best] / 3
    between = (steps > 0.9e-4) & (steps < 1.1e-2)
    rates = np.diff(np.log10(complex_step[between])) / np.diff(np.log10(steps[between]))
    np.testing.assert_allclose(rates, 2, atol=0.05)  # h²; what h⁴ adds to a slope at h = 1e-2 is of order 1e-2


def test_on_a_kink_no_step_helps_a_difference():
    found = drawing().errors("span_at_kinks")
    assert found["complex step"].max() <= 1e-14
    assert found["central difference"].min() > 0.05


def test_the_example_prints_exact_gradients(capsys):
    runpy.run_path(str(ROOT / "examples" / "exact_gradients.py"), run_name="__main__")
    errors = [float(line.rpartition(" ")[2]) for line in capsys.readouterr().out.splitlines()]
    assert len(errors) == 22
    assert max(errors) < 1e-12
