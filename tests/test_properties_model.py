"""Properties of the whole model, in every variant, with every kind of positions, input and output: segments, heads, rows."""

import importlib.util
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl import model, variants
from refimpl.layers import transformer_layer


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws = sibling("strategies")
Case, cases, examples, configuration = draws.ModelCase, draws.model_cases, draws.examples, draws.configuration
assert_close, assert_identical = draws.assert_close_through_norms, draws.assert_identical
FULL = Case(
    configuration(vocabulary=9, width=6, heads=3, layers=2, span=5, span_ramp=2, memory=2, span_penalty=0.3),
    seed=1, batch=3, block=6, past=4, spans="random",
)
DEGENERATE = Case(configuration())
BY_TOKEN = ("embedding", "hidden", "feed_forward")  # masks (B, T, …); the others are (B, H, T, …)


def cut(masks, tokens, rows=slice(None)):
    """Keep-masks of some tokens of some rows."""
    return {name: mask[rows, tokens] if name.endswith(BY_TOKEN) else mask[rows, :, tokens] for name, mask in masks.items()}


def tensors(out):
    """What forward returns, by name."""
    return {"loss": out.loss, "token_loss": out.token_loss, "span_penalty": out.span_penalty, "past": out.past}


def parts_of(length, bounds):
    """Slices of 0 … length between the bounds that are inside."""
    edges = [0, *sorted(bound for bound in bounds if bound < length), length]
    return [slice(low, high) for low, high in pairwise(edges)]


@given(cases(block=st.integers(1, 12), span_penalty=0.0), st.sets(st.integers(1, 11)))
@example(Case(configuration(), block=2), {1})
@example(replace(FULL, block=12, past=0).changed(dropout=0.3, positions="transformer-xl", span_penalty=0.0), {1, 2, 7})
@examples
def test_segments_equal_one_long_sequence(case, bounds):
    """1. Token losses and the past at the end, however a text is cut; and sums over segments of the gradients that no cut
    reaches, those of the last layer and of the output. (Into the past no gradient goes: below, cuts do matter.)

    Absolute positions count within a segment in training; here each segment is told where it begins.
    """
    p, config, (tokens, targets), dy = case.parameters(), case.config, case.text(), case.cotangent()
    whole = case.run()
    past, losses, total = case.before(), [], p.zeros_like()
    for part in parts_of(case.block, bounds):
        out = model.forward(p, config, tokens[:, part], targets[:, part], past, cut(case.masks(), part), part.start)
        total.vector += model.backward(out.saved, dy[:, part]).vector
        losses.append(out.token_loss)
        past = out.past
    assert_close({"token_loss": np.concatenate(losses, 1), "past": past},
                 {"token_loss": whole.y.token_loss, "past": whole.y.past})
    last = f"layers.{config.layers - 1}."
    reached = [name for name in p if name.startswith((last, "output.", "final_norm."))]
    assert_close({name: total[name] for name in reached}, {name: whole.gradients[name] for name in reached})


def heads_permuted(values, config, order, memory_order):
    """Each head's rows of query, key, value, memory, span, u, v and position_key, and its columns of output, moved."""
    moved = values.copy()

    def rows(weight, heads, axis=0):
        parts = np.split(weight, len(heads), axis)
        return np.concatenate([parts[head] for head in heads], axis)

    every = [*order, *(len(order) + i for i in memory_order)] if config.variant == "head-split" else order
    for name in values:
        kind = name.rpartition(".")[2] if "attention." in name else name
        if kind == "query":
            moved[name] = rows(values[name], every)
        elif name.endswith("attention.output"):
            moved[name] = rows(values[name], every, 1)
        elif kind in ("key", "value", "position_key", "span", "content_bias", "position_bias"):
            moved[name] = rows(values[name], order)
        elif kind in ("memory_keys", "memory_values"):
            heads = {"head-split": memory_order, "single-head": order}.get(config.variant, order)
            moved[name] = rows(values[name], heads, 2 if config.variant == "single-head" else 0)
    return moved


@given(cases(heads=st.integers(2, 4)))
@example(Case(configuration(width=2, heads=2)))
@example(Case(configuration(vocabulary=9, width=2, heads=2, adaptive_span=False, normalizer_epsilon=0.1, cutoffs=(1,),
                            divisor=1, tie_projections=True), seed=7774247, block=3, past=1, spans="none"))
@example(replace(FULL).changed(variant="head-split", positions="transformer-xl", share_positions=False, dropout=0.3))
@example(replace(FULL).changed(variant="single-head", norm="pre"))
@examples
def test_heads_permute_with_the_output_projection(case):
    """3. Heads in another order, with W_o's columns, give the same losses; gradients are permuted with their heads.

    In head-split the context's heads move among themselves, and so do the persistent ones.
    """
    config, rng = case.config, case.stream("order")
    order = rng.permutation(config.context_heads)
    memory_order = rng.permutation(config.heads - config.context_heads)
    masks = dict(case.masks())
    for name in masks:
        if name.endswith(".attention"):
            masks[name] = masks[name][:, order]
        if name.endswith(".memory") and config.variant != "single-head":
            masks[name] = masks[name][:, memory_order if config.variant == "head-split" else order]
    p, before = case.parameters(), case.run()
    after = case.run(heads_permuted(p, config, order, memory_order), masks=masks)
    assert_close(tensors(after.y), tensors(before.y))
    assert_close(after.gradients, heads_permuted(before.gradients, config, order, memory_order))


