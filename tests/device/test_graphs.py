"""Updates from a CUDA graph: the bits that they have without one, what they ask of the device, what can't be captured."""

from dataclasses import replace
from types import SimpleNamespace

import cuda_on_cpu
import numpy as np
import pytest
from stand_in import HARDWARE, cupy

from refimpl import model, optimizers, parameters, training
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import graphs
from refimpl.errors import InputError, NonFiniteError

CONFIG = ModelConfig(vocabulary=9, width=8, heads=2, layers=2, span=12, memory=3, span_ramp=4, span_penalty=1e-4)
WIDE = replace(CONFIG, span=300, heads=4, span_ramp=8, zero_past=True)  # whose windows the host keeps
TRAIN = TrainConfig(learning_rate=1e-2, batch=2, block=7, updates=24, clip=1.0, log_every=5, warm_up=5, last_updates=4)
DROPS = {"dropout": 0.2, "embedding_dropout": 0.1}
FORMS = {
    "adam": (CONFIG, TRAIN), "dropout": (replace(CONFIG, **DROPS), replace(TRAIN, seed=2**33 + 5)),
    "float64": (replace(CONFIG, **DROPS), replace(TRAIN, dtype="float64")),
    "adagrad, each clipped": (CONFIG, replace(TRAIN, optimizer="adagrad", clip_each=True, clip=0.1)),
    "sgd": (CONFIG, replace(TRAIN, optimizer="sgd", learning_rate=0.1)),
    "momentum": (CONFIG, replace(TRAIN, optimizer="sgd", momentum=0.9, clip=0)),
    "windows": (WIDE, replace(TRAIN, learning_rate=1e-3)),
    "windows, dropout": (replace(WIDE, dropout=0.2), replace(TRAIN, learning_rate=1e-3)),
    "zero past": (replace(CONFIG, zero_past=True, normalizer_epsilon=1e-8), TRAIN),
    "block longer than span": (replace(CONFIG, span=5), TRAIN), "fixed spans": (replace(CONFIG, adaptive_span=False), TRAIN),
    "pre-norm": (replace(CONFIG, norm="pre", **DROPS), TRAIN),
    "feed-forward": (replace(CONFIG, memory=0, feed_forward=16, attend_self=True, **DROPS), TRAIN),
    **{variant: (replace(CONFIG, variant=variant, dropout=0.2), TRAIN)
       for variant in ("attention-split", "head-split", "single-head")},
    "cutoffs": (replace(CONFIG, cutoffs=(3, 6), divisor=2), TRAIN),
    "cutoffs, tied": (replace(CONFIG, cutoffs=(4,), divisor=1, tie_tables=True, tie_projections=True), TRAIN),
    "ff-attention": (replace(CONFIG, memory=0, feed_forward=6, variant="ff-attention", attend_self=True), TRAIN),
    **{positions: (replace(CONFIG, positions=positions), TRAIN)
       for positions in ("transformer-xl", "sinusoid", "learned", "none")},
}


def there(config, train, graph):
    """Parameters on the device, and a state, with or without a graph."""
    p = parameters.initialize(config, 1, train.dtype)
    p = p.with_vector(cupy.asarray(p.vector))
    state = optimizers.initialize(train, p)
    state.graph = graphs.Graph() if graph else None
    return p, state


def segments(config, train, restart_every=15):
    """Batches; the past is emptied now and then."""
    rng = np.random.default_rng(3)
    for number in range(train.updates):
        tokens, targets = rng.integers(0, config.vocabulary, (2, train.batch, train.block))
        yield SimpleNamespace(tokens=tokens, targets=targets, restart=number % restart_every == 0)


def launched():
    """How many graphs were launched; a GPU does not tell."""
    return 0 if HARDWARE else cuda_on_cpu.counters()["graph_launches"]


