"""How every function is called: arrays in, outputs and gradients out."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Settings = Mapping[str, Any]
Tensors = dict[str, Tensor]
Function = Callable[[Settings, Tensors], Tensors]

WITHOUT_GRADIENT = {"past"}  # the hidden states of earlier segments are constants
WITH_ONE = {"span_penalty"}  # the gradient of a model is that of Σ d · token_loss + span_penalty


def results(function: Function, settings: Settings, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs, and by autograd the gradient d_x of every real input x for the cotangents d_y among the inputs."""
    given = {name: torch.tensor(array) for name, array in inputs.items()}
    cotangents = {name.removeprefix("d_"): given.pop(name) for name in inputs if name.startswith("d_")}
    sources = {name: tensor.requires_grad_() for name, tensor in given.items()
               if cotangents and tensor.is_floating_point() and name not in WITHOUT_GRADIENT}
    outputs = function(settings, given)
    found = {name: y.detach().numpy() for name, y in outputs.items()}
    followed = {name: cotangents.get(name, torch.ones_like(y)) for name, y in outputs.items()
                if y.requires_grad and name in cotangents.keys() | WITH_ONE}
    if followed:
        gradients = torch.autograd.grad([outputs[name] for name in followed], list(sources.values()),
                                        list(followed.values()), materialize_grads=True)
        found |= {f"d_{name}": gradient.numpy() for name, gradient in zip(sources, gradients, strict=True)}
    return found
