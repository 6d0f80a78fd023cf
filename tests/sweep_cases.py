"""Small networks and data for sweeps."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import POST_PROCESSORS, ThresholdSelection
from fairtrim_adapters.sweep import DataSplits, sweep
from fairtrim_adapters.torch_pruning import IMPORTANCES, MeanDamageImportance

MEASURED_ANEW = ["latency_ms", "latency_ratio", "seconds"]


def people(n: int, seed: int, n_classes: int = 2) -> DataLoader[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    sex = (torch.rand(n, generator=generator) < 0.6).long()
    score = x[:, 0] + 0.8 * x[:, 1] * sex + 0.3 * torch.randn(n, generator=generator)
    y = torch.bucketize(score, torch.linspace(-0.5, 0.5, n_classes - 1) if n_classes > 2 else torch.tensor([0.2]))
    return DataLoader(TensorDataset(x, y, sex), batch_size=64)


def splits(**more: Any) -> DataSplits:
    loaders = {"scoring": people(150, 1), "validation": people(300, 2), "test": people(200, 3), "train": people(120, 4)}
    return DataSplits(**{**loaders, "sensitive_names": {"sex": ["Female", "Male"]}, **more})


@functools.cache
def trained(seed: int, n_classes: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, n_classes)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    x, y, _ = people(200, 7 + seed, n_classes).dataset.tensors  # type: ignore[attr-defined]
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model.eval()


def network(seed: int = 0, n_classes: int = 2) -> nn.Sequential:
    return copy.deepcopy(trained(seed, n_classes))


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(
        left.drop(columns=MEASURED_ANEW, errors="ignore"), right.drop(columns=MEASURED_ANEW, errors="ignore")
    )


def quick(*arguments: Any, **options: Any) -> pd.DataFrame:
    return sweep(*arguments, **{"n_boot": 10, "latency_rounds": 0, "progress": False, **options})


class OthersImportance(MeanDamageImportance):
    """A criterion of another package."""

    name = "others"
    does = "what others do"
    source = "others"
    link = "https://others.example/paper"
    standing = "published"
    remark = "their own words"


class OtherThreshold(ThresholdSelection):
    """A post-processor of another package."""

    name = "other-threshold"
    does = "moves a threshold elsewhere"
    source = "others"
    standing = "published"


@contextmanager
def announced() -> Iterator[None]:
    """Both, as packages announce them."""
    found = [
        EntryPoint("others", f"{__name__}:OthersImportance", "fairtrim.criteria"),
        EntryPoint("other-threshold", f"{__name__}:OtherThreshold", "fairtrim.post_processors"),
    ]
    registries = (IMPORTANCES, POST_PROCESSORS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fairtrim.registry.entry_points", lambda group: [e for e in found if e.group == group])
        for registry in registries:
            registry.refresh()
        yield
        for registry, entry in zip(registries, found, strict=True):
            registry.remove(entry.name)
    for registry in registries:
        registry.refresh()
