"""An optimiser's state as PyTorch saves it, with the published code's parameters, becomes ours.

PyTorch numbers parameters in the order in which the model registered them, a shared one at its first name. A state dict
lists tensors in that order too, constants of each module after its parameters; so its names, constants and second names
left out, are the parameters by number. Nothing else is assumed of the published code, and every shape is compared.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array
from refimpl.config import ModelConfig, TrainConfig
from refimpl.convert.names import from_adaptive_span, published_names
from refimpl.errors import InputError
from refimpl.parameters import Parameters, specification

KINDS = {"adagrad": {"squares": "sum"}, "adam": {"mean": "exp_avg", "squares": "exp_avg_sq"}}  # ours: PyTorch's

EPSILON = {"adagrad": 1e-10, "adam": 1e-8}
LEAVE = "--no-optimizer leaves the state"


class OptimizerState(NamedTuple):
    """`kind` as in train.optimizer, updates done, our accumulators by name, and what of [train] the state tells."""

    kind: str
    updates: int
    accumulators: dict[str, Parameters]
    train: dict[str, Any]


def parameter_order(names: Sequence[str], config: ModelConfig) -> list[str]:
    """The published names, one for each parameter, in the order in which PyTorch numbers them."""
    of = {published: spec.name for spec in specification(config) for published in published_names(spec.name, config)}
    first = {of[name]: name for name in reversed(names) if name in of}
    return [name for name in names if name in of and first[of[name]] == name]


def read(entry: Any, tensors: Mapping[str, Array], config: ModelConfig) -> OptimizerState:
    """The state in a checkpoint's `optimizer`; tensors: the model's, in the file's order.

    Raises InputError unless it is Adagrad's or Adam's, of one group with as many parameters as the model, each of its shape.
    """
    group, state = _parts(entry)
    order = parameter_order(list(tensors), config)
    numbers = group["params"]
    if len(numbers) != len(order) or not all(number in state for number in numbers):
        held = sum(number in state for number in numbers)
        raise InputError(f"optimizer: expected the state of {len(order)} parameters in one group, got a group of "
                         f"{len(numbers)}, {held} of them with a state")
    kind = next((kind for kind, names in KINDS.items() if all(
        set(names.values()) <= state[number].keys() for number in numbers)), None)
    if kind is None:
        raise InputError("optimizer: expected the state of Adagrad (sum) or Adam (exp_avg, exp_avg_sq), got "
                         f"{', '.join(sorted(map(str, state[numbers[0]])))}")
    _check_rule(kind, group)
    accumulators = {}
    for ours, theirs in KINDS[kind].items():
        by_name = {name: state[number][theirs] for name, number in zip(order, numbers, strict=True)}
        for name, array in by_name.items():
            wanted, came = (f"{a.dtype} {a.shape}" for a in (tensors[name], np.asarray(array)))
            if came != wanted:
                raise InputError(f"optimizer, {theirs} of {name}: expected {wanted}, got {came}")
        accumulators[ours] = from_adaptive_span(by_name, config)
    return OptimizerState(kind, _updates([state[number] for number in numbers]), accumulators, _train(kind, group))


def _check_rule(kind: str, group: Mapping[str, Any]) -> None:
    """Raises InputError where the group's rule is not ours: what has no weight decay, no decay of its own, and our ε."""
    for name in ("weight_decay", "amsgrad", "lr_decay", "maximize"):
        if group.get(name):
            raise InputError(f"optimizer, {name}: expected none, got {str(group[name])[:40]} ({LEAVE})")
    epsilon = _number("eps", group.get("eps", EPSILON[kind]))
    if epsilon != EPSILON[kind]:
        raise InputError(f"optimizer, eps: expected {EPSILON[kind]:g}, got {epsilon:g} ({LEAVE})")


def _parts(entry: Any) -> tuple[Mapping[str, Any], Mapping[Any, Mapping[str, Any]]]:
    """The one group, and the state by number."""
    try:
        (group,), state = entry["param_groups"], entry["state"]
        numbers = all(isinstance(number, int) for number in group["params"])
        if group["params"] and numbers and all(isinstance(each, Mapping) for each in state.values()):
            return group, state
    except (TypeError, KeyError, ValueError, AttributeError):
        pass
    raise InputError("optimizer: expected what an optimiser of PyTorch saves, param_groups of one group and state by number")


def _updates(states: Sequence[Mapping[str, Any]]) -> int:
    counts = {int(_number("step", each.get("step", -1))) for each in states}
    if len(counts) != 1 or min(counts) < 0:
        raise InputError(f"optimizer: expected one count of updates, the same for all parameters, got {sorted(counts)}")
    return counts.pop()


def _train(kind: str, group: Mapping[str, Any]) -> dict[str, Any]:
    """The rate before any schedule, where PyTorch remembers it, and Adam's betas."""
    rate = _number("lr", group.get("initial_lr", group.get("lr")))
    if kind != "adam":
        return {"optimizer": kind, "learning_rate": rate}
    betas = group.get("betas", TrainConfig().adam_betas)
    if not isinstance(betas, list | tuple):
        raise InputError(f"optimizer, betas: expected two numbers, got {str(betas)[:40]!r}")
    return {"optimizer": kind, "learning_rate": rate, "adam_betas": tuple(_number("betas", beta) for beta in betas)}


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"optimizer, {name}: expected a number, got {str(value)[:40]!r}")
    return number
