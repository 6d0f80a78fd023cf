"""AIF360's datasets of K labels, several protected attributes, instance weights and string columns."""

from __future__ import annotations

import copy
import functools
import logging
import re
from itertools import combinations
from typing import Any

import aif360.datasets
import numpy as np
import pandas as pd
import pytest
import torch
from aif360.algorithms.postprocessing import EqOddsPostprocessing
from aif360.algorithms.preprocessing import Reweighing
from aif360.datasets import StandardDataset
from aif360.datasets.multiclass_label_dataset import MulticlassLabelDataset
from aif360.metrics import ClassificationMetric
from torch import nn

from fairtrim import InputError, ParityFineTuning, ThresholdSelection
from fairtrim.data.sensitive_groups import SensitiveEncoder
from fairtrim_adapters.aif360 import (
    NetworkPostProcessing,
    from_tensors,
    predict_dataset,
    strings_as_objects,
    to_dataset,
    to_tensors,
    to_validation_set,
)

SEX: dict[str, Any] = {"unprivileged_groups": [{"sex": 0}], "privileged_groups": [{"sex": 1}]}
NAMES = ["a", "b", "c", "sex", "race"]
LABELS = {"favorable_label": [7.0, 3.0], "unfavorable_label": [1.0, 5.0]}  # sorted 1, 3, 5, 7: 3 and 7 are favorable


def _columns(n_samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, a latent score that leans on sex and race, and weights that are no whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    sex = torch.randint(0, 2, (n_samples,), generator=generator)
    race = torch.randint(0, 3, (n_samples,), generator=generator)
    noise = torch.randn(n_samples, 4, generator=generator)
    a = noise[:, 0] + 0.8 * sex
    b = noise[:, 1] - 0.5 * (race == 2)
    features = torch.stack([a, b, noise[:, 2], sex, race], 1).double()
    return features, a - b + 0.5 * noise[:, 3], 0.3 + 2 * torch.rand(n_samples, generator=generator)


def _graded(n_samples: int = 360, seed: int = 0, **labels: Any) -> Any:
    """Four labels."""
    features, latent, weight = _columns(n_samples, seed)
    target = torch.bucketize(latent, torch.tensor([-0.7, 0.4, 1.4]))
    options = labels or LABELS
    return from_tensors(
        features, target, feature_names=NAMES, protected_attributes=["sex", "race"], weight=weight, **options
    )


def _binary(n_samples: int = 360, seed: int = 0) -> Any:
    features, latent, weight = _columns(n_samples, seed)
    return from_tensors(
        features, (latent > 0.4).long(), feature_names=NAMES, protected_attributes=["sex", "race"], weight=weight
    )


def _network(n_classes: int = 4) -> nn.Module:
    return copy.deepcopy(_trained(n_classes))


@functools.cache
def _trained(n_classes: int) -> nn.Module:
    tensors = to_tensors(_graded(seed=9) if n_classes > 2 else _binary(seed=9))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Linear(5, n_classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tensors.inputs), tensors.target).backward()
        optimizer.step()
    return model


def _one_label(dataset: Any, favorable: float) -> Any:
    """The same people and labels with one label against the rest, as a new MulticlassLabelDataset."""
    changed = dataset.copy()
    changed.ignore_fields = set(dataset.ignore_fields)
    changed.favorable_label = [favorable]
    changed.unfavorable_label = [label for label in (1.0, 3.0, 5.0, 7.0) if label != favorable]
    return changed


# --- K labels ----------------------------------------------------------------------------------------------------


def test_tensors_of_four_labels() -> None:
    dataset = _graded()
    assert isinstance(dataset, MulticlassLabelDataset)
    tensors = to_tensors(dataset, dtype=torch.float64)
    assert tensors.labels == (1.0, 3.0, 5.0, 7.0) and set(tensors.target.tolist()) == {0, 1, 2, 3}
    np.testing.assert_array_equal(np.array(tensors.labels)[tensors.target.numpy()], dataset.labels[:, 0])
    again = from_tensors(
        tensors.inputs,
        tensors.target,
        feature_names=NAMES,
        protected_attributes=tensors.protected_attributes,
        weight=tensors.weight,
        **LABELS,
    )
    assert again == dataset


