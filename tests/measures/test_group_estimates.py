"""How far group rates are believed, against loops and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fairtrim.measures.group_counts import BIAS_MEASURES, GroupCounts, rate_variances, rates
from fairtrim.measures.group_estimates import GroupEstimates, believed_shares

GENERATOR = torch.Generator().manual_seed(0)
TARGET = torch.randint(2, (211,), generator=GENERATOR)
GROUP = torch.randint(3, (211,), generator=GENERATOR)
WEIGHT = torch.rand(211, generator=GENERATOR, dtype=torch.float64) + 0.2
GIVEN = ((torch.rand(211, generator=GENERATOR) + 0.2 * TARGET + 0.1 * GROUP) > 0.6).double()[:, None]


def _counts(given: Tensor = GIVEN, weight: Tensor | None = None) -> GroupCounts:
    return GroupCounts.of(given, TARGET, GROUP, n_groups=3, weight=weight)


def _estimates(measure: str, counts: GroupCounts | None = None, **settings: float) -> GroupEstimates:
    options = {"min_people": 1, "margin": 0.0, "errors": 0.0, "most": math.inf, **settings}
    return GroupEstimates.of(measure, counts or _counts(), _counts(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("measure", BIAS_MEASURES)
@pytest.mark.parametrize("weighted", [False, True])
def test_variances_are_those_of_the_samples(measure: str, weighted: bool) -> None:
    """p (1 − p) Σ w² / (Σ w)² among the people whom a rate is of, with everybody's p."""
    weight = WEIGHT if weighted else None
    w = WEIGHT.numpy() if weighted else np.ones(211)
    found, people = rate_variances(
        measure, _counts(weight=weight), _counts(weight=None if weight is None else weight.square())
    )
    y, a, given = TARGET.numpy(), GROUP.numpy(), GIVEN[:, 0].numpy()
    everyone, right = np.ones(211, dtype=bool), given == y
    parts = {
        "demographic_parity_difference": [[(given, everyone)]],
        "equal_opportunity_difference": [[(given, y == 1)]],
        "average_odds_difference": [[(given, y == 1), (given, y == 0)]],
        "equalized_odds_difference": [[(given, y == 1)], [(given, y == 0)]],
        "accuracy_score_difference": [[(right, everyone)]],
    }[measure]
    for r, of_rate in enumerate(parts):
        for g in range(3):
            variance, fewest = 0.0, math.inf
            for what, among in of_rate:
                p = (w * what)[among].sum() / w[among].sum()
                rows = among & (a == g)
                effective = w[rows].sum() ** 2 / (w[rows] ** 2).sum()
                variance += p * (1 - p) / effective / len(of_rate) ** 2
                fewest = min(fewest, effective)
            assert float(found[r, g]) == pytest.approx(variance, rel=1e-9)
            assert float(people[r, g]) == pytest.approx(fewest, rel=1e-9)


