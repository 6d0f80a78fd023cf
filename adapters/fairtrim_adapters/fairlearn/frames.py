"""MetricFrames of predictions: each metric with its own response, Fairlearn's arguments checked before it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from fairtrim import InputError
from fairtrim.arguments import RandomState, did_you_mean, drawn_seed, require_number, require_random_state
from fairtrim.comparison.predictions import Predictions
from fairtrim.data.batches import ForwardFunction
from fairtrim.data.sensitive_groups import SensitiveNames

from .responses import Metric, ResponseMethod, check_defined, metric_inputs

if TYPE_CHECKING:
    import pandas as pd
    from fairlearn.metrics import MetricFrame

__all__ = [
    "GAPS",
    "QUANTILES",
    "FrameOptions",
    "NetworkFrameOptions",
    "SampleParams",
    "bootstrap_options",
    "build_frame",
    "check_bootstrap",
    "check_order",
    "check_sample_params",
    "default_metrics",
    "group_columns",
    "named_features",
    "not_numbers",
    "one_vs_rest",
    "overall_columns",
]

GAPS = {
    "equalized odds difference": ("true positive rate", "false positive rate"),
    "demographic parity difference": ("selection rate",),
}
"""Fairlearn's gaps of two classes, with the rates that each compares; of more classes it is the largest difference."""

QUANTILES = (0.025, 0.5, 0.975)

SampleParams = Mapping[str, Any]
"""As for MetricFrame: arrays of N values by argument of the metric, or for metrics by name, such arrays by metric."""


def one_vs_rest(y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, metric: Metric, label: int) -> Any:
    """A rate of Fairlearn of one class against the rest.

    Args:
        y_true: Labels, (N,).
        y_pred: Predicted labels, (N,).
        metric: The rate of label 1.
        label: The class.

    Returns:
        The rate.

    Example:
        >>> from fairlearn.metrics import true_positive_rate
        >>> float(one_vs_rest([0, 2, 2], [2, 2, 1], metric=true_positive_rate, label=2))
        0.5
    """
    return metric(np.asarray(y_true) == label, np.asarray(y_pred) == label, pos_label=True)


def default_metrics(n_classes: int) -> dict[str, Metric]:
    """Fairlearn's metrics for a classifier.

    Fairlearn's rates are those of label 1; for more than two classes they are given one class against the rest,
    under names that say so.

    Args:
        n_classes: K.

    Returns:
        Metrics by name: accuracy, number of people, and selection, true and false positive rates.

    Example:
        >>> list(default_metrics(2))
        ['accuracy', 'selection rate', 'true positive rate', 'false positive rate', 'people']
        >>> [name for name in default_metrics(3) if name.endswith("2")]
        ['selection rate of 2', 'true positive rate of 2', 'false positive rate of 2']
    """
    from fairlearn.metrics import count, false_positive_rate, selection_rate, true_positive_rate
    from sklearn.metrics import accuracy_score

    rates = {
        "selection rate": selection_rate,
        "true positive rate": true_positive_rate,
        "false positive rate": false_positive_rate,
    }
    metrics: dict[str, Metric] = {"accuracy": accuracy_score}
    if n_classes <= 2:
        metrics |= rates
    else:
        metrics |= {
            f"{name} of {label}": partial(one_vs_rest, metric=metric, label=label)
            for label in range(n_classes)
            for name, metric in rates.items()
        }
    return metrics | {"people": count}


class FrameOptions(TypedDict, total=False):
    """How figures are computed; the same for all that makes MetricFrames.

    Attributes:
        response_method: What the metrics are given as ``y_pred``: ``"predict"`` labels, ``"predict_proba"`` or
            ``"decision_function"``, as in scikit-learn: (N,) of class 1 for two classes, (N, K) for more. ``"auto"``,
            the default, is labels, and scores for the metrics of scikit-learn that need them. One for all, or by name
            of a metric.
        sample_params: As for MetricFrame: arrays in the order of the samples; a loader may not shuffle then.
        n_boot: Number of bootstrap samples for confidence intervals; None for no intervals. Default none of a
            ``metric_frame``; of comparisons 1,000 where a figure is a rate of counts, which costs nothing. Fairlearn's
            bootstrap of other figures takes about 0.1 s a sample and metric, and must be asked for.
        ci_quantiles: Quantiles of the intervals; default 0.025, 0.5, 0.975.
        random_state: Seed of the bootstrap, or a torch.Generator, from which one is drawn; None for another each time.
            Default None of a ``metric_frame``, 0 of comparisons.

    Example:
        >>> options: FrameOptions = {"n_boot": 50, "random_state": 0}
        >>> bootstrap_options(options)["n_boot"]
        50
    """

    response_method: ResponseMethod | Mapping[str, ResponseMethod]
    sample_params: SampleParams | None
    n_boot: int | None
    ci_quantiles: Sequence[float] | None
    random_state: RandomState | None


