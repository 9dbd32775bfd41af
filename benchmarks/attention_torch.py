"""The attention core in PyTorch, as its users write it: whole rows of logits, one softmax, autograd."""

import time
from collections.abc import Mapping
from typing import Any

import attention
import torch
from torch.nn.functional import pad


def core(
    queries: Any, keys: Any, values: Any, positions: Any, memory_keys: Any, memory_values: Any, rho: Any, ramp: int,
    epsilon: float = 0.0,
) -> Any:
    """queries (B, H, T, E), keys and values (B, H, size + T, E), of which each query sees `size`, positions (S, E) nearest
    first -> (B, H, T, E).
    """
    batch, heads, block, width = queries.shape
    size = keys.shape[2] - block
    # query t's logits begin at column t: with one column more, rows of one column less begin there
    product = pad((queries @ keys.mT).flatten(2), (0, block)).view(batch, heads, block, size + block + 1)
    context = (product[..., :size] + queries @ positions[:size].flip(0).T) * width**-0.5
    weights = torch.softmax(torch.cat([context, queries @ memory_keys.mT], -1), -1)
    distance = torch.arange(size - 1, -1, -1, dtype=queries.dtype, device=queries.device)
    mask = ((ramp + len(positions) * rho[:, None, None] - distance) / ramp).clamp(0, 1)
    weights = torch.cat([weights[..., :size] * mask, weights[..., size:]], -1)
    weights = weights / (weights.sum(-1, keepdim=True) + epsilon)
    skewed = pad(weights[..., :size], (0, block + 1)).flatten(2)[..., :-block].view(batch, heads, block, size + block)
    return skewed @ values + weights[..., size:] @ (memory_values * memory_values.shape[1] ** 0.5)


class Torch:
    """Forward and autograd's backward of a function like `core`."""

    def __init__(self, settings: Mapping[str, Any], function: Any) -> None:
        arguments, dy = attention.draw(settings)
        self._function = function
        self._leaves = [torch.tensor(attention.heads_first(name, getattr(arguments, name)), requires_grad=True)
                        for name in attention.FIELDS]
        self._cotangent = torch.tensor(attention.heads_first("y", dy))

    def run(self) -> float:
        """Seconds of both directions."""
        queries, keys, values, positions, *others, rho = self._leaves
        start = time.perf_counter()
        size = attention.trimmed(rho.detach(), len(positions))
        keys, values = (rows[:, :, -size - queries.shape[2] :] for rows in (keys, values))
        y = self._function(queries, keys, values, positions, *others, rho, attention.RAMP)
        self._told = (y, *torch.autograd.grad(y, self._leaves, self._cotangent))
        return time.perf_counter() - start

    def results(self) -> dict[str, Any]:
        """In our layout."""
        self.run()
        return attention.named(array.detach().numpy() for array in self._told)


def eager(settings: Mapping[str, Any]) -> Torch:
    """PyTorch as it is."""
    return Torch(settings, core)


def compiled(settings: Mapping[str, Any]) -> Torch:
    """Forward and backward through torch.compile."""
    return Torch(settings, torch.compile(core, dynamic=False))
