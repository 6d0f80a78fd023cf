"""What each metric is given: labels, probabilities or margins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import fairlearn.metrics
import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import MetricFrame, make_derived_metric, selection_rate
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

from fairtrim import InputError, predict
from fairtrim_adapters.fairlearn import compare_models, compare_predictions, measurements, metric_frame
from tests.fairlearn_cases import (
    Floats,
    check_frames,
    expected_frame,
    scores_of,
    task,
)

BINARY = (roc_auc_score, average_precision_score, log_loss, brier_score_loss, hinge_loss, d2_log_loss_score)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("metric", BINARY, ids=lambda metric: metric.__name__)
def test_metrics_of_scores_get_scores_of_class_one(metric: Callable[..., Any], n_outputs: int) -> None:
    model, x, y, people = task(2, n_outputs)
    scores = scores_of(model, x)
    margin = scores[:, 0] if n_outputs == 1 else scores[:, 1] - scores[:, 0]
    response = margin if metric is hinge_loss else 1 / (1 + np.exp(-margin))
    frame = metric_frame(model, [(x, y, people)], metrics=metric, progress=False)
    check_frames(frame, expected_frame(metric, y, response, people))
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
    model, x, y, people = task(3)
    scores = scores_of(model, x)
    probability = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    response = scores if name in ("top 2", "hinge") else probability
    frame = metric_frame(model, [(x, y, people)], metrics={name: MANY[name]}, progress=False)
    expected = MetricFrame(metrics={name: MANY[name]}, y_true=y.numpy(), y_pred=response, sensitive_features=people)
    pd.testing.assert_frame_equal(frame.by_group, expected.by_group, check_names=False, rtol=1e-12)


def test_groups_without_a_class() -> None:
    """A loss of every sample is defined there; a comparison of all classes isn't, and is refused with the group."""
    model, x, y, _ = task(3)
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
    model, x, y, people = task(2)
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
    model, x, y, people = task(2)
    metrics: dict[str, Any] = {"auc": roc_auc_score, "right": accuracy_score, "chosen": selection_rate, "f1": f1_score}
    frame = metric_frame(model, [(x, y, people)], metrics=metrics, progress=False)
    labels = scores_of(model, x).argmax(1)
    for name in ("right", "chosen", "f1"):
        expected = expected_frame(metrics[name], y, labels, people)
        assert frame.overall[name] == expected.overall
        assert frame.by_group[name].to_dict() == expected.by_group.to_dict()
    assert 0 < frame.overall["auc"] < 1
    for given in ("predict_proba", {"right": "decision_function"}, {"chosen": "predict_proba"}):
        with pytest.raises(InputError, match="which is one of labels; expected 'predict' or 'auto'"):
            metric_frame(model, [(x, y, people)], metrics=metrics, response_method=given, progress=False)  # type: ignore[arg-type]


def test_scorers_partials_and_complements() -> None:
    model, x, y, people = task(2)
    batch, scores, y = [(x, y, people)], scores_of(model, x), y.numpy()
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
    model, x, y, people = task(2)
    batch, scores = [(x, y, people)], scores_of(model, x)
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
    model, x, y, people = task(2)
    batch, scores = [(x, y, people)], scores_of(model, x)
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
    model, x, y, people = task(2)
    batch, labels = [(x, y, people)], scores_of(model, x).argmax(1)
    for curve in (roc_curve, precision_recall_curve):
        found = metric_frame(model, batch, metrics=curve, progress=False).overall
        assert len(found) == 3 and len(found[2]) > 10 and float(found[2][1:].max()) <= 1
    metrics: dict[str, Any] = {"accuracy": accuracy_score, "cells": confusion_matrix, "auc": roc_auc_score}
    comparison = compare_models({"dense": model, "other": task(2, 1)[0]}, batch, metrics=metrics, progress=False)
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
    model, x, y, people = task(2)
    other = task(2, 1)[0]
    metrics: dict[str, Any] = {"accuracy": accuracy_score, "auc": roc_auc_score}
    arguments: dict[str, Any] = {"n_boot": 8, "random_state": 0, "progress": False}
    comparison = compare_models(
        {"dense": model, "other": other}, [(x, y, people)], metrics=metrics, interval_metrics=["auc"], **arguments
    )
    scores = scores_of(model, x)
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
    assert row["auc"] == pytest.approx(roc_auc_score(y, scores_of(other, x)[:, 0]))
    assert row["auc[a]"] == comparison.by_group["auc"]["other", "a"]
    labels_only = replace(both, scores={})
    with pytest.raises(InputError, match="hold labels only, and the metric 'auc' needs scores"):
        compare_predictions(labels_only, metrics=metrics)
    with pytest.raises(InputError, match="hold labels only, and the metric 'auc' needs scores"):
        measurements(labels_only, "other", "dense", n_boot=None, metrics={"auc": roc_auc_score})
