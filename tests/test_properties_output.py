"""Properties of input, output and norm: adaptive clusters, relabelled words, tied tables, layer norm's invariances."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl import model
from refimpl.layers import adaptive_input, adaptive_softmax, layer_norm


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws = sibling("strategies")
examples, configuration = draws.examples, draws.configuration
assert_close, assert_close_through_norms = draws.assert_close, draws.assert_close_through_norms
ORDERS = st.sampled_from(["ascending", "reversed"])
shortlists, tails = draws.sizes(4), st.lists(st.integers(0, 3), max_size=3)
FULL = draws.ModelCase(
    configuration(vocabulary=9, width=6, heads=2, layers=2, span=4, span_ramp=2, memory=2, cutoffs=(3, 5), divisor=1),
    seed=1, batch=2, block=6, past=3, spans="random",
)


class Softmax(NamedTuple):
    """Rows of hidden states with targets and a cotangent, and the weights of an adaptive softmax."""

    hidden: np.ndarray
    targets: np.ndarray
    d_loss: np.ndarray
    weights: adaptive_softmax.Weights


def drawn_softmax(seed, sizes, rows=4, width=6):
    """Clusters of these sizes; widths 6, 3, 2, 1."""
    rng = draws.stream(seed, "softmax")
    shapes = [(size, max(1, width // (i + 1))) for i, size in enumerate(sizes)]
    weights = adaptive_softmax.Weights(
        [rng.standard_normal(shape) for shape in shapes], [rng.standard_normal(size) for size in sizes],
        [rng.standard_normal((width, narrow)) for _, narrow in shapes],
        rng.standard_normal((len(sizes) - 1, width)), rng.standard_normal(len(sizes) - 1),
    )
    hidden, d_loss = rng.standard_normal((rows, width)), rng.standard_normal(rows)
    return Softmax(hidden, rng.integers(0, sum(sizes), rows), d_loss, weights)


def run_softmax(case, order):
    """Losses, gradients and log-probabilities by name."""
    loss, saved = adaptive_softmax.forward(case.hidden, case.targets, case.weights, order)
    d_hidden, gradients = adaptive_softmax.backward(case.d_loss, saved)
    log_p = adaptive_softmax.log_probabilities(case.hidden, case.weights, order)
    return {"loss": loss, "d_hidden": d_hidden, "log_p": log_p, **named(gradients)}


def named(weights):
    """The softmax's weights, or their gradients, as one dict."""
    lists = {f"{kind}.{i}": array for kind in ("tables", "biases", "projections")
             for i, array in enumerate(getattr(weights, kind))}
    return {**lists, "cluster_table": weights.cluster_table, "cluster_bias": weights.cluster_bias}


@given(draws.seeds, shortlists, tails, ORDERS)
@example(0, 1, [], "ascending")
@example(0, 1, [0, 0, 0], "reversed")
@example(1, 3, [2, 1], "reversed")
@examples
def test_adaptive_probabilities_sum_to_one(seed, shortlist, tails, order):
    """20. Over all words, whatever the clusters; and they are the exponentials of the losses."""
    case = drawn_softmax(seed, (shortlist, *tails))
    found = run_softmax(case, order)
    assert_close({"sum": np.exp(found["log_p"]).sum(-1)}, {"sum": np.ones(len(case.hidden))})
    assert_close({"loss": found["loss"]}, {"loss": -found["log_p"][np.arange(len(case.targets)), case.targets]})


@given(draws.model_cases())
@example(draws.ModelCase(configuration()))
@example(FULL.changed(cluster_order="reversed"))
@examples
def test_the_models_probabilities_sum_to_one(case):
    """20. Of the whole model, plain or adaptive."""
    log_p = model.log_probabilities(case.parameters(), case.config, case.text()[0], case.before())
    assert log_p.shape == (case.batch, case.block, case.config.vocabulary)
    assert_close({"sum": np.exp(log_p).sum(-1)}, {"sum": np.ones((case.batch, case.block))})


@given(draws.seeds, draws.sizes(9), ORDERS)
@example(0, 1, "reversed")
@example(0, 2, "ascending")
@examples
def test_one_cluster_is_a_softmax(seed, vocabulary, order):
    """21. Losses and gradients of -log softmax(W Pᵀ h + b), worked out anew: d_logits = (p - [target]) d_loss."""
    case = drawn_softmax(seed, (vocabulary,))
    (table,), (bias,), (projection,) = case.weights[:3]
    logits = np.einsum("rd,de,ve->rv", case.hidden, projection, table) + bias
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    d_logits = (p - np.eye(vocabulary)[case.targets]) * case.d_loss[:, None]
    expected = {
        "loss": -np.log(p[np.arange(len(p)), case.targets]), "log_p": np.log(p),
        "d_hidden": np.einsum("rv,ve,de->rd", d_logits, table, projection),
        "tables.0": np.einsum("rv,rd,de->ve", d_logits, case.hidden, projection), "biases.0": d_logits.sum(0),
        "projections.0": np.einsum("rd,rv,ve->de", case.hidden, d_logits, table),
        "cluster_table": np.zeros((0, 6)), "cluster_bias": np.zeros(0),
    }
    assert_close(run_softmax(case, order), expected)