class NetworkFrameOptions(FrameOptions, total=False):
    """How figures of networks are computed: ``FrameOptions``, and how networks and loaders are read.

    Attributes:
        sensitive_features: Of a loader of (inputs, target), one row a sample of its dataset, shuffled or not; see
            ``fairtrim.with_sensitive_features``.
        sensitive_names: Names of the sensitive features, and of their values.
        forward_fn: How to call a network.
        output_transform: How to find the scores in what it returns.
        max_batches: Stop after so many batches.
        progress: Show progress bars; default True.

    Example:
        >>> options: NetworkFrameOptions = {"sensitive_names": ["sex"], "progress": False}
    """

    sensitive_features: Any
    sensitive_names: SensitiveNames | None
    forward_fn: ForwardFunction | None
    output_transform: Callable[[Any], Tensor] | None
    max_batches: int | None
    progress: bool


def check_bootstrap(options: FrameOptions) -> None:
    """Refuse arguments of a bootstrap that are wrong; nothing is drawn from a generator.

    Args:
        options: As given.

    Raises:
        InputError: One is wrong.

    Example:
        >>> check_bootstrap({"n_boot": 5, "random_state": 0})
    """
    n_boot, random_state = options.get("n_boot"), options.get("random_state")
    if n_boot is not None:
        require_number("n_boot", n_boot, at_least=1, whole=True, remedy=" bootstrap sample, or None")
    quantiles = options.get("ci_quantiles")
    if quantiles is not None and not (len(quantiles) and all(0 <= quantile <= 1 for quantile in quantiles)):
        raise InputError(f"ci_quantiles={quantiles}; expected some between 0 and 1, e.g. [0.025, 0.975]")
    if random_state is not None:
        require_random_state(random_state)


def bootstrap_options(options: FrameOptions) -> dict[str, Any]:
    """MetricFrame's arguments of its bootstrap.

    Args:
        options: As given; a generator gives its draw.

    Returns:
        The arguments; none without a bootstrap.

    Raises:
        InputError: One is wrong, or missing.

    Example:
        >>> bootstrap_options({}), bootstrap_options({"n_boot": 5, "ci_quantiles": [0.1, 0.9]})["ci_quantiles"]
        ({}, [0.1, 0.9])
    """
    check_bootstrap(options)
    n_boot, ci_quantiles = options.get("n_boot"), options.get("ci_quantiles")
    if n_boot is None:
        if ci_quantiles is not None:
            raise InputError("ci_quantiles needs n_boot=, the number of bootstrap samples")
        return {}
    random_state = options.get("random_state")
    return {
        "n_boot": n_boot,
        "ci_quantiles": list(QUANTILES if ci_quantiles is None else ci_quantiles),
        "random_state": None if random_state is None else drawn_seed(random_state),
    }


def check_order(loader: Iterable[Any], **given: Any) -> None:
    """Refuse values of people beside a loader that gives the people in an order of its own.

    Args:
        loader: Of the people.
        given: What was given, by the name of its argument; None for nothing.

    Raises:
        InputError: The loader shuffles.

    Example:
        >>> check_order([], sample_params=None)
    """
    named = [name for name, value in given.items() if value is not None]
    sampler = getattr(loader.batch_sampler, "sampler", None) if isinstance(loader, DataLoader) else None
    if named and isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
        raise InputError(
            f"the loader shuffles ({type(sampler).__name__}), so that nobody knows which row of {' and '.join(named)} "
            "belongs to whom; expected a loader in a fixed order, e.g. shuffle=False, or control_features by the names "
            "of sensitive features that the loader gives"
        )


def check_sample_params(sample_params: SampleParams | None, metrics: Mapping[str, Metric] | Metric) -> None:
    """Refuse arguments of metrics that are not there.

    Args:
        sample_params: As given.
        metrics: A function, or functions by name.

    Raises:
        InputError: They are no dict, or name no metric.

    Example:
        >>> from sklearn.metrics import accuracy_score
        >>> check_sample_params({"sample_weight": [1.0, 2.0]}, accuracy_score)
    """
    if sample_params is None:
        return
    if not isinstance(sample_params, Mapping):
        raise InputError(
            f"sample_params is a {type(sample_params).__name__}; expected a dict, e.g. {{'sample_weight': weights}}"
        )
    if not isinstance(metrics, Mapping):
        return
    for name, params in sample_params.items():
        if name not in metrics:
            raise InputError(
                f"sample_params names {name!r}{did_you_mean(name, metrics)}; expected arguments for each metric by its "
                f"name, e.g. {{{next(iter(metrics))!r}: {{'sample_weight': weights}}}}; the metrics are {list(metrics)}"
            )
        if not isinstance(params, Mapping):
            raise InputError(
                f"sample_params[{name!r}] is a {type(params).__name__}; expected a dict, e.g. "
                "{'sample_weight': weights}"
            )


