"""Properties of every pair of refimpl/layers and of the model: linear, adjoint, repeatable, and the same in other dtypes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl import model
from refimpl.layers import attention


def sibling(name):
    """Another file of the tests as a module."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


draws, registry = sibling("strategies"), sibling("pairs")
STEP = 1e-30
SINGLE = 2.0**-24  # unit roundoff of float32
BOUND_DRAWS, BOUND_FACTOR = 16, 8
examples, configuration = draws.fewer_examples, draws.configuration

LEAST = draws.AttentionCase(), draws.ModelCase(configuration()), 2, 1, [1]
# a softmax over one slot, whose gradients are roundoff alone
ROUNDOFF = [(draws.AttentionCase(seed=1, epsilon=epsilon), LEAST[1], 2, 1, [2]) for epsilon in (0.0, 1e-8)]
FULL = (
    draws.AttentionCase(seed=1, batch=2, block=4, past=3, size=5, heads=2, width=3, slots=2, ramp=2, spans="kink",
                        positions="transformer-xl", epsilon=1e-8, dropout=0.4),
    draws.ModelCase(configuration(vocabulary=9, width=6, heads=3, layers=2, span=5, memory=2, span_penalty=0.3, dropout=0.3,
                                  cutoffs=(2, 2, 5), divisor=1, variant="head-split", norm="pre", span_ramp=2),
                    seed=1, batch=2, block=4, past=3, spans="random"),
    5, 3, [2, 0, 3],
)
shapes = st.tuples(
    draws.attention_cases(core="all-attention", slots=draws.sizes(3)), draws.model_cases(),
    st.sampled_from([2, 2, 3, 5]), draws.sizes(4), st.lists(st.integers(0, 3), max_size=2).map(lambda tails: [2, *tails]),
)


def like(y, seed, purpose):
    """A random cotangent or direction."""
    return draws.stream(seed, purpose).standard_normal(np.shape(y))


def test_the_list_of_pairs_is_complete():
    assert set(registry.all_pairs(*FULL)) == registry.names_in_the_package() | {"model"}


@given(shapes)
@example(LEAST)
@example(ROUNDOFF[0])
@example(ROUNDOFF[1])
@example(FULL)
@examples
def test_every_backward_is_linear_in_its_cotangent(shape):
    """15. backward(2 a - 3 b) = 2 backward(a) - 3 backward(b), for every pair and the model: no constant, no kink."""
    for name, pair in registry.all_pairs(*shape).items():
        y, saved = pair.forward(*pair.arguments)
        one, two = (like(y, shape[0].seed, f"{name} {i}") for i in range(2))
        first, second, both = (pair.backward(dy, saved) for dy in (one, two, 2 * one - 3 * two))
        expected = {f"{name} {i}": 2 * a - 3 * b for i, (a, b) in enumerate(zip(first, second, strict=True))}
        scale = {"cotangent": np.abs(one) + np.abs(two)}  # what gradients that cancel are made of
        found = {f"{name} {i}": gradient for i, gradient in enumerate(both)}
        draws.assert_close_through_norms(found | scale, expected | scale)


@given(shapes)
@example(LEAST)
@example(ROUNDOFF[0])
@example(ROUNDOFF[1])
@example(FULL)
@examples
def test_every_backward_is_the_adjoint_of_its_forwards_derivative(shape):
    """16. ⟨dy, J u⟩ = ⟨Jᵀ dy, u⟩, dy random and u in all arguments at once; J u by the complex step, Jᵀ dy by backward."""
    for name, pair in registry.all_pairs(*shape).items():
        y, saved = pair.forward(*pair.arguments)
        dy = like(y, shape[0].seed, name)
        u = [like(array, shape[0].seed, f"{name} {i}") for i, array in enumerate(pair.arguments)]
        moved, _ = pair.forward(*(array + 1j * STEP * direction for array, direction in zip(pair.arguments, u, strict=True)))
        gradients = pair.backward(dy, saved)
        terms = [gradient * direction for gradient, direction in zip(gradients, u, strict=True)]
        products = np.asarray(dy * np.imag(moved) / STEP)
        size = np.abs(products).sum() + sum(np.abs(term).sum() for term in terms)
        error = abs(products.sum() - sum(term.sum() for term in terms))
        # where J u cancels, roundoff of a derivative of order 1 is left
        limit = draws.RELATIVE * size + draws.FLOOR_THROUGH_NORMS * np.linalg.norm(dy) * np.linalg.norm(np.hstack(
            [np.ravel(direction) for direction in u]))
        assert error <= limit, f"{name}: {error}, expected at most {limit}"


@given(draws.model_cases(span_penalty=0.3))
@example(draws.ModelCase(configuration(span_penalty=0.3)))
@example(FULL[1])
@examples
def test_the_models_gradient_is_the_adjoint_with_its_penalty(case):
    """16. ⟨d_token_loss, J u⟩ and the penalty's slope along u together are ⟨gradient, u⟩."""
    result, p, (tokens, targets) = case.run(), case.parameters(), case.text()
    u = like(p.vector, case.seed, "direction")
    moved = model.forward(p.with_vector(p.vector + 1j * STEP * u), case.config, tokens, targets,
                          case.before().astype(complex), case.masks())
    terms, products = result.gradients.vector * u, case.cotangent() * moved.token_loss.imag / STEP
    slope = products.sum() + np.imag(moved.span_penalty) / STEP
    assert abs(terms.sum() - slope) <= 1e-12 * (np.abs(terms).sum() + np.abs(products).sum())


