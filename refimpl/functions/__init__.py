"""Every function of the model under its name, callable in one form: for gradient checks and for golden vectors."""

from collections.abc import Mapping

from refimpl.functions.basic import BASIC, of_adaptive_softmax
from refimpl.functions.composed import composed
from refimpl.functions.forms import Arrays, Function, Results, Settings

FUNCTIONS = BASIC | composed("textbook")
# the same, attention in tiles and adaptive softmax in chunks where the arrays are real and NumPy's
TILED = BASIC | composed("tiled") | {"adaptive-softmax": of_adaptive_softmax("tiled")}

__all__ = ["FUNCTIONS", "TILED", "Arrays", "Function", "Results", "Settings", "evaluate"]


def evaluate(name: str, settings: Settings, inputs: Arrays, functions: Mapping[str, Function] = FUNCTIONS) -> Results:
    """Outputs, and with a cotangent d_y among the inputs for an output y the gradients d_x of every input x that has one."""
    function = functions[name]
    given = {key: array for key, array in inputs.items() if not key.startswith("d_")}
    outputs, saved = function.forward(settings, given)
    cotangents = {output: inputs[f"d_{output}"] for output in outputs if f"d_{output}" in inputs}
    if not cotangents:
        return outputs
    gradients = function.backward(cotangents, saved)
    return outputs | {f"d_{key}": gradient for key, gradient in gradients.items()}
