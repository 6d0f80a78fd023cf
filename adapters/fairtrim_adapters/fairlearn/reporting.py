"""Fairlearn's MetricFrame for torch networks, and a comparison of compressed networks with the dense one.

All metrics are Fairlearn's and scikit-learn's; this module brings predictions to them and puts what belongs
together side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from fairlearn.metrics import (
    MetricFrame,
    count,
    demographic_parity_difference,
    equalized_odds_difference,
    false_positive_rate,
    selection_rate,
    true_positive_rate,
)
from sklearn.metrics import accuracy_score
from torch import nn
from tqdm.auto import tqdm

from fairtrim import InputError
from fairtrim.predictions import Predictions, predict

from .flags import data_flags, model_flags

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "Comparison",
    "compare_models",
    "compare_predictions",
    "default_metrics",
    "metric_frame",
    "plot_comparison",
]

Metric = Callable[..., float]


def _one_vs_rest(y_true: npt.ArrayLike, y_pred: npt.ArrayLike, *, metric: Metric, label: int) -> float:
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
            f"{name} of {label}": partial(_one_vs_rest, metric=metric, label=label)
            for label in range(n_classes)
            for name, metric in rates.items()
        }
    return metrics | {"people": count}


def _sensitive_frame(predictions: Predictions) -> pd.DataFrame:
    if not predictions.sensitive:
        raise InputError("the loader gives (inputs, target) only; expected (inputs, target, sensitive)")
    return pd.DataFrame({name: values.astype(object) for name, values in predictions.sensitive.items()})


def _frame(
    predictions: Predictions, name: str, metrics: Mapping[str, Metric] | Metric | None, bootstrap: Mapping[str, Any]
) -> MetricFrame:
    chosen = default_metrics(predictions.n_classes) if metrics is None else metrics
    return MetricFrame(
        metrics=dict(chosen) if isinstance(chosen, Mapping) else chosen,
        y_true=predictions.target,
        y_pred=predictions.label[name],
        sensitive_features=_sensitive_frame(predictions),
        **bootstrap,
    )


def _bootstrap(n_boot: int | None, ci_quantiles: Sequence[float] | None, random_state: int | None) -> dict[str, Any]:
    if n_boot is None:
        if ci_quantiles is not None:
            raise InputError("ci_quantiles needs n_boot=, the number of bootstrap samples")
        return {}
    if n_boot < 1:
        raise InputError(f"n_boot={n_boot}; expected at least 1 bootstrap sample, or None")
    quantiles = [0.025, 0.5, 0.975] if ci_quantiles is None else list(ci_quantiles)
    return {"n_boot": n_boot, "ci_quantiles": quantiles, "random_state": random_state}


def metric_frame(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    metrics: Mapping[str, Metric] | Metric | None = None,
    n_boot: int | None = None,
    ci_quantiles: Sequence[float] | None = None,
    random_state: int | None = None,
    **options: Any,
) -> MetricFrame:
    """Fairlearn's MetricFrame of a torch network, streamed over a loader.

    Args:
        model: The network; left as it was.
        loader: Batches of (inputs, target, sensitive).
        metrics: As for MetricFrame; default ``default_metrics(K)``.
        n_boot: Number of bootstrap samples for confidence intervals, or None.
        ci_quantiles: Quantiles of the intervals; default 0.025, 0.5, 0.975.
        random_state: Seed of the bootstrap.
        options: As for ``fairtrim.predictions.predict``: ``sensitive_names``, ``forward_fn``,
            ``output_transform``, ``max_batches``, ``progress``.

    Returns:
        The MetricFrame; several sensitive features give their crossings.

    Raises:
        InputError: The loader has no sensitive features.

    Example:
        >>> import torch
        >>> batch = (torch.eye(2), torch.tensor([0, 0]), ["a", "b"])
        >>> frame = metric_frame(nn.Identity(), [batch], sensitive_names=["team"], progress=False)
        >>> frame.by_group["accuracy"].to_dict()
        {'a': 1.0, 'b': 0.0}
    """
    predictions = predict(model, loader, **options)
    return _frame(predictions, "model", metrics, _bootstrap(n_boot, ci_quantiles, random_state))


@dataclass(frozen=True)
class Comparison:
    """Networks side by side, each against the reference.

    Attributes:
        reference: Name of the network that changes are measured from.
        frames: Fairlearn's MetricFrame of each network.
        by_group: Index (model, sensitive features …): every metric; ``change in accuracy`` against the
            reference; ``excess change``, the group's change minus the overall one; ``changed predictions``, the share
            of the group's samples whose predicted label differs from the reference's (the rate of
            compression-identified exemplars, Hooker et al. 2020); with a bootstrap, ``accuracy low`` and
            ``accuracy high``.
        overall: Index model: every metric over everybody; ``accuracy difference`` (largest between groups);
            for two classes Fairlearn's equalized-odds and demographic-parity differences; changed predictions.
        flags: One row a finding: model, flag, detail.

    Example:
        >>> import torch
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])]
        >>> constant = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = constant.weight.zero_(), constant.bias.copy_(torch.tensor([1.0, 0.0]))
        >>> comparison = compare_models({"dense": nn.Identity(), "pruned": constant}, people, progress=False)
        >>> comparison.by_group["changed predictions"]["pruned"].to_dict()
        {'a': 0.0, 'b': 1.0}
        >>> "constant classifier" in list(comparison.flags["flag"])
        True
    """

    reference: str
    frames: dict[str, MetricFrame]
    by_group: pd.DataFrame
    overall: pd.DataFrame
    flags: pd.DataFrame

    def __str__(self) -> str:
        def show(value: float) -> str:
            return f"{value:.3f}"

        # one against the rest, three rates a class: too many to read in a row
        rates = [name for name in self.by_group if " rate of " in name]
        counts = {"people": "{:.0f}".format}
        parts = [
            f"Everybody (changes against {self.reference!r})",
            self.overall.drop(columns=rates).T.to_string(float_format=show),
            "By sensitive group",
            self.by_group.drop(columns=rates).to_string(float_format=show, formatters=counts),
        ]
        if rates:
            parts.append(f"({len(rates)} rates of single classes are in by_group and overall)")
        if len(self.flags):
            parts += ["Flags", self.flags.to_string(index=False)]
        return "\n".join(parts)


def compare_models(
    models: Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    reference: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    n_boot: int | None = None,
    ci_quantiles: Sequence[float] | None = None,
    random_state: int | None = None,
    interval_metrics: Sequence[str] = ("accuracy",),
    **options: Any,
) -> Comparison:
    """Compare networks, e.g. a dense one and its compressions, for every sensitive group.

    Args:
        models: Networks by name.
        loader: Batches of (inputs, target, sensitive); gone through once.
        reference: The network that changes are measured from; default the first.
        metrics: Metrics by name; must include ``accuracy``. Default ``default_metrics(K)``.
        n_boot: Number of bootstrap samples for confidence intervals, or None.
        ci_quantiles: Quantiles of the intervals; default 0.025, 0.5, 0.975; the outer ones are shown.
        random_state: Seed of the bootstrap.
        interval_metrics: Metrics that get intervals; Fairlearn's bootstrap takes about 0.1 s a sample and metric.
        options: As for ``metric_frame``.

    Returns:
        The comparison; print it, or plot it with ``plot_comparison``.

    Raises:
        InputError: The reference is unknown, ``accuracy`` is missing, or the loader has no sensitive features.

    Example:
        >>> import torch
        >>> people = [(torch.eye(3), torch.tensor([0, 1, 1]), ["a", "b", "b"])]
        >>> networks = {"dense": nn.Identity(), "reversed": nn.Softmin(dim=1)}
        >>> comparison = compare_models(networks, [(x[:, :2], *y) for x, *y in people], progress=False)
        >>> comparison.by_group["accuracy"].unstack("model").to_dict()
        {'dense': {'a': 1.0, 'b': 0.5}, 'reversed': {'a': 0.0, 'b': 0.0}}
    """
    if not isinstance(models, Mapping) or not models:
        raise InputError(
            f"models is {type(models).__name__}; expected networks by name: {{'dense': ..., 'pruned': ...}}"
        )
    arguments: dict[str, Any] = {
        "reference": next(iter(models)) if reference is None else reference,
        "metrics": metrics,
        "n_boot": n_boot,
        "ci_quantiles": ci_quantiles,
        "random_state": random_state,
        "interval_metrics": interval_metrics,
    }
    _check_comparison(list(models), **arguments)
    predictions = predict(models, loader, **options)
    return compare_predictions(predictions, **arguments, progress=options.get("progress", True))


def _check_comparison(
    names: Sequence[str],
    reference: str,
    metrics: Mapping[str, Metric] | None,
    n_boot: int | None,
    ci_quantiles: Sequence[float] | None,
    random_state: int | None,
    interval_metrics: Sequence[str],
) -> None:
    _bootstrap(n_boot, ci_quantiles, random_state)
    if reference not in names:
        raise InputError(f"reference={reference!r} is not one of the networks: {list(names)}")
    if metrics is not None and "accuracy" not in metrics:
        raise InputError(f"metrics has no 'accuracy', which changes are measured in; got {list(metrics)}")
    unknown = [name for name in interval_metrics if metrics is not None and name not in metrics]
    if n_boot is not None and metrics is not None and unknown:
        raise InputError(f"interval_metrics names {unknown}; the metrics are {list(metrics)}")


def compare_predictions(
    predictions: Predictions,
    *,
    reference: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    n_boot: int | None = None,
    ci_quantiles: Sequence[float] | None = None,
    random_state: int | None = None,
    interval_metrics: Sequence[str] = ("accuracy",),
    progress: bool = True,
) -> Comparison:
    """Compare networks by predictions that were made already; ``compare_models`` makes them.

    Args:
        predictions: Of the same samples by every network.
        reference: The network that changes are measured from; default the first.
        metrics: Metrics by name; must include ``accuracy``. Default ``default_metrics(K)``.
        n_boot: Number of bootstrap samples for confidence intervals, or None.
        ci_quantiles: Quantiles of the intervals; default 0.025, 0.5, 0.975.
        random_state: Seed of the bootstrap.
        interval_metrics: Metrics that get intervals.
        progress: Show a progress bar of the bootstrap.

    Returns:
        The comparison.

    Raises:
        InputError: The reference is unknown, ``accuracy`` is missing, or there are no sensitive features.

    Example:
        >>> import torch
        >>> batch = (torch.eye(2), torch.tensor([0, 0]), ["a", "b"])
        >>> swapped = nn.Linear(2, 2, bias=False)
        >>> _ = swapped.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> both = predict({"given": nn.Identity(), "swapped": swapped}, [batch], progress=False)
        >>> compare_predictions(both).by_group["change in accuracy"]["swapped"].to_dict()
        {'a': -1.0, 'b': 1.0}
    """
    models = list(predictions.label)
    reference = models[0] if reference is None else reference
    _check_comparison(models, reference, metrics, n_boot, ci_quantiles, random_state, interval_metrics)
    frames = {name: _frame(predictions, name, metrics, {}) for name in models}
    by_group = {name: _group_columns(predictions, frames, name, reference) for name in models}
    if n_boot is not None:
        bootstrap = _bootstrap(n_boot, ci_quantiles, random_state)
        every = default_metrics(predictions.n_classes) if metrics is None else metrics
        unknown = [name for name in interval_metrics if name not in every]
        if unknown:
            raise InputError(f"interval_metrics names {unknown}; the metrics are {list(every)}")
        chosen = {name: every[name] for name in interval_metrics}
        for name in tqdm(models, desc="bootstrap", leave=False, disable=not progress):
            low, *_, high = _frame(predictions, name, chosen, bootstrap).by_group_ci
            for metric in chosen:
                by_group[name][f"{metric} low"], by_group[name][f"{metric} high"] = low[metric], high[metric]
    overall = pd.DataFrame({name: _overall_columns(predictions, frames[name], name, reference) for name in models}).T
    found = [*data_flags(predictions), *model_flags(predictions, reference)]
    flags = pd.DataFrame(found, columns=["model", "flag", "detail"])
    return Comparison(reference, frames, pd.concat(by_group, names=["model"]), overall.rename_axis("model"), flags)


def _group_columns(
    predictions: Predictions, frames: Mapping[str, MetricFrame], name: str, reference: str
) -> pd.DataFrame:
    frame, dense = frames[name], frames[reference]
    columns = frame.by_group.copy()
    change = frame.by_group["accuracy"] - dense.by_group["accuracy"]
    columns["change in accuracy"] = change
    columns["excess change"] = change - (frame.overall["accuracy"] - dense.overall["accuracy"])
    differs = pd.Series(predictions.label[name] != predictions.label[reference])
    sensitive = _sensitive_frame(predictions)
    rate = differs.groupby([sensitive[feature] for feature in sensitive]).mean()
    columns["changed predictions"] = rate.reindex(columns.index)
    return columns.apply(pd.to_numeric)


def _overall_columns(predictions: Predictions, frame: MetricFrame, name: str, reference: str) -> pd.Series:
    columns = dict(frame.overall)
    columns["accuracy difference"] = frame.difference()["accuracy"]
    if predictions.n_classes == 2:
        arguments: dict[str, Any] = {
            "y_true": predictions.target,
            "y_pred": predictions.label[name],
            "sensitive_features": _sensitive_frame(predictions),
        }
        columns["equalized odds difference"] = equalized_odds_difference(**arguments)
        columns["demographic parity difference"] = demographic_parity_difference(**arguments)
    columns["changed predictions"] = float(np.mean(predictions.label[name] != predictions.label[reference]))
    return pd.Series(columns, dtype=float)


def plot_comparison(comparison: Comparison, *, metric: str = "accuracy", ax: Axes | None = None) -> Axes:
    """Draw one metric of every network, a dot for each sensitive group and a bar for everybody.

    Args:
        comparison: From ``compare_models``.
        metric: Which metric.
        ax: Where to draw; default new axes.

    Returns:
        The axes.

    Raises:
        InputError: There is no such metric, or matplotlib is not installed.

    Example:
        >>> import torch
        >>> from matplotlib.figure import Figure
        >>> people = [(torch.eye(2), torch.tensor([0, 1]), ["a", "b"])]
        >>> comparison = compare_models({"dense": nn.Identity(), "pruned": nn.Softmin(dim=1)}, people, progress=False)
        >>> ax = plot_comparison(comparison, ax=Figure().subplots())
        >>> [label.get_text() for label in ax.get_xticklabels()]
        ['dense', 'pruned']
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise InputError("plotting needs matplotlib: pip install 'fairtrim[plot]'") from None
    if metric not in comparison.by_group:
        raise InputError(f"metric={metric!r} is not in the comparison: {list(comparison.by_group.columns)}")
    if ax is None:
        _, ax = pyplot.subplots(figsize=(1.6 + 1.3 * len(comparison.frames), 4), layout="constrained")
    names = list(comparison.frames)
    first = comparison.frames[names[0]].by_group.index
    width = 0.6 / max(1, len(first))
    for g, group in enumerate(first):
        label = group if isinstance(group, str) else ", ".join(map(str, group))
        rows = [comparison.by_group.loc[(name, *(group if isinstance(group, tuple) else (group,)))] for name in names]
        at = np.arange(len(names)) + (g - (len(first) - 1) / 2) * width
        values = np.array([row[metric] for row in rows])
        people = int(rows[0]["people"]) if "people" in rows[0] else None
        ax.plot(at, values, "o", color=f"C{g}", label=label if people is None else f"{label} (n = {people})")
        if f"{metric} low" in comparison.by_group:
            low, high = (np.array([row[f"{metric} {end}"] for row in rows]) for end in ("low", "high"))
            ax.vlines(at, low, high, color=f"C{g}", linewidth=1.5)
        dense = values[names.index(comparison.reference)]
        ax.axhline(dense, color=f"C{g}", linewidth=0.8, linestyle=":", zorder=0)
    if metric in comparison.overall:
        for m, name in enumerate(names):
            ax.hlines(comparison.overall.loc[name, metric], m - 0.38, m + 0.38, color="black", linewidth=1.2)
        ax.plot([], [], color="black", linewidth=1.2, label="everybody")
    constant = set(comparison.flags.loc[comparison.flags["flag"] == "constant classifier", "model"])
    ticks = [f"{name}\n(constant)" if name in constant else name.replace(" ", "\n") for name in names]
    ax.set_xticks(range(len(names)), ticks)
    ax.set_ylabel(metric)
    ax.set_title(f"{metric} by sensitive group (dotted: {comparison.reference})", fontsize="medium")
    ax.legend(fontsize="small", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax
