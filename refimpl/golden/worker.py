"""The process in which an adapter runs: reads [case, out] folders as lines of JSON, answers each with a line.

What the adapter itself prints goes to stderr, so that it can't be taken for an answer.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refimpl.golden import exchange


def main() -> None:
    """Serves until stdin ends."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        sys.path.insert(0, os.getcwd())
        adapter, told = _load(sys.argv[1])
        print(json.dumps(told), file=answers, flush=True)
        if adapter is None:
            return
        for line in sys.stdin:
            case, out = map(Path, json.loads(line))
            print(json.dumps(_call(adapter, case, out)), file=answers, flush=True)


def _load(reference: str) -> tuple[Any, dict[str, Any]]:
    """The function, and what is told first: the functions that it declares, or why it can't be used."""
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        outside = error.name is not None and error.name != module_name and not module_name.startswith(f"{error.name}.")
        return None, {"error": f"expected a module that can be imported from here, got {error}", "outside": outside}
    except Exception as error:  # whatever the module does when it is imported
        return None, {"error": f"importing it raised {type(error).__name__}: {error}", "outside": True}
    adapter = getattr(module, name, None)
    if not callable(adapter):
        return None, {"error": f"expected a function {name} in {module_name}, got {adapter!r}", "outside": False}
    declared = getattr(adapter, "functions", None)
    if declared is not None and (isinstance(declared, str) or not isinstance(declared, Iterable)):
        return None, {"error": f"expected a list of names as {name}.functions, got {declared!r}", "outside": False}
    return adapter, {"functions": None if declared is None else sorted(map(str, declared))}


def _call(adapter: Any, case: Path, out: Path) -> dict[str, str]:
    """One case: results are written, everything else is told."""
    try:
        results = adapter(*exchange.read_case(case))
    except NotImplementedError as error:
        return {"kind": "skipped", "message": f"not implemented {error}".strip()}
    except MemoryError as error:
        return {"kind": "exhausted", "message": f"out of memory: {error}".rstrip(": ")}
    except Exception as error:  # a refusal, if the case is one to be refused
        return {"kind": "refused", "message": f"{type(error).__name__}: {error}"}
    if results is None:
        return {"kind": "skipped", "message": "not implemented"}
    try:
        exchange.write_results(out, results)
    except exchange.WrongNumbersError as error:
        return {"kind": "wrong", "message": str(error)}
    except Exception as error:
        return {"kind": "crashed", "message": f"expected arrays by name, got {type(results).__name__}: {error}"}
    return {"kind": "results", "message": ""}


if __name__ == "__main__":
    main()
