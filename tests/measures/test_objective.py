"""The objective: the best decisions, and the front."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fairtrim import InputError
from fairtrim.measures.objective import Decisions, Objective, non_dominated
from tests.measure_cases import CASES

# The objective.


def _decisions(biases: Any, performances: Any, constants: Any, bound: float = 0.05) -> Decisions:
    constant = torch.tensor(constants, dtype=torch.bool)
    return Decisions(
        threshold=torch.arange(len(constant)).double(),
        bias=torch.tensor(biases, dtype=torch.float64),
        performance=torch.tensor(performances, dtype=torch.float64),
        constant=constant,
        eligible=~constant,
        size=torch.tensor(biases, dtype=torch.float64).abs(),
        within=torch.tensor(biases, dtype=torch.float64).abs() < bound,
    )


@pytest.mark.parametrize(
    ("biases", "performances", "constants", "expected"),
    [
        ([0.01, -0.02, 0.3], [0.6, 0.7, 0.9], [0, 0, 0], 1),
        ([0.03, -0.02, 0.01], [0.7, 0.7, 0.6], [0, 0, 0], 1),  # equal φ: the smaller bias
        ([0.0, 0.2, -0.1], [0.9, 0.8, 0.6], [1, 0, 0], 2),  # none within the bound: the least bias, no constant
        ([0.2, -0.1, 0.1, 0.1], [0.9, 0.6, 0.7, 0.5], [0, 0, 0, 0], 2),  # equal bias: the higher performance
        ([0.0625, 0.0, 0.07], [0.9, 0.5, 0.8], [0, 1, 0], 0),  # a bias at the bound is not within it
        ([0.0, 0.0, 0.9], [0.5, 0.5, 0.1], [1, 1, 0], 2),
        ([0.0, 0.0, 0.04], [1.0, 1.0, 0.1], [1, 1, 0], 2),
    ],
)
def test_best_decisions(biases: Any, performances: Any, constants: Any, expected: int) -> None:
    decisions = _decisions(biases, performances, constants)
    assert Objective(epsilon=0.125, margin=0.0625).best(decisions) == expected


@pytest.mark.parametrize("seed", range(6))
def test_best_decisions_equal_a_loop(seed: int) -> None:
    randomness = np.random.default_rng(seed)
    for n_decisions in (1, 2, 7, 23):
        biases = randomness.integers(-4, 5, n_decisions) / 10  # many ties
        performances = randomness.integers(1, 5, n_decisions) / 5
        constants = randomness.random(n_decisions) < 0.3
        for epsilon in (0.05, 0.15, 0.35):
            decisions = _decisions(biases, performances, constants, epsilon)
            best = Objective(epsilon=epsilon).best(decisions)
            alive = [i for i in range(n_decisions) if not constants[i]]
            if not alive:
                assert 0 <= best < n_decisions
                continue
            assert not constants[best]
            feasible = [i for i in alive if abs(biases[i]) < epsilon]
            if feasible:
                wanted = max((performances[i], -abs(biases[i])) for i in feasible)
                assert (performances[best], -abs(biases[best])) == wanted
            else:
                wanted = max((-abs(biases[i]), performances[i]) for i in alive)
                assert (-abs(biases[best]), performances[best]) == wanted


@pytest.mark.parametrize("signed", [False, True])
def test_constants_are_the_two_ends_and_nothing_else(signed: bool) -> None:
    people = CASES["two groups, ties"]()
    arguments = {"n_groups": people.n_groups, "weight": None, "signed": signed}
    scores = torch.stack([-people.margin / 2, people.margin / 2], 1)
    decisions = Objective().decisions(scores, people.target, people.group, **arguments)
    for threshold, constant in zip(decisions.threshold.tolist(), decisions.constant.tolist(), strict=True):
        assert constant == (len({margin > threshold for margin in people.margin.tolist()}) == 1)
    logit = Objective().decisions(people.margin[:, None], people.target, people.group, **arguments)
    for field in ("threshold", "bias", "performance", "constant"):
        torch.testing.assert_close(getattr(logit, field), getattr(decisions, field))
    assert bool((decisions.bias < 0).any()) == signed


def test_objective() -> None:
    objective = Objective("equal_opportunity_difference", epsilon=0.125, margin=0.0625)
    biases = torch.tensor([0.0, -0.062, 0.0625, -0.5], dtype=torch.float64)
    useful = torch.tensor([0.5, 0.6, 0.7, 0.8], dtype=torch.float64)
    assert objective.bound == 0.0625
    assert objective.phi(biases, useful).tolist() == pytest.approx([0.5, 0.6, 0.0, 0.0])
    for settings in ({"epsilon": 0.0}, {"epsilon": 1.5}, {"epsilon": 0.1, "margin": 0.1}, {"margin": -0.01}):
        with pytest.raises(InputError, match="expected 0 <= margin < epsilon <= 1"):
            Objective(**settings)
    for settings in ({"measure": "bias"}, {"performance": "auc"}):
        with pytest.raises(
            InputError, match=r"is not a (bias|performance) measure( \(did you mean .*\))?; expected one of"
        ):
            Objective(**settings)


@pytest.mark.parametrize("seed", range(5))
def test_front_equals_comparing_all_pairs(seed: int) -> None:
    randomness = np.random.default_rng(seed)
    for n_points in (0, 1, 2, 11, 40):
        levels = (3, 6, 1000)[seed % 3]  # from mostly ties to none
        biases = randomness.integers(0, levels, n_points) / levels
        useful = randomness.integers(0, levels, n_points) / levels
        expected = []
        for i in range(n_points):
            beaten = False
            for j in range(n_points):
                as_good = biases[j] <= biases[i] and useful[j] >= useful[i]
                better = biases[j] < biases[i] or useful[j] > useful[i]
                beaten |= as_good and (better or j < i)
            if not beaten:
                expected.append(i)
        expected.sort(key=lambda i: biases[i])
        assert non_dominated(torch.tensor(biases), torch.tensor(useful)).tolist() == expected
