"""The JAX adapter: its derivatives agree with every golden vector, and errors in it are seen.

XLA compiles every operation anew for every shape and type, a quarter of a second for a model: in float32, models are left to
cd examples/adapters && refimpl golden verify --adapter jax_adapter:adapter --dtype float32
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")  # compiles in half the time

import jax
import jax_adapter
import pytest

from refimpl.functions import FUNCTIONS
from refimpl.golden.vectors import load_case
from refimpl.golden.verify import Selection, exit_code, judged, select, verify

ENTRIES = select(Selection())
MODELS, ATTENTION = {"model", "transformer-layer"}, {"attention", "attention-split", "head-split", "single-head"}
PARTS = {
    "models": [entry for entry in ENTRIES if entry["group"] in MODELS],
    "attention": [entry for entry in ENTRIES if entry["group"] in ATTENTION],
    "functions": [entry for entry in ENTRIES if entry["group"] not in MODELS | ATTENTION],
}
SHARES = 2  # of a part, so that no single test is what the others wait for


@pytest.fixture(autouse=True, scope="module")
def quick():
    """XLA compiles every operation for every shape: here its code runs once, and need not be good."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_it_declares_every_function():
    assert set(jax_adapter.adapter.functions) == set(FUNCTIONS)


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize(("part", "dtype"), [
    ("models", "float64"), ("attention", "float64"), ("attention", "float32"), ("functions", "float64"),
    ("functions", "float32"),
])
def test_every_case_passes(in_process, part, dtype, share):
    entries = PARTS[part][share * len(PARTS[part]) // SHARES : (share + 1) * len(PARTS[part]) // SHARES]
    run = verify(in_process(jax_adapter.adapter), entries, dtype)
    assert run.counts() == {**dict.fromkeys(run.counts(), 0), "PASS": len(entries)}
    assert exit_code(run) == 0


ERRORS = [
    ("layers.py", "jnp.where((fraction >= 0) & (fraction <= 1), fraction, fraction > 1)", "jnp.clip(fraction, 0, 1)",
     "span/at-zero"),
    ("layers.py", "        raise ValueError(f\"tokens", "        print(f\"tokens", "embedding/outside"),
    ("layers.py", "centred * centred).mean", "centred * centred).sum", "layer-norm/rows"),
    ("attention.py", "attend_self - 1 + np", "attend_self - 2 + np", "attention/ordinary@exact"),
    ("attention.py", "(weight + epsilon) * present", "weight * present", "masked-softmax/plain@published"),
    ("optimizers.py", "scaled(adagrad(train, g, state, update), factors)",
     "adagrad(train, scaled(g, factors), state, update)", "optimizer/adagrad-each-clipped-1-update@published"),
    ("optimizers.py", "squares / (1 - second**update)", "squares", "optimizer/adam-20-updates"),
    ("optimizers.py", "(norm(g) + 1e-6)", "norm(g)", "optimizer/sgd-clipped-1-update@torch"),
    ("optimizers.py", "jnp.clip(p[name], 0, 1)", "p[name]", "optimizer/sgd-1-update"),
]


@pytest.mark.parametrize(("file", "old", "new", "case"), ERRORS)
def test_an_error_in_it_is_seen(in_process, changed, file, old, new, case):
    wrong = changed(jax_adapter, file, old, new)
    stored = load_case(select(Selection(ids=(case,)))[0])
    assert judged(in_process(wrong.adapter), stored, "float64")[0].verdict == "MISMATCH"
