"""The functions of layers/ below and beside the attention, by name."""

from typing import Any

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


def _adaptive_softmax_forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    tables, biases, projections = (numbered(inputs, name) for name in ("tables", "biases", "projections"))
    weights = adaptive_softmax.Weights(tables, biases, projections, inputs["cluster_table"], inputs["cluster_bias"])
    loss, saved = adaptive_softmax.forward(inputs["hidden"], inputs["targets"], weights, settings["cluster_order"])
    return {"loss": loss}, saved


def _adaptive_softmax_backward(d: Arrays, saved: Any) -> Results:
    d_hidden, of_weights = adaptive_softmax.backward(d["loss"], saved)
    lists = number("tables", of_weights.tables) | number("biases", of_weights.biases)
    lists |= number("projections", of_weights.projections)
    return {"hidden": d_hidden, **lists, "cluster_table": of_weights.cluster_table, "cluster_bias": of_weights.cluster_bias}


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
    "adaptive-softmax": Function(_adaptive_softmax_forward, _adaptive_softmax_backward),
}
