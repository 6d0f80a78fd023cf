"""fairtrim's importances inside the host's own pruner."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import (
    InputError,
    NotFittedError,
    StaleTableError,
    UnsupportedModelError,
    collect_damage,
    load_pruned,
    save_pruned,
)
from fairtrim.criteria import WorstGroup
from fairtrim.oracle import oracle_damage
from fairtrim.selection import joint_selection
from fairtrim_adapters import torch_pruning as adapter
from fairtrim_adapters.torch_pruning import (
    IMPORTANCES,
    DamageImportance,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    TailRiskImportance,
    WorstGroupImportance,
    register,
    register_importance,
)
from tests.networks import CASES, SHARED_KEYS, Case, SeparateHeads

MAKERS: dict[str, Any] = {
    "group saliency": lambda **k: GroupSaliencyImportance(privileged=1, **k),
    "group saliency, weights": lambda **k: GroupSaliencyImportance(1, level="weight", selection="single", **k),
    "mean damage, single": lambda **k: MeanDamageImportance(selection="single", **k),
    "worst group": WorstGroupImportance,
    "tail risk, shrunk": lambda **k: TailRiskImportance(0.7, shrinkage=3.0, **k),
    "share balanced": ShareBalancedImportance,
}


def _loader(case: Case, n_samples: int = 12) -> list[tuple[torch.Tensor, ...]]:
    x, y = case.batch(n_samples)
    a = torch.arange(n_samples) % 3
    return [(x[:5], y[:5], a[:5]), (x[5:], y[5:], a[5:])]


def _options(case: Case) -> dict[str, Any]:
    return {"output_transform": case.transform, "progress": False}


def _widths(model: nn.Module) -> dict[str, int]:
    return {name: p.shape[0] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("mode", "maker"),
    [
        pytest.param(mode, maker, id=f"{mode}-{name}")
        for mode in ("local", "global", "iterative")
        for name, maker in MAKERS.items()
        if mode == "local" or maker is not ShareBalancedImportance  # an order of shares is local
    ],
)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_prunes_what_the_host_prunes(case: Case, mode: str, maker: Any) -> None:
    """As many channels go from each layer as with the host's own criterion (local); all that are asked for go."""
    options = {"global_pruning": mode != "local", "iterative_steps": 2 if mode == "iterative" else 1}
    dense = case.model()
    ours, theirs = copy.deepcopy(dense), copy.deepcopy(dense)
    importance = maker(**_options(case))
    pruner = case.pruner(ours, importance, **options)
    for _ in range(pruner.iterative_steps):
        importance.fit(pruner, _loader(case))
        pruner.step()
    if mode == "local":
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance(), **options).step()
        assert _widths(ours) == _widths(theirs)
    report = importance.report()
    assert report.skipped == []
    assert report.layers["asked"].tolist() == report.layers["removed"].tolist()
    assert "skipped by the host: none" in str(report)
    x, y = case.batch(4)
    output = ours(x)
    scores = case.transform(output) if case.transform else output
    nn.functional.cross_entropy(scores, y).backward()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)


def test_global_pruning_removes_exactly_the_ratio() -> None:
    case = CASES["residual"]
    model = case.model()
    total = sum(group.size for group in case.plan(model).groups)
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.5)
    importance.fit(pruner, _loader(case))
    pruner.step()
    assert importance.report().layers["removed"].sum() == total - int(total * 0.5)


def test_host_removes_the_set_that_joint_selection_chose() -> None:
    case = CASES["concatenation"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.4)
    importance.fit(pruner, _loader(case))
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
    """Dead channels tie at zero: the host's own threshold would take them all."""
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    for layer in (model[0], model[2]):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, -1.0)
    case = CASES["mlp"]
    importance = MeanDamageImportance(selection="single", progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.3)
    importance.fit(pruner, _loader(case))
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
    importance.fit(pruner, _loader(case))
    pruner.step()
    assert importance.report().skipped == []
    assert model[0].out_features == 1


