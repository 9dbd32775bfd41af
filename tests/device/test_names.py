"""Shared code asks of CuPy only what CuPy has: every name looked up in `xp`, every keyword, by walking the calls."""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
from stand_in import cupy

ROOT = Path(__file__).resolve().parents[2] / "refimpl"
HOST_ONLY = {  # what computes on the host alone
    "arena", "bench", "blas", "blas_candidate", "layers/tiled_attention", "layers/tiled_gradients", "layers/tiled_logits",
    "layers/tiles", "layers/fused_softmax",
    "ranks",  # of CuPy it asks for NCCL alone, which test_nccl.py looks at where it is installed
}
FILES = [path for path in sorted(ROOT.rglob("*.py")) if str(path.relative_to(ROOT).with_suffix("")) not in HOST_ONLY]
MODULES = {"xp", "module_of", "array_module", "module_of_device"}
NOT_THERE = {"where", "initial"}  # keywords of reductions and ufuncs


def asked(tree):
    """(dotted name, keywords or None) of every look-up in xp, or in what module_of and its like return."""
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            names, value = [], node
            while isinstance(value, ast.Attribute):
                names.insert(0, value.attr)
                value = value.value
            root = value.func if isinstance(value, ast.Call) else value
            if isinstance(root, ast.Name) and root.id in MODULES and (isinstance(value, ast.Call) or root.id == "xp"):
                call = calls.get(id(node))
                yield ".".join(names), None if call is None else [k.arg for k in call.keywords], node.lineno


def problem(name, keywords):
    """What CuPy lacks of it, or ""."""
    found = cupy
    for part in name.split("."):
        if not hasattr(found, part):
            return f"cupy.{name}: there is no {part}"
        found = getattr(found, part)
    for keyword in keywords or ():
        if keyword in NOT_THERE:
            return f"cupy.{name}: {keyword}= is not there"
        try:
            accepted = inspect.signature(found).parameters
        except (TypeError, ValueError):
            continue
        if keyword not in accepted and not any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
            return f"cupy.{name}: {keyword}= is not there"
    return ""


def test_every_name_and_argument_is_there():
    found = [(path.name, line, name, keywords) for path in FILES
             for name, keywords, line in asked(ast.parse(path.read_text(encoding="utf-8")))]
    assert len(found) > 60
    assert [(file, line, problem(name, keywords)) for file, line, name, keywords in found if problem(name, keywords)] == []


def test_reductions_have_no_argument_that_cupy_lacks():
    """`where=` and `initial=` of methods; `np.` functions are the host's own."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                of_host = "to_host" in ast.unparse(node) or 'inputs["tokens"]' in ast.unparse(node).replace("'", '"')
                of_host = of_host or "golden" in str(path) or "gradcheck" in str(path)
                assert of_host or not NOT_THERE & {k.arg for k in node.keywords}, (path.name, node.lineno)


@pytest.mark.parametrize("line", ["xp.vecdot(a, b)", "module_of(x).errstate()", "xp.sum(x, where=y)",
                                  "xp.zeros(3, device=1)", "xp.block(x)", "array_module(d).lib.stride_tricks.nothing(x)"])
def test_what_cupy_lacks_is_seen(line):
    (name, keywords, _), = asked(ast.parse(line))
    assert problem(name, keywords)
    assert hasattr(np, name.partition(".")[0])
