"""The AIF360 adapter, with AIF360's own metrics as the oracle."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from aif360.algorithms import Transformer
from aif360.algorithms.postprocessing import (
    CalibratedEqOddsPostprocessing,
    EqOddsPostprocessing,
    RejectOptionClassification,
)
from aif360.datasets import BinaryLabelDataset, StandardDataset, StructuredDataset
from aif360.metrics import ClassificationMetric
from torch import nn

from fairtrim import (
    BiasGradientDescent,
    InputError,
    NotFittedError,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    predict,
)
from fairtrim_adapters.aif360 import (
    NetworkPostProcessing,
    from_tensors,
    library,
    predict_dataset,
    to_dataset,
    to_tensors,
    to_validation_set,
)

SEX = {"unprivileged_groups": [{"sex": 0}], "privileged_groups": [{"sex": 1}]}
# races 0 and 1 against 2; of race 1 only those of sex 0, so that some are in neither side
CROSSED = {"unprivileged_groups": [{"race": 0}, {"race": 1, "sex": 0}], "privileged_groups": [{"race": 2}]}
NAMES = ["sex", "a", "race", "b", "c"]


def _dataset(n_samples: int = 290, seed: int = 0, favorable: float = 1.0, unfavorable: float = 0.0) -> Any:
    """People whose label and features depend on sex; the weights are no whole numbers."""
    generator = torch.Generator().manual_seed(seed)
    sex = torch.randint(0, 2, (n_samples,), generator=generator)
    race = torch.randint(0, 3, (n_samples,), generator=generator)
    noise = torch.randn(n_samples, 4, generator=generator)
    a, b, c = noise[:, 0] + 0.8 * sex, noise[:, 1] - 0.4 * (race == 2), noise[:, 2]
    target = (a - b + 0.7 * noise[:, 3] > 0.4).long()
    return from_tensors(
        torch.stack([sex, a, race, b, c], 1),
        target,
        feature_names=NAMES,
        protected_attributes=["sex", "race"],
        weight=0.3 + 2 * torch.rand(n_samples, generator=generator),
        favorable_label=favorable,
        unfavorable_label=unfavorable,
        label_name="hired",
    )


def _network(n_inputs: int = 5, n_outputs: int = 2) -> nn.Sequential:
    return copy.deepcopy(_trained(n_inputs, n_outputs))


@functools.cache
def _trained(n_inputs: int, n_outputs: int) -> nn.Sequential:
    """Trained a little, so that its decisions mean something."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(n_inputs, 7), nn.ReLU(), nn.Linear(7, n_outputs))
        people = to_tensors(_dataset(seed=9), features=NAMES[5 - n_inputs :])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(60):
            scores = model(people.inputs)
            if n_outputs == 1:
                loss = nn.functional.binary_cross_entropy_with_logits(scores[:, 0], people.target.float())
            else:
                loss = nn.functional.cross_entropy(scores, people.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def _repairing(post_processor: PostProcessor | None = None, sides: dict[str, Any] = SEX, **options: Any) -> Any:
    method = RandomPerturbation(trials=5) if post_processor is None else post_processor
    model = options.pop("model", None)
    return NetworkPostProcessing(_network() if model is None else model, method, progress=False, **{**sides, **options})


def _snapshot(dataset: Any) -> dict[str, Any]:
    return copy.deepcopy({name: value for name, value in vars(dataset).items() if name != "metadata"})


def _assert_untouched(dataset: Any, before: dict[str, Any]) -> None:
    assert set(vars(dataset)) == {*before, "metadata"}
    for name, value in before.items():
        now = getattr(dataset, name)
        if isinstance(value, np.ndarray):
            assert now.dtype == value.dtype, name
            np.testing.assert_array_equal(now, value, err_msg=name)
        elif isinstance(value, list) and value and isinstance(value[0], np.ndarray):
            assert all(np.array_equal(x, y) for x, y in zip(now, value, strict=True)), name
        else:
            assert now == value, name


def _balanced_accuracy(metric: ClassificationMetric) -> float:
    return float(metric.true_positive_rate() + metric.true_negative_rate()) / 2


# --- importing ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_importing_is_silent_and_leaves_logging_alone() -> None:
    code = (
        "import logging, fairtrim_adapters.aif360; root = logging.getLogger();"
        "assert (root.handlers, root.filters, root.level) == ([], [], logging.WARNING), root.handlers"
    )
    finished = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "", "")


