"""Named sets of conventions: what implementations of the same equations agree to do differently."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Convention(NamedTuple):
    """What the set is, and the settings that it fixes, where a case has them."""

    sentence: str
    settings: Mapping[str, Any]


CONVENTIONS = {
    "exact": Convention(
        "The equations as they stand: distances from 1, no ε in the normaliser, an empty start, clusters in order.",
        {"attend_self": False, "normalizer_epsilon": 0.0, "epsilon": 0.0, "cluster_order": "ascending", "zero_past": False}),
    "published": Convention(
        "The published adaptive-span code: distances from 1, ε = 1e-8, a start of zero vectors, clusters from the last, the "
        "rate of each tensor clipped.",
        {"attend_self": False, "normalizer_epsilon": 1e-8, "epsilon": 1e-8, "cluster_order": "reversed", "zero_past": True,
         "clip_each": True}),
    "transformer-xl": Convention(
        "Transformer-XL: each position sees itself, distances from 0, no ε, an empty start.",
        {"attend_self": True, "normalizer_epsilon": 0.0, "zero_past": False}),
    "torch": Convention(
        "PyTorch: clusters in order, the norm of all gradients together is clipped.",
        {"cluster_order": "ascending", "clip_each": False}),
}


def in_convention(entry: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A case's settings as the convention has them; settings that it does not have are not added."""
    settings, fixed = dict(entry["settings"]), CONVENTIONS[name].settings
    for key, value in settings.items():
        if isinstance(value, dict):
            settings[key] = value | {inner: fixed[inner] for inner in value if inner in fixed}
    if entry["function"] == "layer-norm":  # its ε is another one
        return settings
    return settings | {key: fixed[key] for key in settings if key in fixed}
