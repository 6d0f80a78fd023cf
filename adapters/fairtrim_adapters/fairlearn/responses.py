"""What each metric is given: labels, probabilities or margins, as scikit-learn's ``response_method`` names them.

A metric of scores that is given labels returns a number under its own name that is something else. Scikit-learn's are
known here, also inside ``functools.partial``, scorers and Fairlearn's derived metrics.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch

from fairtrim import InputError
from fairtrim.arguments import did_you_mean
from fairtrim.comparison.predictions import Predictions
from fairtrim.measures.scores import positive_margin, probabilities

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Metric",
    "ResponseMethod",
    "check_defined",
    "check_metric_functions",
    "check_responses",
    "metric_inputs",
]

Metric = Callable[..., Any]
"""``metric(y_true, y_pred)``, as MetricFrame takes it."""

ResponseMethod = Literal["auto", "predict", "predict_proba", "decision_function"]
"""What a metric is given; ``"auto"`` is labels, except for the metrics of scores that are known."""


@dataclass(frozen=True)
class _Scored:
    """A metric of scikit-learn that needs scores.

    Attributes:
        binary: Its response for two classes, (N,): the probability or the margin of class 1.
        multiclass: Its response for more, (N, K).
        classes: How many classes the people of a figure must have for it to be defined, by whether there are two
            classes in all; None for all of them.
    """

    binary: str
    multiclass: str
    at_least: tuple[int, int | None] = (1, 1)


# Ranks are those of the margin, which doesn't saturate; of more than two classes those of the probabilities, since a
# number added to all scores of one sample changes nothing but its rank among the samples.
_RANKS = _Scored("decision_function", "predict_proba", (1, None))
_CURVE = _Scored("predict_proba", "predict_proba")
_KNOWN: dict[str, _Scored] = {
    "roc_auc_score": _RANKS,
    "average_precision_score": _RANKS,
    "log_loss": _Scored("predict_proba", "predict_proba"),
    "brier_score_loss": _Scored("predict_proba", "predict_proba"),
    "d2_log_loss_score": _Scored("predict_proba", "predict_proba", (2, 2)),
    "d2_brier_score": _Scored("predict_proba", "predict_proba", (2, 2)),
    "top_k_accuracy_score": _Scored("predict_proba", "decision_function"),
    "hinge_loss": _Scored("decision_function", "decision_function", (2, 1)),
    "roc_curve": _CURVE,
    "det_curve": _CURVE,
    "precision_recall_curve": _CURVE,
    "confusion_matrix_at_thresholds": _CURVE,
    "metric_at_thresholds": _CURVE,
}
_OF_LABELS = {
    "sklearn.metrics": (
        "accuracy_score balanced_accuracy_score class_likelihood_ratios classification_report cohen_kappa_score "
        "confusion_matrix f1_score fbeta_score hamming_loss jaccard_score matthews_corrcoef "
        "multilabel_confusion_matrix precision_recall_fscore_support precision_score recall_score zero_one_loss"
    ),
    "fairlearn.metrics": (
        "false_negative_rate false_positive_rate selection_rate true_negative_rate true_positive_rate "
        "demographic_parity_difference demographic_parity_ratio equalized_odds_difference equalized_odds_ratio "
        "equal_opportunity_difference equal_opportunity_ratio"
    ),
}


def _scored(function: Any) -> _Scored | None:
    """What is known of a function; some that a user writes can't be hashed, so by identity."""
    import sklearn.metrics

    name = getattr(function, "__name__", None)
    return _KNOWN.get(str(name)) if name and getattr(sklearn.metrics, str(name), None) is function else None


def _takes_labels(function: Any) -> bool:
    name = str(getattr(function, "__name__", ""))
    return any(
        name in names.split() and getattr(import_module(host), name, None) is function
        for host, names in _OF_LABELS.items()
    )


def _scores_inside(metric: Any) -> str | None:
    """The metric of scores that a function from outside scikit-learn and Fairlearn refers to, if any."""
    import sklearn.metrics

    function, _, of_scorer = _unwrapped(metric)
    if not hasattr(function, "__code__") and not inspect.isroutine(function) and not isinstance(function, type):
        function = type(function).__call__  # an object
    function = inspect.unwrap(getattr(function, "__func__", function))
    host = str(getattr(function, "__module__", "")).partition(".")[0]
    code = getattr(function, "__code__", None)
    if of_scorer is not None or host in ("sklearn", "fairlearn") or code is None:
        return None
    for name in (*code.co_names, *code.co_freevars):
        found = _variables(function).get(name)
        found = getattr(sklearn.metrics, name, None) if found is None else _unwrapped(found)[0]
        if _scored(found) is not None:
            return _name_of(found)
    return None


