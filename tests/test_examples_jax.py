"""The JAX adapter on cases of every function that it has; a case of new shapes takes JAX a second, so not on all cases.

All of them: cd examples/adapters && refimpl golden verify --adapter jax_adapter:adapter
"""

import jax
import jax_adapter
import pytest

from refimpl.functions import FUNCTIONS
from refimpl.golden.vectors import load_case
from refimpl.golden.verify import Selection, exit_code, judged, select, verify

FORMS = ("ordinary", "past-empty", "past-long", "no-span", "span-zero", "span-full", "no-positions", "tiny-mass", "overflow",
         "dropout", "transformer-xl-positions")  # of the same shapes
CASES = [
    "linear/rows", "layer-norm/rows", "layer-norm/large-mean", "dropout/half", "embedding/repeated", "embedding/outside",
    "softmax/large", "softmax-loss/large", "feed-forward/at-zero", "ff-attention/plain", "span/at-zero", "span/at-kink",
    "span/penalty-heads", "positions/by-head", "positions/projected-odd", "masked-softmax/weight-zero@exact",
    "masked-softmax/large@published", "masked-softmax/absent@published", "persistent-attention/dropout",
    "adaptive-input/three",
    *(f"adaptive-softmax/three@{convention}" for convention in ("exact", "published", "torch")),
    *(f"attention/{form}@{convention}" for form in FORMS for convention in ("exact", "published", "transformer-xl")),
    "attention/refused-keys-shorter-than-the-block", "attention/refused-memory-of-another-head",
    "attention/refused-sees-nothing", "attention/refused-spans-of-another-head",
    "attention-split/past-empty@exact", "single-head/dropout@published", "head-split/ordinary@published",
    "attention-layer/ordinary@published", "transformer-layer/all-attention-post@exact",
    "transformer-layer/transformer-pre@published",
    *(f"model/all-attention@{convention}" for convention in ("exact", "published", "transformer-xl")),
    "model/adaptive-tied@published",
]


@pytest.fixture(autouse=True, scope="module")
def quick():
    """XLA compiles every operation for every shape: here its code runs once, and need not be good."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_it_declares_every_function_but_the_optimizers():
    assert set(FUNCTIONS) - set(jax_adapter.adapter.functions) == {"optimizer", "context-mix", "context-scores", "relu"}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cases_of_every_function_pass(in_process, dtype):
    chosen = CASES if dtype == "float64" else CASES[:20]
    run = verify(in_process(jax_adapter.adapter), select(Selection(ids=tuple(chosen))), dtype)
    assert run.counts() == {**dict.fromkeys(run.counts(), 0), "PASS": len(chosen)}
    assert exit_code(run) == 0
    if dtype == "float64":
        assert {entry["function"] for entry in run.entries.values()} == set(jax_adapter.adapter.functions)


ERRORS = [
    ("layers.py", "jnp.where((fraction >= 0) & (fraction <= 1), fraction, fraction > 1)", "jnp.clip(fraction, 0, 1)",
     "span/at-zero"),
    ("layers.py", "        raise ValueError(f\"tokens", "        print(f\"tokens", "embedding/outside"),
    ("layers.py", "centred * centred).mean", "centred * centred).sum", "layer-norm/rows"),
    ("attention.py", "attend_self - 1 + np", "attend_self - 2 + np", "attention/ordinary@exact"),
    ("attention.py", "(weight + epsilon) * present", "weight * present", "masked-softmax/plain@published"),
]


@pytest.mark.parametrize(("file", "old", "new", "case"), ERRORS)
def test_an_error_in_it_is_seen(in_process, changed, file, old, new, case):
    wrong = changed(jax_adapter, file, old, new)
    stored = load_case(select(Selection(ids=(case,)))[0])
    assert judged(in_process(wrong.adapter), stored, "float64")[0].verdict == "MISMATCH"
