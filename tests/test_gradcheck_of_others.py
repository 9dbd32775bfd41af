"""Wrong gradients that other checkers' formulas pass, and ours refuses: the README's table, computed anew.

Formulas, written anew: PyTorch 2.13 gradcheck, its slow and its fast mode; JAX 0.10 check_grads, reverse mode; HIPS autograd
1.8 check_vjp. Each as a function of (f, vjp, arguments) that says whether the gradient passes.
"""

from pathlib import Path

import numpy as np
import pytest

from refimpl.gradcheck import check_vjp

README = Path(__file__).resolve().parent.parent / "README.md"
MEAN_LOSS = 1e-6  # the mean over some ten thousand tokens of a loss whose own slopes are near 0.01


def moved(f, arguments, directions, step):
    """f at x + step · u."""
    return f(*(x + step * u for x, u in zip(arguments, directions, strict=True)))


def inner(arrays, others):
    return sum((x * y).sum() for x, y in zip(arrays, others, strict=True))


def torch_slow(f, vjp, arguments):
    """Every element of the Jacobian: |analytic - numeric| ≤ 1e-5 + 1e-3 |numeric|, central differences of 1e-6."""
    y, good = f(*arguments), True
    units = np.eye(y.size).reshape(y.size, *y.shape)
    analytic = [vjp(unit, *arguments) for unit in units]
    for number, x in enumerate(arguments):
        for index in np.ndindex(x.shape):
            u = [np.zeros_like(a) for a in arguments]
            u[number][index] = 1
            numeric = ((moved(f, arguments, u, 1e-6) - moved(f, arguments, u, -1e-6)) / 2e-6).ravel()
            here = np.array([gradients[number][index] for gradients in analytic])
            good &= bool((np.abs(here - numeric) <= 1e-5 + 1e-3 * np.abs(numeric)).all())
    return good


def torch_fast(f, vjp, arguments):
    """Each argument along one positive unit vector u, and the outputs along a positive v; 1e-5 is multiplied by Σu Σv."""
    rng, y = np.random.default_rng(0), f(*arguments)
    directions = [rng.random(x.shape) for x in arguments]
    directions = [u / np.linalg.norm(u) for u in directions]
    v = rng.random(y.shape)
    v /= np.linalg.norm(v)
    gradients, good = vjp(v, *arguments), True
    for number, u in enumerate(directions):
        alone = [u if i == number else np.zeros_like(x) for i, x in enumerate(arguments)]
        numeric = (v * (moved(f, arguments, alone, 1e-6) - moved(f, arguments, alone, -1e-6)) / 2e-6).sum()
        limit = 1e-5 * u.sum() * v.sum() + 1e-3 * abs(numeric)
        good &= bool(abs((gradients[number] * u).sum() - numeric) <= limit)
    return good


def jax_reverse(f, vjp, arguments):
    """One Gaussian direction of all arguments and one Gaussian cotangent: |a - n| ≤ 1e-5 + 1e-5 |n|, differences of 1e-4."""
    rng = np.random.default_rng(0)
    u = [rng.standard_normal(x.shape) for x in arguments]
    slope = (moved(f, arguments, u, 1e-4) - moved(f, arguments, u, -1e-4)) / 2e-4
    v = rng.standard_normal(slope.shape)
    numeric = (v * slope).sum()
    return bool(abs(inner(u, vjp(v, *arguments)) - numeric) <= 1e-5 + 1e-5 * abs(numeric))


def autograd_hips(f, vjp, arguments):
    """The same with differences of ±5e-7: |a - n| < 1e-6 or |a - n| < 1e-6 |a + n|."""
    rng = np.random.default_rng(0)
    u = [rng.standard_normal(x.shape) for x in arguments]
    slope = (moved(f, arguments, u, 5e-7) - moved(f, arguments, u, -5e-7)) / 1e-6
    v = rng.standard_normal(slope.shape)
    numeric, exact = (v * slope).sum(), inner(u, vjp(v, *arguments))
    return bool(abs(exact - numeric) < 1e-6 or abs(exact - numeric) / abs(exact + numeric) < 1e-6)


def ours(f, vjp, arguments):
    """PASS, and nothing else, is a pass."""
    return check_vjp(f, vjp, list(arguments)).ok


CHECKERS = {"torch, slow": torch_slow, "torch, fast": torch_fast, "JAX": jax_reverse, "autograd": autograd_hips,
            "refimpl.gradcheck": ours}

