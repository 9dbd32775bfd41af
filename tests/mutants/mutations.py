"""Small changes of a source file, made one at a time by rule: what a slip of the hand would do to its numbers.

Left alone: what only checks, raises, words a message or names a type.
"""

import ast
import re
from collections.abc import Iterator
from typing import NamedTuple

Edit = tuple[str, int, int, str]  # the operator's name; from and to, in bytes of the source; the new text


Key = tuple[str, str, str, str]  # module, function, statement before and after: names a change whatever else is edited


class Mutation(NamedTuple):
    """One change: the statement that it is in, before and after (`header` of a compound one), blanks collapsed.

    function: its qualified name, or "" at the module's top. operator: the rule that made it.
    """

    module: str
    function: str
    operator: str
    before: str
    after: str
    text: str

    @property
    def key(self) -> Key:
        """What names it."""
        return self.module, self.function, self.before, self.after


ARITHMETIC = {ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.Pow: ("**", "*"),
              ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"), ast.BitAnd: ("&", "|"), ast.BitOr: ("|", "&")}
COMPARISONS = {ast.Gt: (">", (">=", "<")), ast.GtE: (">=", (">", "<")), ast.Lt: ("<", ("<=", ">")),
               ast.LtE: ("<=", ("<", ">")), ast.Eq: ("==", ("!=",)), ast.NotEq: ("!=", ("==",)),
               ast.Is: ("is", ("is not",)), ast.IsNot: ("is not", ("is",)), ast.In: ("in", ("not in",)),
               ast.NotIn: ("not in", ("in",))}
SWAPPED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any",
           "sum": "mean", "mean": "sum", "sin": "cos", "cos": "sin", "zeros": "ones", "ones": "zeros",
           "zeros_like": "ones_like"}
TRANSPOSES = {"transpose", "swapaxes"}
CHECKS = re.compile(r"_?check(_|$)")


class Source:
    """A file's text with the places of its nodes in bytes."""

    def __init__(self, text: str) -> None:
        self.data = text.encode()
        self.starts = [0]
        for line in self.data.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def start(self, node: ast.AST) -> int:
        """Where a node begins."""
        return self.starts[node.lineno - 1] + node.col_offset

    def end(self, node: ast.AST) -> int:
        """Where it ends."""
        return self.starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, start: int, end: int) -> str:
        """The text between two places."""
        return self.data[start:end].decode()

    def of(self, node: ast.AST) -> str:
        """A node's text."""
        return self.text(self.start(node), self.end(node))

    def token(self, left: ast.AST, right: ast.AST, token: str) -> tuple[int, int]:
        """Where an operator stands between two nodes; parentheses may stand there, too."""
        start = self.end(left)
        pattern = rf"\b{token}\b" if token[0].isalpha() else re.escape(token)
        match = re.search(pattern, self.text(start, self.start(right)))
        return start + match.start(), start + match.end()


def mutations(module: str, text: str, skipped: frozenset[str] = frozenset()) -> Iterator[Mutation]:
    """All changes of a module's source, in its order. `skipped`: functions to leave alone."""
    source = Source(text)
    for function, statement in statements(ast.parse(text), skipped):
        start, end = extent(source, statement)
        for operator, low, high, new in edits(source, statement):
            after = source.text(start, low) + new + source.text(high, end)
            whole = source.text(0, low) + new + source.text(high, len(source.data))
            yield Mutation(module, function, operator, _collapsed(source.text(start, end)), _collapsed(after), whole)


def statements(tree: ast.Module, skipped: frozenset[str]) -> Iterator[tuple[str, ast.stmt]]:
    """Every statement with the function or class that it is in, but checks and what raises."""
    def inside(body: list[ast.stmt], owner: str) -> Iterator[tuple[str, ast.stmt]]:
        for node in body:
            if isinstance(node, ast.Raise | ast.Assert | ast.Import | ast.ImportFrom):
                continue
            if _only_raises(node) or _is_type(node):
                continue
            named = isinstance(node, ast.FunctionDef | ast.ClassDef)
            name = f"{owner}.{node.name}".lstrip(".") if named else owner
            if named and (CHECKS.match(node.name) or name in skipped):
                continue
            yield name, node
            for part in ("body", "orelse", "finalbody"):
                yield from inside(getattr(node, part, []), name)

    return inside(tree.body, "")


