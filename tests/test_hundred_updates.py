"""A hundred updates on a real text, as published: the same bits twice, and the numbers of a loop written from the papers.

The loop is a second implementation, from the equations alone: dense matrices over [past ; block], every gradient by hand.
It starts from the run's first parameters and reads the text itself.
"""

import json
import math

import numpy as np
import pytest

from refimpl import checkpoint, parameters
from refimpl.datasets.sample import sample_bytes

UPDATES, LAST, WARM_UP = 100, 20, 30
B, T, L, D, H, S, N, R, V = 4, 12, 2, 8, 2, 24, 5, 6, 256
E, EPSILON, PENALTY = D // H, 1e-8, 1e-3
MODEL = {"width": D, "heads": H, "layers": L, "span": S, "memory": N, "span_ramp": R, "span_initial": 0.0,
         "span_penalty": PENALTY, "normalizer_epsilon": EPSILON, "zero_past": "true"}
TRAIN = {"batch": B, "block": T, "updates": UPDATES, "last_updates": LAST, "warm_up": WARM_UP, "dtype": "float64",
         "log_every": 1, "evaluate_tokens": 64, "checkpoint_every": 20, "keep_checkpoints": 9, "seed": 3}
# as published, but for the length of warm-up
OPTIMIZERS = {
    "adagrad": {"optimizer": "adagrad", "learning_rate": 0.07, "clip": 0.03, "clip_each": "true"},
    "adam": {"optimizer": "adam", "learning_rate": 2.5e-4, "clip": 1.0, "clip_each": "false"},
}


@pytest.fixture(params=OPTIMIZERS)
def runs(request, command, tmp_path):
    """The optimiser's name, and two folders of the same training by the command."""
    tables = {"model": MODEL, "train": {**TRAIN, **OPTIMIZERS[request.param]}}
    options = [part for table, values in tables.items() for key, value in values.items()
               for part in ("--set", f"{table}.{key}={value}")]
    (tmp_path / "empty.toml").write_text("")
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        end = command("train", "--config", tmp_path / "empty.toml", "--data", "sample", "--out", folder, *options)
        assert end.code == 0, end.err
    return request.param, *folders


def attention_forward(p, layer, h, past):
    """out = W_o [y of all heads]; what the gradients need. Distances 1 … S, S zero vectors before the text, ε in the sum."""
    name, both = f"layers.{layer}.attention.", np.concatenate([past, h], axis=1)
    query, key, value = (p[name + kind].reshape(H, E, D) for kind in ("query", "key", "value"))
    q, k, v = (np.einsum("btd,hed->bhte", x, w) for x, w in ((h, query), (both, key), (both, value)))
    distance = past.shape[1] + np.arange(T)[:, None] - np.arange(both.shape[1])
    seen = (distance >= 1) & (distance <= S)
    x = np.where(seen, distance - 1, 0)
    table = np.where(seen[..., None], p["positions"][x], 0)
    ramp = (R + S * p[name + "span"][:, None, None] - x) / R
    w = np.concatenate([np.clip(ramp, 0, 1) * seen, np.ones((H, T, N))], axis=2)
    exists = np.concatenate([seen, np.ones((T, N), bool)], axis=1)
    mu, nu = p[name + "memory_keys"] * math.sqrt(E), p[name + "memory_values"] * math.sqrt(N)
    context = np.einsum("bhte,bhje->bhtj", q, k) + np.einsum("bhte,tje->bhtj", q, table)
    s = np.concatenate([context, np.einsum("bhte,hne->bhtn", q, mu)], axis=3) / math.sqrt(E)
    s = np.where(exists, s, -np.inf)
    e = np.exp(s - s.max(axis=3, keepdims=True))
    z = ((w + EPSILON) * e).sum(axis=3, keepdims=True)
    a, values = w * e / z, np.concatenate([v, np.broadcast_to(nu, (B, H, N, E))], axis=2)
    y = np.einsum("bhtj,bhje->bthe", a, values).reshape(B, T, D)
    closed = (ramp >= 0) & (ramp <= 1) & seen
    return y @ p[name + "output"].T, (h, both, q, k, table, x, seen, w, closed, mu, e / z, a, values, y)


