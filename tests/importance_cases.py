"""Criteria and data for tests of importances in Torch-Pruning's pruner."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fairtrim_adapters.torch_pruning import (
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from tests.networks import Case

MAKERS: dict[str, Any] = {
    "group saliency": lambda **k: GroupSaliencyImportance(privileged=1, **k),
    "group saliency, weights": lambda **k: GroupSaliencyImportance(1, level="weight", selection="single", **k),
    "mean damage, single": lambda **k: MeanDamageImportance(selection="single", **k),
    "worst group": WorstGroupImportance,
    "tail risk, shrunk": lambda **k: TailRiskImportance(0.7, shrinkage=3.0, **k),
    "share balanced": ShareBalancedImportance,
}


def batches_of(case: Case, n_samples: int = 12) -> list[tuple[torch.Tensor, ...]]:
    x, y = case.batch(n_samples)
    a = torch.arange(n_samples) % 3
    return [(x[:5], y[:5], a[:5]), (x[5:], y[5:], a[5:])]


def reading_of(case: Case) -> dict[str, Any]:
    return {"output_transform": case.transform, "progress": False}


def widths_of(model: nn.Module) -> dict[str, int]:
    return {name: p.shape[0] for name, p in model.named_parameters()}