@pytest.mark.parametrize(
    "options",
    [
        {"isomorphic": True, "global_pruning": True},
        {"round_to": 2},
        {"round_to": 2, "global_pruning": True},
        {"max_pruning_ratio": 0.5, "pruning_ratio": 0.4, "global_pruning": True},
    ],
    ids=str,
)
def test_host_options(options: dict[str, Any]) -> None:
    case = CASES["residual"]
    dense = case.model()
    model = copy.deepcopy(dense)
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    with torch.no_grad():
        model.second.weight.mul_(1e-6)  # nothing of the first layer matters: without a cap it would go
    pruner = case.pruner(model, importance, **{"pruning_ratio": 0.5, **options})
    pruner.step()
    if "round_to" in options:
        assert all(layer.out_channels % 2 == 0 for layer in model.modules() if isinstance(layer, nn.Conv2d))
    if "max_pruning_ratio" in options:
        assert (model.stem.out_channels, model.first.out_channels) == (3, 3)
    assert sum(_widths(model).values()) < sum(_widths(dense).values())
    model(case.batch(3)[0])


def test_a_cap_that_the_ratio_exceeds_is_given_up_but_no_layer_is_lost() -> None:
    """The host takes its ratio whatever max_pruning_ratio says; a layer whole in that set it would skip."""
    case = CASES["residual"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    case.pruner(model, importance, pruning_ratio=0.7, max_pruning_ratio=0.2, global_pruning=True).step()
    report = importance.report()
    assert report.skipped == [] and report.layers["removed"].sum() == 8


@pytest.mark.parametrize("global_pruning", [False, True])
def test_ratio_of_single_layers(global_pruning: bool) -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    pruner = case.pruner(
        model, importance, pruning_ratio_dict={model[0]: 0.72}, pruning_ratio=0.2, global_pruning=global_pruning
    )
    pruner.step()
    assert (model[0].out_features, model[2].out_features) == (1, 4)
    assert importance.report().layers["asked"].tolist() == importance.report().layers["removed"].tolist()


def test_whole_heads_are_removed_as_one() -> None:
    case = CASES["attention"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    pruner = case.pruner(
        model, importance, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5, pruning_ratio=0.3
    )
    pruner.step()
    assert importance.damage_.sizes["project (input)"] == 2
    assert model.qkv.out_features == 12 and model.project.in_features == 4
    best = importance.selection_.scores[importance.damage_.columns.section("project (input)")]
    assert len(best.unique()) == 2


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_heads_beside_global_pruning(ratio: float) -> None:
    """The host counts head dimensions in its ranking of all channels, though it removes heads only."""
    case = CASES["attention"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    pruner = case.pruner(
        model,
        importance,
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=0.5,
        pruning_ratio=ratio,
        global_pruning=True,
    )
    pruner.step()
    layers = importance.report().layers
    assert layers["asked"].tolist() == layers["removed"].tolist()
    model(case.batch(3)[0])


@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize("name", ["attention", "separate heads"])
def test_attention_that_may_lose_neither_heads_nor_dimensions(name: str, global_pruning: bool) -> None:
    """Of a pruner that leaves attention alone, nothing is asked there, and no place of a ranking is lost to it."""
    case = CASES[name]
    ours, theirs = case.model(), case.model()
    importance = WorstGroupImportance(model=ours, loader=_loader(case), progress=False)
    options = {"prune_head_dims": False, "global_pruning": global_pruning}
    case.pruner(ours, importance, **options).step()
    layers = importance.report().layers
    assert layers["asked"].tolist() == layers["removed"].tolist()
    assert ours.project.in_features == theirs.project.in_features
    if not global_pruning:
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance(), **options).step()
        assert _widths(ours) == _widths(theirs)


@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize("round_to", [2, 4])
def test_rounding_as_the_host_rounds(round_to: int, global_pruning: bool) -> None:
    case = Case(
        lambda: nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 13), nn.ReLU(), nn.Linear(13, 3)), (4,)
    )
    ours, theirs = case.model(), case.model()
    importance = WorstGroupImportance(model=ours, loader=_loader(case), progress=False)
    options = {"pruning_ratio": 0.3, "round_to": round_to, "global_pruning": global_pruning}
    case.pruner(ours, importance, **options).step()
    layers = importance.report().layers
    assert layers["asked"].tolist() == layers["removed"].tolist()
    if not global_pruning:
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance(), **options).step()
        assert _widths(ours) == _widths(theirs)