def test_only_the_notes_on_extras_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    handlers, filters = list(root.handlers), list(root.filters)
    heard = logging.StreamHandler(sys.stderr)
    root.addHandler(heard)
    try:
        with library._without_notes_on_extras():
            logging.warning("No module named 'x': Y will be unavailable. To install, run:")
            logging.warning("something else")
    finally:
        root.removeHandler(heard)
    assert capsys.readouterr().err == "something else\n"
    assert (root.handlers, root.filters) == (handlers, filters)


def test_a_root_logger_without_handlers_gets_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    with library._without_notes_on_extras():
        logging.warning("Y will be unavailable")
        logging.warning("something else")
    assert root.handlers == []
    assert capsys.readouterr().err == "something else\n"


# --- tensors -----------------------------------------------------------------------------------------------------


def test_to_tensors() -> None:
    dataset = _dataset(favorable=1.0, unfavorable=2.0)
    before = _snapshot(dataset)
    tensors = to_tensors(dataset)
    assert len(tensors) == 290 and tensors.feature_names == tuple(NAMES)
    assert (tensors.inputs.dtype, tensors.target.dtype, tensors.weight.dtype) == (
        torch.float32,
        torch.int64,
        torch.float64,
    )
    np.testing.assert_array_equal(tensors.inputs.numpy(), dataset.features.astype(np.float32))
    np.testing.assert_array_equal(tensors.target.numpy(), dataset.labels[:, 0] == 1.0)
    np.testing.assert_array_equal(tensors.weight.numpy(), dataset.instance_weights)
    assert list(tensors.protected_attributes) == ["sex", "race"]
    np.testing.assert_array_equal(tensors.protected_attributes["race"].numpy(), dataset.protected_attributes[:, 1])
    some = to_tensors(dataset, features=["c", "a"], dtype=torch.float64)
    np.testing.assert_array_equal(some.inputs.numpy(), dataset.features[:, [4, 1]])
    for tensor in (tensors.inputs, tensors.target, tensors.weight, *tensors.protected_attributes.values(), some.inputs):
        tensor.zero_()
    _assert_untouched(dataset, before)


@pytest.mark.parametrize("labels", [(1.0, 0.0), (1.0, 2.0), (0.0, 1.0), (-1.0, 1.0)])
def test_round_trip(labels: tuple[float, float]) -> None:
    dataset = _dataset(favorable=labels[0], unfavorable=labels[1])
    dataset.features[:, 0] = (dataset.features[:, 0] - 0.4) / 0.7  # standardised, as in AIF360's tutorials
    tensors = to_tensors(dataset, dtype=torch.float64)
    again = from_tensors(
        tensors.inputs,
        tensors.target,
        feature_names=tensors.feature_names,
        protected_attributes=tensors.protected_attributes,
        weight=tensors.weight,
        favorable_label=dataset.favorable_label,
        unfavorable_label=dataset.unfavorable_label,
        label_name="hired",
        instance_names=dataset.instance_names,
    )
    _assert_untouched(again, _snapshot(dataset))
    assert again == dataset
    back = to_tensors(again, dtype=torch.float64)
    torch.testing.assert_close(back.inputs, tensors.inputs, rtol=0, atol=0)
    torch.testing.assert_close(back.target, tensors.target, rtol=0, atol=0)


