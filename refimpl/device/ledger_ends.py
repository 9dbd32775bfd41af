"""What an update asks of a GPU below and above its layers, and for what is added up: one function for each file."""

from refimpl import parameters
from refimpl.config import ModelConfig, TrainConfig
from refimpl.device import adaptive_softmax
from refimpl.device.counts import Sum
from refimpl.device.ledger_layers import dropout, linear, norm, sinusoid
from refimpl.optimizers import accumulators
from refimpl.parameters import SHARED, Spec


def embedded(found: Sum, config: ModelConfig, train_config: TrainConfig) -> None:
    """Words, plain or adaptive, absolute positions, the dropout of both ends."""
    batch, block, width = train_config.batch, train_config.block, config.width
    rows, table = batch * block, config.vocabulary * width
    if config.cutoffs:
        _adaptive_input(found, config, rows)
    else:
        found.each(rows * width)
        found.cleared(table)
        found.each(rows * width)
        found.each(table, read=2)
    if config.positions == "sinusoid":
        sinusoid(found, block, width)
        found.kernel(block * width, block * width, 2)
        found.each(rows * width, read=2)
    if config.positions == "learned":
        found.kernel(block, 2 * block, 2)
        found.each(block * width)
        found.each(rows * width, read=2)
        found.cleared(config.span * width)
        found.kernel(rows * width + block * width, 2 * block * width, 2)
        found.each(config.span * width, read=2)
    for _ in range(2):
        dropout(found, rows * width, bool(config.embedding_dropout))


def _adaptive_input(found: Sum, config: ModelConfig, rows: int) -> None:
    """device/adaptive_input.py: every row in every cluster; then each gradient added to the model's."""
    for first, end, narrow in config.clusters:
        table, projection = (end - first) * narrow, config.width * narrow
        found.cleared(table)
        found.each(table, read=2)
        found.each(projection, read=2)
        if table:
            found.each(rows * narrow, times=2)
            found.product(rows, narrow, config.width, add=first > 0)
            found.product(rows, config.width, narrow)
            found.product(config.width, rows, narrow)


def scored(found: Sum, config: ModelConfig, train_config: TrainConfig) -> None:
    """The loss, its mean, and the way back from the mean's cotangent."""
    rows = train_config.batch * train_config.block
    found.kernel(rows, 1)
    found.each(rows, times=2)
    if config.cutoffs:
        _adaptive_softmax(found, config, rows)
        return
    size, table = rows * config.vocabulary, config.vocabulary * config.width
    linear(found, rows, config.width, config.vocabulary, bias=True)
    found.each(size, times=2)
    found.each(table, read=2)
    found.each(config.vocabulary, read=2)


def _adaptive_softmax(found: Sum, config: ModelConfig, rows: int) -> None:
    """device/adaptive_softmax.py, in which no row is a tail's: how many are the text decides."""
    (_, words, width), *tails = config.clusters
    columns, empty = words + len(tails), [end == first for first, end, _ in tails].count(True)
    if empty:
        found.each(len(tails))
        found.kernel(0, empty, empty)
    found.kernel(len(tails) * rows, len(tails) * rows, len(tails))
    _projected(found, rows, config.width, width)
    together = max(1, min(rows, adaptive_softmax.ELEMENTS // columns))
    for first in range(0, rows, together):
        some = min(together, rows - first)
        for part in (words, len(tails)):
            found.product(some, width, part)
            found.product(some, part, width, add=part < words)
            found.product(part, some, width, add=True)
        found.kernel(2 * some * columns, some * columns, 2)
    for first, end, narrow in tails:
        if end > first:
            _projected(found, rows, config.width, narrow)
            found.kernel(0, rows * narrow, 5)


def _projected(found: Sum, rows: int, width: int, narrow: int) -> None:
    found.product(rows, width, narrow)
    found.product(rows, narrow, width, add=True)
    found.product(width, rows, narrow, add=True)


def past(found: Sum, config: ModelConfig, train_config: TrainConfig) -> None:
    """inputs.extend_past: what stays of the past, then each layer's input."""
    kept = max(0, config.span - train_config.block)
    row = config.layers * train_config.batch * config.width
    found.each(row * kept)
    whole = config.span == train_config.block and train_config.batch > 1  # the driver copies such arrays without a kernel
    found.kernel(row * (config.span - kept), row * (config.span - kept), 0 if whole else config.layers)


def final_norm(found: Sum, config: ModelConfig, train_config: TrainConfig) -> None:
    """That of pre-norm."""
    if config.norm == "pre":
        norm(found, train_config.batch * train_config.block, config.width)


def added(found: Sum, config: ModelConfig) -> None:
    """model.backward's sums of the layers' gradients, and the spans' penalty with its own."""
    specs = parameters.specification(config)
    found.cleared(sum(spec.size for spec in specs))
    for spec in specs:
        found.each(spec.size, read=2, times=_times(spec, config))
    for _ in range(config.layers if config.adaptive_span else 0):
        found.each(config.context_heads, times=5)
        found.kernel(config.context_heads + 3, 4, 4)


def _times(spec: Spec, config: ModelConfig) -> int:
    """How often a layer's gradient, or the final norm's, is added to the parameter's."""
    if spec.name in SHARED:
        return config.layers
    return int(spec.name.startswith(("layers.", "final_norm.")))


def optimizer(found: Sum, config: ModelConfig, train_config: TrainConfig) -> None:
    """The gradient's squares; then p, g and accumulators, all but g written."""
    size = parameters.total(config)
    held = len(accumulators(train_config))
    found.kernel(size + (2 + held) * size, (1 + held) * size, 2)
