"""The Fairlearn adapter, with Fairlearn itself as the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
    selection_rate,
    true_positive_rate,
)
from sklearn.metrics import accuracy_score, recall_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import InputError, predict
from fairtrim_adapters.fairlearn import compare_models, default_metrics, measurements, metric_frame, plot_comparison

SEX, RACE = ["Female", "Male"], ["Black", "Other", "White"]
NAMES = {"sex": SEX, "race": RACE}


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(x), 2)


def _data(n_classes: int = 2, n_samples: int = 57) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(n_samples, 5, generator=generator)
    y = torch.randint(0, n_classes, (n_samples,), generator=generator)
    codes = torch.stack([torch.randint(0, k, (n_samples,), generator=generator) for k in (2, 3)], 1)
    return x, y, codes


def _network(n_classes: int = 2, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(5, n_classes)


def _named(codes: torch.Tensor) -> pd.DataFrame:
    return pd.DataFrame({"sex": [SEX[c] for c in codes[:, 0]], "race": [RACE[c] for c in codes[:, 1]]})


def test_metric_frame_equals_fairlearn() -> None:
    x, y, codes = _data()
    model = _network()
    frame = metric_frame(
        model, DataLoader(TensorDataset(x, y, codes), batch_size=8), sensitive_names=NAMES, progress=False
    )
    labels = model(x).argmax(1).numpy()
    reference = MetricFrame(
        metrics=default_metrics(2), y_true=y.numpy(), y_pred=labels, sensitive_features=_named(codes)
    )
    pd.testing.assert_frame_equal(frame.by_group, reference.by_group, check_index_type=False)
    pd.testing.assert_series_equal(frame.overall, reference.overall)
    assert frame.sensitive_levels == ["sex", "race"]


def test_one_metric_and_intervals() -> None:
    x, y, codes = _data()
    batch = [(x, y, codes[:, 0])]
    frame = metric_frame(_network(), batch, metrics=accuracy_score, n_boot=5, random_state=3, progress=False)
    assert len(frame.by_group_ci) == 3
    assert frame.overall_ci[0] <= frame.overall_ci[2]
    again = metric_frame(
        _network(), batch, metrics=accuracy_score, n_boot=5, ci_quantiles=[0.1, 0.9], random_state=3, progress=False
    )
    assert len(again.by_group_ci) == 2


def test_more_than_two_classes_are_reported_one_against_the_rest() -> None:
    x, y, codes = _data(4)
    model = _network(4)
    frame = metric_frame(model, [(x, y, codes[:, 1])], progress=False)
    y, labels = y.numpy(), model(x).argmax(1).numpy()
    for label in range(4):
        assert frame.overall[f"true positive rate of {label}"] == pytest.approx(
            recall_score(y, labels, labels=[label], average="macro")
        )
        assert frame.overall[f"selection rate of {label}"] == pytest.approx((labels == label).mean())
    assert (
        "equalized odds difference" not in compare_models({"m": model}, [(x, y, codes[:, 1])], progress=False).overall
    )


def test_single_logit() -> None:
    x, y, codes = _data()
    two = _network()
    one = nn.Linear(5, 1)
    with torch.no_grad():
        one.weight.copy_(two.weight[1:] - two.weight[:1])
        one.bias.copy_(two.bias[1:] - two.bias[:1])
    batch = [(x, y.float(), codes[:, 0])]
    left, right = (metric_frame(model, batch, progress=False) for model in (one, two))
    pd.testing.assert_frame_equal(left.by_group, right.by_group)


def test_comparison_columns() -> None:
    x, y, codes = _data()
    models = {"dense": _network(), "pruned": _network(seed=1)}
    # a shuffling loader: rows of both networks must still belong together
    loader = DataLoader(TensorDataset(x, y, codes), batch_size=8, shuffle=True)
    comparison = compare_models(models, loader, sensitive_names=NAMES, n_boot=4, random_state=0, progress=False)
    named = _named(codes)
    labels = {name: model(x).argmax(1).numpy() for name, model in models.items()}
    for name in models:
        arguments = {"y_true": y.numpy(), "y_pred": labels[name], "sensitive_features": named}
        row = comparison.overall.loc[name]
        assert row["equalized odds difference"] == pytest.approx(equalized_odds_difference(**arguments))
        assert row["demographic parity difference"] == pytest.approx(demographic_parity_difference(**arguments))
        assert row["changed predictions"] == pytest.approx(np.mean(labels[name] != labels["dense"]))
    right = {name: labels[name] == y.numpy() for name in models}
    for group, rows in named.groupby(["sex", "race"]).groups.items():
        cell = comparison.by_group.loc[("pruned", *group)]
        change = right["pruned"][rows].mean() - right["dense"][rows].mean()
        overall = right["pruned"].mean() - right["dense"].mean()
        assert cell["accuracy"] == pytest.approx(right["pruned"][rows].mean())
        assert cell["change in accuracy"] == pytest.approx(change)
        assert cell["excess change"] == pytest.approx(change - overall)
        assert cell["changed predictions"] == pytest.approx(np.mean(labels["pruned"][rows] != labels["dense"][rows]))
        assert cell["accuracy low"] <= cell["accuracy high"]
    assert "Everybody (changes against 'dense')" in str(comparison)


def test_flags() -> None:
    x = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3 + [[1.0, 0.0]] * 2 + [[0.0, 1.0]] * 4)
    y = torch.tensor([0, 0, 0, 1, 1, 1, 0, 1, 1, 1, 1, 1])
    team = ["a"] * 6 + ["b"] * 6

    class Flipped(nn.Module):
        """Wrong for everybody alike."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -x

    models = {"dense": nn.Identity(), "constant": Constant(), "flipped": Flipped()}
    comparison = compare_models(models, [(x, y, team)], sensitive_names=["team"], progress=False)
    found = set(zip(comparison.flags["model"], comparison.flags["flag"], strict=True))
    assert ("constant", "constant classifier") in found
    assert ("dense", "constant classifier") not in found
    gap = comparison.overall["equalized odds difference"]
    assert gap["flipped"] == pytest.approx(gap["dense"])  # mirrored: no gap fell
    assert ("flipped", "levelling down") not in found
    assert "empty cell" not in comparison.flags["flag"].tolist()