def test_round_trip_of_tensors_is_exact_in_float32() -> None:
    x = torch.randn(23, 3, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    tensors = to_tensors(
        from_tensors(x, y, feature_names=["p", "q", "r"], protected_attributes={"sex": torch.arange(23) % 2}),
        features=["p", "q", "r"],
    )
    torch.testing.assert_close(tensors.inputs, x, rtol=0, atol=0)
    torch.testing.assert_close(tensors.target, y, rtol=0, atol=0)
    torch.testing.assert_close(tensors.weight, torch.ones(23, dtype=torch.float64), rtol=0, atol=0)
    assert tensors.protected_attributes["sex"].tolist() == [float(i % 2) for i in range(23)]


def test_from_tensors_equals_aif360s_own_construction() -> None:
    x = torch.randn(31, 2, generator=torch.Generator().manual_seed(1)).double()
    y, sex, weight = (x[:, 0] > 0).long(), torch.arange(31) % 2, torch.rand(31)
    table = pd.DataFrame({"p": x[:, 0], "q": x[:, 1], "sex": sex, "y": 2 - y, "w": weight.double()})
    expected = BinaryLabelDataset(
        favorable_label=1,
        unfavorable_label=2,
        df=table,
        label_names=["y"],
        protected_attribute_names=["sex"],
        instance_weights_name="w",
    )
    dataset = from_tensors(
        x,
        y,
        feature_names=["p", "q"],
        protected_attributes={"sex": sex},
        weight=weight,
        unfavorable_label=2,
        label_name="y",
    )
    _assert_untouched(dataset, _snapshot(expected))


def test_standard_dataset_with_words_among_the_features() -> None:
    table = pd.DataFrame(
        {"job": ["a", "b", "c"] * 8, "age": np.arange(24.0), "sex": [0, 1] * 12, "good": [0, 0, 1, 1] * 6}
    )
    dataset = StandardDataset(
        table,
        label_name="good",
        favorable_classes=[1],
        protected_attribute_names=["sex"],
        privileged_classes=[[1]],
        categorical_features=["job"],
    )
    people = to_validation_set(dataset, [{"sex": 0}], [{"sex": 1}], features=["age", "job=a", "job=b", "job=c"])
    assert people.inputs.shape == (24, 4) and people.inputs[1].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert people.group.tolist() == table["sex"].tolist()


# --- sides -------------------------------------------------------------------------------------------------------


def test_validation_set() -> None:
    dataset = _dataset(unfavorable=2.0)
    people = to_validation_set(dataset, **SEX)
    assert people.sides and people.groups == ("sex=0", "sex=1")
    np.testing.assert_array_equal(people.group.numpy(), dataset.protected_attributes[:, 0])
    assert people.weight is not None
    np.testing.assert_array_equal(people.weight.numpy(), dataset.instance_weights)
    one_dict = to_validation_set(dataset, {"sex": 0}, {"sex": 1})
    assert one_dict.groups == people.groups and torch.equal(one_dict.group, people.group)


def test_sides_of_several_groups_leave_the_others_out() -> None:
    dataset = _dataset()
    sex, race = dataset.protected_attributes.T
    people = to_validation_set(dataset, **CROSSED, features=["b", "a"], dtype=torch.float64)
    unprivileged, privileged = (race == 0) | ((race == 1) & (sex == 0)), race == 2
    kept = unprivileged | privileged
    assert 0 < kept.sum() < len(kept)
    assert people.groups == ("race=0 or race=1, sex=0", "race=2")
    np.testing.assert_array_equal(people.group.numpy(), privileged[kept])
    np.testing.assert_array_equal(people.inputs.numpy(), dataset.features[kept][:, [3, 1]])
    np.testing.assert_array_equal(people.target.numpy(), dataset.labels[kept, 0])


# --- predictions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unfavorable", [0.0, 2.0])
def test_to_dataset(unfavorable: float) -> None:
    dataset = _dataset(unfavorable=unfavorable)
    before = _snapshot(dataset)
    scores = torch.randn(290, 2, generator=torch.Generator().manual_seed(2))
    scores[:2] = torch.tensor([[0.5, 0.5], [-800.0, 800.0]])
    predicted = to_dataset(dataset, scores)
    assert predicted.labels.shape == predicted.scores.shape == (290, 1)
    assert predicted.labels.dtype == predicted.scores.dtype == np.float64
    np.testing.assert_array_equal(predicted.labels[:, 0], np.where(scores.argmax(1) == 1, 1.0, unfavorable))
    np.testing.assert_allclose(predicted.scores[:, 0], scores.double().softmax(1)[:, 1].numpy(), rtol=1e-12)
    assert predicted.labels[0, 0] == unfavorable and predicted.scores[1, 0] == 1.0
    _assert_untouched(dataset, before)
    with dataset.temporarily_ignore("labels", "scores"):
        assert dataset == predicted
    # a logit in any shape and library decides alike
    logit = scores.double()[:, 1] - scores.double()[:, 0]
    for same in (logit, logit[:, None], logit.numpy(), logit[:, None].requires_grad_()):
        again = to_dataset(dataset, same)
        np.testing.assert_array_equal(again.labels, predicted.labels)
        np.testing.assert_allclose(again.scores, predicted.scores, rtol=1e-12)


def test_a_prediction_stays_comparable_after_aif360_has_looked_at_the_truth() -> None:
    """ClassificationMetric's ``temporarily_ignore`` edits a set that AIF360's shallow copies share."""
    dataset = _dataset()
    predicted = predict_dataset(_network(), dataset)
    ClassificationMetric(dataset, predicted, **SEX)
    assert predicted.ignore_fields == {"metadata", "ignore_fields"}
    assert predicted != dataset


def test_predict_dataset_equals_predict() -> None:
    dataset = _dataset()
    model = nn.Sequential(nn.Dropout(0.9), *_network()).train()
    predicted = predict_dataset(model, dataset, batch_size=101)
    tensors = to_tensors(dataset)
    direct = predict(model, [(tensors.inputs, tensors.target)], progress=False)
    np.testing.assert_array_equal(predicted.labels[:, 0], direct.label["model"])
    margin = direct.scores["model"][:, 1] - direct.scores["model"][:, 0]
    np.testing.assert_allclose(predicted.scores[:, 0], 1 / (1 + np.exp(-margin)), rtol=1e-5)
    assert model.training


# --- the transformer ---------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[ClassificationMetric], float]] = {
    "statistical_parity_difference": lambda metric: metric.statistical_parity_difference(),
    "equal_opportunity_difference": lambda metric: metric.equal_opportunity_difference(),
    "average_odds_difference": lambda metric: metric.average_odds_difference(),
    "accuracy_score_difference": lambda metric: -metric.error_rate_difference(),
}


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("measure", MEASURES)
def test_figures_equal_classification_metric(measure: str, flipped: bool) -> None:
    """With the instance weights, with AIF360's sign, before and after, on the people who selected."""
    dataset = _dataset(favorable=2.0, unfavorable=5.0)
    sides = dict(zip(SEX, reversed(SEX.values()), strict=True)) if flipped else SEX
    model = _network()
    repairing = _repairing(
        ParityFineTuning(measure=measure, epsilon=0.1, random_state=4, selection_share=0.5), sides, model=model
    )
    repair = repairing.fit(dataset).repair_
    selection = dataset.subset(repair.selection_rows.tolist())
    assert 0 < len(selection.labels) < len(dataset.labels)
    for network, bias, performance in (
        (model, repair.bias_before, repair.performance_before),
        (repairing.model_, repair.bias, repair.performance),
    ):
        metric = ClassificationMetric(selection, predict_dataset(network, selection), **sides)
        assert MEASURES[measure](metric) == pytest.approx(bias, abs=1e-12)
        assert _balanced_accuracy(metric) == pytest.approx(performance, abs=1e-12)
        unweighted = ClassificationMetric(*(_unweighted(d) for d in (selection, predict_dataset(network, selection))))
        assert _balanced_accuracy(unweighted) != pytest.approx(performance, abs=1e-6)
    metric = ClassificationMetric(selection, repairing.predict(selection), **sides)
    assert MEASURES[measure](metric) == pytest.approx(repair.bias, abs=1e-12)
    if measure == "statistical_parity_difference":
        assert repair.bias_before > 0.2 if flipped else repair.bias_before < -0.2


