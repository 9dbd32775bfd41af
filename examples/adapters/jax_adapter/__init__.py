"""The model's functions in JAX, gradients by jax.vjp: nothing here comes from refimpl, which it is held against.

cd examples/adapters && refimpl golden verify --adapter jax_adapter:adapter
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import attention, layers, optimizers, whole

jax.config.update("jax_enable_x64", True)  # or float64 would silently become float32

FUNCTIONS = {**layers.FUNCTIONS, **attention.FUNCTIONS, **whole.FUNCTIONS, **optimizers.FUNCTIONS}
WITHOUT_GRADIENT = {"past"}  # the hidden states of earlier segments are constants
WITH_ONE = {"span_penalty"}  # the gradient of a model is that of Σ d · token_loss + span_penalty


def adapter(function: str, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs, and the gradient d_x of every real input x for the cotangents d_y among the inputs."""
    given = {name: array for name, array in inputs.items() if not name.startswith("d_")}
    if len(given) == len(inputs):  # no cotangent: no gradient is asked for
        return {name: np.asarray(y) for name, y in FUNCTIONS[function](settings, given).items()}
    sources = {name: jnp.asarray(array) for name, array in given.items()
               if array.dtype.kind == "f" and name not in WITHOUT_GRADIENT}
    outputs, pull = jax.vjp(lambda moving: FUNCTIONS[function](settings, given | moving), sources)
    one = {name: jnp.ones_like(y) for name, y in outputs.items() if name in WITH_ONE}
    zero = {name: jnp.zeros_like(y) for name, y in outputs.items()}
    (gradients,) = pull({name: inputs.get(f"d_{name}", one.get(name, zero[name])) for name in outputs})
    found = outputs | {f"d_{name}": gradient for name, gradient in gradients.items()}
    return {name: np.asarray(array) for name, array in found.items()}


adapter.functions = sorted(FUNCTIONS)  # what it has: cases of other functions are left out of the run, not skipped
