"""Importances that judge channels after a refit, or for what they save, in Torch-Pruning's pruner."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from fairtrim import InputError
from fairtrim.comparison.network_size import network_size
from fairtrim.criteria import WorstGroup
from fairtrim.damage.channel_costs import ChannelCosts
from fairtrim.damage.input_moments import input_moments
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.selection import compensated_selection, joint_selection
from fairtrim_adapters.torch_pruning import (
    DamageImportance,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
)
from fairtrim_adapters.torch_pruning.graph.plan import removed_units
from tests.importance_cases import batches_of, reading_of
from tests.networks import CASES
from tests.snapshot import Snapshot


@pytest.mark.parametrize("per", ["channel", "parameters", "macs"])
@pytest.mark.parametrize("name", CASES)
def test_every_network_is_pruned_after_a_compensated_choice(name: str, per: Any) -> None:
    """All channels are ranked together; the network is as before the step, and runs after it."""
    case = CASES[name]
    model = case.model()
    importance = WorstGroupImportance(compensated=True, per=per)
    pruner = case.pruner(model, importance, global_pruning=True)
    before = Snapshot(model)
    importance.fit(pruner, batches_of(case), **reading_of(case))
    before.assert_unchanged()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    pruner.step()
    model(case.batch(2)[0])
    report = importance.report()
    assert report.layers["removed"].sum() > 0
    assert not report.skipped
    predicted = report.predicted["predicted change after a refit"]
    assert (predicted >= 0).all()
    assert np.isfinite(predicted).all()


def _fitted(importance: Any, name: str = "residual", **settings: Any) -> tuple[Any, Any, nn.Module]:
    case = CASES[name]
    model = case.model()
    pruner = case.pruner(model, importance, **{"global_pruning": True, **settings})
    importance.fit(pruner, batches_of(case), **reading_of(case))
    return importance, pruner, model


def test_the_host_removes_what_compensated_selection_chose() -> None:
    """The same order as from the parts, and a prediction that adds up each channel in its turn."""
    importance, pruner, model = _fitted(WorstGroupImportance(compensated=True))
    case, plan, table = CASES["residual"], importance.plan_, importance.damage_
    assert table.interactions is None
    with input_moments(model, plan.groups) as moments, torch.no_grad():
        for batch in batches_of(case):
            model(batch[0])
    ranking = table.without_first_order().shrunk()
    again = compensated_selection(ranking, WorstGroup(), moments.read(), pools=plan.pools, floors=plan.floors)
    assert importance.selection_.order.tolist() == again.order.tolist()
    quota = sum(pool.quota or 0 for pool in plan.pools)
    pruner.step()
    report = importance.report()
    assert int(report.layers["removed"].sum()) == quota
    chosen = again.order[:quota]
    assert again.shares is not None
    expected = (0.5 * table.curvature[:, chosen] * again.shares[chosen]).sum(1)
    np.testing.assert_allclose(report.predicted["predicted change after a refit"], expected, rtol=1e-6)
    assert any("refit is missing" in flag and "with reconstructed(pruner, loader)" in flag for flag in report.flags)
    assert not any("was predicted" in flag for flag in report.flags)  # of another network
    assert max(map(len, str(report).splitlines())) < 100


@pytest.mark.parametrize(
    "options", [{"compensated": True}, {}, {"selection": "single"}], ids=["refit", "joint", "single"]
)
def test_channels_are_taken_for_what_they_save(options: dict[str, Any]) -> None:
    """What a quota of channels saves is more where each is held against its cost; and costs follow the pruner."""
    case = CASES["residual"]
    saved = {}
    for per in ("channel", "macs"):
        importance, pruner, model = _fitted(MeanDamageImportance(per=per, **options), pruning_ratio=0.3)
        x, y = case.batch(2)
        batch = Batch(x, y, None, 0)
        before = network_size(ScoredNetwork(model), batch)["macs"]
        costs = importance._costs
        pruner.step()
        after = network_size(ScoredNetwork(model), batch)["macs"]
        saved[per] = before - after
        if costs is None:
            continue
        assert costs.total == before
        for layer, channels in removed_units(importance.plan_, pruner.DG.pruning_history()).items():
            for channel in channels:
                costs.take(importance.plan_.columns.section(layer).start + channel)
        assert costs.total == after
    assert saved["macs"] >= saved["channel"]


def test_joint_selection_per_cost_is_that_of_the_parts() -> None:
    importance, _, model = _fitted(WorstGroupImportance(per="parameters"))
    plan, table = importance.plan_, importance.damage_.without_first_order().shrunk()
    costs = ChannelCosts(model, plan.groups, "parameters")
    again = joint_selection(table, WorstGroup(), pools=plan.pools, floors=plan.floors, costs=costs)
    assert importance.selection_.order.tolist() == again.order.tolist()


def test_costs_of_a_weight_saliency() -> None:
    """Its pass runs the network more often, which changes no order: costs keep their ratios."""
    of_weights, _, _ = _fitted(MeanDamageImportance(level="weight", selection="single", per="macs"), "plain")
    of_gates, _, _ = _fitted(MeanDamageImportance(selection="single", per="macs"), "plain")
    weighed, counted = of_weights._costs, of_gates._costs
    torch.testing.assert_close(weighed.each / weighed.total, counted.each / counted.total)


def test_channels_that_lower_the_criterion_after_a_refit() -> None:
    """FairPrune's rule in the compensated order: a change is negative where the privileged lose more."""
    importance, pruner, model = _fitted(GroupSaliencyImportance(privileged=1, beta=0.9, compensated=True), "mlp")
    before = [layer.weight.shape[0] for layer in model.modules() if isinstance(layer, nn.Linear)]
    for group in importance.negative_groups(pruner):
        group.prune()
    model(CASES["mlp"].batch(2)[0])
    after = [layer.weight.shape[0] for layer in model.modules() if isinstance(layer, nn.Linear)]
    assert all(b >= a >= 1 for b, a in zip(before, after, strict=True))
    worst, pruner, _ = _fitted(WorstGroupImportance(compensated=True), "mlp")
    assert list(worst.negative_groups(pruner)) == []


