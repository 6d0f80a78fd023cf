"""What each metric is given, Fairlearn's own arguments, and everyday inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import fairlearn.metrics
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from fairlearn.metrics import MetricFrame, make_derived_metric, selection_rate, true_positive_rate
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    confusion_matrix,
    d2_log_loss_score,
    f1_score,
    get_scorer,
    hinge_loss,
    log_loss,
    make_scorer,
    mean_squared_error,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
    top_k_accuracy_score,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, ChannelPlace, InputError, collect_damage, predict
from fairtrim_adapters.fairlearn import compare_models, compare_predictions, measurements, metric_frame

N, D = 90, 4
Floats = npt.NDArray[np.float64]


def _task(n_classes: int, n_outputs: int | None = None) -> tuple[nn.Module, torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(n_classes)
    x = torch.randn(N, D, generator=generator)
    y = torch.randint(0, n_classes, (N,), generator=generator)
    people = ["a" if value else "b" for value in torch.rand(N, generator=generator) > 0.4]
    model = nn.Linear(D, n_outputs or n_classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model, x, y, people


def _scores(model: nn.Module, x: torch.Tensor) -> Floats:
    with torch.no_grad():
        return model(x).double().numpy()


def _expected(metric: Callable[..., Any], y: torch.Tensor, response: npt.NDArray[Any], people: list[str]) -> Any:
    return MetricFrame(metrics=metric, y_true=y.numpy(), y_pred=response, sensitive_features=people)


def _check(found: MetricFrame, expected: MetricFrame) -> None:
    assert found.overall == pytest.approx(expected.overall, rel=1e-12)
    assert found.by_group.to_dict() == pytest.approx(expected.by_group.to_dict(), rel=1e-12)


BINARY = (roc_auc_score, average_precision_score, log_loss, brier_score_loss, hinge_loss, d2_log_loss_score)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("metric", BINARY, ids=lambda metric: metric.__name__)
def test_metrics_of_scores_get_scores_of_class_one(metric: Callable[..., Any], n_outputs: int) -> None:
    model, x, y, people = _task(2, n_outputs)
    scores = _scores(model, x)
    margin = scores[:, 0] if n_outputs == 1 else scores[:, 1] - scores[:, 0]
    response = margin if metric is hinge_loss else 1 / (1 + np.exp(-margin))
    frame = metric_frame(model, [(x, y, people)], metrics=metric, progress=False)
    _check(frame, _expected(metric, y, response, people))
    assert metric(y.numpy(), (margin > 0).astype(int)) != pytest.approx(frame.overall)  # labels would be told apart


def test_ranks_do_not_saturate() -> None:
    """Sigmoids of large margins are all 1, so that half of their pairs would count as ties."""
    margin = torch.tensor([40.0, 41.0, 42.0, 43.0, -1.0, -2.0], dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 1, 0, 0])
    frame = metric_frame(nn.Identity(), [(margin.unsqueeze(1), y, ["a"] * 6)], metrics=roc_auc_score, progress=False)
    assert frame.overall == 1.0 > roc_auc_score(y, margin.sigmoid())


MANY: dict[str, Callable[..., Any]] = {
    "ovr": partial(roc_auc_score, multi_class="ovr"),
    "ovo": partial(roc_auc_score, multi_class="ovo"),
    "average precision": average_precision_score,
    "log loss": log_loss,
    "d2": d2_log_loss_score,
    "top 2": partial(top_k_accuracy_score, k=2),
    "hinge": hinge_loss,
}


@pytest.mark.parametrize("name", MANY)
def test_more_classes(name: str) -> None:
    model, x, y, people = _task(3)
    scores = _scores(model, x)
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    response = scores if name in ("top 2", "hinge") else probability
    frame = metric_frame(model, [(x, y, people)], metrics={name: MANY[name]}, progress=False)
    expected = MetricFrame(metrics={name: MANY[name]}, y_true=y.numpy(), y_pred=response, sensitive_features=people)
    pd.testing.assert_frame_equal(frame.by_group, expected.by_group, check_names=False, rtol=1e-12)


def test_groups_without_a_class() -> None:
    """A loss of every sample is defined there; a comparison of all classes isn't, and is refused with the group."""
    model, x, y, _ = _task(3)
    people = ["without" if value < 2 and n < 60 else "with" for n, value in enumerate(y.tolist())]
    batch = [(x, y, people)]
    frame = metric_frame(model, batch, metrics={"loss": log_loss, "right": accuracy_score}, progress=False)
    expected = nn.functional.cross_entropy(model(x).double(), y, reduction="none").detach().numpy()
    assert frame.by_group["loss"]["without"] == pytest.approx(expected[np.array(people) == "without"].mean())
    for metric in (MANY["ovr"], MANY["ovo"], average_precision_score):
        with pytest.raises(
            InputError, match=r"'auc' compares all 3 classes, and the group 'without' .*nobody of class 2"
        ):
            metric_frame(model, batch, metrics={"auc": metric}, progress=False)
    with pytest.raises(InputError, match="without multi_class, and there are 3 classes"):
        metric_frame(model, batch, metrics=roc_auc_score, progress=False)


def test_groups_of_one_class_have_no_figure_of_two() -> None:
    model, x, y, people = _task(2)
    y = torch.where(torch.tensor([p == "a" for p in people]), 1, y)
    frame = metric_frame(
        model,
        [(x, y, people)],
        metrics={"hinge": hinge_loss, "d2": d2_log_loss_score, "loss": log_loss},
        progress=False,
    )
    assert frame.by_group.isna().loc["a"].to_dict() == {"hinge": True, "d2": True, "loss": False}
    assert not frame.by_group.loc["b"].isna().any()


def test_labels_are_never_replaced_by_scores() -> None:
    """In one frame, each metric has its own response."""
    model, x, y, people = _task(2)
    metrics: dict[str, Any] = {"auc": roc_auc_score, "right": accuracy_score, "chosen": selection_rate, "f1": f1_score}
    frame = metric_frame(model, [(x, y, people)], metrics=metrics, progress=False)
    labels = _scores(model, x).argmax(1)
    for name in ("right", "chosen", "f1"):
        expected = _expected(metrics[name], y, labels, people)
        assert frame.overall[name] == expected.overall
        assert frame.by_group[name].to_dict() == expected.by_group.to_dict()
    assert 0 < frame.overall["auc"] < 1
    for given in ("predict_proba", {"right": "decision_function"}, {"chosen": "predict_proba"}):
        with pytest.raises(InputError, match="which is one of labels; expected 'predict' or 'auto'"):
            metric_frame(model, [(x, y, people)], metrics=metrics, response_method=given, progress=False)  # type: ignore[arg-type]


def test_scorers_partials_and_complements() -> None:
    model, x, y, people = _task(2)
    batch, scores, y = [(x, y, people)], _scores(model, x), y.numpy()
    probability = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
    metrics: dict[str, Any] = {
        "neg_log_loss": get_scorer("neg_log_loss"),
        "roc_auc": get_scorer("roc_auc"),
        "made": make_scorer(brier_score_loss, response_method="predict_proba", greater_is_better=False),
        "forgotten": make_scorer(roc_auc_score),
        "accuracy": get_scorer("accuracy"),
        "of class 0": partial(average_precision_score, pos_label=0),
        "weighted": partial(log_loss, normalize=False),
    }
    found = metric_frame(model, batch, metrics=metrics, progress=False).overall
    expected = {
        "neg_log_loss": -log_loss(y, probability),
        "roc_auc": roc_auc_score(y, probability),
        "made": -brier_score_loss(y, probability),
        "forgotten": roc_auc_score(y, probability),
        "accuracy": accuracy_score(y, probability > 0.5),
        "of class 0": average_precision_score(y, 1 - probability, pos_label=0),
        "weighted": log_loss(y, probability, normalize=False),
    }
    assert found.to_dict() == pytest.approx(expected, rel=1e-12)


