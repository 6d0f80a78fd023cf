"""FairPrune's measures called like Fairlearn's, beside a plain loop and Fairlearn's own of single classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fairlearn.metrics import (
    MetricFrame,
    false_positive_rate_difference,
    true_negative_rate_difference,
    true_positive_rate_difference,
)

from fairtrim import InputError
from fairtrim_adapters.fairlearn import eodd, eopp0, eopp1
from tests.plain_measures import EXACT, plain_class_sum

MEASURES: dict[str, Callable[..., float]] = {"eopp0": eopp0, "eopp1": eopp1, "eodd": eodd}


def _people(n_classes: int, n_groups: int, n: int = 173) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(n_classes)
    target, given = draw.integers(0, n_classes, (2, n))
    return target, given, draw.integers(0, n_groups, n), draw.random(n)


@pytest.mark.parametrize("name", MEASURES)
def test_equals_a_plain_loop(name: str) -> None:
    target, given, group, weight = _people(5, 3)
    found = MEASURES[name](target, given, sensitive_features=group, sample_weight=weight)
    assert found == pytest.approx(plain_class_sum(name, given, target, group, weight=weight), **EXACT)
    words = np.array(["nevus", "melanoma", "acne", "eczema", "wart"])
    frame = pd.DataFrame(
        {"tone": np.array(["light", "dark", "dark"])[group], "place": np.array(["x", "y", "x"])[group]}
    )
    named = MEASURES[name](words[target], words[given], sensitive_features=frame, sample_weight=weight)
    assert named == pytest.approx(found, **EXACT)  # three crossings of two features, labels that are words


def test_sums_of_fairlearns_differences() -> None:
    target, given, group, _ = _people(4, 2)

    def of_class(difference: Callable[..., float], k: int) -> float:
        return difference(target == k, given == k, sensitive_features=group, pos_label=True)

    both = {"sensitive_features": group}
    negative = sum(of_class(true_negative_rate_difference, k) for k in range(4))
    positive = sum(of_class(true_positive_rate_difference, k) for k in range(4))
    assert eopp0(target, given, **both) == pytest.approx(negative, **EXACT)
    assert eopp1(target, given, **both) == pytest.approx(positive, **EXACT)
    wrong = sum(of_class(false_positive_rate_difference, k) for k in range(4))
    assert abs(positive - wrong) <= eodd(target, given, **both) + 1e-12 <= positive + wrong + 2e-12


def test_two_classes() -> None:
    target, given, group, _ = _people(2, 2)
    tpr, fpr = (
        difference(target, given, sensitive_features=group)
        for difference in (true_positive_rate_difference, false_positive_rate_difference)
    )
    assert eopp0(target, given, sensitive_features=group) == pytest.approx(tpr + fpr, **EXACT)
    assert eopp1(target, given, sensitive_features=group) == pytest.approx(tpr + fpr, **EXACT)


def test_in_a_metric_frame() -> None:
    """Sensitive features of the measure go in as sample parameters, and are cut to each group of the frame."""
    target, given, group, _ = _people(3, 2)
    site = np.arange(len(target)) % 2
    frame = MetricFrame(
        metrics=MEASURES,
        y_true=target,
        y_pred=given,
        sensitive_features=pd.Series(site, name="site"),
        sample_params={name: {"sensitive_features": group} for name in MEASURES},
    )
    for name in MEASURES:
        here = [plain_class_sum(name, given[site == s], target[site == s], group[site == s]) for s in (0, 1)]
        assert frame.by_group[name].tolist() == pytest.approx(here, **EXACT)


def test_nobody_of_a_class_and_one_group() -> None:
    people: dict[str, Any] = {"sensitive_features": ["a", "a", "a", "b", "b"]}
    assert math.isnan(eopp1([0, 1, 2, 0, 1], [0, 1, 2, 0, 1], **people))
    assert eopp0([0, 1, 2, 0, 1], [0, 1, 2, 0, 1], **people) == 0.0
    assert eodd([0, 1], [1, 1], sensitive_features=["a", "a"]) == 0.0


def test_refused() -> None:
    with pytest.raises(InputError, match=r"shapes \[\(3,\), \(2,\)\]; expected \(N,\) each"):
        eodd([0, 1, 1], [0, 1], sensitive_features=["a", "b", "b"])
    with pytest.raises(InputError, match="N at least 1"):
        eopp0([], [], sensitive_features=[])
    with pytest.raises(InputError, match="is missing for 1 of 2 people"):
        eopp1([0, 1], [0, 1], sensitive_features=pd.Series(["a", None]))


_SIX = {"y_true": [0, 1, 1, 0, 1, 1], "y_pred": [0, 1, 0, 0, 0, 0], "sensitive_features": list("aaabbb")}


def test_labels_go_by_place_whatever_their_index_and_kind() -> None:
    """Accuracies of label 1: a half among a's, none among b's."""
    turned = (
        pd.Series(_SIX["y_true"], index=[5, 4, 3, 2, 1, 0]),
        pd.Series(_SIX["sensitive_features"], index=range(7, 13)),
    )
    words = {name: pd.Series(_SIX[name]).map({0: "no", 1: "yes"}).astype("category") for name in ("y_true", "y_pred")}
    assert eopp1(turned[0], _SIX["y_pred"], sensitive_features=turned[1]) == 0.5
    assert eopp1(**words, sensitive_features=_SIX["sensitive_features"]) == 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"y_true": [None, 1, 1, 0, 1, 1]}, "1 labels or predictions are missing"),
        ({"y_pred": [math.nan, 1, 1, 0, 1, math.nan]}, "2 labels or predictions are missing"),
        ({"y_true": pd.Series([1, None, 1, 0, 1, 1], dtype="Int64")}, "1 labels or predictions are missing"),
        ({"y_true": list("011011")}, "are strings and some are not"),
        ({"y_true": np.array([0, "1", 1, 0, 1, 1], dtype=object)}, "are strings and some are not"),
        ({"sample_weight": [-1, 1, 1, 1, 1, 1]}, "sample weights are negative or not finite"),
        ({"sample_weight": [math.nan, 1, 1, 1, 1, 1]}, "sample weights are negative or not finite"),
        ({"sample_weight": ["heavy"] * 6}, "sample weights are no numbers"),
    ],
)
def test_what_is_no_label_or_weight(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        eodd(**{**_SIX, **given})
