"""Networks and people for Fairlearn's frames, and frames to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from fairlearn.metrics import MetricFrame
from torch import nn

SEX, RACE = ["Female", "Male"], ["Black", "Other", "White"]


NAMES = {"sex": SEX, "race": RACE}


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)


def drawn_data(n_classes: int = 2, n_samples: int = 57) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n_samples, 5, generator=generator)
    y = torch.randint(0, n_classes, (n_samples,), generator=generator)
    codes = torch.stack([torch.randint(0, k, (n_samples,), generator=generator) for k in (2, 3)], 1)
    return x, y, codes


def linear(n_classes: int = 2, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(5, n_classes)


def people_frame(codes: torch.Tensor) -> pd.DataFrame:
    return pd.DataFrame({"sex": [SEX[c] for c in codes[:, 0]], "race": [RACE[c] for c in codes[:, 1]]})


N, D = 90, 4


Floats = npt.NDArray[np.float64]


def task(n_classes: int, n_outputs: int | None = None) -> tuple[nn.Module, torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(n_classes)
    x = torch.randn(N, D, generator=generator)
    y = torch.randint(0, n_classes, (N,), generator=generator)
    people = ["a" if value else "b" for value in torch.rand(N, generator=generator) > 0.4]
    model = nn.Linear(D, n_outputs or n_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, x, y, people


def scores_of(model: nn.Module, x: torch.Tensor) -> Floats:
    with torch.no_grad():
        return model(x).double().numpy()


def expected_frame(metric: Callable[..., Any], y: torch.Tensor, response: npt.NDArray[Any], people: list[str]) -> Any:
    return MetricFrame(metrics=metric, y_true=y.numpy(), y_pred=response, sensitive_features=people)


def check_frames(found: MetricFrame, expected: MetricFrame) -> None:
    assert found.overall == pytest.approx(expected.overall, rel=1e-12)
    assert found.by_group.to_dict() == pytest.approx(expected.by_group.to_dict(), rel=1e-12)