@given(cases(batch=st.integers(1, 4)))
@example(DEGENERATE)
@example(replace(FULL).changed(dropout=0.3, embedding_dropout=0.3, cutoffs=(2, 4), divisor=1))
@examples
def test_rows_of_the_batch_are_independent(case):
    """4. A row alone, beside others, or in another place has the same losses and past, and gives the same gradient."""
    row = int(case.stream("row").integers(case.batch))
    tokens, targets = case.text()
    only = np.zeros((case.batch, case.block))
    only[row] = case.cotangent()[row]
    together, one = case.run(dy=only), slice(row, row + 1)
    alone = case.run(None, tokens[one], targets[one], case.before()[:, one], cut(case.masks(), slice(None), one), only[one])
    assert_close({"token_loss": alone.y.token_loss, "past": alone.y.past},
                 {"token_loss": together.y.token_loss[one], "past": together.y.past[:, one]})
    assert_close(alone.gradients, together.gradients)
    order = case.stream("order").permutation(case.batch)
    masks = {name: mask[order] for name, mask in case.masks().items()}
    moved = case.run(None, tokens[order], targets[order], case.before()[:, order], masks, only[order])
    assert_close({"token_loss": moved.y.token_loss, **moved.gradients},
                 {"token_loss": together.y.token_loss[order], **together.gradients})


@given(cases())
@example(DEGENERATE)
@example(FULL)
@examples
def test_the_gradient_of_the_future_is_exactly_zero_in_a_layer(case):
    """5. Of one position's output by the later positions of the layer's input: 0 bit for bit, dropout and norms included."""
    t = int(case.stream("future").integers(case.block))
    p, rng = case.parameters(), case.stream("layer")
    h, dy = rng.standard_normal((2, case.batch, case.block, case.config.width))
    weights, options = model.layer_weights(p, 0), variants.layer_options(case.config)
    masks = transformer_layer.part("layers.0", case.masks())
    y, saved = transformer_layer.forward(h, case.before()[0], weights, options, masks)
    dy[:, np.arange(case.block) != t] = 0
    d_h, _ = transformer_layer.backward(dy, saved)
    assert not d_h[:, t + 1 :].any()
    moved = h.copy()
    moved[:, t + 1 :] = rng.standard_normal(h[:, t + 1 :].shape)
    y_moved, _ = transformer_layer.forward(moved, case.before()[0], weights, options, masks)
    assert_identical({"y": y_moved[:, : t + 1]}, {"y": y[:, : t + 1]})


@given(cases(block=st.integers(2, 6), tie_tables=False), st.booleans())
@example(Case(configuration(), block=2), False)
@example(replace(FULL).changed(cutoffs=(2, 4), divisor=1, tie_projections=True), True)
@examples
def test_the_gradient_of_the_future_is_exactly_zero_in_the_model(case, last):
    """5. A word that stands only after position t, or in other rows, has no gradient from the loss at t: 0 bit for bit.

    With untied tables: a tied one has the word's row of the output as well.
    """
    case = case.changed(tie_tables=False)
    tokens, targets = case.text()
    word = case.config.vocabulary - 1 if last else 0
    other = (word + 1) % case.config.vocabulary
    tokens[tokens == word] = other
    t = int(case.stream("future").integers(case.block - 1))
    tokens[0, t + 1 :] = word
    tokens[1:] = word
    dy = np.zeros((case.batch, case.block))
    dy[0, t] = 1
    d = case.run(tokens=tokens, targets=targets, dy=dy).gradients
    first, name = 0, "input.table"
    for i, (low, end, _) in enumerate(case.config.clusters):
        if low <= word < end:
            first, name = low, f"input.tables.{i}"
    assert not d[name][word - first].any()


@given(cases(normalizer_epsilon=0.0, span=draws.sizes(9), past=st.integers(0, 14), span_ramp=st.integers(1, 3)),
       st.integers(0, 3))
@example(Case(configuration(span=3), past=3), 0)
@example(replace(FULL, past=8).changed(span=8, variant="head-split", norm="pre"), 0)
@examples
def test_any_trimming_of_the_models_past_gives_the_same(case, spare):
    """18. Losses and gradients with a past cut to what the largest span over layers and heads reaches, or anything longer;
    to rounding only, since the projections of a shorter past are other products."""
    p, config = case.parameters(), case.config
    rhos = [p[name] for name in p if name.endswith(".span")]
    reach = config.span if not rhos else min(config.span, int(config.span * np.max(rhos)) + config.span_ramp + 1)
    left = max(0, reach - config.attend_self) + spare
    before, after = case.run(), case.run(past=case.before()[:, :, max(0, case.past - left) :])
    assert_close({"token_loss": after.y.token_loss}, {"token_loss": before.y.token_loss})
    assert_close(after.gradients, before.gradients)


@given(cases(batch=st.integers(1, 5)), st.sets(st.integers(1, 4)))
@example(Case(configuration(), batch=2), {1})
@example(replace(FULL, batch=5).changed(dropout=0.3, embedding_dropout=0.3, cutoffs=(2, 4), divisor=1), {1, 3})
@examples
def test_a_batchs_loss_and_gradient_are_the_mean_of_its_parts(case, bounds):
    """26. Parts of any number of rows, weighted by that number; the penalty, which each part has in full, included."""
    tokens, targets = case.text()
    p, config, past, masks = case.parameters(), case.config, case.before(), case.masks()
    out = model.forward(p, config, tokens, targets, past, masks)
    loss, total = 0.0, p.zeros_like()
    for rows in parts_of(case.batch, bounds):
        part = model.forward(p, config, tokens[rows], targets[rows], past[:, rows], cut(masks, slice(None), rows))
        share = len(part.token_loss) / case.batch
        loss = loss + share * (part.loss + part.span_penalty)
        total.vector += share * model.backward(part.saved).vector
    assert_close({"loss": loss}, {"loss": out.loss + out.span_penalty})
    assert_close(total, model.backward(out.saved))
