"""Fairlearn's frames and the repaired classifier with networks on a device other than the CPU."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, ThresholdSelection, predict
from fairtrim_adapters.fairlearn import (
    RepairedClassifier,
    compare_models,
    eodd,
    measurements,
    metric_frame,
)
from tests.fairlearn_cases import NAMES, drawn_data, linear
from tests.pretend_accelerator import Accelerator, PretendAccelerator

CPU = torch.device("cpu")


@pytest.fixture
def device(accelerator: Accelerator) -> torch.device:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True
    return accelerator.device


def loader(device: torch.device = CPU) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*(tensor.to(device) for tensor in drawn_data(n_samples=21))), batch_size=8)


def test_frames_and_comparisons(device: torch.device) -> None:
    def told(on: torch.device) -> list[Any]:
        models, options = {"dense": linear().to(on), "pruned": linear(seed=1).to(on)}, {"sensitive_names": NAMES}
        compared = compare_models(models, loader(on), n_boot=None, progress=False, **options)
        predictions = predict(models, loader(on), progress=False, **options)
        gap = eodd(predictions.target, predictions.label["dense"], sensitive_features=predictions.sensitive["sex"])
        row = {**measurements(predictions, "pruned", "dense", n_boot=None), "eodd": gap}
        return [compared.overall, compared.by_group, pd.DataFrame([row])]

    for found, expected in zip(told(device), told(CPU), strict=True):
        pd.testing.assert_frame_equal(found, expected)
    expected = metric_frame(linear(), loader(), metrics=accuracy_score, progress=False).by_group
    for data in (CPU, device):
        found = metric_frame(linear().to(device), loader(data), metrics=accuracy_score, progress=False).by_group
        pd.testing.assert_series_equal(found, expected)


def people() -> tuple[torch.Tensor, torch.Tensor, np.ndarray[Any, Any]]:
    x, y, codes = drawn_data(n_samples=60)
    return x, y, np.where(codes[:, 0].numpy() == 1, "Male", "Female")


@pytest.mark.parametrize("there", [False, True])
def test_a_trained_network_is_repaired_where_it_is(there: bool, device: torch.device) -> None:
    x, y, sex = people()

    def repaired(on: torch.device, data: torch.device) -> list[Any]:
        classifier = RepairedClassifier(linear().to(on), ThresholdSelection(epsilon=0.1), prefit=True)
        codes = torch.from_numpy((sex == "Male").astype(np.int64)).to(data)
        classifier.fit(x.to(data), y.to(data), sensitive_features=codes if data != CPU else sex == "Male")
        assert {parameter.device for parameter in classifier.model_.parameters()} == {on}
        return [classifier.predict(x.to(data)), classifier.predict_proba(x), classifier.decision_function(x)]

    for found, expected in zip(repaired(device, device if there else CPU), repaired(CPU, CPU), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_net_of_skorch_trains_there(accelerator: Accelerator) -> None:
    skorch = pytest.importorskip("skorch")
    x, y, sex = people()

    def trained(on: torch.device) -> list[Any]:
        net = skorch.NeuralNetClassifier(
            copy.deepcopy(linear()), criterion=nn.CrossEntropyLoss, lr=0.1, max_epochs=1, verbose=0, train_split=None,
            device=str(on),
        )  # fmt: skip
        classifier = RepairedClassifier(net, ThresholdSelection(epsilon=0.9))
        classifier.fit(x.numpy(), y.numpy(), sensitive_features=sex)
        return [classifier.predict(x.numpy()), classifier.predict_proba(x.numpy())]

    for found, expected in zip(trained(accelerator.device), trained(CPU), strict=True):
        accelerator.check_same(np.asarray(found, dtype=float), np.asarray(expected, dtype=float))


def test_generators_of_the_device_seed_a_bootstrap(accelerator: Accelerator) -> None:
    predictions = predict({"dense": linear(), "pruned": linear(seed=1)}, loader(), progress=False)
    rows = [
        measurements(predictions, "pruned", "dense", n_boot=5, random_state=generator)
        for generator in (torch.Generator(accelerator.device).manual_seed(seed) for seed in (3, 3, 4))
    ]
    ends = [[value for name, value in row.items() if name.endswith("_low")] for row in rows]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert not np.array_equal(ends[0], ends[2], equal_nan=True)
    with pytest.raises(InputError, match="random_state='3'; expected a whole number"):
        measurements(predictions, "pruned", "dense", random_state="3")  # type: ignore[arg-type]
