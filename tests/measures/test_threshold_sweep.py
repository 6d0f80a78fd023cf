"""Every threshold at once: a loop over decisions, Fairlearn, scikit-learn and AIF360 as the oracles."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from fairtrim import InputError
from fairtrim.measures.group_counts import (
    BIAS_MEASURES,
    PERFORMANCE_MEASURES,
    bias,
    performance,
)
from fairtrim.measures.threshold_sweep import ThresholdSweep
from tests.measure_cases import CASES, FAIRLEARN, people_with
from tests.plain_measures import EXACT, plain_bias, plain_performance


@pytest.mark.parametrize("name", CASES)
def test_every_threshold_equals_a_loop(name: str) -> None:
    people = CASES[name]()
    sweep = people.sweep()
    margins = people.margin.tolist()
    n_distinct = len(set(margins))
    assert sweep.threshold.shape == (n_distinct + 1,)
    assert sweep.counts.true_positive.shape == (n_distinct + 1, 1, people.n_groups)
    assert bool((sweep.threshold[1:] < sweep.threshold[:-1]).all())
    seen = set()
    for t, threshold in enumerate(sweep.threshold.tolist()):
        given = [int(margin > threshold) for margin in margins]
        seen.add(tuple(given))
        weights = [1.0] * len(given) if people.weight is None else people.weight.tolist()
        true, false = [0.0] * people.n_groups, [0.0] * people.n_groups
        for label, y, g, w in zip(given, people.target.tolist(), people.group.tolist(), weights, strict=True):
            true[g] += w * (label == y == 1)
            false[g] += w * (label == 1 and y == 0)
        assert sweep.counts.true_positive[t, 0].tolist() == pytest.approx(true, **EXACT)
        assert sweep.counts.false_positive[t, 0].tolist() == pytest.approx(false, **EXACT)
        for measure in BIAS_MEASURES:
            for signed in (False, True) if people.n_groups == 2 else (False,):
                ours = float(bias(measure, sweep.counts, signed=signed)[t])
                plain = plain_bias(measure, given, people.target, people.group, signed=signed, **people.columns)
                if signed and measure == "equalized_odds_difference" and abs(abs(ours) - abs(plain)) < 1e-12:
                    continue  # two gaps of one size and different signs
                assert ours == pytest.approx(plain, **EXACT), (measure, threshold)
        for measure in PERFORMANCE_MEASURES:
            plain = plain_performance(measure, given, people.target, weight=people.columns["weight"])
            assert float(performance(measure, sweep.counts)[t]) == pytest.approx(plain, **EXACT), (measure, threshold)
    # all the decisions that a threshold can make, from nobody to everybody
    assert len(seen) == n_distinct + 1
    assert (0,) * len(margins) in seen and (1,) * len(margins) in seen


SKLEARN = {"balanced_accuracy": balanced_accuracy_score, "f1": f1_score, "accuracy": accuracy_score}


@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_every_threshold_equals_fairlearn_and_sklearn(n_groups: int, weighted: bool) -> None:
    people = people_with(19, n_groups, seed=n_groups, decimals=1, weighted=weighted)
    sweep = people.sweep()
    target = people.target.numpy()
    weight = people.columns["weight"]
    ours = {measure: bias(measure, sweep.counts).tolist() for measure in FAIRLEARN}
    useful = {measure: performance(measure, sweep.counts).tolist() for measure in SKLEARN}
    for t, threshold in enumerate(sweep.threshold.tolist()):
        given = (people.margin > threshold).long().numpy()
        for measure, theirs in FAIRLEARN.items():
            expected = theirs(target, given, sensitive_features=people.group.numpy(), sample_weight=weight)
            assert ours[measure][t] == pytest.approx(expected, **EXACT), (measure, threshold)
        for measure, score in SKLEARN.items():
            assert useful[measure][t] == pytest.approx(score(target, given, sample_weight=weight), **EXACT), measure


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_every_threshold_equals_aif360_with_its_signs(weighted: bool) -> None:
    import pandas as pd
    from aif360.datasets import BinaryLabelDataset
    from aif360.metrics import ClassificationMetric

    people = people_with(39, 2, seed=11, decimals=1, weighted=weighted)
    frame = pd.DataFrame({"a": people.group.double(), "y": people.target.double()})
    truth = BinaryLabelDataset(
        df=frame, label_names=["y"], protected_attribute_names=["a"], favorable_label=1, unfavorable_label=0
    )
    if people.weight is not None:
        truth.instance_weights = people.weight.numpy()
    sweep = people.sweep()
    ours = {measure: bias(measure, sweep.counts, signed=True).tolist() for measure in BIAS_MEASURES}
    largest = bias("equalized_odds_difference", sweep.counts).tolist()
    for t, threshold in enumerate(sweep.threshold.tolist()):
        decided = truth.copy()
        decided.labels = (people.margin > threshold).double().numpy()[:, None]
        metric = ClassificationMetric(truth, decided, unprivileged_groups=[{"a": 0}], privileged_groups=[{"a": 1}])
        expected = {
            "demographic_parity_difference": metric.statistical_parity_difference(),
            "equal_opportunity_difference": metric.equal_opportunity_difference(),
            "average_odds_difference": metric.average_odds_difference(),
            "accuracy_score_difference": metric.accuracy(privileged=False) - metric.accuracy(privileged=True),
        }
        for measure, value in expected.items():
            assert ours[measure][t] == pytest.approx(value, **EXACT), (measure, threshold)
        assert largest[t] == pytest.approx(metric.equalized_odds_difference(), **EXACT)
    for measure in BIAS_MEASURES:  # both signs were seen, or the comparison would say little
        assert min(ours[measure]) < 0 < max(ours[measure]), measure


@pytest.mark.parametrize(
    ("margins", "message"),
    [([], "0 of 0 scores"), ([0.0, math.nan, 1.0], "1 of 3 scores"), ([math.inf, -math.inf], "2 of 2 scores")],
    ids=["none", "NaN", "infinite"],
)
def test_scores_that_are_not_finite_are_refused(margins: list[float], message: str) -> None:
    n = len(margins)
    with pytest.raises(InputError, match=f"{message} are not finite"):
        ThresholdSweep.of(torch.tensor(margins), torch.arange(n) % 2, torch.zeros(n, dtype=torch.int64), n_groups=2)


def test_no_threshold_falls_on_a_margin_that_it_gives_label_1() -> None:
    margins = [1.0]
    for _ in range(5):
        margins.append(math.nextafter(margins[-1], 2.0))
    sweep = ThresholdSweep.of(
        torch.tensor(margins, dtype=torch.float64), torch.ones(6), torch.zeros(6, dtype=torch.int64), n_groups=1
    )
    for t, threshold in enumerate(sweep.threshold.tolist()):
        assert sum(margin > threshold for margin in margins) == t
