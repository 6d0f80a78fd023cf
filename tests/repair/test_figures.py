"""What a repair says it did: figures against plain ones, intervals against a bootstrap."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fairtrim.measures.objective import Objective
from fairtrim.repair.figures import figures_of, moved
from tests.plain_measures import plain_bias, plain_performance, plain_rates
from tests.repair_cases import some_people


def _decided(people: Any, n_classes: int, seed: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(len(people), generator=generator) < 0.7 - 0.1 * people.group
    other = torch.randint(n_classes, (len(people),), generator=generator)
    return torch.where(right, people.target, other).numpy()


def _given(labels: np.ndarray, n_classes: int) -> torch.Tensor:
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(labels), n_classes).double()
    return one_hot[:, 1:] if n_classes == 2 else one_hot


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("measure", "n_classes"), [("equalized_odds_difference", 2), ("accuracy_score_difference", 3)])
@pytest.mark.parametrize("performance", ["balanced_accuracy", "f1"])
def test_figures_are_the_plain_ones(measure: str, n_classes: int, weighted: bool, performance: str) -> None:
    people = some_people(257, n_groups=3, n_classes=n_classes, weighted=weighted)
    before, after = (_decided(people, n_classes, seed) for seed in (1, 2))
    objective = Objective(measure, 0.1, performance=performance)
    figures = figures_of(objective, people, _given(before, n_classes), _given(after, n_classes))
    options = {"weight": None if people.weight is None else people.weight.numpy(), "n_classes": n_classes}
    w = np.ones(257) if people.weight is None else people.weight.numpy()
    found = {(figure.name, figure.sensitive_group): figure for figure in figures}
    for labels, side in ((before, "before"), (after, "after")):
        plain = plain_bias(measure, labels, people.target, people.group, n_groups=3, signed=False, **options)
        assert getattr(found[measure, None], side) == pytest.approx(plain)
        plain = plain_performance(performance, labels, people.target, **options)
        assert getattr(found[performance, None], side) == pytest.approx(plain)
        right = labels == people.target.numpy()
        assert getattr(found["accuracy", None], side) == pytest.approx((w * right).sum() / w.sum())
        for g, name in enumerate("abc"):
            own = people.group.numpy() == g
            assert getattr(found["accuracy", name], side) == pytest.approx((w * right)[own].sum() / w[own].sum())
            assert found["accuracy", name].people == own.sum()
            if n_classes == 2:
                assert getattr(found["selection rate", name], side) == pytest.approx(
                    (w * labels)[own].sum() / w[own].sum()
                )
                for what, label in (("true", 1), ("false", 0)):
                    rows = own & (people.target.numpy() == label)
                    rate = (w * labels)[rows].sum() / w[rows].sum()
                    assert getattr(found[f"{what} positive rate", name], side) == pytest.approx(rate)
    assert (("selection rate", None) in found) == (n_classes == 2)
    for figure in figures:
        assert figure.change == pytest.approx(figure.after - figure.before)
        assert figure.before_low <= figure.before <= figure.before_high


def test_intervals_are_about_those_of_a_bootstrap() -> None:
    people = some_people(601, n_groups=2)
    before, after = (_given(_decided(people, 2, seed), 2) for seed in (1, 2))
    objective = Objective("equal_opportunity_difference", 0.1, performance="balanced_accuracy")
    figures = figures_of(objective, people, before, after)
    draws = np.random.default_rng(0)
    changes = []
    for _ in range(300):
        count = torch.from_numpy(draws.multinomial(601, np.full(601, 1 / 601))).double()
        again = figures_of(objective, replace(people, weight=count), before, after)
        changes.append([(figure.before, figure.change) for figure in again])
    spread = np.array(changes).std(0)
    for figure, (of_before, of_change) in zip(figures, spread, strict=True):
        if figure.name == "equal_opportunity_difference":  # the larger of two has a corner
            continue
        assert (figure.before_high - figure.before_low) / 2 / 1.96 == pytest.approx(of_before, rel=0.2), figure
        assert (figure.change_high - figure.change_low) / 2 / 1.96 == pytest.approx(of_change, rel=0.2), figure


def test_what_moved_is_said() -> None:
    people = some_people(601, n_groups=2)
    same = _given(_decided(people, 2, 1), 2)
    objective = Objective("demographic_parity_difference", 0.1)
    assert moved(figures_of(objective, people, same, same)) == []
    more = same.clone()
    more[(people.group == 1) & (people.target == 0)] = 1.0
    rate, *accuracies = moved(figures_of(objective, people, same, more))
    assert rate.startswith("the selection rate moved from 0.")
    assert all("b (" in told and "a (" not in told for told in accuracies) and accuracies


def test_nobody_changed_is_not_nothing_possible() -> None:
    people = some_people(41, n_groups=2)
    same = _given(_decided(people, 2, 1), 2)
    for figure in figures_of(Objective("demographic_parity_difference", 0.1), people, same, same):
        assert figure.change == 0 and figure.change_low < 0 < figure.change_high and not figure.moved


def test_the_interval_of_a_bias_of_none() -> None:
    """Where the largest and the smallest rate are alike the difference still has an error."""
    people = some_people(40)
    group = torch.arange(40) % 2
    given = (torch.arange(40) // 2 % 2).double()[:, None]
    alike = replace(people, group=group)
    (bias, *_) = figures_of(Objective("demographic_parity_difference", 0.1), alike, given, given)
    assert bias.before == 0 and bias.before_high == pytest.approx(1.96 * np.sqrt(0.25 / 20 * 2 + 1 / 20**2), rel=1e-3)


def test_a_group_of_nobody_has_no_figures() -> None:
    people = some_people(41)
    more = replace(people, groups=("a", "b", "nobody"))
    given = _given(_decided(people, 2, 1), 2)
    figures = figures_of(Objective("counterfactual_flips", 0.1), more, given, 1 - given)
    assert {figure.sensitive_group for figure in figures} == {None, "a", "b"}
    assert all(np.isfinite(figure[3:]).all() for figure in figures)


@pytest.mark.parametrize("measure", ["demographic_parity_difference", "equalized_odds_difference"])
def test_of_more_classes_the_rates_of_those_that_make_the_bias_are_told(measure: str) -> None:
    people = some_people(257, n_groups=3, n_classes=4)
    rows = torch.arange(257)
    people = replace(people, group=torch.where(rows % 2 == 0, people.group, rows % 3))  # every class in every group
    before, after = (_decided(people, 4, seed) for seed in (1, 2))
    figures = figures_of(Objective(measure, 0.1), people, _given(before, 4), _given(after, 4))
    found = {(figure.name, figure.sensitive_group): figure for figure in figures}
    told = set()
    for labels in (before, after):
        options = {"n_groups": 3, "n_classes": 4}
        by_row = plain_rates(measure, labels, people.target, people.group, **options)
        places = [k for k in range(4) for _ in range(len(by_row) // 4)]
        told.add(places[int(np.argmax([max(row) - min(row) for row in by_row]))])
    assert {int(name[-1]) for name, _ in found if name.startswith("selection rate")} == told
    target, group = people.target.numpy(), people.group.numpy()
    for k in told:
        for labels, side in ((before, "before"), (after, "after")):
            assert getattr(found[f"selection rate of {k}", None], side) == pytest.approx(np.mean(labels == k))
            for g, name in enumerate("abc"):
                own = labels[group == g] == k
                assert getattr(found[f"selection rate of {k}", name], side) == pytest.approx(own.mean())
                if measure == "equalized_odds_difference":
                    is_label = target[group == g] == k
                    for what, among in (("true", is_label), ("false", ~is_label)):
                        rate = getattr(found[f"{what} positive rate of {k}", name], side)
                        assert rate == pytest.approx(own[among].mean())
    if measure == "demographic_parity_difference":
        assert not any("positive rate" in name for name, _ in found)
