"""The model and its update in PyTorch, as its users write them: whole rows of logits, one softmax, autograd.

The past is cut to whole multiples of 64 positions by the layer's largest span, as the published code cuts it. Relative
positions, post-norm, plain output. Parameters have refimpl's names.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
import update
from attention_torch import core
from torch.nn import functional

from refimpl.config import ModelConfig


def attention(p: Mapping[str, Any], name: str, config: ModelConfig, size: int, h: Any, past: Any) -> Any:
    """(B, T, D), past (B, size, D) -> (B, T, D)."""
    batch, heads, width = len(h), config.heads, config.head_width
    context = torch.cat([past, h], 1)
    queries, keys, values = (functional.linear(x, p[f"{name}.{kind}"]).view(batch, -1, heads, width).transpose(1, 2)
                             for x, kind in ((h, "query"), (context, "key"), (context, "value")))
    y = core(queries, keys, values, p["positions"], p[f"{name}.memory_keys"], p[f"{name}.memory_values"], p[f"{name}.span"],
             config.span_ramp, config.normalizer_epsilon)
    return functional.linear(y.transpose(1, 2).flatten(2), p[f"{name}.output"])


def loss_of(
    p: Mapping[str, Any], config: ModelConfig, sizes: tuple[int, ...], tokens: Any, targets: Any, past: Any
) -> tuple[Any, Any, Any]:
    """Mean loss, span penalty, and the past for the next segment."""
    h, new_past, penalty = functional.embedding(tokens, p["input.table"]), [], 0.0
    for layer, size in enumerate(sizes):
        name = f"layers.{layer}.attention"
        new_past.append(torch.cat([past[layer], h.detach()], 1)[:, -config.span :])
        out = attention(p, name, config, size, h, past[layer][:, past.shape[2] - size :])
        h = functional.layer_norm(h + out, h.shape[-1:], p[f"{name}_norm.gain"], p[f"{name}_norm.bias"], 1e-5)
        penalty = penalty + config.span_penalty * config.span * p[f"{name}.span"].mean()
    logits = functional.linear(h, p["output.table"], p["output.bias"])
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten()), penalty, torch.stack(new_past)


class Torch:
    """torch.optim.Adagrad with a group, and so a rate, for each tensor."""

    def __init__(self, settings: Mapping[str, Any], loss: Any) -> None:
        self._loss, (self._config, self._train, first, tokens, targets, past) = loss, update.draw(settings)
        self._first = {name: torch.from_numpy(array.copy()) for name, array in first.items()}
        self._p = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in self._first.items()}
        self._given = tuple(map(torch.from_numpy, (tokens, targets, past)))
        self._optimizer = torch.optim.Adagrad([{"params": [tensor]} for tensor in self._p.values()], eps=1e-10,
                                              initial_accumulator_value=update.SQUARES)

    def move(self, device: str) -> None:
        """Parameters, accumulators and what is given to a device, on which updates are computed from then on."""
        for name, tensor in self._p.items():
            tensor.data = tensor.data.to(device)
            self._first[name] = self._first[name].to(device)
            self._optimizer.state[tensor]["sum"] = self._optimizer.state[tensor]["sum"].to(device)
        self._given = tuple(tensor.to(device) for tensor in self._given)

    def run(self) -> float:
        """Seconds of one update."""
        with torch.no_grad():
            for name, tensor in self._p.items():
                tensor.copy_(self._first[name])
                self._optimizer.state[tensor]["sum"].fill_(update.SQUARES)
        self._wait()
        start = time.perf_counter()
        self._optimizer.zero_grad()
        with torch.no_grad():
            sizes = update.sizes_of(self._config, self._p)
        loss, penalty, past = self._loss(self._p, self._config, sizes, *self._given)
        (loss + penalty).backward()
        for group in self._optimizer.param_groups:
            norm = float(group["params"][0].grad.norm())
            group["lr"] = self._train.learning_rate * (self._train.clip / (norm + 1e-10) if norm > self._train.clip else 1)
        self._optimizer.step()
        with torch.no_grad():
            for layer in range(self._config.layers):
                self._p[f"layers.{layer}.attention.span"].clamp_(0, 1)
        self._wait()
        seconds = time.perf_counter() - start
        self._told = {"loss": loss, "span penalty": penalty, "past": past}
        return seconds

    def _wait(self) -> None:
        if self._given[0].is_cuda:
            torch.cuda.synchronize()

    def results(self) -> dict[str, Any]:
        """Of the first update."""
        self.run()
        told = self._told | {f"updated {name}": tensor for name, tensor in self._p.items()}
        told |= {f"gradient of {name}": tensor.grad for name, tensor in self._p.items()}
        return {name: tensor.detach().cpu().numpy() for name, tensor in told.items()}


def eager(settings: Mapping[str, Any]) -> Torch:
    """PyTorch as it is."""
    return Torch(settings, loss_of)


def compiled(settings: Mapping[str, Any]) -> Torch:
    """Forward and backward through torch.compile."""
    return Torch(settings, torch.compile(loss_of, dynamic=False))