# A toy all-attention layer of one head: M = 5 queries, L = 8 positions before each, E = 4, N = 6 persistent vectors.
M, L, E, N, R = 5, 8, 4, 6, 3
SEEN = L + np.arange(M)[:, None] - 1 - np.arange(L)  # row of [past ; block] that query t has at distance 1 + x
NAMES = ("queries", "keys", "values", "positions", "memory_keys", "memory_values", "span")


def draw(scale=1.0):
    """Arguments; `scale` is that of everything but the values and the span."""
    rng = np.random.default_rng(7)
    shapes = {"queries": (M, E), "keys": (L + M, E), "values": (L + M, E), "positions": (L, E), "memory_keys": (N, E),
              "memory_values": (N, E)}
    arrays = {name: rng.standard_normal(shape) * (1 if name.endswith("values") else scale) for name, shape in shapes.items()}
    return [*arrays.values(), np.array([2.6])]


def steps(q, k, v, p, mu, nu, z):
    """Keys and values that each query sees, weights w, e/Z, and a = w e / Σ w e over L + N slots."""
    seen = np.concatenate([k[SEEN] + p, np.broadcast_to(np.sqrt(E) * mu, (M, N, E))], axis=1)
    values = np.concatenate([v[SEEN], np.broadcast_to(np.sqrt(N) * nu, (M, N, E))], axis=1)
    logits = (seen @ q[:, :, None])[..., 0] / np.sqrt(E)
    ramp = (R + z - np.arange(L)) / R
    mask = np.where(ramp.real <= 0, 0, np.where(ramp.real >= 1, 1, ramp))
    w = np.concatenate([mask, np.ones(N)])
    e = np.exp(logits - logits.real.max(1, keepdims=True))
    share = e / (w * e).sum(1, keepdims=True)
    return seen, values, w, share, (ramp.real > 0) & (ramp.real < 1)


def forward(*arguments):
    """y (M, E)."""
    _, values, w, share, _ = steps(*arguments)
    return ((w * share)[:, None] @ values)[:, 0]


def backward(dy, *arguments):
    """The gradient of every argument by hand, right in every term."""
    seen, values, w, share, on_ramp = steps(*arguments)
    q, a = arguments[0], w * share
    da = (values @ dy[:, :, None])[..., 0]
    off = da - (a * da).sum(1, keepdims=True)
    ds, dw = a * off / np.sqrt(E), share * off
    d_seen, d_values = ds[..., None] * q[:, None], a[..., None] * dy[:, None]
    d_keys, d_v = np.zeros((2, L + M, E))
    np.add.at(d_keys, SEEN, d_seen[:, :L])
    np.add.at(d_v, SEEN, d_values[:, :L])
    return [(ds[:, None] @ seen)[:, 0], d_keys, d_v, d_seen[:, :L].sum(0), np.sqrt(E) * d_seen[:, L:].sum(0),
            np.sqrt(N) * d_values[:, L:].sum(0), np.array([dw[:, :L][:, on_ramp].sum() / R])]


def changed(name, change):
    """The vjp with one gradient changed."""
    def wrong(dy, *arguments):
        return [change(g) if known == name else g for known, g in zip(NAMES, backward(dy, *arguments), strict=True)]

    return wrong


def of_one_query(dy, *arguments):
    """Positions' gradient of the last query only."""
    last = np.zeros_like(dy)
    last[-1] = dy[-1]
    found = backward(dy, *arguments)
    return [*found[:3], backward(last, *arguments)[3], *found[4:]]


def without_mean(dy, *arguments):
    """Softmax's Σ a da left out of the queries' gradient."""
    seen, values, w, share, _ = steps(*arguments)
    ds = w * share * (values @ dy[:, :, None])[..., 0] / np.sqrt(E)
    return [(ds[:, None] @ seen)[:, 0], *backward(dy, *arguments)[1:]]