@given(draws.seeds, shortlists, tails, ORDERS, st.integers(0, 3))
@example(0, 1, [], "reversed", 0)
@example(1, 2, [2, 3], "ascending", 1)
@example(1, 2, [2, 3], "reversed", 0)
@examples
def test_an_empty_tail_changes_nothing(seed, shortlist, tails, order, where):
    """22. A tail without words, anywhere: the same losses and gradients, and none for its slot in the head, exactly."""
    where = min(where, len(tails))
    case = drawn_softmax(seed, (shortlist, *tails))
    weights, cluster = case.weights, where + 1
    row = where if order == "ascending" else len(tails) - where
    more = weights._replace(
        tables=[*weights.tables[:cluster], np.ones((0, 2)), *weights.tables[cluster:]],
        biases=[*weights.biases[:cluster], np.ones(0), *weights.biases[cluster:]],
        projections=[*weights.projections[:cluster], np.ones((6, 2)), *weights.projections[cluster:]],
        cluster_table=np.insert(weights.cluster_table, row, 7.0, axis=0),
        cluster_bias=np.insert(weights.cluster_bias, row, 9.0),
    )
    loss, saved = adaptive_softmax.forward(case.hidden, case.targets, more, order)
    d_hidden, d = adaptive_softmax.backward(case.d_loss, saved)
    assert not d.cluster_table[row].any()
    assert not d.cluster_bias[row].any()
    assert not d.projections[cluster].any()
    assert d.tables[cluster].shape == (0, 2)
    without = [[*arrays[:cluster], *arrays[cluster + 1 :]] for arrays in d[:3]]
    found = {
        "loss": loss, "d_hidden": d_hidden, "log_p": adaptive_softmax.log_probabilities(case.hidden, more, order),
        **named(adaptive_softmax.Weights(*without, np.delete(d.cluster_table, row, 0), np.delete(d.cluster_bias, row))),
    }
    assert_close(found, run_softmax(case, order))


@given(draws.seeds, shortlists, tails, st.integers(0, 4))
@example(0, 1, [], 0)
@example(1, 2, [2, 3], 1)
@examples
def test_an_empty_cluster_of_the_input_changes_nothing(seed, shortlist, tails, where):
    """22. The same for the adaptive input, where even the first cluster may be empty."""
    case = drawn_softmax(seed, (shortlist, *tails))
    where, dx = min(where, len(tails) + 1), case.hidden
    tables, projections = case.weights.tables, case.weights.projections
    x, saved = adaptive_input.forward(case.targets, tables, projections)
    more = [*tables[:where], np.ones((0, 2)), *tables[where:]], [*projections[:where], np.ones((6, 2)), *projections[where:]]
    x_more, saved_more = adaptive_input.forward(case.targets, *more)
    assert_close({"x": x_more}, {"x": x})
    for found, expected in zip(adaptive_input.backward(dx, saved_more), adaptive_input.backward(dx, saved), strict=True):
        assert not found.pop(where).any()
        assert_close(dict(enumerate(found)), dict(enumerate(expected)))


def relabelled(values, orders):
    """Rows of tables and biases of each cluster in another order; a plain table is one cluster."""
    moved = values.copy()
    for name in values:
        kind = name.split(".")
        if kind[0] in ("input", "output") and kind[1] in ("table", "bias", "tables", "biases"):
            moved[name] = values[name][orders[int(kind[2]) if len(kind) > 2 else 0]]
    return moved


@given(draws.model_cases(vocabulary=st.sampled_from([2, 3, 5, 9])))
@example(draws.ModelCase(configuration()))
@example(FULL.changed(tie_tables=True, tie_projections=True))
@examples
def test_words_of_a_cluster_may_be_relabelled(case):
    """23. Tokens, targets and rows of tables and biases renamed alike: the same losses, and gradients renamed with them."""
    rng, (tokens, targets) = case.stream("labels"), case.text()
    clusters = case.config.clusters or ((0, case.config.vocabulary, case.config.width),)
    orders = [rng.permutation(end - low) for low, end, _ in clusters]  # new row i is old row order[i]
    old = np.concatenate([low + order for order, (low, _, _) in zip(orders, clusters, strict=True)])
    label = np.argsort(old)
    p, before = case.parameters(), case.run()
    after = case.run(relabelled(p, orders), label[tokens], label[targets])
    assert_close_through_norms({"token_loss": after.y.token_loss, "past": after.y.past},
                               {"token_loss": before.y.token_loss, "past": before.y.past})
    assert_close_through_norms(after.gradients, relabelled(before.gradients, orders))


