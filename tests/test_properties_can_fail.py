"""Tests of the properties: all thirty are there, and every test of one fails under an error planted in the package."""

import ast
import importlib.util
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from refimpl import inputs, model
from refimpl.arrays import is_device
from refimpl.layers import (
    adaptive_input,
    adaptive_softmax,
    attention,
    dropout,
    embedding,
    layer_norm,
    masked_softmax,
    multi_head,
    positions,
    softmax_loss,
    span,
    windows,
)

HERE = Path(__file__).parent


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FILES = {path.stem.removeprefix("test_properties_"): sibling(path.stem) for path in HERE.glob("test_properties_*.py")
         if path.stem != "test_properties_can_fail"}
CORE, MODEL, DEVICE = FILES["attention"].FULL, FILES["model"].FULL, FILES["device"].FULL
WORDS, PAIRS = FILES["output"].FULL, FILES["arrays"].FULL
ALONE = FILES["attention"].Case(slots=0, attend_self=True)


class Plant(NamedTuple):
    """A property's test with arguments under which `wrong(right)` in place of module.name makes it fail."""

    file: str
    test: str
    arguments: tuple[Any, ...]
    module: Any
    name: str
    wrong: Callable[[Any], Any]
    error: type[Exception] = AssertionError


def heads_interleaved(right):
    def wrong(x, weight, head_width):
        y, saved = right(x, weight, head_width)
        return y.reshape(*y.shape[:2], head_width, -1).swapaxes(-1, -2), saved

    return wrong


def padded_at_the_end(right):
    def wrong(rows, block, size, attend_self):
        window, first = right(rows, block, size, attend_self)
        return np.roll(window, min(0, first), axis=2), first

    return wrong


def last_slot_lighter(right):
    def wrong(logits, weight, *rest):
        return right(logits, np.concatenate([weight[..., :-1], 0.9 * weight[..., -1:]], -1), *rest)

    return wrong


def contexts_constant_lost(right):
    def wrong(logits, *rest):
        context, memory = logits[..., : CORE.size], logits[..., CORE.size :]
        return right(np.concatenate([context - context.max(-1, keepdims=True), memory], -1), *rest)

    return wrong


def empty_tails_keep_their_share(_):
    def wrong(weights, _):
        return (np.concatenate([weights.tables[0], weights.cluster_table]),
                np.concatenate([weights.biases[0], weights.cluster_bias]))

    return wrong


def tied_gradient_overwritten(right):
    def wrong(g, *rest):
        for name in g:
            if name.startswith("input."):
                g[name][...] = 0
        right(g, *rest)

    return wrong


def without_projection_on_x_hat(_):
    def wrong(dy, saved):
        d = saved.gain * dy
        return ((d - d.mean(-1, keepdims=True)) * saved.inverse_deviation, (dy * saved.normalized).sum((0, 1)),
                dy.sum((0, 1)))

    return wrong


def epsilon_on_the_deviation(_):
    def wrong(x, gain, bias, epsilon=1e-5):
        centred = x - x.mean(-1, keepdims=True)
        inverse = 1 / (np.sqrt((centred * centred).mean(-1, keepdims=True)) + epsilon)
        return gain * centred * inverse + bias, layer_norm.Saved(centred * inverse, inverse, gain)

    return wrong


def changes_its_argument(right):
    def wrong(x, *rest):
        x -= x.mean(-1, keepdims=True)
        return right(x, *rest)

    return wrong


def changes_what_was_saved(right):
    def wrong(dy, saved):
        result = right(dy, saved)
        saved.normalized[...] *= 1 + 1e-9
        return result

    return wrong


def first_result(change):
    """A function whose result, or first result, is changed."""

    def plant(right):
        def wrong(*arguments):
            result = right(*arguments)
            return (change(result[0]), *result[1:]) if isinstance(result, tuple) else change(result)

        return wrong

    return plant


