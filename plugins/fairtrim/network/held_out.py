"""Samples that a training does not see: how they are drawn, and the epoch that does best on them."""

from __future__ import annotations

import torch
from torch import Tensor

from fairtrim.arguments import RandomState, random_generator, require_number
from fairtrim.data.indexed_samples import IndexedSamples
from fairtrim.errors import InputError
from fairtrim.measures.scores import labels_of
from fairtrim.preservation import preserved_model, seeded

from .scored_network import ScoredNetwork

__all__ = ["BestEpoch", "cells_of", "check_held_out", "held_out_samples"]


def check_held_out(held_out: float | Tensor | None, n_samples: int | None = None) -> None:
    """Refuse what says no samples to hold out.

    Args:
        held_out: A share, or flags (N,) bool of the samples; None for none.
        n_samples: N, where it is known already.

    Raises:
        InputError: The share is not between 0 and 1, or the flags are not boolean, of another length, all or none set.

    Example:
        >>> check_held_out(0.1)
        >>> check_held_out(1.5)
        Traceback (most recent call last):
        fairtrim.errors.InputError: held_out=1.5; expected above 0, below 1, a share of the samples, or flags (N,) bool
    """
    if held_out is None:
        return
    if not isinstance(held_out, Tensor):
        remedy = ", a share of the samples, or flags (N,) bool"
        require_number("held_out", held_out, above=0, below=1, remedy=remedy)
        return
    n_flags, n_held = held_out.numel(), int(held_out.sum())
    if held_out.ndim != 1 or held_out.dtype != torch.bool or (n_samples or n_flags) != n_flags:
        raise InputError(
            f"held_out is {held_out.dtype} of shape {tuple(held_out.shape)}; expected a share, or one flag for each "
            f"of {n_samples or 'the'} samples, (N,) torch.bool"
        )
    if n_held in (0, n_flags):
        raise InputError(f"held_out holds {n_held} of {n_flags} samples out; expected some, and others to train on")


def held_out_samples(
    held_out: float | Tensor, target: Tensor, conflicting: Tensor | None, random_state: RandomState
) -> Tensor:
    """The samples to hold out: those given, or a share of every class, of its mined and its other samples alike.

    Of a cell of two or more at least one is held out and one is left; a cell of one is left.

    Args:
        held_out: The share, or flags, (N,) bool, which are given back.
        target: Labels, (N,).
        conflicting: The mined set, (N,), or None.
        random_state: Seed, or a torch.Generator, that draws them.

    Returns:
        (N,) bool.

    Raises:
        InputError: ``check_held_out`` refuses it, or no cell has two samples.

    Example:
        >>> target = torch.tensor([0] * 10 + [1] * 20)
        >>> flags = held_out_samples(0.2, target, conflicting=torch.arange(30) >= 27, random_state=0)
        >>> int(flags[:10].sum()), int(flags[10:27].sum()), int(flags[27:].sum())
        (2, 3, 1)
    """
    check_held_out(held_out, len(target))
    if isinstance(held_out, Tensor):
        return held_out.cpu()
    cells = cells_of(target, conflicting)
    order = torch.randperm(len(target), generator=random_generator(random_state), device="cpu")
    flags = torch.zeros(len(target), dtype=torch.bool, device="cpu")
    for cell in torch.unique(cells).tolist():
        members = order[cells[order] == cell]
        flags[members[: min(max(1, round(held_out * len(members))), len(members) - 1)]] = True
    if not bool(flags.any()):
        raise InputError(f"none of {len(target)} samples has another of its class; there is nothing to hold out")
    return flags


def cells_of(target: Tensor, conflicting: Tensor | None) -> Tensor:
    """A number for each class, or each class and flag, (N,) int64.

    Example:
        >>> cells_of(torch.tensor([0, 0, 1]), torch.tensor([True, False, True])).tolist()
        [1, 0, 3]
    """
    cells = 2 * target.cpu().long()
    return cells if conflicting is None else cells + conflicting.cpu().long()


class BestEpoch:
    """Keeps the weights of the epoch that does best on held-out samples, the earliest of equals.

    Judged by the mean over cells of class and flag of the accuracy in each, so that many aligned samples don't outvote
    the few mined ones; cells in which nothing is held out don't count.

    Args:
        network: In training.
        samples: The dataset.
        held_out: The samples that the training does not see, (N,) bool.
        cells: Of ``cells_of``, (N,).

    Attributes:
        accuracy: Of the best epoch; −1 before the first.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = TensorDataset(torch.tensor([[1.0], [-1.0], [-1.0]]), torch.tensor([1, 0, 1]))
        >>> held_out, model = torch.ones(3, dtype=torch.bool), nn.Linear(1, 1)
        >>> model.weight.data, model.bias.data = torch.ones(1, 1), torch.zeros(1)
        >>> best = BestEpoch(ScoredNetwork(model), IndexedSamples(DataLoader(data)), held_out, data.tensors[1])
        >>> best.judge()
        >>> best.accuracy  # all of class 0, half of class 1
        0.75
        >>> model.weight.data = -model.weight.data
        >>> best.judge()
        >>> best.restore()
        >>> model.weight.item()
        1.0
    """

    def __init__(self, network: ScoredNetwork, samples: IndexedSamples, held_out: Tensor, cells: Tensor) -> None:
        self.network, self.samples, self.held_out, self.cells = network, samples, held_out, cells
        self.accuracy, self._best = -1.0, self._now()

    def judge(self) -> None:
        """Judge the network as it is now; random transforms draw the same each time, from no state of the caller's."""
        right = torch.zeros(len(self.cells), dtype=torch.bool, device="cpu")
        judged: list[tuple[Tensor, Tensor]] = []
        with seeded(torch.Generator().manual_seed(0)), preserved_model(self.network.model), torch.no_grad():
            for indices, batch in self.samples.in_order(self.network.device, among=self.held_out):
                judged.append((indices, labels_of(self.network.scores(batch)) == batch.target))
        right[torch.cat([indices for indices, _ in judged])] = torch.cat([same for _, same in judged]).cpu()
        right, cells = right[self.held_out].double(), self.cells[self.held_out]
        accuracy = float(torch.stack([right[cells == cell].mean() for cell in torch.unique(cells)]).mean())
        if accuracy > self.accuracy:
            self.accuracy, self._best = accuracy, [tensor.clone() for tensor in self._now()]

    def restore(self) -> None:
        """Give the network the weights and the statistics of the best epoch."""
        with torch.no_grad():
            for tensor, best in zip(self._now(), self._best, strict=True):
                tensor.copy_(best)

    def _now(self) -> list[Tensor]:
        model = self.network.model
        return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
