"""Eopp0, Eopp1 and Eodd against a plain loop over one-vs-rest confusion matrices."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fairtrim.measures.class_sums import CLASS_SUMS, class_sum
from fairtrim.measures.group_counts import GroupCounts
from tests.plain_measures import EXACT, plain_class_sum


@pytest.mark.parametrize("measure", CLASS_SUMS)
@pytest.mark.parametrize(("n_classes", "n_groups"), [(4, 2), (3, 5), (2, 3)])
def test_sums_over_classes(measure: str, n_classes: int, n_groups: int) -> None:
    generator = torch.Generator().manual_seed(n_classes)
    given, target = torch.randint(0, n_classes, (2, 211), generator=generator)
    group = torch.randint(0, n_groups, (211,), generator=generator)
    weight = torch.rand(211, dtype=torch.float64, generator=generator)
    one_hot = torch.nn.functional.one_hot(given, n_classes).double()
    counts = GroupCounts.of(one_hot, target, group, n_groups=n_groups, weight=weight)
    expected = plain_class_sum(measure, given, target, group, weight=weight)
    assert expected > 0.1
    assert float(class_sum(measure, counts)) == pytest.approx(expected, **EXACT)
    if n_classes == 2:  # told by label 1 alone, both classes count
        of_one = GroupCounts.of(one_hot[:, 1:], target, group, n_groups=n_groups, weight=weight)
        assert float(class_sum(measure, of_one)) == pytest.approx(expected, **EXACT)
        given_twice = {
            name: getattr(of_one, name).expand(2, 1, n_groups) for name in ("true_positive", "false_positive")
        }
        batched = replace(of_one, **given_twice)  # two thresholds
        assert class_sum(measure, batched).tolist() == pytest.approx([expected] * 2, **EXACT)


def test_a_group_that_nobody_of_a_class_is_in() -> None:
    given, target = torch.tensor([0, 1, 2, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 0])
    counts = GroupCounts.of(
        torch.nn.functional.one_hot(given, 3).double(), target, torch.tensor([0, 0, 0, 1, 1, 1]), n_groups=2
    )
    found = {measure: float(class_sum(measure, counts)) for measure in CLASS_SUMS}
    assert math.isnan(found["eopp1"]) and math.isnan(found["eodd"])  # nobody of group 1 is of class 2
    assert found["eopp0"] == 0.5  # of group 1, one of the two who are not of class 1 is given it
    assert float(class_sum("eopp1", GroupCounts(*(x[..., :1] for x in vars(counts).values())))) == 0.0  # one group


def test_eodd_does_not_see_a_group_that_is_always_wrong() -> None:
    """Its two differences cancel; Eopp1 sees it."""
    target = torch.tensor([0, 1, 0, 1])
    given = torch.tensor([0, 1, 1, 0])
    counts = GroupCounts.of((given == 1).double()[:, None], target, torch.tensor([0, 0, 1, 1]), n_groups=2)
    assert [float(class_sum(measure, counts)) for measure in ("eopp0", "eopp1", "eodd")] == [2.0, 2.0, 0.0]
