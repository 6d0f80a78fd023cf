"""95 % intervals of rates over people, of gaps between sensitive groups, and of changes of the same people's rates.

A gap is the largest of several differences, so that chance makes it larger, never smaller: resampled gaps are larger
than the gap that they are resampled from, and their percentiles may leave it out. Here the signed difference of every
pair of groups gets its own interval, Newcombe's (1998, method 10), of Wilson's intervals of both rates. The gap is at
most the largest of their upper ends; its lower end is the largest of their lower ends at Tukey's level for all pairs,
which pays for having chosen the largest. Such an interval holds its own figure by construction, and has a width where
nobody is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

__all__ = [
    "ACCURACY",
    "GAPS",
    "MAX_CLASSES",
    "RATES_OF_TWO_CLASSES",
    "Rate",
    "against_rest",
    "change_interval",
    "gap_interval",
    "gaps_of",
    "lowest_interval",
    "most_of_nobody",
    "rate_interval",
    "rates_of",
]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]

COVERAGE = 0.95
_NORMAL = float(NormalDist().inv_cdf(0.5 + COVERAGE / 2))


@dataclass(frozen=True)
class Rate:
    """Which people are counted, and among whom.

    Attributes:
        counted: Of target and label, (N,) each.
        among: Of target, (N,).
    """

    counted: Callable[[Labels, Labels], Flags]
    among: Callable[[Labels], Flags]


ACCURACY = Rate(lambda target, label: label == target, lambda target: np.ones(len(target), dtype=bool))
RATES_OF_TWO_CLASSES = {
    "selection_rate": Rate(lambda target, label: label == 1, lambda target: np.ones(len(target), dtype=bool)),
    "true_positive_rate": Rate(lambda target, label: (label == 1) & (target == 1), lambda target: target == 1),
    "false_positive_rate": Rate(lambda target, label: (label == 1) & (target == 0), lambda target: target == 0),
}
GAPS = {
    "accuracy_score_difference": ("accuracy",),
    "equalized_odds_difference": ("true_positive_rate", "false_positive_rate"),
    "demographic_parity_difference": ("selection_rate",),
}
"""Each gap is the largest difference between groups in one of these rates."""

MAX_CLASSES = 20
"""Of more classes there are no rates of each."""


def rates_of(n_classes: int) -> dict[str, Rate]:
    """Accuracy, and the rates of label 1 of two classes, or of each of more against the rest.

    Args:
        n_classes: K.

    Returns:
        Rates by name.

    Example:
        >>> list(rates_of(3))[:4]
        ['accuracy', 'selection_rate_of_0', 'true_positive_rate_of_0', 'false_positive_rate_of_0']
        >>> target, label = np.array([2, 2, 0]), np.array([2, 1, 2])
        >>> rates_of(3)["true_positive_rate_of_2"].counted(target, label).tolist()
        [True, False, False]
    """
    if n_classes == 2:
        return {"accuracy": ACCURACY, **RATES_OF_TWO_CLASSES}
    labels = range(n_classes if n_classes <= MAX_CLASSES else 0)
    of_labels = {f"{name}_of_{k}": against_rest(rate, k) for k in labels for name, rate in RATES_OF_TWO_CLASSES.items()}
    return {"accuracy": ACCURACY, **of_labels}


def against_rest(rate: Rate, label: int) -> Rate:
    """A rate of two classes as that of one class of more against the rest.

    Args:
        rate: Of label 1.
        label: The class.

    Returns:
        Its rate.

    Example:
        >>> rate = against_rest(RATES_OF_TWO_CLASSES["selection_rate"], 2)
        >>> rate.counted(np.array([0, 1]), np.array([2, 1])).tolist()
        [True, False]
    """

    def is_label(labels: Labels) -> Labels:
        flags: Labels = (labels == label).astype(np.int64)
        return flags

    return Rate(
        lambda target, given: rate.counted(is_label(target), is_label(given)),
        lambda target: rate.among(is_label(target)),
    )


def gaps_of(n_classes: int) -> dict[str, tuple[str, ...]]:
    """The gaps that there are, with the rates that each compares: of more than two classes those of every class.

    Args:
        n_classes: K.

    Returns:
        Names of rates by gap.

    Example:
        >>> gaps_of(3)["demographic_parity_difference"]
        ('selection_rate_of_0', 'selection_rate_of_1', 'selection_rate_of_2')
    """
    found = {
        gap: tuple(r for r in rates_of(n_classes) if r.partition("_of_")[0] in rates) for gap, rates in GAPS.items()
    }
    return {gap: rates for gap, rates in found.items() if rates}


def rate_interval(counted: npt.ArrayLike, among: npt.ArrayLike, normal: float = _NORMAL) -> tuple[Floats, Floats]:
    """Wilson's score interval of rates.

    Args:
        counted: How many are counted.
        among: Of how many.
        normal: Quantile of the normal distribution; default that of 95 %.

    Returns:
        Lower and upper ends, in the shape of the arguments; NaN of nobody.

    Example:
        >>> low, high = rate_interval(0, 50)
        >>> float(low), round(float(high), 3)
        (0.0, 0.071)
    """
    k, n = np.asarray(counted, dtype=np.float64), np.asarray(among, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        rate = k / n
        centre = (k + normal**2 / 2) / (n + normal**2)
        half = normal * np.sqrt(n * rate * (1 - rate) + normal**2 / 4) / (n + normal**2)
    # rounding mustn't put the end of 0 of n above 0
    return np.clip(centre - half, 0, rate), np.clip(centre + half, rate, 1)


def change_interval(gained: npt.ArrayLike, lost: npt.ArrayLike, among: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Agresti and Min's interval (2005) of the change of a rate of the same people.

    Args:
        gained: How many are counted now and were not before.
        lost: How many were counted before and are not now.
        among: Of how many.

    Returns:
        Lower and upper ends, in the shape of the arguments; NaN of nobody.

    Example:
        >>> low, high = change_interval(0, 4, 100)
        >>> round(float(low), 3), round(float(high), 3)
        (-0.082, 0.003)
    """
    b, c, n = (np.asarray(values, dtype=np.float64) for values in (gained, lost, among))
    with np.errstate(invalid="ignore", divide="ignore"):
        change = (b - c) / n
        centre = (b - c) / (n + 2)
        half = _NORMAL * np.sqrt(b + c + 1 - (b - c) ** 2 / (n + 2)) / (n + 2)
    return np.clip(centre - half, -1, change), np.clip(centre + half, change, 1)