def _variables(function: Any) -> dict[str, Any]:
    """What the names in a function mean, as far as they are bound by now."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    bound = {}
    for name, cell in cells:
        try:
            bound[name] = cell.cell_contents
        except ValueError:  # not yet
            continue
    return {**function.__globals__, **bound}


def check_metric_functions(metrics: Any) -> None:
    """Refuse metrics that MetricFrame would not take, before any network runs.

    Args:
        metrics: A function, functions by name, or None.

    Raises:
        InputError: They are something else.

    Example:
        >>> import sklearn.metrics
        >>> check_metric_functions({"accuracy": sklearn.metrics.accuracy_score})
    """
    if metrics is None or (callable(metrics) and not isinstance(metrics, Mapping)):
        return
    if not isinstance(metrics, Mapping):
        raise InputError(
            f"metrics is a {type(metrics).__name__}; expected functions by name: {{'accuracy': accuracy_score, ...}}"
        )
    if not metrics:
        raise InputError("metrics is empty; expected at least one function, or None for the default metrics")
    for name, metric in metrics.items():
        if not isinstance(name, str) or not callable(metric):
            scorer = f": sklearn.metrics.get_scorer({metric!r})" if isinstance(metric, str) else ""
            raise InputError(
                f"metrics holds {name!r}: {metric!r}; expected a name and a function of (y_true, y_pred){scorer}"
            )


def check_responses(response_method: Any, metrics: Any) -> None:
    """Refuse responses that nobody knows, or for metrics that are not there, before any network runs.

    Args:
        response_method: One for all metrics, or by name of a metric.
        metrics: Names of the metrics, or None if they are the default ones, which all take labels.

    Raises:
        InputError: A response or a metric is unknown, or a metric of scores doesn't say of which.

    Warns:
        UserWarning: A function of one's own calls a metric of scores, and would be given labels.

    Example:
        >>> check_responses("auto", None)
    """
    names = list(metrics) if isinstance(metrics, Mapping) else []
    if isinstance(response_method, Mapping):
        for name in response_method:
            if isinstance(metrics, Mapping) and name not in names:
                raise InputError(f"response_method names {name!r}{did_you_mean(name, names)}; the metrics are {names}")
        if not isinstance(metrics, Mapping):
            raise InputError("response_method is a dict; expected one response, or metrics by name as well")
    given = response_method.values() if isinstance(response_method, Mapping) else [response_method]
    for response in given:
        if response not in get_args(ResponseMethod):
            raise InputError(
                f"response_method={response!r}{did_you_mean(response, get_args(ResponseMethod))}; expected one of "
                f"{', '.join(map(repr, get_args(ResponseMethod)))}, or one of them for each metric by name"
            )
    if metrics is None:
        if response_method not in ("auto", "predict"):
            raise InputError(
                f"response_method={response_method!r}, but the default metrics are rates of labels; expected metrics="
            )
        return
    for name, metric in metrics.items() if isinstance(metrics, Mapping) else [(_name_of(metrics), metrics)]:
        asked = _asked(response_method, name)
        inside = _scores_inside(metric) if _response(metric, name, asked, 2) == "predict" and asked == "auto" else None
        if inside is not None:
            warnings.warn(
                f"the metric {name!r} is a function that uses {inside}, a metric of scores, and is given labels; to "
                f"give it scores pass response_method={_KNOWN[inside].binary!r}, {{{name!r}: ...}} for it alone, or "
                "'predict' if labels are meant",
                UserWarning,
                stacklevel=2,
            )


def metric_inputs(
    predictions: Predictions,
    model: str,
    metrics: Mapping[str, Metric] | Metric,
    response_method: ResponseMethod | Mapping[str, ResponseMethod] = "auto",
    sample_params: Mapping[str, Any] | None = None,
) -> tuple[npt.NDArray[np.int64], dict[str, Metric] | Metric]:
    """``y_pred`` and metrics for MetricFrame, so that each metric sees its own response.

    Args:
        predictions: Of the network.
        model: Name of the network.
        metrics: A function, or functions by name.
        response_method: One for all metrics, or by name of a metric.
        sample_params: Arguments of the metrics, as for MetricFrame.

    Returns:
        The labels and the metrics as they are, if all of them want labels. Otherwise numbers of rows, and metrics that
        look their response up there.

    Raises:
        InputError: The predictions hold no scores, or a metric is not defined for this number of classes or needs an
            argument.

    Example:
        >>> import sklearn.metrics
        >>> scores = {"net": np.array([[0.0, -2.0], [0.0, 1.0], [0.0, 3.0]])}
        >>> people = Predictions(np.array([0, 1, 1]), {"net": np.array([0, 1, 1])}, scores, {})
        >>> rows, metric = metric_inputs(people, "net", sklearn.metrics.brier_score_loss)
        >>> round(metric(people.target, rows), 4)
        0.0296
    """
    named = dict(metrics) if isinstance(metrics, Mapping) else {_name_of(metrics): metrics}
    chosen = {}
    for name, metric in named.items():
        given = (sample_params or {}).get(name, {}) if isinstance(metrics, Mapping) else sample_params or {}
        _check_derived(metric, name, given)
        chosen[name] = _response(metric, name, _asked(response_method, name), predictions.n_classes)
    named_already = isinstance(metrics, Mapping) or hasattr(metrics, "__name__")  # Fairlearn warns of a partial alone
    plain = all(chosen[name] == "predict" and not hasattr(metric, "_score_func") for name, metric in named.items())
    if plain and named_already:
        return predictions.label[model], (named if isinstance(metrics, Mapping) else metrics)
    looked_up = {name: _looked_up(metric, name, predictions, model, chosen[name]) for name, metric in named.items()}
    rows = np.arange(len(predictions.target))
    return rows, (looked_up if isinstance(metrics, Mapping) else next(iter(looked_up.values())))


def check_defined(predictions: Predictions, metrics: Mapping[str, Metric] | Metric, cells: pd.DataFrame) -> None:
    """Refuse metrics that need people of every one of more than two classes, where a group has none of some.

    Args:
        predictions: Of the people.
        metrics: A function, or functions by name.
        cells: The features that groups are made of, a column each.

    Raises:
        InputError: There is such a metric and such a group; the message names them.

    Example:
        >>> import pandas as pd
        >>> import sklearn.metrics
        >>> people = Predictions(np.array([0, 1, 2]), {}, {}, {}, 3)
        >>> check_defined(people, sklearn.metrics.log_loss, pd.DataFrame({"team": ["a", "b", "b"]}))
    """
    import pandas as pd

    if predictions.n_classes <= 2:
        return
    for name, metric in metrics.items() if isinstance(metrics, Mapping) else [(_name_of(metrics), metrics)]:
        if _classes_needed(metric, predictions.n_classes) < predictions.n_classes:
            continue
        for group, target in pd.Series(predictions.target).groupby([cells.iloc[:, s] for s in range(cells.shape[1])]):
            missing = sorted(set(range(predictions.n_classes)) - set(target))
            if missing:
                called = ", ".join(map(str, group if isinstance(group, tuple) else (group,)))
                raise InputError(
                    f"the metric {name!r} compares all {predictions.n_classes} classes, and the group {called!r} "
                    f"({len(target)} people) has nobody of class {', '.join(map(str, missing))}; expected somebody of "
                    "each class in each group: leave the group out, join groups, or take a metric of every sample, "
                    "such as log_loss"
                )


def _classes_needed(metric: Metric, n_classes: int) -> int:
    """How many classes the people of a figure must have, or the metric is undefined."""
    scored = _scored(_unwrapped(metric)[0])
    if scored is None:
        return 1
    needed = scored.at_least[n_classes > 2]
    return n_classes if needed is None else needed


def _asked(response_method: Any, name: str) -> str:
    if isinstance(response_method, Mapping):
        return str(response_method.get(name, "auto"))
    return str(response_method)


def _unwrapped(metric: Any) -> tuple[Any, dict[str, Any], str | None]:
    """The function inside partials, derived metrics and scorers, its keywords, and the scorer's response."""
    keywords: dict[str, Any] = {}
    response: str | None = None
    while True:
        if isinstance(metric, partial):
            keywords = {**metric.keywords, **keywords}
            metric = metric.func
        elif hasattr(metric, "_score_func"):  # of make_scorer
            asked = metric._response_method
            response = asked if isinstance(asked, str) else asked[0]
            keywords = {**metric._kwargs, **keywords}
            metric = metric._score_func
        elif hasattr(metric, "_metric_fn"):  # of fairlearn.metrics.make_derived_metric
            metric = metric._metric_fn
        elif _scored(metric) is None and not _takes_labels(metric) and hasattr(metric, "__wrapped__"):
            metric = metric.__wrapped__
        else:
            return metric, keywords, response


