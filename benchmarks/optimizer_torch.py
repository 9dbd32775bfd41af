"""The optimisers in PyTorch, as its users call them: plain, and with the fused kernels that it has for CPUs too."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import optimizer
import torch

KEPT = {"adagrad": {"squares": "sum"}, "adam": {"mean": "exp_avg", "squares": "exp_avg_sq"},
        "sgd": {"momentum": "momentum_buffer"}}  # ours: PyTorch's


class Torch:
    """torch.optim; where each tensor is clipped it has a group, and so a rate, of its own."""

    def __init__(self, settings: Mapping[str, Any], fused: bool) -> None:
        self._train, p, g = optimizer.draw(settings)
        self._first = [torch.from_numpy(array.copy()) for array in p.values()]
        self._p = [torch.nn.Parameter(tensor.clone()) for tensor in self._first]
        for tensor, gradient in zip(self._p, g.values(), strict=True):
            tensor.grad = torch.from_numpy(gradient.copy())
        self._spans = [tensor for name, tensor in zip(p, self._p, strict=True) if name.endswith(".span")]
        self._gradients = [tensor.grad.clone() for tensor in self._p]
        made = {"adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[self._train.optimizer]
        given = {"adagrad": {"eps": 1e-10}, "adam": {"betas": self._train.adam_betas, "eps": 1e-8},
                 "sgd": {"momentum": self._train.momentum}}[self._train.optimizer]
        groups = [{"params": [tensor]} for tensor in self._p] if self._train.clip_each else self._p
        self._optimizer = made(groups, lr=self._train.learning_rate, fused=fused, **given)
        self._optimizer.step()  # it makes its accumulators

    @torch.no_grad()
    def run(self) -> float:
        """Seconds of clipping and the first step."""
        for tensor, first, gradient in zip(self._p, self._first, self._gradients, strict=True):
            tensor.copy_(first)
            tensor.grad.copy_(gradient)
            for name in KEPT[self._train.optimizer].values():
                self._optimizer.state[tensor][name].fill_(optimizer.FIRST)
            if "step" in self._optimizer.state[tensor]:
                self._optimizer.state[tensor]["step"].zero_()
        start = time.perf_counter()
        clip = self._train.clip
        if self._train.clip_each:
            for group in self._optimizer.param_groups:
                norm = float(group["params"][0].grad.norm())
                group["lr"] = self._train.learning_rate * (clip / (norm + 1e-10) if norm > clip else 1)
        elif clip:
            torch.nn.utils.clip_grad_norm_(self._p, clip)
        self._optimizer.step()
        for tensor in self._spans:
            tensor.clamp_(0, 1)
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """As ours."""
        self.run()
        told = {"parameters": [tensor.detach() for tensor in self._p]}
        told |= {ours: [self._optimizer.state[tensor][theirs] for tensor in self._p]
                 for ours, theirs in KEPT[self._train.optimizer].items()}
        return {name: np.concatenate([tensor.numpy().ravel() for tensor in tensors]) for name, tensors in told.items()}


def plain(settings: Mapping[str, Any]) -> Torch:
    """PyTorch's own choice of loops."""
    return Torch(settings, False)


def fused(settings: Mapping[str, Any]) -> Torch:
    """One kernel for a step."""
    return Torch(settings, True)
