"""One pruned copy: the same as Torch-Pruning by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import InputError, fine_tune
from fairtrim_adapters.torch_pruning import WorstGroupImportance, prune_copy
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
    pruned = prune_copy(
        dense, tp.importance.GroupTaylorImportance(), data, 0.5, recalibrate=False, reconstruct=False, progress=False
    )
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


def test_fine_tuning_by_epochs_by_settings_and_by_a_loop_of_ones_own() -> None:
    """Epochs stand for their settings; one's own loop gets the copy and the seed, and draws as the seed says."""
    magnitude, options = tp.importance.GroupMagnitudeImportance(), {"random_state": 3, "progress": False}

    def loop(pruned: nn.Module, seed: int) -> None:
        fine_tune(pruned, splits().train, epochs=2, random_state=seed, progress=False)

    ways: list[Any] = [2, {"epochs": 2}, {"epochs": 2, "learning_rate": 1e-3}, loop]
    first, *others = (prune_copy(network(), magnitude, splits(), 0.5, fine_tuning=way, **options) for way in ways)
    untrained = prune_copy(network(), magnitude, splits(), 0.5, **options)
    assert not torch.equal(first[0].weight, untrained[0].weight)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_generator_gives_the_seed() -> None:
    seen: list[int] = []
    drawn = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(8)))
    for state in (5, torch.Generator().manual_seed(8)):
        prune_copy(
            network(),
            tp.importance.GroupMagnitudeImportance(),
            splits(),
            0.5,
            fine_tuning=lambda pruned, seed: seen.append(seed),
            random_state=state,
            progress=False,
        )
    assert seen == [5, drawn]


def test_wrong_settings_are_refused_before_anything_is_pruned() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"fine_tuning": -1}, "fine_tuning=-1; expected"),
        ({"fine_tuning": {"epoch": 1}}, r"fine_tuning has no 'epoch' \(did you mean 'epochs'"),
        ({"fine_tuning": {"learning_rate": 0.0}}, "learning_rate=0.0; expected above 0"),
        ({"random_state": 0.5}, "random_state=0.5; expected a whole number or a torch.Generator"),
        ({"seed": 1}, "prune_copy has no seed=; it is called random_state="),
        (
            {"learning_rate": 0.1},
            r"prune_copy has no learning_rate=; it is called fine_tuning=\{'learning_rate': ...\}",
        ),
    ]
    for options, message in wrong:
        with pytest.raises(InputError, match=message):
            prune_copy(network(), tp.importance.GroupMagnitudeImportance(), splits(), 0.5, progress=False, **options)


def test_a_function_of_options_may_say_how_the_network_is_traced() -> None:
    """As ``pruning_options`` of the adapter for Hugging Face does."""
    traced: list[int] = []

    def options(model: nn.Module) -> dict[str, Any]:
        return {"forward_fn": lambda model, inputs: traced.append(1) or model(inputs), "output_transform": None}

    magnitude = tp.importance.GroupMagnitudeImportance()
    pruned = prune_copy(network(), magnitude, splits(), 0.5, pruner_options=options, progress=False)
    assert traced and pruned[0].out_features == 6
