"""The house: imports flow one way, files and functions stay readable, docstrings are there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# imports flow downwards: a file may import what stands before it
ORDER = [
    "errors", "cores", "ram", "blas_candidate", "blas", "subnormals", "arrays", "arena", "device.products", "device.opening",
    "device.randomness", "device.rows", "device.adaptive_input", "masks", "computing", "nccl", "ranks", "validation",
    "config", "durable", "settings", "parameters", "inputs", "layers.linear", "layers.dropout",
    "layers.embedding", "layers.layer_norm", "layers.softmax", "layers.softmax_loss", "layers.span", "layers.positions",
    "layers.windows", "layers.masked_softmax", "layers.feed_forward", "layers.ff_attention", "layers.attention",
    "device.tiles", "layers.one_query", "device.attention", "device.windows", "layers.tiles",
    "layers.tiled_logits",
    "layers.tiled_gradients", "layers.tiled_attention",
    "layers.persistent_attention", "layers.split_attention", "layers.head_split", "layers.multi_head",
    "layers.transformer_layer", "layers.adaptive_input", "layers.adaptive_softmax", "layers.fused_softmax",
    "device.adaptive_softmax", "variants", "model", "optimizers", "device.optimizer", "device.graphs", "device.updates",
    "device.counts", "device.ledger_layers", "device.ledger_ends", "device.ledger",
    "functions.forms", "functions.basic", "functions.composed", "functions", "operations", "shared", "workers", "training",
    "worker", "intervals", "evaluation", "protocols",
    "ring", "continuation", "generation", "bench",
    "checkpoint_files", "checkpoint", "writer", "convert", "accounting",
    "device.sizes", "room", "locks", "records", "runs",
    "running", "gradcheck", "checks.pairs", "checks.attentions", "checks.models",
    "checks.run", "golden.cases.form", "golden.cases.basic", "golden.cases.attention", "golden.cases.whole",
    "golden.cases", "golden.orders", "golden.bounds", "golden.planted", "golden.vectors", "golden.verdicts",
    "golden.listing", "golden.margins", "golden.compare", "golden.conventions", "golden.generate", "golden.diagnose",
    "golden.exchange", "golden.processes", "golden.adapters", "golden.worker", "golden.verify", "golden.findings",
    "golden.reports", "golden.pytest_plugin", "datasets", "texts", "results", "jobs", "conversions", "console", "meter",
    "report.reading", "report.passage", "report.looking", "report.predicting", "report.charts", "report.curves",
    "report.tables", "report.page", "exits", "starts", "terminal", "convert_commands", "report.commands",
    "checks.commands", "golden.commands", "datasets.commands", "cli", "__main__",
]
FILE_LINES, FUNCTION_LINES = 250, 45


def sources():
    """Every source file of the package by its name as imported, without `refimpl.`."""
    files = {path.relative_to(ROOT / "refimpl").with_suffix(""): path for path in (ROOT / "refimpl").rglob("*.py")}
    for folder in ("gradcheck", "datasets"):
        files |= {path.relative_to(ROOT).with_suffix(""): path for path in (ROOT / folder).rglob("*.py")}
    files[Path("cli")] = ROOT / "cli.py"
    return {".".join(name.parts): path for name, path in files.items()}


def room(name):
    """The entry of ORDER that a module belongs to, the longest that fits; None for a package's own `__init__`."""
    parts = name.split(".")
    prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((prefix for prefix in prefixes if prefix in ORDER), None)


def imports(tree):
    """Every module that a file names, as `refimpl.x`, imports inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def upward(name, tree):
    """Imports of a file that stands below it in the house."""
    here = room(name)
    found = []
    for module in imports(tree):
        parts = module.split(".")
        if parts[0] == "refimpl" and len(parts) > 1 and here is not None:
            there = room(".".join(parts[1:]))
            if there is not None and ORDER.index(there) > ORDER.index(here):
                found.append(module)
        if parts[0] in ("gradcheck", "datasets", "cli"):
            found.append(f"{module} without refimpl.")
    return found


@pytest.mark.parametrize("name", sorted(sources()))
def test_no_import_points_up(name):
    tree = ast.parse(sources()[name].read_text(encoding="utf-8"))
    assert not upward(name, tree)
    if not name.endswith("__init__"):
        assert room(name) is not None, "a new file needs its place in ORDER"


@pytest.mark.parametrize(("name", "line"), [
    ("arrays", "from refimpl.config import ModelConfig"),
    ("layers.linear", "from refimpl import model"),
    ("layers.span", "from refimpl.layers import attention"),
    ("training", "import refimpl.checkpoint"),
    ("datasets.batches", "from refimpl.cli import main"),
    ("evaluation", "def f():\n    from refimpl.datasets import batches"),
    ("model", "import datasets"),
])
def test_an_import_that_points_up_is_seen(name, line):
    assert upward(name, ast.parse(line))


def test_gradcheck_imports_nothing_from_the_implementation():
    for name, path in sources().items():
        if name.startswith("gradcheck"):
            named = imports(ast.parse(path.read_text(encoding="utf-8")))
            assert not [m for m in named if m.startswith("refimpl") and not m.startswith("refimpl.gradcheck")], name


def test_only_the_array_module_names_cupy_and_nothing_pickles():
    for name, path in sources().items():
        named = {module.partition(".")[0] for module in imports(ast.parse(path.read_text(encoding="utf-8")))}
        assert not named & {"cupyx", "pickle"}, name
        assert "cupy" not in named or name == "arrays", name


@pytest.mark.parametrize("name", sorted(sources()))
def test_files_and_functions_stay_readable(name):
    text = sources()[name].read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= FILE_LINES
    assert ast.get_docstring(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= FUNCTION_LINES, node.name
            assert node.args.kwarg is None or node.name.startswith("__array_"), node.name  # NumPy's protocols have them
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and "." not in node.name:
            documented = ast.get_docstring(node) or ast.unparse(node.body[0]) == "..." or not is_public(tree, node)
            assert documented, node.name


def is_public(tree, node):
    """Whether the node stands at the module's top level or in a public class there."""
    owners = [tree, *(n for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))]
    return any(node in owner.body for owner in owners)