def attention_backward(d_out, p, layer, saved, g):
    """Adds to g; returns the gradient of the layer's input, the past left alone."""
    name = f"layers.{layer}.attention."
    h, both, q, k, table, x, seen, w, closed, mu, share, a, values, y = saved
    g[name + "output"] += np.einsum("btd,bte->de", d_out, y)
    d_y = (d_out @ p[name + "output"]).reshape(B, T, H, E)
    d_a = np.einsum("bthe,bhje->bhtj", d_y, values)
    d_values = np.einsum("bthe,bhtj->bhje", d_y, a)
    r = (a * d_a).sum(axis=3, keepdims=True)
    d_s = share * (w * d_a - (w + EPSILON) * r) / math.sqrt(E)
    d_w = share * (d_a - r)
    length = both.shape[1]
    g[name + "span"] += np.einsum("bhtj,htj->h", d_w[..., :length], closed) * S / R + PENALTY * S / H
    d_context, d_memory = d_s[..., :length], d_s[..., length:]
    d_q = np.einsum("bhtj,bhje->bhte", d_context, k) + np.einsum("bhtj,tje->bhte", d_context, table)
    d_q += np.einsum("bhtn,hne->bhte", d_memory, mu)
    d_k = np.einsum("bhtj,bhte->bhje", d_context, q)
    np.add.at(g["positions"], x[seen], np.einsum("bhtj,bhte->tje", d_context, q)[seen])
    g[name + "memory_keys"] += np.einsum("bhtn,bhte->hne", d_memory, q) * math.sqrt(E)
    g[name + "memory_values"] += d_values[:, :, length:].sum(0) * math.sqrt(N)
    d_h = np.zeros_like(h)
    for kind, d, given in (("query", d_q, h), ("key", d_k, both), ("value", d_values[:, :, :length], both)):
        g[name + kind] += np.einsum("bhte,btd->hed", d, given).reshape(D, D)
        d_h += np.einsum("bhte,hed->btd", d[:, :, -T:], p[name + kind].reshape(H, E, D))
    return d_h


def norm_forward(u, gain, bias):
    centred = u - u.mean(axis=2, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=2, keepdims=True) + 1e-5)
    return gain * centred / deviation + bias, (centred / deviation, deviation)


def norm_backward(d, gain, saved):
    """Gradients of input, gain and bias."""
    unit, deviation = saved
    d_unit = d * gain
    d_u = d_unit - d_unit.mean(axis=2, keepdims=True) - unit * (d_unit * unit).mean(axis=2, keepdims=True)
    return d_u / deviation, (d * unit).sum((0, 1)), d.sum((0, 1))


def loss_and_gradients(p, tokens, targets, past):
    """Mean loss, gradients of it and of the span penalty, and the layers' last S inputs."""
    h, saved, inputs = p["input.table"][tokens], [], []
    for layer in range(L):
        inputs.append(np.concatenate([past[layer], h], axis=1)[:, -S:])
        out, attended = attention_forward(p, layer, h, past[layer])
        name = f"layers.{layer}.attention_norm."
        h, normed = norm_forward(h + out, p[name + "gain"], p[name + "bias"])
        saved.append((attended, normed))
    logits = h @ p["output.table"].T + p["output.bias"]
    top = logits.max(axis=2, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=2, keepdims=True))
    picked = np.eye(V)[targets]
    loss, d_logits = -(picked * log_p).sum() / (B * T), (np.exp(log_p) - picked) / (B * T)
    g = {name: np.zeros_like(value) for name, value in p.items()}
    g["output.table"] += np.einsum("btv,btd->vd", d_logits, h)
    g["output.bias"] += d_logits.sum((0, 1))
    d_h = d_logits @ p["output.table"]
    for layer in reversed(range(L)):
        name, (attended, normed) = f"layers.{layer}.attention_norm.", saved[layer]
        d_h, d_gain, d_bias = norm_backward(d_h, p[name + "gain"], normed)
        g[name + "gain"] += d_gain
        g[name + "bias"] += d_bias
        d_h = d_h + attention_backward(d_h, p, layer, attended, g)
    np.add.at(g["input.table"], tokens, d_h)
    return loss, g, inputs