def _only_raises(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and not node.orelse and all(isinstance(inner, ast.Raise) for inner in node.body)


def _is_type(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and ast.unparse(node.annotation) == "TypeAlias"


def extent(source: Source, statement: ast.stmt) -> tuple[int, int]:
    """From where to where a statement goes; of a compound one, its header."""
    body = getattr(statement, "body", None)
    end = source.start(body[0]) if body else source.end(statement)
    return source.start(statement), end


def parts(statement: ast.stmt) -> Iterator[ast.AST]:
    """The expressions of a statement, or of its header, without annotations and decorators."""
    if isinstance(statement, ast.FunctionDef):
        yield from (default for default in [*statement.args.defaults, *statement.args.kw_defaults] if default is not None)
        return
    for name, value in ast.iter_fields(statement):
        if name not in ("body", "orelse", "finalbody", "annotation", "decorator_list", "bases"):
            yield from (node for node in (value if isinstance(value, list) else [value]) if isinstance(node, ast.AST))


def nodes(expression: ast.AST) -> Iterator[ast.AST]:
    """The expression and all within it, but texts and what makes no difference by NumPy's or Python's own rules."""
    if isinstance(expression, ast.JoinedStr) or no_difference(expression):
        return
    yield expression
    reshapes = isinstance(getattr(expression, "func", None), ast.Attribute) and expression.func.attr == "reshape"
    for child in ast.iter_child_nodes(expression):
        if reshapes and isinstance(child, ast.UnaryOp):  # any number below 0 stands for the rest
            yield child
        else:
            yield from nodes(child)


def no_difference(expression: ast.AST) -> bool:
    """zip's strict, which only checks, and which of several arrays tells the library."""
    if isinstance(expression, ast.keyword):
        return expression.arg == "strict"
    return isinstance(expression, ast.Call) and getattr(expression.func, "id", "") == "module_of"


def edits(source: Source, statement: ast.stmt) -> Iterator[Edit]:
    """All changes of one statement, or of its header."""
    from_statement = {ast.AugAssign: in_place, ast.Expr: dropped_call, ast.Assign: dropped_write, ast.If: negated}
    if type(statement) in from_statement:
        yield from from_statement[type(statement)](source, statement)
    for part in parts(statement):
        for node in nodes(part):
            if type(node) in RULES:
                yield from RULES[type(node)](source, node)


def in_place(source: Source, node: ast.AugAssign) -> Iterator[Edit]:
    """x += y -> x -= y, x = y, nothing."""
    old, new = ARITHMETIC[type(node.op)]
    low, high = source.token(node.target, node.value, f"{old}=")
    yield "arithmetic", low, high, f"{new}="
    yield "dropped term", low, high, "="
    yield "dropped statement", source.start(node), source.end(node), "pass"


def dropped_call(source: Source, node: ast.Expr) -> Iterator[Edit]:
    """f(x) -> nothing."""
    if isinstance(node.value, ast.Call):
        yield "dropped statement", source.start(node), source.end(node), "pass"


def dropped_write(source: Source, node: ast.Assign) -> Iterator[Edit]:
    """x[i] = y -> nothing."""
    if all(isinstance(target, ast.Subscript) for target in node.targets):
        yield "dropped statement", source.start(node), source.end(node), "pass"


def negated(source: Source, node: ast.If | ast.IfExp) -> Iterator[Edit]:
    """The other branch."""
    yield "condition", source.start(node.test), source.end(node.test), f"not ({source.of(node.test)})"


def arithmetic(source: Source, node: ast.BinOp) -> Iterator[Edit]:
    """Another operator; the first or the second term alone; factors of a matrix product swapped."""
    start, end = source.start(node), source.end(node)
    if isinstance(node.op, ast.MatMult):
        low, high = source.token(node.left, node.right, "@")
        left, right = source.text(start, low).strip(), source.text(high, end).strip()
        yield "matrix product", start, end, f"{right} @ {left}"
        return
    old, new = ARITHMETIC[type(node.op)]
    low, high = source.token(node.left, node.right, old)
    yield "arithmetic", low, high, new
    yield "dropped term", low, end, ""
    yield "dropped term", start, high, "-" if isinstance(node.op, ast.Sub) else ""


def comparison(source: Source, node: ast.Compare) -> Iterator[Edit]:
    """A neighbouring comparison, and the opposite one."""
    for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
        old, others = COMPARISONS[type(operator)]
        low, high = source.token(left, right, old)
        yield from (("comparison", low, high, new) for new in others)


def constant(source: Source, node: ast.Constant) -> Iterator[Edit]:
    """A number one more and one less; a fraction doubled; True for False."""
    value, place = node.value, (source.start(node), source.end(node))
    if isinstance(value, bool):
        yield "constant", *place, str(not value)
    elif isinstance(value, int):
        yield "constant", *place, str(value + 1)
        yield "constant", *place, f"({value - 1})" if value == 0 else str(value - 1)
    elif isinstance(value, float):
        yield "constant", *place, repr(2 * value if value else 1.0)


def minus(source: Source, node: ast.UnaryOp) -> Iterator[Edit]:
    """-x -> x, not x -> x."""
    yield "dropped sign", source.start(node), source.start(node.operand), ""


def call(source: Source, node: ast.Call) -> Iterator[Edit]:
    """min for max and the like; a transpose left out; reversed left out."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    end = source.end(node.func)
    if name in SWAPPED:
        yield "function", end - len(name), end, SWAPPED[name]
    if name in TRANSPOSES:
        yield "transpose", end - len(name) - 1, source.end(node), ""
    if name == "reversed":
        yield "transpose", source.start(node.func), end, ""


def attribute(source: Source, node: ast.Attribute) -> Iterator[Edit]:
    """x.T -> x."""
    if node.attr == "T":
        yield "transpose", source.end(node) - 2, source.end(node), ""


def bounds(source: Source, node: ast.Slice) -> Iterator[Edit]:
    """Each bound left out, and one that is no number moved by one."""
    for bound in (node.lower, node.upper, node.step):
        if bound is not None:
            place, text = (source.start(bound), source.end(bound)), source.of(bound)
            yield "slice", *place, ""
            if not isinstance(bound, ast.Constant | ast.UnaryOp) and bound is not node.step:
                yield "slice", *place, f"{text} + 1"
                yield "slice", *place, f"{text} - 1"


def both(source: Source, node: ast.BoolOp) -> Iterator[Edit]:
    """and for or; a term left out."""
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:], strict=False):
        low, high = source.token(left, right, old)
        yield "condition", low, high, new
    low, high = source.token(node.values[0], node.values[1], old)
    yield "dropped term", source.start(node), high, ""
    low, high = source.token(node.values[-2], node.values[-1], old)
    yield "dropped term", low, source.end(node), ""


RULES = {
    ast.BinOp: arithmetic, ast.Compare: comparison, ast.Constant: constant, ast.UnaryOp: minus, ast.Call: call,
    ast.Attribute: attribute, ast.Slice: bounds, ast.BoolOp: both, ast.IfExp: negated,
}


def _collapsed(text: str) -> str:
    """In one line, without comments."""
    return " ".join(re.sub(r"\s#\s.*$", "", text, flags=re.M).split())
