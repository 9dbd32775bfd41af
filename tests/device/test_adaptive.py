"""Adaptive input and softmax on the device beside the textbook on the host: values, gradients, what they wait for, hold."""

from dataclasses import dataclass, replace
from pathlib import Path

import cuda_on_cpu
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stand_in import cupy, under_asan

from refimpl import evaluation, model, optimizers, parameters, training, variants
from refimpl.arrays import kernel_source
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import adaptive_softmax as on_device
from refimpl.errors import InputError
from refimpl.layers import adaptive_input, adaptive_softmax

WITHIN = {"float32": 5e-5, "float64": 1e-11}


@dataclass(frozen=True)
class Case:
    """Clusters of these sizes; of each word's rows as many as there are, or those of one cluster alone."""

    sizes: tuple = (7, 3, 5)
    rows: int = 20
    width: int = 6
    divisor: int = 2
    order: str = "ascending"
    only: int | None = None
    seed: int = 0
    scale: float = 1.0

    def words(self):
        bounds = np.cumsum([0, *self.sizes])
        low, high = (0, bounds[-1]) if self.only is None else bounds[self.only : self.only + 2]
        return np.random.default_rng(self.seed).integers(low, high, self.rows)

    def weights(self, dtype):
        """Tables, biases, projections, the clusters' table and bias."""
        rng = np.random.default_rng(self.seed + 1)

        def normal(*shape):
            return rng.standard_normal(shape).astype(dtype)

        widths = [max(1, self.width // self.divisor**i) for i in range(len(self.sizes))]
        tails = len(self.sizes) - 1
        return adaptive_softmax.Weights(
            [normal(*shape) for shape in zip(self.sizes, widths, strict=True)], [normal(size) for size in self.sizes],
            [normal(self.width, narrow) / self.width**0.5 for narrow in widths], normal(tails, widths[0]), normal(tails))

    def arrays(self, dtype):
        """hidden, targets, weights, order, d_loss."""
        rng = np.random.default_rng(self.seed + 2)
        hidden = (self.scale * rng.standard_normal((self.rows, self.width))).astype(dtype)
        return hidden, self.words(), self.weights(dtype), self.order, rng.standard_normal(self.rows).astype(dtype)


def up(weights):
    return adaptive_softmax.Weights(*([cupy.asarray(array) for array in arrays] for arrays in weights[:3]),
                                    *map(cupy.asarray, weights[3:]))


def softmax_here(case, dtype):
    *arguments, d_loss = case.arrays(dtype)
    loss, saved = adaptive_softmax.forward(*arguments)
    d_hidden, d = adaptive_softmax.backward(d_loss, saved)
    return [loss, d_hidden, *d.arrays()]


def softmax_there(case, dtype, start=0):
    """In one pass; the weights' gradients are added to `start`."""
    hidden, targets, weights, order, d_loss = case.arrays(dtype)
    weights = up(weights)
    d = adaptive_softmax.Weights(*([cupy.full_like(array, start) for array in arrays] for arrays in weights[:3]),
                                 *(cupy.full_like(array, start) for array in weights[3:]))
    loss, d_hidden = on_device.loss_and_gradients(
        cupy.asarray(hidden), cupy.asarray(targets), weights, order, cupy.asarray(d_loss), d)
    return [loss, d_hidden, *d.arrays()]


def assert_same(found, expected, dtype, times=1):
    for number, (there, here) in enumerate(zip(found, expected, strict=True)):
        within = times * WITHIN[dtype] * (np.abs(here).max(initial=0) + 1)
        assert there.dtype == here.dtype
        np.testing.assert_allclose(there.get(), here, atol=within, rtol=0, err_msg=f"result {number}")


sizes = st.tuples(st.integers(1, 150)).flatmap(
    lambda head: st.lists(st.sampled_from([0, 1, 2, 40, 64, 65, 150]), max_size=3).map(lambda tails: (*head, *tails)))
cases = st.builds(Case, sizes, st.sampled_from([1, 2, 30, 64, 65, 200]), st.sampled_from([1, 4, 9, 70, 130]),
                  st.sampled_from([1, 2, 4]), st.sampled_from(["ascending", "reversed"]), seed=st.integers(0, 99))
FULL = Case((70, 130, 0, 65), 200, 8, 1, "reversed")


@pytest.mark.parametrize("dtype", WITHIN)
@given(cases, st.sampled_from([1, 700, 1 << 26]), st.sampled_from([1, 3, 264]))
@example(FULL, 700, 3)
@example(replace(FULL, order="ascending"), 1 << 26, 264)
@example(replace(FULL, only=0), 1, 264)
@example(replace(FULL, only=3, width=70), 700, 1)
@example(replace(FULL, only=1, rows=1), 700, 264)
@example(replace(FULL, scale=1e3), 700, 5)
@example(Case((3,)), 700, 264)
@example(Case((3, 0)), 700, 264)
@settings(max_examples=30)
def test_softmax_is_the_textbooks(dtype, case, elements, blocks):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(on_device, "ELEMENTS", elements)
        patch.setattr(on_device, "BLOCKS", blocks)
        loss, d_hidden, *d = softmax_there(case, dtype, start=1)
        # roundoff of logits grows with them, and as much that of what is made of them
        assert_same([loss, d_hidden, *(array - 1 for array in d)], softmax_here(case, dtype), dtype, max(1, case.scale))


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("case", [FULL, Case((3, 0, 2), 5), Case((2,), 70), Case((200, 100), 90, 33, 3)], ids=str)
def test_input_is_the_textbooks(dtype, case):
    tokens, weights = case.words().reshape(-1, 5 if case.rows % 5 == 0 else 1), case.weights(dtype)
    found = []
    for place in (np.asarray, cupy.asarray):
        x, saved = adaptive_input.forward(place(tokens), [place(a) for a in weights.tables],
                                          [place(a) for a in weights.projections])
        dx = place(np.random.default_rng(3).standard_normal(x.shape).astype(dtype))
        d_tables, d_projections = adaptive_input.backward(dx, saved)
        found.append([x, *d_tables, *d_projections])
    assert_same(found[1], found[0], dtype)


@pytest.mark.parametrize("only", [1, 3])
def test_tokens_of_a_narrow_type_may_not_hold_a_clusters_end(only):
    case = Case((100, 20, 300, 2), 30, 8, 1, only=1)
    hidden, targets, weights, order, d_loss = case.arrays("float64")
    there = up(weights)
    loss, saved = on_device.forward(cupy.asarray(hidden), cupy.asarray(targets.astype("int8")), there, order)
    d_hidden, d = on_device.backward(cupy.asarray(d_loss), saved)
    assert_same([loss, d_hidden, *d.arrays()], softmax_here(case, "float64"), "float64")


@pytest.mark.parametrize("seed", range(3))
def test_no_bit_depends_on_the_order_of_threads(seed):
    expected = softmax_there(FULL, "float32")
    with cuda_on_cpu.strict_order(seed):
        for found, first in zip(softmax_there(FULL, "float32"), expected, strict=True):
            np.testing.assert_array_equal(found.get(), first.get())


def test_nothing_waits_and_nothing_of_all_rows_by_all_words_is_held(monkeypatch):
    case = Case((40, 400, 4000), 300, 8, 2)
    monkeypatch.setattr(on_device, "ELEMENTS", 2000)
    monkeypatch.setattr(on_device, "BLOCKS", 8)
    hidden, targets, weights, order, d_loss = case.arrays("float64")
    given = cupy.asarray(hidden), cupy.asarray(targets), up(weights), order
    d, d_loss = up(weights), cupy.asarray(d_loss)
    on_device.loss_and_gradients(*given, d_loss, d)
    cuda_on_cpu.reset_counters()
    on_device.loss_and_gradients(*given, d_loss, d)
    counted = cuda_on_cpu.counters()
    assert counted["synchronizations"] == counted["host_to_device_copies"] == counted["device_to_host_copies"] == 0
    assert counted["mallocs"] == 0
    cupy.get_default_memory_pool().free_all_blocks()
    cuda_on_cpu.reset_counters()
    held = cuda_on_cpu.counters()["held_bytes"]
    on_device.loss_and_gradients(*given, d_loss, d)
    assert cuda_on_cpu.counters()["peak_bytes"] - held < 300 * 4440 * 8 / 10


def test_a_target_outside_the_vocabulary_is_not_scored():
    hidden, targets, weights, order, _ = Case().arrays("float64")
    for wrong in (-1, 15):
        targets[3] = wrong
        loss, _ = on_device.forward(cupy.asarray(hidden), cupy.asarray(targets), up(weights), order)
        assert np.flatnonzero(np.isnan(loss.get())).tolist() == [3]


def test_what_does_not_fit_is_refused():
    hidden, targets, weights, order, _ = Case().arrays("float64")
    there = up(weights)
    with pytest.raises(InputError, match="one device, got weight 0 on the GPU and hidden on the host"):
        on_device.forward(hidden, targets, there, order)
    hidden, targets = cupy.asarray(hidden), cupy.asarray(targets)
    with pytest.raises(InputError, match="expected biases of shape"):
        on_device.forward(hidden, targets, there._replace(cluster_bias=there.cluster_bias[:1]), order)
    with pytest.raises(InputError, match="of float32 beside float64"):
        on_device.forward(hidden, targets, there._replace(cluster_bias=there.cluster_bias.astype("float32")), order)


CONFIG = ModelConfig(vocabulary=90, width=16, heads=2, layers=2, span=6, memory=3, span_ramp=3, cutoffs=(20, 30, 30),
                     divisor=2, dropout=0.1, embedding_dropout=0.1)
FORMS = {"untied": {}, "tied": {"tie_tables": True, "tie_projections": True, "cluster_order": "reversed"},
         "tables tied": {"tie_tables": True}, "no cluster is empty": {"cutoffs": (20, 30, 70)}}


class Segment:
    """Tokens and targets drawn by number."""

    def __init__(self, number):
        self.tokens, self.targets = np.random.default_rng(number).integers(0, CONFIG.vocabulary, (2, 3, 7))
        self.restart = number == 0


def trained(place, config, dtype, updates):
    train = TrainConfig(batch=3, block=7, updates=updates, learning_rate=0.01, log_every=100, clip=0.5, workers=1)
    p = parameters.initialize(config, 1, dtype)
    p = p.with_vector(place(p.vector))
    state, past = optimizers.initialize(train, p), model.initial_past(config, 3, p.vector)
    return p, training.run(p, state, config, train, map(Segment, range(updates)), past)


@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("form", FORMS)
def test_twenty_updates_are_the_hosts(form, dtype):
    config = replace(CONFIG, **FORMS[form])
    (here, results), (there, results_there) = (trained(place, config, dtype, 20) for place in (np.asarray, cupy.asarray))
    within = {"float32": 2e-4, "float64": 1e-10}[dtype]
    for a, b in zip(results, results_there, strict=True):
        np.testing.assert_allclose(b.loss.get(), a.loss, rtol=within)
    np.testing.assert_allclose(there.vector.get(), here.vector, rtol=within * 50, atol=within * 50)


@pytest.mark.parametrize("form", FORMS)
def test_an_update_sends_its_tokens_and_waits_for_nothing(form):
    cupy.get_default_memory_pool().free_all_blocks()  # pieces that other tests left would be used up first
    _, results = trained(cupy.asarray, replace(CONFIG, **FORMS[form]), "float32", 8)
    for _ in range(4):  # what is made once
        next(results)
    for _ in range(3):
        cuda_on_cpu.reset_counters()
        next(results)
        counted = cuda_on_cpu.counters()
        assert counted["synchronizations"] == counted["device_to_host_copies"] == counted["mallocs"] == 0
        assert (counted["host_to_device_copies"], counted["host_to_device_bytes"]) == (2, 2 * 3 * 7 * 8)


def test_evaluation_is_the_hosts_and_reads_back_each_blocks_losses():
    p = parameters.initialize(CONFIG, 1, "float64")
    blocks = [Segment(number) for number in range(3)]
    here = evaluation.evaluate(p, CONFIG, blocks)
    there = p.with_vector(cupy.asarray(p.vector))
    evaluation.evaluate(there, CONFIG, blocks)
    cuda_on_cpu.reset_counters()
    found = evaluation.evaluate(there, CONFIG, blocks)
    assert abs(found.loss - here.loss) < 1e-11
    counted = cuda_on_cpu.counters()
    assert counted["device_to_host_copies"] == 3
    assert counted["host_to_device_copies"] == 6
    log_p = [model.log_probabilities(q, CONFIG, place(blocks[0].tokens), model.initial_past(CONFIG, 3, q.vector))
             for q, place in ((p, np.asarray), (there, cupy.asarray))]
    np.testing.assert_allclose(log_p[1].get(), log_p[0], atol=1e-11)


def test_the_choice_is_made_with_the_attentions():
    tokens, real = np.zeros((3, 4), int), cupy.zeros(2)
    core = variants.core_for("auto", CONFIG, tokens, real)
    assert variants.softmax_core(core) is on_device
    assert variants.softmax_core(variants.windows.Core({})) is on_device
    assert variants.softmax_core(variants.core_for("textbook", CONFIG, tokens, real)) is adaptive_softmax


PLANTS = [
    ("tail", "s[i][j] += t.bias[word + column_of(j)]", "s[i][j] += 0"),
    ("tail", "(REAL)(at == target)) * d_loss : (REAL)0", "(REAL)(at == target)) : (REAL)0"),
    ("tail", "if (before > LOWEST) total[i] *= exp(before - largest[i]);", ""),
    ("tail", "total += sums[at] * exp(most[at] - shift);", "total += sums[at];"),
    ("tail", "sum += parts[", "sum = parts["),
    ("tail", "part[at] = tile > begin ? part[at] + sum[i][j] : sum[i][j]", "part[at] = sum[i][j]"),
    ("tail", "d_bias[word + threadIdx.x] += sum", "d_bias[word + threadIdx.x] = sum"),
    ("tail", "losses[row] += log", "losses[row] = log"),
    ("tail", "row += TILE", "row += TILE + 1"),
    ("head", "reversed ? tails - 1 - tail : tail", "tail"),
    ("head", "row += 8", "row += 9"),
    ("head", "*place += sum", "*place = sum"),
    ("head", "logits[j] / sum - (REAL)(j == target)", "logits[j] / sum"),
    ("clusters", "at[i] = inside ? before : -1", "at[i] = inside ? 0 : -1"),
    ("clusters", "words[i] < end", "words[i] <= end"),
]


def compute_with(patch, file, old, new):
    """The device computes with a changed source."""
    source, compiled = kernel_source(file), {}
    assert old in source
    right = on_device.kernel

    def kernel(name, function, dtype):
        if name != file:
            return right(name, function, dtype)
        key = function, np.dtype(dtype).char
        if key not in compiled:
            real = "double" if key[1] == "d" else "float"
            compiled[key] = cupy.RawKernel(source.replace(old, new), function, options=(f"-DREAL={real}", "--fmad=false"))
        return compiled[key]

    patch.setattr(on_device, "kernel", kernel)


@pytest.mark.parametrize(("file", "old", "new"), PLANTS)
def test_a_planted_error_is_caught(monkeypatch, file, old, new):
    right = test_softmax_is_the_textbooks.hypothesis.inner_test
    right("float64", FULL, 700, 1)
    compute_with(monkeypatch, file, old, new)
    with np.errstate(all="ignore"), pytest.raises(AssertionError):
        right("float64", FULL, 700, 1)


@pytest.mark.parametrize("old", [
    "multiply(tiles, s);\n        __syncthreads();", "multiply(tiles, sum);\n                __syncthreads();",
    "(REAL)0;\n        }\n        __syncthreads();"])
def test_a_removed_barrier_is_caught(monkeypatch, old):
    compute_with(monkeypatch, "tail", old, old.replace("__syncthreads();", ""))
    expected, wrong = softmax_here(replace(FULL, width=20), "float64"), 0
    for seed in range(3):
        with cuda_on_cpu.strict_order(seed):
            found = softmax_there(replace(FULL, width=20), "float64")
            wrong += not all(np.allclose(there.get(), here) for there, here in zip(found, expected, strict=True))
    assert wrong


OVERRUN = """
import sys
from refimpl import arrays
source = arrays.kernel_source
arrays.kernel_source = lambda file: source(file).replace({old!r}, {new!r})
sys.path.insert(0, {tests!r})
import test_adaptive
test_adaptive.assert_same(test_adaptive.softmax_there(test_adaptive.FULL, "float64"),
                          test_adaptive.softmax_here(test_adaptive.FULL, "float64"), "float64")
test_adaptive.test_input_is_the_textbooks("float64", test_adaptive.FULL)
print("done")
"""


@pytest.mark.parametrize(("old", "new", "caught"), [
    ("#define TILE", "#define TILE", False),
    ("word + line_of(i) < words &&", "word + line_of(i) <= words &&", True),
    ("word + line < t.words ?", "word + line <= t.words ?", True),
    ("column < columns)", "column <= columns)", True),
    ("word < words ? table", "word <= words ? table", True),
])
def test_an_overrun_by_one_is_caught(old, new, caught):
    end = under_asan(OVERRUN.format(old=old, new=new, tests=str(Path(__file__).parent)))
    assert ("heap-buffer-overflow" in end.stderr) == caught, end.stderr[-2000:]
    assert (end.returncode == 0) == (not caught)
