"""Every derivative of the losses by the complex step: f(x + ih) = f(x) + ih f'(x) + O(h²), so f'(x) = Im f(x + ih) / h."""

from typing import Any

from refimpl.config import ModelConfig

from .arithmetic import Vector, Weights, dot, total
from .forward import Masks, forward

STEP = 1e-30


def gradients(
    p: Weights, config: ModelConfig, tokens: Any, targets: Any, past: Any, masks: Masks, first_position: int,
    d_token_loss: list[Vector],
) -> dict[str, Any]:
    """d (Σ d_token_loss · token_loss + span penalty) / d each number of p, by p's names, past held fast.

    One forward for each number.
    """

    def derivative(name: str, place: tuple[int, ...]) -> float:
        moved = {**p, name: with_imaginary_part(p[name], place)}
        out = forward(moved, config, tokens, targets, past, masks, first_position)
        losses = (dot(d_row, row) for d_row, row in zip(d_token_loss, out.token_loss, strict=True))
        return complex(total(losses) + out.span_penalty).imag / STEP

    def shaped_as(name: str, values: Any, place: tuple[int, ...]) -> Any:
        if isinstance(values, list):
            return [shaped_as(name, part, (*place, i)) for i, part in enumerate(values)]
        return derivative(name, place)

    return {name: shaped_as(name, values, ()) for name, values in p.items()}


def with_imaginary_part(values: Any, place: tuple[int, ...]) -> Any:
    """A copy of nested lists with ih added to the number at `place`."""
    if not place:
        return values + 1j * STEP
    return [with_imaginary_part(part, place[1:]) if i == place[0] else part for i, part in enumerate(values)]
