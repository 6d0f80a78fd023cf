"""Measures of what lies on another device: those of the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fairtrim import counterfactual_bias
from fairtrim.measures.differentiable_bias import dependence, differences, rank_polynomials
from fairtrim.measures.group_counts import GroupCounts
from fairtrim.measures.log_likelihood import sums_of_token_losses, token_log_likelihoods
from fairtrim.measures.objective import Objective
from tests.pretend_accelerator import Accelerator, PretendAccelerator

GENERATOR = torch.Generator().manual_seed(4)
SCORES, FLIPPED = (torch.randn(29, 3, generator=GENERATOR) for _ in range(2))
TARGET, GROUP = torch.arange(29) % 3, torch.arange(29) % 11 % 4
WEIGHT = torch.arange(1, 30) / 8


@pytest.fixture(autouse=True)
def _refused(accelerator: Accelerator) -> None:
    if isinstance(accelerator, PretendAccelerator):
        accelerator.refuses_float64 = True


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("n_labels", [1, 3])
def test_pairs_and_objective(accelerator: Accelerator, weight: Tensor | None, n_labels: int) -> None:
    target = TARGET.clamp_max(max(1, n_labels - 1))
    own, several = SCORES[:, :n_labels], [FLIPPED[:, :n_labels], -FLIPPED[:, :n_labels]]
    objective = Objective("equalized_odds_difference", epsilon=0.5)

    def results(near: Callable[[Tensor], Tensor]) -> list[Any]:
        weights = None if weight is None else near(weight)
        options: dict[str, Any] = {"n_groups": 4, "weight": weights, "signed": False}
        bias = counterfactual_bias(near(own), [near(side) for side in several], near(target), weights)
        decisions = [objective.decisions(near(own), near(target), near(GROUP), own=o, **options) for o in (False, True)]
        return [vars(bias), *map(vars, decisions)]

    expected = results(lambda tensor: tensor)
    accelerator.check_same(results(lambda tensor: tensor.to(accelerator.device)), expected)


@pytest.mark.parametrize("missing", [False, True])
def test_penalties(accelerator: Accelerator, missing: bool) -> None:
    kept = (GROUP != 2) | (TARGET != 1) if missing else GROUP >= 0  # a group without anybody of a label
    target, group = TARGET[kept], GROUP[kept]
    basis = rank_polynomials(SCORES[kept, 0])
    accelerator.check_same(rank_polynomials(SCORES[kept, 0].to(accelerator.device)), basis)

    def penalties(device: torch.device) -> tuple[list[Tensor], Tensor]:
        near = SCORES[kept].to(device).requires_grad_()
        given, own = near.softmax(1), target.to(device)
        counts = GroupCounts.of(given, own, group.to(device), n_groups=4)
        shares = torch.linspace(0.1, 0.9, 24).reshape(6, 4).to(device)
        found = [differences("equalized_odds_difference", counts, shares)]
        found.append(dependence("equal_opportunity_difference", given[:, :2], own.clamp_max(1), basis.to(given)))
        sum(one.square().sum() for one in found).backward()
        return found, near.grad

    expected, slope = penalties(torch.device("cpu"))
    found, slope_there = penalties(accelerator.device)
    for one, other in zip(found, expected, strict=True):
        one = one.detach().cpu()
        assert not missing or len(one) >= len(other)
        accelerator.check_same(one[one != 0], other.detach()[other != 0])  # zeros for those that are undefined
    accelerator.check_same(slope_there, slope, other_kernels=missing)  # sums of more terms


def test_penalties_wait_for_nothing(pretend: PretendAccelerator) -> None:
    given, target, group = (tensor.to(pretend.device) for tensor in (SCORES.softmax(1), TARGET, GROUP))
    given.requires_grad_()
    basis = rank_polynomials(WEIGHT).float().to(pretend.device)
    pretend.forget()
    counts = GroupCounts.of(given, target, group, n_groups=4)
    gaps = differences("average_odds_difference", counts), dependence("average_odds_difference", given, target, basis)
    sum(gap.square().sum() for gap in gaps).backward()
    assert not pretend.waits and not pretend.copies


def test_tokens(accelerator: Accelerator) -> None:
    scores, tokens = (
        torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(6)),
        torch.arange(15).reshape(3, 5) % 7,
    )
    near = scores.to(accelerator.device), tokens.to(accelerator.device)
    accelerator.check_same(token_log_likelihoods(*near), token_log_likelihoods(scores, tokens))
    counted = tokens > 1
    found = sums_of_token_losses(*near, counted.to(accelerator.device))
    accelerator.check_same(found, sums_of_token_losses(scores, tokens, counted))
