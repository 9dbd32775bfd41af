"""Generation in PyTorch, as its users write it: one token at a time, keys and values of the past concatenated."""

from collections.abc import Mapping
from typing import Any

import generate
import numpy as np
import torch

from refimpl import parameters
from refimpl.config import ModelConfig


class TorchLoop:
    """All-attention, post-norm, relative positions, plain output: one token at a time, past keys and values concatenated.

    Keys and values beyond the layer's largest span are cut off, in whole multiples of 64, as the published code does.
    """

    def __init__(self, p: parameters.Parameters, config: ModelConfig, pasts: int = 0) -> None:
        self.config, self.p = config, {name: torch.from_numpy(np.array(array)) for name, array in p.items()}
        heads, width, slots = config.heads, config.head_width, config.memory
        self.past, self.masks, self.memory = [], [], []
        for layer in range(config.layers):
            name = f"layers.{layer}.attention"
            reach = config.span * self.p[f"{name}.span"]
            size = min(config.span, -(-int(reach.max() + config.span_ramp) // 64) * 64)
            distance = torch.arange(size - 1, -1, -1)
            self.masks.append(((config.span_ramp + reach[:, None] - distance) / config.span_ramp).clamp(0, 1)[None])
            self.memory.append((self.p[f"{name}.memory_keys"] * width**0.5, self.p[f"{name}.memory_values"] * slots**0.5))
            self.past.append(tuple(torch.randn(1, heads, min(pasts, size), width) for _ in range(2)))
        self.positions = self.p["positions"].flip(0).T.contiguous()

    def add(self, token: int) -> torch.Tensor:
        """log p of the word after this token, (1, V)."""
        p, config = self.p, self.config
        h = p["input.table"][token][None]
        for layer in range(config.layers):
            name = f"layers.{layer}.attention"
            h = self._norm(h + self._attend(layer, h) @ p[f"{name}.output"].T, f"{name}_norm")
        return torch.log_softmax(h @ p["output.table"].T + p["output.bias"], -1)

    def _attend(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        config, name = self.config, f"layers.{layer}.attention"
        heads, width = config.heads, config.head_width
        query, key, value = ((h @ self.p[f"{name}.{kind}"].T).view(1, heads, 1, width) for kind in ("query", "key", "value"))
        (keys, values), mask, (memory_keys, memory_values) = self.past[layer], self.masks[layer], self.memory[layer]
        count, size = keys.shape[2], mask.shape[-1]
        positions = self.positions[:, self.positions.shape[1] - count :]
        logits = query @ keys.transpose(2, 3) + query @ positions
        logits = torch.cat([logits, query @ memory_keys.transpose(1, 2)], -1) / width**0.5
        weights = torch.softmax(logits, -1)
        seen = weights[..., :count] * mask[:, :, None, size - count :]
        weights = torch.cat([seen, weights[..., count:]], -1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = weights[..., :count] @ values + weights[..., count:] @ memory_values
        self.past[layer] = tuple(torch.cat(pair, 2)[:, :, -size:] for pair in ((keys, key), (values, value)))
        return y.view(1, -1)

    def _norm(self, h: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(h, h.shape[-1:], self.p[f"{name}.gain"], self.p[f"{name}.bias"], 1e-5)


class Torch(generate.Subject):
    """The loop, timed; what a past of some length holds makes no difference to the time that a token takes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        torch.inference_mode().__enter__()  # for the rest of this process
        self._loop = TorchLoop(generate.draw(self.config), self.config, settings["length"])

    def add(self, token: int) -> None:
        """Reads one token."""
        self._loop.add(token)

    def after_each(self, tokens: Any) -> list[Any]:
        """log p after each token of a text."""
        loop = TorchLoop(generate.draw(self.config), self.config)
        return [loop.add(int(token))[0].numpy() for token in tokens]
