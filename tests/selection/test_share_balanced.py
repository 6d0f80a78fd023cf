"""FairGRAPE's order against its definition."""

from __future__ import annotations

import torch

from fairtrim.damage import DamageTable
from fairtrim.selection import (
    share_balanced_order,
)
from tests.tables import random_table


def test_share_balanced_order_by_hand() -> None:
    """Shares 6:3; the first kept channel is the larger group's best, then the smaller group's."""
    table = random_table({"x": 3}, ("a", "b"))
    importance = torch.tensor([[3.0, 2.0, 1.0], [0.2, 0.3, 2.5]], dtype=torch.float64)
    table = DamageTable(**{**vars(table), "curvature": importance})
    # shares: a 6/9, b 3/9. Keep 0 (a); kept share of b .0625 is furthest below: keep 2 (b's best); then 1
    assert share_balanced_order(table).scores.tolist() == [2.0, 0.0, 1.0]


def test_share_balanced_order_equals_its_definition() -> None:
    table = random_table({"x": 5, "y": 7})
    scores = share_balanced_order(table).scores
    for name in table.sizes:
        importance = table.curvature[:, table.columns.section(name)]
        kept: list[int] = []
        for place in reversed(range(importance.shape[1])):
            total = importance[:, kept].sum(1)
            share = total / total.sum() if kept else torch.zeros(3).double()
            behind = int((importance.sum(1) / importance.sum() - share).argmax())
            best = max((c for c in range(importance.shape[1]) if c not in kept), key=lambda c: importance[behind, c])
            assert int(scores[table.columns.section(name)][best]) == place
            kept.append(best)
