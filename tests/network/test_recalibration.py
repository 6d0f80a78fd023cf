"""Statistics of BatchNorm are averages over the data, and stay as they were after errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fairtrim import FairtrimError, recalibrate_batchnorm
from tests.snapshot import Snapshot


def test_recalibration_averages_over_the_data() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.2), nn.Dropout(0.5), nn.Linear(4, 2)).double()
    model.train()
    x = torch.randn(13, 3).double()
    weights = [p.clone() for p in model.parameters()]
    batches = [(x[:8], torch.zeros(8)), (x[8:12], torch.zeros(4)), (x[12:], torch.zeros(1))]
    recalibrate_batchnorm(model, batches, progress=False)
    hidden = model[0](x[:12])  # a batch of one has no variance
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[1].running_var, (8 * hidden[:8].var(0) + 4 * hidden[8:].var(0)) / 12)
    assert model[1].momentum == 0.2 and all(m.training for m in model.modules())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))


@pytest.mark.parametrize(
    "fault",
    [[], [(torch.randn(1, 3).double(), torch.zeros(1))], [(torch.full((4, 3), torch.nan).double(), torch.zeros(4))]],
    ids=["empty", "one sample", "NaN"],
)
def test_failed_recalibration_restores_the_statistics(fault: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).double().eval()
    model[1].running_mean.fill_(0.7)
    before = Snapshot(model)
    with pytest.raises(FairtrimError):
        recalibrate_batchnorm(model, fault, progress=False)
    before.assert_unchanged()
    with pytest.raises(FairtrimError, match="no BatchNorm"):
        recalibrate_batchnorm(nn.Linear(2, 2), fault, progress=False)


def test_inputs_without_a_target_are_refused() -> None:
    batch = (torch.randn(4, 3), torch.zeros(2))
    with pytest.raises(FairtrimError, match="batch 0 has 4 inputs and 2 targets; expected as many"):
        recalibrate_batchnorm(nn.BatchNorm1d(3), [batch], progress=False)
