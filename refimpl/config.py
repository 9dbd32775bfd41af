"""What a model is and how it is trained: frozen dataclasses that refuse, on construction, what cannot work."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from refimpl.errors import InputError
from refimpl.validation import at_least, check_types, one_of, share

VARIANTS = ("all-attention", "attention-split", "head-split", "single-head", "ff-attention", "transformer")
POSITIONS = ("relative", "transformer-xl", "sinusoid", "learned", "none")
NORMS = ("post", "pre")
CLUSTER_ORDERS = ("ascending", "reversed")
OPTIMIZERS = ("sgd", "adagrad", "adam")
ATTENTIONS = ("auto", "tiled", "textbook")
NONFINITES = ("stop", "skip")
LAYERS = 10_000  # each has names of its own: a damaged file must not ask for more of them than memory holds
VOCABULARIES = ("byte", "character", "word")
CONVENTIONS = {"byte": ("bytes", "published", "transformer-xl"), "character": ("characters", "published", "transformer-xl"),
               "word": ("words", "published", "transformer-xl")}
TIES = ("first", "reversed")
NUMBERINGS = ("frequency", "appearance")
UNKNOWNS = ("error", "<unk>")
DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class ModelConfig:
    """The model's sizes and conventions, by the letters of the documentation. Raises InputError.

    V vocabulary, D width, H heads (H divides D), L layers, S span (context positions a query may see), N memory
    (persistent vectors, 0 = none), F feed_forward (0 = none). All-attention with N = 0 is the baseline, `transformer`;
    the other variants are the ablations of Sukhbaatar et al. (arXiv 1907.01470). `share_positions`: one table of relative
    positions, or one pair of Transformer-XL's u and v, for all layers. span_initial is ρ, a share of S. `cutoffs` are the
    ends of all but the last cluster of adaptive input and softmax; () = plain.
    `zero_past`: a text starts with S zero vectors as past (as published), not with none.
    """

    vocabulary: int
    width: int
    heads: int
    layers: int
    span: int
    memory: int = 0
    feed_forward: int = 0
    variant: str = "all-attention"
    positions: str = "relative"
    share_positions: bool = True
    attend_self: bool = False
    adaptive_span: bool = True
    span_initial: float = 0.0
    span_ramp: int = 32
    span_penalty: float = 0.0
    normalizer_epsilon: float = 0.0
    norm: str = "post"
    dropout: float = 0.0
    embedding_dropout: float = 0.0
    cutoffs: tuple[int, ...] = ()
    divisor: int = 4
    tie_tables: bool = False
    tie_projections: bool = False
    cluster_order: str = "ascending"
    zero_past: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.cutoffs, Sequence):
            object.__setattr__(self, "cutoffs", tuple(self.cutoffs))
        check_types(self, "model")
        if self.variant == "all-attention" and not self.memory:
            object.__setattr__(self, "variant", "transformer")
        for name in ("vocabulary", "width", "heads", "layers", "span", "span_ramp", "divisor"):
            at_least(self, "model", name, 1)
        for name in ("memory", "feed_forward", "span_penalty", "normalizer_epsilon"):
            at_least(self, "model", name, 0)
        if self.layers > LAYERS:
            raise InputError(f"model.layers: expected at most {LAYERS}, got {self.layers}")
        for name in ("dropout", "embedding_dropout"):
            share(self, "model", name, 1, open_above=True)
        share(self, "model", "span_initial", 1)
        for name, choices in (("variant", VARIANTS), ("positions", POSITIONS), ("norm", NORMS),
                              ("cluster_order", CLUSTER_ORDERS)):
            one_of(self, "model", name, choices)
        if self.width % self.heads:
            raise InputError(f"model.heads: expected a divisor of width {self.width}, got {self.heads}")
        self._check_variant()
        self._check_clusters()

    def _check_variant(self) -> None:
        if self.variant in ("transformer", "ff-attention"):
            if self.memory:
                raise InputError(f"model.variant {self.variant}: expected memory 0, got {self.memory}")
            if self.variant == "ff-attention" and not self.feed_forward:
                raise InputError("model.variant ff-attention: expected feed_forward of 1 or more (its vectors), got 0")
            return
        if self.feed_forward:
            raise InputError("model.feed_forward: expected 0 beside persistent memory, which stands in its place, got "
                             f"{self.feed_forward} with memory {self.memory}")
        if not self.memory:
            raise InputError(f"model.variant {self.variant}: expected memory of 1 or more, got 0")
        if self.variant == "head-split" and self.heads == 1:
            raise InputError("model.variant head-split: expected 2 heads or more, got 1")

    def _check_clusters(self) -> None:
        if not self.cutoffs:
            if self.tie_projections:
                raise InputError("model.tie_projections: expected cutoffs with it, got none (plain input has no projection)")
            return
        ends = (1, *self.cutoffs, self.vocabulary)
        if any(low > high for low, high in pairwise(ends)):
            raise InputError(f"model.cutoffs: expected an ascending list between 1 and the vocabulary's size "
                             f"{self.vocabulary}, got {list(self.cutoffs)}")
        if self.width % self.divisor ** len(self.cutoffs):
            raise InputError(f"model.divisor: expected width / divisor^i to be whole for all {len(ends) - 1} clusters, got "
                             f"width {self.width} and divisor {self.divisor}")

    @property
    def head_width(self) -> int:
        """E = D / H."""
        return self.width // self.heads

    @property
    def context_heads(self) -> int:
        """How many heads attend to the context, the first ones: all but in head-split, where the last ⌊H/2⌋ do not."""
        return self.heads - (self.heads // 2 if self.variant == "head-split" else 0)

    @property
    def memory_shape(self) -> tuple[int, int, int]:
        """Shape of the persistent keys, and of the values, in each layer: heads, vectors, width."""
        if self.variant == "single-head":
            return 1, self.memory, self.width
        heads = self.heads - self.context_heads if self.variant == "head-split" else self.heads
        return heads, self.memory, self.head_width

    @property
    def clusters(self) -> tuple[tuple[int, int, int], ...]:
        """(first word, end, width) of each cluster of the adaptive input and softmax; () if they are plain."""
        if not self.cutoffs:
            return ()
        bounds = (0, *self.cutoffs, self.vocabulary)
        return tuple((low, high, self.width // self.divisor**i) for i, (low, high) in enumerate(pairwise(bounds)))


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Raises InputError.

    `clip`: largest gradient norm (0 = no clipping), of each tensor if clip_each, else of all together. The rate of update
    u = 1, 2, … is learning_rate · min(1, u / warm_up), times last_factor during the last `last_updates` of `updates`.
    `workers`: parts of a batch computed side by side (0 = one for each thread). `parallel`: on threads, or by processes, the
    same bits. `attention`: in tiles, or as the equations read ("textbook"), the same function. "auto": whichever is faster.
    Validation along the way scores the split's first `evaluate_tokens` tokens (0 = all). `on_nonfinite`: an update whose
    loss or gradient is not finite ends the run ("stop") or changes nothing ("skip").
    """

    optimizer: str = "adam"
    learning_rate: float = 2.5e-4
    clip: float = 1.0
    clip_each: bool = False
    warm_up: int = 0
    batch: int = 16
    block: int = 64
    updates: int = 1000
    seed: int = 0
    last_updates: int = 0
    last_factor: float = 0.1
    momentum: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.999)
    dtype: str = "float32"
    workers: int = 1
    parallel: str = "auto"
    attention: str = "auto"
    log_every: int = 10
    evaluate_every: int = 0
    evaluate_tokens: int = 65536
    checkpoint_every: int = 0
    keep_checkpoints: int = 2
    on_nonfinite: str = "stop"

    def __post_init__(self) -> None:
        if isinstance(self.adam_betas, Sequence):
            object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        check_types(self, "train")
        for name in ("batch", "block", "updates", "log_every", "keep_checkpoints"):
            at_least(self, "train", name, 1)
        for name in ("learning_rate", "clip", "warm_up", "seed", "last_updates", "last_factor", "workers",
                     "evaluate_every", "evaluate_tokens", "checkpoint_every"):
            at_least(self, "train", name, 0)
        share(self, "train", "momentum", 1, open_above=True)
        if self.last_updates > self.updates:
            raise InputError(f"train.last_updates: expected at most the {self.updates} of updates, got {self.last_updates}")
        if self.evaluate_tokens == 1:
            raise InputError("train.evaluate_tokens: expected 0 (all) or 2 or more (the first has no target), got 1")
        if len(self.adam_betas) != 2 or not all(0 <= beta < 1 for beta in self.adam_betas):
            raise InputError(f"train.adam_betas: expected two numbers in [0, 1), got {list(self.adam_betas)}")
        for name, known in {"optimizer": OPTIMIZERS, "attention": ATTENTIONS, "dtype": DTYPES, "on_nonfinite": NONFINITES,
                            "parallel": ("auto", "threads", "processes")}.items():
            one_of(self, "train", name, known)


