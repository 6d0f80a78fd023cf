"""Flat rows of figures: Fairlearn is the oracle of the values, its bootstrap that of the intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fairlearn.metrics import (
    MetricFrame,
    demographic_parity_difference,
    equalized_odds_difference,
    false_positive_rate,
    mean_prediction,
    selection_rate,
    true_positive_rate,
)
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from fairtrim import InputError, Predictions
from fairtrim.measures.group_counts import GroupCounts, bias
from fairtrim_adapters.fairlearn import measurements
from fairtrim_adapters.fairlearn.measurements import _Cells


def people(n: int, n_classes: int = 2, groups: tuple[str, ...] = ("F", "M", "X"), seed: int = 0) -> Predictions:
    draw = np.random.default_rng(seed)
    target = draw.integers(0, n_classes, n)
    label = {
        name: np.where(draw.random(n) < wrong, draw.integers(0, n_classes, n), target)
        for name, wrong in (("dense", 0.2), ("pruned", 0.5))
    }
    scores = {name: np.eye(n_classes)[of_model] for name, of_model in label.items()}
    share = np.arange(1, len(groups) + 1) / sum(range(1, len(groups) + 1))
    return Predictions(target, label, scores, {"sex": draw.choice(groups, n, p=share)})


def test_values_are_fairlearns() -> None:
    data = people(301)
    row = measurements(data, "pruned", "dense", n_boot=None)
    y, given, dense, sex = data.target, data.label["pruned"], data.label["dense"], data.sensitive["sex"]
    metrics = {
        "accuracy": accuracy_score,
        "selection_rate": selection_rate,
        "true_positive_rate": true_positive_rate,
        "false_positive_rate": false_positive_rate,
    }
    frame = MetricFrame(metrics=metrics, y_true=y, y_pred=given, sensitive_features=sex)
    before = MetricFrame(metrics=metrics, y_true=y, y_pred=dense, sensitive_features=sex)
    for metric in metrics:
        assert row[metric] == pytest.approx(frame.overall[metric], abs=1e-12)
        assert row[f"{metric}_change"] == pytest.approx(frame.overall[metric] - before.overall[metric], abs=1e-12)
        for group in "FMX":
            assert row[f"{metric}[{group}]"] == pytest.approx(frame.by_group[metric][group], abs=1e-12)
            change = frame.by_group[metric][group] - before.by_group[metric][group]
            assert row[f"{metric}_change[{group}]"] == pytest.approx(change, abs=1e-12)
    gap = {"y_true": y, "y_pred": given, "sensitive_features": sex}
    assert row["equalized_odds_difference"] == pytest.approx(equalized_odds_difference(**gap), abs=1e-12)
    assert row["demographic_parity_difference"] == pytest.approx(demographic_parity_difference(**gap), abs=1e-12)
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, given), abs=1e-12)
    assert row["worst_group_accuracy"] == frame.group_min()["accuracy"]
    assert row["accuracy_score_difference"] == pytest.approx(frame.difference()["accuracy"], abs=1e-12)
    assert row["changed_predictions"] == np.mean(given != dense)
    assert row["changed_predictions[F]"] == pytest.approx(np.mean((given != dense)[sex == "F"]))
    assert row["people[X]"] == (sex == "X").sum()
    assert not [column for column in row if "_low" in column]


@pytest.mark.parametrize(("n_classes", "seed"), [(2, 1), (3, 2)])
def test_a_draw_is_a_resample_of_people(n_classes: int, seed: int) -> None:
    """Every statistic of every draw equals Fairlearn's on the people whom that draw stands for."""
    data = people(40, n_classes, seed=seed)
    cells = _Cells(data, "pruned", "dense", n_boot=25, random_state=3)
    found = cells.statistics(cells.label)
    for draw in range(25):
        times = cells.draws[draw].astype(int)
        y, given = np.repeat(cells.target, times), np.repeat(cells.label, times)
        group = np.repeat(cells.groups[cells.group], times)
        assert len(y) == 40
        frame = MetricFrame(metrics={"accuracy": accuracy_score}, y_true=y, y_pred=given, sensitive_features=group)
        assert found["accuracy"][draw] == pytest.approx(frame.overall["accuracy"])
        for g in cells.groups:
            expected = frame.by_group["accuracy"].get(g, np.nan)
            np.testing.assert_allclose(found[f"accuracy[{g}]"][draw], expected, atol=1e-12)
        assert found["accuracy_score_difference"][draw] == pytest.approx(frame.difference()["accuracy"])
        assert found["worst_group_accuracy"][draw] == pytest.approx(frame.group_min()["accuracy"])
        recalls = [np.mean(given[y == k] == k) for k in np.unique(y)]
        assert found["balanced_accuracy"][draw] == pytest.approx(np.mean(recalls))
        for k in [1] if n_classes == 2 else range(3):
            for metric, function in (("selection_rate", selection_rate), ("true_positive_rate", true_positive_rate)):
                if metric == "selection_rate" or (y == k).any():
                    column = metric if n_classes == 2 else f"{metric}_of_{k}"
                    assert found[column][draw] == pytest.approx(function(y == k, given == k))
        if n_classes == 2:
            gap = {"y_true": y, "y_pred": given, "sensitive_features": group}
            if all(np.unique(y[group == g]).size == 2 for g in np.unique(group)):  # else Fairlearn takes a rate as 0
                assert found["equalized_odds_difference"][draw] == pytest.approx(equalized_odds_difference(**gap))
            assert found["demographic_parity_difference"][draw] == pytest.approx(demographic_parity_difference(**gap))


