"""Intervals of a comparison's figures: rates of counts are resampled for nothing, Fairlearn's bootstrap does the rest.

Drawing N people with replacement, as Fairlearn's bootstrap does, the number of people of a group is binomial, so is the
number of those whom a rate is over among them, and so is the number of those who are counted: three draws in place of a
pass over the people.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fairtrim.comparison.predictions import Predictions

from .frames import SampleParams, one_vs_rest
from .intervals import (
    ACCURACY,
    RATES_OF_TWO_CLASSES,
    Flags,
    Floats,
    Rate,
    against_rest,
    change_interval,
    gap_interval,
    gaps_of,
    rates_of,
)
from .responses import Metric

__all__ = ["Resampling", "add_intervals", "rate_of_metric", "resampled_rates"]

if TYPE_CHECKING:
    import pandas as pd
    from fairlearn.metrics import MetricFrame


@cache
def _rates() -> tuple[tuple[Metric, Rate], ...]:
    from fairlearn import metrics
    from sklearn.metrics import accuracy_score

    return (
        (accuracy_score, ACCURACY),
        (metrics.selection_rate, RATES_OF_TWO_CLASSES["selection_rate"]),
        (metrics.true_positive_rate, RATES_OF_TWO_CLASSES["true_positive_rate"]),
        (metrics.false_positive_rate, RATES_OF_TWO_CLASSES["false_positive_rate"]),
        (
            metrics.true_negative_rate,
            Rate(lambda target, label: (label == 0) & (target == 0), lambda target: target == 0),
        ),
        (
            metrics.false_negative_rate,
            Rate(lambda target, label: (label == 0) & (target == 1), lambda target: target == 1),
        ),
    )


@dataclass(frozen=True)
class Resampling:
    """How people are drawn.

    Attributes:
        n_boot: How often.
        quantiles: Of the draws; the outer ones are the ends of an interval.
        seed: Of the draws; None for others each time.
        also_slow: Whether Fairlearn's bootstrap is asked for, too, where a figure is no rate of counts.
    """

    n_boot: int
    quantiles: Sequence[float]
    seed: int | None
    also_slow: bool

    @property
    def of_fairlearn(self) -> dict[str, Any]:
        """MetricFrame's arguments."""
        return {"n_boot": self.n_boot, "ci_quantiles": list(self.quantiles), "random_state": self.seed}


def rate_of_metric(metric: Metric) -> Rate | None:
    """The rate of counts that a metric is, or None.

    Args:
        metric: Of Fairlearn, scikit-learn, or one class against the rest.

    Returns:
        Who is counted, among whom.

    Example:
        >>> from sklearn.metrics import accuracy_score
        >>> rate_of_metric(accuracy_score) is ACCURACY, rate_of_metric(len)
        (True, None)
    """
    if isinstance(metric, partial) and metric.func is one_vs_rest:
        rate = rate_of_metric(metric.keywords["metric"])
        return None if rate is None else against_rest(rate, metric.keywords["label"])
    return next((rate for known, rate in _rates() if known is metric), None)


def resampled_rates(
    counted: npt.ArrayLike, among: npt.ArrayLike, members: npt.ArrayLike, n_people: int, resampling: Resampling
) -> tuple[Floats, Floats]:
    """Ends of the percentile intervals of a rate in some groups, if people are drawn with replacement.

    Args:
        counted: How many are counted, (G,).
        among: Of how many, (G,).
        members: How many people the group has, (G,).
        n_people: N, of all groups.
        resampling: How they are drawn.

    Returns:
        Lower and upper ends, (G,). As Fairlearn's own, a draw without anybody of the group says nothing, and one with
        members of whom the rate is over nobody says 0; NaN where no draw says anything.

    Example:
        >>> low, high = resampled_rates([90], [100], [100], 100, Resampling(10_000, (0.025, 0.975), 0, False))
        >>> abs(low - 0.84) < 0.011, abs(high - 0.95) < 0.011
        (array([ True]), array([ True]))
    """
    c, a, m = (np.asarray(values, dtype=np.int64) for values in (counted, among, members))
    generator = np.random.default_rng(resampling.seed)
    drawn = generator.binomial(n_people, m / n_people, size=(resampling.n_boot, len(m)))
    over = generator.binomial(drawn, a / np.maximum(m, 1))
    rates = np.where(drawn > 0, generator.binomial(over, c / np.maximum(a, 1)) / np.maximum(over, 1), np.nan)
    low, high = np.full(len(m), np.nan), np.full(len(m), np.nan)
    there = (drawn > 0).any(0)
    if there.any():
        ends = np.nanquantile(rates[:, there], [min(resampling.quantiles), max(resampling.quantiles)], axis=0)
        low[there], high[there] = ends
    return low, high