def _name_of(metric: Any) -> str:
    return str(getattr(metric, "__name__", getattr(_unwrapped(metric)[0], "__name__", type(metric).__name__)))


def _response(metric: Metric, name: str, asked: str, n_classes: int) -> str:
    """The response of one metric: what was asked for, what is known of it, or labels."""
    import sklearn.metrics

    function, keywords, of_scorer = _unwrapped(metric)
    scored = _scored(function)
    if asked != "auto":
        if asked != "predict" and _takes_labels(function):
            raise InputError(
                f"response_method={asked!r} for the metric {name!r}, which is one of labels; expected 'predict' or "
                "'auto' for it: give responses by the names of the metrics"
            )
        return asked
    if scored is not None:
        if function is sklearn.metrics.roc_auc_score and n_classes > 2 and "multi_class" not in keywords:
            raise InputError(
                f"the metric {name!r} is roc_auc_score without multi_class, and there are {n_classes} classes; "
                "expected e.g. functools.partial(roc_auc_score, multi_class='ovr')"
            )
        return scored.binary if n_classes <= 2 else scored.multiclass
    if of_scorer is not None:
        return of_scorer
    second = _second_parameter(function)
    if "prob" in second:
        return "predict_proba"
    if "score" in second or "decision" in second:
        raise InputError(
            f"the metric {name!r} takes {second!r}, scores of a kind that it doesn't tell; expected response_method="
            f"{{{name!r}: 'predict_proba'}} or 'decision_function', or 'predict' for labels"
        )
    return "predict"


