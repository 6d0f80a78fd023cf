"""The record of candidates: the choice, the front, budgets of time and patience."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import fairtrim.repair.candidates
from fairtrim import (
    InputError,
    RandomPerturbation,
    Repair,
)
from tests.repair_cases import (
    LEARNS_BY_STEPS,
    METHODS,
    P,
    X,
    begun_network,
    best_threshold,
    history_key,
    judgement_of,
    labels_by,
    margins_of,
    plain_flags,
    some_people,
)
from tests.snapshot import Snapshot

# The front.


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_trade_off(name: str, n_outputs: int) -> None:
    """Its points are what networks decide by themselves, none beats another, and none that there is beats them."""
    people, model = some_people(), begun_network(n_outputs)
    method = METHODS[name](epsilon=0.15, measure="equalized_odds_difference", selection_share=0.5)
    repair = method.repair(model, people, progress=False)
    selection = people.take(repair.selection_rows)
    assert len(repair.trade_off) > 5
    for point, following in pairwise(repair.trade_off):
        assert abs(point.bias) < abs(following.bias) and point.performance < following.performance
    state = copy.deepcopy(repair.model.state_dict())
    for point in repair.trade_off:
        network = repair.model_at(abs(point.bias) + 1e-12)
        judged = judgement_of(method, labels_by(network, selection), selection)
        assert judged == pytest.approx((point.bias, point.performance), abs=1e-12)
        expected = margins_of(network, selection) > 0
        assert 0 < expected.sum() < len(selection)
    torch.testing.assert_close(repair.model.state_dict(), state, rtol=0, atol=0)
    at_bound = repair.model_at(method.epsilon - method.margin)
    torch.testing.assert_close(at_bound.state_dict(), state)
    with pytest.raises(InputError, match=r"epsilon=0\.0; the least bias of the trade-off curve is 0\.\d{4}"):
        repair.model_at(0.0)
    frame = repair.to_frame()
    named = ["candidate", "threshold", "equalized_odds_difference", "balanced_accuracy", "believed"]
    assert list(frame.columns) == named
    assert frame["threshold"].tolist() == pytest.approx(
        [1 / (1 + math.exp(-point.margin_threshold)) for point in repair.trade_off]
    )
    # no threshold of the given network beats the curve
    margin = margins_of(model, selection)
    distinct = sorted(set(margin.tolist()))
    for lower, upper in pairwise(distinct):
        bias, performance = judgement_of(method, (margin > (lower + upper) / 2).astype(int), selection)
        assert any(
            abs(point.bias) <= abs(bias) + 1e-12 and point.performance >= performance - 1e-12
            for point in repair.trade_off
        )


@pytest.mark.parametrize("privileged", [None, "a"])
def test_trade_off_is_the_front_of_all_candidates_and_thresholds(privileged: Any) -> None:
    people, model = some_people(53, privileged=privileged), begun_network()
    method = RandomPerturbation(
        trials=6, deviation=0.3, measure="average_odds_difference", epsilon=0.1, confidence=None
    )
    repair = method.repair(model, people, progress=False)
    generator = torch.Generator().manual_seed(0)
    points = []
    for candidate in range(7):
        network = copy.deepcopy(model)
        for parameter in network.parameters() if candidate else ():
            noise = torch.randn(parameter.shape, generator=generator).double()
            parameter.data *= 1 + 0.3 * noise
        margin = margins_of(network, people)
        for upper, lower in pairwise(sorted(margin.tolist(), reverse=True)):
            judged = judgement_of(method, (margin > (upper + lower) / 2).astype(int), people)
            points.append((candidate, *(round(value, 9) for value in judged)))
    front = [
        (i, point)
        for i, point in enumerate(points)
        if not any(
            abs(other[1]) <= abs(point[1])
            and other[2] >= point[2]
            and (abs(other[1]) < abs(point[1]) or other[2] > point[2] or j < i)
            for j, other in enumerate(points)
        )
    ]
    expected = sorted((abs(bias), candidate, bias, performance) for _, (candidate, bias, performance) in front)
    found = [(abs(point.bias), point.candidate, point.bias, point.performance) for point in repair.trade_off]
    assert len(found) == len(expected) > 5 and len({row[1] for row in expected}) > 2
    for ours, plain in zip(found, expected, strict=True):
        assert ours == pytest.approx(plain, abs=1e-8)


# Budgets.


class Clock:
    """A second passes whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


def _in_a_thread(run: Callable[[], Repair]) -> Repair:
    results: list[Any] = []

    def target() -> None:
        try:
            results.append(run())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert isinstance(results[0], Repair), results
    return results[0]


