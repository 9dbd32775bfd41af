"""The functions of layers/ below and beside the attention, by name."""

from functools import partial
from typing import Any

from refimpl import variants
from refimpl.arrays import array_module
from refimpl.functions.forms import Arrays, Function, Results, Settings, number, numbered, simple
from refimpl.layers import (
    adaptive_input,
    adaptive_softmax,
    dropout,
    embedding,
    feed_forward,
    ff_attention,
    layer_norm,
    linear,
    masked_softmax,
    persistent_attention,
    positions,
    softmax,
    softmax_loss,
    span,
    windows,
)

PERSISTENT = ("queries", "memory_keys", "memory_values")


def _dropout_forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    y, saved = dropout.forward(inputs["x"], inputs["keep"], settings["rate"])
    return {"y": y}, saved


def _inner(module: Any) -> Function:
    """feed_forward.py or ff_attention.py."""
    names = module.Weights._fields

    def forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
        weights = module.Weights(*(inputs[name] for name in names))
        y, saved = module.forward(inputs["h"], weights, inputs.get("keep"), settings.get("rate", 0.0))
        return {"y": y}, saved

    def backward(d: Arrays, saved: Any) -> Results:
        d_h, of_weights = module.backward(d["y"], saved)
        return {"h": d_h, **of_weights._asdict()}

    return Function(forward, backward)


def _masked_softmax_forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    present = inputs["present"]
    attention, saved = masked_softmax.forward(inputs["logits"], inputs["weight"] * present, present, settings["epsilon"])
    return {"attention": attention}, (saved, present)


def _masked_softmax_backward(d: Arrays, saved: Any) -> Results:
    d_logits, d_weight = masked_softmax.backward(d["attention"], saved[0])
    return {"logits": d_logits, "weight": d_weight * saved[1]}


def _persistent_forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    queries, memory_keys, memory_values = (inputs[name] for name in PERSISTENT)
    keep, rate = inputs.get("keep"), settings.get("rate", 0.0)
    y, saved = persistent_attention.forward(queries, memory_keys, memory_values, keep, rate)
    return {"y": y}, saved


def _persistent_backward(d: Arrays, saved: Any) -> Results:
    return dict(zip(PERSISTENT, persistent_attention.backward(d["y"], saved), strict=True))


def _adaptive_input_forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    x, saved = adaptive_input.forward(inputs["tokens"], numbered(inputs, "tables"), numbered(inputs, "projections"))
    return {"x": x}, saved


def _adaptive_input_backward(d: Arrays, saved: Any) -> Results:
    tables, projections = adaptive_input.backward(d["x"], saved)
    return number("tables", tables) | number("projections", projections)


def _adaptive_softmax_forward(path: str, settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    """Biases that are not among the inputs are 0, a projection of the head that is not is the identity."""
    tables, hidden = numbered(inputs, "tables"), inputs["hidden"]
    xp = array_module(inputs)
    biases = [inputs.get(f"biases.{i}", xp.zeros(len(table), table.dtype)) for i, table in enumerate(tables)]
    projections = [inputs[f"projections.{i}"] for i in range(1, len(tables))]
    first = inputs.get("projections.0", xp.eye(hidden.shape[-1], dtype=hidden.dtype))
    cluster_bias = inputs.get("cluster_bias", xp.zeros(len(tables) - 1, hidden.dtype))
    weights = adaptive_softmax.Weights(tables, biases, [first, *projections], inputs["cluster_table"], cluster_bias)
    module = variants.softmax_core(variants.attention_core(path, *inputs.values()))
    loss, saved = module.forward(hidden, inputs["targets"], weights, settings["cluster_order"])
    return {"loss": loss}, (module, saved, set(inputs))


def _adaptive_softmax_backward(d: Arrays, saved: Any) -> Results:
    module, of_module, inputs = saved
    d_hidden, of_weights = module.backward(d["loss"], of_module)
    lists = number("tables", of_weights.tables) | number("biases", of_weights.biases)
    lists |= number("projections", of_weights.projections)
    ends = {"cluster_table": of_weights.cluster_table, "cluster_bias": of_weights.cluster_bias}
    return {"hidden": d_hidden, **{name: array for name, array in (lists | ends).items() if name in inputs}}


def of_adaptive_softmax(path: str) -> Function:
    """path: which softmax computes it, as variants.softmax_core has it."""
    return Function(partial(_adaptive_softmax_forward, path), _adaptive_softmax_backward)


BASIC = {
    "linear": simple(linear, "x", "weight", "bias"),
    "layer-norm": simple(layer_norm, "x", "gain", "bias"),
    "dropout": Function(_dropout_forward, lambda d, saved: {"x": dropout.backward(d["y"], saved)}),
    "embedding": simple(embedding, "table", "tokens", output="x"),
    "softmax": simple(softmax, "logits", output="attention"),
    "softmax-loss": simple(softmax_loss, "logits", "targets", output="loss"),
    "relu": simple(feed_forward, "x", part="relu_"),
    "feed-forward": _inner(feed_forward),
    "ff-attention": _inner(ff_attention),
    "span-mask": simple(span, "rho", output="mask", part="mask_"),
    "span-penalty": simple(span, "rho", output="penalty", part="penalty_"),
    "relative-positions": simple(positions, "queries", "table", output="scores", part="relative_"),
    "projected-positions": simple(positions, "weight", output="table", part="projected_"),
    "context-scores": simple(windows, "queries", "keys", output="scores", part="scores_"),
    "context-mix": simple(windows, "weights", "values", part="mix_"),
    "masked-softmax": Function(_masked_softmax_forward, _masked_softmax_backward),
    "persistent-attention": Function(_persistent_forward, _persistent_backward),
    "adaptive-input": Function(_adaptive_input_forward, _adaptive_input_backward),
    "adaptive-softmax": of_adaptive_softmax("textbook"),
}