@pytest.mark.parametrize("left_out", [None, 1])
def test_shares_are_dersimonian_and_laird_s(left_out: int | None) -> None:
    rate, variance = np.array([0.2, 0.5, 0.35, 0.1]), np.array([1e-3, 2e-2, 5e-4, 4e-3])
    compared = np.array([g != left_out for g in range(4)])
    w, r = 1 / variance[compared], rate[compared]
    q = (w * (r - (w * r).sum() / w.sum()) ** 2).sum()
    between = max(0.0, (q - (len(r) - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    expected = np.where(compared, between / (between + variance), 0)
    found = believed_shares(*(torch.tensor(x)[None] for x in (rate, variance, compared)))[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10)


def test_groups_that_differ_by_chance_are_believed_less() -> None:
    """Over many draws without a difference the believed gap is a small part of the measured one; else nearly all."""
    generator = torch.Generator().manual_seed(1)
    group = torch.arange(400) % 5
    sizes = {"none": 0.0, "much": 0.15}
    kept = {}
    for name, apart in sizes.items():
        given = (torch.rand(300, 400, generator=generator) < 0.3 + apart * (group - 2) / 2).double()
        measured, believed = [], []
        for row in given:
            counts = GroupCounts.of(row[:, None], torch.ones(400).long(), group, n_groups=5)
            estimates = GroupEstimates.of(
                "demographic_parity_difference", counts, counts, min_people=1, margin=0, errors=0, most=0
            )
            of_groups = rates("demographic_parity_difference", counts)[0]
            measured.append(float(of_groups.max() - of_groups.min()))
            believed.append(float(estimates.size(counts)))
        assert all(b <= m + 1e-12 for b, m in zip(believed, measured, strict=True))
        kept[name] = sum(believed) / sum(measured)
    assert kept["none"] < 0.35 and 0.7 < kept["much"] < 1


@pytest.mark.parametrize("measure", BIAS_MEASURES)
@pytest.mark.parametrize(("errors", "most", "margin"), [(0.0, 1.0, 0.0), (1.6, math.inf, 0.01), (1.6, 0.03, 0.01)])
def test_size_is_the_worst_pair_s(measure: str, errors: float, most: float, margin: float) -> None:
    """The share is that of the given network or of the decisions, whichever is larger."""
    estimates = _estimates(measure, errors=errors, most=most, margin=margin)
    other = _counts(1 - GIVEN + 0.0)
    for counts in (_counts(), other):
        rate, (variance, _) = rates(measure, counts), rate_variances(measure, counts, counts)
        everybody = torch.ones_like(rate, dtype=torch.bool)
        own = believed_shares(rate, variance, everybody)
        given = believed_shares(rates(measure, _counts()), rate_variances(measure, _counts(), _counts())[0], everybody)
        worst = 0.0
        for r in range(len(rate)):
            centre = float((rate[r] / variance[r]).sum() / (1 / variance[r]).sum())
            share = [max(float(own[r, g]), float(given[r, g])) for g in range(3)]
            drawn = [centre + share[g] * (float(rate[r, g]) - centre) for g in range(3)]
            for g, h in itertools.combinations(range(3), 2):
                error = errors * math.sqrt(float(variance[r, g]) + float(variance[r, h]))
                worst = max(worst, abs(drawn[g] - drawn[h]) + max(0.0, min(error, most) - margin))
        assert float(estimates.size(counts)) == pytest.approx(worst, rel=1e-9)


def test_small_groups_are_left_out_as_long_as_two_are_left() -> None:
    number = torch.bincount(GROUP)
    smallest = int(number.argmin())
    estimates = _estimates("demographic_parity_difference", min_people=int(number.min()) + 1)
    assert estimates.compared[0].tolist() == [g != smallest for g in range(3)]
    others = [g for g in range(3) if g != smallest]
    given = GIVEN.clone()
    given[smallest == GROUP] = 1  # whatever they are given
    drawn, variance = estimates.believed(_counts(given))
    left = [float(drawn[0, g]) for g in others]
    assert float(drawn[0, smallest]) == pytest.approx(np.average(left, weights=number[others]), rel=0.2)
    assert float(variance[0, smallest]) == 0 and min(left) <= float(drawn[0, smallest]) <= max(left)
    assert float(estimates.size(_counts(given))) == pytest.approx(max(left) - min(left))
    assert bool(_estimates("demographic_parity_difference", min_people=200).compared.all())


def test_nobody_of_a_group_and_everybody_alike_give_numbers() -> None:
    counts = GroupCounts.of(GIVEN, TARGET, GROUP, n_groups=4)  # the last group is absent
    estimates = GroupEstimates.of(
        "equalized_odds_difference", counts, counts, min_people=1, margin=0.01, errors=1.6, most=0.1
    )
    assert bool(torch.isfinite(estimates.size(counts))) and not bool(estimates.compared[:, 3].any())
    alike = GroupCounts.of(torch.ones(211, 1).double(), TARGET, GROUP, n_groups=4)
    assert float(estimates.size(alike)) == 0