def test_responses_that_are_asked_for() -> None:
    model, x, y, people = _task(2)
    batch, scores = [(x, y, people)], _scores(model, x)
    margin = scores[:, 1] - scores[:, 0]
    probability = 1 / (1 + np.exp(-margin))

    def calibration(y_true: Floats, y_prob: Floats) -> float:
        return float(np.mean(y_prob - y_true))

    def spread(y_true: Floats, y_score: Floats) -> float:
        return float(np.ptp(y_score))

    metrics: dict[str, Any] = {"error": mean_squared_error, "gap": calibration, "spread": spread, "auc": roc_auc_score}
    responses: Any = {"error": "predict_proba", "spread": "decision_function", "auc": "predict"}
    found = metric_frame(model, batch, metrics=metrics, response_method=responses, progress=False).overall
    assert found["error"] == pytest.approx(np.mean((probability - y.numpy()) ** 2), rel=1e-12)
    assert found["gap"] == pytest.approx(np.mean(probability - y.numpy()), rel=1e-12)
    assert found["spread"] == pytest.approx(np.ptp(margin), rel=1e-12)
    assert found["auc"] == roc_auc_score(y, margin > 0)
    with pytest.raises(InputError, match="'spread' takes 'y_score', scores of a kind that it doesn't tell"):
        metric_frame(model, batch, metrics=spread, progress=False)
    for given, message in (
        ("predict_prob", r"did you mean 'predict_proba'"),
        ({"eror": "predict"}, r"names 'eror' \(did you mean 'error'\?\)"),
        ({"error": 3}, "response_method=3"),
    ):
        with pytest.raises(InputError, match=message):
            metric_frame(model, batch, metrics=metrics, response_method=given, progress=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="the default metrics are rates of labels"):
        metric_frame(model, batch, response_method="predict_proba", progress=False)


def test_derived_metrics() -> None:
    """They compare groups themselves; inside a frame that needs their own features."""
    model, x, y, people = _task(2)
    batch, scores = [(x, y, people)], _scores(model, x)
    margin = scores[:, 1] - scores[:, 0]
    worst = make_derived_metric(metric=roc_auc_score, transform="group_min")
    for metric in (worst, fairlearn.metrics.roc_auc_score_group_min, partial(worst)):
        with pytest.raises(
            InputError, match=r"is derived from roc_auc_score and compares groups itself.*group_min\(\)"
        ):
            metric_frame(model, batch, metrics={"worst": metric}, progress=False)
        params = {"worst": {"sensitive_features": people}}
        found = metric_frame(model, batch, metrics={"worst": metric}, sample_params=params, progress=False)
        assert found.overall["worst"] == pytest.approx(worst(y.numpy(), margin, sensitive_features=people), rel=1e-12)


def test_curves_and_matrices() -> None:
    model, x, y, people = _task(2)
    batch, labels = [(x, y, people)], _scores(model, x).argmax(1)
    for curve in (roc_curve, precision_recall_curve):
        found = metric_frame(model, batch, metrics=curve, progress=False).overall
        assert len(found) == 3 and len(found[2]) > 10 and float(found[2][1:].max()) <= 1
    metrics: dict[str, Any] = {"accuracy": accuracy_score, "cells": confusion_matrix, "auc": roc_auc_score}
    comparison = compare_models({"dense": model, "other": _task(2, 1)[0]}, batch, metrics=metrics, progress=False)
    np.testing.assert_array_equal(comparison.frames["dense"].overall["cells"], confusion_matrix(y, labels))
    assert "cells" not in comparison.by_group and "cells" not in comparison.overall
    assert comparison.overall["auc"]["dense"] == comparison.frames["dense"].overall["auc"]
    assert "(cells: several numbers a group, in frames)" in str(comparison)
    with pytest.raises(InputError, match=r"\['cells'\] give several numbers"):
        metric_frame(model, batch, metrics=metrics, n_boot=2, progress=False)
    with pytest.raises(InputError, match=r"\['cells'\] give several numbers"):
        compare_models({"m": model}, batch, metrics=metrics, n_boot=2, interval_metrics=["cells"], progress=False)
    with pytest.raises(InputError, match="'accuracy', which changes are measured in, gives several numbers"):
        compare_models({"m": model}, batch, metrics={"accuracy": confusion_matrix}, progress=False)
    predictions = predict({"dense": model}, batch, progress=False)
    with pytest.raises(InputError, match=r"\['cells'\] give several numbers"):
        measurements(predictions, "dense", "dense", n_boot=None, metrics={"cells": confusion_matrix})


