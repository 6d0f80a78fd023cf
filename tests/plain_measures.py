"""Rates, biases and performances by plain loops, as oracles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

EXACT = {"rel": 1e-12, "abs": 1e-12, "nan_ok": True}


def share(event: np.ndarray, among: np.ndarray, weight: np.ndarray) -> float:
    total = float(weight[among].sum())
    return float(weight[event & among].sum()) / total if total else math.nan


def plain_rates(
    measure: str, given: Any, target: Any, group: Any, *, n_groups: int, n_classes: int = 2, weight: Any = None
) -> list[list[float]]:
    """Rows of one rate for each sensitive group."""
    given, target, group = (np.asarray(column) for column in (given, target, group))
    weight = np.ones(len(given)) if weight is None else np.asarray(weight, dtype=np.float64)
    members = [group == g for g in range(n_groups)]
    if measure == "accuracy_score_difference":
        return [[share(given == target, member, weight) for member in members]]
    rows = []
    for label in [1] if n_classes == 2 else range(n_classes):
        has, is_one = given == label, target == label
        selection = [share(has, member, weight) for member in members]
        true_positive = [share(has, member & is_one, weight) for member in members]
        false_positive = [share(has, member & ~is_one, weight) for member in members]
        rows += {
            "demographic_parity_difference": [selection],
            "equal_opportunity_difference": [true_positive],
            "average_odds_difference": [[(t + f) / 2 for t, f in zip(true_positive, false_positive, strict=True)]],
            "equalized_odds_difference": [true_positive, false_positive],
        }[measure]
    return rows


def plain_bias(measure: str, given: Any, target: Any, group: Any, *, signed: bool = False, **options: Any) -> float:
    """The largest difference of a rate between two sensitive groups, or group 0 minus group 1."""
    rows = plain_rates(measure, given, target, group, **options)
    gaps = [row[0] - row[1] if signed else max(row) - min(row) for row in rows]
    if any(math.isnan(rate) for row in rows for rate in row):
        return math.nan
    return max(gaps, key=abs)


def plain_performance(measure: str, given: Any, target: Any, *, n_classes: int = 2, weight: Any = None) -> float:
    """Balanced accuracy, accuracy or F1 of everybody."""
    given, target = np.asarray(given), np.asarray(target)
    weight = np.ones(len(given)) if weight is None else np.asarray(weight, dtype=np.float64)
    everyone = np.ones(len(given), dtype=bool)
    if measure == "accuracy":
        return share(given == target, everyone, weight)
    if measure == "balanced_accuracy":
        return sum(share(given == k, target == k, weight) for k in range(n_classes)) / n_classes
    scores = []
    for label in [1] if n_classes == 2 else range(n_classes):
        both = 2 * weight[(given == label) & (target == label)].sum()
        either = weight[given == label].sum() + weight[target == label].sum()
        scores.append(float(both / either) if either else math.nan)
    return sum(scores) / len(scores)


def plain_class_sum(measure: str, given: Any, target: Any, group: Any, *, weight: Any = None) -> float:
    """Eopp0, Eopp1 or Eodd: one confusion matrix for each class and group, the largest sum over pairs of groups."""
    given, target, group = (np.asarray(column).tolist() for column in (given, target, group))
    weight = [1.0] * len(given) if weight is None else np.asarray(weight).tolist()
    rate: dict[tuple[Any, Any], float] = {}
    for k in set(given) | set(target):
        for g in set(group):
            cells = {(of_class, given_class): 0.0 for of_class in (False, True) for given_class in (False, True)}
            for said, is_one, member, w in zip(given, target, group, weight, strict=True):
                if member == g:
                    cells[is_one == k, said == k] += w
            of, rest = cells[True, True] + cells[True, False], cells[False, True] + cells[False, False]
            true_positive = cells[True, True] / of if of else math.nan
            false_positive = cells[False, True] / rest if rest else math.nan
            true_negative = cells[False, False] / rest if rest else math.nan
            rate[k, g] = {"eopp0": true_negative, "eopp1": true_positive, "eodd": true_positive + false_positive}[
                measure
            ]
    classes = {k for k, _ in rate}
    sums = [sum(abs(rate[k, g] - rate[k, h]) for k in classes) for g in set(group) for h in set(group)]
    return math.nan if any(math.isnan(value) for value in sums) else max(sums)
