"""Every pair of refimpl/layers, and the model, in one form.

forward(*arguments) -> (y, saved), backward(dy, saved) -> gradients in the arguments' order. What has no gradient (tokens,
masks, the past, constants) is bound.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import refimpl
from refimpl import model, variants
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


class Pair(NamedTuple):
    """A function of arrays with its gradient."""

    arguments: list[Any]
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Any, Any], list[Any]]


def names_in_the_package():
    """module or module.function for every pair: forward and backward, or x_forward and x_backward."""
    found = set()
    for path in (Path(refimpl.__file__).parent / "layers").glob("*.py"):
        functions = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body
                     if isinstance(node, ast.FunctionDef)}
        for name in functions:
            match = re.fullmatch(r"([a-z]\w*_)?forward", name)
            if match and f"{match[1] or ''}backward" in functions:
                found.add(".".join(filter(None, [path.stem, (match[1] or "").removesuffix("_")])))
    return found


def all_pairs(case, model_case, vocabulary, wide, clusters):
    """Every pair by name. case: an AttentionCase with N ≥ 1; model_case gives the layer, its attention and the model."""
    return {
        **small_pairs(case, vocabulary, wide), **softmax_pairs(case, vocabulary), **attention_pairs(case),
        **cluster_pairs(case, clusters), **layer_pairs(model_case), "model": model_pair(model_case),
    }


def small_pairs(case, vocabulary, wide):
    rng, width, rate = case.stream("small"), case.width * case.heads, 0.4
    rows = (case.batch, case.block, width)
    x, tokens = rng.standard_normal(rows), rng.integers(vocabulary, size=rows[:2])
    keep, keep_wide = rng.random(rows) >= rate, rng.random((*rows[:2], wide)) >= rate
    weights = [rng.standard_normal(shape) for shape in ((wide, width), (wide,), (width, wide), (width,))]
    return {
        "linear": Pair([x, *weights[:2]], linear.forward, linear.backward),
        "dropout": Pair([x], lambda x: dropout.forward(x, keep, rate), lambda dy, saved: [dropout.backward(dy, saved)]),
        "embedding": Pair([rng.standard_normal((vocabulary, width))], lambda table: embedding.forward(table, tokens),
                          lambda dy, saved: [embedding.backward(dy, saved)]),
        "layer_norm": Pair([x, weights[2][:, 0], weights[3]], layer_norm.forward, layer_norm.backward),
        "feed_forward.relu": Pair([x], feed_forward.relu_forward,
                                  lambda dy, saved: [feed_forward.relu_backward(dy, saved)]),
        "feed_forward": weighted_pair(feed_forward, x, weights, keep_wide, rate),
        "ff_attention": weighted_pair(ff_attention, x, weights[::2], keep_wide, rate),
    }


def weighted_pair(module, x, weights, keep, rate):
    """A feed-forward: d_h and a tuple of gradients."""

    def backward(dy, saved):
        d_h, gradients = module.backward(dy, saved)
        return [d_h, *gradients]

    return Pair([x, *weights], lambda x, *given: module.forward(x, module.Weights(*given), keep, rate), backward)


def softmax_pairs(case, vocabulary):
    """Softmaxes, spans, windows and positions."""
    rng = case.stream("softmaxes")
    logits, targets = rng.standard_normal((case.batch, case.block, vocabulary)), rng.integers(
        vocabulary, size=(case.batch, case.block))
    present = np.arange(vocabulary) < rng.integers(1, vocabulary + 1)
    weight = np.where(rng.random(logits.shape) < 0.3, 0.0, rng.random(logits.shape)) * present
    weight[..., 0] = 1
    rho = case.arguments().rho if case.spans != "none" else rng.random(case.context_heads)
    queries, keys, values = case.arguments()[:3]
    weights = rng.standard_normal((case.batch, case.heads, case.block, case.size))
    width = case.width * case.heads
    return {
        "softmax": Pair([logits], softmax.forward, lambda dy, saved: [softmax.backward(dy, saved)]),
        "softmax_loss": Pair([logits], lambda logits: softmax_loss.forward(logits, targets),
                             lambda dy, saved: [softmax_loss.backward(dy, saved)]),
        "masked_softmax": Pair(
            [logits, weight], lambda logits, weight: masked_softmax.forward(logits, weight * present, present, case.epsilon),
            lambda dy, saved: (lambda d_logits, d_weight: [d_logits, d_weight * present])(
                *masked_softmax.backward(dy, saved))),
        "span.mask": Pair([rho], lambda rho: span.mask_forward(rho, case.size, case.ramp),
                          lambda dy, saved: [span.mask_backward(dy, saved)]),
        "span.penalty": Pair([rho], lambda rho: span.penalty_forward(rho, case.size, 0.3),
                             lambda dy, saved: [span.penalty_backward(dy, saved)]),
        "windows.scores": Pair([queries, keys], lambda *given: windows.scores_forward(*given, case.size, case.attend_self),
                               windows.scores_backward),
        "windows.mix": Pair([weights, values], lambda *given: windows.mix_forward(*given, case.attend_self),
                            windows.mix_backward),
        "positions.relative": Pair([queries, rng.standard_normal((case.size, case.width))], positions.relative_forward,
                                   positions.relative_backward),
        "positions.projected": Pair(
            [rng.standard_normal((width, width))],
            lambda weight: positions.projected_forward(weight, case.size, 1 - case.attend_self, case.width),
            lambda dy, saved: [positions.projected_backward(dy, saved)]),
    }


def attention_pairs(case):
    """The joint, the split and the head-split attention, and the persistent one; head-split has a head more."""
    rng, arguments = case.stream("persistent"), case.arguments()
    keep = case.keep()[1]
    modules = {"attention": attention, "tiled_attention": tiled_attention, "split_attention": split_attention,
               "head_split": head_split}
    pairs = {}
    for name, module in modules.items():
        of_core = case
        if module is head_split:
            of_core = type(case)(**{**vars(case), "core": "head-split", "heads": case.heads + 1})
        pairs[name] = attention_pair(module, of_core)
    memory = rng.standard_normal((2, *case.memory_shape))
    pairs["persistent_attention"] = Pair(
        [arguments.queries, *memory],
        lambda queries, mu, nu: persistent_attention.forward(queries, mu, nu, keep, case.dropout),
        persistent_attention.backward)
    return pairs


def attention_pair(module, case):
    """One of the attentions as a function of those arguments that are there; of complex ones the tiled is the textbook."""
    present = {name: array for name, array in case.arguments()._asdict().items() if array is not None}

    def forward(*given):
        core = variants.attention_core("tiled", *given) if module is tiled_attention else module
        return core.forward(attention.Arguments(**dict(zip(present, given, strict=True))), case.options, *case.keep())

    def backward(dy, saved):
        gradients = module.backward(dy, saved)
        return [getattr(gradients, name) for name in present]

    return Pair(list(present.values()), forward, backward)


def cluster_pairs(case, sizes):
    """Adaptive input and softmax over clusters of these sizes, of width 4, 2, 1, …"""
    rng, width, n = case.stream("clusters"), 4, len(sizes)
    widths = [max(1, width >> i) for i in range(n)]
    tables = [rng.standard_normal((size, narrow)) for size, narrow in zip(sizes, widths, strict=True)]
    projections = [rng.standard_normal((width, narrow)) for narrow in widths]
    biases = [rng.standard_normal(size) for size in sizes]
    tokens = rng.integers(sum(sizes), size=(case.batch, case.block))
    hidden, heads = rng.standard_normal((case.batch, case.block, width)), [
        rng.standard_normal((n - 1, width)), rng.standard_normal(n - 1)]

    def score_pair(core):
        """The textbook's; with the tiled attention that in chunks, which of complex arguments is the textbook's."""

        def score(hidden, *given):
            weights = adaptive_softmax.Weights(given[:n], given[n : 2 * n], given[2 * n : 3 * n], *given[3 * n :])
            module = variants.softmax_core(variants.attention_core(core, hidden, *given))
            return module.forward(hidden, tokens, weights, "reversed" if case.seed % 2 else "ascending")

        def score_backward(dy, saved):
            d_hidden, d = (fused_softmax if core == "tiled" else adaptive_softmax).backward(dy, saved)
            return [d_hidden, *d.tables, *d.biases, *d.projections, d.cluster_table, d.cluster_bias]

        return Pair([hidden, *tables, *biases, *projections, *heads], score, score_backward)

    def embed_backward(dy, saved):
        d_tables, d_projections = adaptive_input.backward(dy, saved)
        return [*d_tables, *d_projections]

    return {
        "adaptive_input": Pair([*tables, *projections],
                               lambda *given: adaptive_input.forward(tokens, given[:n], given[n:]), embed_backward),
        "adaptive_softmax": score_pair("textbook"), "fused_softmax": score_pair("tiled"),
    }


def layer_pairs(case):
    """A layer of a model, and its attention."""
    rng, p = case.stream("layer"), case.parameters()
    options, weights = variants.layer_options(case.config), model.layer_weights(p, 0)
    masks, past = transformer_layer.part("layers.0", case.masks()), case.before()[0]
    h = rng.standard_normal((case.batch, case.block, case.config.width))

    def named(forward, weights):
        def run(x, *given):
            return forward(x, dict(zip(weights, given, strict=True)))

        return run

    def backward_of(module, weights):
        def run(dy, saved):
            d_x, gradients = module.backward(dy, saved)
            return [d_x, *(gradients[name] for name in weights)]

        return run

    of_attention = transformer_layer.part("attention", weights)
    context = np.concatenate([past, h], axis=1)
    return {
        "multi_head": Pair(
            [context, *of_attention.values()],
            named(lambda x, given: multi_head.forward(x, case.block, given, options.attention, masks), of_attention),
            backward_of(multi_head, of_attention)),
        "transformer_layer": Pair(
            [h, *weights.values()],
            named(lambda x, given: transformer_layer.forward(x, past.astype(x.dtype), given, options, masks), weights),
            backward_of(transformer_layer, weights)),
    }


def model_pair(case):
    """Token losses by the flat vector; without the penalty, whose gradient doesn't depend on dy."""
    case = case.changed(span_penalty=0.0)
    p, (tokens, targets), past, masks = case.parameters(), case.text(), case.before(), case.masks()

    def forward(vector):
        out = model.forward(p.with_vector(vector), case.config, tokens, targets, past.astype(vector.dtype), masks)
        return out.token_loss, out.saved

    return Pair([p.vector], forward, lambda dy, saved: [model.backward(saved, dy).vector])
