"""The hand-written gradient of a small all-attention model beside the complex step, one line for each parameter.

    python examples/exact_gradients.py
"""

import numpy as np

from refimpl import model, parameters
from refimpl.config import ModelConfig
from refimpl.gradcheck.complex_step import gradient, norm_wise_error

config = ModelConfig(vocabulary=11, width=8, heads=2, layers=2, span=6, memory=3, span_ramp=3, span_initial=0.3,
                     span_penalty=0.01)


def main() -> None:
    """Two segments: the first leaves a past, the second is differentiated."""
    p = parameters.initialize(config, seed=0, dtype="float64")
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (2, 9))
    first, second, targets = tokens[:, :4], tokens[:, 4:8], tokens[:, 5:9]
    past = model.forward(p, config, first, tokens[:, 1:5], model.initial_past(config, batch=2, like=p.vector)).past

    by_hand = model.backward(model.forward(p, config, second, targets, past).saved)

    for name in p:

        def loss(value: np.ndarray, name: str = name) -> complex:
            moved = p.astype("complex128")
            moved[name] = value
            out = model.forward(moved, config, second, targets, past.astype("complex128"))
            return out.loss + out.span_penalty

        error = norm_wise_error(by_hand[name], gradient(loss, p[name]))
        print(f"{name:36} {p[name].size:5} numbers    relative error {error:.1e}")


if __name__ == "__main__":
    main()