def _unweighted(dataset: Any) -> Any:
    plain = dataset.copy()
    plain.instance_weights = np.ones(len(dataset.labels))
    return plain


def test_equalized_odds_has_the_size_of_aif360s() -> None:
    dataset = _dataset()
    repairing = _repairing(RandomPerturbation(trials=4, measure="equalized_odds_difference", epsilon=0.2)).fit(dataset)
    metric = ClassificationMetric(dataset, repairing.predict(dataset), **SEX)
    assert metric.equalized_odds_difference() == pytest.approx(abs(repairing.repair_.bias), abs=1e-12)


@pytest.mark.parametrize("post_processor", [RandomPerturbation(trials=6), BiasGradientDescent(epochs=3)])
def test_people_in_neither_side_don_t_count(post_processor: PostProcessor) -> None:
    dataset = _dataset(400)
    repairing = _repairing(post_processor, CROSSED).fit(dataset)
    repair = repairing.repair_
    sex, race = dataset.protected_attributes.T
    kept = set(np.flatnonzero((race != 1) | (sex == 0)).tolist())
    assert {*repair.selection_rows.tolist(), *repair.edit_rows.tolist()} == kept
    selection = dataset.subset(repair.selection_rows.tolist())
    metric = ClassificationMetric(selection, repairing.predict(selection), **CROSSED)
    assert metric.statistical_parity_difference() == pytest.approx(repair.bias, abs=1e-12)
    assert _balanced_accuracy(metric) == pytest.approx(repair.performance, abs=1e-12)
    assert len(repairing.predict(dataset).labels) == 400  # everybody is predicted for


