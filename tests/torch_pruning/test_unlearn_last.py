"""A network that was unlearned and then pruned: the report of the pruning says that it undoes it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import nn

from fairtrim import ColumnErasure, load_pruned, save_pruned
from fairtrim.unlearning.unlearned import was_unlearned
from fairtrim_adapters.torch_pruning import WorstGroupImportance
from tests.unlearning_cases import METHODS, leaning_network, leaning_people

PEOPLE = leaning_people(163)


def _flags(model: nn.Module, *, ratio: float = 0.5) -> list[str]:
    importance: Any = WorstGroupImportance()
    pruner = tp.pruner.BasePruner(
        model, PEOPLE.inputs[:2], importance=importance, pruning_ratio=ratio, ignored_layers=[list(model.modules())[-1]]
    )
    groups = [PEOPLE.groups[g] for g in PEOPLE.group.tolist()]
    importance.fit(pruner, [(PEOPLE.inputs, PEOPLE.target, groups)], progress=False)
    pruner.step()
    return [flag for flag in importance.report().flags if "was unlearned" in flag]


@pytest.mark.parametrize("inplace", [False, True])
def test_pruned_after_an_unlearning(inplace: bool) -> None:
    model = leaning_network()
    repair = METHODS["output"]().repair(model, PEOPLE, inplace=inplace, progress=False)
    assert repair.chosen.candidate > 0 and was_unlearned(repair.model) and was_unlearned(model) == inplace
    (flag,) = _flags(copy.deepcopy(repair.model))
    assert "unlearn last" in flag
    assert _flags(nn.Sequential(copy.deepcopy(repair.model))) == [flag]
    assert _flags(copy.deepcopy(repair.model), ratio=0.0) == []  # nothing was removed


def test_no_word_where_nothing_was_unlearned() -> None:
    model = leaning_network()
    assert _flags(copy.deepcopy(model)) == []
    returned = METHODS["output"](strengths=(0.0,)).repair(model, PEOPLE, inplace=True, progress=False)
    assert returned.chosen.candidate == 0 and not was_unlearned(model)
    erased = ColumnErasure(columns=[2, 3, 4]).repair(model, PEOPLE, progress=False).model
    assert _flags(erased) == []  # pruning brings no column back


def test_files_hold_the_same_as_ever(tmp_path: Any) -> None:
    repair = METHODS["output"]().repair(leaning_network(), PEOPLE, progress=False)
    save_pruned(tmp_path / "one.safetensors", repair.model)
    loaded = load_pruned(tmp_path / "one.safetensors", leaning_network())
    assert not was_unlearned(loaded)
    torch.testing.assert_close(loaded.state_dict(), repair.model.state_dict(), rtol=0, atol=0)
