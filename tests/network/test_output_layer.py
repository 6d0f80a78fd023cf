"""The inputs of the layer that gives the scores are found, and what has none is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fairtrim import UnsupportedModelError
from fairtrim.data.batches import Batch
from fairtrim.network.output_layer import FeatureTap, find_head
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


class _Indexed(nn.Module):
    """Scores at T positions, of which an index picks one a sample."""

    def __init__(self, pick: Any) -> None:
        super().__init__()
        self.up, self.score, self.pick = nn.Linear(4, 5), nn.Linear(5, 3), pick

    def forward(self, x: Tensor) -> Any:
        return self.pick(self.score(self.up(x).tanh()))


LAST = torch.tensor([1, 5, 0])
PICKS: dict[str, tuple[Any, Any]] = {
    "last token": (lambda s: s[torch.arange(3), LAST], lambda h: h[torch.arange(3), LAST]),
    "first token, a view": (lambda s: s[:, 0], lambda h: h[:, 0]),
    "with the last axis": (lambda s: s[:, -2, :], lambda h: h[:, -2, :]),
    "ellipsis": (lambda s: s[..., 4, :], lambda h: h[..., 4, :]),
    "mask": (lambda s: s[torch.arange(6) == LAST[:, None]], lambda h: h[torch.arange(6) == LAST[:, None]]),
}


@pytest.mark.parametrize("name", PICKS)
@pytest.mark.parametrize("zero", [False, True], ids=["", "all scores alike"])
def test_features_of_scores_that_an_index_picks(name: str, zero: bool) -> None:
    pick, wanted = PICKS[name]
    model, x = _Indexed(pick), torch.randn(3, 6, 4)
    if zero:  # by their values the positions can't be told apart
        nn.init.zeros_(model.score.weight)
    features, head = _tapped(model, x)
    assert head == "score" and torch.equal(features, wanted(model.up(x).tanh()))
    assert torch.equal(_tapped(model, x, "score")[0], features)
    network, batch = ScoredNetwork(model), Batch(x, torch.zeros(3), None, 0)
    before = Snapshot(model)
    found = find_head(network, batch)
    before.assert_unchanged()
    given, scores = found.features(network, batch)
    assert found.name == "score" and torch.equal(given, features)
    torch.testing.assert_close(given @ model.score.weight.T + model.score.bias, scores)


@pytest.mark.parametrize(
    "pick",
    [
        lambda s: s[:, 0][:, [2, 0]],
        lambda s: s[:, 1, [2, 0, 1]],
        lambda s: s[..., 0],
        lambda s: s[:, 0] * 2,
        lambda s: s.mean(1),
        lambda s: s[:, :2].mean(1),
    ],
    ids=["chosen scores", "scores in another order", "positions as scores", "scaled", "mean", "mean of some"],
)
def test_scores_that_are_no_rows_of_a_layer_s_output(pick: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"no linear head|changed before|3 outputs and the network 6"):
        find_head(ScoredNetwork(_Indexed(pick)), Batch(torch.randn(3, 6, 4), torch.zeros(3), None, 0))


def test_rows_that_are_changed_after_they_were_picked() -> None:
    def doubled(scores: Tensor) -> Tensor:
        picked = scores[:, 2]
        return picked.mul_(2)

    with pytest.raises(UnsupportedModelError, match="are changed before the network returns them"):
        find_head(ScoredNetwork(_Indexed(doubled)), Batch(torch.randn(3, 6, 4), torch.zeros(3), None, 0))
