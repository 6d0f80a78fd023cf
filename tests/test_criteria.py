"""Criteria against closed forms."""

from __future__ import annotations

import pytest
import torch

from fairtrim import InputError
from fairtrim.criteria import (
    BalancedDamage,
    GapDrivenDamage,
    GroupSaliency,
    MeanDamage,
    TailRisk,
    WorstGroup,
)
from tests.tables import random_table


def test_criteria_in_closed_form() -> None:
    table = random_table({"x": 2, "y": 3})
    damage, counts = table.damage, table.counts
    torch.testing.assert_close(MeanDamage().score(table), (counts / counts.sum()) @ damage)
    torch.testing.assert_close(WorstGroup().score(table), damage.max(0).values)
    others = (5 * damage[0] + 2 * damage[2]) / 7
    torch.testing.assert_close(GroupSaliency("b", beta=0.4).score(table), others - 0.4 * damage[1])
    torch.testing.assert_close(GroupSaliency("b", "c", 0.4).score(table), damage[2] - 0.4 * damage[1])
    both = (5 * damage[0] + 11 * damage[1]) / 16
    torch.testing.assert_close(GroupSaliency(["a", "b"], beta=0.5).score(table), damage[2] - 0.5 * both)
    ordered = damage.sort(0, descending=True).values
    torch.testing.assert_close(TailRisk(0.5).score(table), (ordered[0] + 0.5 * ordered[1]) / 1.5)
    torch.testing.assert_close(TailRisk(1.0).score(table), damage.mean(0))
    torch.testing.assert_close(TailRisk(0.01).score(table), damage.max(0).values)
    scaled = damage / damage.abs().sum(1, keepdim=True)
    torch.testing.assert_close(BalancedDamage().score(table), scaled.max(0).values)
    excess = table.loss - table.loss.mean()
    weights = (1 + 0.7 * excess / excess.abs().max()) / 3
    torch.testing.assert_close(GapDrivenDamage(0.7).score(table), weights @ damage)


def test_a_single_sensitive_group_is_pointed_out() -> None:
    with pytest.warns(UserWarning, match="the data hold only one: 'a'; check the sensitive features"):
        WorstGroup().score(random_table({"x": 2}, ("a",)))


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.2, float("nan"), "a", None])
def test_beta_out_of_range(beta: float) -> None:
    with pytest.raises(InputError, match="beta="):
        GroupSaliency("a", beta=beta)
