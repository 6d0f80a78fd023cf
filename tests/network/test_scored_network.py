"""Networks and batches that can't be scored are refused in words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairtrim import (
    InputError,
    UnsupportedModelError,
)
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork


def test_words_for_wrappers_and_surplus_keys() -> None:
    class Named(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids[:, :2].double()

    with pytest.raises(UnsupportedModelError, match=r"wrapped in DataParallel.* expected the network itself"):
        ScoredNetwork(nn.DataParallel(nn.Linear(2, 2))).check()
    batch = Batch({"ids": torch.ones(2, 3), "idx": torch.arange(2)}, torch.tensor([0, 1]), None, 0)
    with pytest.raises(InputError, match=r"a dict with \['idx'\], which the network's forward doesn't take"):
        ScoredNetwork(Named()).scores(batch)