def gap_interval(rates: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]]) -> tuple[float, float]:
    """Interval of the largest difference between two groups in any of some rates.

    Args:
        rates: How many are counted and of how many, (G,) each.

    Returns:
        Lower and upper end; NaN for one group, and if a group has nobody whom a rate is over.

    Example:
        >>> low, high = gap_interval([([80, 75], [100, 100])])
        >>> round(low, 3), round(high, 3)
        (0.0, 0.164)
    """
    lows, highs = [], []
    for counted, among in rates:
        k, n = np.asarray(counted, dtype=np.float64), np.asarray(among, dtype=np.float64)
        G = len(n)
        if G < 2 or not (n > 0).all():
            return float("nan"), float("nan")
        rate = k / n
        ends, wide = rate_interval(k, n), rate_interval(k, n, _of_all_pairs(G, len(rates)))
        difference = rate[:, None] - rate
        pairs = ~np.eye(G, dtype=bool)
        upper = difference + np.hypot((ends[1] - rate)[:, None], rate - ends[0])
        lower = difference - np.hypot((rate - wide[0])[:, None], wide[1] - rate)
        lows.append(lower[pairs].max())
        highs.append(upper[pairs].max())
    return float(np.clip(max(lows), 0, 1)), float(np.clip(max(highs), 0, 1))


@functools.cache
def _of_all_pairs(n_groups: int, n_rates: int) -> float:
    """Tukey's quantile for every difference of two of G, in units of its error; of two groups the normal one."""
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(COVERAGE ** (1 / n_rates), n_groups, np.inf) / np.sqrt(2))


def lowest_interval(counted: npt.ArrayLike, among: npt.ArrayLike) -> tuple[float, float]:
    """Interval of the lowest of the groups' rates, which chance makes lower.

    Args:
        counted: How many are counted, (G,).
        among: Of how many, (G,).

    Returns:
        Lower end, the lowest of the groups' lower ends; upper end, the lowest of their upper ends at the level that
        pays for having chosen the lowest.

    Example:
        >>> low, high = lowest_interval([80, 75], [100, 100])
        >>> round(low, 3), round(high, 3)
        (0.657, 0.825)
    """
    G = len(np.asarray(among))
    wide = max(_NORMAL, float(NormalDist().inv_cdf(COVERAGE ** (1 / G))))
    return float(rate_interval(counted, among)[0].min()), float(rate_interval(counted, among, wide)[1].min())


def most_of_nobody(n_people: float) -> float:
    """The largest share of people that may be so if none of n are, at 97.5 %.

    Args:
        n_people: n.

    Returns:
        The share, about 3.7 / n.

    Example:
        >>> round(most_of_nobody(100), 3)
        0.036
    """
    return float(1 - ((1 - COVERAGE) / 2) ** (1 / n_people)) if n_people > 0 else 1.0
