"""Adaptive softmax in PyTorch: its own module, and the same function as refimpl's, as its users write it."""

import time
from collections.abc import Mapping
from typing import Any

import adaptive_softmax
import torch
from torch.nn import functional

from refimpl.layers.adaptive_softmax import Weights


class Subject:
    """Autograd through `loss`, from parameters whose gradients are None as after zero_grad."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        hidden, targets, weights, d_loss = adaptive_softmax.draw(settings)
        self._plain = settings["plain"]
        self._hidden = torch.from_numpy(hidden).requires_grad_()
        self._targets, self._d_loss = torch.from_numpy(targets), torch.from_numpy(d_loss)
        self._leaves = [self._hidden, *self.parameters(weights, settings)]

    def parameters(self, weights: Weights, settings: Mapping[str, Any]) -> list[Any]:
        """Makes them, and lists them."""
        raise NotImplementedError

    def loss(self) -> Any:
        """Of each token."""
        raise NotImplementedError

    def gradients(self) -> Weights:
        """By refimpl's names."""
        raise NotImplementedError

    def run(self) -> float:
        """Seconds of forward and backward."""
        for leaf in self._leaves:
            leaf.grad = None
        self._loss = None
        start = time.perf_counter()
        loss = self.loss()
        loss.backward(self._d_loss)
        seconds = time.perf_counter() - start
        self._loss = loss.detach()
        return seconds

    def results(self) -> dict[str, Any]:
        """What the module has; else all."""
        self.run()
        told = adaptive_softmax.named(self._loss, self._hidden.grad, self.gradients(), self._plain)
        return {name: tensor.numpy() for name, tensor in told.items()}


class Module(Subject):
    """torch.nn.AdaptiveLogSoftmaxWithLoss: its head is a linear map, a tail a projection and a linear map without a bias."""

    def parameters(self, weights: Weights, settings: Mapping[str, Any]) -> list[Any]:
        """The module's, with these weights."""
        self._module = torch.nn.AdaptiveLogSoftmaxWithLoss(settings["width"], settings["vocabulary"], settings["cutoffs"],
                                                           settings["divisor"], head_bias=True)
        shortlist, tables, biases, projections = self._module.shortlist_size, *map(_tensors, weights[:3])
        with torch.no_grad():
            head = self._module.head
            head.weight[:shortlist], head.weight[shortlist:] = tables[0], torch.from_numpy(weights.cluster_table)
            head.bias[:shortlist], head.bias[shortlist:] = biases[0], torch.from_numpy(weights.cluster_bias)
            for (down, up), table, projection in zip(self._module.tail, tables[1:], projections[1:], strict=True):
                down.weight.copy_(projection.T)
                up.weight.copy_(table)
        return list(self._module.parameters())

    def loss(self) -> Any:
        """Of each token: the module's mean loss is not used."""
        return -self._module(self._hidden, self._targets).output

    def gradients(self) -> Weights:
        """By refimpl's names; None for what the module has not."""
        shortlist, head, tails = self._module.shortlist_size, self._module.head, list(self._module.tail)
        tables = [head.weight.grad[:shortlist], *(up.weight.grad for _, up in tails)]
        projections = [None, *(down.weight.grad.T for down, _ in tails)]
        return Weights(tables, [head.bias.grad[:shortlist], *[None] * len(tails)], projections,
                       head.weight.grad[shortlist:], head.bias.grad[shortlist:])


class Same(Subject):
    """Every cluster projected, every table with a bias: only the rows that a cluster's words are the targets of."""

    def parameters(self, weights: Weights, settings: Mapping[str, Any]) -> list[Any]:
        """All weights."""
        self._weights = Weights(*map(_tensors, weights[:3]), *_tensors(weights[3:]))
        leaves = [*self._weights.tables, *self._weights.biases, *self._weights.projections, *self._weights[3:]]
        return [leaf.requires_grad_() for leaf in leaves]

    def loss(self) -> Any:
        """Of each token."""
        weights, hidden, targets = self._weights, self._hidden, self._targets
        table = torch.cat([weights.tables[0], weights.cluster_table])
        bias = torch.cat([weights.biases[0], weights.cluster_bias])
        head = torch.log_softmax(functional.linear(hidden @ weights.projections[0], table, bias), -1)
        shortlist = first = len(weights.tables[0])
        columns, tails = targets.clone(), []
        for i, words in enumerate(weights.tables[1:], start=1):
            rows = ((targets >= first) & (targets < first + len(words))).nonzero().squeeze(1)
            if len(rows):
                columns[rows] = shortlist + i - 1
                scores = functional.linear(hidden[rows] @ weights.projections[i], words, weights.biases[i])
                log_p = torch.log_softmax(scores, -1)
                tails.append((rows, log_p.gather(1, (targets[rows] - first)[:, None]).squeeze(1)))
            first += len(words)
        log_p = head.gather(1, columns[:, None]).squeeze(1)
        for rows, of_tail in tails:
            log_p = log_p.index_add(0, rows, of_tail)
        return -log_p

    def gradients(self) -> Weights:
        """By refimpl's names."""
        of_lists = ([leaf.grad for leaf in leaves] for leaves in self._weights[:3])
        return Weights(*of_lists, *(leaf.grad for leaf in self._weights[3:]))


def _tensors(arrays: Any) -> list[Any]:
    return [torch.from_numpy(array) for array in arrays]
