"""Adaptive input and adaptive softmax, with either order of the head's cluster slots."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .autograd import Settings, Tensors


def listed(x: Tensors, name: str) -> list[Tensor]:
    """name.0, name.1, … in order."""
    return [x[f"{name}.{i}"] for i in range(sum(given.startswith(f"{name}.") for given in x))]


def adaptive_input(tokens: Tensor, tables: Sequence[Tensor], projections: Sequence[Tensor]) -> Tensor:
    """√D P_i table_i[word]: (…) -> (…, D). All words' vectors, then the rows that are asked for."""
    rows = torch.cat([functional.linear(table, projection) for table, projection in zip(tables, projections, strict=True)])
    return math.sqrt(rows.shape[1]) * functional.embedding(tokens, rows)


def adaptive_softmax(
    hidden: Tensor, targets: Tensor, tables: Sequence[Tensor], biases: Sequence[Tensor | None],
    projections: Sequence[Tensor], cluster_table: Tensor, cluster_bias: Tensor | None, order: str,
) -> Tensor:
    """-log p(target), from log p of all words; a tail without words has no share of the head."""
    scores = [functional.linear(hidden @ projection, table, bias)
              for table, bias, projection in zip(tables, biases, projections, strict=True)]
    of_clusters = functional.linear(hidden @ projections[0], cluster_table, cluster_bias)
    if order == "reversed":  # the head's last column stands for the first tail
        of_clusters = of_clusters.flip(-1)
    empty = torch.tensor([len(table) == 0 for table in tables[1:]], dtype=torch.bool)
    head = torch.log_softmax(torch.cat([scores[0], of_clusters.masked_fill(empty, -torch.inf)], -1), -1)
    shortlist, *of_tails = head.split([len(tables[0]), *[1] * (len(tables) - 1)], -1)
    tails = [log_p + torch.log_softmax(score, -1) for log_p, score in zip(of_tails, scores[1:], strict=True)]
    return -torch.cat([shortlist, *tails], -1).gather(-1, targets[..., None])[..., 0]


def _adaptive_softmax(settings: Settings, x: Tensors) -> Tensors:
    """Absent biases are 0, an absent projection of the head is the identity."""
    tables, width = listed(x, "tables"), x["hidden"].shape[-1]
    biases = [x.get(f"biases.{i}") for i in range(len(tables))]
    projections = [x.get("projections.0", torch.eye(width, dtype=x["hidden"].dtype)),
                   *(x[f"projections.{i}"] for i in range(1, len(tables)))]
    return {"loss": adaptive_softmax(x["hidden"], x["targets"], tables, biases, projections, x["cluster_table"],
                                     x.get("cluster_bias"), settings["cluster_order"])}


FUNCTIONS = {
    "adaptive-input": lambda settings, x: {"x": adaptive_input(x["tokens"], listed(x, "tables"), listed(x, "projections"))},
    "adaptive-softmax": _adaptive_softmax,
}
