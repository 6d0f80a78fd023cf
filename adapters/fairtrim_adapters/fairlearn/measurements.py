"""The figures of one network as a flat row: Fairlearn's metrics, bootstrap intervals, changes against a reference.

A metric of hard decisions depends on the people only through the number of them in each cell (sensitive group, label,
prediction, reference's prediction). Drawing N people with replacement, as MetricFrame's bootstrap does, is one
multinomial draw of those numbers, so that a resample costs nothing that grows with N, and the change against
the reference is resampled in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from fairlearn.metrics import count
from sklearn.metrics import accuracy_score, recall_score

from fairtrim import InputError
from fairtrim.predictions import Predictions

from .frames import build_frame, not_numbers
from .reporting import Comparison, compare_predictions
from .responses import Metric, check_responses

__all__ = [
    "LARGER_IS_WORSE",
    "OF_TWO_CLASSES",
    "check_metrics",
    "column_of",
    "group_names",
    "joined_flags",
    "measurements",
]

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Labels = npt.NDArray[np.int64]

LARGER_IS_WORSE = frozenset(
    {"accuracy_difference", "equalized_odds_difference", "demographic_parity_difference", "changed_predictions"}
)
"""Measurements of which less is better; of ``accuracy``, ``balanced_accuracy`` and ``worst_group_accuracy`` more is."""


_OTHER_COLUMNS = frozenset(
    {
        *("accuracy", "balanced_accuracy", "worst_group_accuracy", "people", "flags"),
        *("criterion", "ratio", "post_processor", "seed", "seeds", "checkpoint", "seconds"),
        *("parameters", "macs", "parameters_ratio", "macs_ratio", "latency_ms", "latency_ratio"),
    }
)


OF_TWO_CLASSES = (
    "selection_rate",
    "true_positive_rate",
    "false_positive_rate",
    "equalized_odds_difference",
    "demographic_parity_difference",
)
"""Measurements that there are for two classes only."""


@dataclass(frozen=True)
class _Rate:
    """Which people are counted, and among whom."""

    counted: Callable[[Labels, Labels], Flags]
    among: Callable[[Labels], Flags]


_ACCURACY = _Rate(lambda target, label: label == target, lambda target: np.ones(len(target), dtype=bool))
_OF_TWO_CLASSES = {
    "selection_rate": _Rate(lambda target, label: label == 1, lambda target: np.ones(len(target), dtype=bool)),
    "true_positive_rate": _Rate(lambda target, label: (label == 1) & (target == 1), lambda target: target == 1),
    "false_positive_rate": _Rate(lambda target, label: (label == 1) & (target == 0), lambda target: target == 0),
}


def check_metrics(metrics: Mapping[str, Metric] | None) -> None:
    """Refuse further metrics whose columns would be taken for others.

    Args:
        metrics: By name, or None.

    Raises:
        InputError: They are no dict of functions, or a name is taken, has a bracket, or ends like an interval or
            a change.

    Example:
        >>> check_metrics({"f1_score": len})
    """
    if metrics is None:
        return
    if not isinstance(metrics, Mapping) or not all(callable(metric) for metric in metrics.values()):
        raise InputError("metrics is no dict of functions; expected {'name': function(y_true, y_pred)}")
    taken = {*_OF_TWO_CLASSES, *LARGER_IS_WORSE, *_OTHER_COLUMNS, *(f"{rate}_difference" for rate in _OF_TWO_CLASSES)}
    for name in metrics:
        if not isinstance(name, str) or not name or name in taken or f"{name}_difference" in taken:
            raise InputError(f"metrics holds {name!r}, which other figures are called; expected another name")
        if "[" in name or name.endswith(("_low", "_high", "_change")) or name.startswith("_"):
            raise InputError(
                f"metrics holds {name!r}; expected a name without brackets, that doesn't begin with _ or end in _low, "
                "_high or _change"
            )
    check_responses("auto", metrics)


def group_names(predictions: Predictions) -> npt.NDArray[np.str_]:
    """The sensitive group of each person; the values of several features are joined by a comma.

    Args:
        predictions: With sensitive features.

    Returns:
        Names, (N,).

    Raises:
        InputError: There are no sensitive features, or two crossings have one name.

    Example:
        >>> one = np.zeros(1, dtype=np.int64)
        >>> sensitive = {"sex": np.array(["Female"]), "race": np.array(["Black"])}
        >>> str(group_names(Predictions(one, {}, {}, sensitive))[0])
        'Female, Black'
    """
    if not predictions.sensitive:
        raise InputError("the loader gives (inputs, target) only; expected (inputs, target, sensitive)")
    groups = list(zip(*(column.tolist() for column in predictions.sensitive.values()), strict=True))
    names: dict[str, tuple[str, ...]] = {}
    for group in dict.fromkeys(groups):
        if (other := names.setdefault(", ".join(map(str, group)), group)) != group:
            raise InputError(
                f"the sensitive groups {other} and {group} have one name when joined by a comma; expected values "
                "without ', ' in them"
            )
    return np.asarray([", ".join(map(str, group)) for group in groups])


class _Cells:
    """Numbers of people in each occupied cell, and draws of them."""

    def __init__(
        self, predictions: Predictions, name: str, reference: str, n_boot: int, random_state: int | None
    ) -> None:
        self.groups, group = np.unique(group_names(predictions), return_inverse=True)
        rows = np.stack([group, predictions.target, predictions.label[name], predictions.label[reference]], axis=1)
        cells, counts = np.unique(rows, axis=0, return_counts=True)
        self.group, self.target, self.label, self.reference = (column.astype(np.int64) for column in cells.T)
        generator = np.random.default_rng(random_state)
        n_people = int(counts.sum())
        self.draws: Floats = generator.multinomial(n_people, counts / n_people, size=n_boot).astype(float)
        self._member = np.eye(len(self.groups))[self.group]

    def rate(self, rate: _Rate, label: Labels) -> tuple[Floats, Floats]:
        """A rate over everybody, (B,), and of each group, (B, G): NaN where a draw has nobody of the group.

        As Fairlearn has it, a rate is 0 where a group has people, but none that the rate is taken over.
        """
        among = self.draws * rate.among(self.target)
        counted = self.draws * rate.counted(self.target, label)
        people = self.draws @ self._member
        with np.errstate(invalid="ignore", divide="ignore"):
            overall = np.nan_to_num(counted.sum(1) / among.sum(1))
            by_group = np.nan_to_num((counted @ self._member) / (among @ self._member))
        return overall, np.where(people > 0, by_group, np.nan)

    def statistics(self, label: Labels, n_classes: int) -> dict[str, Floats]:
        """Every measurement of each draw, (B,), by the name of its column."""
        found: dict[str, Floats] = {}
        spread: dict[str, Floats] = {}
        rates = {"accuracy": _ACCURACY, **(_OF_TWO_CLASSES if n_classes == 2 else {})}
        for metric, rate in rates.items():
            found[metric], by_group = self.rate(rate, label)
            found |= {f"{metric}[{g}]": by_group[:, k] for k, g in enumerate(self.groups)}
            spread[metric] = np.nanmax(by_group, axis=1) - np.nanmin(by_group, axis=1)
            if metric == "accuracy":
                found["worst_group_accuracy"] = np.nanmin(by_group, axis=1)
        found["accuracy_difference"] = spread["accuracy"]
        if n_classes == 2:
            found["equalized_odds_difference"] = np.maximum(spread["true_positive_rate"], spread["false_positive_rate"])
            found["demographic_parity_difference"] = spread["selection_rate"]
        found["balanced_accuracy"] = self._balanced_accuracy(label)
        return found

    def _balanced_accuracy(self, label: Labels) -> Floats:
        """Mean recall of the classes that a draw has somebody of, (B,)."""
        order = np.argsort(self.target, kind="stable")
        _, first = np.unique(self.target[order], return_index=True)  # of each class: no (cells, K) table
        of_class = np.add.reduceat(self.draws[:, order], first, axis=1)
        right = np.add.reduceat((self.draws * (label == self.target))[:, order], first, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls: Floats = np.nanmean(right / of_class, axis=1)
        return recalls

    def changed(self) -> dict[str, Floats]:
        """Share of people whose label differs from the reference's, (B,), over everybody and by group."""
        differs = _Rate(lambda target, label: label != self.reference, _ACCURACY.among)
        overall, by_group = self.rate(differs, self.label)
        return {
            "changed_predictions": overall,
            **{f"changed_predictions[{g}]": by_group[:, k] for k, g in enumerate(self.groups)},
        }


