"""Layer norm, softmax loss and the embedding's gradient on a GPU, a launch or two each: norm.cu, loss.cu, embedding.cu."""

from refimpl.arrays import Array, kernel, module_of

THREADS = 256


def norm_forward(x: Array, gain: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """y, x̂ and 1 / deviation (rows) of layer_norm.forward."""
    xp, width = module_of(x), x.shape[-1]
    x = xp.ascontiguousarray(x)
    y, normalized, rows = xp.empty_like(x), xp.empty_like(x), x.size // width
    inverse = xp.empty((*x.shape[:-1], 1), x.dtype)
    kernel("norm", "norm_forward", x.dtype)((rows,), (THREADS,), (x, gain, bias, y, normalized, inverse, width, epsilon))
    return y, normalized, inverse


def norm_backward(dy: Array, normalized: Array, inverse: Array, gain: Array) -> tuple[Array, Array, Array]:
    """As layer_norm.backward."""
    xp, width = module_of(dy), dy.shape[-1]
    dy = xp.ascontiguousarray(dy)
    dx, rows = xp.empty_like(dy), dy.size // width
    d_gain, d_bias = (xp.empty_like(gain) for _ in range(2))
    kernel("norm", "norm_backward", dy.dtype)((rows,), (THREADS,), (dy, normalized, inverse, gain, dx, width))
    kernel("norm", "norm_weights", dy.dtype)((-(-width // 32),), (32, 8), (dy, normalized, d_gain, d_bias, rows, width))
    return dx, d_gain, d_bias


def loss_forward(scores: Array, targets: Array) -> tuple[Array, Array]:
    """Losses, and log p of every word, of softmax_loss.forward."""
    xp, words = module_of(scores), scores.shape[-1]
    scores, loss = xp.ascontiguousarray(scores), xp.empty(targets.shape, scores.dtype)
    log_p = xp.empty_like(scores)
    kernel("loss", "loss_forward", scores.dtype)((targets.size,), (THREADS,), (scores, whole(targets), loss, log_p, words))
    return loss, log_p


def loss_backward(d_loss: Array, log_p: Array, targets: Array) -> Array:
    """As softmax_loss.backward."""
    xp, d_scores = module_of(d_loss), module_of(d_loss).empty_like(log_p)
    kernel("loss", "loss_backward", log_p.dtype)((-(-log_p.size // THREADS),), (THREADS,), (
        log_p, whole(targets), xp.ascontiguousarray(d_loss), d_scores, log_p.size, log_p.shape[-1]))
    return d_scores


def embedding_backward(dx: Array, tokens: Array, table: Array, first: int = 0) -> Array:
    """As embedding.backward, its sums in a fixed order; the table's words are those from `first` on, others pass."""
    xp = module_of(dx)
    d_table = xp.zeros_like(table)
    kernel("embedding", "add_rows", dx.dtype)((tokens.size,), (THREADS,), (
        whole(tokens), xp.ascontiguousarray(dx), d_table, tokens.size, table.shape[1], first, len(table)))
    return d_table


def whole(numbers: Array) -> Array:
    """Token ids as the kernels read them."""
    return module_of(numbers).ascontiguousarray(numbers.astype("int64", copy=False))
