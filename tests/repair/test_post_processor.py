"""What all post-processors share: who is edited on and who selects, settings, random states."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.metadata import EntryPoint
from typing import Any

import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import ParameterGrid
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fairtrim import (
    POST_PROCESSORS,
    AdversarialFineTuning,
    AdversarialProjection,
    BiasGradientDescent,
    FairtrimError,
    InputError,
    LayerwiseOptimization,
    ParityFineTuning,
    PostProcessor,
    RandomPerturbation,
    ThresholdSelection,
    UnsupportedModelError,
    ValidationSet,
)
from tests.registries import keep
from tests.repair_cases import LEARNS_BY_STEPS, METHODS, A, X, Y, begun_network, judgement_of, labels_by, some_people
from tests.snapshot import Snapshot


def _loader(people: ValidationSet, batch_size: int = 40) -> DataLoader[Any]:
    return DataLoader(TensorDataset(people.inputs, people.target, people.group), batch_size=batch_size)


def test_a_threshold_alone_refuses_three_classes() -> None:
    people, model = some_people(199, n_groups=3, n_classes=3), begun_network(3)
    before = Snapshot(model)
    with pytest.raises(
        InputError, match=r"has 3 classes and \w+ is defined for two; expected two, or one of .*'ParityFineTuning'"
    ):
        ThresholdSelection().repair(model, people, progress=False)
    before.assert_unchanged()


@pytest.mark.parametrize("measure", ["demographic_parity_difference", "equalized_odds_difference"])
@pytest.mark.parametrize("name", [name for name in METHODS if "parity" not in name])
def test_three_classes_are_told_one_against_the_rest(name: str, measure: str) -> None:
    """The network, and each point of its history, judged by the worst class, and no threshold."""
    people, model = some_people(139, n_groups=3, n_classes=3, weighted=True), begun_network(3)
    order = torch.randperm(139, generator=torch.Generator().manual_seed(5))
    people = replace(people, group=torch.where(order < 90, people.group, order % 3))  # each class in each group
    method = METHODS[name](measure=measure, epsilon=0.3)
    repair = method.repair(model, people, progress=False)
    selection = people.take(repair.selection_rows)
    before, after = (judgement_of(method, labels_by(m, selection), selection, 3) for m in (model, repair.model))
    assert (repair.bias_before, repair.performance_before) == pytest.approx(before)
    assert (repair.bias, repair.performance) == pytest.approx(after)
    assert len(repair.history) > 1 and repair.chosen.margin_threshold == 0


@pytest.mark.parametrize("name", METHODS)
def test_same_random_state_same_repair(name: str) -> None:
    people, model = some_people(), begun_network()

    def run(random_state: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]], Tensor]:
        repair = METHODS[name](epsilon=0.1, random_state=random_state).repair(model, people, progress=False)
        history = [{k: v for k, v in entry.items() if k != "seconds"} for entry in repair.history]
        return repair.model.state_dict(), history, repair.selection_rows

    first = run(3)
    torch.manual_seed(999)  # the global state doesn't matter
    for again in (run(3), run(torch.Generator().manual_seed(3))):
        torch.testing.assert_close(again[0], first[0], rtol=0, atol=0)
        assert again[1] == first[1] and torch.equal(again[2], first[2])
    assert run(4)[1] != first[1]
    generator = torch.Generator().manual_seed(3)
    run(generator)
    assert run(generator)[1] != first[1]  # a generator goes on


# Who is edited on and who selects.


@pytest.mark.parametrize("share", [0.3, 0.6])
@pytest.mark.parametrize("name", METHODS)
def test_rows(name: str, share: float) -> None:
    people = some_people(n_groups=3)
    repair = METHODS[name](epsilon=0.3, selection_share=share).repair(begun_network(), _loader(people), progress=False)
    edit, selection = repair.edit_rows.tolist(), repair.selection_rows.tolist()
    if name == "random perturbation":
        assert edit == [] and selection == list(range(97))
    else:
        assert sorted(edit + selection) == list(range(97)) and edit == sorted(edit) and selection == sorted(selection)
        for g in range(3):
            for label in range(2):
                cell = ((people.group == g) & (people.target == label)).nonzero().flatten().tolist()
                assert abs(len(set(cell) & set(selection)) - share * len(cell)) <= 0.5
    chosen = people.take(repair.selection_rows)
    method = METHODS[name]()
    assert (repair.bias, repair.performance) == pytest.approx(
        judgement_of(method, labels_by(repair.model, chosen), chosen)
    )
    assert f"selected on {len(selection)} people, edited on {len(edit)}" in str(repair)


class Witness:
    """A hook that notes whom gradients are computed for, by the last column of the inputs."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __deepcopy__(self, memo: Any) -> Witness:
        return self

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled():
            self.seen |= set((args[0][:, 2] * 1e9).round().long().tolist())