def argument(index, change):
    """A function that takes one of its arguments changed."""

    def plant(right):
        def wrong(*arguments):
            return right(*arguments[:index], change(arguments[index]), *arguments[index + 1 :])

        return wrong

    return plant


def numpy_always(_):
    return lambda _: np


def another_each_time(right):
    calls = count()

    def wrong(x, *rest):
        y, saved = right(x, *rest)
        return y * (1 + 1e-12 * next(calls)), saved

    return wrong


def in_single(factor):
    return first_result(lambda y: y * np.float32(factor) if np.asarray(y).dtype == np.float32 else y)


NARROW = replace(MODEL, past=8, spans="zero").changed(span=8)
PLANTS = {
    "past one too short": Plant(
        "model", "test_segments_equal_one_long_sequence",
        (replace(MODEL, block=12, spans="none").changed(adaptive_span=False, span_penalty=0.0), {5}),
        model, "extend_past", first_result(lambda past: past[:, :, 1:])),
    "a slot of its own weight": Plant(
        "attention", "test_persistent_vectors_permute_freely", (CORE,), masked_softmax, "forward", last_slot_lighter),
    "heads interleaved": Plant(
        "model", "test_heads_permute_with_the_output_projection", (MODEL,), multi_head, "project", heads_interleaved),
    "norm over the batch": Plant(
        "model", "test_rows_of_the_batch_are_independent", (MODEL,), layer_norm, "forward",
        argument(0, lambda x: x - 0.01 * x.mean(0))),
    "self attended": Plant(
        "attention", "test_the_gradient_of_the_future_is_exactly_zero", (replace(CORE, past=1),), windows, "_window",
        argument(3, lambda attend_self: attend_self + 1)),
    "self attended in the layer": Plant(
        "model", "test_the_gradient_of_the_future_is_exactly_zero_in_a_layer", (MODEL.changed(attend_self=True),), windows,
        "_window", argument(3, lambda attend_self: attend_self + 1)),
    "every word has a gradient": Plant(
        "model", "test_the_gradient_of_the_future_is_exactly_zero_in_the_model", (MODEL, True), embedding, "backward",
        first_result(lambda d_table: d_table + 1e-300)),
    "ramp one too long": Plant(
        "attention", "test_nothing_beyond_the_span_and_its_ramp_matters", (replace(CORE, past=9, size=8, spans="kink"),),
        span, "mask_forward", argument(2, lambda ramp: ramp + 1)),
    "not shift-invariant": Plant(
        "attention", "test_a_constant_added_to_a_rows_logits_changes_no_bit", (3, 4, 20, 0.0), masked_softmax, "forward",
        argument(0, np.arctan)),
    "separate softmaxes": Plant(
        "attention",
        "test_a_constant_on_all_logits_changes_nothing_and_on_the_contexts_only_moves_the_joint_softmax", (CORE, 1.0),
        masked_softmax, "forward", contexts_constant_lost),
    "half the span": Plant(
        "attention", "test_a_full_span_equals_none", (replace(CORE, spans="full", past=6),), span, "mask_forward",
        argument(0, lambda rho: rho / 4)),
    "normaliser's ε left out": Plant(
        "attention", "test_weights_sum_to_the_masked_share", (replace(CORE, epsilon=1e-8),), masked_softmax, "forward",
        argument(3, lambda epsilon: 0.0)),
    "weights of a sum above 1": Plant(
        "attention", "test_outputs_lie_in_the_hull_of_what_was_seen", (ALONE,), masked_softmax, "forward",
        first_result(lambda a: a * (1 + 1e-6))),
    "√N missing": Plant(
        "attention", "test_a_duplicated_persistent_vector_is_a_logit_more_by_ln_2", (CORE,), attention, "square_root",
        argument(0, lambda number: 1)),
    "1/√D in place of 1/√E": Plant(
        "attention", "test_without_persistent_vectors_it_is_plain_attention", (replace(CORE, slots=0),), attention,
        "square_root", argument(0, lambda number: 3 * number)),
    "logits held from below": Plant(
        "attention", "test_a_logit_of_minus_infinity_removes_the_slot", (CORE,), masked_softmax, "forward",
        argument(0, lambda logits: np.maximum(logits, -300))),
    "infinite logits held from below": Plant(
        "attention", "test_minus_infinity_itself_removes_a_slot_of_the_softmax", (1, 3, 0.1), masked_softmax, "forward",
        argument(0, lambda logits: np.maximum(logits, -300))),
    "values with a constant": Plant(
        "attention", "test_linear_in_the_values", (CORE,), windows, "mix_forward", first_result(lambda y: y + 1e-6)),
    "cotangent with a constant": Plant(
        "arrays", "test_every_backward_is_linear_in_its_cotangent", (PAIRS,), softmax_loss, "backward",
        first_result(lambda d_logits: d_logits + 1e-6)),
    "norm's second term missing": Plant(
        "arrays", "test_every_backward_is_the_adjoint_of_its_forwards_derivative", (PAIRS,), layer_norm, "backward",
        without_projection_on_x_hat),
    "1/H missing in the penalty's gradient": Plant(
        "arrays", "test_the_models_gradient_is_the_adjoint_with_its_penalty", (PAIRS[1],), span, "penalty_backward",
        first_result(lambda d_rho: d_rho * len(d_rho))),
    "past not seen": Plant(
        "attention", "test_any_tiles_give_the_same", (replace(CORE, block=5, past=6), 2), windows, "exists",
        argument(1, lambda past: 0)),
    "trimming shifts the positions": Plant(
        "attention", "test_any_trimming_of_the_past_gives_the_same_bits", (replace(CORE, past=9, size=8, spans="zero"), 0),
        windows, "_window", padded_at_the_end),
    "trimming shifts the model's positions": Plant(
        "model", "test_any_trimming_of_the_models_past_gives_the_same", (NARROW, 0), windows, "_window", padded_at_the_end),
    "ramp's sign": Plant(
        "attention", "test_the_mask_grows_with_the_span", (5, 8, 2, 3, "random"), span, "mask_forward",
        argument(0, lambda rho: 1 - rho)),
    "penalty of the squared span": Plant(
        "attention", "test_the_mask_grows_with_the_span", (5, 8, 2, 3, "random"), span, "penalty_forward",
        argument(0, lambda rho: rho * rho)),
    "one slot for all tails": Plant(
        "output", "test_adaptive_probabilities_sum_to_one", (1, 3, [2, 1], "reversed"), adaptive_softmax, "cluster_slots",
        lambda right: lambda *given: right(*given)[:1] * len(right(*given))),
    "logarithms shifted": Plant(
        "output", "test_the_models_probabilities_sum_to_one", (WORDS,), softmax_loss, "log_softmax",
        first_result(lambda log_p: log_p + 1e-9)),
    "bias left out": Plant(
        "output", "test_one_cluster_is_a_softmax", (1, 5, "ascending"), adaptive_softmax, "_logits",
        argument(3, lambda bias: 0 * bias)),
    "empty tails keep their share": Plant(
        "output", "test_an_empty_tail_changes_nothing", (1, 2, [2, 3], "ascending", 1), adaptive_softmax, "_head",
        empty_tails_keep_their_share),
    "clusters of the input counted": Plant(
        "output", "test_an_empty_cluster_of_the_input_changes_nothing", (1, 2, [2, 3], 1), adaptive_input, "forward",
        lambda right: lambda tokens, tables, projections: (
            lambda x, saved: (x * len(tables), saved))(*right(tokens, tables, projections))),
    "a word's place counts": Plant(
        "output", "test_words_of_a_cluster_may_be_relabelled", (WORDS,), softmax_loss, "log_softmax",
        argument(0, lambda logits: logits + 1e-6 * np.arange(logits.shape[-1]))),
    "tied gradient overwritten": Plant(
        "output", "test_a_tied_gradient_is_the_sum_of_the_untied", (WORDS.changed(tie_tables=True),), model,
        "_embed_backward", tied_gradient_overwritten),
    "norm's gradient along its output": Plant(
        "output", "test_layer_norm_is_invariant_up_to_its_epsilon", (1, 2, 8, 1.0, 2.0, 1e-5), layer_norm, "backward",
        without_projection_on_x_hat),
    "ε added to the deviation": Plant(
        "output", "test_layer_norm_is_invariant_up_to_its_epsilon", (1, 2, 8, 1.0, 2.0, 1e-5), layer_norm, "forward",
        epsilon_on_the_deviation),
    "sum over the batch, not mean": Plant(
        "model", "test_a_batchs_loss_and_gradient_are_the_mean_of_its_parts", (MODEL, {1}), model, "forward",
        lambda right: lambda *given: (lambda out: out._replace(loss=out.loss * len(out.token_loss)))(right(*given))),
    "float32 with an error of 1e-4": Plant(
        "arrays", "test_an_attention_in_float32_is_within_its_bound", (replace(PAIRS[0], spans="random"),), attention,
        "square_root", in_single(1.0001)),
    "a model's float32 with an error of 1e-4": Plant(
        "arrays", "test_a_model_in_float32_is_within_its_bound", (PAIRS[1],), layer_norm, "forward", in_single(1.0001)),
    "NumPy on the device": Plant(
        "device", "test_the_model_on_the_device_gives_the_same_bits", (DEVICE,), masked_softmax, "module_of",
        numpy_always, TypeError),
    "another bit on the device": Plant(
        "device", "test_the_model_on_the_device_gives_the_same_bits", (DEVICE,), layer_norm, "forward",
        first_result(lambda y: y * (1 + 2**-52) if is_device(y) else y)),
    "past on the host": Plant(
        "device", "test_the_first_past_is_made_on_the_device", (), inputs, "module_of", numpy_always),
    "argument changed": Plant(
        "arrays", "test_arguments_stay_as_they_are_and_results_repeat", (PAIRS,), layer_norm, "forward",
        changes_its_argument, ValueError),
    "what was saved changed": Plant(
        "arrays", "test_arguments_stay_as_they_are_and_results_repeat", (PAIRS,), layer_norm, "backward",
        changes_what_was_saved),
    "another dropout mask each time": Plant(
        "arrays", "test_arguments_stay_as_they_are_and_results_repeat", (PAIRS,), dropout, "forward",
        another_each_time),
    "coordinates of positions unlike": Plant(
        "attention", "test_queries_keys_and_positions_rotate_together", (CORE,), positions, "relative_forward",
        argument(1, lambda table: table * (1 + 1e-6 * np.arange(table.shape[-1])))),
}


def numbered_tests():
    """(file, test): number, of every property."""
    found = {}
    for file in FILES:
        for node in ast.parse((HERE / f"test_properties_{file}.py").read_text(encoding="utf-8")).body:
            number = re.match(r"(\d+)\. ", (isinstance(node, ast.FunctionDef) and ast.get_docstring(node)) or "")
            if number and node.name.startswith("test_"):
                found[file, node.name] = int(number[1])
    return found


def test_all_thirty_properties_are_there():
    assert set(numbered_tests().values()) == set(range(1, 31))


def test_an_error_is_planted_for_every_propertys_test():
    assert {(plant.file, plant.test) for plant in PLANTS.values()} == set(numbered_tests())


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_error_makes_the_property_fail(monkeypatch, name):
    plant = PLANTS[name]
    test = getattr(FILES[plant.file], plant.test)
    inner = test.hypothesis.inner_test if hasattr(test, "hypothesis") else test
    inner(*plant.arguments)
    monkeypatch.setattr(plant.module, plant.name, plant.wrong(getattr(plant.module, plant.name)))
    with pytest.raises(plant.error):
        inner(*plant.arguments)
