"""Budgets and pairs on a device: the network, the sizes and the figures of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import SentencePairs
from fairtrim_adapters.torch_pruning import MeanDamageImportance, prune_for_pairs
from fairtrim_adapters.torch_pruning.budget import prune_to, smallest
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")


def _network() -> nn.Module:
    """It gives about its first three inputs, by two pairs of channels each."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    signs = torch.cat([torch.eye(4), -torch.eye(4)]).repeat(2, 1)
    with torch.no_grad():
        model[0].weight.copy_(signs * (1 + torch.rand(16, 1)))
        model[2].weight.copy_(signs.T[:3])
    return model


def _people(n: int, seed: int) -> TensorDataset:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x[:, :3].argmax(1), torch.arange(n) % 2)


def _batches(n: int, seed: int, at: torch.device = CPU) -> list[tuple[Tensor, ...]]:
    """Two of people who lie on a device, or on the CPU."""
    first, last = (tuple(column[rows] for column in _people(n, seed).tensors) for rows in (slice(0, 30), slice(30, n)))
    return [tuple(column.to(at) for column in first), last]


def _figures(done: Any) -> list[Any]:
    numbers = done.measured.drop(columns="sensitive_group").to_numpy(dtype=float)
    return [dict(done.model.state_dict()), done.macs, done.parameters, numbers]


def _to(device: torch.device, at: torch.device, importance: Any = None) -> list[Any]:
    people, judges = _batches(61, 1, at), _batches(43, 2, at)
    options: dict[str, Any] = {"macs": 0.6, "held_out": judges, "importance": importance, "progress": False}
    return _figures(prune_to(_network().to(device), people, torch.ones(1, 4), **options))


def test_pruned_to_a_budget(accelerator: Accelerator) -> None:
    accelerator.check_same(_to(accelerator.device, accelerator.device), _to(CPU, CPU))


@pytest.mark.slow
def test_by_the_hosts_importance(accelerator: Accelerator) -> None:
    magnitude = tp.importance.GroupMagnitudeImportance()
    accelerator.check_same(_to(accelerator.device, CPU, magnitude), _to(CPU, CPU, magnitude))


@pytest.mark.slow
def test_joint_selection_and_pinned_batches(accelerator: Accelerator) -> None:
    def pruned(device: torch.device, pin: bool) -> list[Any]:
        loaders = [DataLoader(_people(n, n), batch_size=30, pin_memory=pin) for n in (61, 43)]
        joint, example = MeanDamageImportance(selection="joint"), torch.ones(1, 4)
        options: dict[str, Any] = {"held_out": loaders[1], "importance": joint, "reconstruct": False}
        return _figures(prune_to(_network().to(device), loaders[0], example, macs=0.6, progress=False, **options))

    accelerator.check_same(pruned(accelerator.device, True), pruned(CPU, False))


def test_the_smallest(accelerator: Accelerator) -> None:
    def found(device: torch.device, at: torch.device) -> list[Any]:
        drops = {"accuracy": 0.2, "balanced accuracy": 0.3}
        options: dict[str, Any] = {"max_drop": drops, "confidence": None, "grid": 0.5}
        people, judges = _batches(61, 1, at), _batches(143, 2, at)
        done = smallest(_network().to(device), people, torch.ones(1, 4), held_out=judges, progress=False, **options)
        assert done.macs < 1
        return [*_figures(done), done.history["accuracy drop"].tolist()]

    accelerator.check_same(found(accelerator.device, accelerator.device), found(CPU, CPU))


@pytest.mark.slow
def test_a_budget_without_float64(pretend: PretendAccelerator) -> None:
    expected = _to(CPU, CPU)
    pretend.refuses_float64 = True
    found = _to(pretend.device, CPU)
    assert found[1:3] == expected[1:3]
    for value, other in zip(found[0].values(), expected[0].values(), strict=True):
        torch.testing.assert_close(value.cpu(), other, rtol=1e-4, atol=1e-5)


class Bigrams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.out = nn.Embedding(13, 5), nn.Linear(5, 15), nn.Linear(15, 13)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        scores: Tensor = self.out(torch.tanh(self.up(self.embed(input_ids))))
        return scores


def _for_pairs(device: torch.device, at: torch.device) -> list[Any]:
    torch.manual_seed(3)
    model = Bigrams().to(device)
    pairs = [
        SentencePairs.of_tokens([[1, k % 5 + 3 + s] for k in range(10)], [[2, k % 5 + 3 + s] for k in range(10)])
        for s in range(2)
    ]
    ids = torch.randint(0, 13, (6, 5), generator=torch.Generator().manual_seed(4))
    labels = torch.cat([ids[:, 1:], torch.full((6, 1), -100)], 1)
    texts = [({"input_ids": ids[:4].to(at)}, labels[:4].to(at)), ({"input_ids": ids[4:]}, labels[4:])]
    done = prune_for_pairs(
        model, pairs[0], texts, held_out=pairs[1], held_out_texts=texts, chunks=2, pruning_ratio=0.4,
        perplexity_rise=0.5, ignored_layers=["embed"], progress=False,
    )  # fmt: skip
    return [dict(done.model.state_dict()), done.history.to_numpy(dtype=float)]


def test_pruned_for_pairs(accelerator: Accelerator) -> None:
    expected = _for_pairs(CPU, CPU)
    found = _for_pairs(accelerator.device, accelerator.device)
    accelerator.check_same(found, expected, other_kernels=True)  # linear layers of sequences


@pytest.mark.slow
def test_pairs_without_float64(pretend: PretendAccelerator) -> None:
    expected = _for_pairs(CPU, CPU)
    pretend.refuses_float64 = True
    pretend.check_same(_for_pairs(pretend.device, CPU), expected, other_kernels=True)
