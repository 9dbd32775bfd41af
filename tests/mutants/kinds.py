"""What each test file proves when it fails: the one place where tests are sorted into kinds.

Bugs that forward and backward share can't be killed by a gradient check; runs are held to that.
"""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent

GRADIENT = "gradient"  # forward and backward disagree: complex step, finite differences
PROPERTY = "property"  # what must hold whatever the numbers are
SCALAR = "scalar model"  # numbers of the second model, written apart in Python floats and loops
VALUE = "value by hand"  # numbers worked out in the test, or by loops in it
GOLDEN = "golden value"  # numbers stored in the vectors
TRAJECTORY = "trajectory"  # several updates in a row
TIME = "time"  # the test never ended

# in the order in which they are run: sharp and quick ones first
KINDS = {
    "test_layers": VALUE, "test_worked_values": VALUE, "test_worked_updates": VALUE, "test_attention": VALUE,
    "test_adaptive": VALUE, "test_optimizers": VALUE, "test_arrays": VALUE, "test_parameters": VALUE, "test_convert": VALUE,
    "test_datasets_batches": VALUE, "test_variants": VALUE, "test_docs_equations": VALUE, "test_scalar_model": SCALAR,
    "test_evaluation_generation": VALUE, "test_intervals": VALUE, "test_protocols": SCALAR, "test_model": VALUE,
    "test_training": TRAJECTORY, "test_continuation": PROPERTY, "test_properties_attention": PROPERTY,
    "test_properties_output": PROPERTY, "test_properties_model": PROPERTY,
    "test_properties_arrays": PROPERTY, "test_properties_device": PROPERTY, "test_scalar_gradients": SCALAR,
    "test_tiled_attention": VALUE, "test_fused_softmax": VALUE, "test_masks": VALUE,
    "test_subnormals": VALUE, "test_workers": TRAJECTORY,
    "test_hundred_updates": TRAJECTORY, "test_device_model": TRAJECTORY, "test_ranks": PROPERTY,
    "test_model_gradients": GRADIENT, "test_checks": GRADIENT,
}

# what they look at is the machinery around the numbers, or the tests themselves: their failing proves nothing about these
NO_EVIDENCE = {
    "test_accounting", "test_arena", "test_bench", "test_benchmarks", "test_blas", "test_checkpoint", "test_cli",
    "test_cli_data", "test_cli_errors", "test_cli_gradcheck", "test_cli_interrupt", "test_console",
    "test_convert_command", "test_convert_files", "test_cores", "test_datasets_conventions", "test_datasets_corpus",
    "test_datasets_fetch", "test_datasets_prepared", "test_datasets_sources", "test_datasets_vocabulary",
    "test_datasets_yardsticks", "test_docs_gradients", "test_docs_presets", "test_examples_c", "test_examples_jax",
    "test_examples_torch", "test_faults", "test_golden_bounds", "test_golden_diagnosis", "test_golden_protocol",
    "test_golden_pytest_plugin", "test_golden_reports", "test_golden_vectors", "test_golden_verify", "test_gradcheck",
    "test_gradcheck_adjoint", "test_gradcheck_input", "test_gradcheck_kinks", "test_gradcheck_of_others",
    "test_gradcheck_witness", "test_house", "test_mpi", "test_nccl", "test_packaging", "test_planted",
    "test_properties_can_fail", "test_readme", "test_records", "test_report", "test_report_browser",
    "test_report_commands", "test_runs", "test_settings",
    "test_the_tests",
}
COMMANDS = {"command", "trained"}  # fixtures that run a whole command: a crash there proves as little


def check_complete() -> None:
    """Raises ValueError unless every test file is sorted into a kind or set aside."""
    here = {path.stem for path in TESTS.glob("test_*.py")}
    unsorted, gone = here - KINDS.keys() - NO_EVIDENCE, (KINDS.keys() | NO_EVIDENCE) - here
    if unsorted or gone:
        raise ValueError(f"tests/mutants/kinds.py: expected every test file there once; not there: {sorted(unsorted)}, "
                         f"no longer a file: {sorted(gone)}")


def kind(item: pytest.Item, failure: pytest.ExceptionInfo[BaseException]) -> str:
    """The file's kind; but what fails in the check of a pair is a gradient, and what Hypothesis draws is a property."""
    if any(entry.path == TESTS / "conftest.py" and entry.name == "check" for entry in failure.traceback):
        return GRADIENT
    of_file = KINDS[item.path.stem]
    return PROPERTY if of_file == VALUE and hasattr(getattr(item, "obj", None), "hypothesis") else of_file


def is_evidence(item: pytest.Item) -> bool:
    """Whether the test may kill: one that runs a command, or plants an error of its own, may not."""
    return not COMMANDS & set(getattr(item, "fixturenames", ())) and "planted" not in item.name


def files_for(modules: set[str]) -> list[str]:
    """All files that may kill: those that import one of the modules (given without `refimpl.`) before the others."""
    wanted = {f"refimpl.{module}" for module in modules}
    return sorted(KINDS, key=lambda stem: not wanted & IMPORTED[stem])


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a name in a module, not a module in a package
        return False


IMPORTED = {stem: _imported(TESTS / f"{stem}.py") for stem in KINDS}
PACKAGES = sorted(name for name in set().union(*IMPORTED.values()) if name.startswith("refimpl.") and _is_module(name))
