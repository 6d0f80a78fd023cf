"""What every importance does inside Torch-Pruning's own pruner."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import (
    InputError,
    NotFittedError,
    StaleTableError,
    UnsupportedModelError,
    load_pruned,
    save_pruned,
)
from fairtrim_adapters.torch_pruning import (
    DamageImportance,
    GroupSaliencyImportance,
    MeanDamageImportance,
    ShareBalancedImportance,
    WorstGroupImportance,
)
from tests.importance_cases import MAKERS, batches_of, reading_of, widths_of
from tests.networks import CASES, Case


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
    """As many channels go from each layer as with Torch-Pruning's own criterion (local); all that are asked for go."""
    options = {"global_pruning": mode != "local", "iterative_steps": 2 if mode == "iterative" else 1}
    dense = case.model()
    ours, theirs = copy.deepcopy(dense), copy.deepcopy(dense)
    importance = maker(**reading_of(case))
    pruner = case.pruner(ours, importance, **options)
    for _ in range(pruner.iterative_steps):
        importance.fit(pruner, batches_of(case))
        pruner.step()
    if mode == "local":
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance(), **options).step()
        assert widths_of(ours) == widths_of(theirs)
    report = importance.report()
    assert report.skipped == []
    assert report.layers["asked"].tolist() == report.layers["removed"].tolist()
    assert "skipped by Torch-Pruning: none" in str(report)
    x, y = case.batch(4)
    output = ours(x)
    scores = case.transform(output) if case.transform else output
    nn.functional.cross_entropy(scores, y).backward()
    assert all(torch.isfinite(p.grad).all() for p in ours.parameters() if p.grad is not None)


def test_self_collecting_form_follows_the_network() -> None:
    """Three iterative steps with training between them, and not a line of fairtrim in the loop."""
    case = CASES["plain"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
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
    """Torch-Pruning's map through a split is stale after a step; the magnitude criterion raises IndexError here."""
    case = CASES[name]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
    pruner = case.pruner(model, importance, iterative_steps=3, pruning_ratio=0.6)
    for _ in range(3):
        pruner.step()
        assert importance.report().skipped == []
        model(case.batch(2)[0])


@pytest.mark.parametrize("seed", range(12))
def test_any_order_repairs_the_host_s_splits(seed: int) -> None:
    """By its stale map Torch-Pruning asks for groups that it passes over by the right one."""
    generator = torch.Generator().manual_seed(seed)
    case = CASES["split"]
    model = case.model()
    importance = DamageImportance(
        lambda damage: torch.rand(damage.shape[1], generator=generator),
        model=model,
        loader=batches_of(case),
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
    explicit.fit(pruner, batches_of(case))
    pruner.step()
    collecting = WorstGroupImportance(model=models[1], loader=batches_of(case), progress=False)
    case.pruner(models[1], collecting, global_pruning=True).step()
    for left, right in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_group_of_a_bare_dependency_graph_and_partial_groups() -> None:
    case = CASES["concatenation"]
    model = case.model()
    importance = MeanDamageImportance(model=model, loader=batches_of(case), selection="single", progress=False)
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
    importance.fit(pruner, batches_of(case))
    for group in pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers):
        scores = importance(group)
        assert scores.shape == (len(group[0].idxs),) and scores.dtype == torch.float64
        assert torch.isfinite(scores).all() and len(scores.unique()) == len(scores)


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
        WorstGroupImportance().fit(model, batches_of(case))
    with pytest.raises(InputError, match="the loader is a NoneType"):
        WorstGroupImportance().fit(pruner, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["weights", "buffers", "structure"])
def test_stale_table(change: str) -> None:
    case = CASES["plain"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, iterative_steps=2, pruning_ratio=0.6)
    importance.fit(pruner, batches_of(case))
    if change == "weights":
        with torch.no_grad():
            model[0].weight.mul_(1.1)
    elif change == "buffers":
        model[1].running_mean.add_(0.1)
    else:
        pruner.step()
    widths = widths_of(model)
    with pytest.raises(StaleTableError, match="again before each"):
        pruner.step()
    assert widths_of(model) == widths


def test_table_of_another_pruner() -> None:
    case = CASES["mlp"]
    importance = WorstGroupImportance(progress=False)
    first = case.pruner(case.model(), importance)
    importance.fit(first, batches_of(case))
    with pytest.raises(StaleTableError):
        case.pruner(case.model(), importance).step()
    collecting = WorstGroupImportance(model=case.model(), loader=batches_of(case), progress=False)
    with pytest.raises(InputError, match="another model="):
        case.pruner(case.model(), collecting).step()


def test_step_that_failed_can_be_tried_again() -> None:
    """Torch-Pruning counts a step before it asks for scores: after an error it must not be lost."""
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, iterative_steps=2)
    with pytest.raises(NotFittedError):
        pruner.step()
    assert pruner.current_step == 0
    importance.fit(pruner, batches_of(case))
    pruner.step()
    with pytest.raises(StaleTableError):
        pruner.step()
    importance.fit(pruner, batches_of(case))
    pruner.step()
    assert pruner.current_step == 2 and model[0].out_features == 4

    x, y, a = batches_of(case)[0]
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
    importance.fit(pruner, batches_of(case))
    (group, *_) = pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers)
    scores = pruner.estimate_importance(group)
    assert scores.tolist() == importance(group).tolist()
    regularizing = tp.pruner.GroupNormPruner(
        model, case.batch(2)[0], importance=importance, pruning_ratio=0.4, ignored_layers=[model[4]]
    )
    with pytest.raises(InputError, match=r"GroupNormPruner.*regulariz.*one of Torch-Pruning's own importances"):
        regularizing.update_regularizer()
        regularizing.regularize(model)


