"""The last formula of each page of docs/gradients once more, as loops over its indices, beside the package's gradient.

Written from the pages. Each function yields (the package's, the page's), and each of them finds an error planted in the
package.
"""

from dataclasses import replace
from math import cos, exp, sin, sqrt
from pathlib import Path

import numpy as np
import pytest

from refimpl import model, parameters
from refimpl.config import ModelConfig
from refimpl.golden.planted import Bug, Change, planted
from refimpl.gradcheck.complex_step import norm_wise_error
from refimpl.inputs import draw_masks
from refimpl.layers import (
    adaptive_input,
    adaptive_softmax,
    attention,
    dropout,
    embedding,
    feed_forward,
    ff_attention,
    fused_softmax,
    head_split,
    layer_norm,
    linear,
    masked_softmax,
    multi_head,
    persistent_attention,
    positions,
    softmax,
    softmax_loss,
    span,
    split_attention,
    tiled_attention,
    transformer_layer,
    windows,
)
from refimpl.layers.fused_softmax import Chunking
from refimpl.layers.tiles import Tiling

PAGES = {path.stem for path in (Path(__file__).parent.parent / "docs" / "gradients").glob("*.md")} - {"README"}
TOLERANCE = 1e-12  # some hundred terms in another order of summation: about 1e-15 relative to the tensor's norm