def test_two_labels_in_lists_are_the_unfavorable_and_the_favorable_one() -> None:
    features, latent, _ = _columns(40, 0)
    target = (latent > 0).long()
    dataset = from_tensors(
        features, target, feature_names=NAMES, protected_attributes=["sex"], favorable_label=[1], unfavorable_label=[2]
    )
    assert isinstance(dataset, MulticlassLabelDataset) and to_tensors(dataset).labels == (2.0, 1.0)
    np.testing.assert_array_equal(dataset.labels[:, 0], np.where(target.numpy() == 1, 1.0, 2.0))
    predicted = to_dataset(dataset, latent)
    np.testing.assert_array_equal(predicted.labels, dataset.labels)


def test_scores_of_four_labels_back_into_a_dataset() -> None:
    dataset = _graded()
    scores = torch.randn(360, 4, generator=torch.Generator().manual_seed(3)).double()
    predicted = to_dataset(dataset, scores)
    assert isinstance(predicted, MulticlassLabelDataset)
    for row, (given, own) in enumerate(zip(predicted.labels[:, 0], scores.tolist(), strict=True)):
        assert given == (1.0, 3.0, 5.0, 7.0)[own.index(max(own))], row
    shares = scores.exp() / scores.exp().sum(1, keepdim=True)
    np.testing.assert_allclose(predicted.scores[:, 0], (shares[:, 1] + shares[:, 3]).numpy(), rtol=1e-12)
    predicted.validate_dataset()  # AIF360's own
    # AIF360's generalized rates read the scores
    metric = ClassificationMetric(dataset, predicted, **SEX)
    favorable = np.isin(dataset.labels[:, 0], (3.0, 7.0))
    weight, score = dataset.instance_weights, predicted.scores[:, 0]
    expected = (weight * score)[favorable].sum() / weight[favorable].sum()
    assert metric.generalized_true_positive_rate() == pytest.approx(expected, abs=1e-12)


def test_the_host_leaves_a_dataset_of_k_labels_blind_to_them_and_predictions_are_not() -> None:
    """ClassificationMetric copies such a dataset and then edits the set of ignored fields that the copies share."""
    dataset = _graded()
    before = to_dataset(dataset, torch.zeros(360, 4))
    ClassificationMetric(dataset, before, **SEX)
    assert "labels" in dataset.ignore_fields  # the host's fault
    after = to_dataset(dataset, torch.zeros(360, 4))
    assert before.ignore_fields == after.ignore_fields == {"metadata", "ignore_fields"}
    assert before != dataset and after != dataset


def test_what_the_host_can_t_do_with_k_labels() -> None:
    """As docs/api/adapters_aif360.md tells."""
    assert not hasattr(aif360.datasets, "MulticlassLabelDataset")
    dataset = _graded()
    table = dataset.convert_to_dataframe()[0]
    names: dict[str, Any] = {"label_names": ["label"], "protected_attribute_names": ["sex"]}
    with pytest.raises(TypeError, match="not iterable"):
        MulticlassLabelDataset(df=table, favorable_label=7.0, unfavorable_label=[1.0, 3.0, 5.0], **names)
    with pytest.raises(ValueError, match="do not match the labels"):
        arrays = {name: np.array(labels) for name, labels in LABELS.items()}
        MulticlassLabelDataset(df=table, **arrays, **names)
    with pytest.raises(ValueError, match="could not be broadcast"):
        Reweighing(**SEX).fit(dataset)
    with pytest.raises(ValueError, match="could not be broadcast"):
        EqOddsPostprocessing(**SEX).fit(dataset, predict_dataset(_network(), dataset))


