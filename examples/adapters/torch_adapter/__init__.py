"""The model's functions in PyTorch, gradients by autograd: nothing here comes from refimpl, which it is held against.

cd examples/adapters && refimpl golden verify --adapter torch_adapter:adapter
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import attention, basic, clusters, optimizers, whole

FUNCTIONS: dict[str, Callable[[Mapping[str, Any], dict[str, Tensor]], dict[str, Tensor]]] = {
    **basic.FUNCTIONS, **attention.FUNCTIONS, **clusters.FUNCTIONS, **whole.FUNCTIONS, **optimizers.FUNCTIONS}
WITHOUT_GRADIENT = {"past"}  # the hidden states of earlier segments are constants
WITH_ONE = {"span_penalty"}  # the gradient of a model is that of Σ d · token_loss + span_penalty


def adapter(function: str, settings: Mapping[str, Any], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs, and by autograd the gradient d_x of every real input x for the cotangents d_y among the inputs."""
    if function not in FUNCTIONS:
        raise NotImplementedError(function)
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    cotangents = {name.removeprefix("d_"): given.pop(name) for name in inputs if name.startswith("d_")}
    sources = {name: tensor.requires_grad_() for name, tensor in given.items()
               if cotangents and tensor.is_floating_point() and name not in WITHOUT_GRADIENT}
    outputs = FUNCTIONS[function](settings, given)
    followed = {name: cotangents.get(name, torch.ones_like(y)) for name, y in outputs.items()
                if y.requires_grad and name in cotangents.keys() | WITH_ONE}
    results = {name: y.detach().numpy() for name, y in outputs.items()}
    if followed:
        gradients = torch.autograd.grad([outputs[name] for name in followed], list(sources.values()),
                                        list(followed.values()), materialize_grads=True)
        results |= {f"d_{name}": gradient.numpy() for name, gradient in zip(sources, gradients, strict=True)}
    return results


adapter.functions = sorted(FUNCTIONS)  # what it has: cases of other functions are left out, not skipped