@pytest.mark.slow
def test_the_bound_holds_on_the_people_who_selected_and_the_gap_shrinks_on_others() -> None:
    model, validation, test = _network(), _dataset(600), _dataset(900, seed=5)
    repairing = _repairing(ParityFineTuning(epsilon=0.06), model=model).fit(validation)
    before, after = (
        ClassificationMetric(test, predicted, **SEX).statistical_parity_difference()
        for predicted in (predict_dataset(model, test), repairing.predict(test))
    )
    assert repairing.repair_.within_bound
    assert before < -0.15 and abs(after) < 0.1


def test_other_people_may_select() -> None:
    edit, selection = _dataset(301), _dataset(211, seed=8)
    repairing = _repairing(ParityFineTuning(epsilon=0.1), CROSSED).fit(edit, dataset_selection=selection)
    repair = repairing.repair_
    sex, race = selection.protected_attributes.T
    assert repair.selection_rows.tolist() == np.flatnonzero((race != 1) | (sex == 0)).tolist()
    part = selection.subset(repair.selection_rows.tolist())
    metric = ClassificationMetric(part, repairing.predict(part), **CROSSED)
    assert metric.statistical_parity_difference() == pytest.approx(repair.bias, abs=1e-12)


@pytest.mark.parametrize("n_outputs", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logits_and_types(n_outputs: int, dtype: torch.dtype) -> None:
    dataset = _dataset()
    model = _network(n_outputs=n_outputs).to(dtype)
    state = copy.deepcopy(model.state_dict())
    model[1].training = True
    before = _snapshot(dataset)
    repairing = _repairing(model=model).fit(dataset)
    predicted = repairing.predict(dataset)
    assert predicted.scores.dtype == np.float64 and set(np.unique(predicted.labels)) == {0.0, 1.0}
    np.testing.assert_array_equal(predicted.labels, predicted.scores > 0.5)
    assert repairing.model_ is repairing.repair_.model is not model
    assert [module.training for module in model] == [True, True, True]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])
    _assert_untouched(dataset, before)


def test_forward_function_and_output_transform() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _network()

        def forward(self, *, columns: torch.Tensor) -> tuple[str, torch.Tensor]:
            return "scores", self.body(columns)

    dataset = _dataset()
    options: dict[str, Any] = {
        "forward_fn": lambda model, inputs: model(columns=inputs),
        "output_transform": lambda output: output[1],
    }
    plain, wrapped = _repairing().fit(dataset), _repairing(model=Wrapped(), **options).fit(dataset)
    np.testing.assert_array_equal(plain.predict(dataset).scores, wrapped.predict(dataset).scores)
    np.testing.assert_array_equal(
        predict_dataset(Wrapped(), dataset, **options).scores, predict_dataset(_network(), dataset).scores
    )


