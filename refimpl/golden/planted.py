"""Known bugs, each planted into the reference in memory: to prove that a test, or a golden case, catches it.

The registry is planted_bugs.toml: id, a sentence, the groups that must catch it, and the changes of source text.
"""

import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from refimpl.errors import InputError

REGISTRY = Path(__file__).with_name("planted_bugs.toml")


class Change(NamedTuple):
    """`expression`, which stands exactly once in a module's source, becomes `replacement`."""

    module: str
    expression: str
    replacement: str


class Bug(NamedTuple):
    """One known bug. `consistent`: forward and backward agree, so that no gradient check can see it."""

    id: str
    sentence: str
    groups: tuple[str, ...]
    consistent: bool
    changes: tuple[Change, ...]


def bugs() -> dict[str, Bug]:
    """The registry by id. Raises InputError for an entry that is not complete."""
    found = {}
    for name, entry in tomllib.loads(REGISTRY.read_text(encoding="utf-8")).items():
        if set(entry) != {"sentence", "groups", "consistent", "changes"}:
            raise InputError(f"planted bug {name}: expected sentence, groups, consistent and changes, got {sorted(entry)}")
        changes = tuple(Change(**change) for change in entry["changes"])
        found[name] = Bug(name, entry["sentence"], tuple(entry["groups"]), entry["consistent"], changes)
    return found


def source_of(module: str) -> str:
    """The text of a module, named without `refimpl.`."""
    spec = find_spec(f"refimpl.{module}")
    if spec is None or spec.origin is None:
        raise InputError(f"planted bug: expected a module of refimpl, got {module!r}")
    return Path(spec.origin).read_text(encoding="utf-8")


def changed_sources(bug: Bug) -> dict[str, str]:
    """The text of every module that the bug touches, as it is with the bug. Raises InputError if a change does not fit."""
    sources: dict[str, str] = {}
    for change in bug.changes:
        text = sources.get(change.module) or source_of(change.module)
        if text.count(change.expression) != 1:
            raise InputError(f"planted bug {bug.id}: expected its expression once in {change.module}, got it "
                             f"{text.count(change.expression)} times: {change.expression!r}")
        sources[change.module] = text.replace(change.expression, change.replacement)
    return sources


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The package as it is with this bug, in this process, until the block ends. Not for several threads at once."""
    with replaced(changed_sources(bug)):
        yield


@contextmanager
def replaced(sources: dict[str, str]) -> Iterator[None]:
    """The package with other source texts of some modules (named without `refimpl.`), until the block ends."""
    changed = {name: import_module(f"refimpl.{name}") for name in sources}
    loaded = [module for name, module in sys.modules.items() if name.partition(".")[0] == "refimpl"]
    before = [(module, dict(vars(module))) for module in loaded]
    try:
        for name, text in sources.items():
            module = changed[name]
            old = dict(vars(module))
            exec(compile(text, str(module.__file__), "exec"), vars(module))  # the registry is ours, not input
            _rebind(loaded, old, module)
        yield
    finally:
        for module, names in before:
            for added in vars(module).keys() - names.keys():
                del vars(module)[added]
            vars(module).update(names)


def _rebind(loaded: list[ModuleType], old: dict[str, Any], module: ModuleType) -> None:
    """What other modules imported by name becomes the new object too."""
    new = {id(value): vars(module)[name] for name, value in old.items()
           if getattr(value, "__module__", None) == module.__name__ and vars(module).get(name) is not value}
    for other in loaded:
        for name, value in list(vars(other).items()):
            if id(value) in new and other is not module:
                vars(other)[name] = new[id(value)]
