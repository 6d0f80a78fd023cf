"""The inputs of the layer that gives the scores are found, and what has none is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import UnsupportedModelError
from fairtrim.data.batches import Batch
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.scored_network import ScoredNetwork
from tests.networks import CASES
from tests.snapshot import Snapshot


def _tapped(model: nn.Module, x: Tensor, feature_layer: str | None = None, **options: Any) -> tuple[Tensor, str | None]:
    tap = FeatureTap(model, feature_layer)
    with tap.attached():
        scores = ScoredNetwork(model, **options).scores(Batch(x, torch.zeros(len(x)), None, 0))
        return tap.features(scores), tap.head(scores)


@pytest.mark.parametrize(
    ("name", "layer", "width"),
    [("mlp", "4", 5), ("plain", "9", 7), ("residual", "head", 6), ("tuple output", "head", 5)],
)
def test_features_are_the_inputs_of_the_layer_that_gives_the_scores(name: str, layer: str, width: int) -> None:
    case = CASES[name]
    model, (x, _) = case.model().eval(), case.batch(3)
    before = Snapshot(model)
    features, head = _tapped(model, x, output_transform=case.transform)
    before.assert_unchanged()  # no hook stays
    assert head == layer and features.shape == (3, width)
    output = model(x)
    scores = case.transform(output) if case.transform else output
    torch.testing.assert_close(model.get_submodule(layer)(features), scores)
    named, _ = _tapped(model, x, layer, output_transform=case.transform)
    assert torch.equal(named, features)


def test_scores_of_one_logit_and_a_layer_that_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1), nn.Flatten(0))
    x = torch.randn(3, 4)
    assert torch.equal(_tapped(model, x)[0], model[:2](x))
    images = CASES["plain"].model().eval()
    x, _ = CASES["plain"].batch(3)
    assert torch.equal(_tapped(images, x, "4")[0], images[:4](x).flatten(1))  # the inputs of a convolution


@pytest.mark.parametrize(
    "tail",
    [nn.LogSoftmax(1), nn.Sequential(nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 3, 1), nn.Flatten())],
    ids=["log-softmax", "convolution"],
)
def test_features_that_can_t_be_found(tail: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), tail)
    x = torch.randn(3, 4)
    with pytest.raises(UnsupportedModelError, match="name the layer whose inputs they are with feature_layer="):
        _tapped(model, x)
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(_tapped(model, x, "2")[0], model[:2](x))


def test_named_layer_that_does_not_run() -> None:
    model = nn.Linear(4, 3)
    model.spare = nn.Linear(4, 3)
    with pytest.raises(UnsupportedModelError, match="feature_layer="):
        _tapped(model, torch.randn(3, 4), "spare")