class _Counts:
    """How many people of each group, and of all of them, something holds of."""

    def __init__(self, sensitive: pd.DataFrame, index: pd.Index) -> None:
        self._groups, self._index = [sensitive[feature] for feature in sensitive], index
        self.n_people = len(sensitive)
        self.members = self(np.ones(self.n_people, dtype=bool))

    def __call__(self, flags: Flags) -> npt.NDArray[np.int64]:
        """(G + 1,), everybody last."""
        import pandas as pd

        by_group = pd.Series(flags).groupby(self._groups).sum().reindex(self._index, fill_value=0)
        return np.append(by_group.to_numpy(dtype=np.int64), int(flags.sum()))


def add_intervals(
    predictions: Predictions,
    name: str,
    reference: str,
    sensitive: pd.DataFrame,
    metrics: Mapping[str, Metric],
    interval_metrics: Sequence[str],
    sample_params: SampleParams,
    resampling: Resampling,
    slow_frame: Callable[[Mapping[str, Metric]], MetricFrame],
    by_group: pd.DataFrame,
    overall: pd.Series,
) -> None:
    """Put the ends of intervals beside the figures of one network, under their names with ``low`` and ``high``.

    Rates of counts, and whatever else has an interval from Fairlearn, have that of the draws; changes in accuracy
    Agresti and Min's, and gaps that of the pairs of groups, at 95 % (``intervals``).

    Args:
        predictions: Of all networks.
        name: The network.
        reference: The network that changes are measured from.
        sensitive: The sensitive features, a column each.
        metrics: By name.
        interval_metrics: Those that get intervals.
        sample_params: Arguments of metrics: what is weighted is no rate of counts.
        resampling: How people are drawn.
        slow_frame: Fairlearn's frame of some metrics with its bootstrap.
        by_group: Its figures by group, a row each; gets columns.
        overall: Its figures over everybody; gets entries.
    """
    counts = _Counts(sensitive, by_group.index)
    target, label, before = predictions.target, predictions.label[name], predictions.label[reference]
    rates = {metric: rate_of_metric(metrics[metric]) for metric in metrics if not sample_params.get(metric)}

    def put(figure: str, ends: tuple[Any, Any]) -> None:
        for side, values in zip(("low", "high"), ends, strict=True):
            by_group[f"{figure} {side}"], overall[f"{figure} {side}"] = values[:-1], float(values[-1])

    for metric in interval_metrics:
        if (rate := rates.get(metric)) is not None:
            among = rate.among(target)
            counted = counts(rate.counted(target, label) & among)
            put(metric, resampled_rates(counted, counts(among), counts.members, counts.n_people, resampling))
    slow = {metric: metrics[metric] for metric in interval_metrics if rates.get(metric) is None}
    if slow and resampling.also_slow:
        frame = slow_frame(slow)
        groups, everybody = frame.by_group_ci, frame.overall_ci
        for metric in slow:
            low, high = ([*groups[end][metric], everybody[end][metric]] for end in (0, -1))
            put(metric, (low, high))
    if rates.get("accuracy") is ACCURACY:
        now, then = label == target, before == target
        ends = change_interval(counts(now & ~then), counts(then & ~now), counts.members)
        for side, values in zip(("low", "high"), ends, strict=True):
            by_group[f"change in accuracy {side}"] = (0 * values if name == reference else values)[:-1]
    _add_gaps(predictions, name, counts, rates, sample_params, overall)


def _add_gaps(
    predictions: Predictions,
    name: str,
    counts: _Counts,
    rates: Mapping[str, Rate | None],
    sample_params: SampleParams,
    overall: pd.Series,
) -> None:
    there = counts.members[:-1] > 0
    of_classes = rates_of(predictions.n_classes)
    for gap, names in gaps_of(predictions.n_classes).items():
        shown, compared = gap.replace("_", " "), [rate.replace("_", " ") for rate in names]
        if predictions.n_classes == 2 and "accuracy" not in names:  # Fairlearn's own, whatever the metrics are
            counted_out = any(sample_params.get(rate) for rate in compared)
        else:
            counted_out = any(rates.get(rate) is None for rate in compared)
        if shown not in overall or counted_out:
            continue
        pairs = []
        for rate in (of_classes[entry] for entry in names):
            among = rate.among(predictions.target)
            counted = counts(rate.counted(predictions.target, predictions.label[name]) & among)
            pairs.append((counted[:-1][there], counts(among)[:-1][there]))
        overall[f"{shown} low"], overall[f"{shown} high"] = gap_interval(pairs)
