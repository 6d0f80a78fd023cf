"""MetricFrames of predictions: Fairlearn's own arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import fairlearn.metrics
import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import MetricFrame, selection_rate
from sklearn.metrics import (
    accuracy_score,
    log_loss,
    recall_score,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError
from fairtrim_adapters.fairlearn import compare_models, metric_frame
from tests.fairlearn_cases import (
    N,
    drawn_data,
    linear,
    scores_of,
    task,
)


def test_more_than_two_classes_are_reported_one_against_the_rest() -> None:
    x, y, codes = drawn_data(4)
    model = linear(4)
    frame = metric_frame(model, [(x, y, codes[:, 1])], progress=False)
    y, labels = y.numpy(), model(x).argmax(1).numpy()
    for label in range(4):
        assert frame.overall[f"true positive rate of {label}"] == pytest.approx(
            recall_score(y, labels, labels=[label], average="macro")
        )
        assert frame.overall[f"selection rate of {label}"] == pytest.approx((labels == label).mean())


def test_sample_params() -> None:
    model, x, y, people = task(2)
    labels = scores_of(model, x).argmax(1)
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
    model, x, y, people = task(2)
    labels, weight = scores_of(model, x).argmax(1), {"sample_weight": np.linspace(0.1, 2, N)}
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
    model, x, y, people = task(2)
    labels = scores_of(model, x).argmax(1)
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


def test_names_that_fairlearn_uses_or_misses() -> None:
    model, x, y, people = task(2)
    with pytest.raises(InputError, match="a sensitive feature is named 'y_pred', under which MetricFrame keeps labels"):
        metric_frame(model, [(x, y, people)], sensitive_names=["y_pred"], progress=False)
    wrong = partial(accuracy_score, normalize=False)  # has no name of its own, of which Fairlearn warns
    assert metric_frame(model, [(x, y, people)], metrics=wrong, progress=False).by_group.name == "accuracy_score"
