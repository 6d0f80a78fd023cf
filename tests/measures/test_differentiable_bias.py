"""Proxies of bias against means of probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from torch import Tensor

from fairtrim.measures.differentiable_bias import (
    balancing_weights,
    dependence,
    differences,
    proxy_bias,
    rank_polynomials,
)
from fairtrim.measures.group_counts import (
    BIAS_MEASURES,
    GroupCounts,
)
from fairtrim.measures.scores import probabilities
from tests.measure_cases import CASES
from tests.plain_measures import EXACT, plain_bias

# Dependence on a continuous feature.


def _members(measure: str, p: Tensor, target: Tensor) -> list[list[tuple[Tensor, Tensor]]]:
    """Of every rate its parts: whom it counts, by probability, and among whom; of label 1, or of every label."""
    everybody = torch.ones(len(target), dtype=torch.bool)
    if measure == "accuracy_score_difference":
        return [[(p.gather(1, target[:, None])[:, 0], everybody)]]
    rates = []
    for k in [1] if p.shape[1] == 2 else range(p.shape[1]):
        selected, true, false = (p[:, k], everybody), (p[:, k], target == k), (p[:, k], target != k)
        rates.append(
            {
                "demographic_parity_difference": [[selected]],
                "equal_opportunity_difference": [[true]],
                "average_odds_difference": [[true, false]],
                "equalized_odds_difference": [[true], [false]],
            }[measure]
        )
    return [of_label[r] for r in range(len(rates[0])) for of_label in rates]


@pytest.mark.parametrize("n_classes", [1, 2, 3])
@pytest.mark.parametrize("measure", BIAS_MEASURES)
def test_dependence_equals_weighted_covariances(measure: str, n_classes: int) -> None:
    n_samples, generator = 41, torch.Generator().manual_seed(n_classes)
    scores = torch.randn(n_samples, n_classes, dtype=torch.float64, generator=generator)
    target = torch.arange(n_samples) % max(2, n_classes)
    basis = torch.randn(n_samples, 2, dtype=torch.float64, generator=generator) + 0.3
    weight = torch.rand(n_samples, dtype=torch.float64, generator=generator)
    p = torch.cat([1 - scores.sigmoid(), scores.sigmoid()], 1) if n_classes == 1 else scores.softmax(1)
    expected = []
    for column in basis.T:
        for parts in _members(measure, p, target):
            found = []
            for counted, among in parts:
                cov = np.cov(counted[among].numpy(), column[among].numpy(), aweights=weight[among].numpy(), ddof=0)
                found.append(2 * cov[0, 1] / math.sqrt(cov[1, 1]))
            expected.append(sum(found) / len(found))
    found = dependence(measure, probabilities(scores), target, basis, weight)
    assert found.tolist() == pytest.approx(expected, **EXACT)


def test_dependence_on_two_even_halves_is_the_difference_between_two_groups() -> None:
    scores = torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    group, target = torch.arange(30) % 2, torch.arange(30) % 3 % 2
    (gap,) = differences("demographic_parity_difference", _soft(scores, target, group, n_groups=2))
    halves = (2.0 * group - 1)[:, None]
    (found,) = dependence("demographic_parity_difference", probabilities(scores), target, halves)
    assert float(found) == pytest.approx(-float(gap), **EXACT)


@pytest.mark.parametrize("measure", ["equalized_odds_difference", "equal_opportunity_difference"])
def test_dependence_without_a_label_or_a_spread_leaves_finite_gradients(measure: str) -> None:
    scores = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    values = torch.stack([torch.linspace(-1, 1, 7), torch.ones(7)], 1)
    for target in (torch.zeros(7, dtype=torch.int64), torch.arange(7) // 6):  # nobody, and one person, of label 1
        found = dependence(measure, probabilities(scores), target, values)
        assert len(found) == (2 if measure.startswith("equalized") else 0) * (1 + int(target.sum())) or target.any()
        (gradient,) = torch.autograd.grad(found.square().sum() + 0 * scores.sum(), scores)
        assert bool(gradient.isfinite().all())
    one = dependence(measure, probabilities(scores[:1]), torch.ones(1, dtype=torch.int64), torch.ones(1, 2))
    assert one.tolist() == [0.0, 0.0]


def test_a_rate_that_peaks_in_the_middle_is_seen_by_the_squares_alone() -> None:
    basis = rank_polynomials(torch.arange(41.0))
    peak = (1 - basis[:, 0] ** 2)[:, None]
    target = torch.arange(41) % 2
    straight, curved = dependence("demographic_parity_difference", peak, target, basis).tolist()
    assert straight == pytest.approx(0, **EXACT)
    assert curved == pytest.approx(-2 * float(peak.std(correction=0)), **EXACT)


def test_rank_polynomials_are_of_ranks_and_don_t_mind_extreme_values() -> None:
    age = torch.tensor([30.0, 18, 90, 30, 44])
    rank = torch.from_numpy(rankdata(age.numpy())) / 2 - 1.5  # 1 ... 5 to -1 ... 1
    expected = torch.stack([rank, (3 * rank**2 - 1) / 2], 1)
    torch.testing.assert_close(rank_polynomials(age), expected)
    torch.testing.assert_close(rank_polynomials(age.exp()), expected)
    assert rank_polynomials(torch.tensor([3.0])).isfinite().all()


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