def build_frame(
    predictions: Predictions,
    name: str,
    sensitive: pd.DataFrame,
    metrics: Mapping[str, Metric] | Metric,
    *,
    response_method: ResponseMethod | Mapping[str, ResponseMethod] = "auto",
    sample_params: SampleParams | None = None,
    control_features: Any = None,
    bootstrap: Mapping[str, Any] | None = None,
) -> MetricFrame:
    """Fairlearn's MetricFrame of one network's predictions.

    Args:
        predictions: Of the network.
        name: Name of the network.
        sensitive: The sensitive features, a column each.
        metrics: A function, or functions by name.
        response_method: What the metrics are given, for all of them or by name.
        sample_params: As for MetricFrame.
        control_features: As for MetricFrame, or the name of one sensitive feature, or a list of names.
        bootstrap: From ``bootstrap_options``.

    Returns:
        The frame.

    Raises:
        InputError: Arguments have another length than the predictions, a metric is not defined for somebody, or has no
            interval.

    Example:
        >>> import pandas as pd
        >>> from sklearn.metrics import accuracy_score
        >>> people = Predictions(np.array([0, 1, 1]), {"net": np.array([0, 1, 0])}, {}, {})
        >>> frame = build_frame(people, "net", pd.DataFrame({"team": ["a", "b", "b"]}), accuracy_score)
        >>> frame.by_group.to_dict()
        {'a': 1.0, 'b': 0.5}
    """
    import pandas as pd
    from fairlearn.metrics import MetricFrame

    n_rows = len(predictions.target)
    check_sample_params(sample_params, metrics)
    if taken := {"y_true", "y_pred"} & set(sensitive):
        raise InputError(
            f"a sensitive feature is named {min(taken)!r}, under which MetricFrame keeps labels and would lose them; "
            "expected another name: sensitive_names"
        )
    sensitive, control = _cut_out(sensitive, control_features)
    if control is not None and _length(control) != n_rows:
        raise InputError(f"control_features has {_length(control)} rows for {n_rows} predictions; expected as many")
    params: dict[str, Any] = dict(sample_params or {})
    if isinstance(metrics, Mapping):
        params = {metric: _arrays(given, n_rows) for metric, given in params.items()}
    else:
        params = _arrays(params, n_rows)
    parts = [sensitive] if control is None else [sensitive, pd.DataFrame(control)]
    y_pred, wrapped = metric_inputs(predictions, name, metrics, response_method, params)
    check_defined(predictions, metrics, pd.concat([part.reset_index(drop=True) for part in parts], axis=1))
    arguments: dict[str, Any] = {
        "metrics": wrapped,
        "y_true": predictions.target,
        "y_pred": y_pred,
        "sensitive_features": sensitive,
        "control_features": control,
        "sample_params": params or None,
    }
    frame = MetricFrame(**arguments)
    if not bootstrap:
        return frame
    several = not_numbers(frame)
    if several:
        raise InputError(
            f"the metrics {several} give several numbers or none; expected one number a group, for which there are "
            "intervals: leave n_boot= or these metrics out"
        )
    return MetricFrame(**arguments, **bootstrap)


def not_numbers(frame: MetricFrame) -> list[str]:
    """Metrics of a frame that give something else than one number, such as a confusion matrix.

    Args:
        frame: The frame.

    Returns:
        Their names.
    """
    import pandas as pd

    by_group = frame.by_group if isinstance(frame.by_group, pd.DataFrame) else frame.by_group.to_frame()
    return [str(name) for name in by_group if not all(np.isscalar(v) or v is None for v in by_group[name])]


def group_columns(
    predictions: Predictions,
    frames: Mapping[str, MetricFrame],
    name: str,
    reference: str,
    sensitive: pd.DataFrame,
    left_out: Sequence[str],
) -> pd.DataFrame:
    """One network's figures of each sensitive group.

    Args:
        predictions: Of all networks.
        frames: Of all networks.
        name: The network.
        reference: The network that changes are measured from.
        sensitive: The sensitive features, a column each.
        left_out: Metrics that are no numbers.

    Returns:
        A row for each group, a column for each figure.
    """
    import pandas as pd

    frame, dense = frames[name], frames[reference]
    columns = frame.by_group.drop(columns=left_out)
    change = frame.by_group["accuracy"] - dense.by_group["accuracy"]
    columns["change in accuracy"] = change
    columns["excess change"] = change - (frame.overall["accuracy"] - dense.overall["accuracy"])
    differs = pd.Series(predictions.label[name] != predictions.label[reference])
    rate = differs.groupby([sensitive[feature] for feature in sensitive]).mean()
    columns["changed predictions"] = rate.reindex(columns.index)
    return columns.apply(pd.to_numeric)


