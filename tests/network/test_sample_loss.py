"""The loss of every single sample."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from fairtrim.network.sample_loss import SampleLoss


def test_a_partial_keeps_its_ignore_index() -> None:
    scores, target = torch.randn(2, 5, 3, dtype=torch.float64), torch.tensor([[1, 2, 0, 0, 0], [1, 2, 1, 0, 2]])
    found = SampleLoss(partial(F.cross_entropy, ignore_index=0))(scores, target)
    torch.testing.assert_close(found, SampleLoss(nn.CrossEntropyLoss(ignore_index=0))(scores, target))
    torch.testing.assert_close(found[0], F.cross_entropy(scores[0, :2], target[0, :2]))
