"""A shortcut and samples that contradict it, and miners of each kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import CASES, Case

N, N_CONFLICTING = 300, 15


def shortcut() -> tuple[Tensor, Tensor, Tensor]:
    """A large feature tells the class of all but a few samples, a small and noisy one of every sample."""
    generator = torch.Generator().manual_seed(1)
    y = (torch.arange(N) % 5 < 2).long()
    conflicting = torch.zeros(N, dtype=torch.bool)
    conflicting[torch.randperm(N, generator=generator)[:N_CONFLICTING]] = True
    sign = 2.0 * y - 1
    x = torch.stack([3 * torch.where(conflicting, -sign, sign), 0.5 * sign], 1)
    return x + 0.4 * torch.randn(N, 2, generator=generator), y, conflicting


def loader_of_shortcut(shuffle: bool = True) -> DataLoader[Any]:
    x, y, _ = shortcut()
    return DataLoader(TensorDataset(x, y), batch_size=32, shuffle=shuffle)


def mlp() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 2))


# Miners by hand -------------------------------------------------------------------------------------------

CASE = CASES["plain"]


def data_of(case: Case = CASE, n_samples: int = 13) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*case.batch(n_samples)), batch_size=5, shuffle=True)