@dataclass(frozen=True)
class DataConfig:
    """Which text, and how it becomes tokens. Raises InputError.

    `path`: a file, a folder with train, valid and test files, one that `data prepare` made, "sample" for the built-in text,
    or the name of one that `data fetch` brought. `convention`: what a line's end is, and which symbols there are. "bytes",
    "characters" and "words", each its vocabulary's default, keep every byte, every character, and a line's end as the word
    `<eos>`. "published": symbols of the training split, `<eos>` for a newline and after an unfinished last line.
    "transformer-xl": newlines dropped, symbols of all splits; as words, the same as "words".
    Where symbols are counted, `numbering` gives numbers by frequency or by first appearance, and `ties` orders symbols of
    equal frequency by first appearance or its reverse; "" = reversed as published, else first. Words seen fewer than
    minimum_count times in the training split become `<unk>`; `unknown` says what an unseen word of the other splits is.
    """

    path: str = "sample"
    vocabulary: str = "byte"
    ties: str = ""
    minimum_count: int = 1
    unknown: str = "error"
    convention: str = ""
    numbering: str = "frequency"

    def __post_init__(self) -> None:
        check_types(self, "data")
        if not self.path.isascii() and self.path != self.path.encode("utf-8", "replace").decode():
            raise InputError(f"data.path: expected a name in UTF-8, got {self.path!a}")
        one_of(self, "data", "vocabulary", VOCABULARIES)
        if not self.convention:
            object.__setattr__(self, "convention", CONVENTIONS[self.vocabulary][0])
        if self.convention not in CONVENTIONS[self.vocabulary]:
            raise InputError(f"data.convention: expected one of {', '.join(CONVENTIONS[self.vocabulary])} with vocabulary "
                             f"{self.vocabulary}, got {self.convention!r}")
        implied = {"published": "reversed", "transformer-xl": "first"}.get(self.convention)
        if not self.ties:
            object.__setattr__(self, "ties", implied or "first")
        one_of(self, "data", "ties", TIES)
        if implied not in (None, self.ties):
            raise InputError(f"data.ties: expected {implied} with convention {self.convention}, got {self.ties!r}")
        one_of(self, "data", "unknown", UNKNOWNS)
        one_of(self, "data", "numbering", NUMBERINGS)
        at_least(self, "data", "minimum_count", 1)

    @property
    def conventions(self) -> dict[str, str | int]:
        """All settings but the path that decide the tokens; those that the convention leaves without effect are absent."""
        found: dict[str, str | int] = {"vocabulary": self.vocabulary, "convention": self.convention}
        if self.convention not in ("bytes", "characters"):
            found |= {"numbering": self.numbering, "ties": self.ties}
        if self.vocabulary == "word":
            found |= {"minimum_count": self.minimum_count, "unknown": self.unknown}
        return found