@pytest.mark.parametrize("measure", ["demographic_parity_difference", "equal_opportunity_difference"])
def test_figures_of_four_labels_are_the_worst_of_classification_metric(measure: str) -> None:
    """Of one label against the rest, with the instance weights."""
    dataset = _graded()
    options: dict[str, Any] = {"selection_share": 0.5, "penalties": (0.0, 2.0, 50.0), "confidence": None}
    method = ParityFineTuning(measure=measure, epsilon=0.12, **options)
    repairing = NetworkPostProcessing(_network(), method, **SEX, progress=False).fit(dataset)
    repair = repairing.repair_
    people = dataset.subset(repair.selection_rows.tolist())
    name = "statistical_parity_difference" if measure.startswith("demographic") else measure
    for network, bias in ((_network(), repair.bias_before), (repairing.model_, repair.bias)):
        of_labels = [
            getattr(
                ClassificationMetric(
                    _one_label(people, label), _one_label(predict_dataset(network, people), label), **SEX
                ),
                name,
            )()
            for label in (1.0, 3.0, 5.0, 7.0)
        ]
        assert max(of_labels, key=abs) == pytest.approx(bias, abs=1e-12)
    assert abs(repair.bias) < abs(repair.bias_before)


def test_favorable_labels_together_beyond_the_bound_are_flagged() -> None:
    """Sex decides between the labels 1 and 3 for one half and between 5 and 7 for the other: .5 each, 1 together."""
    features, _, _ = _columns(360, 0)
    given = nn.Linear(5, 4)
    with torch.no_grad():
        given.weight.zero_()
        given.weight[:, 0] = torch.tensor([3.0, 3.0, -3.0, -3.0])
        given.weight[:, 3] = torch.tensor([-8.0, 8.0, -8.0, 8.0])
        given.bias.copy_(torch.tensor([4.0, -4.0, 4.0, -4.0]))
        target = given(features.float()).argmax(1)  # the network is right, and kept
    dataset = from_tensors(features, target, feature_names=NAMES, protected_attributes=["sex"], **LABELS)
    for epsilon, flagged in ((0.9, True), (1.0, False)):
        method = ParityFineTuning(epsilon=epsilon, penalties=(0.0,), selection_share=0.5)
        repairing = NetworkPostProcessing(copy.deepcopy(given), method, **SEX, progress=False).fit(dataset)
        together = [flag for flag in repairing.repair_.flags if flag.startswith("AIF360 takes")]
        assert bool(together) is flagged
        if flagged:
            assert repairing.repair_.within_bound
            people = dataset.subset(repairing.repair_.selection_rows.tolist()).copy(deepcopy=True)
            metric = ClassificationMetric(people, repairing.predict(people), **SEX)
            told = f"[3.0, 7.0] together, of which statistical_parity_difference is {metric.mean_difference():+.3f} on"
            assert told in together[0]
        assert dataset.ignore_fields == {"metadata", "ignore_fields"}


def test_wrong_labels_and_networks() -> None:
    dataset = _graded()
    both = dataset.copy()
    both.unfavorable_label = [1.0, 5.0, 7.0]
    with pytest.raises(
        InputError, match=r"\[3.0, 7.0\] are favorable and \[1.0, 5.0, 7.0\] unfavorable; expected some"
    ):
        to_tensors(both)
    unknown = dataset.copy()
    unknown.labels = np.where(dataset.labels == 5.0, 6.0, dataset.labels)
    with pytest.raises(InputError, match=r"has the labels \[6.0\] beside the favorable_label"):
        to_tensors(unknown)
    for scores, message in (
        (torch.zeros(360, 3), r"scores are of 3 classes; expected 4, one for each of the dataset's labels \[1.0, 3.0"),
        (torch.zeros(360), "the scores are of 1 classes; expected 4"),
        (torch.zeros(9, 4), r"for 360 rows; expected \(360, 4\)$"),
        (torch.full((360, 4), torch.inf), "the scores of 360 of 360 rows are not finite"),
    ):
        with pytest.raises(InputError, match=message):
            to_dataset(dataset, scores)
    with pytest.raises(InputError, match=r"the network has 2 classes; expected 4: the labels of the dataset are \[1.0"):
        NetworkPostProcessing(nn.Linear(5, 2), ParityFineTuning(), **SEX, progress=False).fit(dataset)
    with pytest.raises(InputError, match="the network has 4 classes and ThresholdSelection is defined for two"):
        NetworkPostProcessing(nn.Linear(5, 4), ThresholdSelection(), **SEX, progress=False).fit(dataset)
    features, _, _ = _columns(5, 0)
    with pytest.raises(
        InputError, match=r"the target holds \[4.0\]; expected 0 to 3, places among the labels \[1.0, 3"
    ):
        from_tensors(features, torch.full((5,), 4), feature_names=NAMES, protected_attributes=["sex"], **LABELS)


