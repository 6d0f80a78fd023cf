"""AIF360's datasets and post-processing with networks on a device other than the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fairtrim import ThresholdSelection
from fairtrim_adapters.aif360 import (
    NetworkPostProcessing,
    from_tensors,
    predict_dataset,
    to_dataset,
    to_tensors,
    to_validation_set,
)
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")
SIDES: dict[str, Any] = {"unprivileged_groups": [{"sex": 0}], "privileged_groups": [{"sex": 1}]}


@pytest.fixture
def device(accelerator: Accelerator) -> torch.device:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    return accelerator.device


def people(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=generator)
    return x.to(device), (x[:, 0] + 0.5 * x[:, 2] > 0).long().to(device), (x[:, 1] > 0).long().to(device)


def dataset(device: torch.device) -> Any:
    x, y, sex = people(device)
    weight = torch.linspace(0.5, 2, len(x)).to(device)
    return from_tensors(x, y, feature_names=["a", "b", "c"], protected_attributes={"sex": sex}, weight=weight)


def network(device: torch.device) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return nn.Linear(3, 2).to(device)


def columns(made: Any) -> list[Any]:
    return [made.features, made.labels, made.scores, made.instance_weights, made.protected_attributes]


def check(found: list[Any], expected: list[Any], accelerator: Accelerator) -> None:
    for left, right in zip(found, expected, strict=True):
        accelerator.check_same(np.asarray(left), np.asarray(right))


def test_datasets_from_tensors_of_the_device(device: torch.device, accelerator: Accelerator) -> None:
    check(columns(dataset(device)), columns(dataset(CPU)), accelerator)
    assert to_tensors(dataset(device)).inputs.device == CPU
    assert to_validation_set(dataset(device), **SIDES).weight.device == CPU
    scores = torch.randn(40, 2, generator=torch.Generator().manual_seed(3))
    check(columns(to_dataset(dataset(CPU), scores.to(device))), columns(to_dataset(dataset(CPU), scores)), accelerator)


def test_predictions_and_repairs(device: torch.device, accelerator: Accelerator) -> None:
    features = ["a", "b", "c"]

    def repaired(on: torch.device) -> list[Any]:
        given = dataset(CPU)
        repairing = NetworkPostProcessing(
            network(on), ThresholdSelection(epsilon=0.1), features=features, progress=False, **SIDES
        )
        predicted = repairing.fit(given).predict(given)
        assert {parameter.device for parameter in repairing.model_.parameters()} == {on}
        return [*columns(predicted), *columns(predict_dataset(network(on), given, features=features))]

    check(repaired(device), repaired(CPU), accelerator)
