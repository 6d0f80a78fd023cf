"""Every threshold at once: a loop over decisions, Fairlearn, scikit-learn and AIF360 as the oracles."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from fairlearn import metrics as fairlearn_metrics
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import Tensor

from fairtrim import InputError
from fairtrim.measures.differentiable_bias import balancing_weights, differences, proxy_bias
from fairtrim.measures.group_counts import (
    BIAS_MEASURES,
    PERFORMANCE_MEASURES,
    GroupCounts,
    bias,
    needs_labels,
    performance,
    rates,
)
from fairtrim.measures.objective import Decisions, Objective, non_dominated
from fairtrim.measures.scores import positive_margin, probabilities
from fairtrim.measures.threshold_sweep import ThresholdSweep
from tests.plain_measures import EXACT, plain_bias, plain_performance

# The oracle: what each name means, written once more for one set of decisions, group by group and label by label.


@dataclass(frozen=True)
class People:
    """Margins, labels, sensitive groups and weights of N people."""

    margin: Tensor
    target: Tensor
    group: Tensor
    n_groups: int
    weight: Tensor | None

    def sweep(self) -> ThresholdSweep:
        return ThresholdSweep.of(self.margin, self.target, self.group, n_groups=self.n_groups, weight=self.weight)

    @property
    def columns(self) -> dict[str, Any]:
        weight = None if self.weight is None else self.weight.numpy()
        return {"n_groups": self.n_groups, "weight": weight}


def _people(
    n_samples: int,
    n_groups: int,
    *,
    seed: int = 0,
    decimals: int | None = None,
    weighted: bool = False,
    n_present: int | None = None,
) -> People:
    generator = torch.Generator().manual_seed(seed)
    margin = torch.randn(n_samples, dtype=torch.float64, generator=generator)
    group = torch.arange(n_samples) % (n_present or n_groups)
    return People(
        margin=margin if decimals is None else margin.round(decimals=decimals),
        target=torch.randint(0, 2, (n_samples,), generator=generator),
        group=group[torch.randperm(n_samples, generator=generator)],
        n_groups=n_groups,
        weight=torch.rand(n_samples, dtype=torch.float64, generator=generator) * 3 + 0.1 if weighted else None,
    )


CASES: dict[str, Callable[[], People]] = {
    "two groups": lambda: _people(37, 2),
    "two groups, weights": lambda: _people(31, 2, seed=1, weighted=True),
    "five groups": lambda: _people(43, 5, seed=2),
    "three groups, ties, weights": lambda: _people(41, 3, seed=3, decimals=0, weighted=True),
    "two groups, ties": lambda: _people(29, 2, seed=4, decimals=1),
    "an absent group": lambda: _people(19, 4, seed=5, n_present=3),
    "a group of one": lambda: _people(4, 3, seed=6),
    "one sample": lambda: _people(1, 2, seed=7),
    "all alike": lambda: People(torch.full((13,), 0.3), torch.arange(13) % 2, torch.arange(13) // 8, 2, None),
}


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


FAIRLEARN = {
    "demographic_parity_difference": fairlearn_metrics.demographic_parity_difference,
    "equalized_odds_difference": fairlearn_metrics.equalized_odds_difference,
    "equal_opportunity_difference": fairlearn_metrics.equal_opportunity_difference,
}
SKLEARN = {"balanced_accuracy": balanced_accuracy_score, "f1": f1_score, "accuracy": accuracy_score}


@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_every_threshold_equals_fairlearn_and_sklearn(n_groups: int, weighted: bool) -> None:
    people = _people(19, n_groups, seed=n_groups, decimals=1, weighted=weighted)
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

    people = _people(39, 2, seed=11, decimals=1, weighted=weighted)
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


def test_margins() -> None:
    scores = torch.tensor([[1.0, 4.0], [2.0, -0.5]])
    assert positive_margin(scores).tolist() == [3.0, -2.5] and positive_margin(scores).dtype == torch.float64
    assert positive_margin(scores[:, 1:]).tolist() == [4.0, -0.5]
    with pytest.raises(InputError, match=r"3 classes have no single threshold; expected scores \(N, 2\) or \(N, 1\)"):
        positive_margin(torch.zeros(5, 3))


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


# The objective.


def _decisions(biases: Any, performances: Any, constants: Any) -> Decisions:
    constant = torch.tensor(constants, dtype=torch.bool)
    return Decisions(
        threshold=torch.arange(len(constant)).double(),
        bias=torch.tensor(biases, dtype=torch.float64),
        performance=torch.tensor(performances, dtype=torch.float64),
        constant=constant,
        eligible=~constant,
    )


@pytest.mark.parametrize(
    ("biases", "performances", "constants", "expected"),
    [
        ([0.01, -0.02, 0.3], [0.6, 0.7, 0.9], [0, 0, 0], 1),
        ([0.03, -0.02, 0.01], [0.7, 0.7, 0.6], [0, 0, 0], 1),  # equal φ: the smaller bias
        ([0.0, 0.2, -0.1], [0.9, 0.8, 0.6], [1, 0, 0], 2),  # none within the bound: the least bias, no constant
        ([0.2, -0.1, 0.1, 0.1], [0.9, 0.6, 0.7, 0.5], [0, 0, 0, 0], 2),  # equal bias: the higher performance
        ([0.0625, 0.0, 0.07], [0.9, 0.5, 0.8], [0, 1, 0], 0),  # a bias at the bound is not within it
        ([0.0, 0.0, 0.9], [0.5, 0.5, 0.1], [1, 1, 0], 2),
        ([0.0, 0.0, 0.04], [1.0, 1.0, 0.1], [1, 1, 0], 2),
    ],
)
def test_best_decisions(biases: Any, performances: Any, constants: Any, expected: int) -> None:
    decisions = _decisions(biases, performances, constants)
    assert Objective(epsilon=0.125, margin=0.0625).best(decisions) == expected


@pytest.mark.parametrize("seed", range(6))
def test_best_decisions_equal_a_loop(seed: int) -> None:
    randomness = np.random.default_rng(seed)
    for n_decisions in (1, 2, 7, 23):
        biases = randomness.integers(-4, 5, n_decisions) / 10  # many ties
        performances = randomness.integers(1, 5, n_decisions) / 5
        constants = randomness.random(n_decisions) < 0.3
        decisions = _decisions(biases, performances, constants)
        for epsilon in (0.05, 0.15, 0.35):
            best = Objective(epsilon=epsilon).best(decisions)
            alive = [i for i in range(n_decisions) if not constants[i]]
            if not alive:
                assert 0 <= best < n_decisions
                continue
            assert not constants[best]
            feasible = [i for i in alive if abs(biases[i]) < epsilon]
            if feasible:
                wanted = max((performances[i], -abs(biases[i])) for i in feasible)
                assert (performances[best], -abs(biases[best])) == wanted
            else:
                wanted = max((-abs(biases[i]), performances[i]) for i in alive)
                assert (-abs(biases[best]), performances[best]) == wanted


@pytest.mark.parametrize("signed", [False, True])
def test_constants_are_the_two_ends_and_nothing_else(signed: bool) -> None:
    people = CASES["two groups, ties"]()
    arguments = {"n_groups": people.n_groups, "weight": None, "signed": signed}
    scores = torch.stack([-people.margin / 2, people.margin / 2], 1)
    decisions = Objective().decisions(scores, people.target, people.group, **arguments)
    for threshold, constant in zip(decisions.threshold.tolist(), decisions.constant.tolist(), strict=True):
        assert constant == (len({margin > threshold for margin in people.margin.tolist()}) == 1)
    logit = Objective().decisions(people.margin[:, None], people.target, people.group, **arguments)
    for field in ("threshold", "bias", "performance", "constant"):
        torch.testing.assert_close(getattr(logit, field), getattr(decisions, field))
    assert bool((decisions.bias < 0).any()) == signed


def test_objective() -> None:
    objective = Objective("equal_opportunity_difference", epsilon=0.125, margin=0.0625)
    biases = torch.tensor([0.0, -0.062, 0.0625, -0.5], dtype=torch.float64)
    useful = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
    assert objective.bound == 0.0625
    assert objective.phi(biases, useful).tolist() == pytest.approx([0.5, 0.6, 0.0, 0.0])
    for settings in ({"epsilon": 0.0}, {"epsilon": 1.5}, {"epsilon": 0.1, "margin": 0.1}, {"margin": -0.01}):
        with pytest.raises(InputError, match="expected 0 <= margin < epsilon <= 1"):
            Objective(**settings)
    for settings in ({"measure": "bias"}, {"performance": "auc"}):
        with pytest.raises(InputError, match=r"is not a (bias|performance) measure; expected one of"):
            Objective(**settings)


@pytest.mark.parametrize("seed", range(5))
def test_front_equals_comparing_all_pairs(seed: int) -> None:
    randomness = np.random.default_rng(seed)
    for n_points in (0, 1, 2, 11, 40):
        levels = (3, 6, 1000)[seed % 3]  # from mostly ties to none
        biases = randomness.integers(0, levels, n_points) / levels
        useful = randomness.integers(0, levels, n_points) / levels
        expected = []
        for i in range(n_points):
            beaten = False
            for j in range(n_points):
                as_good = biases[j] <= biases[i] and useful[j] >= useful[i]
                better = biases[j] < biases[i] or useful[j] > useful[i]
                beaten |= as_good and (better or j < i)
            if not beaten:
                expected.append(i)
        expected.sort(key=lambda i: biases[i])
        assert non_dominated(torch.tensor(biases), torch.tensor(useful)).tolist() == expected


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
