"""Checkpoints of the published code, of every architecture that it makes, after its table of names: a stand-in for it."""

from collections import OrderedDict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from refimpl.config import ModelConfig


class Architecture(NamedTuple):
    """V, E, H, L, S; N persistent vectors or F hidden units; cutoffs with a divisor, () = plain."""

    vocabulary: int = 9
    head_width: int = 4
    heads: int = 2
    layers: int = 2
    span: int = 5
    memory: int = 3
    feed_forward: int = 0
    adaptive_span: bool = True
    cutoffs: tuple[int, ...] = ()
    divisor: int = 2
    tie_tables: bool = False
    tie_projections: bool = False
    dtype: str = "float32"

    def config(self) -> ModelConfig:
        """Ours, with the published conventions."""
        own = {key: value for key, value in self._asdict().items() if key not in ("head_width", "dtype")}
        return ModelConfig(width=self.heads * self.head_width, normalizer_epsilon=1e-8, zero_past=True,
                           cluster_order="reversed" if self.cutoffs else "ascending", **own)


@st.composite
def architectures(draw) -> Architecture:
    """Every kind of model, small."""
    clusters = draw(st.integers(0, 3))
    sizes = draw(st.lists(st.integers(1, 4), min_size=clusters + 1, max_size=clusters + 1))
    ends = tuple(int(end) for end in np.cumsum(sizes))
    memory = draw(st.integers(0, 3))
    tied = draw(st.booleans()), draw(st.booleans()) if clusters else False
    return Architecture(
        ends[-1], draw(st.sampled_from([4, 8])) * (2 if clusters == 3 else 1), draw(st.integers(1, 3)),
        draw(st.integers(1, 3)), draw(st.integers(1, 70)), memory, 0 if memory else draw(st.integers(1, 6)),
        draw(st.booleans()), ends[:-1], 2, *tied, draw(st.sampled_from(["float32", "float64"])))


def tensors(of: Architecture, seed: int = 0, prefix: str = "") -> OrderedDict[str, Any]:
    """What its state dict holds, in the order of registration: a module's parameters, its constants, its parts."""
    rng, width = np.random.default_rng(seed), of.heads * of.head_width
    found: OrderedDict[str, Any] = OrderedDict()

    def draw(name, *shape):
        found[prefix + name] = rng.standard_normal(shape).astype(of.dtype)

    draw("key_pe", 1, of.head_width, of.span)
    _input_and_output(of, width, draw, found, prefix)
    for layer in range(of.layers):
        attention = f"layers.{layer}.attn."
        mask = "attn.adaptive_span._mask."
        if of.adaptive_span:
            draw(f"{attention}{mask}current_val", of.heads, 1, 1)
            found[f"{prefix}{attention}{mask}mask_template"] = np.array([-x for x in reversed(range(of.span))], of.dtype)
        if of.memory:
            draw(f"{attention}attn.persistent_memory.key", of.heads, of.head_width, of.memory)
            draw(f"{attention}attn.persistent_memory.val", of.heads, of.memory, of.head_width)
            for kind in ("current_val", "mask_template") if of.adaptive_span else ():
                second = f"{prefix}{attention}attn.persistent_memory.adaptive_span._mask.{kind}"
                found[second] = found[f"{prefix}{attention}{mask}{kind}"]
        for kind in ("query", "out", "val", "key"):
            draw(f"{attention}proj_{kind}.weight", width, width)
        draw(f"layers.{layer}.norm1.weight", width)
        draw(f"layers.{layer}.norm1.bias", width)
        if of.feed_forward:
            draw(f"layers.{layer}.ff.fc1.weight", of.feed_forward, width)
            draw(f"layers.{layer}.ff.fc1.bias", of.feed_forward)
            draw(f"layers.{layer}.ff.fc2.weight", width, of.feed_forward)
            draw(f"layers.{layer}.ff.fc2.bias", width)
            draw(f"layers.{layer}.norm2.weight", width)
            draw(f"layers.{layer}.norm2.bias", width)
    return found


def _input_and_output(of, width, draw, found, prefix):
    if not of.cutoffs:
        draw("in_emb.weight", of.vocabulary, width)
        draw("out_emb.weight", of.vocabulary, width)
        draw("out_emb.bias", of.vocabulary)
        if of.tie_tables:
            found[f"{prefix}out_emb.weight"] = found[f"{prefix}in_emb.weight"]
        return
    ends = [0, *of.cutoffs, of.vocabulary]
    for i, (first, end) in enumerate(pairwise(ends)):
        for side, table, projection in (("in_emb", "emb_layers", "emb_projs"), ("out_emb", "out_layers", "out_projs")):
            draw(f"{side}.{table}.{i}.weight", end - first, width // of.divisor**i)
            draw(f"{side}.{projection}.{i}", width, width // of.divisor**i)
        draw(f"out_emb.out_layers.{i}.bias", end - first)
        for tie, ours, theirs in ((of.tie_tables, f"in_emb.emb_layers.{i}.weight", f"out_emb.out_layers.{i}.weight"),
                                  (of.tie_projections, f"in_emb.emb_projs.{i}", f"out_emb.out_projs.{i}")):
            if tie:
                found[prefix + theirs] = found[prefix + ours]
    draw("out_emb.cluster_proj.weight", len(of.cutoffs), width)
    draw("out_emb.cluster_proj.bias", len(of.cutoffs))
