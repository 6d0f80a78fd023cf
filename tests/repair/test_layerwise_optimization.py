"""Layer-wise optimisation: one tensor after the other, of any size and scale."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fairtrim import (
    LayerwiseOptimization,
)
from fairtrim.repair.working_copy import WorkingCopy
from tests.repair_cases import begun_network, some_people


def test_layers_are_searched_one_at_a_time() -> None:
    people, model = some_people(), begun_network()
    given = model[2].weight.detach()
    box = 2.2 * float(given.std(correction=0)) + 1e-12
    tensors = []
    for random_state in (0, 1):  # how many candidates a search keeps is chance
        method = LayerwiseOptimization(tensors=2, max_evaluations=40, epsilon=0.1, random_state=random_state)
        repair = method.repair(model, people, progress=False)
        for candidate, point in {point.candidate: point for point in repair.trade_off if point.candidate}.items():
            other = repair._network(point).state_dict()
            changed = {name for name, value in model.state_dict().items() if not torch.equal(value, other[name])}
            tensors.append(repair.history[candidate]["tensor"])
            assert changed | {"2.bias"} == {tensors[-1], "2.bias"}  # the bias holds thresholds
            assert float((other["2.weight"] - given).abs().max()) <= box
    assert tensors and set(tensors) <= {"2.weight", "2.bias"}


def test_large_tensors() -> None:
    wide = begun_network(hidden=300)
    method = LayerwiseOptimization(tensors=2, max_evaluations=9, epsilon=0.3)
    assert method.repair(wide, some_people(), progress=False).within_bound


def test_boxes_that_are_too_wide() -> None:
    model = begun_network(dtype=torch.float32)
    people = replace(some_people(), inputs=some_people().inputs.float() * 1e3)
    method = LayerwiseOptimization(width=1e38, max_evaluations=9, epsilon=0.3)
    assert method.repair(model, people, progress=False).within_bound


def test_of_many_entries_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others stay, and a tensor of more than a hundred thousand is searched at all."""
    people = some_people(41)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 60_000), nn.Tanh(), nn.Linear(60_000, 2)).double()
    moved: list[int] = []
    loss = LayerwiseOptimization._loss

    def noted(method: Any, working: WorkingCopy, *arguments: Any) -> float:
        moved.extend(int((v != working.original[name]).sum()) for name, v in working.changed().items())
        return loss(method, working, *arguments)

    monkeypatch.setattr(LayerwiseOptimization, "_loss", noted)
    settings: dict[str, Any] = {"tensors": 2, "max_evaluations": 2, "epsilon": 0.3}
    LayerwiseOptimization(**settings, max_sparsity=500).repair(model, people, progress=False)
    assert max(moved) == 500
    moved.clear()
    LayerwiseOptimization(**settings).repair(model, people, progress=False)
    assert max(moved) == 100_000 < 2 * 60_000