def test_metadata_like_aif360s() -> None:
    dataset = _dataset()
    repairing = _repairing(sides={"unprivileged_groups": {"sex": 0}, "privileged_groups": {"sex": 1}})
    assert isinstance(repairing, Transformer)
    predicted = repairing.fit(dataset).predict(dataset)
    assert predicted.metadata["transformer"] == "NetworkPostProcessing.predict"
    assert predicted.metadata["previous"] == [dataset]
    parameters = predicted.metadata["params"]
    assert parameters["unprivileged_groups"] == [{"sex": 0}] and parameters["model"] == "Sequential"
    assert parameters["post_processor"].startswith("RandomPerturbation(")
    # no network and no tensor travels with the data
    assert len(pickle.dumps(parameters)) < 1000
    assert predicted.copy(deepcopy=True) == predicted
    both = repairing.fit_predict(dataset, predict_dataset(_network(), dataset))
    assert both.metadata["transformer"] == "NetworkPostProcessing.fit_predict" and len(both.metadata["previous"]) == 2
    assert both == predicted


def test_beside_aif360s_post_processors() -> None:
    validation, test = _dataset(300), _dataset(200, seed=5)
    model = _network()
    guessed, unseen = predict_dataset(model, validation), predict_dataset(model, test)
    snapshots = [(dataset, _snapshot(dataset)) for dataset in (validation, test, guessed, unseen)]
    reject = RejectOptionClassification(**SEX, num_class_thresh=10, num_ROC_margin=5, metric_ub=0.1, metric_lb=-0.1)
    rivals = [
        reject,
        CalibratedEqOddsPostprocessing(**SEX, seed=1),
        EqOddsPostprocessing(**SEX, seed=1),
        _repairing(ParityFineTuning(epsilon=0.1), model=model),
    ]
    state = np.random.get_state()
    gaps = []
    for rival in rivals:
        # fitted alike, and each takes what the network predicts
        predicted = rival.fit(validation, guessed).predict(unseen)
        gaps.append(ClassificationMetric(test, predicted, **SEX).statistical_parity_difference())
    np.random.set_state(state)
    for dataset, before in snapshots:
        before["ignore_fields"] = dataset.ignore_fields  # AIF360 changes it itself
        _assert_untouched(dataset, before)
    before_gap = ClassificationMetric(test, unseen, **SEX).statistical_parity_difference()
    assert abs(gaps[0]) < abs(before_gap) and abs(gaps[-1]) < abs(before_gap)
    # AIF360's can follow on a repaired network's predictions
    again = reject.fit(validation, rivals[-1].predict(validation)).predict(rivals[-1].predict(test))
    assert again.labels.shape == test.labels.shape


def test_prediction_needs_neither_label_nor_protected_attribute() -> None:
    dataset = _dataset()
    repairing = _repairing(model=_network(2), features=["b", "c"]).fit(dataset)
    expected = repairing.predict(dataset)
    blind = dataset.copy()
    blind.labels, blind.protected_attributes = np.full((290, 1), 7.0), np.full((290, 2), 7.0)
    blind.features = dataset.features.copy()
    blind.features[:, :3] = 7.0
    np.testing.assert_array_equal(repairing.predict(blind).scores, expected.scores)


def _reordered(dataset: Any, names: list[str]) -> Any:
    other = dataset.copy()
    other.feature_names = names
    other.features = np.stack(
        [dataset.features[:, NAMES.index(name)] if name in NAMES else dataset.features[:, 1] for name in names], 1
    )
    return other


def test_features_are_found_by_name() -> None:
    dataset = _dataset()
    everything, some = _repairing().fit(dataset), _repairing(model=_network(2), features=["b", "c"]).fit(dataset)
    assert everything.feature_names_ == tuple(NAMES) and some.feature_names_ == ("b", "c")
    shuffled = _reordered(dataset, ["c", "race", "b", "sex", "a"])
    np.testing.assert_array_equal(everything.predict(shuffled).scores, everything.predict(dataset).scores)
    wider = _reordered(dataset, ["new", "c", "b"])
    np.testing.assert_array_equal(some.predict(wider).scores, some.predict(dataset).scores)
    with pytest.raises(InputError, match=r"lacks \['sex', 'a', 'race'\] and has unexpected \['new'\]; expected the sa"):
        everything.predict(wider)
    with pytest.raises(InputError, match=r"it has unexpected \['new'\]"):
        everything.predict(_reordered(dataset, [*NAMES, "new"]))
    with pytest.raises(InputError, match=r"it lacks \['c'\]"):
        some.predict(_reordered(dataset, ["b", "a"]))
    with pytest.raises(InputError, match=r"it lacks \['c'\]"):
        some.fit(dataset, dataset_selection=_reordered(dataset, ["b", "a"]))


