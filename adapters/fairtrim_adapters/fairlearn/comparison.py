"""Fairlearn's MetricFrame for torch networks, and a comparison of compressed networks with the dense one.

All metrics are Fairlearn's and scikit-learn's; this module brings predictions to them and puts what belongs
together side by side.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack, cast

from torch import nn

from fairtrim import InputError
from fairtrim.arguments import did_you_mean, drawn_seed
from fairtrim.comparison.predictions import Predictions, predict
from fairtrim.printing import Block, Printed
from fairtrim.progress import progress_bar

from .comparison_intervals import Resampling, add_intervals
from .comparison_text import comparison_blocks, comparison_verdict
from .flags import data_flags, model_flags
from .frames import (
    GAPS,
    QUANTILES,
    FrameOptions,
    NetworkFrameOptions,
    bootstrap_options,
    build_frame,
    check_bootstrap,
    check_order,
    check_sample_params,
    default_metrics,
    group_columns,
    named_features,
    not_numbers,
    overall_columns,
)
from .responses import Metric, check_metric_functions, check_responses

if TYPE_CHECKING:
    import pandas as pd
    from fairlearn.metrics import MetricFrame

__all__ = ["Comparison", "Metric", "compare_models", "compare_predictions", "metric_frame"]

P = ParamSpec("P")
R = TypeVar("R")

N_BOOT = 1000
"""Draws of intervals that cost nothing."""

_OWN_COLUMNS = {"change in accuracy", "excess change", "changed predictions", "accuracy score difference", *GAPS}


def _suggesting(function: Callable[P, R], options: type) -> Callable[P, R]:
    """Answer a misspelt argument with the one that it was meant to be, and one without its name with the names."""
    parameters = inspect.signature(function).parameters.values()
    in_place = [entry.name for entry in parameters if entry.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    known = [*(entry.name for entry in parameters if entry.name != "options"), *options.__annotations__]

    @wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        if len(args) > len(in_place):
            surplus = type(args[len(in_place)]).__name__
            raise TypeError(
                f"{function.__name__}() got a {surplus} after {' and '.join(in_place)}; expected everything else by "
                f"its name, e.g. metrics=...: {', '.join(name for name in known if name not in in_place)}"
            )
        for name in kwargs:
            if name not in known:
                raise TypeError(
                    f"{function.__name__}() got an unexpected keyword argument {name!r}{did_you_mean(name, known)}; "
                    f"expected some of {known}"
                )
        return function(*args, **kwargs)

    return checked


def _sensitive_frame(predictions: Predictions) -> pd.DataFrame:
    import pandas as pd

    if not predictions.sensitive:
        raise InputError(
            "the loader gives (inputs, target) only; expected (inputs, target, sensitive), or sensitive_features= "
            "beside it"
        )
    return pd.DataFrame({name: values.astype(object) for name, values in predictions.sensitive.items()})


def _predicted(
    models: nn.Module | Mapping[str, nn.Module], loader: Iterable[Any], options: NetworkFrameOptions
) -> Predictions:
    reading: dict[str, Any] = {
        name: value for name, value in options.items() if name not in FrameOptions.__annotations__
    }
    return predict(models, loader, **reading)


@partial(_suggesting, options=NetworkFrameOptions)
def metric_frame(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    metrics: Mapping[str, Metric] | Metric | None = None,
    control_features: Any = None,
    **options: Unpack[NetworkFrameOptions],
) -> MetricFrame:
    """Fairlearn's MetricFrame of a torch network, streamed over a loader.

    Args:
        model: The network; left as it was.
        loader: Batches of (inputs, target, sensitive).
        metrics: As for MetricFrame, or scorers of scikit-learn; default ``default_metrics(K)``.
        control_features: As for MetricFrame, in the order of the loader, or names of sensitive features that it gives.
        options: See ``NetworkFrameOptions``.

    Returns:
        The MetricFrame; several sensitive features give their crossings.

    Raises:
        InputError: The loader has no sensitive features, or an argument is wrong.

    Example:
        >>> import torch
        >>> from sklearn.metrics import log_loss
        >>> batch = (torch.eye(2), torch.tensor([0, 0]), ["a", "b"])
        >>> frame = metric_frame(nn.Identity(), [batch], sensitive_names=["team"], progress=False)
        >>> frame.by_group["accuracy"].to_dict()
        {'a': 1.0, 'b': 0.0}
        >>> frame = metric_frame(nn.Identity(), [batch], metrics=log_loss, progress=False)  # of probabilities
        >>> frame.by_group.round(4).to_dict()
        {'a': 0.3133, 'b': 1.3133}
    """
    bootstrap = bootstrap_options(options)
    responses, sample_params = options.get("response_method", "auto"), options.get("sample_params")
    check_metric_functions(metrics)
    check_responses(responses, metrics)
    if metrics is not None:
        check_sample_params(sample_params, metrics)
    check_order(loader, sample_params=sample_params)
    predictions = _predicted(model, loader, options)
    if not named_features(control_features, predictions.sensitive):
        check_order(loader, control_features=control_features)
    return build_frame(
        predictions,
        "model",
        _sensitive_frame(predictions),
        default_metrics(predictions.n_classes) if metrics is None else metrics,
        response_method=responses,
        sample_params=sample_params,
        control_features=control_features,
        bootstrap=bootstrap,
    )


@dataclass(frozen=True)
class Comparison(Printed):
    """Networks side by side, each against the reference.

    It prints its verdict, figures of each sensitive group and of everybody, and flags; a notebook shows them as HTML.

    Attributes:
        reference: Name of the network that changes are measured from.
        frames: Fairlearn's MetricFrame of each network, with every metric.
        by_group: Index (model, sensitive features …): every metric of one number; ``change in accuracy`` against the
            reference; ``excess change``, the group's change minus the overall one; ``changed predictions``, the share
            of the group's samples whose predicted label differs from the reference's (the rate of
            compression-identified exemplars, Hooker et al. 2020); with intervals, ``accuracy low``, ``accuracy
            high``, and those of the change.
        overall: Index model: every metric over everybody; ``accuracy score difference`` (largest between groups);
            for two classes Fairlearn's equalized-odds and demographic-parity differences; changed predictions; ends of
            the intervals of accuracy and of the gaps.
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

    def verdict(self, at: str = "") -> str:
        """One sentence: what each network, or the dearest and the cheapest, costs the group that loses most.

        Args:
            at: What the networks have in common, e.g. "50 % of the MACs".

        Returns:
            The sentence. A loss is told where its interval says that it is one; without intervals, as measured.

        Example:
            >>> import torch
            >>> people = [(torch.eye(2).repeat(50, 1), torch.arange(100) % 2, ["a", "b"] * 50)]
            >>> constant = nn.Linear(2, 2)
            >>> with torch.no_grad():
            ...     _ = constant.weight.zero_(), constant.bias.copy_(torch.tensor([1.0, 0.0]))
            >>> compare_models({"dense": nn.Identity(), "pruned": constant}, people, progress=False).verdict()
            "Against 'dense', pruned costs b 100.0 points of accuracy."
        """
        return comparison_verdict(self.reference, self.by_group, at)

    def blocks(self) -> Iterator[Block]:
        """The verdict, figures of each sensitive group, of everybody, and flags."""
        return comparison_blocks(self.verdict(), self.reference, self.by_group, self.overall, self.flags, self._left())

    def _left(self) -> str:
        """What isn't printed."""
        tables = [name for name in next(iter(self.frames.values())).by_group if name not in self.by_group]
        rates = [name for name in self.by_group if " rate of " in name and not name.endswith((" low", " high"))]
        return "\n".join(
            [
                *([f"({', '.join(tables)}: several numbers a group, in frames)"] if tables else []),
                *([f"({len(rates)} rates of single classes are in by_group and overall)"] if rates else []),
            ]
        )


