"""Updates with torch's own optimisers, and clipping with torch's own function where its rule is asked for."""


import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from .autograd import Settings, Tensors

GRADIENT = "gradient."


def rate(train: Settings, update: int) -> float:
    """The rate of update u = 1, 2, …: warm-up min(1, u / W), the last updates at last_factor."""
    warm_up = train.get("warm_up", 0)
    last = update > train["updates"] - train.get("last_updates", 0)
    return train["learning_rate"] * min(1.0, update / (warm_up or 1)) * (train.get("last_factor", 0.1) if last else 1)


def opened(train: Settings, parameters: list[Tensor]) -> torch.optim.Optimizer:
    """torch's optimiser; every parameter is a group, so that it can have a rate of its own."""
    groups = [{"params": [parameter]} for parameter in parameters]
    if train["optimizer"] == "adagrad":
        return torch.optim.Adagrad(groups, eps=1e-10)
    if train["optimizer"] == "adam":
        return torch.optim.Adam(groups, betas=tuple(train.get("adam_betas", (0.9, 0.999))), eps=1e-8)
    return torch.optim.SGD(groups, momentum=train.get("momentum", 0.0))


def shares(train: Settings, parameters: list[Tensor]) -> list[Tensor | float]:
    """c / (norm + 1e-10) for each tensor whose gradient's norm exceeds c, 1 for the others."""
    norms = [torch.linalg.vector_norm(parameter.grad) for parameter in parameters]
    return [train["clip"] / (norm + 1e-10) if norm > train["clip"] else 1.0 for norm in norms]


def clipped_rates(train: Settings, parameters: list[Tensor]) -> list[Tensor | float]:
    """Clips the gradients, and returns each rate's factor: with Adagrad, as published, the rate is clipped instead."""
    none: list[Tensor | float] = [1.0] * len(parameters)
    if not train["clip"]:
        return none
    if not train.get("clip_each", False):
        clip_grad_norm_(parameters, train["clip"])
        return none
    if train["optimizer"] == "adagrad":
        return shares(train, parameters)
    for parameter, share in zip(parameters, shares(train, parameters), strict=True):
        parameter.grad *= share
    return none


def optimizer(settings: Settings, x: Tensors) -> Tensors:
    """Parameters after one update for each row of gradient.NAME, spans clamped to [0, 1]; and each update's rate."""
    train = settings["train"]
    p = {name: tensor for name, tensor in x.items() if not name.startswith(GRADIENT)}
    parameters, chosen, rates = list(p.values()), opened(train, list(p.values())), []
    for number in range(len(next(x[name] for name in x if name.startswith(GRADIENT)))):
        for name, parameter in p.items():
            parameter.grad = x[GRADIENT + name][number].clone()
        rates.append(rate(train, number + 1))
        for group, factor in zip(chosen.param_groups, clipped_rates(train, parameters), strict=True):
            group["lr"] = rates[-1] * float(factor)
        chosen.step()
        for name in p:
            if name.endswith(".span"):
                p[name].clamp_(0, 1)
    return {**p, "learning_rate": torch.tensor(rates, dtype=parameters[0].dtype)}


FUNCTIONS = {"optimizer": optimizer}
