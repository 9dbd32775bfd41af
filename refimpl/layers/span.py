"""Adaptive attention span, Sukhbaatar et al. (arXiv 1905.07799), section 2.2: a soft mask over distance and its penalty.

x counts context positions from the nearest one, 0 … S-1, whichever distance (1, or 0 with attend_self) is nearest.
"""

from typing import NamedTuple

from refimpl.arrays import Array, module_of

TRIMMED_AT_ONCE = 64  # positions


class MaskSaved(NamedTuple):
    """What backward needs: where the ramp, both ends included, is (H, S), and dm/dρ there."""

    on_ramp: Array
    size: int
    ramp: int


def mask_forward(rho: Array, size: int, ramp: int) -> tuple[Array, MaskSaved]:
    """m_z(x) = clamp((R + z - x) / R, 0, 1), z = S ρ;  ρ (H) -> m (H, S), S = size, R = ramp. Eq. 4.

    Where the published code and this one stand on the clamp's kinks: backward uses the closed interval.
    """
    xp = module_of(rho)
    distance = xp.arange(size, dtype=rho.real.dtype)
    fraction = (ramp + size * rho[:, None] - distance) / ramp
    on_ramp = (fraction.real >= 0) & (fraction.real <= 1)
    mask = xp.where(on_ramp, fraction, (fraction.real > 1).astype(rho.real.dtype))
    return mask, MaskSaved(on_ramp, size, ramp)


def mask_backward(d_mask: Array, saved: MaskSaved) -> Array:
    """dρ = Σ_x dm S/R where 0 ≤ (R + z - x) / R ≤ 1, 0 elsewhere (where dm may even be infinite)."""
    return module_of(d_mask).where(saved.on_ramp, d_mask, 0).sum(1) * saved.size / saved.ramp


def reach(rho: Array, size: int, ramp: int) -> Array:
    """⌊z⌋ + R + 1, at most S: how many of the nearest positions each head needs, the last maybe for its slope alone.

    ρ (H) -> (H). Rounded as mask_forward rounds: all others have m = 0 and no slope.
    """
    xp = module_of(rho)
    return xp.minimum(xp.floor(ramp + size * rho.real) + 1, size)


def untrimmed(rho: Array, size: int, ramp: int) -> Array:
    """How many of the nearest positions there are for a layer with ε > 0: those beyond have no share of the normaliser.

    As published: of the positions that no head of the layer needs, the farthest go, in whole multiples of 64.
    """
    beyond = size - reach(rho, size, ramp).max()
    return size - beyond // TRIMMED_AT_ONCE * TRIMMED_AT_ONCE


def penalty_forward(rho: Array, size: int, weight: float) -> tuple[Array, tuple[Array, int, float]]:
    """λ S mean_h(ρ_h) for one layer;  ρ (H) -> scalar. Eq. 5, with the mean over heads as in the published code."""
    return rho.mean() * size * weight, (rho, size, weight)


def penalty_backward(d_penalty: Array | float, saved: tuple[Array, int, float]) -> Array:
    """dρ = λ S / H for each head."""
    rho, size, weight = saved
    return module_of(rho).full_like(rho, size) * weight / len(rho) * d_penalty
