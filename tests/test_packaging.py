"""The package as people meet it: light to import, one top-level name, in a wheel and in a checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"scipy", "cupy", "matplotlib", "jinja2", "markupsafe", "rich", "safetensors", "threadpoolctl", "click"}
LIST_MODULES = "import json, sys; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def run(*arguments, cwd, path=()):
    """Standard output of a new interpreter; its first search path can be given."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONWARNINGS": "error"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    assert not HEAVY & set(json.loads(run("-c", f"import refimpl; {LIST_MODULES}", cwd=tmp_path)))


def test_importing_the_model_and_the_command_imports_no_plots_gpu_or_rich(tmp_path):
    code = f"import refimpl.training, refimpl.evaluation, refimpl.checkpoint, refimpl.jobs, refimpl.cli; {LIST_MODULES}"
    modules = set(json.loads(run("-c", code, cwd=tmp_path)))
    assert not {"scipy", "cupy", "matplotlib", "jinja2", "markupsafe", "rich"} & modules
    assert "numpy" in modules


@pytest.mark.parametrize("arguments", [["-m", "refimpl"], ["cli.py"]])
def test_the_checkout_runs_from_its_root(arguments):
    assert run(*arguments, "--version", cwd=ROOT) == run("-m", "refimpl", "--version", cwd=ROOT)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, unpacked."""
    built, unpacked = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("unpacked")
    run("-m", "hatchling", "build", "-t", "wheel", "-d", str(built), cwd=ROOT)
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(unpacked)
    return unpacked


def test_the_wheel_has_one_top_level_name_and_everything_in_it(wheel):
    assert {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")} == {"refimpl"}
    files = [path for path in (ROOT / "refimpl").rglob("*.*") if "__pycache__" not in path.parts]
    here = {path.relative_to(ROOT / "refimpl") for path in files}
    here |= {path.relative_to(ROOT) for folder in ("gradcheck", "datasets") for path in (ROOT / folder).rglob("*.py")}
    there = {path.relative_to(wheel / "refimpl") for path in (wheel / "refimpl").rglob("*.*")}
    assert there == here | {Path("cli.py")}


def test_the_wheel_runs_far_from_the_checkout(wheel, tmp_path):
    code = "import refimpl.cli, refimpl.datasets.batches, refimpl.gradcheck.complex_step; print(refimpl.cli.__file__)"
    assert run("-c", code, cwd=tmp_path, path=[wheel]).strip() == str(wheel / "refimpl" / "cli.py")
    listed = json.loads(run("-m", "refimpl", "info", "--json", cwd=tmp_path, path=[wheel]))
    assert "laptop" in listed["presets"]


def test_another_package_named_datasets_stays_itself(wheel, tmp_path):
    """Hugging Face's has this name: whoever has it installed gets theirs by `datasets` and ours by `refimpl.datasets`."""
    other = tmp_path / "site" / "datasets"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("name = 'theirs'\n")
    code = "import datasets, refimpl.datasets.batches as ours; print(datasets.name, ours.Batches.__module__)"
    for path in ([tmp_path / "site", wheel], [tmp_path / "site", ROOT]):
        assert run("-c", code, cwd=tmp_path, path=path).split() == ["theirs", "refimpl.datasets.batches"]
