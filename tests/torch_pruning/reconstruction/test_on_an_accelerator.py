"""Torch-Pruning's steps on a device, refitted and measured: the network and the figures of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim_adapters.torch_pruning import WorstGroupImportance
from fairtrim_adapters.torch_pruning.reconstruction.wrap import reconstructed
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
X = torch.randn(48, 2, 7, 6, generator=torch.Generator().manual_seed(0))
EVERYBODY = X, torch.arange(48) % 3, torch.arange(48) // 3 % 2
DATA = TensorDataset(*(column[:37] for column in EVERYBODY))


def _network() -> nn.Module:
    torch.manual_seed(1)
    first = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(6, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(first, second, nn.Linear(5, 3)).eval()


def _pruned(device: torch.device, importance: Any, loader: Any, at: torch.device = CPU) -> list[Any]:
    model = _network().to(device)
    settings: dict[str, Any] = {"importance": importance, "pruning_ratio": 0.5, "ignored_layers": [model[2]]}
    pruner = tp.pruner.BasePruner(model, torch.ones(1, 2, 7, 6, device=device), **settings)
    if isinstance(importance, WorstGroupImportance):
        importance.fit(pruner, loader, progress=False)
    held_out = [tuple(column[37:].to(at) for column in EVERYBODY)]
    with reconstructed(pruner, loader, held_out=held_out, progress=False) as refit:
        pruner.step()
    assert refit.reconstruction is not None
    assert refit.measured is not None
    layers = [[layer.module, layer.ridge, layer.before, layer.after] for layer in refit.reconstruction.layers]
    return [dict(model.state_dict()), layers, refit.measured.drop(columns="sensitive_group").to_numpy(dtype=float)]


def test_as_on_the_cpu(accelerator: Accelerator) -> None:
    batches = [tuple(column[rows] for column in DATA.tensors) for rows in (slice(0, 20), slice(20, None))]
    expected = _pruned(CPU, WorstGroupImportance(compensated=True), batches)
    there = [tuple(column.to(accelerator.device) for column in batches[0]), batches[1]]  # one of two lies there
    found = _pruned(accelerator.device, WorstGroupImportance(compensated=True), there, accelerator.device)
    accelerator.check_same(found, expected)


@pytest.mark.slow
def test_pinned_batches(accelerator: Accelerator) -> None:
    magnitude = tp.importance.GroupMagnitudeImportance()
    expected = _pruned(CPU, magnitude, DataLoader(DATA, batch_size=20))
    found = _pruned(accelerator.device, magnitude, DataLoader(DATA, batch_size=20, pin_memory=True))
    accelerator.check_same(found, expected)


@pytest.mark.slow
def test_without_float64(pretend: PretendAccelerator) -> None:
    loader = DataLoader(DATA, batch_size=20)
    expected = _pruned(CPU, WorstGroupImportance(compensated=True), loader)
    pretend.refuses_float64 = True
    found = _pruned(pretend.device, WorstGroupImportance(compensated=True), loader)
    for value, other in zip(found[0].values(), expected[0].values(), strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=1e-4, atol=1e-5)
