"""A bound that nothing meets: what surely gets worse is not given for a bias that perhaps gets better."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from fairtrim import Repair, ThresholdSelection, ValidationSet
from fairtrim.measures.objective import Objective, labels_given
from fairtrim.repair.figures import figures_of, size_of_bias
from tests.plain_measures import plain_bias
from tests.repair_cases import some_people

KEPT = "the network is kept as it was given: no other is within the bound"
MEASURES = ("demographic_parity_difference", "equalized_odds_difference", "accuracy_score_difference")


def _people(seed: int, number: int) -> ValidationSet:
    """Three groups, one of which has the label a little more often than its inputs say."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(number, 4, generator=generator)
    group = torch.randint(3, (number,), generator=generator)
    y = x[:, 0] + 0.1 * (group == 1) + 0.7 * torch.randn(number, generator=generator) > 0.5
    return ValidationSet.from_loader([(x, y.long(), ["abc"[g] for g in group.tolist()])])


def _network() -> nn.Linear:
    network = nn.Linear(4, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[2.0, 0.3, -0.2, 0.1]]))
        network.bias.fill_(-1.3)
    return network


@cache
def _repaired(measure: str, seed: int) -> tuple[Repair, ValidationSet]:
    people = _people(seed, (600, 1300, 2000)[seed % 3])
    method = ThresholdSelection(measure=measure, epsilon=0.0101, margin=0.01)
    return method.repair(_network(), people, progress=False), people


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_sure_is_lost_for_what_may_be_chance(measure: str) -> None:
    kinds = set()
    for seed in range(9):
        repair, people = _repaired(measure, seed)
        if any(flag.startswith(KEPT) for flag in repair.flags):
            kinds.add("kept")
            assert repair.chosen.candidate == 0 and repair.bias == repair.bias_before and not repair.within_bound
            assert "(which may be chance)" not in repair.verdict()
            torch.testing.assert_close(repair.model.state_dict(), _network().state_dict(), rtol=0, atol=0)
            continue
        if repair.within_bound or any("kept as it was given" in flag for flag in repair.flags):
            continue
        kinds.add("changed")
        before, after = (labels_given(model(people.inputs)) for model in (_network(), repair.model))
        size = size_of_bias(repair.objective, people, before, after)
        assert size is not None
        lost = {f.name for f in repair.figures if f.change_high < 0 and f.name in ("balanced_accuracy", "accuracy")}
        assert size.change_high < 0 or not lost
        assert ("(which may be chance)" in repair.verdict()) == (size.change_low <= 0 <= size.change_high)
    assert "kept" in kinds


def test_each_kind_of_end_occurs() -> None:
    repairs = [_repaired(measure, seed)[0] for measure in MEASURES for seed in range(9)]
    kept = [any(flag.startswith(KEPT) for flag in repair.flags) for repair in repairs]
    changed = [not repair.within_bound and repair.bias != repair.bias_before for repair in repairs]
    assert any(kept) and any(changed) and not any(a and b for a, b in zip(kept, changed, strict=True))


@pytest.mark.parametrize("measure", MEASURES)
def test_size_of_bias_is_of_either_sign(measure: str) -> None:
    people = some_people(211, n_groups=2)
    sides = people.with_sides(people.groups[0])
    generator = torch.Generator().manual_seed(3)
    before, after = (torch.rand(211, 1, generator=generator).round().double() for _ in range(2))
    objective = Objective(measure, 0.1)
    size = size_of_bias(objective, sides, before, after)
    signed = figures_of(objective, sides, before, after)[0]
    assert size is not None and size.name == signed.name == measure
    for labels, side in ((before, "before"), (after, "after")):
        plain = plain_bias(measure, labels[:, 0].long().numpy(), people.target, people.group, n_groups=2, signed=False)
        assert getattr(size, side) == pytest.approx(plain)
        assert abs(getattr(signed, side)) == pytest.approx(plain)
    assert size_of_bias(Objective("counterfactual_flips", 0.1), people, before, after) is None
