"""Proxies of bias against means of probabilities."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fairtrim.measures.differentiable_bias import balancing_weights, differences, proxy_bias
from fairtrim.measures.group_counts import (
    BIAS_MEASURES,
    GroupCounts,
)
from fairtrim.measures.scores import probabilities
from tests.measure_cases import CASES
from tests.plain_measures import EXACT, plain_bias

# The proxies: the same rates, of probabilities.


def _soft(scores: Tensor, *people: Tensor, **options: Any) -> GroupCounts:
    """Confusion counts of the scores' probabilities."""
    return GroupCounts.of(probabilities(scores), *people, **options)


@pytest.mark.parametrize("n_classes", [1, 2, 3])
@pytest.mark.parametrize("measure", BIAS_MEASURES)
def test_proxies_equal_means_of_probabilities(measure: str, n_classes: int) -> None:
    n_samples, n_groups, n_labels = 47, 4, max(2, n_classes)
    generator = torch.Generator().manual_seed(n_classes)
    scores = torch.randn(n_samples, n_classes, dtype=torch.float64, generator=generator)
    target, group = torch.arange(n_samples) % n_labels, torch.randint(0, n_groups, (n_samples,), generator=generator)
    weight = torch.rand(n_samples, dtype=torch.float64, generator=generator)
    p = torch.cat([1 - scores.sigmoid(), scores.sigmoid()], 1) if n_classes == 1 else scores.softmax(1)

    def of(values: Tensor, among: Tensor) -> float:
        return float((values * weight)[among].sum() / weight[among].sum())

    rows = []
    for k in [1] if n_labels == 2 else range(n_labels):
        members = [group == g for g in range(n_groups)]
        selected = [of(p[:, k], member) for member in members]
        true = [of(p[:, k], member & (target == k)) for member in members]
        false = [of(p[:, k], member & (target != k)) for member in members]
        rows += {
            "demographic_parity_difference": [selected],
            "equal_opportunity_difference": [true],
            "average_odds_difference": [[(t + f) / 2 for t, f in zip(true, false, strict=True)]],
            "equalized_odds_difference": [true, false],
            "accuracy_score_difference": [],
        }[measure]
    if measure == "accuracy_score_difference":
        right = p.gather(1, target[:, None])[:, 0]
        rows = [[of(right, group == g) for g in range(n_groups)]]
    expected = [row[g] - row[h] for g in range(n_groups) for h in range(g + 1, n_groups) for row in rows]
    found = differences(measure, _soft(scores, target, group, n_groups=n_groups, weight=weight))
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), **EXACT)
    assert probabilities(scores).shape == (n_samples, 1 if n_labels == 2 else n_labels)


def test_proxies_of_certain_scores_are_the_bias_of_decisions_and_have_a_gradient() -> None:
    people = CASES["two groups"]()
    given = (people.margin > 0).long()
    for measure in BIAS_MEASURES:
        sure = torch.stack([-people.margin.sign(), people.margin.sign()], 1) * 400
        found = float(proxy_bias(measure, _soft(sure, people.target, people.group, n_groups=2)))
        assert found == pytest.approx(
            plain_bias(measure, given, people.target, people.group, signed=True, n_groups=2), **EXACT
        )
        assert torch.autograd.gradcheck(
            lambda scores, measure=measure: proxy_bias(measure, _soft(scores, people.target, people.group, n_groups=2)),
            (people.margin[:, None].clone().requires_grad_(),),
        )
    absent = CASES["an absent group"]()
    counts = _soft(absent.margin[:, None], absent.target, absent.group, n_groups=4)
    pairs = differences("demographic_parity_difference", counts)
    assert len(pairs) == 3 and not bool(pairs.isnan().any())  # of 6 pairs, those with the absent group are left out


@pytest.mark.parametrize("measure", BIAS_MEASURES)
def test_a_group_without_a_label_has_no_nan_gradient(measure: str) -> None:
    """What is undefined is left out; every other rate, and its gradient, is as it is without that group."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(11, 1, dtype=torch.float64, generator=generator).requires_grad_()
    group = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    target = torch.tensor([0, 1, 1, 0, 1, 0, 1, 0, 0, 0, 0])  # nobody of group 2 has label 1
    gaps = differences(measure, _soft(scores, target, group, n_groups=3))
    (gradient,) = torch.autograd.grad(gaps.square().sum(), scores)
    assert bool(torch.isfinite(gradient).all())
    p = scores.detach()[:, 0].sigmoid()
    rates = plain_proxy_rates(measure, p, target, group)
    pairs = [(g, h) for g in range(3) for h in range(g + 1, 3)]
    expected = [row[g] - row[h] for row in rates for g, h in pairs if not math.isnan(row[g] - row[h])]
    assert sorted(gaps.tolist()) == pytest.approx(sorted(expected), **EXACT)


def plain_proxy_rates(measure: str, p: Tensor, target: Tensor, group: Tensor) -> list[list[float]]:
    """Group means of the probability of label 1, or of the label that people have."""
    ones, zeros = (target == 1), (target == 0)

    def means(values: Tensor, among: Tensor) -> list[float]:
        return [float(values[among & (group == g)].mean()) for g in range(int(group.max()) + 1)]

    everyone, true, false = ones | zeros, means(p, ones), means(p, zeros)
    return {
        "demographic_parity_difference": [means(p, everyone)],
        "equal_opportunity_difference": [true],
        "average_odds_difference": [[(t + f) / 2 for t, f in zip(true, false, strict=True)]],
        "equalized_odds_difference": [true, false],
        "accuracy_score_difference": [means(torch.where(ones, p, 1 - p), everyone)],
    }[measure]


def test_balancing_weights() -> None:
    target = torch.tensor([0, 0, 0, 0, 1, 2, 2])
    own = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 1.0])
    for weight in (None, own):
        balanced = balancing_weights(target, 3, weight)
        assert float(balanced.mean()) == pytest.approx(1.0)
        mass = [float(balanced[target == k].sum()) for k in range(3)]
        assert mass == pytest.approx([7 / 3] * 3)
    assert float(balanced[3] / balanced[0]) == pytest.approx(4.0)