def test_self_collecting_form_follows_the_network() -> None:
    """Three iterative steps with training between them, and not a line of fairtrim in the loop."""
    case = CASES["plain"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    pruner = case.pruner(model, importance, iterative_steps=3, pruning_ratio=0.6)
    tables = []
    for _ in range(3):
        pruner.step()
        tables.append(importance.damage_)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        x, y = case.batch(6)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert len({id(table) for table in tables}) == 3
    assert [table.sizes["0"] for table in tables] == [5, 4, 3]
    assert model[0].out_channels == 2


@pytest.mark.parametrize("name", ["split", "attention"])
def test_self_collecting_form_repairs_the_host_s_splits(name: str) -> None:
    """The host's map through a split is stale after a step; the magnitude criterion raises IndexError here."""
    case = CASES[name]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
    pruner = case.pruner(model, importance, iterative_steps=3, pruning_ratio=0.6)
    for _ in range(3):
        pruner.step()
        assert importance.report().skipped == []
        model(case.batch(2)[0])


@pytest.mark.parametrize("seed", range(12))
def test_any_order_repairs_the_host_s_splits(seed: int) -> None:
    """By its stale map the host asks for groups that it passes over by the right one."""
    generator = torch.Generator().manual_seed(seed)
    case = CASES["split"]
    model = case.model()
    importance = DamageImportance(
        lambda damage: torch.rand(damage.shape[1], generator=generator),
        model=model,
        loader=_loader(case),
        selection="single",
        progress=False,
    )
    pruner = case.pruner(model, importance, iterative_steps=3, pruning_ratio=0.6)
    for _ in range(3):
        pruner.step()
        model(case.batch(2)[0])


def test_self_collecting_form_equals_the_explicit_one() -> None:
    case = CASES["residual"]
    models = [case.model(), case.model()]
    explicit = WorstGroupImportance(progress=False)
    pruner = case.pruner(models[0], explicit, global_pruning=True)
    explicit.fit(pruner, _loader(case))
    pruner.step()
    collecting = WorstGroupImportance(model=models[1], loader=_loader(case), progress=False)
    case.pruner(models[1], collecting, global_pruning=True).step()
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_group_of_a_bare_dependency_graph_and_partial_groups() -> None:
    case = CASES["concatenation"]
    model = case.model()
    importance = MeanDamageImportance(model=model, loader=_loader(case), selection="single", progress=False)
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, *case.shape, dtype=torch.float64))
    whole = importance(graph.get_pruning_group(model.b, tp.prune_conv_out_channels, [0, 1, 2, 3]))
    part = importance(graph.get_pruning_group(model.b, tp.prune_conv_out_channels, [3, 1]))
    assert part.tolist() == [whole[3].item(), whole[1].item()]
    inner = importance(graph.get_pruning_group(model.norm, tp.prune_batchnorm_out_channels, [4]))
    assert inner.tolist() == [whole[1].item()]  # the norm's channels 3 to 6 are b's