# --- several protected attributes ---------------------------------------------------------------------------------


def _largest_difference(true: Any, predicted: Any, names: list[str], metric: str) -> float:
    """Over every two crossings of some attributes, by AIF360's metric of two sides."""
    columns = [true.protected_attributes[:, true.protected_attribute_names.index(name)] for name in names]
    crossings = sorted(set(zip(*columns, strict=True)))
    found = []
    for one, other in combinations(crossings, 2):
        sides = [[dict(zip(names, crossing, strict=True))] for crossing in (one, other)]
        judged = ClassificationMetric(true, predicted, unprivileged_groups=sides[0], privileged_groups=sides[1])
        found.append(abs(getattr(judged, metric)()))
    return max(found)


@pytest.mark.parametrize("attributes", [None, ["race"]])
def test_crossings_of_attributes(attributes: list[str] | None) -> None:
    dataset = _binary()
    people = to_validation_set(dataset, attributes=attributes)
    assert people.features == ("sex", "race") if attributes is None else ("race",)
    assert people.groups == (tuple((s, r) for s in "01" for r in "012") if attributes is None else ("0", "1", "2"))
    assert people.weight is not None and not people.sides
    np.testing.assert_array_equal(people.weight.numpy(), dataset.instance_weights)
    method = ParityFineTuning(epsilon=0.2, selection_share=0.5)
    repairing = NetworkPostProcessing(_network(2), method, attributes=attributes, progress=False).fit(dataset)
    repair = repairing.repair_
    part = dataset.subset(repair.selection_rows.tolist())
    predicted = repairing.predict(part)
    names = ["sex", "race"] if attributes is None else attributes
    found = _largest_difference(part, predicted, names, "statistical_parity_difference")
    assert found == pytest.approx(repair.bias, abs=1e-12)
    assert repairing._params["attributes"] == attributes
    for name in names:  # a rate of one attribute's group is a mean of its crossings'
        assert _largest_difference(part, predicted, [name], "statistical_parity_difference") <= found + 1e-12


def test_a_crossing_may_be_privileged() -> None:
    dataset = _binary()
    method = ParityFineTuning(epsilon=0.2, selection_share=0.5, privileged={"sex": 1, "race": 2})
    repair = NetworkPostProcessing(_network(2), method, progress=False).fit(dataset).repair_
    part = dataset.subset(repair.selection_rows.tolist())
    rest = [{"sex": s, "race": r} for s in (0, 1) for r in (0, 1, 2) if (s, r) != (1, 2)]
    judged = ClassificationMetric(
        part, predict_dataset(repair.model, part), unprivileged_groups=rest, privileged_groups=[{"sex": 1, "race": 2}]
    )
    assert judged.statistical_parity_difference() == pytest.approx(repair.bias, abs=1e-12)


def test_age_in_years_is_cut_into_ranges() -> None:
    features, latent, weight = _columns(90, 0)
    age = torch.arange(90) % 61 + 18
    dataset = from_tensors(
        features,
        (latent > 0.4).long(),
        feature_names=NAMES,
        protected_attributes={"age": age, "sex": features[:, 3]},
        weight=weight,
    )
    people = to_validation_set(dataset, attributes=["age"], bins=4)
    assert people.features == ("age",) and people.n_groups == 4 and people.groups[0].startswith("1: 18 to ")
    assert people.continuous is not None and people.weight is not None
    np.testing.assert_array_equal(people.continuous.numpy(), age.numpy())
    with pytest.raises(InputError, match=r"bins=4 would have no effect on two sides"):
        to_validation_set(dataset, **SEX, bins=4)
    with pytest.raises(InputError, match=r"the sensitive features of batch 0 are \['age', 'sex'\]; expected one"):
        to_validation_set(dataset, bins=4)
    with pytest.raises(
        InputError, match=r"the groups are 61 numbers: cut a continuous feature .* fairtrim.SensitiveBins"
    ):
        method = ParityFineTuning(measure="equalized_odds_difference")
        NetworkPostProcessing(_network(2), method, attributes=["age"], features=NAMES, progress=False).fit(dataset)