def column_of(name: str, suffix: str) -> str:
    """The column of what belongs to a figure: its change, or an end of an interval.

    Args:
        name: The figure's own column.
        suffix: Such as ``_change``, ``_low`` or ``_change_low``.

    Returns:
        The column: the suffix stands before the sensitive group.

    Example:
        >>> column_of("accuracy", "_low"), column_of("accuracy[Female]", "_low")
        ('accuracy_low', 'accuracy_low[Female]')
    """
    metric, bracket, group = name.partition("[")
    return f"{metric}{suffix}{bracket}{group}"


def measurements(
    predictions: Predictions,
    name: str,
    reference: str,
    *,
    n_boot: int | None = 200,
    random_state: int | None = 0,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, Any]:
    """One network's figures as a flat row of a table.

    Every metric ``m`` comes with ``m_low`` and ``m_high``, the 95 % percentile interval of a bootstrap over people, and
    with ``m_change`` (``m_change_low``, ``m_change_high``), the change against the reference, resampled in pairs.
    A sensitive group's are ``m[Female]``, ``m_low[Female]`` and so on; ``people[Female]`` counts them.

    Args:
        predictions: Of both networks, on the same people.
        name: The network.
        reference: The network that changes are measured from.
        n_boot: Number of bootstrap samples, or None for no intervals.
        random_state: Seed of the bootstrap.
        metrics: Further metrics by name, as ``metric_frame`` takes them, those of scores with scores: value,
            ``…_difference`` between groups and change, without intervals.

    Returns:
        Values by column. Metrics: ``accuracy``, ``balanced_accuracy``, ``worst_group_accuracy``,
        ``accuracy_difference``, ``changed_predictions`` (share of labels that differ from the reference's); for
        two classes also ``selection_rate``, ``true_positive_rate``, ``false_positive_rate`` and Fairlearn's
        ``equalized_odds_difference`` and ``demographic_parity_difference``. ``flags`` are the comparison's.

    Raises:
        InputError: There are no sensitive features, or an argument is wrong.

    Example:
        >>> target = np.array([0, 1, 1, 1])
        >>> label = {"dense": target, "pruned": np.array([0, 1, 1, 0])}
        >>> people = Predictions(target, label, {}, {"sex": np.array(["F", "F", "M", "M"])})
        >>> row = measurements(people, "pruned", "dense")
        >>> row["accuracy"], row["accuracy[M]"], row["accuracy_change[F]"], row["equalized_odds_difference"]
        (0.75, 0.5, 0.0, 0.5)
    """
    if n_boot is not None and n_boot < 1:
        raise InputError(f"n_boot={n_boot}; expected at least 1 bootstrap sample, or None")
    check_metrics(metrics)
    group_names(predictions)  # refused, if columns would get one name
    labels = {model: predictions.label[model] for model in dict.fromkeys((reference, name))}
    scores = {model: predictions.scores[model] for model in labels if model in predictions.scores}
    pair = Predictions(predictions.target, labels, scores, predictions.sensitive, predictions.n_classes)
    # of more than two classes the rates of each class would cost most of the time, and be thrown away
    few = None if pair.n_classes == 2 else {"accuracy": accuracy_score, "people": count}
    comparison = compare_predictions(pair, reference=reference, metrics=few, progress=False)
    row: dict[str, Any] = {}
    of_name, of_reference = _points(comparison, pair, name), _points(comparison, pair, reference)
    for column, value in of_name.items():
        row[column] = value
        if not column.startswith(("changed_predictions", "people")):
            row[column_of(column, "_change")] = value - of_reference[column]
    if n_boot is not None:
        cells = _Cells(pair, name, reference, n_boot, random_state)
        drawn = cells.statistics(cells.label, pair.n_classes)
        drawn_reference = cells.statistics(cells.reference, pair.n_classes)
        for column, values in drawn.items():
            row |= _interval(column, "", values)
            row |= _interval(column, "_change", values - drawn_reference[column])
        for column, values in cells.changed().items():
            row |= _interval(column, "", values)
    if metrics:
        row |= _further(pair, name, reference, metrics)
    flags = comparison.flags[comparison.flags["model"].isin([name, "(data)"])]
    row["flags"] = joined_flags(
        f"{flag}: {detail}" for flag, detail in zip(flags["flag"], flags["detail"], strict=True)
    )
    return row