def test_scores_are_valid_for_the_host() -> None:
    case = CASES["plain"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
        scores = importance(group)
        assert scores.shape == (len(group[0].idxs),) and scores.dtype == torch.float64
        assert torch.isfinite(scores).all() and len(scores.unique()) == len(scores)


def test_negative_only_rule() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = GroupSaliencyImportance(privileged=[0, 1], beta=0.9, selection="single", progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
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
    importance.fit(pruner, _loader(case))
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


# Feeding it wrong -----------------------------------------------------------------------------------------


def test_without_fit() -> None:
    case = CASES["mlp"]
    model = case.model()
    pruner = case.pruner(model, WorstGroupImportance())
    with pytest.raises(NotFittedError, match=r"importance\.fit\(pruner, loader\)"):
        pruner.step()
    with pytest.raises(NotFittedError, match="nothing to report"):
        WorstGroupImportance().report()
    with pytest.raises(NotFittedError, match="no damage table yet"):
        _ = WorstGroupImportance().damage_
    with pytest.raises(InputError, match=r"got a Sequential; expected the pruner: importance\.fit\(pruner, loader\)"):
        WorstGroupImportance().fit(model, _loader(case))
    with pytest.raises(InputError, match="the loader is a NoneType"):
        WorstGroupImportance().fit(pruner, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["weights", "buffers", "structure"])
def test_stale_table(change: str) -> None:
    case = CASES["plain"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, iterative_steps=2, pruning_ratio=0.6)
    importance.fit(pruner, _loader(case))
    if change == "weights":
        with torch.no_grad():
            model[0].weight.mul_(1.1)
    elif change == "buffers":
        model[1].running_mean.add_(0.1)
    else:
        pruner.step()
    widths = _widths(model)
    with pytest.raises(StaleTableError, match="again before each"):
        pruner.step()
    assert _widths(model) == widths


def test_table_of_another_pruner() -> None:
    case = CASES["mlp"]
    importance = WorstGroupImportance(progress=False)
    first = case.pruner(case.model(), importance)
    importance.fit(first, _loader(case))
    with pytest.raises(StaleTableError):
        case.pruner(case.model(), importance).step()
    collecting = WorstGroupImportance(model=case.model(), loader=_loader(case), progress=False)
    with pytest.raises(InputError, match="another model="):
        case.pruner(case.model(), collecting).step()


def test_step_that_failed_can_be_tried_again() -> None:
    """The host counts a step before it asks for scores: after an error it must not be lost."""
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, iterative_steps=2)
    with pytest.raises(NotFittedError):
        pruner.step()
    assert pruner.current_step == 0
    importance.fit(pruner, _loader(case))
    pruner.step()
    with pytest.raises(StaleTableError):
        pruner.step()
    importance.fit(pruner, _loader(case))
    pruner.step()
    assert pruner.current_step == 2 and model[0].out_features == 4

    x, y, a = _loader(case)[0]
    data = [(x * float("nan"), y, a)]
    collecting = WorstGroupImportance(model=case.model(), loader=data, progress=False)
    pruner = case.pruner(collecting._model, collecting)
    with pytest.raises(InputError, match="not finite"):
        pruner.step()
    data[0] = (x, y, a)
    pruner.step()
    assert collecting._model[0].out_features == 4


def test_host_s_own_questions_outside_a_step() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    (group, *_) = pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers)
    scores = pruner.estimate_importance(group)
    assert scores.tolist() == importance(group).tolist()
    regularizing = tp.pruner.GroupNormPruner(
        model, case.batch(2)[0], importance=importance, pruning_ratio=0.4, ignored_layers=[model[4]]
    )
    with pytest.raises(InputError, match=r"GroupNormPruner.*regulariz.*one of the host's own importances"):
        regularizing.update_regularizer()
        regularizing.regularize(model)


def test_wrapped_importance_keeps_the_plan() -> None:
    case = CASES["residual"]
    models = case.model(), case.model()
    for wrapped, model in zip((False, True), models, strict=True):
        importance = WorstGroupImportance(model=model, loader=_loader(case), progress=False)
        asked = (lambda group, own=importance: own(group)) if wrapped else importance
        case.pruner(model, asked, global_pruning=True).step()
    for left, right in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_step_in_which_every_layer_has_reached_its_cap() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, iterative_steps=2, pruning_ratio=0.5, max_pruning_ratio=0.2)
    importance.fit(pruner, _loader(case))
    pruner.step()
    widths = _widths(model)
    with pytest.warns(UserWarning, match="every layer has reached max_pruning_ratio"):
        importance.fit(pruner, _loader(case))
    pruner.step()
    assert _widths(model) == widths


def test_isomorphic_without_global_is_refused() -> None:
    case = CASES["residual"]
    importance = WorstGroupImportance(progress=False)
    with pytest.raises(InputError, match="pass both"):
        importance.fit(case.pruner(case.model(), importance, isomorphic=True), _loader(case))


def test_channel_of_an_ignored_group_in_a_shared_consumer() -> None:
    case = CASES["concatenation"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, ignored_layers=[model.b, model.head])
    importance.fit(pruner, _loader(case))
    with pytest.raises(UnsupportedModelError, match=r"4 channels of .* were not scored"):
        importance(pruner.DG.get_pruning_group(model.b, tp.prune_conv_out_channels, [0, 1, 2, 3]))


def test_layer_that_was_ignored_when_fitted() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, ignored_layers=[model[2], model[4]])
    importance.fit(pruner, _loader(case))
    with pytest.raises(UnsupportedModelError, match="were not scored"):
        importance(pruner.DG.get_pruning_group(model[2], tp.prune_linear_out_channels, [0, 1]))


@pytest.mark.parametrize("normalizer", ["mean", "sum", "max", "lamp", "sentinel_0.5"])
def test_normalizers_that_reverse_signed_scores(normalizer: Any) -> None:
    with pytest.raises(InputError, match=r"use None, 'gaussian' or 'standarization'"):
        GroupSaliencyImportance(privileged="a", normalizer=normalizer)