@pytest.mark.parametrize("name", ["dense", "pruned"])
def test_of_more_classes_each_against_the_rest_and_the_worst(name: str) -> None:
    """Fairlearn's figures of each class are the oracle; the gaps are those that repairs are judged by."""
    data = people(307, 4, seed=5)
    row = measurements(data, name, "dense", n_boot=20)
    sex, of_classes = data.sensitive["sex"], []
    functions = {
        "selection_rate": selection_rate,
        "true_positive_rate": true_positive_rate,
        "false_positive_rate": false_positive_rate,
    }
    for k in range(4):
        of_class = {"y_true": data.target == k, "y_pred": data.label[name] == k, "sensitive_features": sex}
        before = {**of_class, "y_pred": data.label["dense"] == k}
        for metric, function in functions.items():
            frame, dense = (MetricFrame(metrics=function, **given) for given in (of_class, before))
            assert row[f"{metric}_of_{k}"] == pytest.approx(frame.overall, abs=1e-12)
            for g in "FMX":
                assert row[f"{metric}_of_{k}[{g}]"] == pytest.approx(frame.by_group[g], abs=1e-12)
                change = frame.by_group[g] - dense.by_group[g]
                assert row[f"{metric}_of_{k}_change[{g}]"] == pytest.approx(change, abs=1e-12)
                assert row[f"{metric}_of_{k}_low[{g}]"] <= frame.by_group[g] <= row[f"{metric}_of_{k}_high[{g}]"]
        of_classes.append((equalized_odds_difference(**of_class), demographic_parity_difference(**of_class)))
        assert row[f"positives_of_{k}[M]"] == ((sex == "M") & (data.target == k)).sum()
        assert row[f"negatives_of_{k}[M]"] == ((sex == "M") & (data.target != k)).sum()
    group, one_hot = torch.from_numpy(np.searchsorted(["F", "M", "X"], sex)), np.eye(4)[data.label[name]]
    counts = GroupCounts.of(torch.from_numpy(one_hot), torch.from_numpy(data.target), group, n_groups=3)
    gaps = "equalized_odds_difference", "demographic_parity_difference"
    for gap, expected in zip(gaps, map(max, zip(*of_classes, strict=True)), strict=True):
        assert row[gap] == pytest.approx(expected, abs=1e-12)
        assert row[gap] == pytest.approx(float(bias(gap, counts)), abs=1e-12)
        assert row[f"{gap}_low"] <= row[gap] <= row[f"{gap}_high"]
        assert row[f"{gap}_change_low"] <= row[f"{gap}_change"] <= row[f"{gap}_change_high"]


def test_of_more_classes_a_group_without_one_has_no_rate_of_it() -> None:
    data = people(90, 3)
    target = np.where((data.sensitive["sex"] == "X") & (data.target == 2), 0, data.target)
    row = measurements(Predictions(target, data.label, {}, data.sensitive, 3), "pruned", "dense", n_boot=5)
    assert np.isnan(row["true_positive_rate_of_2[X]"]) and not np.isnan(row["true_positive_rate_of_2[F]"])
    assert np.isnan([row["equalized_odds_difference"], row["equalized_odds_difference_high"]]).all()
    assert row["demographic_parity_difference"] > 0 and row["positives_of_2[X]"] == 0
    with pytest.raises(InputError, match="which rates of single classes are called"):
        measurements(data, "pruned", "dense", n_boot=None, metrics={"selection_rate_of_mine": selection_rate})


def test_intervals_agree_with_fairlearns_bootstrap() -> None:
    data = people(600, seed=4)
    row = measurements(data, "pruned", "dense", n_boot=2000, random_state=1)
    frame = MetricFrame(
        metrics={"accuracy": accuracy_score},
        y_true=data.target,
        y_pred=data.label["pruned"],
        sensitive_features=data.sensitive["sex"],
        n_boot=120,
        ci_quantiles=[0.025, 0.975],
        random_state=2,
    )
    for end, overall, by_group in zip(("low", "high"), frame.overall_ci, frame.by_group_ci, strict=True):
        assert row[f"accuracy_{end}"] == pytest.approx(overall["accuracy"], abs=0.015)
        for group in "FMX":
            assert row[f"accuracy_{end}[{group}]"] == pytest.approx(by_group["accuracy"][group], abs=0.03)


