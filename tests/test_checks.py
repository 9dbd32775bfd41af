"""What `refimpl gradcheck all` checks: it is all there, it passes, and an error in any backward makes it fail."""

import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

from refimpl import layers, settings
from refimpl.checks import attentions, models, pairs

BUILDERS = {name: builder for module in (pairs, attentions) for name, builder in vars(module).items() if name[:3] == "of_"}
BUILDERS |= {f"{name}_tiled": lambda rng, size, builder=builder: pairs.with_tiles(builder(rng, size))
             for name, builder in (vars(attentions) | {"of_adaptive_softmax": pairs.of_adaptive_softmax}).items()
             if name[:3] == "of_"}
BACKWARDS = sorted(
    (name, function) for name in (module.name for module in pkgutil.iter_modules(layers.__path__))
    for function in vars(importlib.import_module(f"refimpl.layers.{name}"))
    if function.endswith("backward") and not function.startswith("_")
)
ONE_IN_A_MILLION = 1 + 1e-6


def worst(errors_of_pair, builder, size=3):
    pair = builder(np.random.default_rng(0), size)
    return max(errors_of_pair(pair.forward, pair.vjp, list(pair.arguments.values()), seed=1))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", BUILDERS)
def test_every_pair_is_exact(errors_of_pair, name, size):
    assert worst(errors_of_pair, BUILDERS[name], size) <= 1e-12


@pytest.mark.parametrize("name", models.forms())
def test_every_form_of_the_model_is_exact(errors_of_pair, name):
    pair = models.named(name, models.forms()[name], seed=0, size=2)
    for vjp in (pair.vjp, pair.tiled):
        assert max(errors_of_pair(pair.forward, vjp, list(pair.arguments.values()), seed=1)) <= 1e-12


@pytest.mark.parametrize("name", settings.preset_names())
def test_presets_are_scaled_down_to_the_same_form(errors_of_pair, name):
    whole = settings.model_config({"vocabulary": 256, **settings.preset(name)["model"]})
    config = models.scaled_down(whole)
    for switch in ("variant", "positions", "share_positions", "attend_self", "adaptive_span", "norm", "tie_tables",
                   "tie_projections", "cluster_order", "normalizer_epsilon", "zero_past", "dropout", "embedding_dropout"):
        assert getattr(config, switch) == getattr(whole, switch), switch
    assert len(config.cutoffs) == len(whole.cutoffs)
    pair = models.named(name, config, seed=0, size=2)
    assert sum(array.size for array in pair.arguments.values()) < 2000
    assert max(errors_of_pair(pair.forward, pair.vjp, list(pair.arguments.values()), seed=1)) <= 1e-12


def test_every_backward_of_the_layers_is_there():
    forward_alone = {"one_query"}  # text is generated, not trained on, with one query at a time
    parts = {"tiles", "tiled_logits", "tiled_gradients"}  # of tiled_attention
    files = {path.stem for path in Path(layers.__path__[0]).glob("[!_]*.py")} - forward_alone - parts
    assert files == {name for name, _ in BACKWARDS}


@pytest.mark.parametrize(("module", "function"), BACKWARDS)
def test_a_millionth_in_any_backward_makes_some_check_fail(monkeypatch, errors_of_pair, module, function):
    """First of its result's arrays; the checks named after the module come first."""
    where = importlib.import_module(f"refimpl.layers.{module}")
    right = getattr(where, function)

    def wrong(*given):
        results = right(*given)
        if isinstance(results, np.ndarray):
            return results * ONE_IN_A_MILLION
        first = results[0]
        spoilt = [a * ONE_IN_A_MILLION for a in first] if isinstance(first, list) else first * ONE_IN_A_MILLION
        return type(results)(spoilt, *results[1:]) if hasattr(results, "_fields") else (spoilt, *results[1:])

    monkeypatch.setattr(where, function, wrong)
    order = sorted(BUILDERS, key=lambda name: module not in name)
    assert any(worst(errors_of_pair, BUILDERS[name]) > 1e-12 for name in order)
