"""Flags: what makes figures mean less than they seem to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairtrim import predict
from fairtrim_adapters.fairlearn import compare_models, measurements
from tests.fairlearn_cases import (
    Constant,
)


def test_flags() -> None:
    x = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 4)
    y = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1])
    team = ["a"] * 6 + ["b"] * 6

    class Flipped(nn.Module):
        """Wrong for everybody alike."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    models = {"dense": nn.Identity(), "constant": Constant(), "flipped": Flipped()}
    comparison = compare_models(models, [(x, y, team)], sensitive_names=["team"], progress=False)
    found = set(zip(comparison.flags["model"], comparison.flags["flag"], strict=True))
    assert ("constant", "constant classifier") in found
    assert ("dense", "constant classifier") not in found
    gap = comparison.overall["equalized odds difference"]
    assert gap["flipped"] == pytest.approx(gap["dense"])  # mirrored: no gap fell
    assert ("flipped", "levelling down") not in found
    assert "empty cell" not in comparison.flags["flag"].tolist()


def _linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


@pytest.mark.parametrize(("times", "flagged"), [(1, False), (10, True)])
def test_levelling_down_and_empty_cells(times: int, flagged: bool) -> None:
    """Every group loses, the better one more: the gap falls; of few people that is within the error."""
    x = torch.zeros(20, 2)
    y = torch.tensor([0] * 10 + [1] * 2 + [0] * 8)
    x[:, 0] = 1.0
    x[2:6, 1] = 1.0  # a loses four
    x[12:14, 1] = 1.0  # b, of whom two are wrong already, loses two
    batch = (x.repeat(times, 1), y.repeat(times), (["a"] * 10 + ["b"] * 10) * times)
    models = {"dense": _linear([[1.0, 0.0], [0.0, 0.0]]), "worse": _linear([[1.0, 0.0], [0.0, 2.0]])}
    comparison = compare_models(models, [batch], progress=False)
    flags = comparison.flags
    levelling = flags[flags["flag"] == "levelling down"]
    assert levelling["model"].tolist() == (["worse"] if flagged else [])
    if flagged:
        assert "accuracy score difference" in levelling["detail"].iloc[0]
        assert "0.200 to 0.400" in levelling["detail"].iloc[0]
    row = measurements(predict(models, [batch], progress=False), "worse", "dense")
    assert ("levelling down" in row["flags"]) is flagged
    assert flags[flags["flag"] == "empty cell"]["detail"].tolist() == [
        "a: nobody of class 1, so rates of that class are undefined"
    ]
