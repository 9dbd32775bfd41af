"""The passage that a report looks at, and pieces of text with their white space made visible."""

from typing import NamedTuple

import numpy as np

from refimpl.checkpoint import Checkpoint
from refimpl.datasets.vocabulary import Tokens, Vocabulary
from refimpl.errors import InputError
from refimpl.report.reading import RunFolder

QUERIES, FEWEST_QUERIES = 256, 64  # tokens whose attention is looked at, and how few of a large model
CONTEXT, FEWEST = 4096, 512  # most tokens before them, and how few a large model gets
OPERATIONS, WEIGHTS = 2e10, 2e8  # parameters times tokens before them; attention's weights of all queries
BESIDE = {"byte": (28, 12), "character": (28, 12), "word": (9, 5)}  # tokens of a context before the query and after it
SPACES = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍", "\v": "␋", "\f": "␌"}


class Passage(NamedTuple):
    """(n,) tokens of a text from its start, of which those from `first` on are the queries; where they come from."""

    tokens: Tokens
    first: int
    source: str
    vocabulary: Vocabulary

    @property
    def text(self) -> str:
        """The queries' own."""
        return self.vocabulary.decode(self.tokens[self.first :])


class Piece(NamedTuple):
    """A run of characters to be shown: where it stands ("before", "here", "after"), and whether it is white space."""

    place: str
    space: bool
    text: str


def choose(run: RunFolder, given: str | None) -> Passage | None:
    """The given text, or the start of the validation text; None where the run has neither text nor vocabulary.

    Before the queries stands as much as the model's span, less where a large model would take minutes. Raises InputError
    for unknown symbols.
    """
    if run.saved is None or run.vocabulary is None:
        return None
    queries, before = _sizes(run.saved)
    if given is not None:
        try:
            tokens = run.vocabulary.encode(given.encode("utf-8", "surrogateescape"))
        except InputError as error:
            raise InputError(f"--passage, for {run.path}: {error}") from error
        if not len(tokens):
            raise InputError(f"--passage: expected at least one {run.unit}, got {given!r}")
        tokens = tokens[-(queries + before) :]
        return Passage(tokens, max(0, len(tokens) - queries), "the passage given", run.vocabulary)
    if run.corpus is None:
        return None
    tokens = np.array(run.corpus.valid[: queries + before])
    first = max(0, len(tokens) - queries)
    source = f"the validation text, {run.unit}s {first:,} to {len(tokens) - 1:,}"
    return Passage(tokens, first, source, run.vocabulary)


def _sizes(saved: Checkpoint) -> tuple[int, int]:
    """How many queries, and how many tokens before them."""
    config = saved.config
    weights = config.layers * config.heads * (2 * config.span + config.memory + config.feed_forward)
    queries = min(QUERIES, max(FEWEST_QUERIES, int(WEIGHTS / weights)))
    return queries, min(config.span, CONTEXT, max(FEWEST, int(OPERATIONS / saved.parameters.vector.size)))


def context(passage: Passage, position: int) -> list[Piece]:
    """The text around a token as pieces: before it, the token itself, after it."""
    vocabulary, tokens = passage.vocabulary, passage.tokens
    (low, high), (before_it, after_it) = _symbol(vocabulary, tokens, position), BESIDE[vocabulary.kind]
    start = max(0, low - before_it)
    if vocabulary.kind == "byte":
        start = _symbol(vocabulary, tokens, start)[0]
    ranges = (start, low), (low, high), (high, high + after_it)
    before, here, after = (vocabulary.decode(tokens[a:b]) for a, b in ranges)
    if vocabulary.kind == "word":
        before, after = (f"{before} " if before and before[-1] != "\n" else before), (f" {after}" if after else after)
    parts = (("before", before), ("here", here), ("after", after.rstrip("\ufffd")))
    return [Piece(place, *piece) for place, text in parts for piece in visible(text)]


def _symbol(vocabulary: Vocabulary, tokens: Tokens, position: int) -> tuple[int, int]:
    """Where the symbol at a position begins and ends: of bytes, the whole UTF-8 character."""
    low, high = position, position + 1
    if vocabulary.kind == "byte":
        while low > 0 and position - low < 3 and _continues(tokens[low]):
            low -= 1
        while high < len(tokens) and high - low < 4 and _continues(tokens[high]) and tokens[low] >= 0xC0:
            high += 1
    return low, high


def _continues(byte: int) -> bool:
    """Whether a byte is the second or a later one of a UTF-8 character."""
    return 0x80 <= int(byte) < 0xC0


def visible(text: str) -> list[tuple[bool, str]]:
    """The text in runs, (whether white space or control, what to show); whatever steers the display becomes a sign."""
    runs: list[tuple[bool, str]] = []
    for character in text:
        shown, space = _shown(character)
        if runs and runs[-1][0] == space:
            runs[-1] = space, runs[-1][1] + shown
        else:
            runs.append((space, shown))
    return runs


def _shown(character: str) -> tuple[str, bool]:
    if character in SPACES:
        return SPACES[character], True
    if character.isprintable():
        return character, False
    code = ord(character)
    return (chr(0x2400 + code) if code < 32 else f"[U+{code:04X}]"), True
