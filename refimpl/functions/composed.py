"""The attentions, the sublayers around them, and whole models, by name."""

from functools import partial
from typing import Any

from refimpl import model, optimizers, parameters, variants
from refimpl.arrays import array_module
from refimpl.config import ModelConfig, TrainConfig
from refimpl.functions.forms import Arrays, Function, Results, Settings
from refimpl.layers import attention, feed_forward, multi_head, transformer_layer

MASKS = {"keep": "attention", "keep_memory": "memory", "keep_feed_forward": "feed_forward"}


def _attention(path: str, variant: str) -> Function:
    """The attention of a variant; settings are attention.Options."""

    def forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
        arguments = attention.Arguments(*(inputs.get(name) for name in attention.Arguments._fields))
        core = variants.attention_of(variant, variants.attention_core(path, *inputs.values()))
        y, saved = core.forward(arguments, attention.Options(**settings), inputs.get("keep"), inputs.get("keep_memory"))
        return {"y": y}, (core, saved)

    def backward(d: Arrays, saved: Any) -> Results:
        core, of_core = saved
        gradients = core.backward(d["y"], of_core)._asdict()
        return {name: gradient for name, gradient in gradients.items() if gradient is not None}

    return Function(forward, backward)


def _options(path: str, settings: Settings, inputs: Arrays) -> transformer_layer.Options:
    """Of variant, head_width, norm, and attention.Options among the settings."""
    config = {name: settings[name] for name in attention.Options._fields if name in settings}
    core = variants.attention_of(settings["variant"], variants.attention_core(path, *inputs.values()))
    of_heads = multi_head.Options(core, settings["head_width"], attention.Options(**config))
    inner = variants.FEED_FORWARDS.get(settings["variant"], feed_forward)
    return transformer_layer.Options(of_heads, inner, settings.get("norm") == "pre")


def _masks(inputs: Arrays) -> Results:
    return {MASKS[name]: inputs[name] for name in MASKS if name in inputs}


def _multi_head_forward(path: str, settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    weights = {name: array for name, array in inputs.items() if name != "context"}
    options = _options(path, settings, inputs).attention
    out, saved = multi_head.forward(inputs["context"], settings["block"], weights, options, _masks(inputs))
    return {"out": out}, saved


def _multi_head_backward(d: Arrays, saved: Any) -> Results:
    d_context, gradients = multi_head.backward(d["out"], saved)
    return {"context": d_context, **gradients}


def _layer_forward(path: str, settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    weights = {name: array for name, array in inputs.items() if "." in name}
    past = inputs["past"].astype(inputs["h"].dtype)
    h, saved = transformer_layer.forward(inputs["h"], past, weights, _options(path, settings, inputs), _masks(inputs))
    return {"y": h}, saved


def _layer_backward(d: Arrays, saved: Any) -> Results:
    d_h, gradients = transformer_layer.backward(d["y"], saved)
    return {"h": d_h, **gradients}


def _model_forward(path: str, settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    """Segments (G, B, T) one after another, each with the past that the one before left; token_loss is the last one's."""
    config = ModelConfig(**settings)
    p = {spec.name: inputs[spec.name] for spec in parameters.specification(config)}
    dtype = array_module(inputs).result_type(*p.values())
    masks = {name.removeprefix("keep."): array for name, array in inputs.items() if name.startswith("keep.")}
    past, losses = inputs["past"].astype(dtype), []
    core = variants.attention_core(path, *inputs.values())
    for tokens, targets in zip(inputs["tokens"], inputs["targets"], strict=True):
        out = model.forward(p, config, tokens, targets, past, masks, core=core)
        past = out.past
        losses.append(out.token_loss)
    *earlier, last = losses
    results = {"token_loss": last, "span_penalty": array_module(inputs).asarray(out.span_penalty, dtype), "past": past}
    return results | {f"token_loss.{i}": loss for i, loss in enumerate(earlier)}, out.saved


def _model_backward(d: Arrays, saved: Any) -> Results:
    """Of Σ d · token_loss + span_penalty, by every parameter; no gradient goes into the past."""
    return dict(model.backward(saved, d["token_loss"]).items())


def _optimizer_forward(settings: Settings, inputs: Arrays) -> tuple[Results, Any]:
    """Parameters after one update for each row of gradient.NAME (K, …), and the rate of each."""
    config, train_config = ModelConfig(**settings["model"]), TrainConfig(**settings["train"])
    names = [spec.name for spec in parameters.specification(config)]
    xp = array_module(inputs)
    p = parameters.Parameters(config, xp.concatenate([inputs[name].reshape(-1) for name in names]))
    state, rates = optimizers.initialize(train_config, p), []
    for number in range(len(inputs[f"gradient.{names[0]}"])):
        gradients = [inputs[f"gradient.{name}"][number].reshape(-1) for name in names]
        optimizers.update(p, p.with_vector(xp.concatenate(gradients)), state, train_config)
        rates.append(optimizers.learning_rate(train_config, number + 1))
    return {**p, "learning_rate": xp.asarray(rates, p.vector.dtype)}, None


def composed(path: str) -> dict[str, Function]:
    """All of them; path: which attention computes them, as variants.attention_core has it."""
    attentions = {name: _attention(path, name) for name in ("all-attention", "attention-split", "single-head", "head-split")}
    return attentions | {
        "attention-layer": Function(partial(_multi_head_forward, path), _multi_head_backward),
        "transformer-layer": Function(partial(_layer_forward, path), _layer_backward),
        "model": Function(partial(_model_forward, path), _model_backward),
        "optimizer": Function(_optimizer_forward, lambda d, saved: {}),
    }
