"""What Torch-Pruning asks for in a step: ratios, caps, heads, rounding, and groups that are left."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import (
    InputError,
    UnsupportedModelError,
    collect_damage,
)
from fairtrim.oracle import oracle_damage
from fairtrim_adapters.torch_pruning import (
    MeanDamageImportance,
    WorstGroupImportance,
)
from tests.importance_cases import batches_of, widths_of
from tests.networks import CASES, SHARED_KEYS, Case, SeparateHeads


def test_global_pruning_removes_exactly_the_ratio() -> None:
    case = CASES["residual"]
    model = case.model()
    total = sum(group.size for group in case.plan(model).groups)
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, pruning_ratio=0.5)
    importance.fit(pruner, batches_of(case))
    pruner.step()
    assert importance.report().layers["removed"].sum() == total - int(total * 0.5)


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
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
    with torch.no_grad():
        model.second.weight.mul_(1e-6)  # nothing of the first layer matters: without a cap it would go
    pruner = case.pruner(model, importance, **{"pruning_ratio": 0.5, **options})
    pruner.step()
    if "round_to" in options:
        assert all(layer.out_channels % 2 == 0 for layer in model.modules() if isinstance(layer, nn.Conv2d))
    if "max_pruning_ratio" in options:
        assert (model.stem.out_channels, model.first.out_channels) == (3, 3)
    assert sum(widths_of(model).values()) < sum(widths_of(dense).values())
    model(case.batch(3)[0])


def test_a_cap_that_the_ratio_exceeds_is_given_up_but_no_layer_is_lost() -> None:
    """Torch-Pruning takes its ratio whatever max_pruning_ratio says; a layer whole in that set it would skip."""
    case = CASES["residual"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
    case.pruner(model, importance, pruning_ratio=0.7, max_pruning_ratio=0.2, global_pruning=True).step()
    report = importance.report()
    assert report.skipped == [] and report.layers["removed"].sum() == 8


@pytest.mark.parametrize("global_pruning", [False, True])
def test_ratio_of_single_layers(global_pruning: bool) -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
    pruner = case.pruner(
        model, importance, pruning_ratio_dict={model[0]: 0.72}, pruning_ratio=0.2, global_pruning=global_pruning
    )
    pruner.step()
    assert (model[0].out_features, model[2].out_features) == (1, 4)
    assert importance.report().layers["asked"].tolist() == importance.report().layers["removed"].tolist()


def test_whole_heads_are_removed_as_one() -> None:
    case = CASES["attention"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
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
    """Torch-Pruning counts head dimensions in its ranking of all channels, though it removes heads only."""
    case = CASES["attention"]
    model = case.model()
    importance = WorstGroupImportance(model=model, loader=batches_of(case), progress=False)
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
    importance = WorstGroupImportance(model=ours, loader=batches_of(case), progress=False)
    options = {"prune_head_dims": False, "global_pruning": global_pruning}
    case.pruner(ours, importance, **options).step()
    layers = importance.report().layers
    assert layers["asked"].tolist() == layers["removed"].tolist()
    assert ours.project.in_features == theirs.project.in_features
    if not global_pruning:
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance(), **options).step()
        assert widths_of(ours) == widths_of(theirs)


@pytest.mark.parametrize("global_pruning", [False, True])
@pytest.mark.parametrize("round_to", [2, 4])
def test_rounding_as_the_host_rounds(round_to: int, global_pruning: bool) -> None:
    case = Case(
        lambda: nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 13), nn.ReLU(), nn.Linear(13, 3)), (4,)
    )
    ours, theirs = case.model(), case.model()
    importance = WorstGroupImportance(model=ours, loader=batches_of(case), progress=False)
    options = {"pruning_ratio": 0.3, "round_to": round_to, "global_pruning": global_pruning}
    case.pruner(ours, importance, **options).step()
    layers = importance.report().layers
    assert layers["asked"].tolist() == layers["removed"].tolist()
    if not global_pruning:
        case.pruner(theirs, tp.importance.GroupMagnitudeImportance(), **options).step()
        assert widths_of(ours) == widths_of(theirs)


def test_step_in_which_every_layer_has_reached_its_cap() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, iterative_steps=2, pruning_ratio=0.5, max_pruning_ratio=0.2)
    importance.fit(pruner, batches_of(case))
    pruner.step()
    widths = widths_of(model)
    with pytest.warns(UserWarning, match="every layer has reached max_pruning_ratio"):
        importance.fit(pruner, batches_of(case))
    pruner.step()
    assert widths_of(model) == widths


def test_isomorphic_without_global_is_refused() -> None:
    case = CASES["residual"]
    importance = WorstGroupImportance(progress=False)
    with pytest.raises(InputError, match="pass both"):
        importance.fit(case.pruner(case.model(), importance, isomorphic=True), batches_of(case))


def test_output_layer_that_was_not_ignored() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, ignored_layers=[])
    with pytest.warns(UserWarning, match=r"4: .* ignored_layers=\[model\.get_submodule\(\"4\"\)\]"):
        importance.fit(pruner, batches_of(case))
    pruner.step()
    dense = case.model()
    assert model[4].out_features == dense[4].out_features and model[0].out_features < dense[0].out_features


def test_heads_that_share_keys_are_left_and_named() -> None:
    model = SHARED_KEYS.model()
    importance = WorstGroupImportance(progress=False)
    pruner = SHARED_KEYS.pruner(model, importance)
    with pytest.warns(UserWarning, match="heads share keys and values"):
        importance.fit(pruner, batches_of(SHARED_KEYS))
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
    with pytest.warns(UserWarning, match="leaves these dependency groups as they are: up: Torch-Pruning doesn't map 9"):
        importance.fit(pruner, batches_of(case))
    pruner.step()
    assert (model.body.out_features, model.up.out_features, model.mix.out_channels) == (3, 12, 3)
    assert "not scored: up: Torch-Pruning" in str(importance.report())
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
    table = collect_damage(model, batches_of(case), groups, interactions=True, progress=False)
    slow = oracle_damage(model, batches_of(case), groups)
    torch.testing.assert_close(table.interactions, slow.interactions, rtol=1e-9, atol=1e-14)


def test_nothing_to_prune() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    with pytest.raises(InputError, match="nothing in this network can be pruned"):
        importance.fit(case.pruner(model, importance, ignored_layers=[model]), batches_of(case))


def test_pruner_that_has_done_its_steps() -> None:
    case = CASES["mlp"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance)
    importance.fit(pruner, batches_of(case))
    pruner.step()
    with pytest.raises(InputError, match="done all its 1 steps"):
        importance.fit(pruner, batches_of(case))


def test_asking_the_host_leaves_the_pruner_alone() -> None:
    case = CASES["residual"]
    model = case.model()
    importance = WorstGroupImportance(progress=False)
    pruner = case.pruner(model, importance, global_pruning=True, iterative_steps=3)
    importance.fit(pruner, batches_of(case))
    assert pruner.importance is importance and pruner.current_step == 0
    assert pruner.pruning_history() == [] and pruner._scope_initial_channels == {}


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
    """Torch-Pruning takes the share from the heads that are left: 8 heads, 4 steps to a half, 1 left."""
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
    with pytest.raises(UnsupportedModelError, match=r"of which Torch-Pruning is not told; give the pruner num_heads"):
        importance.fit(pruner, [(torch.randn(9, 5, 3), torch.arange(9) % 3)])
    assert model.query.out_features == 8