@pytest.mark.parametrize("normalizer", [None, "gaussian", "standarization", lambda s: 3 * s - 1])
def test_normalizers_that_keep_the_order(normalizer: Any) -> None:
    case = CASES["plain"]
    models = case.model(), case.model()
    for model, of_model in zip(models, (None, normalizer), strict=True):
        importance = GroupSaliencyImportance(1, model=model, loader=_loader(case), normalizer=of_model, progress=False)
        case.pruner(model, importance).step()
    for left, right in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("normalizer", ["gaussian", "standarization"])
def test_normalizers_do_not_bring_ties_back(normalizer: Any) -> None:
    """Dead channels are apart by the smallest step only, which scaling swallows; and all layers end at 0 and 1."""
    model = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[:6] = 0
            layer.bias[:6] = -1
    case = CASES["mlp"]
    importance = MeanDamageImportance(selection="single", normalizer=normalizer, progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.3)
    importance.fit(pruner, _loader(case))
    pruner.step()
    assert importance.report().layers["removed"].sum() == 6


def test_normalizer_of_the_user_that_reverses() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), normalizer=lambda s: -s, progress=False)
    with pytest.raises(InputError, match="changed the order"):
        case.pruner(model, importance).step()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"selection": "both"}, "selection='both'; expected one of 'joint', 'single'"),
        ({"curvature": "fisher"}, "curvature='fisher'"),
        ({"level": "filter"}, "level='filter'"),
        ({"level": "weight"}, "use selection='single'"),
        ({"shrinkage": -1}, "shrinkage"),
        ({"loader": []}, "needs both model= and loader="),
        ({"shrinkage": "x"}, "shrinkage='x'"),
        ({"normalizer": "gausian"}, "normalizer='gausian' is unknown"),
        ({"loss_fn": "ce"}, "loss_fn='ce'; expected a function"),
        ({"batches": 3}, r"unknown argument 'batches'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WorstGroupImportance(**arguments)


def test_share_balance_refuses_ranking_across_layers() -> None:
    case = CASES["mlp"]
    importance = ShareBalancedImportance(progress=False)
    pruner = case.pruner(case.model(), importance, global_pruning=True)
    with pytest.raises(InputError, match="global_pruning=False"):
        importance.fit(pruner, _loader(case))
    with pytest.raises(InputError, match="leave selection= out"):
        ShareBalancedImportance(selection="joint")
    with pytest.raises(InputError, match="no negative scores"):
        importance.negative_groups(pruner)


def test_output_layer_that_was_not_ignored() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, ignored_layers=[])
    with pytest.warns(UserWarning, match=r"4: .* ignored_layers=\[model\.get_submodule\(\"4\"\)\]"):
        importance.fit(pruner, _loader(case))
    pruner.step()
    dense = case.model()
    assert model[4].out_features == dense[4].out_features and model[0].out_features < dense[0].out_features


def test_heads_that_share_keys_are_left_and_named() -> None:
    model = SHARED_KEYS.model()
    importance = WorstGroupImportance(progress=False)
    pruner = SHARED_KEYS.pruner(model, importance)
    with pytest.warns(UserWarning, match="heads share keys and values"):
        importance.fit(pruner, _loader(SHARED_KEYS))
    pruner.step()
    assert model.query.out_features == 8 and model.embed.out_features == 4
    assert importance.report().unscored.keys() == {"project (input)"}


