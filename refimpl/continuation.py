"""Texts that go on token by token: one token costs each head its own span and N, whatever the text's length."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from refimpl.arrays import Array, module_of, quiet, square_root, to_library_of
from refimpl.config import ModelConfig
from refimpl.inputs import check_tokens, initial_past
from refimpl.layers import linear, multi_head, one_query, transformer_layer
from refimpl.model import embed, hidden_states, layer_weights, score_words
from refimpl.parameters import Parameters
from refimpl.ring import Ring
from refimpl.variants import layer_options

PIECE = 512  # tokens of a prompt at a time, at most: a piece has every intermediate of the model's own attention


class Layer(NamedTuple):
    """What a layer needs for every token: its weights, what is made of them once, and its past.

    projection: W_q, W_k and W_v below one another; biases: u / √E and v / √E or None; unit_values: √N ν or None.
    """

    weights: Mapping[str, Array]
    projection: Array
    biases: tuple[Array | None, Array | None]
    unit_values: Array | None
    groups: list[one_query.Heads]
    ring: Ring


class Continuation:
    """Texts read so far, each as the model alone would read it; `log_p` (B, V) is of the word after each."""

    def __init__(self, p: Parameters, config: ModelConfig, prompts: Sequence[Array], block: int = 0) -> None:
        """Reads the prompts, 1-D, one token or more each. Absolute positions begin anew after `block` tokens (0: never).

        Raises InputError for tokens outside the vocabulary and where a first token would see nothing.
        """
        self._p, self._config, self._block = p, config, block
        self._options = layer_options(config)
        self._lengths = [len(prompt) for prompt in prompts]
        read = [self._read(to_library_of(p.vector, prompt)[None]) for prompt in prompts]
        self._layers = [self._layer(i, [past[i, 0] for _, past in read]) for i in range(config.layers)]
        self.log_p = score_words(p, config, module_of(p.vector).concatenate([h for h, _ in read]))

    def add(self, tokens: Sequence[int]) -> None:
        """Reads one token more of each text."""
        with quiet():
            h = self._embed(module_of(self._p.vector).asarray(tokens)[:, None])
            self._lengths = [length + 1 for length in self._lengths]
            for layer in self._layers:
                h = h + self._attend(layer, h)
                if self._config.norm == "post":
                    h, _ = transformer_layer.normalize("attention_norm", h, layer.weights)
                if self._config.feed_forward:
                    h, *_ = transformer_layer.feed_forward_sublayer(h, layer.weights, self._options)
            if self._config.norm == "pre":
                h, _ = transformer_layer.normalize("final_norm", h, self._p)
            self.log_p = score_words(self._p, self._config, h)

    def _read(self, tokens: Array) -> tuple[Array, Array]:
        """The last hidden state (1, D) after tokens (1, T), and the past; pieces no longer than the span or the block."""
        check_tokens(self._config, "prompt", tokens)
        past, start = initial_past(self._config, 1, self._p.vector), 0
        while start < tokens.shape[1]:
            position = self._position(start)
            end = start + min(PIECE, self._config.span, (self._block or tokens.shape[1]) - position)
            with quiet():
                h, past, _ = hidden_states(self._p, self._config, tokens[:, start:end], past, {}, position, save=False)
            start = end
        return h[:, -1], past

    def _position(self, index: int) -> int:
        return index % self._block if self._block else index

    def _layer(self, number: int, pasts: list[Array]) -> Layer:
        """A layer whose inputs so far were `pasts`, (P, D) for each text."""
        weights, options = layer_weights(self._p, number), self._options.attention
        own = transformer_layer.part("attention", weights)
        reach = one_query.reaches(own.get("span"), self._config.context_heads, options.attention)
        table, _ = multi_head.position_table(own, options)
        groups = one_query.by_reach(own.get("span"), table, reach, options.attention, self._p.vector)
        projected = []
        for past in pasts:
            rows = self._attended(past[max(0, len(past) - max(reach)) :], weights)
            keys, values = (multi_head.project(rows, own[kind], options.head_width)[0] for kind in ("key", "value"))
            projected.append((keys, values))
        root = square_root(options.head_width, self._p.vector.dtype)
        content, position = (own[name] / root if name in own else None for name in ("content_bias", "position_bias"))
        slots = square_root(self._config.memory, self._p.vector.dtype)
        unit_values = slots * own["memory_values"] if "memory_values" in own else None
        projection = module_of(self._p.vector).concatenate([own[kind] for kind in ("query", "key", "value")])
        return Layer(weights, projection, (content, position), unit_values, groups, Ring(projected, max(reach)))

    def _attended(self, x: Array, weights: Mapping[str, Array]) -> Array:
        """What the attention's projections see of a layer's input."""
        return x if self._config.norm == "post" else transformer_layer.normalize("attention_norm", x, weights)[0]

    def _embed(self, tokens: Array) -> Array:
        """The first layer's input (B, D) for tokens (B, 1), each at its own text's position."""
        if self._config.positions not in ("sinusoid", "learned"):
            return embed(self._p, self._config, tokens, 0)[0][:, 0]
        rows = [embed(self._p, self._config, tokens[i : i + 1], self._position(length))[0][:, 0]
                for i, length in enumerate(self._lengths)]
        return module_of(tokens).concatenate(rows)

    def _attend(self, layer: Layer, h: Array) -> Array:
        """The attention sublayer's W_o [y] for one token of each text, (B, D); the token's key and value join the past."""
        x, heads, context_heads = self._attended(h, layer.weights), self._config.heads, self._config.context_heads
        rows, _ = multi_head.project(x, layer.projection, self._config.head_width)
        queries, keys, values = rows[:, :heads], rows[:, heads : heads + context_heads], rows[:, heads + context_heads :]
        if self._config.attend_self:
            layer.ring.add(keys, values)
        context = self._context(layer, queries[:, :context_heads])
        if not self._config.attend_self:
            layer.ring.add(keys, values)
        return linear.forward(self._with_memory(layer, queries, context), layer.weights["attention.output"])[0]

    def _context(self, layer: Layer, queries: Array) -> one_query.Part:
        """The positions' part, queries (B, C, E)."""
        scaled = queries / square_root(self._config.head_width, queries.dtype)
        content, at_distance = ((scaled if bias is None else scaled + bias).swapaxes(0, 1) for bias in layer.biases)
        parts = []
        for group in layer.groups:
            keys, values, exists = layer.ring.latest(group.heads, group.weight.shape[1])
            parts.append(one_query.context(content[group.heads], at_distance[group.heads], keys, values, group, exists,
                                           self._config.normalizer_epsilon))
        return one_query.beside(parts)

    def _with_memory(self, layer: Layer, queries: Array, context: one_query.Part) -> Array:
        """y of all heads, (B, D): context and persistent slots in one softmax, or each in its own, as the variant says."""
        rows, variant = len(queries), self._config.variant
        if layer.unit_values is None:
            return one_query.divided(context).swapaxes(0, 1).reshape(rows, -1)
        groups, _, width = layer.unit_values.shape
        asking = queries[:, self._config.context_heads :] if variant == "head-split" else queries
        asking = asking.reshape(rows, groups, width).swapaxes(0, 1)
        one_softmax = variant == "all-attention"
        epsilon = self._config.normalizer_epsilon if one_softmax else 0.0
        memory = one_query.persistent(asking, layer.weights["attention.memory_keys"], layer.unit_values, epsilon)
        if one_softmax:
            return one_query.joined(context, memory).swapaxes(0, 1).reshape(rows, -1)
        from_context, from_memory = (
            one_query.divided(part).swapaxes(0, 1).reshape(rows, -1) for part in (context, memory)
        )
        if variant == "head-split":
            return module_of(queries).concatenate([from_context, from_memory], axis=1)
        return from_context + from_memory
