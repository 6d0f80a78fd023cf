"""Pictures: drawn with Agg; figures are closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib

matplotlib.use("Agg")
import pytest
import torch
from matplotlib import pyplot
from torch import nn

from fairtrim import (
    ParityFineTuning,
    Repair,
    ThresholdSelection,
    ValidationSet,
)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    pyplot.close("all")


@pytest.fixture(scope="session")
def repairs() -> dict[str, Repair]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(131, 3, generator=generator)
    group = (x[:, 2] + 0.5 * torch.randn(131, generator=generator) > 0).long()
    target = (x[:, 0] + x[:, 2] + 0.3 * torch.randn(131, generator=generator) > 0.4).long()
    people = ValidationSet(x, target, group, ("a", "b"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[-1.0, 0.1, -1.0], [1.0, 0.0, 1.0]]))
    settings: dict[str, Any] = {"epsilon": 0.15, "margin": 0.02, "privileged": "b"}
    methods = {
        "threshold alone": ThresholdSelection(**settings),
        "parity penalty": ParityFineTuning(penalties=(1.0, 10.0), **settings),
    }
    found = {name: method.repair(model, people, progress=False) for name, method in methods.items()}
    assert all(len(repair.trade_off) > 5 for repair in found.values())
    assert any(point.bias < 0 for repair in found.values() for point in repair.trade_off)
    return found