def test_changes_are_resampled_in_pairs() -> None:
    """The same network twice: its accuracy varies over the draws, the change against itself doesn't."""
    data = people(200)
    row = measurements(data, "dense", "dense")
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert row["accuracy_change"] == row["accuracy_change_low"] == row["accuracy_change_high"] == 0
    assert row["changed_predictions_high[M]"] == 0


def test_same_seed_same_intervals() -> None:
    data = people(77)
    assert measurements(data, "pruned", "dense") == measurements(data, "pruned", "dense")


def test_crossings_with_nobody_are_left_out() -> None:
    data = people(50)
    race = np.where(data.sensitive["sex"] == "F", "a", "b")
    crossed = Predictions(data.target, data.label, data.scores, {**data.sensitive, "race": race})
    row = measurements(crossed, "pruned", "dense", n_boot=5)
    assert {column for column in row if column.startswith("people")} == {"people[F, a]", "people[M, b]", "people[X, b]"}


def test_one_person() -> None:
    row = measurements(people(1, groups=("F",)), "pruned", "dense", n_boot=3)
    assert np.isnan(row["accuracy_score_difference"]) and np.isnan(row["accuracy_score_difference_high"])
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"] and row["people[F]"] == 1


def test_further_metrics() -> None:
    data = people(90)
    row = measurements(data, "pruned", "dense", n_boot=None, metrics={"mean_label": mean_prediction})
    sex, label = data.sensitive["sex"], data.label
    means = [label["pruned"][sex == g].mean() for g in "FMX"]
    assert row["mean_label[M]"] == pytest.approx(means[1])
    assert row["mean_label_difference"] == pytest.approx(max(means) - min(means))
    assert row["mean_label_change"] == pytest.approx(label["pruned"].mean() - label["dense"].mean())


def test_flags_and_refusals() -> None:
    data = people(60)
    constant = {**data.label, "pruned": np.zeros(60, dtype=np.int64)}
    row = measurements(Predictions(data.target, constant, data.scores, data.sensitive), "pruned", "dense", n_boot=5)
    assert "constant classifier" in row["flags"]
    with pytest.raises(InputError, match="n_boot=0"):
        measurements(data, "pruned", "dense", n_boot=0)
    with pytest.raises(InputError, match="sensitive"):
        measurements(Predictions(data.target, data.label, data.scores, {}), "pruned", "dense")


def test_many_classes_take_no_table_of_cells_by_classes() -> None:
    """5,000 classes and 20,000 people: a table of (cells, classes) would take a gigabyte, a metric a class hours."""
    draw = np.random.default_rng(0)
    target = draw.integers(0, 5000, 20_000)
    label = {"dense": target, "pruned": np.where(draw.random(20_000) < 0.25, (target + 1) % 5000, target)}
    data = Predictions(target, label, {}, {"sex": draw.choice(["F", "M"], 20_000)}, n_classes=5000)
    row = measurements(data, "pruned", "dense", n_boot=2)
    recalls = [np.mean((label["pruned"] == target)[target == k]) for k in np.unique(target)]
    assert row["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert row["accuracy"] == np.mean(label["pruned"] == target)
    assert row["accuracy_low"] <= row["accuracy_high"] and "true_positive_rate" not in row


def test_crossings_of_one_name_are_refused() -> None:
    """Else the columns of one would be overwritten by the other's."""
    data = people(9)
    crossed = {"city": np.array(["a, b", "a"] + ["c"] * 7), "job": np.array(["c", "b, c"] + ["d"] * 7)}
    with pytest.raises(InputError, match="have one name when joined"):
        measurements(Predictions(data.target, data.label, {}, crossed), "pruned", "dense", n_boot=None)


@pytest.mark.parametrize("name", ["a[b]", "a=0.1", "x; y", "", "a, b", "]"])
def test_groups_of_any_name(name: str) -> None:
    data = people(60, groups=("F", name))
    row = measurements(data, "pruned", "dense", n_boot=9)
    right = data.label["pruned"] == data.target
    assert row[f"accuracy[{name}]"] == pytest.approx(right[data.sensitive["sex"] == name].mean())
    assert row[f"accuracy_low[{name}]"] <= row[f"accuracy_high[{name}]"]
    assert row[f"people[{name}]"] + row["people[F]"] == 60


def test_flags_can_be_told_apart() -> None:
    target = np.array([0, 1, 1, 1, 0])
    label = {"dense": target, "pruned": np.ones(5, dtype=np.int64)}
    data = Predictions(target, label, {}, {"sex": np.array(["x; y", "x; y", "F", "F", "x; y"])})
    flags = measurements(data, "pruned", "dense", n_boot=None)["flags"].split("; ")
    assert flags == [
        "empty cell: F: nobody of class 0, so rates of that class are undefined",
        "constant classifier: everybody is given label 1, gaps mean nothing",
    ]