def bounds(function, arrays, seed):
    """Results in longdouble, and B: the largest change of each element over random relative changes of size u of every
    element of the arguments, divided by u."""
    extended, rng = [array.astype("longdouble") for array in arrays], draws.stream(seed, "roundoff")
    exact = function(*extended)
    largest = {name: np.zeros(np.shape(value)) for name, value in exact.items()}
    for _ in range(BOUND_DRAWS):
        moved = function(*(array * (1 + SINGLE * rng.choice([-1, 1], array.shape)) for array in extended))
        largest = {name: np.maximum(change, np.abs(moved[name] - exact[name]) / SINGLE) for name, change in largest.items()}
    return exact, largest


def assert_within_bounds(function, arrays, seed):
    """|float32 - exact| ≤ c u (B + the largest B of all results): the second where B is an accident of cancellation.

    c = 8. Weights near 0 or 1, a ramp's foot or a norm over two numbers leave differences of which no digit is sure, however
    the arguments are moved; what they are differences of is as large as the results that don't cancel.
    """
    single = [array.astype("float32") for array in arrays]
    found, (exact, largest) = function(*single), bounds(function, single, seed)
    floor = max((change.max() for change in largest.values() if change.size), default=0.0)
    for name, value in exact.items():
        error = np.abs(found[name] - value)
        assert found[name].dtype == np.float32, name
        assert (error <= BOUND_FACTOR * SINGLE * (largest[name] + floor)).all(), f"{name}: {error.max()}"


@given(draws.attention_cases(spans=st.sampled_from(["none", "zero", "full", "random"])))
@example(draws.AttentionCase(spans="zero"))
@example(replace(FULL[0], spans="random"))
@examples
def test_an_attention_in_float32_is_within_its_bound(case):
    """27. Outputs and gradients. Not at kinks between 0 and S: there float32 may stand on another side than its z."""
    arguments = {name: array for name, array in case.arguments()._asdict().items() if array is not None}

    def function(dy, *given):
        y, _, gradients = case.run(attention.Arguments(**dict(zip(arguments, given, strict=True))), dy=dy)
        return {"y": y, **gradients}

    assert_within_bounds(function, [case.cotangent(), *arguments.values()], case.seed)


@given(draws.model_cases(spans=st.sampled_from(["none", "zero", "full", "random"]), head_width=st.integers(3, 4)))
@example(draws.ModelCase(configuration(width=3)))
@example(draws.ModelCase(configuration(vocabulary=9, width=12, heads=3, attend_self=True, normalizer_epsilon=0.1,
                                       cutoffs=(4,), divisor=1, share_positions=False, adaptive_span=False), spans="none"))
@example(FULL[1])
@examples
def test_a_model_in_float32_is_within_its_bound(case):
    """27. Losses, past and gradients of the whole model, where float32 has digits to be held to: D ≥ 3, since of a gradient
    through a norm over two numbers nothing but ε's share is left; and weights halved, so that no softmax is saturated, whose
    a (da - r) cancels as well."""
    p = case.parameters()
    for name in p:
        p[name] *= 1 if name.endswith((".span", ".gain")) else 0.5

    def function(vector, past, dy):
        out, _, gradients = case.run(p.with_vector(vector), past=past, dy=dy)
        return {"token_loss": out.token_loss, "past": out.past, **gradients}

    assert_within_bounds(function, [p.vector, case.before(), case.cotangent()], case.seed)


def frozen(*arrays):
    """Copies that refuse to be written to."""
    copies = [np.array(array) for array in arrays]
    for copy in copies:
        copy.flags.writeable = False
    return copies


@given(shapes)
@example(LEAST)
@example(FULL)
@examples
def test_arguments_stay_as_they_are_and_results_repeat(shape):
    """29. Bit for bit, for every pair and the model: forward twice, backward twice from one `saved`, all arguments and the
    cotangent read-only, and unchanged through views as well."""
    for name, pair in registry.all_pairs(*shape).items():
        arguments = frozen(*pair.arguments)
        y, saved = pair.forward(*arguments)
        (dy,) = frozen(like(y, shape[0].seed, name))
        first = pair.backward(dy, saved)
        kept = [np.copy(gradient) for gradient in first]
        y_kept = np.copy(y)
        again, saved_again = pair.forward(*arguments)
        results = {f"{name} {i}": gradient for i, gradient in enumerate(kept)}
        for other in (pair.backward(dy, saved), pair.backward(dy, saved_again)):
            draws.assert_identical({f"{name} {i}": np.asarray(gradient) for i, gradient in enumerate(other)}, results)
        draws.assert_identical({"y": np.asarray(again), "first": np.asarray(y)}, {"y": y_kept, "first": y_kept})
        draws.assert_identical(dict(enumerate(arguments)), dict(enumerate(map(np.asarray, pair.arguments))))