def test_intervals_of_scores_and_measurements() -> None:
    model, x, y, people = _task(2)
    other = _task(2, 1)[0]
    metrics: dict[str, Any] = {"accuracy": accuracy_score, "auc": roc_auc_score}
    arguments: dict[str, Any] = {"n_boot": 8, "random_state": 0, "progress": False}
    comparison = compare_models(
        {"dense": model, "other": other}, [(x, y, people)], metrics=metrics, interval_metrics=["auc"], **arguments
    )
    scores = _scores(model, x)
    expected = MetricFrame(
        metrics={"auc": roc_auc_score},
        y_true=y.numpy(),
        y_pred=scores[:, 1] - scores[:, 0],
        sensitive_features=people,
        n_boot=8,
        ci_quantiles=[0.025, 0.5, 0.975],
        random_state=0,
    )
    assert comparison.by_group["auc low"]["dense"].to_dict() == pytest.approx(expected.by_group_ci[0]["auc"].to_dict())
    both = predict({"dense": model, "other": other}, [(x, y, people)], progress=False)
    row = measurements(both, "other", "dense", n_boot=None, metrics={"auc": roc_auc_score})
    assert row["auc"] == pytest.approx(roc_auc_score(y, _scores(other, x)[:, 0]))
    assert row["auc[a]"] == comparison.by_group["auc"]["other", "a"]
    labels_only = replace(both, scores={})
    with pytest.raises(InputError, match="hold labels only, and the metric 'auc' needs scores"):
        compare_predictions(labels_only, metrics=metrics)
    with pytest.raises(InputError, match="hold labels only, and the metric 'auc' needs scores"):
        measurements(labels_only, "other", "dense", n_boot=None, metrics={"auc": roc_auc_score})