@pytest.mark.parametrize("separate", [False, True], ids=["split", "selection_loader"])
@pytest.mark.parametrize("name", LEARNS_BY_STEPS)
def test_edit_sees_its_rows_only(name: str, separate: bool) -> None:
    people, others, model, witness = some_people(), some_people(61, seed=9), begun_network(), Witness()
    model[0].register_forward_pre_hook(witness)
    names = (people.inputs[:, 2] * 1e9).round().long()
    repair = METHODS[name](epsilon=0.2, **({} if separate else {"selection_share": 0.5})).repair(
        model, _loader(people), selection_loader=_loader(others) if separate else None, progress=False
    )
    assert witness.seen and witness.seen <= set(names[repair.edit_rows].tolist())
    assert separate or not witness.seen & set(names[repair.selection_rows].tolist())


@pytest.mark.parametrize("name", METHODS)
def test_selection_loader(name: str) -> None:
    """They select; the given people only edit."""
    edit, selection = some_people(61, seed=1), some_people(67, seed=2)
    method = METHODS[name](epsilon=0.1)
    repair = method.repair(begun_network(), _loader(edit), selection_loader=_loader(selection), progress=False)
    edited = [] if name == "random perturbation" else list(range(61))  # its edit sees no data
    assert repair.edit_rows.tolist() == edited and repair.selection_rows.tolist() == list(range(67))
    labels = labels_by(repair.model, selection)
    assert (repair.bias, repair.performance) == pytest.approx(judgement_of(method, labels, selection))
    again = method.repair(begun_network(), edit, selection_loader=selection, progress=False)  # sets in memory
    torch.testing.assert_close(repair.model.state_dict(), again.model.state_dict(), rtol=0, atol=0)
    same = method.repair(begun_network(), edit, selection_loader=edit, progress=False)
    assert same.edit_rows.tolist() == edited and same.selection_rows.tolist() == list(range(61))


def test_privileged_side_gives_biases_a_sign() -> None:
    people, model = some_people(n_groups=3), begun_network()
    for privileged in ("a", "c", ["b", "c"]):
        method = METHODS["bias descent"](epsilon=0.2, privileged=privileged)
        repair = method.repair(model, _loader(people), sensitive_names={"team": list("abc")}, progress=False)
        selection = people.with_sides(privileged).take(repair.selection_rows)
        before = judgement_of(method, labels_by(model, selection), selection)
        assert repair.bias_before == pytest.approx(before[0]) and abs(before[0]) > 0.2
        assert (repair.bias_before > 0) == (privileged == "a")  # a has the fewest of label 1
        assert repair.within_bound
        given = method.repair(model, people, progress=False)  # a set without sides is given some
        assert given.chosen == repair.chosen


def test_without_a_network() -> None:
    with pytest.raises(InputError, match=r"model is a dict; expected a torch\.nn\.Module"):
        RandomPerturbation().repair({}, [(X, Y, A)])  # type: ignore[arg-type]


# Settings.