def overall_columns(
    predictions: Predictions,
    frame: MetricFrame,
    name: str,
    reference: str,
    sensitive: pd.DataFrame,
    left_out: Sequence[str],
    sample_params: SampleParams,
) -> pd.Series:
    """One network's figures over everybody.

    Args:
        predictions: Of all networks.
        frame: Of the network.
        name: The network.
        reference: The network that changes are measured from.
        sensitive: The sensitive features, a column each.
        left_out: Metrics that are no numbers.
        sample_params: Arguments of the metrics; gaps are weighted as the rates that they compare.

    Returns:
        The figures by name.

    Raises:
        InputError: Some rates of a gap are weighted and others are not.
    """
    import fairlearn.metrics
    import pandas as pd

    columns = dict(frame.overall.drop(left_out))
    difference = frame.difference()
    columns["accuracy score difference"] = difference["accuracy"]
    if predictions.n_classes == 2:
        for gap, rates in GAPS.items():
            columns[gap] = getattr(fairlearn.metrics, gap.replace(" ", "_"))(
                y_true=predictions.target,
                y_pred=predictions.label[name],
                sensitive_features=sensitive,
                sample_weight=_weight_of(rates, gap, sample_params),
            )
    else:
        for gap, rates in GAPS.items():
            of_classes = [f"{rate} of {label}" for label in range(predictions.n_classes) for rate in rates]
            if set(of_classes) <= set(difference.index):
                columns[gap] = difference[of_classes].max()
    columns["changed predictions"] = float(np.mean(predictions.label[name] != predictions.label[reference]))
    return pd.Series(columns, dtype=float)


def _weight_of(rates: Sequence[str], gap: str, sample_params: SampleParams) -> Any:
    """The sample weight that all rates of a gap were given, or None."""
    given = [sample_params.get(rate, {}).get("sample_weight") for rate in rates]
    if all(weight is None for weight in given):
        return None
    if any(weight is None or not np.array_equal(weight, given[0]) for weight in given):
        raise InputError(
            f"sample_params weighs some of the rates {list(rates)}, whose {gap} is shown; expected the same "
            "sample_weight for all of them"
        )
    return np.asarray(given[0])


def named_features(control_features: Any, features: Iterable[str]) -> bool:
    """Whether control features are named, not given.

    Args:
        control_features: As given.
        features: Names of the sensitive features.

    Returns:
        Whether it is a string, or a list of some of the names.

    Example:
        >>> named_features(["race"], ["sex", "race"]), named_features(["Black", "White"], ["sex", "race"])
        (True, False)
    """
    if isinstance(control_features, str):
        return True
    given = control_features if isinstance(control_features, list | tuple) else []
    return bool(given) and all(isinstance(name, str) for name in given) and set(given) <= set(features)


def _cut_out(sensitive: pd.DataFrame, control_features: Any) -> tuple[pd.DataFrame, Any]:
    """The sensitive features without those that were named as control features, and the control features."""
    if named_features(control_features, list(sensitive)):
        names = [control_features] if isinstance(control_features, str) else list(control_features)
        unknown = [name for name in names if name not in sensitive]
        if unknown:
            raise InputError(
                f"control_features names {unknown[0]!r}{did_you_mean(unknown[0], sensitive)}; the loader gives the "
                f"sensitive features {list(sensitive)}"
            )
        rest = [name for name in sensitive if name not in names]
        if not rest:
            raise InputError(
                f"control_features names all sensitive features, {list(sensitive)}; expected one that is left"
            )
        return sensitive[rest], sensitive[names]
    return sensitive, control_features


def _length(features: Any) -> int:
    if isinstance(features, Mapping):
        return len(next(iter(features.values()))) if features else 0
    return len(features)


def _arrays(params: Mapping[str, Any], n_rows: int) -> dict[str, npt.NDArray[Any]]:
    arrays = {name: np.asarray(value) for name, value in params.items() if value is not None}
    for name, values in arrays.items():
        if values.shape[:1] != (n_rows,):
            raise InputError(
                f"sample_params has {name!r} of shape {values.shape} for {n_rows} predictions; expected one for each"
            )
    return arrays