PLANTED = {
    "span gradient zeroed": changed("span", np.zeros_like),
    "span gradient of the other sign": changed("span", np.negative),
    "1/R missing": changed("span", lambda g: R * g),
    "1/√E missing from the queries": changed("queries", lambda g: np.sqrt(E) * g),
    "Σ a da missing from the queries": without_mean,
    "√E missing from persistent keys": changed("memory_keys", lambda g: g / np.sqrt(E)),
    "√N missing from persistent values": changed("memory_values", lambda g: g / np.sqrt(N)),
    "rows of persistent values swapped": changed("memory_values", lambda g: np.roll(g, 1, axis=0)),
    "rows of keys swapped": changed("keys", lambda g: np.roll(g, 1, axis=0)),
    "values' gradient zeroed": changed("values", np.zeros_like),
    "positions of one query only": of_one_query,
    "positions reversed": changed("positions", lambda g: g[::-1]),
}


def scaled(f, vjp, factor=MEAN_LOSS):
    """The function times a factor, and its vjp."""
    return lambda *x: factor * f(*x), lambda dy, *x: vjp(factor * dy, *x)


def renormalised(logits):
    """As published: softmax, mask, division by the sum + 1e-8."""
    e = np.exp(logits - logits.real.max())
    b = MASK * e / e.sum()
    return b / (b.sum() + 1e-8)


MASK = np.array([1, 1, 0.6, 0.3, 0.1])


def without_softmax_sum(dy, logits):
    """Its vjp with softmax's Σ p dp left out: 1e-8 / mass of it remains after the division's own gradient."""
    p = np.exp(logits - logits.max())
    p /= p.sum()
    mass = (MASK * p).sum() + 1e-8
    a = MASK * p / mass
    return [p * MASK * (dy - (a * dy).sum()) / mass]


def one_sign(dy, x):
    """x² with one of 4096 slopes of the other sign."""
    found = 2 * x * dy
    found[17] *= -1
    return [found]


LARGE = np.random.default_rng(3).uniform(0.5, 1.5, 4096)
CASES = {
    "gradients of 1e-6, a zeroed span gradient": (*scaled(forward, PLANTED["span gradient zeroed"]), draw()),
    "swapped rows at an initialisation of 5e-4": (forward, PLANTED["rows of persistent values swapped"], draw(5e-4)),
    "renormalisation without softmax's Σ p dp": (renormalised, without_softmax_sum, [np.array([0.3, -0.2, 0.9, 0.1, -0.5])]),
    "relu at 0 with slope ½": (lambda x: np.where(x.real > 0, x, 0), lambda dy, x: [dy * np.where(x == 0, 0.5, x > 0)],
                              [np.array([-0.7, 0.0, 0.4])]),
}
ONE_SIGN = (lambda x: x * x, one_sign, [LARGE])


def column(checker):
    """What one checker says of each line of the table."""
    passed = sum(checker(*scaled(forward, wrong), draw()) for wrong in PLANTED.values())
    told = [f"passes {passed} of {len(PLANTED)}" if passed else "refuses all"]
    return told + ["passes" if checker(*case) else "refuses" for case in CASES.values()]


def table():
    """The README's."""
    columns = [[name, *column(checker)] for name, checker in CHECKERS.items()]
    first = ["wrong gradient", f"gradients of 1e-6, {len(PLANTED)} planted errors", *CASES]
    lines = [f"| {' | '.join(row)} |" for row in zip(first, *columns, strict=True)]
    return "\n".join([lines[0], "|---" * (1 + len(CHECKERS)) + "|", *lines[1:]])


def test_the_toy_layers_own_gradient_is_right():
    for factor in (1.0, MEAN_LOSS):
        report = check_vjp(*scaled(forward, backward, factor), dict(zip(NAMES, draw(), strict=True)))
        assert report.ok, str(report)
    assert check_vjp(forward, backward, draw(5e-4)).ok


@pytest.mark.parametrize("name", list(CHECKERS)[:-1])
def test_the_formulas_of_others_pass_what_is_right_and_refuse_gross_errors(name):
    """They are not made of straw: at gradients of size 1 each accepts the right gradient and sees a wrong sign."""
    assert CHECKERS[name](forward, backward, draw())
    assert not CHECKERS[name](forward, changed("values", np.negative), draw())


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_error_is_refused_at_every_size(name):
    assert not ours(forward, PLANTED[name], draw())
    assert not ours(*scaled(forward, PLANTED[name]), draw())


def test_one_projection_with_positive_weights_hides_a_sign():
    assert torch_fast(*ONE_SIGN)
    assert not check_vjp(*ONE_SIGN, directions=64).ok


def test_the_readmes_table_is_what_comes_out():
    assert table() in README.read_text(encoding="utf-8")
