"""Columns held at their mean inside of the network, against the same done to the data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import ColumnErasure, InputError, UnsupportedModelError, ValidationSet
from tests.repair_cases import begun_network, some_people
from tests.snapshot import Snapshot


@pytest.mark.parametrize("n_outputs", [1, 2, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_are_those_of_people_with_the_mean_in_the_columns(n_outputs: int, weighted: bool) -> None:
    people, model = some_people(97, n_classes=max(2, n_outputs), weighted=weighted), begun_network(n_outputs)
    before = Snapshot(model)
    repair = ColumnErasure(columns=[1, 3]).repair(model, people, progress=False)
    before.assert_unchanged()
    held = people.inputs.clone()
    held[:, [1, 3]] = ((people.mass / people.mass.sum()) @ people.inputs)[[1, 3]]
    with torch.no_grad():
        torch.testing.assert_close(repair.model(people.inputs), model(held))
    assert repair.bias == 0 < repair.bias_before and repair.within_bound
    assert torch.equal(repair.model[0].weight[:, [0, 2]], model[0].weight[:, [0, 2]])
    assert repair.chosen.candidate == 1 and repair.threshold == 0.5
    assert repair.selection_rows.tolist() == list(range(97)) and len(repair.edit_rows) == 0


def test_columns_by_name() -> None:
    people, model = some_people(), begun_network()
    names = ["age", "sex", "pay", "town"]
    named = ColumnErasure(columns=["sex"], names=names).repair(model, people, progress=False)
    numbered = ColumnErasure(columns=[1]).repair(model, people, progress=False)
    torch.testing.assert_close(named.model.state_dict(), numbered.model.state_dict(), rtol=0, atol=0)


class _Wide(nn.Module):
    """Two layers read the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.wide, self.head = nn.Linear(4, 5), nn.Linear(4, 2), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.deep(x).relu(), self.wide(x)], 1))
        return scores


def test_every_layer_that_reads_the_inputs() -> None:
    torch.manual_seed(0)
    model = _Wide().double()
    repair = ColumnErasure(columns=[0]).repair(model, some_people(), progress=False)
    for name in ("deep", "wide"):
        layer: Any = repair.model.get_submodule(name)
        assert bool((layer.weight[:, 0] == 0).all())


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2)), "something else than a linear layer reads the columns"),
        (nn.Sequential(nn.Linear(4, 5, bias=False), nn.Tanh(), nn.Linear(5, 2)), "has no bias to take their mean"),
    ],
)
def test_networks_that_cannot_forget(model: nn.Module, message: str) -> None:
    model = model.double()
    before = Snapshot(model)
    with pytest.raises(UnsupportedModelError, match=message):
        ColumnErasure(columns=[0]).repair(model, some_people(), progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, r"columns=\(\); expected the columns of the attribute"),
        ({"columns": "sex"}, "columns='sex'; expected the columns"),
        ({"columns": ["sex"]}, "there is no column 'sex'; expected one of names=None"),
        ({"columns": [0], "measure": "demographic_parity_difference"}, "expected one of .*counterfactual_flips"),
        ({"columns": [0], "privileged": "a"}, "compares no groups"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ColumnErasure(**settings)


def test_bad_inputs() -> None:
    people = some_people()
    with pytest.raises(InputError, match=r"columns \[4\] of a table of 4"):
        ColumnErasure(columns=[4]).repair(begun_network(), people, progress=False)
    images = replace(people, inputs=people.inputs.reshape(-1, 1, 2, 2))
    with pytest.raises(InputError, match="the inputs are no table"):
        ColumnErasure(columns=[0]).repair(begun_network(), images, progress=False)


def test_groups_may_be_unknown() -> None:
    people = some_people()
    pairs = [(people.inputs, people.target)]
    assert ColumnErasure(columns=[0]).repair(begun_network(), pairs, progress=False).bias == 0
    alone = ValidationSet(people.inputs, people.target, torch.zeros(97), ("all",))
    assert ColumnErasure(columns=[0]).repair(begun_network(), alone, progress=False).bias == 0