@st.composite
def tied_cases(draw):
    """Models with tied tables, tied projections, or both."""
    case = draw(draws.model_cases())
    if not case.config.cutoffs:
        return case.changed(tie_tables=True)
    tables = draw(st.booleans())
    return case.changed(tie_tables=tables, tie_projections=not tables or draw(st.booleans()))


@given(tied_cases())
@example(draws.ModelCase(configuration(tie_tables=True)))
@example(FULL.changed(tie_tables=True, tie_projections=True, dropout=0.3))
@examples
def test_a_tied_gradient_is_the_sum_of_the_untied(case):
    """24. Tables, and projections, that are one tensor get what the two would get together; all else is the same."""
    tied, p = case.run(), case.parameters()
    apart = case.changed(tie_tables=False, tie_projections=False)
    copies = apart.parameters()
    for name in copies:
        copies[name] = p[name] if name in p else p[name.replace("output", "input")]
    untied = apart.run(copies)
    np.testing.assert_array_equal(tied.y.token_loss, untied.y.token_loss)
    expected = {name: untied.gradients[name].copy() for name in p}
    for name in set(copies) - set(p):
        expected[name.replace("output", "input")] += untied.gradients[name]
    assert set(copies) != set(p)
    assert_close_through_norms(tied.gradients, expected)


@given(draws.seeds, draws.sizes(3), st.sampled_from([1, 2, 2, 3, 8]), st.sampled_from([1e-3, 0.1, 1.0, 30.0]),
       st.floats(0.25, 8), st.sampled_from([1e-5, 1e-2, 0.0]))
@example(0, 1, 1, 1.0, 2.0, 1e-5)
@example(1, 2, 8, 1e-3, 8.0, 1e-5)
@example(328, 3, 2, 1e-3, 1.0, 0.0)
@examples
def test_layer_norm_is_invariant_up_to_its_epsilon(seed, rows, width, size, scale, epsilon):
    """25. To a shift exactly; to a scale α up to √((v + ε) / (v + ε/α²)), which differs from 1 by no more than
    ε |1 - 1/α²| / (2 min(v + ε, v + ε/α²)). The gradient is orthogonal to 1, and to x̂ up to Σ dx̂ x̂ / σ · ε / (v + ε)."""
    rng = draws.stream(seed, "norm")
    epsilon = epsilon or 1e-300  # as good as 0, but a row of equal numbers (D = 1) stays defined
    x, dy = rng.standard_normal((2, rows, width)) * [[[size]], [[1]]]
    shift = rng.standard_normal((rows, 1))
    gain, bias = rng.standard_normal((2, width))
    v, x_hat = x.var(-1, keepdims=True), layer_norm.forward(x, gain, bias, epsilon)[1].normalized
    # 45 units of roundoff of x, on x - mean; a mean of one number is exact
    noise = 1e-14 * np.abs(x).max() / np.sqrt(v + epsilon) if width > 1 else 0
    y, saved = layer_norm.forward(x, gain, bias, epsilon)
    if width > 1:
        shifted, _ = layer_norm.forward(x + shift, gain, bias, epsilon)
        more = noise * (1 + np.abs(shift).max() / np.abs(x).max())
        assert (np.abs(shifted - y) <= np.abs(gain) * more + 1e-14 * np.abs(bias)).all()
    _, scaled = layer_norm.forward(scale * x, gain, bias, epsilon)
    factor = np.sqrt((v + epsilon) / (v + epsilon / scale**2))
    assert (np.abs(scaled.normalized - factor * x_hat) <= noise).all()
    bound = epsilon * abs(1 - 1 / scale**2) / (2 * np.minimum(v + epsilon, v + epsilon / scale**2))
    assert (np.abs(factor - 1) <= bound + 1e-15).all()
    dx, _, _ = layer_norm.backward(dy, saved)
    d_x_hat, inverse_deviation = gain * dy, 1 / np.sqrt(v + epsilon)
    left = (d_x_hat * x_hat).sum(-1, keepdims=True) * inverse_deviation * epsilon / (v + epsilon)
    # what is subtracted has the roundoff of dx̂ / σ, and x̂ that of x - mean; D terms are added
    limit = width * np.abs(d_x_hat).max() * inverse_deviation * (1e-14 + noise)
    assert (np.abs(dx.sum(-1, keepdims=True)) <= limit).all()
    assert (np.abs((dx * x_hat).sum(-1, keepdims=True) - left) <= limit * np.sqrt(width)).all()