def trained(config, train, graph, updates=None):
    """Everything that comes of a run, bit for bit; how many launches of graphs there were."""
    p, state = there(config, train, graph)
    before = launched()
    results = training.run(p, state, config, replace(train, updates=updates or train.updates), segments(config, train), None)
    told = [[float(x) for x in (r.loss, r.span_penalty, r.gradient_norm, r.learning_rate)] + [r.tokens.get().sum()]
            + [r.past.get().sum()] for r in results]
    held = [p.vector, *(a.vector for a in state.accumulators.values())]
    return told, [array.get() for array in held], state.updates, launched() - before


@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_those_without_a_graph(form):
    without, with_one = (trained(*FORMS[form], graph) for graph in (False, True))
    assert with_one[0] == without[0]
    for found, expected in zip(with_one[1], without[1], strict=True):
        np.testing.assert_array_equal(found, expected)
    assert with_one[2] == without[2] == TRAIN.updates
    assert HARDWARE or (without[3], with_one[3] > 8) == (0, True)


def counted(p, state, config, train, numbers):
    """What each of some updates asked of the device, tokens on the host."""
    past, asked = model.initial_past(config, train.batch, p.vector), []
    for number in range(numbers):
        tokens, targets = np.random.default_rng(number).integers(0, config.vocabulary, (2, train.batch, train.block))
        cuda_on_cpu.reset_counters()
        past = training.update(p, state, config, train, tokens, targets, past).past
        asked.append(cuda_on_cpu.counters())
    return asked


def test_an_update_sends_its_tokens_and_waits_for_nothing_also_where_it_is_captured():
    cupy.get_default_memory_pool().free_all_blocks()
    *_, before, captured, later = counted(*there(CONFIG, TRAIN, True), CONFIG, TRAIN, 7)[:6]
    sent = 2 * TRAIN.batch * TRAIN.block * 8 + 8 * graphs.NUMBERS
    for asked in (before, captured, later):
        assert asked["synchronizations"] == asked["device_to_host_copies"] == asked["mallocs"] == 0
        assert (asked["host_to_device_copies"], asked["host_to_device_bytes"]) == (1, sent)
    assert (captured["graph_launches"], captured["launches"] + captured["gemms"]) == (1, 1)


def test_temporaries_of_a_graph_are_nobody_elses_and_it_goes_with_its_state():
    """Whatever memory can be had between two updates is held during the next one, which must neither read nor write it."""
    cupy.get_default_memory_pool().free_all_blocks()
    before, (p, state) = cuda_on_cpu.counters()["graphs"], there(CONFIG, TRAIN, True)
    past, held = None, []
    for segment in segments(CONFIG, TRAIN):
        past = model.initial_past(CONFIG, 2, p.vector) if segment.restart else past
        past = training.update(p, state, CONFIG, TRAIN, segment.tokens, segment.targets, past).past
        assert all((array == -1e30).all() for array in held)
        held = []
        for stream in (cupy.cuda.Stream.null, state.graph._stream):
            with stream:
                held += [cupy.full(1 << size, -1e30, "float32") for size in range(15) for _ in range(4)]
    np.testing.assert_array_equal(p.vector.get(), trained(CONFIG, TRAIN, False)[1][0])
    assert cuda_on_cpu.counters()["graphs"] == before + 1
    state.graph = None
    assert cuda_on_cpu.counters()["graphs"] == before


def test_tokens_may_be_on_the_device_and_a_past_anyones():
    (p, state), (q, other) = (there(CONFIG, TRAIN, graph) for graph in (True, False))
    rng = np.random.default_rng(5)
    for _ in range(6):
        tokens, targets = map(cupy.asarray, rng.integers(0, 9, (2, 2, 7)).astype("uint8"))
        past = cupy.asarray(rng.standard_normal((2, 2, 12, 8), "float32"))
        kept, found = past.copy(), []
        for vector, held in ((p, state), (q, other)):
            found.append(training.update(vector, held, CONFIG, TRAIN, tokens, targets, past))
        np.testing.assert_array_equal(past.get(), kept.get())
        np.testing.assert_array_equal(found[0].past.get(), found[1].past.get())
    np.testing.assert_array_equal(p.vector.get(), q.vector.get())


