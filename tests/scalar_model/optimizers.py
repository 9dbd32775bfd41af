"""The optimisers and their schedule, one number at a time."""

import math
from collections.abc import Mapping

from refimpl.config import TrainConfig


class ScalarOptimizer:
    """SGD, Adagrad and Adam as published, one number at a time, over tensors {name: flat list}."""

    def __init__(self, config: TrainConfig, p: Mapping[str, list[float]]) -> None:
        """Accumulators at 0, no update made."""
        self.config, self.updates = config, 0
        self.first = {name: [0.0] * len(values) for name, values in p.items()}
        self.second = {name: [0.0] * len(values) for name, values in p.items()}

    def update(self, p: dict[str, list[float]], gradients: Mapping[str, list[float]]) -> None:
        """One update of `p` in place; spans (names that end in `.span`) are clamped to [0, 1] after it."""
        self.updates += 1
        rate = learning_rate(self.config, self.updates)
        step = {"sgd": self.sgd, "adagrad": self.adagrad, "adam": self.adam}[self.config.optimizer]
        scales = clip_scales(self.config, gradients)
        for name, values in p.items():
            for i, gradient in enumerate(gradients[name]):
                values[i] -= step(name, i, gradient, scales[name], rate)
            if name.endswith(".span"):
                p[name] = [min(1.0, max(0.0, rho)) for rho in values]

    def sgd(self, name: str, i: int, gradient: float, scale: float, rate: float) -> float:
        """v ← momentum v + g; step = rate v."""
        self.first[name][i] = self.config.momentum * self.first[name][i] + scale * gradient
        return rate * self.first[name][i]

    def adagrad(self, name: str, i: int, gradient: float, scale: float, rate: float) -> float:
        """G ← G + g²; step = rate g / (√G + 1e-10). Clipping each tensor scales its rate: G sees the whole gradient."""
        if not self.config.clip_each:
            gradient, scale = scale * gradient, 1.0
        self.second[name][i] += gradient**2
        return scale * rate * gradient / (math.sqrt(self.second[name][i]) + 1e-10)

    def adam(self, name: str, i: int, gradient: float, scale: float, rate: float) -> float:
        """step = rate m̂ / (√v̂ + 1e-8), m̂ = m / (1 - β₁ᵘ), v̂ = v / (1 - β₂ᵘ), u = 1 at the first update."""
        (beta1, beta2), gradient = self.config.adam_betas, scale * gradient
        first = self.first[name][i] = beta1 * self.first[name][i] + (1 - beta1) * gradient
        second = self.second[name][i] = beta2 * self.second[name][i] + (1 - beta2) * gradient**2
        unbiased = first / (1 - beta1**self.updates), second / (1 - beta2**self.updates)
        return rate * unbiased[0] / (math.sqrt(unbiased[1]) + 1e-8)


def learning_rate(config: TrainConfig, update: int) -> float:
    """Rate of update u = 1, 2, …: min(1, u / W) of the full one, last_factor of that during the last updates."""
    warm = min(1.0, update / config.warm_up) if config.warm_up else 1.0
    last = config.last_factor if update > config.updates - config.last_updates else 1.0
    return config.learning_rate * warm * last


def clip_scales(config: TrainConfig, gradients: Mapping[str, list[float]]) -> dict[str, float]:
    """Factor of each tensor: c / (norm + 1e-10) where its norm exceeds c, or min(1, c / (norm of all + 1e-6))."""
    if not config.clip:
        return dict.fromkeys(gradients, 1.0)
    squares = {name: math.fsum(value**2 for value in values) for name, values in gradients.items()}
    if not config.clip_each:
        return dict.fromkeys(gradients, min(1.0, config.clip / (math.sqrt(math.fsum(squares.values())) + 1e-6)))
    norms = {name: math.sqrt(square) for name, square in squares.items()}
    return {name: config.clip / (norm + 1e-10) if norm > config.clip else 1.0 for name, norm in norms.items()}
