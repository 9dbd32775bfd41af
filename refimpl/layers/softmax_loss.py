"""Log-softmax and the negative log-likelihood of one target per row."""

from typing import NamedTuple

from refimpl.arrays import Array, has_kernels, module_of
from refimpl.device import rows as on_device


class Saved(NamedTuple):
    """What backward needs."""

    log_probabilities: Array
    targets: Array


def log_softmax(logits: Array) -> Array:
    """log p_j = s_j - log Σ_i exp(s_i) over the last axis, stable for any finite logits."""
    xp = module_of(logits)
    shifted = logits - logits.real.max(-1, keepdims=True)
    return shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))


def forward(logits: Array, targets: Array) -> tuple[Array, Saved]:
    """loss = -log p(target);  logits (…, V), targets (…) integers -> (…)."""
    if has_kernels(logits):
        loss, log_probabilities = on_device.loss_forward(logits, targets)
        return loss, Saved(log_probabilities, targets)
    log_probabilities = log_softmax(logits)
    loss = -module_of(logits).take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    return loss, Saved(log_probabilities, targets)


def backward(d_loss: Array, saved: Saved) -> Array:
    """d_logits = (p - [j is the target]) d_loss."""
    if has_kernels(d_loss):
        return on_device.loss_backward(d_loss, *saved)
    xp = module_of(d_loss)
    d_logits = xp.exp(saved.log_probabilities)
    rows = d_logits.reshape(saved.targets.size, d_logits.shape[-1])
    rows[xp.arange(len(rows)), saved.targets.reshape(-1)] -= 1
    d_logits *= d_loss[..., None]
    return d_logits
