"""Torch-Pruning's own importances get what they look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from fairtrim_adapters.torch_pruning.importances.host_importance import needs_data, scored

HOSTS = tp.importance


def _network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = nn.Linear(4, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3)
        return nn.Sequential(*layers).double()


def _people() -> list[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(11, 4, generator=generator).double()
    y = torch.randint(0, 3, (11,), generator=generator)
    return [(x[:6], y[:6], y[:6] % 2), (x[6:10], y[6:10], y[6:10] % 2), (x[10:], y[10:], y[10:] % 2)]


def _pruner(model: nn.Sequential, importance: Any) -> tp.pruner.BasePruner:
    x = torch.ones(2, 4).double()
    return tp.pruner.BasePruner(model, x, importance=importance, pruning_ratio=0.5, ignored_layers=[model[4]])


def _gradients(model: nn.Sequential) -> list[list[Tensor]]:
    """Of each sample by itself."""
    found = []
    for x, y, _ in _people():
        for one, label in zip(x, y, strict=True):
            loss = F.cross_entropy(model(one.unsqueeze(0)), label.unsqueeze(0))
            found.append(list(torch.autograd.grad(loss, list(model.parameters()))))
    return found


def test_taylor_gets_the_gradient_of_the_summed_loss() -> None:
    model, importance = _network().eval(), HOSTS.GroupTaylorImportance()
    expected = [torch.stack(rows).sum(0) for rows in zip(*_gradients(model), strict=True)]
    pruner = _pruner(model, importance)
    model.train()  # in which dropout and norms would say something else
    scored(importance, pruner, _people(), progress=False)
    assert model.training
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_hessian_gets_the_mean_of_the_squared_gradients() -> None:
    """Of all samples, where Torch-Pruning's own loop keeps the last one's; its scores are those of these squares."""
    model, importance = _network().eval(), HOSTS.GroupHessianImportance(normalizer=None)
    expected = [torch.stack(rows).square().mean(0) for rows in zip(*_gradients(model), strict=True)]
    pruner = _pruner(model, importance)
    scored(importance, pruner, _people(), progress=False)
    weight, norm, _, head = (dict(model.named_parameters())[n] for n in ("0.weight", "1.weight", "1.bias", "4.weight"))
    squares = dict(zip(dict(model.named_parameters()), expected, strict=True))
    group = pruner.DG.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(7)))
    by_hand = torch.stack(
        [
            (weight.detach() ** 2 * squares["0.weight"]).sum(1),
            norm.detach() ** 2 * squares["1.weight"],
            (head.detach() ** 2 * squares["4.weight"]).sum(0),
        ]
    )
    torch.testing.assert_close(importance(group).double(), by_hand.mean(0), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "make", ["RandomImportance", "GroupMagnitudeImportance", "LAMPImportance", "FPGMImportance", "BNScaleImportance"]
)
def test_those_that_look_at_weights_read_no_data(make: str) -> None:
    class Never:
        def __iter__(self) -> Any:
            raise AssertionError("the loader was read")

    model, importance = _network(), getattr(HOSTS, make)()
    pruner = _pruner(model, importance)
    assert not needs_data(importance)
    scored(importance, pruner, Never(), progress=False)
    pruner.step()
    assert model[0].out_features == 3  # type: ignore[union-attr]


def test_ours_are_fitted_with_their_own_options_first() -> None:
    model, importance = _network().eval(), WorstGroupImportance(sensitive_names={"side": ["left", "right"]})
    pruner = _pruner(model, importance)
    assert needs_data(importance)
    scored(importance, pruner, _people(), sensitive_names={"other": ["a", "b"]}, progress=False)
    pruner.step()
    assert sorted(importance.report().predicted["sensitive_group"]) == ["left", "right"]


@pytest.mark.parametrize("kind", [HOSTS.OBDCImportance, HOSTS.ActivationImportance])
def test_what_is_not_collected_is_refused(kind: Any) -> None:
    importance = object.__new__(kind)
    with pytest.raises(InputError, match=f"{kind.__name__} needs statistics of layers that are not collected here"):
        scored(importance, _pruner(_network(), HOSTS.RandomImportance()), _people(), progress=False)