@partial(_suggesting, options=NetworkFrameOptions)
def compare_models(
    models: Mapping[str, nn.Module],
    loader: Iterable[Any],
    *,
    reference: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    interval_metrics: Sequence[str] = ("accuracy",),
    **options: Unpack[NetworkFrameOptions],
) -> Comparison:
    """Compare networks, e.g. a dense one and its compressions, for every sensitive group.

    Args:
        models: Networks by name.
        loader: Batches of (inputs, target, sensitive); gone through once.
        reference: The network that changes are measured from; default the first.
        metrics: Metrics by name; must include ``accuracy``. Default ``default_metrics(K)``. Those that give several
            numbers, such as ``confusion_matrix``, are in ``frames`` only.
        interval_metrics: Metrics that get intervals. Accuracy and Fairlearn's rates are resampled for nothing, by what
            Fairlearn's bootstrap comes to for them; all others only with ``n_boot=``, by Fairlearn's own.
        options: See ``NetworkFrameOptions``; of several quantiles the outer ones are shown.

    Returns:
        The comparison; print it, or plot it with ``plot_comparison``.

    Raises:
        InputError: The reference is unknown, ``accuracy`` is missing, the loader has no sensitive features, or another
            argument is wrong.

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
    figures = cast(FrameOptions, {k: v for k, v in options.items() if k in FrameOptions.__annotations__})
    _check_comparison(list(models), reference, metrics, interval_metrics, figures)
    check_order(loader, sample_params=options.get("sample_params"))
    return compare_predictions(
        _predicted(models, loader, options),
        reference=reference,
        metrics=metrics,
        interval_metrics=interval_metrics,
        progress=options.get("progress", True),
        **figures,
    )


def _check_comparison(
    names: Sequence[str],
    reference: str | None,
    metrics: Mapping[str, Metric] | None,
    interval_metrics: Sequence[str],
    options: FrameOptions,
) -> None:
    check_bootstrap(options)
    if reference is not None and reference not in names:
        raise InputError(
            f"reference={reference!r}{did_you_mean(reference, names)} is not one of the networks: {list(names)}"
        )
    if metrics is not None and not isinstance(metrics, Mapping):
        raise InputError(
            f"metrics is a {type(metrics).__name__}; expected functions by name: {{'accuracy': accuracy_score, ...}}"
        )
    check_metric_functions(metrics)
    check_responses(options.get("response_method", "auto"), metrics)
    if metrics is None:
        return
    if "accuracy" not in metrics:
        raise InputError(f"metrics has no 'accuracy', which changes are measured in; got {list(metrics)}")
    taken = [name for name in metrics if name in _OWN_COLUMNS or name.endswith((" low", " high"))]
    if taken:
        raise InputError(f"metrics holds {taken[0]!r}, which other figures are called; expected another name")
    check_sample_params(options.get("sample_params"), metrics)
    if options.get("n_boot", N_BOOT) is not None:
        _check_interval_metrics(interval_metrics, metrics)


def _check_interval_metrics(interval_metrics: Sequence[str], metrics: Mapping[str, Metric]) -> None:
    unknown = [name for name in interval_metrics if name not in metrics]
    if unknown:
        raise InputError(
            f"interval_metrics names {unknown}{did_you_mean(unknown[0], metrics)}; the metrics are {list(metrics)}"
        )


@partial(_suggesting, options=FrameOptions)
def compare_predictions(
    predictions: Predictions,
    *,
    reference: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    interval_metrics: Sequence[str] = ("accuracy",),
    progress: bool = True,
    **options: Unpack[FrameOptions],
) -> Comparison:
    """Compare networks by predictions that were made already; ``compare_models`` makes them.

    Args:
        predictions: Of the same samples by every network.
        reference: As for ``compare_models``.
        metrics: As for ``compare_models``.
        interval_metrics: As for ``compare_models``.
        progress: Show a progress bar of the bootstrap.
        options: See ``FrameOptions``.

    Returns:
        The comparison.

    Raises:
        InputError: The reference is unknown, ``accuracy`` is missing, there are no sensitive features, or another
            argument is wrong.

    Example:
        >>> import torch
        >>> batch = (torch.eye(2), torch.tensor([0, 0]), ["a", "b"])
        >>> swapped = nn.Linear(2, 2, bias=False)
        >>> _ = swapped.weight.data.copy_(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        >>> both = predict({"given": nn.Identity(), "swapped": swapped}, [batch], progress=False)
        >>> compare_predictions(both).by_group["change in accuracy"]["swapped"].to_dict()
        {'a': -1.0, 'b': 1.0}
    """
    import pandas as pd

    models = list(predictions.label)
    _check_comparison(models, reference, metrics, interval_metrics, options)
    reference = models[0] if reference is None else reference
    resampling = _resampling(options)
    every = default_metrics(predictions.n_classes) if metrics is None else dict(metrics)
    given = dict(options.get("sample_params") or {})
    check_sample_params(given, every)
    sensitive = _sensitive_frame(predictions)
    if resampling is not None:
        _check_interval_metrics(interval_metrics, every)

    def frame(name: str, chosen: Mapping[str, Metric], bootstrap: Mapping[str, Any] | None = None) -> MetricFrame:
        responses = options.get("response_method", "auto")
        if isinstance(responses, Mapping):
            responses = {metric: response for metric, response in responses.items() if metric in chosen}
        return build_frame(
            predictions,
            name,
            sensitive,
            chosen,
            response_method=responses,
            sample_params={metric: given[metric] for metric in chosen if metric in given},
            bootstrap=bootstrap,
        )

    frames = {name: frame(name, every) for name in models}
    several = list(dict.fromkeys(metric for name in models for metric in not_numbers(frames[name])))
    if "accuracy" in several:
        raise InputError("the metric 'accuracy', which changes are measured in, gives several numbers; expected one")
    by_group = {name: group_columns(predictions, frames, name, reference, sensitive, several) for name in models}
    overall = {n: overall_columns(predictions, frames[n], n, reference, sensitive, several, given) for n in models}
    if resampling is not None:
        figures = (every, interval_metrics, given, resampling)
        for name in progress_bar(models, description="bootstrap", shown=progress, unit="network"):
            slow = partial(frame, name, bootstrap=resampling.of_fairlearn)
            tables = (by_group[name], overall[name])
            add_intervals(predictions, name, reference, sensitive, *figures, slow, *tables)
    found = [*data_flags(predictions), *model_flags(predictions, reference)]
    flags = pd.DataFrame(found, columns=["model", "flag", "detail"])
    everybody = pd.DataFrame(overall).T.rename_axis("model")
    return Comparison(reference, frames, pd.concat(by_group, names=["model"]), everybody, flags)


def _resampling(options: FrameOptions) -> Resampling | None:
    n_boot, quantiles = options.get("n_boot", N_BOOT), options.get("ci_quantiles")
    if n_boot is None:
        if quantiles is not None:
            raise InputError("ci_quantiles needs n_boot=, the number of bootstrap samples; got n_boot=None")
        return None
    random_state = options.get("random_state", 0)
    seed = None if random_state is None else drawn_seed(random_state)
    return Resampling(n_boot, tuple(QUANTILES if quantiles is None else quantiles), seed, also_slow="n_boot" in options)