def _linear(weight: list[list[float]]) -> nn.Module:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer


@pytest.mark.parametrize(("times", "flagged"), [(1, False), (10, True)])
def test_levelling_down_and_empty_cells(times: int, flagged: bool) -> None:
    """Every group loses, the better one more: the gap falls; of few people that is within the error."""
    x = torch.zeros(20, 2)
    y = torch.tensor([0] * 10 + [1] * 2 + [0] * 8)
    x[:, 0] = 1.0
    x[2:6, 1] = 1.0  # a loses four
    x[12:14, 1] = 1.0  # b, of whom two are wrong already, loses two
    batch = (x.repeat(times, 1), y.repeat(times), (["a"] * 10 + ["b"] * 10) * times)
    models = {"dense": _linear([[1.0, 0.0], [0.0, 0.0]]), "worse": _linear([[1.0, 0.0], [0.0, 2.0]])}
    comparison = compare_models(models, [batch], progress=False)
    flags = comparison.flags
    levelling = flags[flags["flag"] == "levelling down"]
    assert levelling["model"].tolist() == (["worse"] if flagged else [])
    if flagged:
        assert "accuracy difference" in levelling["detail"].iloc[0]
        assert "0.200 to 0.400" in levelling["detail"].iloc[0]
    row = measurements(predict(models, [batch], progress=False), "worse", "dense")
    assert ("levelling down" in row["flags"]) is flagged
    assert flags[flags["flag"] == "empty cell"]["detail"].tolist() == [
        "a: nobody of class 1, so rates of that class are undefined"
    ]