def test_wrong_attributes() -> None:
    dataset = _binary(40)
    for options, message in (
        ({"unprivileged_groups": [{"sex": 0}]}, "privileged_groups=None, and unprivileged_groups="),
        ({"privileged_groups": [{"sex": 0}]}, "unprivileged_groups=None, and privileged_groups="),
        ({**SEX, "attributes": ["sex"]}, r"attributes=\['sex'\] would have no effect"),
    ):
        with pytest.raises(InputError, match=message):
            to_validation_set(dataset, **options)
        with pytest.raises(InputError, match=message):
            NetworkPostProcessing(_network(2), ParityFineTuning(), **options)
    for attributes, message in (
        (["a"], r"names \['a'\]; the protected attributes are \['sex', 'race'\]"),
        ([], "names none; the protected"),
        (["sex", "sex"], r"the protected attributes \['sex'\] occur more than once"),
        ("sex", r"attributes='sex' is a string; expected a list of names: \['sex'\]"),
    ):
        with pytest.raises(InputError, match=message):
            to_validation_set(dataset, attributes=attributes)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            to_tensors(dataset).group_weights(attributes)  # type: ignore[arg-type]


# --- instance weights ---------------------------------------------------------------------------------------------


def test_whole_weights_are_people_counted_so_often() -> None:
    """In the figures of a repair: the dataset with weights against the one that holds each row so often."""
    features, latent, _ = _columns(150, 4)
    times = torch.randint(1, 4, (150,), generator=torch.Generator().manual_seed(2))
    options: dict[str, Any] = {"feature_names": NAMES, "protected_attributes": ["sex", "race"]}
    target = (latent > 0.4).long()
    weighted = from_tensors(features, target, weight=times, **options)
    repeated = from_tensors(features.repeat_interleave(times, 0), target.repeat_interleave(times), **options)
    method = ThresholdSelection(epsilon=0.3, confidence=None)
    repairs = [
        NetworkPostProcessing(_network(2), method, progress=False).fit(data).repair_ for data in (weighted, repeated)
    ]
    for name in ("bias", "performance", "bias_before", "performance_before"):
        assert getattr(repairs[0], name) == pytest.approx(getattr(repairs[1], name), abs=1e-12)
    assert repairs[0].chosen.margin_threshold == pytest.approx(repairs[1].chosen.margin_threshold)


def test_group_weights_are_what_importances_take() -> None:
    dataset = _binary(60)
    tensors = to_tensors(dataset, dtype=torch.float64)
    weights = tensors.group_weights()
    assert list(weights) == [f"sex={s}, race={r}" for s in (0, 1) for r in (0, 1, 2)]
    assert torch.equal(torch.stack(list(weights.values()), 1).sum(1), tensors.weight)
    assert list(tensors.group_weights(["race"])) == ["race=0", "race=1", "race=2"]
    # as importances read them from a loader's third entry
    columns = torch.stack(list(weights.values()), 1)
    encoder = SensitiveEncoder(list(weights), sensitive_weights=True)
    torch.testing.assert_close(encoder.encode(columns, 60), columns, rtol=0, atol=0)
    assert encoder.groups == list(weights)
    sex, race = dataset.protected_attributes.T
    expected = np.where((sex == 1) & (race == 2), dataset.instance_weights, 0.0)
    np.testing.assert_array_equal(columns[:, 5].numpy(), expected)


def test_nobody_without_weight_has_a_column() -> None:
    dataset = _binary(30)
    dataset.instance_weights = dataset.instance_weights.copy()
    dataset.instance_weights[3] = 0.0
    with pytest.raises(InputError, match="1 of 30 rows have an instance weight of 0 or less"):
        to_tensors(dataset).group_weights()


@pytest.mark.parametrize("weight", [np.nan, np.inf, -1.0])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    dataset = _binary(30)
    dataset.instance_weights = dataset.instance_weights.copy()
    dataset.instance_weights[3:5] = weight
    message = "2 of 30 instance weights are negative or not finite"
    with pytest.raises(InputError, match=message):
        to_tensors(dataset)
    with pytest.raises(InputError, match=message):
        to_validation_set(dataset, **SEX)
    with pytest.raises(InputError, match="1 of 2 instance weights are negative or not finite"):
        _two(weight=torch.tensor([1.0, weight]))


