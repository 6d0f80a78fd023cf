"""Parity-gradient pruning in Torch-Pruning's pruner."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fairtrim import InputError
from fairtrim.damage.parity_gradient import parity_gradient
from fairtrim_adapters.torch_pruning import ParityGradientImportance
from tests.networks import CASES

CASE = CASES["mlp"]


def _people(n_groups: int = 2) -> list[tuple[torch.Tensor, ...]]:
    x, y = CASE.batch(31)
    a = (x[:, 0] > 0).long() + (x[:, 1] > 1).long() * (n_groups - 2)
    return [(x[:9], y[:9], a[:9]), (x[9:], y[9:], a[9:])]


@pytest.mark.parametrize("privileged", [0, 1])
def test_what_the_bias_grows_with_goes_first(privileged: int) -> None:
    """Whichever side is favoured, and again from the pruned network in the second step."""
    model = CASE.model()
    importance = ParityGradientImportance(
        "equal_opportunity_difference", privileged=privileged, model=model, loader=_people(), progress=False
    )
    pruner = CASE.pruner(model, importance, pruning_ratio=0.6, iterative_steps=2, global_pruning=True)
    for _ in range(2):
        groups = CASE.plan(model).groups
        found = parity_gradient(
            model, _people(), groups, "equal_opportunity_difference", privileged=privileged, progress=False
        )
        change = {name: -slope if found.bias > 0 else slope for name, slope in found.slopes.items()}
        biases = {name: model.get_submodule(name).bias.detach().clone() for name in change}
        pruner.step()
        assert len(model[0].bias) + len(model[2].bias) < sum(map(len, biases.values()))
        for name, before in biases.items():  # which layer gives how many is Torch-Pruning's own
            stay = change[name].argsort(descending=True)[: len(model.get_submodule(name).bias)].sort().values
            assert torch.equal(model.get_submodule(name).bias, before[stay])


def test_negative_groups_lower_the_bias_to_first_order() -> None:
    model = CASE.model()
    importance = ParityGradientImportance()
    pruner = CASE.pruner(model, importance)
    importance.fit(pruner, _people(), progress=False)
    found = importance.gradient_
    falls = {name: int(((found.slopes[name] * found.bias) > 0).sum()) for name in found.slopes}
    sizes = {group.name: group.size for group in importance.plan_.groups}
    for group in importance.negative_groups(pruner):
        group.prune()
    assert 0 < sum(falls.values()) < sum(sizes.values())
    for name, size in sizes.items():
        assert size - len(model.get_submodule(name).bias) == min(falls[name], size - 1)


def test_fits_again_where_the_largest_difference_is_of_another_pair() -> None:
    model = CASE.model()
    importance = ParityGradientImportance(sensitive_names={"team": ["a", "b", "c"]})
    pruner = CASE.pruner(model, importance)
    importance.fit(pruner, _people(3), progress=False)
    assert importance.gradient_.bias > 0 and importance.gradient_.sensitive_groups == ("a", "b", "c")
    assert "not measured" not in str(importance.report())


def test_refusals() -> None:
    with pytest.raises(InputError, match="not a bias measure"):
        ParityGradientImportance("parity")
    with pytest.raises(InputError, match="loss_fn= would have no effect on ParityGradientImportance"):
        ParityGradientImportance(loss_fn=nn.functional.mse_loss)
    with pytest.raises(InputError, match="normalizer='mean'"):
        ParityGradientImportance(normalizer="mean")
