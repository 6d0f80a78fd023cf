"""Parity fine-tuning against an independent optimiser, for any number of classes and groups."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from fairtrim import (
    InputError,
    ParityFineTuning,
    ValidationSet,
)
from fairtrim.repair.candidates import Candidates
from tests.repair_cases import METHODS, begun_network, judgement_of, labels_by, plain_flags, some_people


@pytest.mark.parametrize(
    ("measure", "n_outputs", "n_groups", "weighted", "performance"),
    [
        ("demographic_parity_difference", 2, 2, False, "balanced_accuracy"),
        ("equalized_odds_difference", 2, 3, True, "balanced_accuracy"),
        ("average_odds_difference", 1, 3, True, "accuracy"),
        ("demographic_parity_difference", 3, 2, False, "f1"),
    ],
)
def test_output_layer_equals_an_independent_optimiser(
    measure: str,
    n_outputs: int,
    n_groups: int,
    weighted: bool,
    performance: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_classes, penalty, ridge = max(2, n_outputs), 1.5, 0.05
    kinds = {"n_groups": n_groups, "n_classes": n_classes, "weighted": weighted}
    edit, selection = some_people(83, seed=3, **kinds), some_people(59, seed=4, **kinds)
    model = begun_network(n_outputs)
    method = ParityFineTuning(
        measure=measure, epsilon=0.9, penalties=[penalty], ridge=ridge, performance=performance, confidence=None
    )
    offered: list[nn.Module] = []
    offer = Candidates.offer

    def noted(candidates: Candidates, **detail: Any) -> Any:
        offered.append(copy.deepcopy(candidates.working.model))
        return offer(candidates, **detail)

    monkeypatch.setattr(Candidates, "offer", noted)
    method.repair(model, edit, selection_loader=selection, progress=False)
    assert len(offered) == 2
    with torch.no_grad():
        h = model[:2](edit.inputs).numpy()
    given = np.concatenate([model[2].weight.detach().numpy(), model[2].bias.detach().numpy()[:, None]], 1)
    y, a = edit.target.numpy(), edit.group.numpy()
    w = np.ones(len(y)) if edit.weight is None else edit.weight.numpy()
    if performance == "balanced_accuracy":
        importance = np.array([w[i] / w[y == y[i]].sum() for i in range(len(y))])
    else:
        importance = w
    importance = importance / importance.mean()

    def loss(entries: np.ndarray) -> float:
        matrix = entries.reshape(given.shape)
        scores = h @ matrix[:, :-1].T + matrix[:, -1]
        if n_outputs == 1:
            scores = np.concatenate([np.zeros((len(y), 1)), scores], 1)
        logs = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        p = np.exp(logs)
        total = -(importance * logs[np.arange(len(y)), y]).mean()
        for k in [1] if n_classes == 2 else range(n_classes):

            def rate(g: int, among: np.ndarray, k: int = k) -> float:
                rows = (a == g) & among
                return float((w * p[:, k])[rows].sum() / w[rows].sum())

            everyone, of_label = np.ones(len(y), dtype=bool), y == k
            for g in range(n_groups):
                for other in range(g + 1, n_groups):
                    true = rate(g, of_label) - rate(other, of_label)
                    false = rate(g, ~of_label) - rate(other, ~of_label)
                    total += (
                        penalty
                        * {
                            "demographic_parity_difference": (rate(g, everyone) - rate(other, everyone)) ** 2,
                            "equalized_odds_difference": true**2 + false**2,
                            "average_odds_difference": ((true + false) / 2) ** 2,
                        }[measure]
                    )
        return total + ridge * ((matrix - given) ** 2).sum() / (given**2).sum()

    layer = offered[1][2]
    found = np.concatenate([layer.weight.detach().numpy(), layer.bias.detach().numpy()[:, None]], 1)
    best = minimize(loss, given.ravel(), method="BFGS", options={"gtol": 1e-6})
    assert loss(found.ravel()) == pytest.approx(best.fun, abs=1e-7)
    assert loss(found.ravel()) < loss(given.ravel()) - 1e-3
    np.testing.assert_allclose(found.ravel(), best.x, atol=2e-3)


@pytest.mark.parametrize("layers", ["output", "all"])
def test_three_classes_and_three_groups(layers: str) -> None:
    people, model = some_people(199, n_groups=3, n_classes=3), begun_network(3)
    training = {"epochs": 15, "learning_rate": 1e-2} if layers == "all" else {}
    method = ParityFineTuning(
        layers=layers, penalties=(1.0, 5.0, 30.0), epsilon=0.45, selection_share=0.5, confidence=None, **training
    )
    repair = method.repair(model, people, progress=False)
    selection = people.take(repair.selection_rows)
    before, after = (judgement_of(method, labels_by(m, selection), selection, 3) for m in (model, repair.model))
    assert (repair.bias_before, repair.performance_before) == pytest.approx(before)
    assert (repair.bias, repair.performance) == pytest.approx(after)
    assert before[0] > 0.6 and repair.within_bound and after[0] < 0.44
    assert repair.chosen.candidate > 0 and repair.chosen.margin_threshold == 0
    for point in repair.trade_off:
        judged = judgement_of(method, labels_by(repair._network(point), selection), selection, 3)
        assert (point.bias, point.performance) == pytest.approx(judged)


def test_output_layer_is_not_fitted_on_the_selection_people() -> None:
    edit = some_people(61, seed=1)
    weights = []
    for seed in (2, 3):
        repair = ParityFineTuning(penalties=[4.0], epsilon=0.1).repair(
            begun_network(), edit, selection_loader=some_people(67, seed=seed), progress=False
        )
        assert repair.chosen.candidate == 1
        weights.append(repair.model[2].weight)
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def test_batches_without_a_group_s_label() -> None:
    method = METHODS["parity, all"](training_batch_size=3, measure="equalized_odds_difference", epsilon=0.3)
    repair = method.repair(begun_network(), some_people(), progress=False)
    assert repair.within_bound and plain_flags(repair) == ()


def test_class_that_nobody_has() -> None:
    people = some_people(109, n_groups=3)  # labels 0 and 1
    with pytest.raises(InputError, match="nobody in one part of the validation data has label 2"):
        ParityFineTuning().repair(begun_network(3), people, progress=False)


def test_weights_of_another_type() -> None:
    people = some_people(weighted=True)
    assert people.weight is not None
    method = METHODS["parity, output"](epsilon=0.2)
    expected = method.repair(begun_network(), people, progress=False)
    repair = method.repair(begun_network(), replace(people, weight=people.weight.float()), progress=False)
    assert repair.chosen.candidate == expected.chosen.candidate


def test_rates_of_decisions_are_met_where_those_of_probabilities_are_not() -> None:
    """One group's scores are spread, the other's are not: equal mean probabilities, unequal decisions."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(4000) % 2
    x = torch.randn(4000, 3, dtype=torch.float64, generator=generator)
    x[:, 0] = (x[:, 0] * torch.where(group == 0, 0.2, 3.0)).exp()
    people = ValidationSet(x, (x[:, 0] + x[:, 1] > 1.5).long(), group, ("a", "b"))
    torch.manual_seed(0)
    repair = ParityFineTuning(epsilon=0.05).repair(nn.Linear(3, 2).double(), people, progress=False)
    assert {entry.get("width") for entry in repair.history} == {None, 4.0, 8.0, 16.0}
    assert repair.within_bound