@pytest.mark.parametrize("where", ["here", "in a thread"])
@pytest.mark.parametrize("name", METHODS)
def test_time_budget(name: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    people, model = some_people(), begun_network()
    full = METHODS[name](epsilon=0.1).repair(model, people, progress=False)
    monkeypatch.setattr(fairtrim.repair.candidates, "time", SimpleNamespace(monotonic=Clock().monotonic))

    def run() -> Repair:
        return METHODS[name](epsilon=0.1, max_seconds=5.5).repair(model, people, progress=False)

    given = Snapshot(model)
    repair = _in_a_thread(run) if where == "in a thread" else run()
    given.assert_unchanged()
    assert repair.flags[0] == "stopped by the time budget (max_seconds)"
    assert len(plain_flags(repair)) == 1 + (not repair.within_bound)
    assert 1 <= len(repair.history) < len(full.history)
    for entry, other in zip(repair.history, full.history, strict=False):  # the same way, as far as it goes
        assert {**entry, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("name", METHODS)
def test_patience(name: str) -> None:
    people, model = some_people(), begun_network()
    more = {"bias descent": {"evaluate_every": 1, "epochs": 5}, "adversarial": {"epochs": 6}}.get(name, {})
    more |= {"projection": {"evaluate_every": 1, "epochs": 4}}.get(name, {})
    more |= {"random perturbation": {"trials": 30}, "parity, output": {"penalties": [50.0] * 9}}.get(name, {})
    full = METHODS[name](epsilon=0.1, **more).repair(model, people, progress=False)
    keys = [history_key(entry, METHODS[name](epsilon=0.1)) for entry in full.history]
    last_gain, expected = 0, len(keys)
    for i, key in enumerate(keys):
        if i and key > keys[last_gain]:
            last_gain = i
        if i - last_gain == 2:
            expected = i + 1
            break
    method = METHODS[name](epsilon=0.1, patience=2, **more)
    repair = method.repair(model, people, progress=False)
    assert repair.chosen.candidate == last_gain
    elsewhere = _in_a_thread(lambda: method.repair(model, people, progress=False))
    assert (elsewhere.chosen, elsewhere.flags) == (repair.chosen, repair.flags)
    assert len(elsewhere.history) == len(repair.history)
    if name == "layer-wise":  # a candidate is what is better for the edit people: there may be too few
        assert len(repair.history) <= expected
    else:
        assert len(repair.history) == expected
    stopped = expected < len(keys)
    assert ("stopped early: 2 candidates without a gain" in repair.flags) == stopped
    assert stopped or name in ("layer-wise", "parity, all"), keys


@pytest.mark.parametrize("name", ["random perturbation", *LEARNS_BY_STEPS])
def test_steps_that_are_too_large(name: str, model: nn.Module) -> None:
    """Scores stop being finite in the middle: those candidates are left out, and that is said."""
    large = {"deviation": 1e25} if name == "random perturbation" else {"learning_rate": 1e25}
    people = replace(P, inputs=X)
    before = Snapshot(model)
    method = METHODS[name](epsilon=1.0, selection_share=0.5, **large)
    repair = method.repair(model, people, progress=False)
    before.assert_unchanged()
    assert any("not finite and were left out; take smaller steps" in flag for flag in repair.flags)
    lost = [entry for entry in repair.history if math.isnan(entry["bias"])]
    assert lost and all(math.isnan(entry["performance"]) for entry in lost)
    selection = people.take(repair.selection_rows)
    evaluated = copy.deepcopy(model).eval()
    assert repair.chosen.candidate not in {entry["candidate"] for entry in lost}
    assert repair.performance >= best_threshold(method, margins_of(evaluated, selection), selection).performance - 1e-9
    assert all(bool(torch.isfinite(value).all()) for value in repair.model.state_dict().values())


# What is within the bound, and what is not.


@pytest.mark.parametrize("name", METHODS)
def test_out_of_reach_gives_the_least_bias(name: str) -> None:
    """Numbers of people without a common factor: accuracies of two groups are never equal."""
    people, model = some_people(), begun_network()
    assert math.gcd(*torch.bincount(people.group).tolist()) == 1
    method = METHODS[name](measure="accuracy_score_difference", epsilon=1e-9, margin=0.0)
    repair = method.repair(model, people, selection_loader=people, progress=False)
    assert not repair.within_bound
    assert len(plain_flags(repair)) == 1
    assert repair.flags[0].startswith("bound not met: |accuracy_score_difference| = 0.0")
    assert repair.flags[0] in str(repair).replace("\n  ", " ")
    assert repair.bias == pytest.approx(judgement_of(method, labels_by(repair.model, people), people)[0])
    alone = best_threshold(method, margins_of(model, people), people)
    least = min(abs(entry["bias"]) for entry in repair.history)
    assert repair.bias == pytest.approx(least) and least <= abs(alone.bias) + 1e-12
    assert repair.trade_off[0] == repair.chosen
    with pytest.raises(InputError, match=r"epsilon=1e-09; the least bias of the trade-off curve is 0\.0"):
        repair.model_at(1e-9)


def test_constant_network_is_called_one() -> None:
    model = begun_network()
    nn.init.zeros_(model[2].weight)
    repair = RandomPerturbation(trials=3, epsilon=0.2).repair(model, some_people(), progress=False)
    assert not repair.within_bound
    assert any(flag.startswith("constant classifier") for flag in repair.flags)
    # an edit may make something of it
    repair = METHODS["layer-wise"](epsilon=0.2).repair(model, some_people(), progress=False)
    assert repair.within_bound and repair.chosen.candidate > 0 and plain_flags(repair) == ()


def test_constant_network_has_no_trade_off() -> None:
    model = begun_network()
    nn.init.zeros_(model[2].weight)
    repair = RandomPerturbation(trials=3, epsilon=0.2).repair(model, some_people(), progress=False)
    assert repair.trade_off == ()
    with pytest.raises(InputError, match="trade-off curve is empty: every candidate gives everybody the same label"):
        repair.model_at(0.5)


def test_people_without_weight_make_no_decision() -> None:
    people = some_people()
    weight = torch.ones(97, dtype=torch.float64)
    weight[margins_of(begun_network(), people).argmax()] = 0.0
    method = RandomPerturbation(trials=1, deviation=1e-12, epsilon=0.011)
    repair = method.repair(begun_network(), replace(people, weight=weight), progress=False)
    labels = labels_by(repair.model, people)[weight.numpy() > 0]
    assert len(set(labels.tolist())) == 2 or not repair.within_bound