def test_an_attribute_that_is_missing_has_no_group() -> None:
    dataset = _binary(30)
    dataset.protected_attributes = dataset.protected_attributes.copy()
    dataset.protected_attributes[3] = np.nan
    with pytest.raises(InputError, match="is missing for somebody; leave those people out"):
        to_tensors(dataset).group_weights()


# --- from tensors --------------------------------------------------------------------------------------------------


def _two(**given: Any) -> Any:
    """Two people."""
    plain = {"inputs": torch.eye(2), "target": torch.tensor([1, 0]), "protected_attributes": ["sex"]}
    return from_tensors(**{"feature_names": ["a", "sex"], **plain, **given})


def test_arrays_are_taken_like_tensors() -> None:
    assert _two(inputs=np.eye(2), target=np.array([1, 0]), weight=[1.0, 1.0]) == _two()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"favorable_label": "yes", "unfavorable_label": "no"}, r"the labels \['yes', 'no'\] are no numbers"),
        ({"favorable_label": ["yes"], "unfavorable_label": ["no"]}, r"the labels \['yes'\] are no numbers"),
        ({"favorable_label": float("nan")}, r"the labels \[nan, 0.0\] are not finite"),
        ({"favorable_label": [1, float("nan")], "unfavorable_label": [0]}, r"the labels \[1, nan\] are not finite"),
        ({"protected_attributes": {"town": ["a", "b"]}}, "'town' holds values that are no numbers; expected codes"),
    ],
)
def test_words_are_no_codes(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _two(**given)


# --- string columns ------------------------------------------------------------------------------------------------


def _table(dtype: Any = "str") -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "age": np.arange(24.0),
            "job": ["a", "b", "c"] * 8,
            "sex": ["Female", "Male"] * 12,
            "hired": ["yes", "no", "no", "yes"] * 6,
        }
    )
    return table.astype({"job": dtype, "sex": dtype, "hired": dtype})


def _standard(table: pd.DataFrame, **options: Any) -> Any:
    return StandardDataset(table, "hired", ["yes"], ["sex"], [["Male"]], categorical_features=["job"], **options)


@pytest.mark.parametrize(
    "dtype",
    [
        "string",
        pytest.param("str", marks=pytest.mark.skipif(pd.__version__ < "3", reason="strings were objects before")),
    ],
)
def test_string_columns_are_cast_with_a_note(dtype: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fairtrim.aif360")
    table = _table(dtype)
    with pytest.raises(TypeError, match="Cannot interpret"):
        _standard(table)  # the host's fault
    before = table.dtypes.copy()
    cast = strings_as_objects(table)
    assert re.match(
        r"cast from strings \(dtype str(ing)?\) to object, as AIF360 expects: 'job', 'sex', ", caplog.messages[-1]
    )
    assert table.dtypes.equals(before) and [str(t) for t in cast.dtypes] == ["float64", "object", "object", "object"]
    dataset = _standard(table, custom_preprocessing=strings_as_objects)
    assert len(caplog.messages) == 2 and caplog.messages[-1].endswith("'hired'")
    assert dataset == _standard(cast) == _standard(_table(object))
    assert dataset.labels[:4, 0].tolist() == [1.0, 0.0, 0.0, 1.0]
    people = to_validation_set(dataset, **SEX)
    assert people.group.tolist() == [0, 1] * 12


def test_two_string_columns_of_one_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fairtrim.aif360")
    cast = strings_as_objects(pd.DataFrame([["a", "b"]], columns=["x", "x"], dtype="string"))
    assert caplog.messages == ["cast from strings (dtype string) to object, as AIF360 expects: 'x'"]
    assert [str(dtype) for dtype in cast.dtypes] == ["object", "object"]


def test_tables_without_strings_are_left_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "fairtrim.aif360")
    table = _table(object).assign(job=pd.Categorical(["a", "b"] * 12, categories=["a", "b", "c"]))
    cast = strings_as_objects(table)
    assert cast is not table and cast.equals(table) and cast.dtypes.equals(table.dtypes)
    assert not caplog.messages
    with pytest.raises(InputError, match=r"table is a ndarray; expected a pandas.DataFrame"):
        strings_as_objects(table.to_numpy())  # type: ignore[arg-type]