def test_an_update_that_is_not_finite_changes_nothing_and_is_told_by_its_number():
    p, state = there(CONFIG, TRAIN, True)
    counted(p, state, CONFIG, TRAIN, 6)
    before, element = p.vector.get(), float(p.vector[3])
    p.vector[3] = np.nan
    past = cupy.zeros((2, 2, 12, 8), "float32")
    for _ in range(2):
        past = training.update(p, state, CONFIG, TRAIN, np.zeros((2, 7), int), np.zeros((2, 7), int), past).past
    with pytest.raises(NonFiniteError, match=r"update 7: .* \(seen after update 8\)"):
        training.optimizer.check(state)
    p.vector[3] = element
    np.testing.assert_array_equal(p.vector.get(), before)
    assert state.updates == 6
    training.update(p, state, CONFIG, TRAIN, np.zeros((2, 7), int), np.zeros((2, 7), int), cupy.zeros_like(past))
    assert (p.vector.get() != before).any()
    training.optimizer.check(state)


def test_parameters_elsewhere_and_other_settings_are_another_graph():
    p, state = there(CONFIG, TRAIN, True)
    counted(p, state, CONFIG, TRAIN, 6)
    moved, graph = p.with_vector(p.vector.copy()), state.graph
    before = p.vector.get()
    counted(moved, state, CONFIG, TRAIN, 6)
    np.testing.assert_array_equal(p.vector.get(), before)
    assert (moved.vector.get() != before).any()
    kind = graph._kind
    counted(moved, state, CONFIG, replace(TRAIN, clip=0.5), 6)
    assert graph._kind != kind


@pytest.mark.parametrize(("planted", "message"), [
    (lambda array: array.get(), "synchronous API calls are disallowed|capturing"),
    (lambda array: cupy.cuda.get_current_stream().synchronize(), "waits for a stream that captures|StreamCapture"),
    (lambda array: cupy.asarray(np.ones(3)), "capturing|H2D"),
    (lambda array: array[array > 0], "capturing"),
], ids=["reads", "waits", "sends", "shape by data"])
def test_what_an_update_must_not_do_is_seen(monkeypatch, planted, message):
    """Errors planted in the model are refused where it is captured, in one line; the stream is then as before."""
    function = model.loss_and_gradients

    def wrong(*arguments):
        out, g = function(*arguments)
        planted(out.loss.reshape(1))
        return out, g

    monkeypatch.setattr(model, "loss_and_gradients", wrong)
    p, state = there(CONFIG, TRAIN, True)
    with pytest.raises(InputError, match=f"--cuda-graph: this update can't be captured: .*({message}).*leave") as error:
        counted(p, state, CONFIG, TRAIN, 6)
    assert "\n" not in str(error.value)
    assert not state.graph._stream.is_capturing()
    before, state.graph = p.vector.get(), None
    monkeypatch.undo()
    tokens = cupy.zeros((2, 7), int)
    training.update(p, state, CONFIG, TRAIN, tokens, tokens, model.initial_past(CONFIG, 2, p.vector))
    assert (p.vector.get() != before).any()


def test_a_number_that_was_kept_as_it_was_is_seen(monkeypatch):
    """Planted: the rate, and the update's number in dropout, by value as without a graph."""
    config = replace(CONFIG, **DROPS)
    expected = trained(config, TRAIN, False)[1][0]
    assert (trained(config, TRAIN, True)[1][0] == expected).all()
    step = training.updates.optimizer.update
    monkeypatch.setattr(training.updates.optimizer, "update", lambda *given: step(*given[:-1]))
    assert (trained(config, TRAIN, True)[1][0] != expected).any()
    monkeypatch.undo()
    masks = training.updates.keep_masks
    monkeypatch.setattr(training.updates, "keep_masks", lambda *given, now: masks(*given))
    assert (trained(config, TRAIN, True)[1][0] != expected).any()


def test_updates_that_wait_are_refused():
    graphs.check(TRAIN)
    with pytest.raises(InputError, match=r"^--cuda-graph: expected train.attention auto or tiled, got textbook"):
        graphs.check(replace(TRAIN, attention="textbook"))


if HARDWARE:
    del test_temporaries_of_a_graph_are_nobody_elses_and_it_goes_with_its_state
