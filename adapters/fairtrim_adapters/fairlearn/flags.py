"""Findings that make the figures of a comparison mean less than they seem to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from fairtrim.comparison.predictions import Predictions

from .intervals import Floats, Labels, Rate, change_interval, gaps_of, rates_of

__all__ = [
    "CONSTANT",
    "DATA",
    "EMPTY",
    "FEWEST",
    "KINDS",
    "LEVELLING",
    "NOBODY",
    "OF_DATA",
    "OF_NONE",
    "ONE_LABEL",
    "data_flags",
    "levelled",
    "model_flags",
]

CONSTANT = "constant classifier"
EMPTY = "empty cell"
LEVELLING = "levelling down"
NOBODY = "nobody"
ONE_LABEL = "one label"
ONE_VALUE = "one value"
SAME_LABEL = "same label"

DATA = "(data)"
"""Stands for the name of a network where a finding is about the people."""

KINDS = (CONSTANT, LEVELLING, SAME_LABEL, EMPTY, NOBODY, ONE_VALUE, ONE_LABEL)
"""Every kind, those first that say most about a network."""

OF_DATA = frozenset({EMPTY, NOBODY, ONE_VALUE, ONE_LABEL})
"""Kinds that are about the people, whatever the network."""

OF_NONE = "of none of the test people"
"""Ends what is said of a value of a sensitive feature that nobody has, and not of a crossing that nobody is in."""

FEWEST = 30
"""A rate of so few people has a standard error of up to .09: of fewer, little can be told from chance."""

Finding = tuple[str, str, str]


def data_flags(predictions: Predictions) -> list[Finding]:
    """What the people can't tell.

    Args:
        predictions: Targets and sensitive features; the networks don't matter.

    Returns:
        Network, kind and detail of each finding: classes that a sensitive group has nobody of (its rates for them are
        undefined), features with one value, people of one label.

    Example:
        >>> one = Predictions(np.array([0, 1]), {}, {}, {"sex": np.array(["F", "F"])})
        >>> data_flags(one)
        [('(data)', 'one value', "sex: everybody is 'F', so that there is no gap")]
    """
    found: list[Finding] = []
    groups, group = _groups(predictions)
    counts = np.zeros((len(groups), predictions.n_classes), dtype=np.int64)
    np.add.at(counts, (group, predictions.target), 1)
    for g, k in zip(*np.nonzero(counts == 0), strict=True):
        found.append((DATA, EMPTY, f"{groups[g]}: nobody of class {k}, so rates of that class are undefined"))
    for feature, values in predictions.sensitive.items():
        if len(set(values.tolist())) == 1:
            found.append((DATA, ONE_VALUE, f"{feature}: everybody is {str(values[0])!r}, so that there is no gap"))
    labels = np.unique(predictions.target)
    if len(labels) == 1:
        found.append((DATA, ONE_LABEL, f"everybody is of class {labels[0]}, so that always saying so is always right"))
    return found


def model_flags(predictions: Predictions, reference: str) -> list[Finding]:
    """What is suspicious about each network.

    Args:
        predictions: Of all networks.
        reference: The network that changes are measured from.

    Returns:
        Network, kind and detail of each finding: constant classifiers; sensitive groups, not of a few people, in which
        everybody is given one label; gaps that fell while every group lost, both by more than the error of people
        drawn like these.

    Example:
        >>> label = {"dense": np.array([0, 1]), "pruned": np.array([1, 1])}
        >>> model_flags(Predictions(np.array([0, 1]), label, {}, {"sex": np.array(["F", "M"])}), "dense")
        [('pruned', 'constant classifier', 'everybody is given label 1; gaps mean nothing')]
    """
    found: list[Finding] = []
    groups, group = _groups(predictions)
    target = predictions.target
    for name, label in predictions.label.items():
        given = np.unique(label)
        if len(given) == 1:
            found.append((name, CONSTANT, f"everybody is given label {given[0]}; gaps mean nothing"))
        for g, of_group in enumerate(groups if len(given) > 1 else ()):
            here = group == g
            if here.sum() >= FEWEST and len(np.unique(label[here])) == 1 and len(np.unique(target[here])) > 1:
                found.append((name, SAME_LABEL, f"{of_group}: all {here.sum()} people are given {label[here][0]}"))
        if name == reference:
            continue
        paired = {
            metric: _Paired(rate, target, label, predictions.label[reference], group, len(groups))
            for metric, rate in rates_of(predictions.n_classes).items()
        }
        accuracy = paired["accuracy"]
        fell = [gap for gap, metrics in gaps_of(predictions.n_classes).items() if _fell(paired, metrics)]
        detail = levelled(accuracy.change, accuracy.high, fell)
        if detail:
            found.append((name, LEVELLING, detail))
    return found


def levelled(changes: npt.ArrayLike, highs: npt.ArrayLike, fell: Iterable[str]) -> str:
    """Whether every group lost while a gap fell.

    Args:
        changes: Of each group's accuracy.
        highs: Upper ends of their intervals.
        fell: The gaps that fell by more than their error.

    Returns:
        What was found; empty for nothing.

    Example:
        >>> levelled([-0.2, -0.1], [-0.1, -0.05], ["accuracy_score_difference"])
        'accuracy score difference fell while every group lost accuracy (by 0.100 to 0.200)'
        >>> levelled([-0.2, -0.1], [-0.1, 0.05], ["accuracy_score_difference"])
        ''
    """
    change, gaps = np.asarray(changes), ", ".join(gap.replace("_", " ") for gap in fell)
    if not gaps or not (np.asarray(highs) < 0).all():
        return ""
    return f"{gaps} fell while every group lost accuracy (by {-change.max():.3f} to {-change.min():.3f})"


def _groups(predictions: Predictions) -> tuple[list[str], npt.NDArray[np.intp]]:
    """Names of the sensitive groups, and the position of each person's."""
    columns = [values.astype(str) for values in predictions.sensitive.values()]
    names, group = np.unique(np.stack(columns, axis=1), axis=0, return_inverse=True)
    return [", ".join(name) for name in names.tolist()], group.reshape(-1)


class _Paired:
    """One rate of each sensitive group, before and after, with the error of its change."""

    def __init__(
        self, rate: Rate, target: Labels, label: Labels, before: Labels, group: npt.NDArray[np.intp], n_groups: int
    ) -> None:
        now, then = rate.counted(target, label), rate.counted(target, before)

        def count(members: npt.NDArray[np.bool_]) -> Floats:
            return np.bincount(group[members], minlength=n_groups).astype(np.float64)

        among = count(rate.among(target))
        with np.errstate(invalid="ignore"):
            self.before, self.after = count(then) / among, count(now) / among
        self.change = self.after - self.before
        self.low, self.high = change_interval(count(now & ~then), count(then & ~now), among)


def _fell(paired: Mapping[str, _Paired], metrics: Sequence[str]) -> bool:
    """Whether a gap fell, and the two groups that made it came closer by more than the error."""
    rates = [paired[metric] for metric in metrics]
    if any(np.isnan(rate.change).any() for rate in rates):
        return False
    widest = max(rates, key=lambda rate: np.ptp(rate.before))
    if not max(np.ptp(rate.after) for rate in rates) < np.ptp(widest.before):
        return False
    top, bottom = widest.before.argmax(), widest.before.argmin()
    error = np.hypot(widest.high[top] - widest.change[top], widest.change[bottom] - widest.low[bottom])
    return bool(widest.change[top] - widest.change[bottom] + error < 0)
