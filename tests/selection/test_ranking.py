"""An order of single channels: who stays, and how ties are broken."""

from __future__ import annotations

import torch

from fairtrim.criteria import (
    MeanDamage,
)
from fairtrim.damage import DamageTable
from fairtrim.selection import (
    Floor,
    Pool,
    break_ties,
    joint_selection,
    negative_columns,
    single_selection,
)
from tests.tables import random_table


def test_single_selection_keeps_the_best_of_each_layer_only_where_layers_compete() -> None:
    table = random_table({"x": 3, "y": 4})
    table = DamageTable(**{**vars(table), "slope": torch.cat([torch.full((3, 3), 9.0), torch.zeros(3, 4)], 1).double()})
    score = MeanDamage().score(table)
    local = single_selection(table, MeanDamage(), pools=[Pool(("x",)), Pool(("y",))])
    torch.testing.assert_close(local.scores, score)
    shared = single_selection(table, MeanDamage(), pools=[Pool(("x", "y"))])
    assert shared.order[-2:].tolist() == [int(score[:3].argmax()), 3 + int(score[3:].argmax())]
    assert sorted(shared.order[:2].tolist()) == sorted(score[:3].argsort()[:2].tolist())


def test_only_what_lowers_the_criterion() -> None:
    """Single: every channel with a negative score that the floors allow; joint: in order until the first rise."""
    table = random_table({"x": 4, "y": 3})
    slope = torch.tensor([9.0, 8.0, 7.0, -9.0, 6.0, -9.0, -9.0], dtype=torch.float64).expand(3, 7)
    table = DamageTable(**{**vars(table), "slope": slope})
    single = single_selection(table, MeanDamage())
    assert sorted(negative_columns(table.columns, single, [], joint=False).tolist()) == [0, 1, 2, 4]
    capped = negative_columns(table.columns, single, [Floor("x", 2)], joint=False)
    assert len(capped) == 3 and 4 in capped and 3 not in capped
    joint = joint_selection(table, MeanDamage())
    removed = negative_columns(table.columns, joint, [], joint=True).tolist()
    assert removed == joint.order[: len(removed)].tolist() and 0 < len(removed) < 7
    assert float(joint.change[joint.order[len(removed)]]) >= 0


def test_ties_are_broken_by_the_smallest_step() -> None:
    scores = torch.tensor([0.0, -1.0, 0.0, 0.0, 2.0], dtype=torch.float64)
    distinct = break_ties(scores)
    assert len(distinct.unique()) == 5
    assert distinct.argsort().tolist() == [1, 0, 2, 3, 4]
    torch.testing.assert_close(distinct, scores, rtol=0, atol=1e-300)