def test_a_fit_that_fails_leaves_the_one_before() -> None:
    """Scores, moments and costs of one fit belong together."""
    case = CASES["mlp"]
    importance, pruner, _ = _fitted(TailRiskImportance(0.7, compensated=True, per="parameters"), "mlp")
    before = dict(vars(importance))
    with pytest.raises(InputError, match="this loss has none"):
        importance.fit(pruner, batches_of(case), loss_fn=lambda scores, y: scores.sum(1), progress=False)
    assert vars(importance).keys() == before.keys()
    assert all(vars(importance)[name] is value for name, value in before.items())
    pruner.step()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: WorstGroupImportance(compensated=True, selection="single"), "leave selection= out"),
        (lambda: MeanDamageImportance(compensated=True, level="weight"), "level='weight' has none"),
        (lambda: MeanDamageImportance(compensated=True, first_order=True), "second order alone"),
        (lambda: MeanDamageImportance(compensated=True, interactions="exact"), "would have no effect"),
        (lambda: MeanDamageImportance(compensated=True, folder="/nowhere"), "folder= doesn't keep"),
        (lambda: MeanDamageImportance(per=cast(Any, "latency")), "per='latency'; expected one of"),
        (lambda: DamageImportance(WorstGroup(), compensated=cast(Any, "yes")), "compensated='yes'; expected one of"),
        (lambda: ShareBalancedImportance(compensated=True), "compensated=True would have no effect"),
        (lambda: ShareBalancedImportance(per="macs"), "per='macs' would have no effect"),
    ],
)
def test_what_means_nothing_together(make: Callable[[], Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        make()


@pytest.mark.parametrize("options", [{"compensated": True}, {"per": "macs"}], ids=["compensated", "per macs"])
def test_a_folder_is_refused_before_anything_is_read(options: dict[str, Any], tmp_path: Any) -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = MeanDamageImportance(**options)
    pruner = case.pruner(model, importance)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match="leave folder= out"):
        importance.fit(pruner, batches_of(case), folder=tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
