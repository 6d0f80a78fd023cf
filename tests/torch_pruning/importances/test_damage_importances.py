"""The criteria of the damage table as importances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import (
    InputError,
)
from fairtrim.criteria import WorstGroup
from fairtrim.selection import joint_selection
from fairtrim_adapters.torch_pruning import (
    DamageImportance,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from tests.importance_cases import batches_of
from tests.networks import CASES


def test_host_removes_the_set_that_joint_selection_chose() -> None:
    case = CASES["concatenation"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.4)
    importance.fit(pruner, batches_of(case))
    table, chosen = importance.damage_, importance.selection_
    again = joint_selection(table.without_first_order().shrunk(), WorstGroup(), pools=importance.plan_.pools)
    assert again.order.tolist() == chosen.order.tolist()
    pruner.step()
    removed = importance.report()
    n_removed = int(removed.layers["removed"].sum())
    names = [(name, c) for name, size in table.sizes.items() for c in range(size)]
    wanted: dict[str, list[int]] = {}
    for column in chosen.order[:n_removed].tolist():
        wanted.setdefault(names[column][0], []).append(names[column][1])
    for layer, n in zip(removed.layers["layer"], removed.layers["removed"], strict=True):
        assert len(wanted.get(layer, [])) == n
    predicted = removed.predicted["predicted change"].to_numpy()
    torch.testing.assert_close(torch.tensor(predicted), table.predict(wanted))


def test_all_equal_scores_remove_no_more_than_the_ratio() -> None:
    """Dead channels tie at zero: Torch-Pruning's own threshold would take them all."""
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, -1.0)
    case = CASES["mlp"]
    importance = MeanDamageImportance(selection="single", progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.3)
    importance.fit(pruner, batches_of(case))
    assert float(importance.damage_.damage.abs().max()) == 0
    pruner.step()
    assert importance.report().layers["removed"].sum() == 6


@pytest.mark.parametrize("selection", ["joint", "single"])
def test_a_layer_that_is_lowest_throughout_is_not_skipped(selection: Any) -> None:
    case = CASES["mlp"]
    model = case.model()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)  # nothing of the first layer matters
    importance = MeanDamageImportance(selection=selection, progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.6)
    importance.fit(pruner, batches_of(case))
    pruner.step()
    assert importance.report().skipped == []
    assert model[0].out_features == 1


def test_negative_only_rule() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = GroupSaliencyImportance(privileged=[0, 1], beta=0.9, selection="single", progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, batches_of(case))
    score = importance.criterion.score(importance.damage_)
    negative = [int((score[importance.damage_.columns.section(name)] < 0).sum()) for name in ("0", "2")]
    assert 0 < sum(negative) < 12  # the rule has something to decide
    for group in importance.negative_groups(pruner):
        group.prune()
    assert [model[0].out_features, model[2].out_features] == [max(1, 7 - negative[0]), max(1, 5 - negative[1])]


def test_negative_only_rule_joint_stops_at_the_first_rise() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = MeanDamageImportance(progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, batches_of(case))
    free = joint_selection(importance.damage_, importance.criterion)
    before_rise = 0
    for column in free.order.tolist():
        if free.change[column] >= 0:
            break
        before_rise += 1
    assert 0 < before_rise < 12
    assert "no step since the fit" in str(importance.report()) and importance.report().skipped == []
    groups = list(importance.negative_groups(pruner))
    assert sum(len(group[0].idxs) for group in groups) == before_rise
    for group in groups:
        group.prune()
    layers = importance.report().layers
    assert layers["asked"].tolist() == layers["removed"].tolist()  # what the rule asks, not the pruner's ratio


def test_share_balance_refuses_ranking_across_layers() -> None:
    case = CASES["mlp"]
    importance = ShareBalancedImportance(progress=False)
    pruner = case.pruner(case.model(), importance, global_pruning=True)
    with pytest.raises(InputError, match="global_pruning=False"):
        importance.fit(pruner, batches_of(case))
    with pytest.raises(InputError, match="leave selection= out"):
        ShareBalancedImportance(selection="joint")
    with pytest.raises(InputError, match="no negative scores"):
        importance.negative_groups(pruner)


def test_criterion_function_of_the_user() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = DamageImportance(lambda damage: damage.mean(0), model=model, loader=batches_of(case), progress=False)
    case.pruner(model, importance).step()
    assert model[0].out_features == 4
    wrong = DamageImportance(lambda damage: damage, model=model, loader=batches_of(case), progress=False)
    with pytest.raises(InputError, match="the criterion returned shape"):
        case.pruner(model, wrong).step()
    not_finite = DamageImportance(
        lambda damage: damage[0] * float("nan"),
        model=model,
        loader=batches_of(case),
        selection="single",
        progress=False,
    )
    with pytest.raises(InputError, match="not finite"):
        case.pruner(model, not_finite).step()
    named = DamageImportance(lambda damage: damage.max(0), model=model, loader=batches_of(case), progress=False)
    with pytest.raises(InputError, match="the criterion returned a max; expected a tensor"):
        case.pruner(model, named).step()
    with pytest.raises(InputError, match="expected a Criterion or a function"):
        DamageImportance("mean")  # type: ignore[arg-type]


LEFT: list[tuple[Callable[[], DamageImportance], list[float]]] = [
    (lambda: DamageImportance(lambda damage: damage[1] - damage[0]), [0.0, 1.0]),  # 0 − 9, 4 − 4
    (lambda: GroupSaliencyImportance(privileged="a", beta=0.3), [0.0, 1.0]),  # 0 − 0.3 · 9, 4 − 0.3 · 4
    (MeanDamageImportance, [0.0, 1.0]),  # 3, 4
    (WorstGroupImportance, [1.0, 0.0]),  # a, who is hurt most, loses 4 instead of 9
    (lambda: TailRiskImportance(alpha=1.0), [1.0, 0.0]),  # each group once: (9 + 0) / 2, (4 + 4) / 2
    (ShareBalancedImportance, [1.0, 0.0]),  # a has 13 of 17 parts of the layer's importance
]


@pytest.mark.parametrize(("make", "left"), LEFT)
def test_which_of_two_channels_stays(make: Callable[[], DamageImportance], left: list[float]) -> None:
    """The example of ``DamageImportance``: without an error, a channel costs its input squared."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    nn.init.eye_(model[0].weight)  # type: ignore[arg-type]
    nn.init.ones_(model[2].weight)  # type: ignore[arg-type]
    x = torch.tensor([[3.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    importance = make()
    pruner = tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.5, ignored_layers=[model[2]])
    people = [(x, x.sum(1, keepdim=True), ["a", "b", "b"])]
    importance.fit(pruner, people, loss_fn=nn.functional.mse_loss, progress=False)
    assert importance.damage_["0"].round(decimals=3).tolist() == [[9.0, 4.0], [0.0, 4.0]]
    pruner.step()
    assert model[0].weight.tolist() == [left]
