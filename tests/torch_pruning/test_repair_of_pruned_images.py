"""A pruned convolutional network of ten classes is repaired for a minority that looks different."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from fairtrim import ParityFineTuning
from fairtrim_adapters.torch_pruning import prune_to


def _accuracies(model: nn.Module, x: Tensor, y: Tensor, minority: Tensor) -> tuple[float, float]:
    with torch.no_grad():
        right = (model(x).argmax(1) == y).double()
    return float(right[minority == 0].mean()), float(right[minority == 1].mean())


@pytest.mark.slow
def test_accuracy_of_the_minority_rises_on_other_images() -> None:
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(0)
    minority = (torch.rand(len(x), generator=generator) < 0.3).long()
    x[minority == 1] = 1 - x[minority == 1]
    order = torch.randperm(len(x), generator=generator)
    train, validation, test = order[:700], order[700:1250], order[1250:]
    train = train[(minority[train] == 0) | (torch.rand(700, generator=generator) < 0.3)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for _ in range(12):
            for rows in torch.split(torch.randperm(len(train)), 32):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[train[rows]]), y[train[rows]]).backward()
                optimizer.step()
    people = [(x[validation], y[validation], minority[validation])]
    pruned = prune_to(model.eval(), [(x[train], y[train])], x[:1], macs=0.5, held_out=people, progress=False).model
    unseen = x[test], y[test], minority[test]
    before = _accuracies(pruned, *unseen)
    assert before[0] - before[1] > 0.1
    method = ParityFineTuning(measure="accuracy_score_difference", epsilon=0.1, performance="accuracy")
    repair = method.repair(pruned, people, progress=False)
    assert repair.within_bound and repair.bias < repair.bias_before - 0.05
    assert any(flag.startswith("accuracy rose by more than its error for 1") for flag in repair.flags)
    after = _accuracies(repair.model, *unseen)
    assert after[1] > before[1] + 0.05 and after[0] > before[0] - 0.03
