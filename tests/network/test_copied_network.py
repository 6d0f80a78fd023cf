"""A copy of a network, wherever one is edited."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import UnsupportedModelError
from fairtrim.mining import KnownSamples
from fairtrim.mining.contrastive_weight_masks import masked_network
from fairtrim.network.copied_network import copied_network
from fairtrim.network.fine_tuning import reinitialized
from fairtrim_adapters.torch_pruning import dcwp

FLAGS = torch.arange(12) % 3 == 0
LOADER: DataLoader[Any] = DataLoader(TensorDataset(torch.eye(12, 4), torch.arange(12) % 2), batch_size=4)
USES: dict[str, Any] = {
    "weight masks": lambda model: masked_network(model, {"2.weight": torch.ones(2, 5)}),
    "new weights": lambda model: reinitialized(model, 0),
    "recipe": lambda model: dcwp(model, LOADER, miner=KnownSamples(FLAGS), level="weight", progress=False),
}


def _masked() -> nn.Module:
    """Its masked weight has a history, which torch can't copy."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    masks: Any = prune
    masks.l1_unstructured(model[0], "weight", 0.3)
    return model


@pytest.mark.parametrize("use", USES)
def test_what_can_t_be_copied_says_what_to_do(use: str) -> None:
    model = _masked()
    with pytest.raises(UnsupportedModelError, match=r"can't be copied .* run it once under torch\.no_grad\(\)"):
        USES[use](model)


def test_after_a_run_without_gradients_there_is_a_copy() -> None:
    model = _masked()
    with torch.no_grad():
        model(torch.ones(1, 4))
    copied = copied_network(model)
    assert torch.equal(copied(torch.eye(4)), model(torch.eye(4)))
