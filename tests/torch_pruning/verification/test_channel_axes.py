"""The axis of a layer's channels is seen in a pass through it, not taken from its class."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import UnsupportedModelError
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim_adapters.torch_pruning import MeanDamageImportance
from fairtrim_adapters.torch_pruning.graph.plan import plan_of_pruner
from fairtrim_adapters.torch_pruning.verification.channel_axes import observed_axes


class ImageNorm(nn.LayerNorm):
    """Over the channels of images; one class for both layouts, as in ConvNeXt."""

    def __init__(self, channels: int, *, last: bool = False, **options: Any) -> None:
        super().__init__(channels, **options)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.last else super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OwnNorm(nn.Module):
    """The same by hand, with parameters that no layer of torch owns."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(channels) + 0.5), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean, deviation = x.mean(1, keepdim=True), x.var(1, keepdim=True, correction=0).add(1e-6).sqrt()
        return self.weight[:, None, None] * (x - mean) / deviation + self.bias[:, None, None]


class Pointwise(nn.Linear):
    """A linear layer over axis 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Images(nn.Module):
    """``size`` positions in each direction; as many as channels, the shapes don't tell the axis."""

    def __init__(self, norm: nn.Module, last: nn.Module, *, tail: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.norm, self.reader = nn.Conv2d(3, 12, 1), norm, nn.Conv2d(12, 7, 1)
        self.point, self.last, self.tail, self.head = Pointwise(7, 9), last, tail, nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.point(F.gelu(self.reader(F.gelu(self.norm(self.stem(x)))))).relu()
        return self.head(self.last(h.permute(0, 2, 3, 1)).mean((1, 2)))


def _fitted(model: Images, x: Tensor) -> tp.pruner.BasePruner:
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model,
        x[:2],
        importance=importance,
        pruning_ratio=0.4,
        ignored_layers=[model.head],
        root_module_types=[nn.Conv2d, nn.Linear],
    )
    importance.fit(pruner, [(x, torch.arange(len(x)) % 3)])
    return pruner


@pytest.mark.parametrize("size", [5, 12])
@pytest.mark.parametrize("norm", [ImageNorm, OwnNorm])
@pytest.mark.filterwarnings("ignore:Unwrapped parameters:UserWarning")
def test_a_norm_over_the_channels_of_images(norm: Any, size: int) -> None:
    torch.manual_seed(0)
    model, x = Images(norm(12), ImageNorm(9, last=True)).double(), torch.randn(8, 3, size, size).double()
    pruner = _fitted(model, x)
    pruner.step()
    assert (model.stem.out_channels, model.reader.out_channels, model.point.out_features) == (7, 4, 5)
    assert model.norm.weight.shape == (7,) and model(x).shape == (8, 3)


def test_axes_of_one_class_in_two_layouts() -> None:
    torch.manual_seed(0)
    model, x = Images(ImageNorm(12), ImageNorm(9, last=True)).double(), torch.randn(8, 3, 12, 12).double()
    pruner = tp.pruner.BasePruner(model, x[:2], importance=None, pruning_ratio=0.4, ignored_layers=[model.head])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = Batch(x, torch.zeros(8), None, 0)
    axes = observed_axes(pruner.DG, plan_of_pruner(pruner), batch, ScoredNetwork(pruner.model))
    assert axes == {
        ("norm", "output"): 1,
        ("last", "output"): -1,
        ("point", "input"): 1,
        ("point", "output"): 1,
    }
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_axis_that_no_parameter_tells() -> None:
    """Without a weight the shapes decide; where these do not either, it is said."""
    torch.manual_seed(0)
    plain = ImageNorm(12, elementwise_affine=False)
    with pytest.raises(
        UnsupportedModelError, match=r"'norm' is a ImageNorm .* which axis .* 12 channels can't be told"
    ):
        _fitted(Images(plain, nn.Identity()), torch.randn(8, 3, 5, 5))