class Reshaped(nn.Module):
    """A linear layer whose outputs become the pixels of an image: one channel there is many here."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.up, self.mix, self.head = nn.Linear(4, 5), nn.Linear(5, 12), nn.Conv2d(3, 6, 2), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.body(x).relu()).relu().view(-1, self.mix.in_channels, 2, 2)
        return self.head(self.mix(x).relu().flatten(1))


def test_group_that_gates_cannot_describe_is_left_and_named() -> None:
    model = Reshaped().double()
    importance = WorstGroupImportance(progress=False)
    case = Case(Reshaped, (4,))
    pruner = case.pruner(model, importance)
    with pytest.warns(UserWarning, match="leaves these dependency groups as they are: up: the host doesn't map 9"):
        importance.fit(pruner, _loader(case))
    pruner.step()
    assert (model.body.out_features, model.up.out_features, model.mix.out_channels) == (3, 12, 3)
    assert "not scored: up: the host" in str(importance.report())
    model(case.batch(3)[0])


class Tokens(nn.Module):
    """PyTorch's attention, whose query, key and value are the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = (
            nn.Linear(3, 8),
            nn.MultiheadAttention(8, 2, batch_first=True),
            nn.Linear(8, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        return self.head((x + self.mix(x, x, x, need_weights=False)[0]).mean(1))


def test_attention_of_torch_consumes_query_key_and_value() -> None:
    case = Case(Tokens, (5, 3), options=lambda model: {"out_channel_groups": {model.mix: 2}})
    model = case.model()
    groups = case.plan(model).groups
    table = collect_damage(model, _loader(case), groups, interactions=True, progress=False)
    slow = oracle_damage(model, _loader(case), groups)
    torch.testing.assert_close(table.interactions, slow.interactions, rtol=1e-9, atol=1e-14)


def test_nothing_to_prune() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    with pytest.raises(InputError, match="nothing in this network can be pruned"):
        importance.fit(case.pruner(model, importance, ignored_layers=[model]), _loader(case))


def test_table_of_an_earlier_step_is_stale_even_if_that_removed_nothing() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(
        model,
        importance,
        iterative_steps=2,
        pruning_ratio=0.2,
        iterative_pruning_ratio_scheduler=lambda ratio, steps: [0.0, 0.0, ratio],
    )
    importance.fit(pruner, _loader(case))
    pruner.step()
    assert model[0].out_features == 7
    with pytest.raises(StaleTableError, match="or the pruner gone on"):
        pruner.step()


def test_pruner_that_has_done_its_steps() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, _loader(case))
    pruner.step()
    with pytest.raises(InputError, match="done all its 1 steps"):
        importance.fit(pruner, _loader(case))


def test_asking_the_host_leaves_the_pruner_alone() -> None:
    case = CASES["residual"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, iterative_steps=3)
    importance.fit(pruner, _loader(case))
    assert pruner.importance is importance and pruner.current_step == 0
    assert pruner.pruning_history() == [] and pruner._scope_initial_channels == {}


def test_criterion_function_of_the_user() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = DamageImportance(lambda damage: damage.mean(0), model=model, loader=_loader(case), progress=False)
    case.pruner(model, importance).step()
    assert model[0].out_features == 4
    wrong = DamageImportance(lambda damage: damage, model=model, loader=_loader(case), progress=False)
    with pytest.raises(InputError, match="the criterion returned shape"):
        case.pruner(model, wrong).step()
    not_finite = DamageImportance(
        lambda damage: damage[0] * float("nan"), model=model, loader=_loader(case), selection="single", progress=False
    )
    with pytest.raises(InputError, match="not finite"):
        case.pruner(model, not_finite).step()
    named = DamageImportance(lambda damage: damage.max(0), model=model, loader=_loader(case), progress=False)
    with pytest.raises(InputError, match="the criterion returned a max; expected a tensor"):
        case.pruner(model, named).step()
    with pytest.raises(InputError, match="expected a Criterion or a function"):
        DamageImportance("mean")  # type: ignore[arg-type]


# Registry -------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_registry() -> Iterator[None]:
    before = dict(IMPORTANCES)
    yield
    for cls in IMPORTANCES.values():
        if hasattr(tp.importance, cls.__name__) and cls.__module__.startswith(("fairtrim", "tests")):
            delattr(tp.importance, cls.__name__)
    IMPORTANCES.clear()
    IMPORTANCES.update(before)


