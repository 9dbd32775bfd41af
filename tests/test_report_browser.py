"""The report in a real browser: on a phone and a desktop, dark and light, without network, with hostile text."""

import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refimpl.report import page as pages
from refimpl.report import reading

PHONE, DESKTOP = 390, 1280
HOSTILE = """</code><script>document.title = 'taken'</script><img src=x onerror="alert(1)">&amp; '"{{ 7 * 7 }}"""
FOLDER = """a <img src=x> & "b" '$c$' <script>"""
CONTRAST = """(() => {
  const channels = text => { const n = text.match(/[\\d.]+/g).map(Number);
    return text.startsWith('color(') ? n.map((v, i) => i < 3 ? v * 255 : v) : n };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => { for (let e = element; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c } return [255, 255, 255] };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05) };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const s = getComputedStyle(e), drawn = e.closest('svg');
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (own && !e.closest('title, desc'))
      found.push([ratio(channels(drawn ? s.fill : s.color), behind(e)), 4.5, e.outerHTML]);
    if (drawn && e.tagName === 'path' && e.style.stroke.includes('series'))
      found.push([ratio(channels(s.stroke), behind(e)), 3, e.outerHTML]);
  }
  return found.filter(([r, least]) => !(r >= least)).map(f => [f[0], f[2].slice(0, 200)]);
})()"""
OUTSIDE = """[...document.querySelectorAll('svg text')].filter(e => { const r = e.getBoundingClientRect(),
  f = e.closest('figure').getBoundingClientRect();
  return r.left < f.left || r.right > f.right || r.top < f.top || r.bottom > f.bottom || r.height < 8 })
  .map(e => [e.textContent, e.closest('figure').textContent.slice(0, 40)])"""
ELEMENTS = "document.querySelectorAll('script, img, iframe, object, embed, link, form, base').length"


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


chromium = sibling("chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser's page. Where no browser is, the tests are skipped, and in CI they fail."""
    path = chromium.program()
    if path is None:
        reason = "expected a browser to look at the report with, got none: install Chromium (Debian: apt install chromium)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with chromium.browser(path, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs on a hostile text: of bytes, under a hostile name; of words, with an adaptive softmax and a feed-forward."""
    base = tmp_path_factory.mktemp("runs")
    text, lines = base / "text.txt", [f"{HOSTILE} line {i} of \t them" for i in range(90)]
    text.write_text("\n".join(lines) + "\n", encoding="utf-8")
    small = ["width=16", "heads=2", "layers=3", "span=24", "span_ramp=4", "span_initial=0.5"]
    for name, kind, more in ((FOLDER, "byte", ["memory=6"]),
                             ("words", "word", ["feed_forward=8", "cutoffs=[4,8]", "divisor=2", "attend_self=true"])):
        train = ["batch=2", "block=16", "updates=30", "log_every=3", "evaluate_every=10", "warm_up=5"]
        values = [f"model.{setting}" for setting in [*small, *more, *(["memory=0"] if kind == "word" else [])]]
        values += [f"train.{setting}" for setting in [*train, "last_updates=0", "workers=1", "checkpoint_every=0"]]
        values += ["data.unknown=<unk>", "data.minimum_count=2"] if kind == "word" else []
        refimpl(base, "train", "--data", str(text), "--vocabulary", kind, "--out", str(base / name),
                *(word for value in values for word in ("--set", value)))
    return base


def refimpl(base, *arguments):
    """The command, in a process of its own."""
    environment = {**os.environ, "REFIMPL_STORE": str(base / "store"), "REFIMPL_BLAS_KERNELS": "default"}
    done = subprocess.run([sys.executable, "-m", "refimpl", *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def reports(folder):
    """The page of the first run, with a hostile passage, and that of both."""
    one, both = folder / "one.html", folder / "both.html"
    refimpl(folder, "report", str(folder / FOLDER), "--out", str(one), "--passage", HOSTILE)
    refimpl(folder, "report", str(folder / FOLDER), str(folder / "words"), "--out", str(both))
    return {"one": one, "both": both}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("which", ["one", "both"])
def test_the_page_is_whole_quiet_and_legible(page, reports, which, width, dark):
    page.open(reports[which], width, dark=dark)
    assert page.complaints() == []
    assert page.requested() == [reports[which].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(CONTRAST) == []
    assert page.evaluate(OUTSIDE) == []
    brightness = picture(page)[..., :3].mean()
    assert brightness < 0.35 if dark else brightness > 0.8
    assert page.evaluate("document.querySelectorAll('svg[role=img]').length") >= 12
    assert page.evaluate("[...document.querySelectorAll('svg')].every(e => e.querySelector('title').textContent && "
                         "e.querySelector('desc').textContent.includes('from'))")


def picture(page):
    """The whole page as (height, width, 4) numbers in [0, 1]."""
    from matplotlib.image import imread

    return np.asarray(imread(io.BytesIO(page.screenshot()), format="png"))


@pytest.mark.parametrize("which", ["one", "both"])
def test_hostile_text_is_text(page, reports, which):
    page.open(reports[which], DESKTOP)
    assert page.evaluate(ELEMENTS) == 0
    assert page.evaluate("document.title").endswith("refimpl report")
    said = page.evaluate("document.body.textContent")
    assert FOLDER in said
    if which == "one":
        assert page.evaluate("document.querySelector('.passage').textContent") == HOSTILE.replace(" ", "·")
    else:
        assert "<script>document.title·=·'taken'</script>" in said


def test_text_that_is_not_escaped_would_be_seen(page, folder, reports, monkeypatch, tmp_path):
    """The same page without the template's escaping: the elements come to be, though the page's policy lets none run."""
    import jinja2

    class Careless(jinja2.Environment):
        def __init__(self, **options):
            super().__init__(**{**options, "autoescape": False})

    monkeypatch.setattr(jinja2, "Environment", Careless)
    file = tmp_path / "careless.html"
    file.write_text(pages.render([reading.read(folder / FOLDER, folder / "store")], HOSTILE), encoding="utf-8")
    page.open(file, DESKTOP)
    assert page.evaluate(ELEMENTS) > 2
    assert page.evaluate("document.title").endswith("refimpl report")
    assert page.complaints() != []


@pytest.mark.parametrize(("change", "broken"), [
    (("max-width: 74rem", "min-width: 500px"), "document.documentElement.scrollWidth > 390"),
    (("--ink: #1d1f23", "--ink: #c0c0c0"), f"{CONTRAST}.length > 0"),
    (("--series-0: #1f5fa8", "--series-0: #f0f0f0"), f"{CONTRAST}.length > 0"),
    (("svg.chart { ", "svg.chart { font-size: 40px; transform: scale(1.4); "), f"{OUTSIDE}.length > 0"),
])
def test_a_page_that_is_too_wide_or_too_pale_would_be_seen(page, reports, tmp_path, change, broken):
    text = reports["one"].read_text(encoding="utf-8")
    assert change[0] in text
    file = tmp_path / "broken.html"
    file.write_text(text.replace(*change), encoding="utf-8")
    page.open(file, PHONE)
    assert page.evaluate(broken)


def test_an_error_on_the_console_and_a_request_would_be_seen(page, tmp_path):
    file = tmp_path / "broken.html"
    file.write_text("<!DOCTYPE html><script>missing()</script><img src='http://127.0.0.1:9/x.png'>", encoding="utf-8")
    page.open(file, PHONE)
    assert any("missing is not defined" in complaint for complaint in page.complaints())
    assert len(page.requested()) == 2