# --- refusals ----------------------------------------------------------------------------------------------------


def test_the_groups_name_the_sides() -> None:
    with pytest.raises(InputError, match="has privileged='Male'; expected None"):
        _repairing(RandomPerturbation(privileged="Male"))
    repairing = _repairing()
    repairing.post_processor.set_params(privileged=1)
    with pytest.raises(InputError, match="has privileged=1; expected None"):
        repairing.fit(_dataset())


def test_predict_before_fit() -> None:
    with pytest.raises(NotFittedError, match=r"call fit\(dataset_true\) first"):
        _repairing().predict(_dataset())


def test_predictions_of_other_people_are_refused() -> None:
    dataset = _dataset()
    guessed = predict_dataset(_network(), dataset)
    assert _repairing().fit(dataset, guessed).model_ is not None
    heavier = guessed.copy()
    heavier.instance_weights = guessed.instance_weights + 1
    for other, message in (
        (heavier, "differs from dataset_true in instance_weights; expected the same rows"),
        (guessed.subset(range(100)), "in instance_names, features, protected_attributes, instance_weights; expec"),
        (_dataset(unfavorable=2.0), "in unfavorable_label; expected"),
        (dataset.labels, "dataset_pred is a ndarray; expected an aif360.datasets.BinaryLabelDataset"),
    ):
        with pytest.raises(InputError, match=message):
            _repairing().fit(dataset, other)


def test_wrong_sides() -> None:
    dataset = _dataset()
    for sides, message in (
        (([{"sex": 0}], [{"sex": 0}, {"race": 2}]), r"of 290 rows are in both unprivileged_groups=\[\{'sex': 0\}\]"),
        (([{"sex": 0}], [{"sex": 3}]), r"nobody in the dataset is in privileged_groups=.*'sex': \[0.0, 1.0\]"),
        (([{"sex": 3}], [{"sex": 1}]), "nobody in the dataset is in unprivileged_groups="),
        (([{"age": 0}], [{"sex": 1}]), r"unprivileged_groups=.* names \['age'\]; the dataset's protected attributes"),
        (([{"a": 0}], [{"sex": 1}]), r"names \['a'\]; the dataset's protected attributes are \['sex', 'race'\]"),
        (([], [{"sex": 1}]), r"unprivileged_groups=\[\]; expected a list of dicts"),
        (
            ([{"sex": 0}], None),
            r"privileged_groups=None, and unprivileged_groups=\[\{'sex': 0\}\]; expected both sides",
        ),
        (([{"sex": 0}], "sex"), "privileged_groups='sex'; expected a list of dicts"),
        (([{"sex": 0}], ["sex"]), r"privileged_groups=\['sex'\]; expected a list of dicts"),
    ):
        with pytest.raises(InputError, match=message):
            to_validation_set(dataset, *sides)
        with pytest.raises(InputError, match=message):
            _repairing(sides=dict(zip(SEX, sides, strict=True))).fit(dataset)


def test_wrong_datasets() -> None:
    dataset, structured = _dataset(), _dataset()
    structured.__class__ = StructuredDataset
    other_labels, infinite, negative, longer = (dataset.copy() for _ in range(4))
    other_labels.labels = np.where(np.arange(290)[:, None] == 3, 4.0, dataset.labels)
    infinite.features = np.where(dataset.features == dataset.features[5, 3], np.inf, dataset.features)
    negative.instance_weights = dataset.instance_weights - 1.0
    longer.instance_weights = np.ones(291)
    one_label = dataset.subset(np.flatnonzero(dataset.labels[:, 0] == 1.0).tolist())
    for wrong, message in (
        (dataset.features, "is a ndarray; expected an aif360.datasets.BinaryLabelDataset"),
        (structured, "is a StructuredDataset; expected an"),
        (other_labels, r"has the labels \[4.0\] beside the favorable_label 1.0 and the unfavorable_label 0.0; expect"),
        (infinite, r"the features \['b'\] hold values that are not finite as torch.float32"),
        (negative, "instance weights are negative"),
        (longer, "has 291 instance weights and 290 rows"),
        (one_label, "everybody in the validation data has label 1"),
    ):
        with pytest.raises(InputError, match=message):
            _repairing().fit(wrong)
    for wrong in (other_labels, infinite, longer, dataset.features):
        with pytest.raises(InputError):
            to_tensors(wrong)
    large = dataset.copy()
    large.features = dataset.features * 1e300
    assert to_tensors(large, dtype=torch.float64).inputs.isfinite().all()
    with pytest.raises(InputError, match=r"not finite as torch\.float32"):
        predict_dataset(_network(), large)


