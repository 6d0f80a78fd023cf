"""A refit that only takes note, and what a network holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim.reconstruction import Reader, Reconstruction
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph, correct_group
from fairtrim_adapters.torch_pruning.reconstruction import wrap
from tests.zoo import Network


class Quota:
    """An importance with scores that mean nothing, for roots whose indices repeat as well."""

    def __call__(self, group: tp.Group) -> Tensor:
        correct_graph(group._DG)
        correct_group(group)
        return torch.arange(len(group[0].idxs), dtype=torch.float64) * 0.618 % 1


class Noted:
    """Stands for ``reconstruct``: keeps what it was called with, and does to the network what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, effect: Any = None) -> None:
        self.readers: list[Reader] = []
        self.dense: nn.Module | None = None
        self._effect = effect
        monkeypatch.setattr(wrap, "reconstruct", self)

    def __call__(
        self, model: nn.Module, dense: nn.Module, loader: Iterable[Any], readers: Sequence[Reader], **options: Any
    ) -> Reconstruction:
        self.readers, self.dense = list(readers), dense
        if self._effect is not None:
            self._effect(model)
        return Reconstruction(())


def batches_of(case: Network, n_samples: int = 6) -> list[tuple[Tensor, ...]]:
    x, y = case.batch(n_samples)
    return [(x, y, torch.arange(n_samples) % 3)]


def held(model: nn.Module) -> list[Any]:
    """The very tensors, their numbers, and what modules say of themselves."""
    tensors = [*model.parameters(), *model.buffers()]
    sizes = [
        {k: v for k, v in vars(m).items() if isinstance(v, int | tuple | str) and not k.startswith("_")}
        for m in model.modules()
    ]
    return [[id(t) for t in tensors], [t.detach().clone().tolist() for t in tensors], sizes]
