"""Measures of group counts: names, labels that they need, more than two classes."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

from fairtrim import InputError
from fairtrim.measures.group_counts import (
    BIAS_MEASURES,
    PERFORMANCE_MEASURES,
    GroupCounts,
    bias,
    needs_labels,
    performance,
    rates,
)
from fairtrim.measures.objective import Objective
from tests.measure_cases import CASES, FAIRLEARN
from tests.plain_measures import EXACT, plain_bias, plain_performance


def test_absent_groups_and_labels_have_no_rate() -> None:
    counts = CASES["an absent group"]().sweep().counts
    for measure in BIAS_MEASURES:
        assert bool(bias(measure, counts).isnan().all()), measure
        assert bool(rates(measure, counts)[..., 3].isnan().all()) and not bool(
            rates(measure, counts)[..., 0].isnan().any()
        )
    present = GroupCounts(*(getattr(counts, field)[..., :3] for field in counts.__dataclass_fields__))
    assert not bool(bias("demographic_parity_difference", present).isnan().any())
    one = CASES["one sample"]().sweep().counts
    assert bool(bias("accuracy_score_difference", one, signed=True).isnan().all())
    assert len(performance("accuracy", one)) == 2 and float(performance("accuracy", one).sum()) == 1.0


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_more_than_two_classes_one_against_the_rest(weighted: bool) -> None:
    n_samples, n_classes, n_groups = 53, 4, 3
    generator = torch.Generator().manual_seed(8)
    scores = torch.randn(n_samples, n_classes, dtype=torch.float64, generator=generator)
    target = torch.randint(0, n_classes, (n_samples,), generator=generator)
    group = torch.arange(n_samples) % n_groups
    weight = torch.rand(n_samples, dtype=torch.float64, generator=generator) + 0.2 if weighted else None
    given = scores.argmax(1)
    plain = {"n_classes": n_classes, "weight": None if weight is None else weight.numpy()}
    for measure in BIAS_MEASURES:
        for metric in PERFORMANCE_MEASURES:
            objective = Objective(measure, epsilon=0.5, performance=metric)
            decisions = objective.decisions(scores, target, group, n_groups=n_groups, weight=weight, signed=False)
            assert decisions.bias.shape == decisions.performance.shape == decisions.threshold.shape == (1,)
            assert not bool(decisions.constant)
            expected = plain_bias(measure, given, target, group, n_groups=n_groups, **plain)
            assert float(decisions.bias) == pytest.approx(expected, **EXACT), measure
            useful = plain_performance(metric, given, target, **plain)
            assert float(decisions.performance) == pytest.approx(useful, **EXACT), metric
        if measure in FAIRLEARN:
            of_labels = [
                FAIRLEARN[measure](
                    target.numpy() == k,
                    given.numpy() == k,
                    sensitive_features=group.numpy(),
                    sample_weight=plain["weight"],
                )
                for k in range(n_classes)
            ]
            assert float(decisions.bias) == pytest.approx(max(of_labels), **EXACT)
    macro = f1_score(target, given, average="macro", sample_weight=plain["weight"])
    assert plain_performance("f1", given, target, **plain) == pytest.approx(macro, **EXACT)
    balanced = balanced_accuracy_score(target, given, sample_weight=plain["weight"])
    assert plain_performance("balanced_accuracy", given, target, **plain) == pytest.approx(balanced, **EXACT)
    same = Objective().decisions(scores * 0, target, group, n_groups=n_groups, weight=None, signed=False)
    assert bool(same.constant)


def test_names_of_measures() -> None:
    counts = CASES["five groups"]().sweep().counts
    with pytest.raises(InputError, match=r"measure='spd' is not a bias measure; expected one of \['demographic_parity"):
        bias("spd", counts)
    with pytest.raises(
        InputError, match=r"performance='auc' is not a performance measure; expected one of \['balanced"
    ):
        performance("auc", counts)
    with pytest.raises(InputError, match="a signed difference of 5 sensitive groups; expected 2"):
        bias("demographic_parity_difference", counts, signed=True)
    assert {measure: needs_labels(measure) for measure in BIAS_MEASURES} == {
        "demographic_parity_difference": (False, False),
        "equal_opportunity_difference": (True, False),
        "average_odds_difference": (True, True),
        "equalized_odds_difference": (True, True),
        "accuracy_score_difference": (False, False),
    }


@pytest.mark.parametrize("measure", BIAS_MEASURES)
def test_needed_labels_are_those_without_which_there_is_no_rate(measure: str) -> None:
    """Group 1 without label 1, then without label 0: NaN exactly where ``needs_labels`` says so."""
    group, given = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
    for missing, needed in zip((1, 0), needs_labels(measure), strict=True):
        target = torch.tensor([0, 1, 1, 1 - missing, 1 - missing])
        value = float(bias(measure, GroupCounts.of(given, target, group, n_groups=2)))
        assert math.isnan(value) == needed, (measure, missing)
