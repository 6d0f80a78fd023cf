"""The figures of one network as a flat row: Fairlearn's metrics, 95 % intervals, changes against a reference.

A metric of hard decisions depends on the people only through the number of them in each cell (sensitive group, label,
prediction, reference's prediction). Figures, and changes of rates, have intervals that are computed from those numbers
(``intervals``). Changes of gaps and of the worst group, and balanced accuracy, are resampled: drawing N people with
replacement, as MetricFrame's bootstrap does, is one multinomial draw of the numbers, so that a resample costs nothing
that grows with N, and the reference is resampled in pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fairtrim import InputError
from fairtrim.arguments import RandomState, drawn_seed, require_number
from fairtrim.comparison.predictions import Predictions

from .comparison import Comparison, compare_predictions
from .flags import DATA, LEVELLING, levelled
from .frames import build_frame, not_numbers
from .intervals import (
    ACCURACY,
    GAPS,
    MAX_CLASSES,
    RATES_OF_TWO_CLASSES,
    Floats,
    Labels,
    Rate,
    change_interval,
    gap_interval,
    gaps_of,
    lowest_interval,
    most_of_nobody,
    rate_interval,
    rates_of,
)
from .responses import Metric, check_responses

__all__ = [
    "LARGER_IS_WORSE",
    "check_metrics",
    "column_of",
    "group_names",
    "joined_flags",
    "measurements",
]

LARGER_IS_WORSE = frozenset(
    {"accuracy_score_difference", "equalized_odds_difference", "demographic_parity_difference", "changed_predictions"}
)
"""Measurements of which less is better; of ``accuracy``, ``balanced_accuracy`` and ``worst_group_accuracy`` more is."""


_OTHER_COLUMNS = frozenset(
    {
        *("accuracy", "balanced_accuracy", "worst_group_accuracy", "flags"),
        *("people", "positives", "negatives"),
        *("criterion", "pruning_ratio", "post_processor", "seed", "seeds", "checkpoint", "seconds"),
        *("parameters", "macs", "parameters_ratio", "macs_ratio", "latency_ms", "latency_ratio"),
    }
)


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
    taken = {*RATES_OF_TWO_CLASSES, *LARGER_IS_WORSE, *_OTHER_COLUMNS}
    taken |= {f"{rate}_difference" for rate in RATES_OF_TWO_CLASSES}
    for name in metrics:
        if not isinstance(name, str) or not name or name in taken or f"{name}_difference" in taken:
            raise InputError(f"metrics holds {name!r}, which other figures are called; expected another name")
        if name.partition("_of_")[0] in RATES_OF_TWO_CLASSES:
            raise InputError(f"metrics holds {name!r}, which rates of single classes are called; expected another name")
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
        self.people: Floats = counts[None].astype(float)
        self.draws: Floats = generator.multinomial(n_people, counts / n_people, size=n_boot).astype(float)
        self.member = np.eye(len(self.groups))[self.group]
        self.rates, self.gaps = rates_of(predictions.n_classes), gaps_of(predictions.n_classes)

    def _drawn(self, rate: Rate, label: Labels, people: Floats) -> tuple[Floats, Floats]:
        """A rate over everybody, (B,), and of each group, (B, G): NaN where a draw has nobody whom it is over."""
        among = people * rate.among(self.target)
        counted = people * rate.counted(self.target, label)
        with np.errstate(invalid="ignore", divide="ignore"):
            return counted.sum(1) / among.sum(1), (counted @ self.member) / (among @ self.member)

    def statistics(self, label: Labels) -> dict[str, Floats]:
        """Every measurement of each draw, (B,), by the name of its column; gaps are those of the groups in a draw."""
        found: dict[str, Floats] = {}
        spread: dict[str, Floats] = {}
        for metric, rate in self.rates.items():
            found[metric], by_group = self._drawn(rate, label, self.draws)
            found |= {f"{metric}[{g}]": by_group[:, k] for k, g in enumerate(self.groups)}
            spread[metric] = np.fmax.reduce(by_group, axis=1) - np.fmin.reduce(by_group, axis=1)
            if metric == "accuracy":
                found["worst_group_accuracy"] = np.fmin.reduce(by_group, axis=1)
        for gap, metrics in self.gaps.items():
            found[gap] = np.fmax.reduce([spread[metric] for metric in metrics])
        found["balanced_accuracy"] = self._balanced_accuracy(label, self.draws)
        return found

    def _balanced_accuracy(self, label: Labels, people: Floats) -> Floats:
        """Mean recall of the classes that a draw has somebody of, (B,)."""
        order = np.argsort(self.target, kind="stable")
        _, first = np.unique(self.target[order], return_index=True)  # of each class: no (cells, K) table
        of_class = np.add.reduceat(people[:, order], first, axis=1)
        right = np.add.reduceat((people * (label == self.target))[:, order], first, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            recalls: Floats = np.nanmean(right / of_class, axis=1)
        return recalls

    def intervals(self, *, changed: bool) -> dict[str, tuple[float, float]]:
        """Ends of the intervals of figures and their changes, by column.

        Args:
            changed: Whether the reference is another network; if not, nothing changed for certain.
        """
        (people,) = self.people
        found: dict[str, tuple[float, float]] = {}
        counts: dict[str, tuple[Floats, Floats]] = {}
        differs = Rate(lambda _, label: label != self.reference, ACCURACY.among)
        for metric, rate in {**self.rates, "changed_predictions": differs}.items():
            now, then = rate.counted(self.target, self.label), rate.counted(self.target, self.reference)
            rows = people * np.stack([rate.among(self.target), now, now & ~then, then & ~now])
            by_group = rows @ self.member
            names = [metric, *(f"{metric}[{g}]" for g in self.groups)]
            among, counted, gained, lost = np.column_stack([rows.sum(1), by_group])
            found |= _ends(names, rate_interval(counted, among))
            if metric != "changed_predictions":
                changes = [column_of(name, "_change") for name in names]
                found |= _ends(changes, change_interval(gained, lost, among))
                counts[metric] = by_group[1], by_group[0]
        found["worst_group_accuracy"] = lowest_interval(*counts["accuracy"])
        for gap, metrics in self.gaps.items():
            found[gap] = gap_interval([counts[metric] for metric in metrics])
        found |= self._resampled({metric: among.min() for metric, (_, among) in counts.items()}, changed=changed)
        if not changed:
            names = [column for column in found if "chang" in column.partition("[")[0]]
            found |= {column: (0 * abs(found[column][0]), 0 * abs(found[column][1])) for column in names}
        return found

    def _resampled(self, fewest: Mapping[str, float], *, changed: bool) -> dict[str, tuple[float, float]]:
        drawn, before = (self.statistics(label) for label in (self.label, self.reference))
        balanced, balanced_before = (
            self._balanced_accuracy(label, self.people)[0] for label in (self.label, self.reference)
        )
        found = {
            "balanced_accuracy": _percentiles(balanced, drawn["balanced_accuracy"]),
            "balanced_accuracy_change": _percentiles(
                balanced - balanced_before, drawn["balanced_accuracy"] - before["balanced_accuracy"]
            ),
        }
        for figure, metrics in {"worst_group_accuracy": ("accuracy",), **self.gaps}.items():
            (value, fixed), (value_before, fixed_before) = (
                self._fixed(label, metrics, lowest=figure == "worst_group_accuracy")
                for label in (self.label, self.reference)
            )
            low, high = _percentiles(value - value_before, drawn[figure] - before[figure], fixed - fixed_before)
            if low == high and changed:  # nobody who matters changed, of few people
                slack = most_of_nobody(min(fewest[metric] for metric in metrics))
                low, high = low - slack, high + slack
            found[f"{figure}_change"] = low, high
        return found

    def _fixed(self, label: Labels, metrics: Sequence[str], *, lowest: bool) -> tuple[float, Floats]:
        """A gap, or the lowest rate, and draws, (B,), of what the groups that make it have between them.

        Unlike the gaps of the draws, they are not larger by chance than the gap that was found.
        """
        rates = [self._drawn(self.rates[metric], label, self.people)[1][0] for metric in metrics]
        if (len(self.groups) < 2 and not lowest) or any(np.isnan(rate).any() for rate in rates):
            return float("nan"), np.full(len(self.draws), np.nan)
        widest = int(np.argmax([np.ptp(rate) for rate in rates]))
        rate, drawn = rates[widest], self._drawn(self.rates[metrics[widest]], label, self.draws)[1]
        bottom, top = rate.argmin(), rate.argmax()
        if lowest:
            return float(rate[bottom]), drawn[:, bottom]
        return float(rate[top] - rate[bottom]), drawn[:, top] - drawn[:, bottom]


def _ends(names: Sequence[str], ends: tuple[Floats, Floats]) -> dict[str, tuple[float, float]]:
    return {name: (float(low), float(high)) for name, low, high in zip(names, *ends, strict=True)}


def _percentiles(value: float, *draws: Floats) -> tuple[float, float]:
    """The 95 % percentiles of several draws, and the figure itself."""
    if np.isnan(value) or any(np.isnan(values).all() for values in draws):
        return float("nan"), float("nan")
    ends = np.stack([np.nanquantile(values, [0.025, 0.975]) for values in draws])
    return min(float(value), float(ends[:, 0].min())), max(float(value), float(ends[:, 1].max()))


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
    random_state: RandomState | None = 0,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, Any]:
    """One network's figures as a flat row of a table.

    Every metric ``m`` comes with ``m_low`` and ``m_high``, the ends of a 95 % interval over people, and with
    ``m_change`` (``m_change_low``, ``m_change_high``), the change against the reference of the same people.
    A sensitive group's are ``m[Female]``, ``m_low[Female]`` and so on; ``people[Female]`` counts them, for two classes
    ``positives[Female]`` and ``negatives[Female]`` those of label 1 and 0; for K ``positives_of_2[Female]`` and
    ``negatives_of_2[Female]`` those with and without label 2. What is undefined is NaN: gaps of one group, rates of a
    label that a group has nobody of, and gaps between such rates.

    Every interval holds its own figure. Rates have Wilson's, their changes Agresti and Min's; that of a gap is made of
    the intervals of every pair of groups (``fairtrim_adapters.fairlearn.intervals``). Balanced accuracy, and changes of
    gaps and of the worst group, have the percentiles of a bootstrap over people in pairs; those of a change reach as
    far as those of the groups that make the two gaps.

    Args:
        predictions: Of both networks, on the same people.
        name: The network.
        reference: The network that changes are measured from.
        n_boot: Number of bootstrap samples, where intervals need some; None for no intervals at all.
        random_state: Seed of the bootstrap, or a torch.Generator, from which one is drawn; None for another each time.
        metrics: Further metrics by name, as ``metric_frame`` takes them, those of scores with scores: value,
            ``…_difference`` between groups and change, without intervals.

    Returns:
        Values by column. Metrics: ``accuracy``, ``balanced_accuracy``, ``worst_group_accuracy``,
        ``accuracy_score_difference``, ``changed_predictions`` (share of labels that differ from the reference's),
        Fairlearn's ``equalized_odds_difference`` and ``demographic_parity_difference``, and ``selection_rate``,
        ``true_positive_rate`` and ``false_positive_rate``. For K > 2 classes these rates are of each class against the
        rest, ``selection_rate_of_0`` to ``false_positive_rate_of_{K-1}``, and the two gaps the largest over classes;
        above 20 classes there are none of them. ``flags`` are the comparison's.

    Raises:
        InputError: There are no sensitive features, or an argument is wrong.

    Example:
        >>> target = np.array([0, 1, 1, 1])
        >>> label = {"dense": target, "pruned": np.array([0, 1, 1, 0])}
        >>> people = Predictions(target, label, {}, {"sex": np.array(["F", "F", "M", "M"])})
        >>> row = measurements(people, "pruned", "dense")
        >>> row["accuracy"], row["accuracy[M]"], row["accuracy_change[F]"], row["accuracy_score_difference"]
        (0.75, 0.5, 0.0, 0.5)
    """
    from fairlearn.metrics import count
    from sklearn.metrics import accuracy_score

    if n_boot is not None:
        require_number("n_boot", n_boot, at_least=1, whole=True, remedy=" bootstrap sample, or None")
    check_metrics(metrics)
    group_names(predictions)  # refused, if columns would get one name
    labels = {model: predictions.label[model] for model in dict.fromkeys((reference, name))}
    scores = {model: predictions.scores[model] for model in labels if model in predictions.scores}
    pair = Predictions(predictions.target, labels, scores, predictions.sensitive, predictions.n_classes)
    # of more than two classes Fairlearn's rates of each class would cost most of the time: see _of_each_class
    few = None if pair.n_classes == 2 else {"accuracy": accuracy_score, "people": count}
    comparison = compare_predictions(pair, reference=reference, metrics=few, n_boot=None, progress=False)
    row: dict[str, Any] = {}
    of_name, of_reference = _points(comparison, pair, name), _points(comparison, pair, reference)
    for column, value in of_name.items():
        row[column] = value
        if not column.startswith(("changed_predictions", "people", "positives", "negatives")):
            row[column_of(column, "_change")] = value - of_reference[column]
    flags = comparison.flags[comparison.flags["model"].isin([name, DATA])]
    findings = list(zip(flags["flag"], flags["detail"], strict=True))
    if n_boot is not None:
        seed = None if random_state is None else drawn_seed(random_state)
        cells = _Cells(pair, name, reference, n_boot, seed)
        for column, ends in cells.intervals(changed=name != reference).items():
            for suffix, value in zip(("_low", "_high"), ends, strict=True):
                row[column_of(column, suffix)] = value
        detail = _levelled(row, cells.groups)
        findings = [finding for finding in findings if finding[0] != LEVELLING] + (
            [(LEVELLING, detail)] if detail else []
        )
    if metrics:
        row |= _further(pair, name, reference, metrics)
    row["flags"] = joined_flags(f"{kind}: {detail}" for kind, detail in findings)
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


def _levelled(row: Mapping[str, float], groups: Iterable[str]) -> str:
    """Levelling down, told by the intervals of the row."""
    columns = [f"accuracy_change[{group}]" for group in groups]
    highs = [row[column_of(column, "_high")] for column in columns]
    return levelled([row[column] for column in columns], highs, [g for g in GAPS if row.get(f"{g}_change_high", 0) < 0])


def _points(comparison: Comparison, predictions: Predictions, name: str) -> dict[str, float]:
    """Fairlearn's own figures of one network under the names of the row."""
    from sklearn.metrics import recall_score

    overall, by_group = comparison.overall.loc[name], comparison.by_group.loc[name]
    metrics = ["accuracy", *(RATES_OF_TWO_CLASSES if predictions.n_classes == 2 else ())]
    found = {metric: float(overall[metric.replace("_", " ")]) for metric in metrics}
    present = np.unique(predictions.target)
    found["balanced_accuracy"] = float(
        recall_score(predictions.target, predictions.label[name], labels=present, average="macro", zero_division=0)
    )
    found["worst_group_accuracy"] = float(by_group["accuracy"].min())
    gaps = [gap for gap in sorted(LARGER_IS_WORSE) if gap.replace("_", " ") in overall]
    found |= {gap: float(overall[gap.replace("_", " ")]) for gap in gaps}
    if predictions.n_classes > 2:
        found |= _of_each_class(predictions, name)
    for group, figures in by_group.iterrows():
        label = group if isinstance(group, str) else ", ".join(map(str, group))
        if not figures["people"] > 0:
            continue  # a crossing that nobody belongs to
        found[f"people[{label}]"] = int(figures["people"])
        for metric in [*metrics, "changed_predictions"]:
            found[f"{metric}[{label}]"] = float(figures[metric.replace("_", " ")])
    return found | _labels(predictions, found)


def _of_each_class(predictions: Predictions, name: str) -> dict[str, float]:
    """Rates of each class against the rest, over everybody and by group, and the gaps between groups."""
    groups, group = np.unique(group_names(predictions), return_inverse=True)
    found: dict[str, float] = {}
    spread: dict[str, float] = {}
    for metric, rate in rates_of(predictions.n_classes).items():
        if metric == "accuracy":
            continue
        counted, among = rate.counted(predictions.target, predictions.label[name]), rate.among(predictions.target)
        k, n = (np.bincount(group[members], minlength=len(groups)) for members in (counted, among))
        with np.errstate(invalid="ignore"):
            values = np.append(k, k.sum()) / np.append(n, n.sum())
        names = [*(f"{metric}[{g}]" for g in groups), metric]
        found |= {column: float(value) for column, value in zip(names, values, strict=True)}
        spread[metric] = float(np.ptp(values[:-1]))
    for gap, metrics in gaps_of(predictions.n_classes).items():
        if gap != "accuracy_score_difference":
            found[gap] = float(np.max([spread[metric] for metric in metrics]))
    return found


def _labels(predictions: Predictions, found: Mapping[str, float]) -> dict[str, float]:
    """People of each label, and NaN in place of the zeros that Fairlearn gives for what is undefined."""
    counts: dict[str, float] = {}
    undefined: dict[str, float] = {}
    names = [column.removeprefix("people") for column in found if column.startswith("people[")]
    if len(names) == 1:
        undefined |= dict.fromkeys(GAPS.keys() & found.keys(), float("nan"))
    if predictions.n_classes > 2:
        return undefined | _of_each_label(predictions, names)
    of_person = np.char.add(np.char.add("[", group_names(predictions)), "]")
    for word, value, metric in (("positives", 1, "true_positive_rate"), ("negatives", 0, "false_positive_rate")):
        for name in names:
            counts[f"{word}{name}"] = number = int(np.sum((of_person == name) & (predictions.target == value)))
            if not number:
                undefined |= {f"{metric}{name}": float("nan"), "equalized_odds_difference": float("nan")}
        if not (predictions.target == value).any():
            undefined[metric] = float("nan")
    return counts | undefined


def _of_each_label(predictions: Predictions, names: Iterable[str]) -> dict[str, int]:
    """People with and without each label, by group."""
    group = group_names(predictions)
    members = {name: group == name[1:-1] for name in names}
    counts: dict[str, int] = {}
    for label in range(predictions.n_classes if predictions.n_classes <= MAX_CLASSES else 0):
        has = predictions.target == label
        for name, here in members.items():
            counts[f"positives_of_{label}{name}"] = int((here & has).sum())
            counts[f"negatives_of_{label}{name}"] = int((here & ~has).sum())
    return counts


def _further(predictions: Predictions, name: str, reference: str, metrics: Mapping[str, Metric]) -> dict[str, float]:
    import pandas as pd

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
