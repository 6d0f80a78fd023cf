"""MetricFrames and comparisons of networks, with Fairlearn itself as the oracle, and everyday inputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
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
from sklearn.metrics import accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import ChannelGroup, ChannelPlace, InputError, collect_damage, predict
from fairtrim_adapters.fairlearn import compare_models, compare_predictions, default_metrics, metric_frame
from tests.fairlearn_cases import (
    NAMES,
    D,
    N,
    drawn_data,
    linear,
    people_frame,
    scores_of,
    task,
)


def test_metric_frame_equals_fairlearn() -> None:
    x, y, codes = drawn_data()
    model = linear()
    frame = metric_frame(
        model, DataLoader(TensorDataset(x, y, codes), batch_size=8), sensitive_names=NAMES, progress=False
    )
    labels = model(x).argmax(1).numpy()
    reference = MetricFrame(
        metrics=default_metrics(2), y_true=y.numpy(), y_pred=labels, sensitive_features=people_frame(codes)
    )
    pd.testing.assert_frame_equal(frame.by_group, reference.by_group, check_index_type=False)
    pd.testing.assert_series_equal(frame.overall, reference.overall)
    assert frame.sensitive_levels == ["sex", "race"]


def test_one_metric_and_intervals() -> None:
    x, y, codes = drawn_data()
    batch = [(x, y, codes[:, 0])]
    frame = metric_frame(linear(), batch, metrics=accuracy_score, n_boot=5, random_state=3, progress=False)
    assert len(frame.by_group_ci) == 3
    assert frame.overall_ci[0] <= frame.overall_ci[2]
    again = metric_frame(
        linear(), batch, metrics=accuracy_score, n_boot=5, ci_quantiles=[0.1, 0.9], random_state=3, progress=False
    )
    assert len(again.by_group_ci) == 2


def test_single_logit() -> None:
    x, y, codes = drawn_data()
    two = linear()
    one = nn.Linear(5, 1)
    with torch.no_grad():
        one.weight.copy_(two.weight[1:] - two.weight[:1])
        one.bias.copy_(two.bias[1:] - two.bias[:1])
    batch = [(x, y.float(), codes[:, 0])]
    left, right = (metric_frame(model, batch, progress=False) for model in (one, two))
    pd.testing.assert_frame_equal(left.by_group, right.by_group)


def test_comparison_columns() -> None:
    x, y, codes = drawn_data()
    models = {"dense": linear(), "pruned": linear(seed=1)}
    # a shuffling loader: rows of both networks must still belong together
    loader = DataLoader(TensorDataset(x, y, codes), batch_size=8, shuffle=True)
    comparison = compare_models(models, loader, sensitive_names=NAMES, n_boot=4, random_state=0, progress=False)
    named = people_frame(codes)
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
        assert cell["change in accuracy low"] <= change <= cell["change in accuracy high"]


def test_own_metrics() -> None:
    x, y, codes = drawn_data()
    metrics: dict[str, Any] = {"accuracy": accuracy_score, "chosen": selection_rate, "found": true_positive_rate}
    comparison = compare_models(
        {"a": linear()},
        [(x, y, codes[:, 0])],
        metrics=metrics,
        n_boot=3,
        interval_metrics=["found"],
        random_state=0,
        progress=False,
    )
    assert {"chosen", "found low", "found high"} <= set(comparison.by_group)


def test_predictions_are_float64_and_in_eval_mode() -> None:
    x, y, _ = drawn_data()
    model = nn.Sequential(nn.Dropout(0.9), linear()).train()
    predictions = predict(model, [(x, y)], progress=False)
    assert predictions.scores["model"].dtype == np.float64
    np.testing.assert_allclose(predictions.scores["model"], model[1](x).detach().double().numpy())
    assert model.training and predictions.sensitive == {}


def test_wrong_arguments() -> None:
    x, y, codes = drawn_data()
    model, batch = linear(), [(x, y, codes[:, 0])]
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
    model, x, y, people = task(2)
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
    model, x, y, people = task(2)
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
    model, x, y, people = task(2)
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
    np.testing.assert_array_equal(scores, scores_of(network.layer, (late - 1e9).float()))


class _Skorch:
    """What a skorch network has before it is fitted."""

    module = nn.Linear

    def initialize(self) -> None: ...


def test_what_is_no_network() -> None:
    model, x, y, people = task(2)
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
    model, x, y, people = task(2)
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
    model, x, y, people = task(2)
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


def test_gaps_of_more_classes_are_the_largest_of_one_against_the_rest() -> None:
    model, x, y, people = task(3)
    overall = compare_models({"net": model}, [(x, y, people)], progress=False).overall.loc["net"]
    label = scores_of(model, x).argmax(1)
    for gap in (equalized_odds_difference, demographic_parity_difference):
        of_classes = [gap(y.numpy() == k, label == k, sensitive_features=people) for k in range(3)]
        assert overall[gap.__name__.replace("_", " ")] == pytest.approx(max(of_classes), abs=1e-12)
