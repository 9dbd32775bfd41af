"""Updates by SGD, Adagrad and Adam, with clipping and warm-up: a dictionary of arrays by name in, another one out."""

from typing import Any

import jax.numpy as jnp

from .layers import Arrays, Settings

GRADIENT = "gradient."


def rate(train: Settings, update: int) -> float:
    """The rate of update u = 1, 2, …: warm-up min(1, u / W), the last updates at last_factor."""
    warm_up = train.get("warm_up", 0)
    last = update > train["updates"] - train.get("last_updates", 0)
    return train["learning_rate"] * min(1.0, update / (warm_up or 1)) * (train.get("last_factor", 0.1) if last else 1)


def norm(g: Arrays) -> Any:
    """√Σ g² over all arrays."""
    return jnp.sqrt(sum((array * array).sum() for array in g.values()))


def shares(train: Settings, g: Arrays) -> Arrays:
    """What is left of each gradient: c / norm where its own norm, or that of all together, exceeds c."""
    if not train["clip"]:
        return dict.fromkeys(g, 1.0)
    if train.get("clip_each", False):
        return {name: jnp.minimum(1, train["clip"] / (norm({name: array}) + 1e-10)) for name, array in g.items()}
    return dict.fromkeys(g, jnp.minimum(1, train["clip"] / (norm(g) + 1e-6)))


def scaled(g: Arrays, factors: Arrays) -> Arrays:
    """Each array times its factor."""
    return {name: factors[name] * array for name, array in g.items()}


def sgd(train: Settings, g: Arrays, state: Arrays, update: int) -> Arrays:
    """v ← m v + g; step v."""
    for name in g:
        state[name] = train.get("momentum", 0.0) * state.get(name, 0) + g[name]
    return dict(state)


def adagrad(train: Settings, g: Arrays, state: Arrays, update: int) -> Arrays:
    """G ← G + g²; step g / (√G + 1e-10)."""
    for name in g:
        state[name] = state.get(name, 0) + g[name] ** 2
    return {name: g[name] / (jnp.sqrt(state[name]) + 1e-10) for name in g}


def adam(train: Settings, g: Arrays, state: Arrays, update: int) -> Arrays:
    """m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g²; step m̂ / (√v̂ + 1e-8)."""
    first, second = train.get("adam_betas", (0.9, 0.999))
    step = {}
    for name in g:
        mean, squares = state.get(name, (0, 0))
        mean, squares = first * mean + (1 - first) * g[name], second * squares + (1 - second) * g[name] ** 2
        state[name] = mean, squares
        step[name] = mean / (1 - first**update) / (jnp.sqrt(squares / (1 - second**update)) + 1e-8)
    return step


METHODS = {"sgd": sgd, "adagrad": adagrad, "adam": adam}


def optimizer(settings: Settings, x: Arrays) -> Arrays:
    """Parameters after one update for each row of gradient.NAME, spans clamped to [0, 1]; and each update's rate."""
    train, state, rates = settings["train"], {}, []
    p = {name: jnp.asarray(array) for name, array in x.items() if not name.startswith(GRADIENT)}
    for update, rows in enumerate(zip(*(x[GRADIENT + name] for name in p), strict=True), start=1):
        g = dict(zip(p, map(jnp.asarray, rows), strict=True))
        factors = shares(train, g)
        rates.append(rate(train, update))
        if train["optimizer"] == "adagrad" and train.get("clip_each", False):  # as published, the rate is clipped instead
            step = scaled(adagrad(train, g, state, update), factors)
        else:
            step = METHODS[train["optimizer"]](train, scaled(g, factors), state, update)
        p = {name: p[name] - rates[-1] * step[name] for name in p}
        p |= {name: jnp.clip(p[name], 0, 1) for name in p if name.endswith(".span")}
    return {**p, "learning_rate": jnp.array(rates, next(iter(p.values())).dtype)}


FUNCTIONS = {"optimizer": optimizer}