BAD_SETTINGS: list[tuple[type[PostProcessor], dict[str, Any], str]] = [
    (RandomPerturbation, {"measure": "parity"}, "measure='parity' is not a bias measure; expected one of"),
    (RandomPerturbation, {"performance": "auc"}, "performance='auc' is not a performance measure; expected one of"),
    (RandomPerturbation, {"epsilon": 0.0}, "expected 0 <= margin < epsilon <= 1"),
    (RandomPerturbation, {"epsilon": 0.1, "margin": 0.2}, "expected 0 <= margin < epsilon <= 1"),
    (RandomPerturbation, {"epsilon": math.nan}, "expected a finite number"),
    (RandomPerturbation, {"selection_share": 1.0}, r"selection_share=1.0; expected a share in \(0, 1\)"),
    (RandomPerturbation, {"max_seconds": 0}, "max_seconds=0; expected a positive number or None"),
    (RandomPerturbation, {"patience": -1}, "patience=-1; expected a positive number or None"),
    (RandomPerturbation, {"batch_size": 0}, "batch_size=0; expected a positive number$"),
    (RandomPerturbation, {"random_state": None}, r"random_state=None; expected a whole number or a torch\.Generator"),
    (RandomPerturbation, {"trials": 0}, "expected at least 1 trial and a positive deviation"),
    (RandomPerturbation, {"deviation": 0.0}, "expected at least 1 trial and a positive deviation"),
    (LayerwiseOptimization, {"tensors": 0}, "tensors=0.*expected positive numbers"),
    (LayerwiseOptimization, {"max_evaluations": 0}, "max_evaluations=0.*expected positive numbers"),
    (LayerwiseOptimization, {"width": -1.0}, r"width=-1\.0.*expected positive numbers"),
    (ParityFineTuning, {"layers": "last"}, "layers='last'; expected 'output' or 'all'"),
    (ParityFineTuning, {"penalties": []}, r"penalties=\[\]; expected at least one strength, none negative"),
    (ParityFineTuning, {"penalties": [1.0, -2.0]}, "expected at least one strength, none negative"),
    (ParityFineTuning, {"epochs": 0}, "epochs=0.*expected at least 1 epoch"),
    (ParityFineTuning, {"training_batch_size": 1}, "training_batch_size=1.*batches of at least 2"),
    (ParityFineTuning, {"learning_rate": 0.0}, r"learning_rate=0\.0.*a positive learning rate"),
    (ParityFineTuning, {"ridge": -1.0}, r"ridge=-1\.0.*a ridge of at least 0"),
    (BiasGradientDescent, {"evaluate_every": 0}, "evaluate_every=0.*expected positive numbers"),
    (BiasGradientDescent, {"training_batch_size": 1}, "batches of at least 2"),
    (
        BiasGradientDescent,
        {"performance_floor": 60},
        r"performance_floor=60; expected a performance in \[0, 1\], or None",
    ),
    (AdversarialFineTuning, {"critic_steps": 0}, "'critic_steps': 0.*expected positive numbers"),
    (AdversarialFineTuning, {"strength": 0.0}, r"strength=0\.0; expected positive numbers"),
    (AdversarialProjection, {"epochs": 0}, "epochs=0; expected"),
    (AdversarialProjection, {"training_batch_size": 1}, "training_batch_size=1; expected"),
    (AdversarialProjection, {"adversary_learning_rate": 0.0}, r"adversary_learning_rate=0\.0; expected"),
    (AdversarialProjection, {"strength": -1.0}, r"strength=-1\.0; expected"),
]