def test_wrapped_importance_keeps_the_plan() -> None:
    case = CASES["residual"]
    models = case.model(), case.model()
    for wrapped, model in zip((False, True), models, strict=True):
        importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
        asked = (lambda group, own=importance: own(group)) if wrapped else importance
        case.pruner(model, asked, global_pruning=True).step()
    for left, right in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_channel_of_an_ignored_group_in_a_shared_consumer() -> None:
    case = CASES["concatenation"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, ignored_layers=[model.b, model.head])
    importance.fit(pruner, batches_of(case))
    with pytest.raises(UnsupportedModelError, match=r"4 channels of .* were not scored"):
        importance(pruner.DG.get_pruning_group(model.b, tp.prune_conv_out_channels, [0, 1, 2, 3]))


def test_layer_that_was_ignored_when_fitted() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, ignored_layers=[model[2], model[4]])
    importance.fit(pruner, batches_of(case))
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
        importance = GroupSaliencyImportance(
            1, model=model, loader=batches_of(case), normalizer=of_model, progress=False
        )
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
    importance.fit(pruner, batches_of(case))
    pruner.step()
    assert importance.report().layers["removed"].sum() == 6


def test_normalizer_of_the_user_that_reverses() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), normalizer=lambda s: -s, progress=False)
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
    importance.fit(pruner, batches_of(case))
    pruner.step()
    assert model[0].out_features == 7
    with pytest.raises(StaleTableError, match="or the pruner gone on"):
        pruner.step()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_save_and_load_a_pruned_network(case: Case, tmp_path: Any) -> None:
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), **reading_of(case))
    case.pruner(model, importance).step()
    model.eval()
    save_pruned(tmp_path / "pruned.safetensors", model)
    fresh = load_pruned(tmp_path / "pruned.safetensors", case.model(seed=3)).eval()
    x, _ = case.batch(3)
    transform = case.transform or (lambda output: output)
    torch.testing.assert_close(transform(fresh(x)), transform(model(x)), rtol=0, atol=0)
    assert [str(m) for m in fresh.modules()] == [str(m) for m in model.modules()]
    again = WorstGroupImportance(model=fresh, loader=batches_of(case), **reading_of(case))
    case.pruner(fresh, again).step()  # can be pruned further
    assert [p.name for p in tmp_path.iterdir()] == ["pruned.safetensors"]