def drawn(seed, *shapes):
    """Standard normal arrays."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def summed(shape, terms):
    """An array of zeros to which each (index, value) is added."""
    total = np.zeros(shape)
    for index, value in terms:
        total[index] += value
    return total


def each(*sizes):
    """All indices below the sizes, the last one fastest."""
    return np.ndindex(*sizes)


def of_linear():
    x, weight, bias, dy = drawn(1, (4, 3), (2, 3), (2,), (4, 2))
    dx, d_weight, d_bias = linear.backward(dy, linear.forward(x, weight, bias)[1])
    yield dx, summed((4, 3), (((r, i), dy[r, o] * weight[o, i]) for r, i, o in each(4, 3, 2)))
    yield d_weight, summed((2, 3), (((o, i), dy[r, o] * x[r, i]) for r, i, o in each(4, 3, 2)))
    yield d_bias, summed(2, ((o, dy[r, o]) for r, o in each(4, 2)))


def of_layer_norm():
    x, gain, bias, dy = drawn(2, (3, 4), (4,), (4,), (3, 4))
    dx, d_gain, d_bias = layer_norm.backward(dy, layer_norm.forward(x, gain, bias, epsilon=0.1)[1])
    expected, normalized = np.zeros((3, 4)), np.zeros((3, 4))
    for r in range(3):
        mean = sum(x[r]) / 4
        k = (sum((value - mean) ** 2 for value in x[r]) / 4 + 0.1) ** -0.5
        normalized[r] = [k * (value - mean) for value in x[r]]
        q = sum(gain[i] * dy[r, i] for i in range(4)) / 4
        p = sum(gain[i] * dy[r, i] * normalized[r, i] for i in range(4)) / 4
        expected[r] = [k * (gain[i] * dy[r, i] - q - normalized[r, i] * p) for i in range(4)]
    yield dx, expected
    yield d_gain, summed(4, ((i, dy[r, i] * normalized[r, i]) for r, i in each(3, 4)))
    yield d_bias, summed(4, ((i, dy[r, i]) for r, i in each(3, 4)))


def softmax_row(s):
    """e_j / Σ e_i."""
    e = [exp(value) for value in s]
    return [value / sum(e) for value in e]


def softmax_gradient(a, da):
    """a_i (da_i - r)."""
    r = sum(a_j * da_j for a_j, da_j in zip(a, da, strict=True))
    return [a_i * (da_i - r) for a_i, da_i in zip(a, da, strict=True)]


def of_softmax():
    s, da = drawn(3, (3, 5), (3, 5))
    yield softmax.backward(da, softmax.forward(s)[1]), [softmax_gradient(softmax_row(s[r]), da[r]) for r in range(3)]


def of_softmax_loss():
    s, d_loss = drawn(4, (4, 3), (4,))
    targets = np.array([2, 0, 2, 1])
    found = softmax_loss.backward(d_loss, softmax_loss.forward(s, targets)[1])
    yield found, [[(softmax_row(s[r])[j] - (j == targets[r])) * d_loss[r] for j in range(3)] for r in range(4)]


def weighted_gradient(s, w, present, epsilon, da):
    """ds, dw and a of one row: q_j (w_j da_j - c_j r) and q_j (da_j - r)."""
    e = [exp(value) for value in s]
    c = [(w_j + epsilon) * exists for w_j, exists in zip(w, present, strict=True)]
    total = sum(c_j * e_j for c_j, e_j in zip(c, e, strict=True))
    q = [e_j / total if total else 0 for e_j in e]
    r = sum(w[j] * q[j] * da[j] for j in range(len(s)))
    ds = [q[j] * (w[j] * da[j] - c[j] * r) for j in range(len(s))]
    return ds, [q[j] * (da[j] - r) for j in range(len(s))], [w[j] * q[j] for j in range(len(s))]


def of_masked_softmax():
    s, da = drawn(5, (3, 5), (3, 5))
    present = np.array([True, True, True, False, True])
    w = np.array([[1, 0.25, 0, 0, 0.5], [1, 1, 1, 0, 1], [0, 0, 1e-7, 0, 0]])
    for epsilon in (0.0, 1e-8, 0.1):
        d_logits, d_weight = masked_softmax.backward(da, masked_softmax.forward(s, w, present, epsilon)[1])
        expected = [weighted_gradient(s[r], w[r], present, epsilon, da[r]) for r in range(3)]
        yield d_logits, [row[0] for row in expected]
        yield d_weight, [row[1] for row in expected]


def of_dropout():
    x, dy = drawn(6, (3, 4), (3, 4))
    keep = np.random.default_rng(6).random((3, 4)) > 0.4
    yield dropout.backward(dy, dropout.forward(x, keep, 0.4)[1]), [
        [dy[r, i] / 0.6 if keep[r, i] else 0 for i in range(4)] for r in range(3)]


def of_embedding():
    table, dx = drawn(7, (4, 3), (5, 3))
    tokens = np.array([2, 0, 2, 2, 3])
    found = embedding.backward(dx, embedding.forward(table, tokens)[1])
    yield found, summed((4, 3), (((tokens[r], i), dx[r, i]) for r, i in each(5, 3)))


def span_gradient(rho, size, ramp, d_mask):
    """S/R Σ dm over the closed ramp; rho, size and ramp so that each fraction is exact or far from a kink."""
    return summed(len(rho), ((h, size / ramp * d_mask[h, x]) for h, x in each(len(rho), size)
                             if 0 <= (ramp + size * rho[h] - x) / ramp <= 1))


def of_span():
    rho = np.array([0.0, 0.25, 0.4, 1.0])
    (d_mask,) = drawn(8, (4, 8))
    yield span.mask_backward(d_mask, span.mask_forward(rho, 8, 2)[1]), span_gradient(rho, 8, 2, d_mask)
    yield span.penalty_backward(0.7, span.penalty_forward(rho, 8, 0.3)[1]), [0.7 * 0.3 * 8 / 4] * 4


def of_positions():
    q, shared, by_head, ds = drawn(9, (2, 3, 2, 4), (5, 4), (2, 5, 4), (2, 2, 3, 5))
    indices = list(each(2, 2, 3, 5, 4))
    for table in (shared, by_head):
        d_queries, d_table = positions.relative_backward(ds, positions.relative_forward(q, table)[1])
        at = [(h, x, e) if table.ndim == 3 else (x, e) for b, h, t, x, e in indices]
        terms = list(zip(indices, at, strict=True))
        yield d_queries, summed(q.shape, (((b, t, h, e), ds[b, h, t, x] * table[p]) for (b, h, t, x, e), p in terms))
        yield d_table, summed(table.shape, ((p, ds[b, h, t, x] * q[b, t, h, e]) for (b, h, t, x, e), p in terms))
    weight, d_table = drawn(10, (8, 8), (2, 5, 4))
    table, saved = positions.projected_forward(weight, 5, 1, 4)
    frequency = [10000 ** (-2 * i / 8) for i in range(4)]
    wave = [[wave((1 + x) * omega) for wave in (sin, cos) for omega in frequency] for x in range(5)]
    rows = list(each(2, 5, 4, 8))
    yield table, summed((2, 5, 4), (((h, x, e), weight[4 * h + e, i] * wave[x][i]) for h, x, e, i in rows))
    yield positions.projected_backward(d_table, saved), summed(
        (8, 8), (((4 * h + e, i), d_table[h, x, e] * wave[x][i]) for h, x, e, i in rows))


def seen(past, block, size, attend_self):
    """(t, x, c) of every position c = P + t - 1 + α - x that exists."""
    return [(t, x, past + t - 1 + attend_self - x) for t, x in each(block, size) if past + t - 1 + attend_self - x >= 0]


def of_windows():
    for past, attend_self in ((2, False), (0, True), (7, False)):
        q, k, ds, a, dy = drawn(11, (2, 3, 2, 4), (2, past + 3, 2, 4), (2, 2, 3, 5), (2, 2, 3, 5), (2, 3, 2, 4))
        terms = [(b, h, t, x, c, e) for b, h, e in each(2, 2, 4) for t, x, c in seen(past, 3, 5, attend_self)]
        dq, dk = windows.scores_backward(ds, windows.scores_forward(q, k, 5, attend_self)[1])
        yield dq, summed(q.shape, (((b, t, h, e), ds[b, h, t, x] * k[b, c, h, e]) for b, h, t, x, c, e in terms))
        yield dk, summed(k.shape, (((b, c, h, e), ds[b, h, t, x] * q[b, t, h, e]) for b, h, t, x, c, e in terms))
        da, dv = windows.mix_backward(dy, windows.mix_forward(a, k, attend_self)[1])
        yield da, summed(a.shape, (((b, h, t, x), dy[b, t, h, e] * k[b, c, h, e]) for b, h, t, x, c, e in terms))
        yield dv, summed(k.shape, (((b, c, h, e), a[b, h, t, x] * dy[b, t, h, e]) for b, h, t, x, c, e in terms))


SPAN, RAMP, RATE = 4, 2, 0.3


def attention_arguments(seed, heads=2, context_heads=2, memory=(2, 2, 3), past=2):
    """All arguments of attention.py, E = 3, T = 2; ρ = 0 is on both kinks."""
    q, k, v, p, mu, nu, u, v_bias = drawn(
        seed, (2, 2, heads, 3), (2, past + 2, context_heads, 3), (2, past + 2, context_heads, 3), (SPAN, 3), memory, memory,
        (context_heads, 3), (context_heads, 3))
    return attention.Arguments(q, k, v, p, mu, nu, np.array([0.0, 0.4])[:context_heads], u, v_bias)


def keep_masks(seed, context_heads, memory):
    """Keep-masks for T = 2."""
    rng = np.random.default_rng(seed)
    return rng.random((2, context_heads, 2, SPAN)) > RATE, rng.random((2, memory[0], 2, memory[1])) > RATE


def attention_gradient(given, epsilon, keep, keep_memory, dy, softmax_gradient=weighted_gradient):
    """The page `attention`: a query of a head of a row at a time, μ and ν None for context alone."""
    d = {name: None if array is None else np.zeros_like(array) for name, array in given._asdict().items()}
    q, k, v, p, mu, nu, rho, u, v_bias = given
    past, slots, root = k.shape[1] - q.shape[1], 0 if mu is None else mu.shape[1], sqrt(q.shape[3])
    d_mask = np.zeros((len(rho), SPAN))
    for b, h, t in each(2, len(rho), 2):
        around = {x: c for t2, x, c in seen(past, 2, SPAN, False) if t2 == t}
        ask, ask_position, row = q[b, t, h] + u[h], q[b, t, h] + v_bias[h], dy[b, t, h]
        mask = [min(max((RAMP + SPAN * rho[h] - x) / RAMP, 0), 1) for x in range(SPAN)]
        s = [(ask @ k[b, around[x], h] + ask_position @ p[x]) / root if x in around else 0 for x in range(SPAN)]
        s += [q[b, t, h] @ (root * mu[h, n]) / root for n in range(slots)]
        w = [mask[x] * (x in around) for x in range(SPAN)] + [1] * slots
        scale = [keep[b, h, t, x] / (1 - RATE) for x in range(SPAN)]
        scale += [keep_memory[b, h, t, n] / (1 - RATE) for n in range(slots)]
        da = [row @ v[b, around[x], h] if x in around else 0 for x in range(SPAN)]
        da += [sqrt(slots) * (row @ nu[h, n]) for n in range(slots)]
        da = [scale[j] * da[j] for j in range(SPAN + slots)]
        present = [x in around for x in range(SPAN)] + [True] * slots
        ds, dw, a = softmax_gradient(s, w, present, epsilon, da)
        for x, c in around.items():
            dot = ds[x] / root
            d["values"][b, c, h] += scale[x] * a[x] * row
            d["keys"][b, c, h] += dot * ask
            d["positions"][x] += dot * ask_position
            d["queries"][b, t, h] += dot * (k[b, c, h] + p[x])
            d["content_bias"][h] += dot * k[b, c, h]
            d["position_bias"][h] += dot * p[x]
            d_mask[h, x] += dw[x]
        for n in range(slots):
            dot = ds[SPAN + n] / root
            d["memory_values"][h, n] += sqrt(slots) * scale[SPAN + n] * a[SPAN + n] * row
            d["queries"][b, t, h] += dot * root * mu[h, n]
            d["memory_keys"][h, n] += root * dot * q[b, t, h]
    return attention.Arguments(**{**d, "rho": span_gradient(rho, SPAN, RAMP, d_mask)})


def of_attention():
    for epsilon, past in ((0.0, 2), (0.1, 0)):
        given, masks = attention_arguments(12, past=past), keep_masks(12, 2, (2, 2))
        (dy,) = drawn(13, (2, 2, 2, 3))
        saved = attention.forward(given, attention.Options(SPAN, RAMP, epsilon, False, RATE), *masks)[1]
        yield from zip(attention.backward(dy, saved), attention_gradient(given, epsilon, *masks, dy), strict=True)


def tiled_gradient(s, w, present, epsilon, da):
    """The page `tiled_attention`: ds, dw and a of a row from da' = da / Z and r'."""
    slots = range(len(s))
    m = max(s[j] for j in slots if present[j] and w[j] + epsilon > 0)
    e = [exp(s[j] - m) if present[j] else 0 for j in slots]
    z = sum((w[j] + epsilon) * e[j] for j in slots)
    da = [da[j] / z for j in slots]
    r = sum(w[j] * e[j] * da[j] for j in slots) / z
    ds = [e[j] * (w[j] * (da[j] - r) - epsilon * r) for j in slots]
    return ds, [e[j] * (da[j] - r) for j in slots], [w[j] * e[j] / z for j in slots]


def of_tiled_attention():
    for epsilon, past in ((0.0, 2), (0.1, 0)):
        given, masks = attention_arguments(18, past=past), keep_masks(18, 2, (2, 2))
        (dy,) = drawn(19, (2, 2, 2, 3))
        options = attention.Options(SPAN, RAMP, epsilon, False, RATE)
        saved = tiled_attention.forward(given, options, *masks, Tiling(rows=1))[1]
        expected = attention_gradient(given, epsilon, *masks, dy, tiled_gradient)
        yield from zip(tiled_attention.backward(dy, saved), expected, strict=True)


def persistent_gradient(q, mu, nu, keep, dy):
    """The page `persistent_attention`: dq, dμ, dν of G heads of width K."""
    dq, d_mu, d_nu = np.zeros_like(q), np.zeros_like(mu), np.zeros_like(nu)
    slots, root = mu.shape[1], sqrt(mu.shape[2])
    for b, t, g in each(*q.shape[:3]):
        a = softmax_row([q[b, t, g] @ (root * mu[g, n]) / root for n in range(slots)])
        scale = [keep[b, g, t, n] / (1 - RATE) for n in range(slots)]
        da = [scale[n] * sqrt(slots) * (dy[b, t, g] @ nu[g, n]) for n in range(slots)]
        for n, ds in enumerate(softmax_gradient(a, da)):
            d_nu[g, n] += sqrt(slots) * scale[n] * a[n] * dy[b, t, g]
            dq[b, t, g] += ds / root * root * mu[g, n]
            d_mu[g, n] += root * ds / root * q[b, t, g]
    return dq, d_mu, d_nu


def of_persistent_attention():
    q, mu, nu, dy = drawn(14, (2, 2, 2, 3), (2, 4, 3), (2, 4, 3), (2, 2, 2, 3))
    keep = keep_masks(14, 2, (2, 4))[1]
    found = persistent_attention.backward(dy, persistent_attention.forward(q, mu, nu, keep, RATE)[1])
    yield from zip(found, persistent_gradient(q, mu, nu, keep, dy), strict=True)


def of_split_attention():
    options = attention.Options(SPAN, RAMP, dropout=RATE)
    for memory in ((2, 4, 3), (1, 4, 6)):
        given, (keep, keep_memory) = attention_arguments(15, memory=memory), keep_masks(15, 2, memory)
        (dy,) = drawn(16, (2, 2, 2, 3))
        found = split_attention.backward(dy, split_attention.forward(given, options, keep, keep_memory)[1])
        context = given._replace(memory_keys=None, memory_values=None)
        expected = attention_gradient(context, 0.0, keep, keep_memory, dy)
        cut = (2, 2, memory[0], memory[2])
        dq, d_mu, d_nu = persistent_gradient(
            given.queries.reshape(cut), given.memory_keys, given.memory_values, keep_memory, dy.reshape(cut))
        both = expected.queries + dq.reshape(dy.shape)
        yield from zip(found, expected._replace(queries=both, memory_keys=d_mu, memory_values=d_nu), strict=True)


def of_head_split():
    given, (keep, keep_memory) = attention_arguments(17, heads=3, memory=(1, 4, 3)), keep_masks(17, 2, (1, 4))
    (dy,) = drawn(18, (2, 2, 3, 3))
    options = attention.Options(SPAN, RAMP, dropout=RATE)
    found = head_split.backward(dy, head_split.forward(given, options, keep, keep_memory)[1])
    context = given._replace(queries=given.queries[:, :, :2], memory_keys=None, memory_values=None)
    expected = attention_gradient(context, 0.0, keep, keep_memory, dy[:, :, :2])
    dq, d_mu, d_nu = persistent_gradient(
        given.queries[:, :, 2:], given.memory_keys, given.memory_values, keep_memory, dy[:, :, 2:])
    joined = [[list(expected.queries[b, t]) + list(dq[b, t]) for t in range(2)] for b in range(2)]
    yield from zip(found, expected._replace(queries=joined, memory_keys=d_mu, memory_values=d_nu), strict=True)


PROJECTIONS = ("query", "key", "value", "output")


def heads_of(rows, weight):
    """Σ_i W_(hE+e)i g_i for E = 3: (B, C, D) -> (B, C, H, E)."""
    batch, length, width = rows.shape
    return summed((batch, length, len(weight) // 3, 3), (
        ((b, c, o // 3, o % 3), weight[o, i] * rows[b, c, i]) for b, c, o, i in each(batch, length, len(weight), width)))


def multi_head_gradient(g, block, weights, masks, d_out):
    """The page `multi_head`: dg and the weights' gradients, E = 3, D = 6."""
    past, (keep, keep_memory) = g.shape[1] - block, masks
    zero = np.zeros((2, 3))
    given = attention.Arguments(
        heads_of(g[:, past:], weights["query"]), heads_of(g, weights["key"]), heads_of(g, weights["value"]),
        weights["positions"], weights["memory_keys"], weights["memory_values"], weights["span"], zero, zero)
    # the output's W is needed on both sides of y, which forward alone gives
    y, _ = attention.forward(given, attention.Options(SPAN, RAMP, dropout=RATE), keep, keep_memory)
    dy, dg = np.zeros_like(y), np.zeros_like(g)
    d = {name: np.zeros_like(weights[name]) for name in PROJECTIONS}
    for b, t, i, o in each(2, block, 6, 6):
        dy[b, t, o // 3, o % 3] += d_out[b, t, i] * weights["output"][i, o]
        d["output"][i, o] += d_out[b, t, i] * y[b, t, o // 3, o % 3]
    of_core = attention_gradient(given, 0.0, keep, keep_memory, dy)
    for b, c, o, i in each(2, past + block, 6, 6):
        for name, part in (("key", of_core.keys), ("value", of_core.values)):
            d[name][o, i] += part[b, c, o // 3, o % 3] * g[b, c, i]
            dg[b, c, i] += part[b, c, o // 3, o % 3] * weights[name][o, i]
        if c >= past:
            d["query"][o, i] += of_core.queries[b, c - past, o // 3, o % 3] * g[b, c, i]
            dg[b, c, i] += of_core.queries[b, c - past, o // 3, o % 3] * weights["query"][o, i]
    return dg, {**d, "positions": of_core.positions, "memory_keys": of_core.memory_keys,
                "memory_values": of_core.memory_values, "span": of_core.rho}


def multi_head_weights(seed):
    """H = 2, E = 3, N = 2."""
    arrays = drawn(seed, *[(6, 6)] * 4, (SPAN, 3), (2, 2, 3), (2, 2, 3))
    names = (*PROJECTIONS, "positions", "memory_keys", "memory_values")
    return {**dict(zip(names, arrays, strict=True)), "span": np.array([0.0, 0.4])}


OF_HEADS = multi_head.Options(attention, 3, attention.Options(SPAN, RAMP, dropout=RATE))


def of_multi_head():
    g, d_out = drawn(19, (2, 4, 6), (2, 2, 6))
    weights, masks = multi_head_weights(20), keep_masks(20, 2, (2, 2))
    saved = multi_head.forward(g, 2, weights, OF_HEADS, dict(zip(("attention", "memory"), masks, strict=True)))[1]
    d_context, gradients = multi_head.backward(d_out, saved)
    expected, of_weights = multi_head_gradient(g, 2, weights, masks, d_out)
    yield d_context, expected
    yield from ((gradients[name], of_weights[name]) for name in of_weights)


def of_feed_forward():
    h, w1, b1, w2, b2, dy = drawn(21, (4, 3), (5, 3), (5,), (3, 5), (3,), (4, 3))
    keep = np.random.default_rng(21).random((4, 5)) > RATE
    scale = keep / (1 - RATE)
    h[0], b1[0] = 0, 0  # on the relu's kink
    saved = feed_forward.forward(h, feed_forward.Weights(w1, b1, w2, b2), keep, RATE)[1]
    dh, d = feed_forward.backward(dy, saved)
    u = summed((4, 5), (((r, f), w1[f, i] * h[r, i] + b1[f] / 3) for r, f, i in each(4, 5, 3)))
    z = [[max(u[r, f], 0) * scale[r, f] for f in range(5)] for r in range(4)]
    du = summed((4, 5), (((r, f), (u[r, f] > 0) * scale[r, f] * dy[r, i] * w2[i, f]) for r, f, i in each(4, 5, 3)))
    yield dh, summed((4, 3), (((r, i), du[r, f] * w1[f, i]) for r, f, i in each(4, 5, 3)))
    yield d.weight1, summed((5, 3), (((f, i), du[r, f] * h[r, i]) for r, f, i in each(4, 5, 3)))
    yield d.bias1, summed(5, ((f, du[r, f]) for r, f in each(4, 5)))
    yield d.weight2, summed((3, 5), (((i, f), dy[r, i] * z[r][f]) for r, f, i in each(4, 5, 3)))
    yield d.bias2, summed(3, ((i, dy[r, i]) for r, i in each(4, 3)))


def of_ff_attention():
    h, w1, w2, dy = drawn(22, (4, 3), (5, 3), (3, 5), (4, 3))
    keep = np.random.default_rng(22).random((4, 5)) > RATE
    dh, d = ff_attention.backward(dy, ff_attention.forward(h, ff_attention.Weights(w1, w2), keep, RATE)[1])
    a = [softmax_row([sum(w1[f, i] * h[r, i] for i in range(3)) for f in range(5)]) for r in range(4)]
    da = summed((4, 5), (((r, f), keep[r, f] / (1 - RATE) * dy[r, i] * w2[i, f]) for r, f, i in each(4, 5, 3)))
    ds = [softmax_gradient(a[r], da[r]) for r in range(4)]
    yield dh, summed((4, 3), (((r, i), ds[r][f] * w1[f, i]) for r, f, i in each(4, 5, 3)))
    yield d.weight1, summed((5, 3), (((f, i), ds[r][f] * h[r, i]) for r, f, i in each(4, 5, 3)))
    yield d.weight2, summed((3, 5), (((i, f), dy[r, i] * keep[r, f] / (1 - RATE) * a[r][f]) for r, f, i in each(4, 5, 3)))


def norm_gradient(x, gain, bias, dy):
    """The page `layer_norm`, for its own ε: dx, dg and db."""
    dx, dg, db = np.zeros_like(x), np.zeros_like(gain), np.zeros_like(bias)
    for row in each(*x.shape[:-1]):
        mean = sum(x[row]) / len(gain)
        k = (sum((value - mean) ** 2 for value in x[row]) / len(gain) + 1e-5) ** -0.5
        normalized, d_normalized = k * (x[row] - mean), gain * dy[row]
        dx[row] = k * (d_normalized - sum(d_normalized) / len(gain)
                       - normalized * sum(d_normalized * normalized) / len(gain))
        dg += dy[row] * normalized
        db += dy[row]
    return dx, dg, db


def of_transformer_layer():
    h, past, gain, bias, d_h = drawn(23, (2, 2, 6), (2, 2, 6), (6,), (6,), (2, 2, 6))
    inner, masks = multi_head_weights(24), keep_masks(24, 2, (2, 2))
    weights = {"attention_norm.gain": gain, "attention_norm.bias": bias, **{f"attention.{n}": w for n, w in inner.items()}}
    named = dict(zip(("attention", "memory"), masks, strict=True))
    context = np.concatenate([past, h], axis=1)
    for pre_norm in (False, True):
        options = transformer_layer.Options(OF_HEADS, feed_forward, pre_norm)
        saved = transformer_layer.forward(h, past, weights, options, named)[1]
        found, gradients = transformer_layer.backward(d_h, saved)
        if pre_norm:
            normalized = layer_norm.forward(context, gain, bias)[0]
            d_context, of_inner = multi_head_gradient(normalized, 2, inner, masks, d_h)
            d_context, dg, db = norm_gradient(context, gain, bias, d_context)
            expected = d_h + d_context[:, 2:]
        else:
            out = multi_head.forward(context, 2, inner, OF_HEADS, named)[0]
            dz, dg, db = norm_gradient(h + out, gain, bias, d_h)
            d_context, of_inner = multi_head_gradient(context, 2, inner, masks, dz)
            expected = dz + d_context[:, 2:]
        yield found, expected
        yield gradients["attention_norm.gain"], dg
        yield gradients["attention_norm.bias"], db
        yield from ((gradients[f"attention.{name}"], of_inner[name]) for name in of_inner)


def of_adaptive_input():
    tables, projections = drawn(25, (2, 4), (3, 2)), drawn(26, (4, 4), (4, 2))
    tokens, (dx,) = np.array([1, 4, 2, 1, 2, 2]), drawn(27, (6, 4))
    found = adaptive_input.backward(dx, adaptive_input.forward(tokens, tables, projections)[1])
    d_tables, d_projections = [np.zeros_like(x) for x in tables], [np.zeros_like(x) for x in projections]
    for r, t in enumerate(tokens):
        i, first = (0, 0) if t < 2 else (1, 2)
        for j, d in each(*projections[i].shape):
            d_projections[i][j, d] += 2 * dx[r, j] * tables[i][t - first, d]  # √D = 2
            d_tables[i][t - first, d] += 2 * dx[r, j] * projections[i][j, d]
    yield from zip(found[0], d_tables, strict=True)
    yield from zip(found[1], d_projections, strict=True)


def adaptive_softmax_gradients(backward, logits_gradient):
    """Of head and tails, with the gradient of a row's logits as the page has it."""
    h, d_loss, clusters, cluster_bias = drawn(28, (6, 4), (6,), (2, 4), (2,))
    sizes, bounds, targets = (3, 2, 1), (0, 3, 5, 6), np.array([0, 3, 5, 4, 2, 3])
    tables, biases = drawn(29, (3, 4), (2, 2), (1, 1)), drawn(30, (3,), (2,), (1,))
    projections = drawn(31, (4, 4), (4, 2), (4, 1))
    weights = adaptive_softmax.Weights(tables, biases, projections, clusters, cluster_bias)
    for order, slots in (("ascending", (None, 3, 4)), ("reversed", (None, 4, 3))):
        found, d = backward(d_loss, h, targets, weights, order)
        whole_tables = [np.concatenate([tables[0], clusters]), *tables[1:]]
        whole_biases = [np.concatenate([biases[0], cluster_bias]), *biases[1:]]
        dh, d_projections = np.zeros_like(h), [np.zeros_like(x) for x in projections]
        d_tables, d_biases = [np.zeros_like(x) for x in whole_tables], [np.zeros_like(x) for x in whole_biases]
        for r, target in enumerate(targets):
            cluster = next(i for i in range(3) if bounds[i] <= target < bounds[i + 1])
            parts = [(0, slots[cluster] if cluster else target)] + ([(cluster, target - bounds[cluster])] if cluster else [])
            for i, place in parts:
                g = [sum(h[r, j] * projections[i][j, d] for j in range(4)) for d in range(projections[i].shape[1])]
                s = [sum(row[d] * g[d] for d in range(len(g))) + b
                     for row, b in zip(whole_tables[i], whole_biases[i], strict=True)]
                ds = logits_gradient(s, place, d_loss[r])
                dg = [sum(ds[v] * whole_tables[i][v, d] for v in range(len(ds))) for d in range(len(g))]
                d_biases[i] += ds
                d_tables[i] += [[ds[v] * g[d] for d in range(len(g))] for v in range(len(ds))]
                d_projections[i] += [[h[r, j] * dg[d] for d in range(len(g))] for j in range(4)]
                dh[r] += [sum(dg[d] * projections[i][j, d] for d in range(len(g))) for j in range(4)]
        yield found, dh
        yield from zip(d.projections, d_projections, strict=True)
        yield from zip(d.tables, [d_tables[0][: sizes[0]], *d_tables[1:]], strict=True)
        yield from zip(d.biases, [d_biases[0][: sizes[0]], *d_biases[1:]], strict=True)
        yield from ((d.cluster_table, d_tables[0][sizes[0] :]), (d.cluster_bias, d_biases[0][sizes[0] :]))


def of_adaptive_softmax():
    yield from adaptive_softmax_gradients(
        lambda d_loss, *given: adaptive_softmax.backward(d_loss, adaptive_softmax.forward(*given)[1]),
        lambda s, place, d_loss: [(p - (j == place)) * d_loss for j, p in enumerate(softmax_row(s))])


def fused_gradient(s, place, d_loss):
    """The page `fused_softmax`: u c of a row, from s less its maximum."""
    e = [exp(value - max(s)) for value in s]
    u = [e_j - (j == place) * sum(e) for j, e_j in enumerate(e)]
    return [u_j * (d_loss / sum(e)) for u_j in u]


def of_fused_softmax():
    """In chunks of one row and of several."""
    for logits in (1, 10):
        yield from adaptive_softmax_gradients(
            lambda d_loss, *given, logits=logits: fused_softmax.backward(
                d_loss, fused_softmax.forward(*given, Chunking(logits, 2))[1]), fused_gradient)



def of_model():
    config = ModelConfig(vocabulary=7, width=6, heads=2, layers=2, span=4, span_ramp=2, span_initial=0.4, memory=2,
                         span_penalty=0.3, dropout=0.3, embedding_dropout=0.2, tie_tables=True)
    p = parameters.initialize(config, seed=1)
    tokens, targets = np.random.default_rng(32).integers(0, 7, (2, 2, 3))
    past, masks = model.initial_past(config, 2, p.vector, zeros=True), draw_masks(config, 2, 3, 0, 1, p.vector)
    saved = model.forward(p, config, tokens, targets, past, masks).saved
    g = model.backward(saved)
    # the page's sums; what stands inside a layer is the page before it
    table, hidden, indices = p["input.table"], saved.hidden[-1] * masks["hidden"] / 0.8, list(each(2, 3, 7))
    s = summed((2, 3, 7), (((b, t, v), table[v] @ hidden[b, t] + p["output.bias"][v]) for b, t, v in indices))
    ds = summed((2, 3, 7), (((b, t, v), (softmax_row(s[b, t])[v] - (v == targets[b, t])) / 6) for b, t, v in indices))
    d_table = summed((7, 6), ((v, ds[b, t, v] * hidden[b, t]) for b, t, v in indices))
    d_h = summed((2, 3, 6), (((b, t), ds[b, t, v] * table[v]) for b, t, v in indices)) * masks["hidden"] / 0.8
    d_positions = np.zeros_like(p["positions"])
    for layer in (1, 0):
        d_h, of_layer = transformer_layer.backward(d_h, saved.layers[layer])
        d_positions += of_layer["attention.positions"]
        yield g[f"layers.{layer}.attention.span"], of_layer["attention.span"] + 0.3 * 4 / 2
        yield g[f"layers.{layer}.attention.query"], of_layer["attention.query"]
    d_h = d_h * masks["embedding"] / 0.8
    yield g["input.table"], d_table + summed((7, 6), ((tokens[b, t], d_h[b, t]) for b, t in each(2, 3)))
    yield g["positions"], d_positions
    yield g["output.bias"], summed(7, ((v, ds[b, t, v]) for b, t, v in indices))
    # each layer's own table: the same function where the tables are equal
    apart = replace(config, share_positions=False)
    own = parameters.Parameters(apart, np.zeros(parameters.total(apart)))
    for name in own:
        own[name] = p["positions" if name.endswith(".positions") else name]
    each_own = model.backward(model.forward(own, apart, tokens, targets, past, masks).saved)
    yield g["positions"], each_own["layers.0.attention.positions"] + each_own["layers.1.attention.positions"]


EQUATIONS = {name.removeprefix("of_"): function for name, function in list(globals().items()) if name.startswith("of_")}

# one error for each page: what its gradient would be without a step of it
PLANTED = {
    "linear": ("dx = (d_rows @ saved.weight)", "dx = (1.001 * d_rows @ saved.weight)"),
    "layer_norm": ("d_normalized - mean -", "d_normalized -"),
    "softmax": ("(attention * d_attention).sum", "d_attention.mean"),
    "softmax_loss": ("d_logits *= d_loss[..., None]", "d_logits *= abs(d_loss[..., None])"),
    "masked_softmax": ("- counted * mean", "- weight * mean"),
    "dropout": ("_scaled(dy, saved.keep, saved.rate)", "_scaled(dy, saved.keep, 0)"),
    "embedding": ("scatter_add(d_table, saved.tokens, dx)", "d_table[saved.tokens] += dx"),
    "span": ("(fraction.real <= 1)", "(fraction.real < 1)"),
    "positions": ("d_rows = d_scores.transpose(1, 0, 2, 3)", "d_rows = d_scores"),
    "windows": ("_band(rows @ saved.window.swapaxes(-1, -2), size)",
                "_band(rows @ saved.window.swapaxes(-1, -2), size)[..., ::-1]"),
    "attention": ("(d_weight[..., :size] * saved.exists)", "d_weight[..., :size]"),
    "tiled_attention": ("_weigh(weights, of_head, given.options.normalizer_epsilon)", "_weigh(weights, of_head, 0)"),
    "persistent_attention": ("(saved.kept.swapaxes(-1, -2) @ d_rows)", "(saved.attention.swapaxes(-1, -2) @ d_rows)"),
    "split_attention": ("d.queries + d_rows.reshape(d.queries.shape)", "d.queries"),
    "head_split": ("concatenate([d.queries, d_rest], axis=2)", "concatenate([d_rest, d.queries], axis=2)"),
    "multi_head": ("d_context[:, d_context.shape[1] - d_block.shape[1] :] += d_block",
                   "d_context[:, : d_block.shape[1]] += d_block"),
    "feed_forward": ("positive = x.real > 0", "positive = x.real >= 0"),
    "ff_attention": ("dropout.backward(d_kept, saved.dropped)", "d_kept"),
    "transformer_layer": ("return d_h + d_context[:, d_context.shape[1]", "return d_context[:, d_context.shape[1]"),
    "adaptive_input": ("d_rows = dx.reshape(-1, saved.shape[-1]) *", "d_rows = dx.reshape(-1, saved.shape[-1]) / 2 *"),
    "adaptive_softmax": ("d_hidden[rows] += d_rows", "d_hidden[rows] = d_rows"),
    "fused_softmax": ("d_block.table[...] += product", "d_block.table[...] = product"),
    "model": ('g["input.table"] += embedding', 'g["input.table"] = embedding'),
}


def largest_error(page):
    """Of everything that the page's equations give; None stands for no argument, and there is no gradient of it."""
    pairs = [(found, expected) for found, expected in EQUATIONS[page]() if found is not None or expected is not None]
    assert pairs
    return max(norm_wise_error(found, expected) for found, expected in pairs)


def test_every_page_has_its_equations_here():
    assert set(EQUATIONS) == PAGES == set(PLANTED)


@pytest.mark.parametrize("page", EQUATIONS)
def test_the_equations_of_a_page_give_the_packages_gradient(page):
    assert largest_error(page) <= TOLERANCE


@pytest.mark.parametrize("page", EQUATIONS)
def test_the_equations_of_a_page_find_an_error_planted_in_the_package(page):
    module = "model" if page == "model" else f"layers.{page}"
    bug = Bug("planted here", "", (), False, (Change(module, *PLANTED[page]),))
    with planted(bug):
        error = largest_error(page)
    assert error > 1e3 * TOLERANCE


@pytest.mark.parametrize("mass", [1e-1, 1e-4, 1e-7])
def test_what_the_tiny_mass_trap_costs(mass):
    """The page `masked_softmax`, step 5: without softmax's own sum, the chain's ds_j is off by p_j r ε / (M + ε)."""
    epsilon, p = 1e-8, np.array([0.2, 0.3, 0.5])
    w = mass * np.array([0.5, 1.0, 1.2])
    da = np.array([1.0, -0.7, 0.4])
    total = float(w @ p)
    a = w * p / (total + epsilon)
    r = float(a @ da)
    without = p * w * (da - r) / (total + epsilon)
    right = masked_softmax.backward(da, masked_softmax.forward(np.log(p), w, np.array(True), epsilon)[1])[0]
    np.testing.assert_allclose(without - right, p * r * epsilon / (total + epsilon), atol=1e-15 * np.abs(right).max())