def _second_parameter(function: Any) -> str:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return ""
    return parameters[1] if len(parameters) > 1 else ""


def _check_derived(metric: Any, name: str, given: Mapping[str, Any]) -> None:
    """A derived metric compares groups itself, which MetricFrame does as well."""
    keywords: dict[str, Any] = {}
    while isinstance(metric, partial):
        keywords, metric = {**metric.keywords, **keywords}, metric.func
    if hasattr(metric, "_metric_fn") and "sensitive_features" not in {*keywords, *given}:
        raise InputError(
            f"the metric {name!r} is derived from {_name_of(metric._metric_fn)} and compares groups itself; expected "
            f"the metric it is derived from, whose frame has {metric._transform}(), or its sensitive_features in "
            "sample_params"
        )


def _values(
    predictions: Predictions, model: str, response: str, name: str, positive: int
) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """(N,) for labels and for one of two classes, (N, K) for more classes."""
    if response == "predict":
        return predictions.label[model]
    if model not in predictions.scores:
        raise InputError(
            f"the predictions of {model!r} hold labels only, and the metric {name!r} needs scores ({response}); "
            "expected predictions with scores, as fairtrim.predict makes them"
        )
    scores = torch.from_numpy(np.asarray(predictions.scores[model], dtype=np.float64))
    if scores.shape[1] > 2:
        return (probabilities(scores) if response == "predict_proba" else scores).numpy()
    margin = positive_margin(scores) if positive else -positive_margin(scores)
    return (margin.sigmoid() if response == "predict_proba" else margin).numpy()


def _looked_up(metric: Any, name: str, predictions: Predictions, model: str, response: str) -> Metric:
    """The metric, as a function of numbers of rows instead of their responses."""
    function, keywords, _ = _unwrapped(metric)
    sign = 1
    if hasattr(metric, "_score_func"):
        sign, metric = metric._sign, partial(metric._score_func, **metric._kwargs)
    positive = 0 if keywords.get("pos_label", 1) == 0 else 1
    values = _values(predictions, model, response, name, positive)
    binds = _scored(function) is not None and response != "predict" and "labels" not in keywords
    binds = binds and "labels" in inspect.signature(function).parameters
    labels: dict[str, Any] = {"labels": np.arange(predictions.n_classes)} if binds else {}
    needed = _classes_needed(metric, predictions.n_classes) if response != "predict" else 1

    def looked_up(y_true: npt.NDArray[Any], rows: npt.NDArray[np.int64], **arguments: Any) -> Any:
        if len(np.unique(y_true)) < needed:
            return np.nan
        found = metric(y_true, values[rows], **{**labels, **arguments})
        return found if sign == 1 else -found

    looked_up.__name__ = name
    return looked_up
