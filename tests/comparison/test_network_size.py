"""Parameters and multiply-accumulates: those of closed forms."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fairtrim.comparison.network_size import network_size
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork


def test_macs_of_a_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.Flatten(), nn.Linear(5 * 8 * 4, 2))
    size = network_size(ScoredNetwork(model), Batch(torch.ones(7, 3, 8, 4), torch.zeros(7), None, 0))
    assert size["macs"] == 3 * 5 * 9 * 8 * 4 + 5 * 8 * 4 * 2


class LastOfSequence(nn.Module):
    """A recurrent layer, of which the last output is classified."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.layer(x)[0][:, -1])
        return scores


def torch_flags() -> tuple[bool, ...]:
    backends = torch.backends
    enabled = torch._C._get_mkldnn_enabled(), backends.cudnn.enabled, backends.mha.get_fastpath_enabled()
    return (*enabled, backends.cuda.flash_sdp_enabled(), backends.cuda.math_sdp_enabled())


@pytest.mark.parametrize(
    ("model", "width", "macs"),
    [
        (LastOfSequence(nn.LSTM(5, 6, batch_first=True), 6), 5, 3 * 4 * 6 * (5 + 6) + 6 * 2),
        (LastOfSequence(nn.GRU(5, 6, batch_first=True, bidirectional=True), 12), 5, 2 * 3 * 3 * 6 * 11 + 12 * 2),
        (
            nn.Sequential(nn.TransformerEncoderLayer(8, 2, dim_feedforward=10, batch_first=True), nn.Flatten()),
            8,
            3 * (8 * 24 + 8 * 8 + 2 * 8 * 10) + 2 * 3 * 3 * 8,
        ),
    ],
    ids=["LSTM", "GRU", "encoder"],
)
def test_macs_of_layers_that_torch_runs_in_one_piece(model: nn.Module, width: int, macs: int) -> None:
    """Of T = 3 positions, in eval mode without gradients, where torch fuses them."""
    before = torch_flags()
    batch = Batch(torch.ones(7, 3, width), torch.zeros(7), None, 0)
    assert network_size(ScoredNetwork(model.eval()), batch)["macs"] == macs
    assert torch_flags() == before