def step(optimizer, p, g, state, number):
    """Adagrad, each tensor's rate clipped, or Adam, one limit for all; warm-up, a tenth at the end; spans clamped."""
    settings = OPTIMIZERS[optimizer]
    rate, clip = settings["learning_rate"] * min(1, number / WARM_UP), settings["clip"]
    rate *= 0.1 if number > UPDATES - LAST else 1
    norms = {name: math.sqrt(math.fsum((value**2).ravel())) for name, value in g.items()}
    whole = min(1, clip / (math.sqrt(math.fsum(norm**2 for norm in norms.values())) + 1e-6))
    for name, gradient in g.items():
        if optimizer == "adagrad":
            own = clip / (norms[name] + 1e-10) if norms[name] > clip else 1
            state["squares"][name] += gradient**2
            p[name] -= rate * own * gradient / (np.sqrt(state["squares"][name]) + 1e-10)
        else:
            state["mean"][name] = 0.9 * state["mean"][name] + 0.1 * whole * gradient
            state["squares"][name] = 0.999 * state["squares"][name] + 0.001 * (whole * gradient) ** 2
            mean, squares = state["mean"][name] / (1 - 0.9**number), state["squares"][name] / (1 - 0.999**number)
            p[name] -= rate * mean / (np.sqrt(squares) + 1e-8)
        if name.endswith(".span"):
            p[name] = np.clip(p[name], 0, 1)
    clipped = [norm > clip for norm in norms.values()] if optimizer == "adagrad" else [whole < 1]
    return math.sqrt(math.fsum(norm**2 for norm in norms.values())), clipped


def trained_by_the_loop(optimizer, p, met):
    """(number, p, loss, gradient norm) of each update; counts in `met` tensors clipped and not, and spans on a kink."""
    text = np.frombuffer(sample_bytes(), np.uint8)
    text = text[: len(text) * 9 // 10]
    rows = text[: len(text) // B * B].reshape(B, -1).astype(int)
    state = {kind: {name: np.zeros_like(value) for name, value in p.items()} for kind in ("mean", "squares")}
    past = [np.zeros((B, S, D))] * L
    for number in range(1, UPDATES + 1):
        start = (number - 1) * T
        met["kinks"] += sum(rho in (0, 1) for layer in range(L) for rho in p[f"layers.{layer}.attention.span"])
        loss, g, past = loss_and_gradients(p, rows[:, start : start + T], rows[:, start + 1 : start + T + 1], past)
        norm, clipped = step(optimizer, p, g, state, number)
        met["clipped"] += sum(clipped)
        met["left"] += len(clipped) - sum(clipped)
        yield number, p, loss, norm


def test_it_repeats_to_the_last_bit_and_is_the_equations_own(runs):
    optimizer, first, second = runs
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (first, second)]
    for one, other in zip(*logs, strict=True):
        assert [one.get(key) for key in ("loss", "gradient_norm", "valid_loss")] == [
            other.get(key) for key in ("loss", "gradient_norm", "valid_loss")]
    saved = {folder.name: [checkpoint.load(run / "checkpoints" / folder.name) for run in (first, second)]
             for folder in checkpoint.folders(first)}
    assert len(saved) == UPDATES // 20
    for ours, twice in saved.values():
        assert ours.parameters.vector.tobytes() == twice.parameters.vector.tobytes()
        assert ours.past.tobytes() == twice.past.tobytes()
        for name, accumulated in ours.optimizer.accumulators.items():
            assert accumulated.vector.tobytes() == twice.optimizer.accumulators[name].vector.tobytes()

    config = ours.config
    p = {name: value.copy() for name, value in parameters.initialize(config, TRAIN["seed"], "float64").items()}
    worst = 0.0
    met = dict.fromkeys(("clipped", "left", "kinks"), 0)
    for number, now, loss, norm in trained_by_the_loop(optimizer, p, met):
        record = logs[0][number - 1]
        worst = max(worst, abs(record["loss"] / loss - 1), abs(record["gradient_norm"] / norm - 1))
        if number % 20 == 0:
            kept = saved[f"update-{number:08d}"][0].parameters
            worst = max(worst, *(np.abs(kept[name] - value).max() / np.abs(value).max() for name, value in now.items()
                                 if value.any() or kept[name].any()))
    assert worst <= 1e-12
    assert logs[0][UPDATES - 1]["loss"] < logs[0][0]["loss"] - 0.05
    assert min(met.values()) > 0
