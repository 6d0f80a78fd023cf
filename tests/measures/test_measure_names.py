"""Names of bias measures mean what Fairlearn and AIF360 mean by them; those that mean something else are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fairtrim import InputError, ThresholdSelection
from fairtrim.measures.group_counts import BIAS_MEASURES, GroupCounts, bias
from fairtrim.measures.measure_names import BIAS_MEASURE_NAMES, SAME_MEASURES, canonical_measure
from fairtrim_adapters.pareto import pareto_set
from fairtrim_adapters.torch_pruning import ParityGradientImportance

NAMES = [*BIAS_MEASURE_NAMES, *SAME_MEASURES]
OTHERS = {
    "average_abs_odds_difference": "equalized_odds_difference",
    "average_odds_error": "average_odds_difference",
    "error_rate_difference": "accuracy_score_difference",
    "zero_one_loss_difference": "accuracy_score_difference",
    "false_negative_rate_difference": "equal_opportunity_difference",
    "false_positive_rate_difference": "equalized_odds_difference",
    "disparate_impact": "demographic_parity_difference",
}


def _people(n_groups: int) -> tuple[torch.Tensor, ...]:
    draws = torch.Generator().manual_seed(n_groups)
    group = torch.arange(90) % n_groups
    target = (torch.rand(90, generator=draws) < 0.3 + 0.15 * group).long()
    return torch.rand(90, generator=draws) < 0.25 + 0.2 * group + 0.2 * target, target, group


def _bias(name: str, n_groups: int, *, signed: bool = False) -> float:
    given, target, group = _people(n_groups)
    counts = GroupCounts.of(given.double()[:, None], target, group, n_groups=n_groups)
    return float(bias(canonical_measure(name), counts, signed=signed))


def test_the_table_has_the_names_of_the_measures() -> None:
    assert set(BIAS_MEASURE_NAMES) == set(BIAS_MEASURES) and set(SAME_MEASURES.values()) < set(BIAS_MEASURES)


@pytest.mark.parametrize("n_groups", [2, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("average_odds_difference",)])
def test_fairlearn_means_the_same(name: str, n_groups: int) -> None:
    metrics = pytest.importorskip("fairlearn.metrics")
    function: Callable[..., float] | None = getattr(metrics, name, None)
    if function is None:
        assert name in ("statistical_parity_difference", "mean_difference")
        return
    given, target, group = (values.numpy() for values in _people(n_groups))
    assert function(target, given, sensitive_features=group) == pytest.approx(_bias(name, n_groups), abs=1e-12)


@pytest.fixture
def metric() -> Iterator[Any]:
    pytest.importorskip("aif360")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fairtrim_adapters.aif360.library import BinaryLabelDataset, ClassificationMetric

        given, target, group = (values.numpy().astype(float) for values in _people(2))
        datasets = [
            BinaryLabelDataset(
                df=pd.DataFrame({"x": np.zeros(len(group)), "side": group, "label": labels}),
                label_names=["label"],
                protected_attribute_names=["side"],
            )
            for labels in (target, given)
        ]
        yield ClassificationMetric(*datasets, unprivileged_groups=[{"side": 0.0}], privileged_groups=[{"side": 1.0}])


@pytest.mark.parametrize("name", NAMES)
def test_aif360_means_the_same_with_its_sign(name: str, metric: Any) -> None:
    if not hasattr(metric, name):
        assert name in ("demographic_parity_difference", "accuracy_score_difference", "selection_rate_difference")
        return
    own = _bias(name, 2, signed=True)
    if name == "equalized_odds_difference":  # AIF360's has no sign
        own = abs(own)
    assert getattr(metric, name)() == pytest.approx(own, abs=1e-12)


@pytest.mark.parametrize("name", OTHERS)
def test_measures_that_mean_something_else_name_the_nearest(name: str) -> None:
    for take in (
        canonical_measure,
        lambda name: ThresholdSelection(measure=name).repair(torch.nn.Linear(1, 2), []),
        lambda name: ParityGradientImportance(measure=name),
        lambda name: pareto_set(pd.DataFrame({"accuracy": [0.5]}), {name: "min"}),
    ):
        with pytest.raises(InputError, match=f"measure='{name}' is .*'{OTHERS[name]}'"):
            take(name)


def test_negatives_are_negatives(metric: Any) -> None:
    """Why these are refused where sides are named: what they give has the other sign."""
    assert metric.error_rate_difference() == pytest.approx(-_bias("accuracy_score_difference", 2, signed=True))
    missed = metric.false_negative_rate_difference()
    assert missed == pytest.approx(-_bias("equal_opportunity_difference", 2, signed=True))


def test_objectives_are_named_as_in_either_library() -> None:
    frame = pd.DataFrame({"accuracy": [0.9, 0.8], "demographic_parity_difference": [0.1, 0.2]})
    found = pareto_set(frame, {"accuracy": "max", "statistical_parity_difference": "min"})
    assert found.tolist() == [True, False]
