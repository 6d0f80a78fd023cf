"""Intervals that cost nothing have the distribution of Fairlearn's bootstrap, and nothing else is taken for a rate."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import (
    MetricFrame,
    count,
    false_negative_rate,
    false_positive_rate,
    selection_rate,
    true_negative_rate,
    true_positive_rate,
)
from scipy.stats import binom
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from torch import nn

from fairtrim import InputError, predict
from fairtrim.comparison.predictions import Predictions
from fairtrim_adapters.fairlearn import compare_models, compare_predictions, default_metrics
from fairtrim_adapters.fairlearn.comparison_intervals import Resampling, rate_of_metric, resampled_rates
from fairtrim_adapters.fairlearn.intervals import change_interval, gap_interval, rates_of

MANY = Resampling(20_000, (0.025, 0.975), 0, False)
RATES = (
    accuracy_score,
    selection_rate,
    true_positive_rate,
    false_positive_rate,
    true_negative_rate,
    false_negative_rate,
)


def people(n: int = 60, n_classes: int = 2, seed: int = 0) -> tuple[Any, Any, Any]:
    """Labels, predictions, and groups of which one has few people."""
    generator = np.random.default_rng(seed)
    target = generator.integers(n_classes, size=n)
    label = np.where(generator.random(n) < 0.7, target, generator.integers(n_classes, size=n))
    return target, label, np.where(np.arange(n) < 5, "few", np.where(generator.random(n) < 0.4, "a", "b"))


def test_of_everybody_the_quantiles_of_the_binomial() -> None:
    n, right = 200, 170
    low, high = resampled_rates([right], [n], [n], n, MANY)
    for end, quantile in ((low, 0.025), (high, 0.975)):
        assert abs(end[0] - binom.ppf(quantile, n, right / n) / n) < 1.5 / n


@pytest.mark.parametrize("metric", RATES, ids=lambda metric: metric.__name__)
def test_as_rows_drawn_with_replacement(metric: Any) -> None:
    """The slow way: rows of a draw, the metric of each group; several quantiles, so that the whole shape agrees."""
    target, label, group = people()
    generator, n = np.random.default_rng(1), len(target)
    names = ("a", "b", "few")
    rate = rate_of_metric(metric)
    assert rate is not None
    draws = []
    for _ in range(3000):
        rows = generator.integers(n, size=n)
        t, p, g = target[rows], label[rows], group[rows]
        among, counted = rate.among(t), rate.counted(t, p) & rate.among(t)
        draws.append(
            [np.nan if not (g == k).any() else counted[g == k].sum() / max(among[g == k].sum(), 1) for k in names]
        )
    for name, values in zip(names, np.array(draws).T, strict=True):
        here = group == name
        among = rate.among(target) & here
        counted = rate.counted(target, label) & among
        for quantile in (0.1, 0.3, 0.7, 0.9):
            of_cells = Resampling(20_000, (quantile,), 0, False)
            found, _ = resampled_rates([counted.sum()], [among.sum()], [here.sum()], n, of_cells)
            step = 0.04 if name != "few" else 0.1  # of few people a rate has few values
            assert found[0] == pytest.approx(np.nanquantile(values, quantile), abs=step)
        expected = metric(target[here], label[here])
        assert counted.sum() / max(among.sum(), 1) == pytest.approx(expected)


def test_as_fairlearn_counts_nobody() -> None:
    """A group of one positive person among twenty: a third of the draws has no positive, which Fairlearn calls 0."""
    target, label = np.array([1, *[0] * 19, *[1] * 20]), np.array([1, *[0] * 19, *[1] * 20])
    group = np.array(["a"] * 20 + ["b"] * 20)
    frame = MetricFrame(
        metrics={"rate": true_positive_rate},
        y_true=target,
        y_pred=label,
        sensitive_features=group,
        n_boot=25,
        ci_quantiles=[0.025, 0.975],
        random_state=0,
    )
    low, high = resampled_rates([1, 20], [1, 20], [20, 20], 40, MANY)
    for end, found in zip((low, high), frame.by_group_ci, strict=True):
        assert end.tolist() == found["rate"].tolist()
    assert low.tolist() == [0.0, 1.0]


def test_a_group_of_nobody_has_none() -> None:
    low, high = resampled_rates([0, 3], [0, 4], [0, 5], 5, MANY)
    assert np.isnan([low[0], high[0]]).all() and low[1] < high[1]


def test_rates_of_single_classes() -> None:
    target, label, _ = people(n_classes=3)
    named = {name.replace("_", " "): rate for name, rate in rates_of(3).items()}
    for name, metric in default_metrics(3).items():
        rate = rate_of_metric(metric)
        if name == "people":
            assert rate is None
            continue
        assert rate is not None
        for one in (rate, named[name]):
            among = one.among(target)
            assert (one.counted(target, label) & among).sum() / among.sum() == pytest.approx(metric(target, label))


@pytest.mark.parametrize("metric", [count, balanced_accuracy_score, partial(accuracy_score, normalize=False), len])
def test_what_is_no_rate_of_counts(metric: Any) -> None:
    assert rate_of_metric(metric) is None


def _predictions(n_classes: int = 2) -> Predictions:
    target, label, group = people(200, n_classes)
    worse = np.where(np.arange(200) % 7 == 0, 0, label)
    return Predictions(target, {"dense": label, "pruned": worse}, {}, {"team": group}, n_classes)


@pytest.mark.parametrize("n_classes", [2, 3])
def test_columns(n_classes: int) -> None:
    """On without being asked for: accuracy, its change, and the gaps, each holding its figure; off with None."""
    given = _predictions(n_classes)
    compared = compare_predictions(given)
    for name in ("dense", "pruned"):
        row = compared.overall.loc[name]
        gaps = ["accuracy score difference", "equalized odds difference", "demographic parity difference"]
        for figure in ["accuracy", *gaps]:
            assert row[f"{figure} low"] <= row[figure] <= row[f"{figure} high"]
        group = compared.by_group.loc[name]
        assert (group["accuracy low"] <= group["accuracy"]).all() and (
            group["accuracy"] <= group["accuracy high"]
        ).all()
    here = given.sensitive["team"] == "a"
    now, then = (given.label[name][here] == given.target[here] for name in ("pruned", "dense"))
    low, high = change_interval((now & ~then).sum(), (then & ~now).sum(), here.sum())
    found = compared.by_group.loc[("pruned", "a")]
    assert (found["change in accuracy low"], found["change in accuracy high"]) == pytest.approx((low, high))
    right = given.label["pruned"] == given.target
    counts = [
        [flags[given.sensitive["team"] == name].sum() for name in ("a", "b", "few")] for flags in (right, right >= 0)
    ]
    ends = gap_interval([(counts[0], counts[1])])
    found = compared.overall.loc["pruned"]
    assert (found["accuracy score difference low"], found["accuracy score difference high"]) == pytest.approx(ends)
    without = compare_predictions(given, n_boot=None)
    assert not any(name.endswith((" low", " high")) for name in [*without.by_group, *without.overall])
    pd.testing.assert_frame_equal(without.by_group, compared.by_group[list(without.by_group)])


def test_seeds_and_generators() -> None:
    given = _predictions()

    def ends(**options: Any) -> list[float]:
        compared = compare_predictions(given, metrics={"accuracy": accuracy_score}, progress=False, **options)
        return [float(end) for end in compared.by_group["accuracy low"]]

    assert ends() == ends() == ends(random_state=0) != ends(random_state=1)
    assert ends(random_state=None, n_boot=30) != ends(random_state=None, n_boot=30)
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    assert ends(random_state=first) == ends(random_state=second)
    assert ends(random_state=first) != ends(random_state=torch.Generator().manual_seed(5))  # it went on
    with pytest.raises(InputError, match=r"random_state=0\.5; expected a whole number or a torch\.Generator"):
        ends(random_state=0.5)
    with pytest.raises(InputError, match="ci_quantiles=\\[2\\]; expected some between 0 and 1"):
        ends(ci_quantiles=[2])
    with pytest.raises(InputError, match="ci_quantiles needs n_boot="):
        ends(ci_quantiles=[0.1], n_boot=None)


def test_weighted_and_own_figures_have_fairlearns_bootstrap_where_it_is_asked_for() -> None:
    given = _predictions()
    weights = {"accuracy": {"sample_weight": np.linspace(0.1, 1, 200)}}
    own = {"accuracy": lambda y_true, y_pred: float(np.mean(y_true == y_pred))}
    for options in ({"sample_params": weights, "metrics": {"accuracy": accuracy_score}}, {"metrics": own}):
        free = compare_predictions(given, **options)  # type: ignore[arg-type]
        assert "accuracy low" not in free.by_group and "change in accuracy low" not in free.by_group
        assert "accuracy score difference low" not in free.overall
        asked = compare_predictions(given, n_boot=3, progress=False, **options)  # type: ignore[arg-type]
        assert (asked.by_group["accuracy low"] <= asked.by_group["accuracy high"]).all()
        assert asked.overall["accuracy low"].notna().all()
        assert "without intervals it can't be told" in asked.verdict() or "costs no group" in asked.verdict()


def test_the_bootstrap_of_networks_takes_a_generator() -> None:
    batch = (torch.eye(2).repeat(20, 1), torch.arange(40) % 2, ["a", "b"] * 20)
    model = nn.Linear(2, 2)
    found = [
        compare_models({"m": model}, [batch], random_state=torch.Generator().manual_seed(3), progress=False)
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(found[0].by_group, found[1].by_group)
    pd.testing.assert_frame_equal(
        found[0].by_group, compare_predictions(predict({"m": model}, [batch]), random_state=found_seed()).by_group
    )


def found_seed() -> int:
    """What the generator above draws."""
    return int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(3)))
