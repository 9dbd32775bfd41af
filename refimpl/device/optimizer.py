"""An optimiser's step on the GPU in two launches (kernels/optimizer.cu), after which nothing is read back.

Whether loss and gradient are finite is looked at there: an update that is not leaves parameters and state as they are, and
so do all after it, until `check` reads what happened.
"""

from typing import Any, NamedTuple

import numpy as np

from refimpl.arrays import Array, kernel, module_of, to_host
from refimpl.config import TrainConfig
from refimpl.errors import NonFiniteError
from refimpl.optimizers import State, accumulators, learning_rate
from refimpl.parameters import Parameters

CHUNK = 4096  # elements that one block computes
THREADS = 256
KINDS = {"sgd": 1, "adagrad": 2, "adam": 3}


class Plan(NamedTuple):
    """How the vector is cut into chunks, each of one tensor, and what the kernels keep on the device.

    starts (chunks + 1) elements, tensors (chunks), firsts (tensors + 1) chunks, spans (tensors); failed: the first update
    that was not finite, or 0, its loss and norm.
    """

    starts: Array
    tensors: Array
    firsts: Array
    spans: Array
    partial: Array
    factors: Array
    done: Array
    failed: Array


def plan(p: Parameters) -> Plan:
    """A plan for these parameters; made once."""
    xp, place = module_of(p.vector), 0
    starts, tensors, firsts = list[int](), list[int](), list[int]()
    for number, name in enumerate(p):
        firsts.append(len(starts))
        low = list(range(place, place + p[name].size, CHUNK))
        starts += low
        tensors += [number] * len(low)
        place += p[name].size
    adaptive = p.config.adaptive_span
    spans = [adaptive and name.endswith(".attention.span") for name in p]
    dtype, chunks = p.vector.dtype, len(starts)
    return Plan(
        xp.asarray(np.array([*starts, place], "int64")), xp.asarray(np.array(tensors, "int32")),
        xp.asarray(np.array([*firsts, chunks], "int32")), xp.asarray(np.array(spans, "uint8")),
        xp.empty(chunks, dtype), xp.empty(len(firsts), dtype), xp.zeros(1, "uint32"), xp.zeros(3))


def update(
    p: Parameters, g: Parameters, state: State, train_config: TrainConfig, loss: Array, now: Array | None = None
) -> Array:
    """optimizers.update, if `loss` and the gradients' norm are finite; returns the norm. Waits for nothing.

    now: `numbers`, where the device is to read them.
    """
    if state.device is None:
        state.device = plan(p)
    at: Plan = state.device
    number, dtype = state.updates + 1, p.vector.dtype
    chunks, norm = len(at.tensors), module_of(p.vector).empty((), dtype)
    kernel("optimizer", "squares", dtype)((chunks,), (THREADS,), (
        g.vector, at.starts, at.firsts, len(at.factors), float(train_config.clip), int(train_config.clip_each), loss,
        float(number), at.partial, at.factors, norm, at.failed, at.done, now))
    kernel("optimizer", "step", dtype)((chunks,), (THREADS,), (
        p.vector, g.vector, *_accumulators(state, train_config, p.vector), at.starts, at.tensors, at.spans, at.factors,
        at.failed, *_constants(state, train_config, number), now))
    state.updates = number
    return norm


def _accumulators(state: State, train_config: TrainConfig, other: Array) -> list[Array]:
    """The two arrays that a step may change; `other`, which it then leaves alone, in place of those that it has not."""
    held = [state.accumulators[name].vector for name in accumulators(train_config)]
    return [*held, other, other][:2]


def _constants(state: State, train_config: TrainConfig, number: int) -> tuple[Any, ...]:
    """kind, whether the step is scaled and not the gradient, rate, and what the kind has: momentum, or Adam's four."""
    name, (_, rate, *corrections) = train_config.optimizer, numbers(train_config, number)
    published = name == "adagrad" and train_config.clip_each
    kind = KINDS[name] if state.accumulators else 0
    if name != "adam":
        return kind, int(published), rate, train_config.momentum, 0.0, *corrections
    return kind, 0, rate, *train_config.adam_betas, *corrections


def numbers(train_config: TrainConfig, number: int) -> tuple[float, float, float, float]:
    """What every update has anew: its number u, its rate, and of Adam 1 - β₁ᵘ and √(1 - β₂ᵘ)."""
    (beta1, beta2), rate = train_config.adam_betas, learning_rate(train_config, number)
    if train_config.optimizer != "adam":
        return float(number), rate, 1.0, 1.0
    return float(number), rate, 1 - beta1**number, (1 - beta2**number) ** 0.5


def check_when_logged(state: State, train_config: TrainConfig) -> None:
    """`check` after every log_every updates, and after the last."""
    if state.updates % train_config.log_every == 0 or state.updates == train_config.updates:
        check(state)


def check(state: State) -> None:
    """Reads back whether every update so far was finite. Raises NonFiniteError if not, with state.updates set right."""
    if state.device is None:
        return
    failed, loss, norm = to_host(state.device.failed).tolist()
    if failed:
        seen, state.updates = state.updates, int(failed) - 1
        state.device.failed.fill(0)
        raise NonFiniteError(f"update {int(failed)}: loss {loss}, gradient norm {norm} (seen after update {seen}); "
                             f"parameters and optimiser are as they were before it")