@pytest.mark.parametrize(("method", "settings", "message"), BAD_SETTINGS, ids=lambda value: str(value)[:60])
def test_bad_settings(method: type[PostProcessor], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(**settings)
    fine = method()
    before = fine.get_params()
    with pytest.raises(InputError, match=message):
        fine.set_params(**settings)
    if math.nan not in settings.values():
        assert fine.get_params() == before
    for name, value in settings.items():  # written past set_params: fit looks again, before anything else
        setattr(fine, name, value)
    with pytest.raises(InputError, match=message):
        fine.repair(nn.Linear(3, 2), [])


@pytest.mark.parametrize("name", METHODS)
def test_parameters_as_scikit_learn_has_them(name: str) -> None:
    method = METHODS[name](epsilon=0.2, random_state=7, privileged=["a", "b"])
    copied = clone(method)
    assert type(copied) is type(method) and copied is not method and copied.get_params() == method.get_params()
    assert {"measure", "epsilon", "margin", "performance", "privileged", "random_state"} <= set(method.get_params())
    assert copied.set_params(epsilon=0.3, margin=0.25) is copied
    assert (copied.epsilon, copied.margin, method.epsilon) == (0.3, 0.25, 0.2)
    with pytest.raises(InputError, match=r"has no setting \['epsilom'\]; expected some of \["):
        copied.set_params(epsilom=0.1, margin=0.0)
    assert copied.margin == 0.25
    method.set_params(privileged=None)
    people = some_people()
    biases = [
        abs(clone(method).set_params(**point).repair(begun_network(), people, progress=False).bias)
        for point in ParameterGrid({"epsilon": [0.08, 0.3]})
    ]
    assert biases[0] < 0.07 and biases[1] < 0.29


def test_clone_goes_on_with_a_generator_of_its_own() -> None:
    method = METHODS["random perturbation"](random_state=torch.Generator().manual_seed(3), epsilon=0.2)
    copied = clone(method)
    assert copied.random_state is not method.random_state
    first, second = (m.repair(begun_network(), some_people(), progress=False) for m in (method, copied))
    assert first.chosen == second.chosen


def test_every_error_is_named() -> None:
    assert issubclass(InputError, FairtrimError) and issubclass(UnsupportedModelError, FairtrimError)
    assert {type(make()) for make in METHODS.values()} == {
        RandomPerturbation,
        LayerwiseOptimization,
        ParityFineTuning,
        BiasGradientDescent,
        AdversarialFineTuning,
        AdversarialProjection,
    }


def test_other_sides_than_the_people_s() -> None:
    people = some_people(privileged="a")
    with pytest.raises(InputError, match="privileged='b', but in the data the privileged side is 'a'"):
        RandomPerturbation(trials=1, privileged="b").repair(begun_network(), people, progress=False)
    method = RandomPerturbation(trials=1, privileged="a", epsilon=0.2)
    assert method.repair(begun_network(), people, progress=False).within_bound


def test_sides_of_several_values_named_twice() -> None:
    people = some_people(n_groups=3, privileged=["b", "c"])
    method = RandomPerturbation(trials=1, epsilon=0.3, privileged=["b", "c"])
    assert method.repair(begun_network(), people, progress=False).within_bound


# Old names.


def test_what_repair_used_to_be_called() -> None:
    with pytest.raises(AttributeError, match="RandomPerturbation has no fit; it is called repair"):
        RandomPerturbation().fit(begun_network(), some_people())
    with pytest.raises(InputError, match="Old implements fit; expected repair, as it is called now"):

        class Old(RandomPerturbation):
            def fit(self, *arguments: Any, **options: Any) -> Any:
                raise NotImplementedError

    for old, new in (("data", "loader"), ("selection_data", "selection_loader")):
        with pytest.raises(InputError, match=f"has no {old}=; it is called {new}="):
            RandomPerturbation().repair(begun_network(), **{old: some_people()})


def test_aif360_s_name_of_a_measure_means_the_same() -> None:
    repairs = [
        METHODS["parity, output"](measure=measure, epsilon=0.2).repair(begun_network(), some_people(), progress=False)
        for measure in ("demographic_parity_difference", "statistical_parity_difference")
    ]
    assert [entry["bias"] for entry in repairs[0].history] == [entry["bias"] for entry in repairs[1].history]
    for repair in repairs:
        assert str(repair).startswith("demographic_parity_difference among a, b ")
        assert repair.to_frame().columns[2] == "demographic_parity_difference"
    method = RandomPerturbation(measure="statistical_parity_difference")
    assert method.get_params()["measure"] == "statistical_parity_difference"
    with pytest.raises(InputError, match="measure='accuracy_difference' is called 'accuracy_score_difference'"):
        RandomPerturbation(measure="accuracy_difference")


def test_an_edit_of_the_old_interface() -> None:
    message = r"Old\._edit takes \(workspace\); expected \(working, candidates\): see docs/adding_a_post_processor.md"
    with pytest.raises(InputError, match=message):

        class Old(PostProcessor):
            def _edit(self, workspace: Any) -> None:  # type: ignore[override]
                raise NotImplementedError

    class Other(PostProcessor):
        def _edit(self, *both: Any) -> None:
            raise NotImplementedError


def test_a_refusal_loads_no_other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    keep(POST_PROCESSORS, monkeypatch)
    announced = EntryPoint("broken", "nowhere.at.all:Thing", POST_PROCESSORS.group)
    monkeypatch.setattr("fairtrim.registry.entry_points", lambda group: [announced])
    monkeypatch.setattr(EntryPoint, "load", lambda self: pytest.fail("loaded"))
    with pytest.raises(InputError, match="has 3 classes"):
        ThresholdSelection().repair(begun_network(3), some_people(199, n_groups=3, n_classes=3), progress=False)