def test_wrong_features() -> None:
    dataset = _dataset()
    for features, message in (
        (["a", "x"], r"has no features \['x'\]; expected some of \['sex', 'a'"),
        (["a", "a"], r"the features \['a'\] occur more than once"),
        ([], "features names none"),
        ("a", r"features='a' is a string; expected a list of names: \['a'\]"),
    ):
        for call in (
            lambda features=features: to_tensors(dataset, features=features),
            lambda features=features: predict_dataset(_network(), dataset, features=features),
            lambda features=features: _repairing(features=features).fit(dataset),
        ):
            with pytest.raises(InputError, match=message):
                call()


def test_wrong_networks_and_scores() -> None:
    dataset = _dataset()
    with pytest.raises(InputError, match=r"model is a RandomPerturbation; expected a torch.nn.Module"):
        NetworkPostProcessing(RandomPerturbation(), _network(), **SEX)
    with pytest.raises(InputError, match="post_processor is a str; expected one of fairtrim's"):
        NetworkPostProcessing(_network(), "parity", **SEX)
    with pytest.raises(InputError, match="the network has 3 classes; expected two, or one logit"):
        _repairing(ParityFineTuning(), model=nn.Linear(5, 3)).fit(dataset)
    for scores, message in (
        (torch.zeros(290, 3), "3 classes have no single threshold"),
        (torch.zeros(289, 2), r"the scores have shape \(289, 2\) for 290 rows; expected \(290, 2\)"),
        (torch.zeros(290, 2, 1), r"shape \(290, 2, 1\) for 290 rows"),
        (torch.full((290,), torch.nan), "the scores of 290 of 290 rows are not finite"),
    ):
        with pytest.raises(InputError, match=message):
            to_dataset(dataset, scores)
    with pytest.raises(InputError, match="batch_size=0; expected at least 1"):
        predict_dataset(_network(), dataset, batch_size=0)


def test_wrong_tensors() -> None:
    good: dict[str, Any] = {
        "inputs": torch.eye(4),
        "target": torch.tensor([0, 1, 0, 1]),
        "feature_names": ["p", "q", "r", "s"],
        "protected_attributes": ["s"],
    }
    assert from_tensors(**good).feature_names == ["p", "q", "r", "s"]
    for change, message in (
        ({"inputs": torch.ones(4)}, r"the inputs have shape \(4,\) for 4 names"),
        ({"feature_names": ["p"]}, r"the inputs have shape \(4, 4\) for 1 names"),
        ({"feature_names": ["p", "q", "p", "s"]}, r"the feature names \['p'\] occur more than once"),
        ({"target": torch.tensor([0, 1, 2, 1])}, r"the target holds \[0.0, 1.0, 2.0\]; expected 1 for the favorable"),
        ({"target": torch.tensor([0, 1])}, "4 inputs and 2 targets; expected as many"),
        ({"protected_attributes": ["x"]}, r"protected_attributes names \['x'\], which are no features"),
        ({"protected_attributes": "s"}, r"protected_attributes='s' is a string; expected a list of names: \['s'\]"),
        ({"protected_attributes": {"x": torch.ones(3)}}, "'x' has 3 values for 4 inputs"),
        ({"weight": torch.ones(5)}, "'weight' has 5 values for 4 inputs"),
        ({"label_name": "s"}, "label_name='s' is a feature"),
        ({"unfavorable_label": 1}, "favorable_label and unfavorable_label are both 1"),
        ({"inputs": torch.eye(4) / torch.tensor([1, 1, 0, 1.0])}, r"\['r'\] hold values that are not finite"),
        ({"instance_names": ["x"]}, "1 instance_names for 4 inputs; expected as many"),
    ):
        with pytest.raises(InputError, match=message):
            from_tensors(**{**good, **change})