def joined_flags(flags: Iterable[str]) -> str:
    """Flags in one string, from which ``split("; ")`` gives as many.

    Args:
        flags: Texts; a semicolon within one becomes a comma.

    Returns:
        The string.

    Example:
        >>> joined_flags(["constant classifier: label 0; gaps mean nothing", "", "empty cell: F"])
        'constant classifier: label 0, gaps mean nothing; empty cell: F'
    """
    return "; ".join(flag.replace("; ", ", ") for flag in flags if flag)


def _interval(column: str, suffix: str, values: Floats) -> dict[str, float]:
    if np.isnan(values).all():
        return {}
    low, high = np.nanquantile(values, [0.025, 0.975])
    return {column_of(column, f"{suffix}_low"): float(low), column_of(column, f"{suffix}_high"): float(high)}


def _points(comparison: Comparison, predictions: Predictions, name: str) -> dict[str, float]:
    """Fairlearn's own figures of one network under the names of the row."""
    overall, by_group = comparison.overall.loc[name], comparison.by_group.loc[name]
    metrics = ["accuracy", *(_OF_TWO_CLASSES if predictions.n_classes == 2 else ())]
    found = {metric: float(overall[metric.replace("_", " ")]) for metric in metrics}
    present = np.unique(predictions.target)
    found["balanced_accuracy"] = float(
        recall_score(predictions.target, predictions.label[name], labels=present, average="macro", zero_division=0)
    )
    found["worst_group_accuracy"] = float(by_group["accuracy"].min())
    gaps = [gap for gap in sorted(LARGER_IS_WORSE) if gap.replace("_", " ") in overall]
    found |= {gap: float(overall[gap.replace("_", " ")]) for gap in gaps}
    for group, figures in by_group.iterrows():
        label = group if isinstance(group, str) else ", ".join(map(str, group))
        if not figures["people"] > 0:
            continue  # a crossing that nobody belongs to
        found[f"people[{label}]"] = int(figures["people"])
        for metric in [*metrics, "changed_predictions"]:
            found[f"{metric}[{label}]"] = float(figures[metric.replace("_", " ")])
    return found


def _further(predictions: Predictions, name: str, reference: str, metrics: Mapping[str, Metric]) -> dict[str, float]:
    groups = pd.DataFrame({"group": group_names(predictions).astype(object)})
    frames = [build_frame(predictions, model, groups, metrics) for model in (name, reference)]
    several = not_numbers(frames[0])
    if several:
        raise InputError(f"the metrics {several} give several numbers or none; expected one number a group")
    found: dict[str, float] = {}
    for metric in metrics:
        own, other = ({"": f.overall[metric], "_difference": f.difference()[metric]} for f in frames)
        for suffix, value in own.items():
            found[f"{metric}{suffix}"] = float(value)
            found[f"{metric}{suffix}_change"] = float(value - other[suffix])
        for group, value in frames[0].by_group[metric].items():
            found[f"{metric}[{group}]"] = float(value)
            found[f"{metric}_change[{group}]"] = float(value - frames[1].by_group[metric][group])
    return found
