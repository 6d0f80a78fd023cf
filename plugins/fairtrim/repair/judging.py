"""Judges candidates by some people: bias and performance of their decisions, and how far the bias is believed."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fairtrim.arguments import few_of
from fairtrim.data.sensitive_bins import many_numbers
from fairtrim.data.validation_set import ValidationSet
from fairtrim.measures.group_counts import GroupCounts, rate_variances
from fairtrim.measures.group_estimates import GroupEstimates
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Decisions, Objective, labels_given

__all__ = ["GroupJudge", "Judge", "estimates_of"]


class Judge(Protocol):
    """What candidates are judged by."""

    def __call__(self, scores: Tensor, *, own: bool = False) -> Decisions:
        """All that scores (N, K) can decide, a row for every threshold; with ``own`` what they decide by themselves."""
        ...


def estimates_of(objective: Objective, people: ValidationSet, scores: Tensor, min_people: int) -> GroupEstimates | None:
    """How far differences between the groups of some people are believed.

    Args:
        objective: The measure, its bound and the confidence.
        people: The people, N.
        scores: Of the network as it was given, (N, K).
        min_people: Groups of fewer are not compared.

    Returns:
        The estimates; None for measures that compare no groups, and where biases are taken as they are measured.
    """
    if objective.measure in COUNTERFACTUAL_MEASURES or people.n_groups < 2 or objective.confidence is None:
        return None
    given = labels_given(scores)
    weight = people.mass
    counts, squares = (
        GroupCounts.of(given, people.target, people.group, n_groups=people.n_groups, weight=w)
        for w in (weight, weight.square())
    )
    return GroupEstimates.of(
        objective.measure,
        counts,
        squares,
        min_people=min_people,
        margin=objective.margin,
        errors=objective.errors,
        most=objective.most,
    )


class GroupJudge:
    """Judges by sensitive groups.

    Args:
        objective: What to maximise.
        people: Who judge.
        min_people: Groups of fewer are not compared.

    Attributes:
        estimates: How far differences are believed; set by the network as it was given, which comes first.
    """

    def __init__(self, objective: Objective, people: ValidationSet, min_people: int) -> None:
        self._objective, self._people, self._min_people = objective, people, min_people
        self.estimates: GroupEstimates | None = None
        self._begun = False

    def __call__(self, scores: Tensor, *, own: bool = False) -> Decisions:
        """All that scores can decide; see ``Judge``."""
        people, objective = self._people, self._objective
        if not self._begun:
            self._begun, self.estimates = True, estimates_of(objective, people, scores, self._min_people)
        return objective.decisions(
            scores,
            people.target,
            people.group,
            n_groups=people.n_groups,
            weight=people.weight,
            signed=people.sides,
            own=own,
            estimates=self.estimates,
        )

    def flags(self, given: Tensor) -> list[str]:
        """Which groups are too small to be compared, or for the bound, if labels are given so, (N, K) or (N, 1)."""
        if self.estimates is None:
            return []
        people, objective, compared = self._people, self._objective, self.estimates.compared
        counts = GroupCounts.of(given, people.target, people.group, n_groups=people.n_groups, weight=people.weight)
        variance, effective = rate_variances(objective.measure, counts, self.estimates.squares)
        number = torch.bincount(people.group, minlength=people.n_groups)
        named = [f"{name} ({n:,})" for name, n in zip(people.groups, number.tolist(), strict=True)]
        left = (~compared).any(0)
        found = []
        if bool(left.any()):
            found.append(
                f"{_some(named, left)}: not compared in {objective.measure}: fewer than {self._min_people} people for "
                "a rate (min_people)"
            )
        few = (effective < self._min_people) & compared
        if bool(few.any()):
            found.append(
                f"{_some(named, few.any(0))}: fewer than {self._min_people} people for a rate (min_people); compared "
                "all the same, for fewer than two groups would be left"
            )
        error = objective.errors * torch.maximum(self.estimates.variances, variance).sqrt().amax(0)
        small = ~left & (error > objective.epsilon / 2)
        if bool(small.any()):
            worst = int(error.masked_fill(~small, 0).argmax())
            needed = int(number[worst]) * (2 * float(error[worst]) / objective.epsilon) ** 2
            found.append(
                f"{_some(named, small)}: too few people for a bound of {objective.epsilon:g}: a rate of "
                f"{people.groups[worst]} may be off by {float(error[worst]):.3f}; it would take about {needed:,.0f}"
            )
        advice = many_numbers(people.groups)
        return [f"{flag}{advice}" for flag in found[:1]] + found[1:]


def _some(named: list[str], chosen: Tensor) -> str:
    return few_of([named[g] for g in chosen.nonzero().flatten().tolist()], most=4)
