"""What a removal did to each sensitive group, measured; and how much of a metric was lost, with what certainty."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fairtrim.arguments import few_of, require_number
from fairtrim.comparison.predictions import Predictions, predict
from fairtrim.damage.reading_options import Reading
from fairtrim.data.batches import iterate_batches
from fairtrim.data.sensitive_groups import EVERYONE
from fairtrim.errors import InputError
from fairtrim.preservation import preserved_random_state
from fairtrim_adapters.fairlearn.flags import model_flags
from fairtrim_adapters.fairlearn.frames import build_frame
from fairtrim_adapters.fairlearn.measurements import group_names
from fairtrim_adapters.fairlearn.responses import Metric, check_responses
from fairtrim_adapters.torch_pruning.reconstruction.measuring import EVERYBODY, measured_by_group

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LOSS", "Allowed", "allowed_drops", "degenerate", "drops", "measured", "of_judges", "unjudged"]

LOSS = "loss"
"""The one metric that may rise and not fall by so much; of it more than 1 makes sense."""

_SAME = 1e-12

_FALL = "false_positive_rate", "false_negative_rate"
_WORSE_IF_LARGER = ("_error", "_loss", "_difference")


def measured(dense: nn.Module, pruned: nn.Module, loader: Iterable[Any], reading: Reading) -> pd.DataFrame:
    """Loss and accuracy of each sensitive group before and after, person by person.

    Args:
        dense: The network before.
        pruned: After.
        loader: Of those who judge.
        reading: How data are read and networks called.

    Returns:
        What ``measured_by_group`` gives, and the 95 % interval of the change of the accuracy, in which one person more
        is counted, as in Agresti and Min's.
    """
    table = measured_by_group(dense, pruned, loader, reading)
    half = NormalDist().inv_cdf(0.975) * _with_one_person(table["accuracy standard error"], 1 / table["people"])
    table["accuracy low"] = (table["accuracy change"] - half).clip(lower=-1)
    table["accuracy high"] = (table["accuracy change"] + half).clip(upper=1)
    return table


def degenerate(dense: nn.Module, pruned: nn.Module, loader: Iterable[Any], reading: Reading) -> list[str]:
    """What is suspicious about the labels of a pruned network and wasn't before: that they are all the same, say.

    Args:
        dense: The network before.
        pruned: After.
        loader: Of those who judge.
        reading: How data are read and networks called.

    Returns:
        Sentences; none where there are no labels, several to a sample, or no sensitive groups.
    """
    with preserved_random_state(loader):
        target = next(iter(iterate_batches(loader, None, max_batches=1, progress=False))).target
    if target.ndim > 1 and target.shape[1] > 1:  # tokens, of whose scores there are far too many to keep
        return []
    try:
        predictions = _predictions(dense, pruned, loader, reading)
    except InputError:  # no labels: then the losses are all there is
        return []
    if not predictions.sensitive:
        return []
    found: dict[str, list[str]] = {"dense": [], "pruned": []}
    for network, kind, detail in model_flags(predictions, "dense"):
        found[network].append(f"{kind}: {detail}")
    return [text for text in found["pruned"] if text not in found["dense"]]


def of_judges(predicted: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """Predictions with the names that those who judge have: without groups on its own data, one is of everybody.

    Example:
        >>> import pandas as pd
        >>> told = pd.DataFrame({"sensitive_group": ["everyone"], "predicted change": [0.1]})
        >>> of_judges(told, pd.DataFrame({"sensitive_group": ["a", "b", "everybody"]}))["sensitive_group"].tolist()
        ['everybody']
    """
    names, judges = list(predicted["sensitive_group"]), set(measured["sensitive_group"])
    if names != [EVERYONE] or EVERYONE in judges or EVERYBODY not in judges:
        return predicted
    return predicted.assign(sensitive_group=[EVERYBODY])


def unjudged(predicted: pd.DataFrame, measured: pd.DataFrame) -> list[str]:
    """Which groups channels were chosen for though nobody who judges is of them, in a sentence; none if all are there.

    Example:
        >>> import pandas as pd
        >>> both, one = pd.DataFrame({"sensitive_group": ["a", "b"]}), pd.DataFrame({"sensitive_group": ["a"]})
        >>> unjudged(both, both), unjudged(both, one)
        ([], ['nobody of b is among those who judge: what happens to them was not measured'])
        >>> unjudged(one, pd.DataFrame({"sensitive_group": ["everyone"]}))[0].partition("; ")[2]
        'held_out_sensitive_features= says who they are'
    """
    known = set(measured["sensitive_group"])
    absent = [name for name in predicted["sensitive_group"] if name not in known]
    if not absent:
        return []
    why = "what happens to them was not measured"
    if known <= {EVERYONE, EVERYBODY}:
        why += "; held_out_sensitive_features= says who they are"
    return [f"nobody of {few_of(absent)} is among those who judge: {why}"]


def _predictions(dense: nn.Module, pruned: nn.Module, loader: Iterable[Any], reading: Reading) -> Predictions:
    return predict(
        {"dense": dense, "pruned": pruned},
        loader,
        sensitive_names=reading.sensitive_names,
        forward_fn=reading.forward_fn,
        output_transform=reading.output_transform,
        progress=reading.progress,
    )


def _with_one_person(error: Any, one_person: Any) -> Any:
    """A standard error to which what one person makes is added: without it nothing seen would be nothing possible."""
    return np.sqrt(np.nan_to_num(error) ** 2 + np.asarray(one_person) ** 2)


@dataclass(frozen=True)
class Allowed:
    """How much of a metric every sensitive group may lose.

    Attributes:
        name: Of the metric.
        drop: At most; of the loss, its rise.
        metric: The function; None for accuracy and loss, which are measured anyway.
    """

    name: str
    drop: float
    metric: Metric | None


def allowed_drops(max_drop: Mapping[Any, float]) -> tuple[Allowed, ...]:
    """The metrics and the drops that a caller names.

    Args:
        max_drop: Drops by ``"accuracy"``, ``"loss"``, another metric of Fairlearn or scikit-learn by its name, or a
            function of labels and predicted labels.

    Returns:
        One entry for each.

    Raises:
        InputError: There is no such metric, one of which less is better, or a drop is no share.

    Example:
        >>> [(entry.name, entry.drop) for entry in allowed_drops({"accuracy": 0.01, "balanced accuracy": 0.02})]
        [('accuracy', 0.01), ('balanced_accuracy', 0.02)]
    """
    if not isinstance(max_drop, Mapping) or not max_drop:
        raise InputError(f"max_drop={max_drop!r}; expected drops by metric, e.g. {{'accuracy': 0.01}}")
    found = []
    for key, drop in max_drop.items():
        name, metric = (str(getattr(key, "__name__", key)), key) if callable(key) else _by_name(key)
        require_number(f"max_drop[{name!r}]", drop, at_least=0, remedy=", the largest fall that is accepted")
        if isinstance(key, str) and drop > 1 and name != LOSS:
            raise InputError(f"max_drop[{name!r}] is {drop:g}; expected a share: {drop / 100:g} for {drop:g} points")
        if name in _FALL or name.endswith(_WORSE_IF_LARGER):
            raise InputError(f"max_drop names {name!r}, of which less is better; expected a metric that should be high")
        if metric is not None:
            check_responses("auto", metric)
        found.append(Allowed(name, float(drop), metric))
    return tuple(found)


def _by_name(key: Any) -> tuple[str, Metric | None]:
    name = str(key).strip().replace(" ", "_").replace("-", "_")
    if name in ("accuracy", "accuracy_score"):
        return "accuracy", None
    if name == LOSS:
        return LOSS, None
    import fairlearn.metrics
    import sklearn.metrics

    for module in (sklearn.metrics, fairlearn.metrics):
        for full in (name, f"{name}_score"):
            if callable(metric := getattr(module, full, None)):
                return name, metric
    raise InputError(
        f"max_drop names {key!r}, which neither Fairlearn nor scikit-learn has; expected 'accuracy', 'loss', "
        "'balanced accuracy', 'recall', 'f1', ..., or a function of (labels, predicted labels)"
    )


def drops(
    table: pd.DataFrame,
    allowed: Iterable[Allowed],
    dense: nn.Module,
    pruned: nn.Module,
    loader: Iterable[Any],
    reading: Reading,
    *,
    confidence: float | None,
) -> pd.DataFrame:
    """How much of each metric every sensitive group lost, and how much it may have lost.

    The error of a drop is that of the paired differences; of other metrics than accuracy, the jackknife's, which leaves
    out each person in turn, for both networks. Beside it stands what one person can make, so that a group of few can't
    pass because nobody of it happened to change; of the loss, which changes for everybody and knows no most, not. The
    drop of the loss is its rise.

    Args:
        table: From ``measured``.
        allowed: The metrics.
        dense: The network before.
        pruned: After.
        loader: Of those who judge.
        reading: How data are read and networks called.
        confidence: Of the upper end; None takes the drop itself.

    Returns:
        Columns metric, sensitive_group, people, before, after, drop, upper, least (the upper end if nothing had
        changed), allowed, passes; a row for each metric and group.

    Raises:
        InputError: The targets are no labels, so that there is no such metric.
    """
    import pandas as pd

    z = 0.0 if confidence is None else float(NormalDist().inv_cdf(confidence))
    groups = table[table["sensitive_group"] != EVERYBODY]
    rows: list[dict[str, Any]] = []
    predictions: Predictions | None = None
    for entry in allowed:
        if entry.metric is None:
            for _, group in groups.iterrows():
                before, after, error = (group[f"{entry.name} {what}"] for what in ("dense", "pruned", "standard error"))
                one = 1 / group["people"]
                if entry.name == LOSS:
                    one = 0.0 if group["people"] > 1 else math.inf  # of one person there is no error
                rows.append(_row(entry, group["sensitive_group"], group["people"], before, after, error, one, z))
            continue
        if predictions is None:
            predictions = _predictions(dense, pruned, loader, reading)
        rows.extend(_of_metric(entry, entry.metric, predictions, str(groups["sensitive_group"].iloc[0]), z))
    return pd.DataFrame(rows)


def _row(
    entry: Allowed, group: str, people: float, before: float, after: float, error: float, one_person: float, z: float
) -> dict[str, Any]:
    drop = after - before if entry.name == LOSS else before - after
    upper = drop + z * float(_with_one_person(error, one_person)) if z else drop
    return {
        "metric": entry.name,
        "sensitive_group": group,
        "people": people,
        "before": before,
        "after": after,
        "drop": drop,
        "upper": upper,
        "least": z * one_person if z else 0.0,
        "allowed": entry.drop,
        "passes": bool(upper <= entry.drop + _SAME),  # not where it is undefined
    }


def _of_metric(entry: Allowed, metric: Metric, predictions: Predictions, only: str, z: float) -> list[dict[str, Any]]:
    import pandas as pd

    n_rows = len(predictions.target)
    names = group_names(predictions) if predictions.sensitive else np.full(n_rows, only)
    groups = pd.DataFrame({"sensitive group": names})
    figures = [_by_group(entry.name, metric, predictions, name, groups) for name in ("dense", "pruned")]
    rows = []
    for name in dict.fromkeys(names.tolist()):
        own = names == name
        target, before, after = (values[own] for values in (predictions.target, *predictions.label.values()))
        error = _jackknife_error(metric, target, before, after) if z else 0.0
        one = _of_one_person(metric, target, before, predictions.n_classes) if z else 0.0
        values = [float(by_group[name]) for by_group in figures]
        rows.append(_row(entry, name, float(own.sum()), values[0], values[1], error, one, z))
    return rows


def _by_group(name: str, metric: Metric, predictions: Predictions, network: str, groups: pd.DataFrame) -> Any:
    """The metric of each group, by Fairlearn; refused where it doesn't suit these labels or isn't one number."""
    remedy = (
        "expected a function of (labels, predicted labels) that gives one number, e.g. 'balanced accuracy', or in "
        "Python functools.partial(recall_score, average='macro')"
    )
    try:
        figures = build_frame(predictions, network, groups, metric).by_group
    except InputError:
        raise
    except (TypeError, ValueError) as error:  # what scikit-learn raises for labels that a metric isn't made for
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(f"max_drop names {name!r}, which can't be computed: {said.rstrip('.')}; {remedy}") from error
    if not all(np.ndim(value) == 0 and isinstance(value, float | int | np.number) for value in figures):
        raise InputError(f"max_drop names {name!r}, which gives a {type(figures.iloc[0]).__name__}; {remedy}")
    return figures


Labels = npt.NDArray[np.int64]


def _jackknife_error(metric: Callable[..., Any], target: Labels, before: Labels, after: Labels) -> float:
    """Standard error of the drop, from its values without each person in turn; who has the same labels has the same."""
    if np.array_equal(before, after):
        return 0.0
    people = np.stack([target, before, after], 1)
    _, first, counts = np.unique(people, axis=0, return_index=True, return_counts=True)
    without = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without this one nobody may be left of a class
        for person in first:
            others = np.delete(people, person, axis=0)
            without.append(float(metric(others[:, 0], others[:, 1])) - float(metric(others[:, 0], others[:, 2])))
    n, values = len(target), np.asarray(without)
    mean = float(counts @ values) / n
    return math.sqrt((n - 1) / n * float(counts @ (values - mean) ** 2))


def _of_one_person(metric: Callable[..., Any], target: Labels, label: Labels, n_classes: int) -> float:
    """The most that the metric changes where one person is given another label."""
    found = 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        as_is = float(metric(target, label))
        for k in np.unique(target):
            (of_class,) = np.nonzero(target == k)
            right = of_class[label[of_class] == k]
            person = right[0] if len(right) else of_class[0]
            other = label.copy()
            other[person] = (k + 1) % n_classes if len(right) else k
            change = abs(float(metric(target, other)) - as_is)
            found = math.inf if math.isnan(change) else max(found, change)
    return found
