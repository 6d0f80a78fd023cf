"""One pruned copy: the same as Torch-Pruning by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from fairtrim_adapters.sweep import prune_copy
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.sweep_cases import network, splits


def test_taylor_sums_gradients_over_the_scoring_data() -> None:
    dense, data = network(), splits()
    by_hand = copy.deepcopy(dense)
    for x, y, _ in data.scoring:
        nn.functional.cross_entropy(by_hand(x), y, reduction="sum").backward()
    importance = tp.importance.GroupTaylorImportance()
    tp.pruner.BasePruner(
        by_hand, torch.randn(2, 6), importance=importance, pruning_ratio=0.5, ignored_layers=[by_hand[-1]]
    ).step()
    pruned = prune_copy(dense, tp.importance.GroupTaylorImportance(), data, 0.5, recalibrate=False, progress=False)
    for mine, theirs in zip(pruned.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_several_steps_reach_the_ratio() -> None:
    pruned = prune_copy(network(), WorstGroupImportance(), splits(), 0.5, iterative_steps=3, progress=False)
    assert [pruned[0].out_features, pruned[3].out_features] == [6, 5]


def test_pruner_options_by_function_and_by_name() -> None:
    def options(model: nn.Module) -> dict[str, Any]:
        return {"ignored_layers": [model[0]], "global_pruning": True}  # type: ignore[index]

    by_function = prune_copy(
        network(), tp.importance.GroupMagnitudeImportance(), splits(), 0.5, pruner_options=options, progress=False
    )
    by_name = prune_copy(
        network(),
        tp.importance.GroupMagnitudeImportance(),
        splits(),
        0.5,
        ignored_layers=["0"],
        pruner_options={"global_pruning": True},
        progress=False,
    )
    assert by_function[0].out_features == by_name[0].out_features == 12
    assert by_function[3].out_features == by_name[3].out_features == 5