def test_plot_takes_and_returns_axes() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    x, y, codes = _data()
    models = {"dense": _network(), "pruned": _network(seed=1), "constant": Constant()}
    comparison = compare_models(models, [(x, y, codes[:, 0])], n_boot=3, random_state=0, progress=False)
    figure, ax = pyplot.subplots()
    assert plot_comparison(comparison, ax=ax) is ax
    assert [label.get_text() for label in ax.get_xticklabels()] == ["dense", "pruned", "constant\n(constant)"]
    dots = {line.get_label().split(" (")[0]: line.get_ydata() for line in ax.get_lines() if line.get_marker() == "o"}
    for group in ("0", "1"):
        expected = [comparison.by_group.loc[(name, group), "accuracy"] for name in models]
        np.testing.assert_allclose(dots[group], expected)
    pyplot.close(figure)
    crossed = compare_models(models, [(x, y, codes)], progress=False)
    new = plot_comparison(crossed, metric="selection rate")
    assert new.get_ylabel() == "selection rate" and len(new.get_legend().get_texts()) == 7
    pyplot.close(new.figure)
    with pytest.raises(InputError, match="metric='auc' is not in the comparison"):
        plot_comparison(comparison, metric="auc")


def test_own_metrics() -> None:
    x, y, codes = _data()
    metrics: dict[str, Any] = {"accuracy": accuracy_score, "chosen": selection_rate, "found": true_positive_rate}
    comparison = compare_models(
        {"a": _network()},
        [(x, y, codes[:, 0])],
        metrics=metrics,
        n_boot=3,
        interval_metrics=["found"],
        random_state=0,
        progress=False,
    )
    assert {"chosen", "found low", "found high"} <= set(comparison.by_group)


def test_predictions_are_float64_and_in_eval_mode() -> None:
    x, y, _ = _data()
    model = nn.Sequential(nn.Dropout(0.9), _network()).train()
    predictions = predict(model, [(x, y)], progress=False)
    assert predictions.scores["model"].dtype == np.float64
    np.testing.assert_allclose(predictions.scores["model"], model[1](x).detach().double().numpy())
    assert model.training and predictions.sensitive == {}


def test_wrong_arguments() -> None:
    x, y, codes = _data()
    model, batch = _network(), [(x, y, codes[:, 0])]
    for call, message in (
        (lambda: metric_frame(model, [(x, y)], progress=False), "inputs, target, sensitive"),
        (lambda: metric_frame(model, [], progress=False), "no sample"),
        (lambda: compare_models({}, batch), "expected networks by name"),
        (lambda: compare_models([model], batch), "models is list; expected networks by name"),
        (lambda: compare_models({"a": model}, batch, n_boot=0), "expected at least 1 bootstrap sample"),
        (lambda: metric_frame(model, batch, ci_quantiles=[0.5], progress=False), "needs n_boot="),
        (lambda: metric_frame(model, [(x, y[:3], codes[:3, 0])], progress=False), "inputs and 3 targets"),
        (lambda: metric_frame(model, None, progress=False), "the loader is a NoneType"),
        (lambda: compare_models({"a": model}, batch, reference="b"), "reference='b'"),
        (lambda: compare_models({"a": model}, batch, metrics={"x": accuracy_score}), "no 'accuracy'"),
        (
            lambda: compare_models({"a": model}, batch, n_boot=2, interval_metrics=["x"], progress=False),
            r"interval_metrics names \['x'\]",
        ),
        (lambda: predict({}, batch), "no networks"),
        (lambda: predict(model, [(x, y + 0.5)], progress=False), "holds fractions"),
        (lambda: predict(model, [(x, y + 7)], progress=False), "labels reach from"),
        (lambda: predict(model, [(x, torch.eye(9)[y])], progress=False), r"target\.argmax\(1\)"),
    ):
        with pytest.raises(InputError, match=message):
            call()