def test_registry(clean_registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class ThirdImportance(MeanDamageImportance):
        pass

    class EntryPoint:
        name = "third-party"

        @staticmethod
        def load() -> type:
            return ThirdImportance

    monkeypatch.setattr("fairtrim_adapters.torch_pruning.importances.registry.entry_points", lambda group: [EntryPoint])
    assert register()["third-party"] is ThirdImportance
    assert register() == IMPORTANCES  # twice is fine
    assert tp.importance.ThirdImportance is ThirdImportance
    assert tp.importance.GroupSaliencyImportance is GroupSaliencyImportance
    for name in ("group-saliency", "mean-damage", "worst-group", "tail-risk", "share-balanced"):
        assert IMPORTANCES[name].__name__ in adapter.__all__


def test_registry_says_what_there_is() -> None:
    for unknown in ("worst_group", "Worst-Group", "worst-grup"):
        message = rf"importance '{unknown}' is unknown \(did you mean 'worst-group'\?\); expected one of \['accum"
        with pytest.raises(InputError, match="^" + message):
            IMPORTANCES[unknown]
    with pytest.raises(KeyError, match=r"^importance 7 is unknown; expected"):
        IMPORTANCES[7]  # type: ignore[index]
    assert "worst_group" not in IMPORTANCES and IMPORTANCES.get("worst_group") is None


def test_registry_refusals(clean_registry: None) -> None:
    for name, cls, message in (
        ("worst-group", MeanDamageImportance, "taken by WorstGroupImportance"),
        ("Worst_Group", MeanDamageImportance, "lower-case words"),
        ("plain", dict, "subclass of torch_pruning's Importance"),
    ):
        with pytest.raises(InputError, match=message):
            register_importance(name)(cls)
    clash = type("LAMPImportance", (MeanDamageImportance,), {})
    register_importance("clash")(clash)
    with pytest.raises(InputError, match="exists already"):
        register()


# Saving ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_save_and_load_a_pruned_network(case: Case, tmp_path: Any) -> None:
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=_loader(case), **_options(case))
    case.pruner(model, importance).step()
    model.eval()
    save_pruned(tmp_path / "pruned.safetensors", model)
    fresh = load_pruned(tmp_path / "pruned.safetensors", case.model(seed=3)).eval()
    x, _ = case.batch(3)
    transform = case.transform or (lambda output: output)
    torch.testing.assert_close(transform(fresh(x)), transform(model(x)), rtol=0, atol=0)
    assert [str(m) for m in fresh.modules()] == [str(m) for m in model.modules()]
    again = WorstGroupImportance(model=fresh, loader=_loader(case), **_options(case))
    case.pruner(fresh, again).step()  # can be pruned further
    assert [p.name for p in tmp_path.iterdir()] == ["pruned.safetensors"]


class _Gated(nn.Module):
    """Activations that make numbers of not-a-numbers, or refuse them."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.hidden, self.head, self.activation = nn.Linear(4, 6), nn.Linear(6, 2), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.hidden(x)))


def _checked(x: Tensor) -> Tensor:
    assert bool(torch.isfinite(x).all())
    return x


@pytest.mark.parametrize(
    "activation",
    [lambda x: torch.where(x > 0, x, torch.zeros_like(x)), torch.nan_to_num, _checked, lambda x: x * (x > x.median())],
    ids=["where", "nan_to_num", "assertion", "median"],
)
def test_networks_that_handle_not_a_number_are_not_refused(activation: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, importance = _Gated(activation), MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 4), importance=importance, pruning_ratio=0.5, ignored_layers=[model.head]
    )
    importance.fit(pruner, [(torch.randn(9, 4), torch.arange(9) % 2)])
    pruner.step()
    assert model.hidden.out_features == 3


def _heads(**options: Any) -> tuple[tp.pruner.BasePruner, SeparateHeads, MeanDamageImportance]:
    model = SeparateHeads()
    model.num_heads = 8  # of one dimension each
    importance = MeanDamageImportance(progress=False)
    pruner = tp.pruner.BasePruner(
        model, torch.randn(2, 5, 3), importance=importance, ignored_layers=[model.head, model.embed], **options
    )
    return pruner, model, importance


def test_heads_are_counted_from_the_first() -> None:
    """The host takes the share from the heads that are left: 8 heads, 4 steps to a half, 1 left."""
    batches = [(torch.randn(9, 5, 3), torch.arange(9) % 3)]
    pruner, model, importance = _heads(
        num_heads={}, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=0.5, iterative_steps=4
    )
    for layer in (model.query, model.key, model.value):
        pruner.num_heads[layer] = pruner.init_num_heads[layer] = pruner.out_channel_groups[layer] = 8
    left = []
    for _ in range(4):
        importance.fit(pruner, batches)
        pruner.step()
        model.num_heads = pruner.num_heads[model.query]
        left.append(model.query.out_features)
        assert model(batches[0][0]).shape == (9, 3)
    assert left == [7, 6, 5, 4]


def test_attention_whose_heads_the_host_is_not_told_of_is_left() -> None:
    pruner, model, importance = _heads(pruning_ratio=0.5)
    with pytest.raises(UnsupportedModelError, match=r"of which the host is not told; give the pruner num_heads"):
        importance.fit(pruner, [(torch.randn(9, 5, 3), torch.arange(9) % 3)])
    assert model.query.out_features == 8