def test_sample_params() -> None:
    model, x, y, people = _task(2)
    labels = _scores(model, x).argmax(1)
    weight = np.linspace(0.1, 2, N)
    loader = DataLoader(TensorDataset(x, y, torch.tensor([ord(p) for p in people])), batch_size=7)
    for given in (weight, torch.from_numpy(weight), pd.Series(weight, index=range(N, 0, -1)), list(weight)):
        frame = metric_frame(
            model, loader, metrics=selection_rate, sample_params={"sample_weight": given}, progress=False
        )
        assert frame.overall == pytest.approx(np.average(labels, weights=weight))
    params = {"rate": {"sample_weight": weight}, "loss": {"sample_weight": weight}}
    frame = metric_frame(
        model, loader, metrics={"rate": selection_rate, "loss": log_loss}, sample_params=params, progress=False
    )
    assert frame.overall["rate"] == pytest.approx(np.average(labels, weights=weight))
    cross_entropy = nn.functional.cross_entropy(model(x).double(), y, reduction="none").detach().numpy()
    assert frame.overall["loss"] == pytest.approx(np.average(cross_entropy, weights=weight))
    shuffled = DataLoader(loader.dataset, batch_size=7, shuffle=True)
    for given, data, message in (
        ({"sample_weight": weight[1:]}, loader, r"'sample_weight' of shape \(89,\) for 90 predictions"),
        ({"sample_weight": weight}, shuffled, r"loader shuffles \(RandomSampler\).*row of sample_params"),
        (weight, loader, "sample_params is a ndarray; expected a dict"),
    ):
        with pytest.raises(InputError, match=message):
            metric_frame(model, data, metrics=selection_rate, sample_params=given, progress=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sample_params names 'sample_weight'; expected arguments for each metric"):
        metric_frame(model, loader, sample_params={"sample_weight": weight}, progress=False)
    with pytest.raises(InputError, match=r"names 'acuracy' \(did you mean 'accuracy'\?\)"):
        compare_models({"m": model}, loader, sample_params={"acuracy": {}}, progress=False)
    with pytest.raises(InputError, match=r"sample_params\['accuracy'\] is a list; expected a dict"):
        compare_models({"m": model}, loader, sample_params={"accuracy": [1]}, progress=False)


def test_weighted_comparison() -> None:
    """The gaps are weighted as the rates that they compare, or refused."""
    model, x, y, people = _task(2)
    labels, weight = _scores(model, x).argmax(1), {"sample_weight": np.linspace(0.1, 2, N)}
    rates = ("selection rate", "true positive rate", "false positive rate")
    params = dict.fromkeys(("accuracy", *rates), weight)
    comparison = compare_models({"m": model}, [(x, y, people)], sample_params=params, progress=False)
    arguments: dict[str, Any] = {"y_true": y.numpy(), "y_pred": labels, "sensitive_features": people, **weight}
    row = comparison.overall.loc["m"]
    assert row["equalized odds difference"] == pytest.approx(fairlearn.metrics.equalized_odds_difference(**arguments))
    assert row["demographic parity difference"] == pytest.approx(
        fairlearn.metrics.demographic_parity_difference(**arguments)
    )
    assert row["accuracy"] == pytest.approx(accuracy_score(y.numpy(), labels, **weight))
    with pytest.raises(InputError, match="weighs some of the rates"):
        compare_models({"m": model}, [(x, y, people)], sample_params={"true positive rate": weight}, progress=False)


def test_control_features() -> None:
    model, x, y, people = _task(2)
    labels = _scores(model, x).argmax(1)
    age = ["old" if n % 3 else "young" for n in range(N)]
    expected = MetricFrame(
        metrics=accuracy_score, y_true=y.numpy(), y_pred=labels, sensitive_features=people, control_features=age
    )
    for control in (
        age,
        np.array(age),
        pd.Series(age, index=range(N, 0, -1)),
        {"age": age},
        pd.DataFrame({"age": age}),
    ):
        frame = metric_frame(model, [(x, y, people)], metrics=accuracy_score, control_features=control, progress=False)
        assert frame.by_group.to_dict() == expected.by_group.to_dict()
        assert frame.overall.to_dict() == expected.overall.to_dict()
    both = [(x, y, {"team": people, "age": age})]
    shuffled = DataLoader(
        TensorDataset(x, y, torch.tensor([[ord(p), n % 3 > 0] for n, p in enumerate(people)])),
        batch_size=7,
        shuffle=True,
    )
    names: Any = {"team": {97: "a", 98: "b"}, "age": ["young", "old"]}
    for data, control in ((both, "age"), (both, ["age"]), (shuffled, ["age"]), (shuffled, "age")):
        frame = metric_frame(
            model,
            data,
            metrics=accuracy_score,
            control_features=control,
            sensitive_names=names if data is shuffled else None,
            progress=False,
        )
        assert frame.control_levels == ["age"] and frame.sensitive_levels == ["team"]
        assert frame.by_group.to_dict() == expected.by_group.to_dict()
    for data, control, message in (
        (both, "agge", r"names 'agge' \(did you mean 'age'\?\)"),
        (both, ["team", "age"], "names all sensitive features"),
        (both, age[1:], "control_features has 89 rows for 90 predictions"),
        (shuffled, age, "loader shuffles"),
    ):
        with pytest.raises(InputError, match=message):
            metric_frame(model, data, metrics=accuracy_score, control_features=control, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [metric_frame, compare_models, compare_predictions])
def test_arguments_are_named(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert all(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    open_ended = [entry.annotation for entry in parameters if entry.kind is inspect.Parameter.VAR_KEYWORD]
    assert all("Unpack[" in annotation for annotation in open_ended)  # typed, so that editors complete them
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'metrcs' \(did you mean 'metrics'\?\)"):
        function(metrcs=None)


def test_pandas_targets_are_read_in_their_order() -> None:
    """torch reads a series by its labels: rows 0, 3, 5 … fail, and a permutation is silently another target."""
    model, x, y, people = _task(2)
    expected = metric_frame(model, [(x, y, people)], metrics=accuracy_score, progress=False).by_group.to_dict()
    for index in (range(N - 1, -1, -1), range(0, 3 * N, 3), [f"row {n}" for n in range(N)]):
        for dtype in ("int64", "Int64", "object", "float64", "category", "int8"):
            target = pd.Series(y.numpy(), index=index).astype(dtype)
            for form in (target, target.to_frame()):
                frame = metric_frame(
                    model, [(x, form, pd.Series(people, index=index))], metrics=accuracy_score, progress=False
                )
                assert frame.by_group.to_dict() == expected
    booleans = y.bool()
    for form in (booleans, booleans.numpy(), y.unsqueeze(1), pd.Series(booleans.numpy(), dtype="boolean")):
        frame = metric_frame(model, [(x, form, people)], metrics=accuracy_score, progress=False)
        assert frame.by_group.to_dict() == expected
    words = ["no" if label else "yes" for label in y]
    for form in (words, np.array(words), np.array(words, dtype=object), pd.Series(words)):
        with pytest.raises(InputError, match=r"expected integer labels.*number classes that have names"):
            metric_frame(model, [(x, form, people)], progress=False)


def test_arrays_and_data_frames_as_inputs() -> None:
    model, x, y, people = _task(2)
    expected = compare_models({"m": model}, [(x, y, people)], progress=False).by_group
    array = x.numpy()
    fixed = array.copy()
    fixed.flags.writeable = False
    for inputs in (
        array,
        fixed,
        array.astype(np.float64),
        array[::-1][::-1],
        pd.DataFrame(array, index=range(N, 0, -1)),
    ):
        found = compare_models({"m": model}, [(inputs, y.numpy(), np.array(people))], progress=False).by_group
        pd.testing.assert_frame_equal(found, expected)
    dicts = [{"input": array, "labels": y.numpy(), "sensitive": people}]
    pd.testing.assert_frame_equal(compare_models({"m": model}, dicts, progress=False).by_group, expected)

    def called(network: nn.Module, inputs: Any) -> torch.Tensor:
        assert isinstance(inputs, np.ndarray)  # the caller's own function gets what the loader gives
        return network(torch.from_numpy(inputs))

    found = compare_models({"m": model}, [(array, y, people)], forward_fn=called, progress=False).by_group
    pd.testing.assert_frame_equal(found, expected)
    hidden = [ChannelGroup("x", D, (ChannelPlace("0", "input", range(D), range(D), channel_axis=-1),))]
    network = nn.Sequential(model)
    tables = [collect_damage(network, [(inputs, y, people)], hidden, progress=False) for inputs in (x, array)]
    assert torch.equal(tables[0].damage, tables[1].damage)


def test_inputs_of_another_type_are_refused_in_words() -> None:
    model, x, y, people = _task(2)
    with pytest.raises(
        InputError, match=r"inputs are float64 and the network is float32.*inputs\.to\(torch\.float32\)"
    ):
        metric_frame(model, [(x.double(), y, people)], progress=False)
    frame = metric_frame(model.double(), [(x.double(), y, people)], progress=False)
    assert frame.overall["people"] == N

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(D, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer((x - 1e9).float())  # float32 would lose everything before

    network, late = Casting(), x.double() + 1e9
    scores = predict(network, [(late, y)], progress=False).scores["model"]
    np.testing.assert_array_equal(scores, _scores(network.layer, (late - 1e9).float()))


class _Skorch:
    """What a skorch network has before it is fitted."""

    module = nn.Linear

    def initialize(self) -> None: ...


def test_what_is_no_network() -> None:
    model, x, y, people = _task(2)
    fitted = _Skorch()
    fitted.module_ = model  # type: ignore[attr-defined]
    holder = type("Pipeline", (), {"model": model})()
    for given, remedy in ((_Skorch(), "pass its .module_"), (fitted, "pass its .module_"), (holder, "pass its .model")):
        for call in (
            lambda given=given: metric_frame(given, [(x, y, people)], progress=False),
            lambda given=given: compare_models({"model": given}, [(x, y, people)], progress=False),
        ):
            with pytest.raises(InputError, match=f"network 'model' is a .*; expected a torch.nn.Module.*{remedy}"):
                call()
    with pytest.raises(InputError, match="is a NoneType; expected a torch"):
        metric_frame(None, [(x, y, people)], progress=False)  # type: ignore[arg-type]


def test_metrics_in_another_form() -> None:
    model, x, y, people = _task(2)
    batch = [(x, y, people)]
    for metrics, message in (
        ([accuracy_score], r"metrics is a list; expected functions by name"),
        ("accuracy", "metrics is a str"),
        ({}, "metrics is empty"),
        ({"auc": "roc_auc"}, r"sklearn\.metrics\.get_scorer\('roc_auc'\)"),
        ({3: accuracy_score}, "expected a name and a function"),
    ):
        with pytest.raises(InputError, match=message):
            metric_frame(model, batch, metrics=metrics, progress=False)  # type: ignore[arg-type]
    for metrics, message in (
        (accuracy_score, "metrics is a function; expected functions by name"),
        ([accuracy_score], "metrics is a list"),
        ({"accuracy": accuracy_score, "excess change": accuracy_score}, "other figures are called"),
        ({"accuracy": accuracy_score, "accuracy low": accuracy_score}, "other figures are called"),
        ({"acc": accuracy_score}, "no 'accuracy'"),
    ):
        with pytest.raises(InputError, match=message):
            compare_models({"m": model}, batch, metrics=metrics, progress=False)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"reference='dens' \(did you mean 'dense'\?\)"):
        compare_models({"dense": model}, batch, reference="dens", progress=False)
    own: dict[str, Any] = {"accuracy": accuracy_score, "true": true_positive_rate}
    with pytest.raises(InputError, match=r"interval_metrics names \['tru'\] \(did you mean 'true'\?\)"):
        compare_models({"m": model}, batch, metrics=own, n_boot=2, interval_metrics=["tru"], progress=False)


def test_people_in_some_batches_only() -> None:
    model, x, y, people = _task(2)
    first, second = (x[:50], y[:50], people[:50]), (x[50:], y[50:])
    with pytest.raises(InputError, match="a batch has no sensitive features, although earlier ones had"):
        predict(model, [first, second], progress=False)
    with pytest.raises(InputError, match="the sensitive features changed from"):
        predict(model, [second, first], progress=False)
    codes = torch.tensor([1.0 if p == "a" else 0.0 for p in people])
    mixed = [(x[:50], y[:50], codes[:50]), (x[50:], y[50:], codes[50:].int().tolist())]
    comparison = compare_models({"m": model}, mixed, progress=False)
    assert comparison.by_group["people"].droplevel(0).to_dict() == {"0": people.count("b"), "1": people.count("a")}
    with pytest.raises(InputError, match=r"names 'sx', which the loader does not give|did you mean 'sex'"):
        compare_models({"m": model}, [(x, y, {"sex": people})], sensitive_names=["sxe"], progress=False)


def test_names_that_fairlearn_uses_or_misses() -> None:
    model, x, y, people = _task(2)
    with pytest.raises(InputError, match="a sensitive feature is named 'y_pred', under which MetricFrame keeps labels"):
        metric_frame(model, [(x, y, people)], sensitive_names=["y_pred"], progress=False)
    wrong = partial(accuracy_score, normalize=False)  # has no name of its own, of which Fairlearn warns
    assert metric_frame(model, [(x, y, people)], metrics=wrong, progress=False).by_group.name == "accuracy_score"
