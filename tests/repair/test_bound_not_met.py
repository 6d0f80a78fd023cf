"""A bound that nothing meets: what surely gets worse is not given for a bias that perhaps gets better."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

from fairtrim import Repair, ThresholdSelection, ValidationSet
from fairtrim.measures.objective import Objective, labels_given
from fairtrim.repair.figures import figures_of, size_of_bias
from fairtrim.repair.finishing import _perhaps_for_sure
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
    assert "kept" in kinds  # what is given instead is tested below


def _is_kept(objective: Objective, people: ValidationSet, sides: list[Tensor], compared: Tensor | None = None) -> bool:
    fall = size_of_bias(objective, people, *sides, compared)
    assert fall is not None
    return _perhaps_for_sure(objective, fall, figures_of(objective, people, *sides, compared)) is not None


# Half of 2 n people of each of two groups have the label; a classifier is right but for shares of each group and label.
@pytest.mark.parametrize(
    ("number", "before", "after", "kept"),
    [
        (2000, (0.3, 0.0), (0.3, 0.3), False),  # surely worse, and surely less biased
        (20, (0.3, 0.0), (0.3, 0.3), True),  # of few people a bias of .05 may have become one of −.1
        (2000, (0.02, 0.01), (0.3, 0.3), True),  # a bias of .01 for a quarter of the accuracy
        (2000, (0.02, 0.01), (0.01, 0.01), False),  # nothing is lost
        (2000, (0.02, 0.01), (0.02, 0.02), True),  # lost by a group alone
        (2000, (0.06, 0.05), (0.0, 0.0), False),  # gained
        (20, (0.1, 0.0), (0.05, 0.0), False),  # perhaps gained
        (20, (0.1, 0.1), (0.15, 0.1), True),  # perhaps lost, and no bias is gone
    ],
)
def test_of_decisions_that_are_known(
    number: int, before: tuple[float, float], after: tuple[float, float], kept: bool
) -> None:
    target = torch.tensor([0, 1]).repeat(2 * number)
    group = torch.arange(2).repeat_interleave(2 * number)
    x = torch.zeros(len(target), 1)

    def given(wrong: tuple[float, float]) -> Tensor:
        place = torch.arange(2 * number).repeat(2) // 2  # of a person among those of the group and label
        flipped = place < torch.tensor([wrong[g] * number for g in group.tolist()])
        return torch.where(flipped & (target == 1), 0, target).double()[:, None]  # a label that is not given

    objective = Objective("demographic_parity_difference", 0.005, confidence="auto", performance="accuracy")
    people = ValidationSet.from_loader([(x, target, ["ab"[g] for g in group.tolist()])])
    assert _is_kept(objective, people, [given(before), given(after)]) == kept
    # somebody of a group that isn't compared changes nothing
    more = ValidationSet.from_loader([(x, target, ["ab"[g] for g in group.tolist()]), (x[:1], target[:1], ["t"])])
    sides = [torch.cat([given(wrong), torch.ones(1, 1).double()]) for wrong in (before, after)]
    compared = torch.tensor([[True, True, False]])
    assert _is_kept(objective, more, sides, compared) == kept


def test_nobody_gets_one_label_for_all_instead() -> None:
    target = (torch.arange(100) % 10 > 0).long()
    constant, given = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        for model in (constant, given):
            model.weight.zero_(), model.bias.fill_(1.0)
    repair = ThresholdSelection().repair(
        constant, [(torch.ones(100, 2), target, ["a"] * 30 + ["b"] * 70)], inplace=True, progress=False
    )
    torch.testing.assert_close(constant.state_dict(), given.state_dict(), rtol=0, atol=0)
    assert repair.performance == repair.performance_before
    # folded into a bias that rounds, a threshold would give everybody the same label
    people = _people(1, 600)
    large = ValidationSet(people.inputs * 3e6, people.target, people.group, people.groups)
    repair = ThresholdSelection(epsilon=0.0101).repair(_network(), large, progress=False)
    assert 0 < labels_given(repair.model(large.inputs)).mean() < 1


def test_a_person_who_is_not_compared_makes_no_bias() -> None:
    people = _people(1, 1300)
    with_one = ValidationSet.from_loader(
        [
            (people.inputs, people.target, [people.groups[g] for g in people.group.tolist()]),
            (torch.zeros(1, 4) - 9, torch.ones(1).long(), ["t"]),
        ]
    )
    method = ThresholdSelection(epsilon=0.05)
    without, repair = (method.repair(_network(), data, progress=False) for data in (people, with_one))
    assert repair.bias == pytest.approx(without.bias, abs=1e-12)
    assert repair.bias_before == pytest.approx(without.bias_before, abs=1e-12)
    assert repair.figures[0].after == pytest.approx(repair.bias) and repair.figures[0].change_high < 0.9
    assert any("t (1): not compared" in flag for flag in repair.flags)


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
