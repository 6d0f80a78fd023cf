"""The one objective of all post-processors: performance subject to a bound on the bias, over weights and threshold.

Savani, White, Govindarajulu (NeurIPS 2020), section 3: φ(θ, τ) = ρ if |μ| < ε − margin, else 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from fairtrim.arguments import require_number
from fairtrim.errors import InputError
from fairtrim.measures.scores import positive_margin

from .group_counts import PERFORMANCE_MEASURES, GroupCounts, bias, canonical_measure, performance
from .group_estimates import GroupEstimates
from .threshold_sweep import ThresholdSweep

__all__ = ["COUNTERFACTUAL_MEASURES", "Decisions", "Objective", "labels_given", "non_dominated"]

COUNTERFACTUAL_MEASURES = ("counterfactual_flips", "counterfactual_bias")
"""Measures of pairs, not of groups: CounterfactualUnlearning's."""

_CONFIDENCE = 0.95
"""That ``"auto"`` asks for; no more than half of ε is given up for it."""


def non_dominated(bias: Tensor, performance: Tensor) -> Tensor:
    """Which of several points no other one beats: smaller bias at the same or better performance.

    Args:
        bias: Absolute biases, (T,).
        performance: Performances, (T,).

    Returns:
        Positions of the points of the front by increasing bias; of equal points the first.

    Example:
        >>> non_dominated(torch.tensor([0.1, 0.0, 0.2]), torch.tensor([0.7, 0.6, 0.65])).tolist()
        [1, 0]
    """
    # by bias, equal ones by falling performance: two stable sorts, the last key first
    order = (-performance).argsort(stable=True)
    order = order[bias[order].argsort(stable=True)]
    ordered = performance[order]
    best_before = torch.cat([ordered.new_full((1,), -torch.inf), ordered.cummax(0).values[:-1]])
    return order[ordered > best_before]


@dataclass(frozen=True)
class Decisions:
    """All that a network can decide on some people: one row a threshold, or a single one for the largest score.

    Attributes:
        threshold: On the margin of label 1, (T,); a single 0 for more than two classes.
        bias: Signed where two sides are named, else at least 0, (T,).
        performance: (T,).
        constant: Whether everybody gets the same label, (T,).
        eligible: Whether the decisions may be chosen at all, (T,): constant ones have no bias and no use.
        size: What is compared with the bound: |bias|, or what ``GroupEstimates`` make of it, (T,).
        within: Whether the size is within ε − margin, and the bias as measured within ε, (T,).
    """

    threshold: Tensor
    bias: Tensor
    performance: Tensor
    constant: Tensor
    eligible: Tensor
    size: Tensor
    within: Tensor


def labels_given(scores: Tensor) -> Tensor:
    """Whether scores give each label.

    Args:
        scores: (N, K), or single logits (N, 1).

    Returns:
        (N, K) float64, 1 or 0; of two classes label 1 alone, (N, 1).
    """
    if scores.shape[1] > 2:
        return torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).double()
    return (positive_margin(scores) > 0).double()[:, None]


def _of_own(
    scores: Tensor, target: Tensor, group: Tensor, n_groups: int, weight: Tensor | None
) -> tuple[GroupCounts, Tensor]:
    """Counts of what scores decide by themselves, in one row, and whether everybody gets the same label, (1,)."""
    given = labels_given(scores)
    counts = GroupCounts.of(given, target, group, n_groups=n_groups, weight=weight)
    counts = replace(counts, true_positive=counts.true_positive[None], false_positive=counts.false_positive[None])
    counted = given if weight is None else given[weight.to(given.device) > 0]
    return counts, (counted == counted[:1]).all()[None]


@dataclass(frozen=True)
class Objective:
    """φ: the performance of decisions whose bias is within the bound.

    Decisions that give everybody the same label have no bias and no use: they never count as within the bound.

    Args:
        measure: Bias measure μ, one of ``BIAS_MEASURES`` under any of its names, of which Fairlearn's is kept, or of
            ``COUNTERFACTUAL_MEASURES`` (NaN in what is computed here).
        epsilon: Bound ε on |μ|.
        margin: Safety margin: |μ| < ε − margin is asked for.
        performance: Performance measure ρ, one of ``PERFORMANCE_MEASURES``.
        confidence: That a bias is within the bound, one-sided, in (0.5, 1); ``"auto"`` for 0.95 as far as half of ε
            suffices for it. None takes biases as they are measured.

    Raises:
        InputError: A name is unknown, or no bias could be within the bound.

    Example:
        >>> objective = Objective("demographic_parity_difference", epsilon=0.05)
        >>> objective.phi(torch.tensor([0.01, -0.2]), torch.tensor([0.7, 0.8])).tolist()
        [0.699999988079071, 0.0]
    """

    measure: str = "demographic_parity_difference"
    epsilon: float = 0.05
    margin: float = 0.0
    performance: str = "balanced_accuracy"
    confidence: float | Literal["auto"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "measure", canonical_measure(self.measure, COUNTERFACTUAL_MEASURES))
        if self.performance not in PERFORMANCE_MEASURES:
            raise InputError(
                f"performance={self.performance!r} is not a performance measure; expected one of "
                f"{list(PERFORMANCE_MEASURES)}"
            )
        for name in ("epsilon", "margin"):
            require_number(name, getattr(self, name))
        if not 0 <= self.margin < self.epsilon <= 1:
            raise InputError(
                f"epsilon={self.epsilon}, margin={self.margin}; expected 0 <= margin < epsilon <= 1, because "
                "|bias| < epsilon - margin is asked for: pass margin= with a small epsilon"
            )

        known = self.confidence is None or self.confidence == "auto"
        if not known and not (isinstance(self.confidence, float) and 0.5 < self.confidence < 1):
            raise InputError(f"confidence={self.confidence!r}; expected one in (0.5, 1), e.g. 0.95, 'auto' or None")

    @property
    def bound(self) -> float:
        """ε − margin; none, infinity, for ε = 1."""
        return math.inf if self.epsilon >= 1 else self.epsilon - self.margin

    @property
    def errors(self) -> float:
        """Standard errors of a difference that are counted against the bound."""
        if self.confidence is None:
            return 0.0
        return NormalDist().inv_cdf(_CONFIDENCE if self.confidence == "auto" else float(self.confidence))

    @property
    def most(self) -> float:
        """And at most how much of it."""
        return self.epsilon / 2 if self.confidence == "auto" else math.inf

    def phi(self, bias: Tensor, performance: Tensor) -> Tensor:
        """φ of points, (T,).

        Args:
            bias: μ, or what stands for it, (T,).
            performance: ρ, (T,).

        Returns:
            ρ where |μ| < ε − margin, else 0.
        """
        return torch.where(bias.abs() < self.bound, performance, 0.0)

    def decisions(
        self,
        scores: Tensor,
        target: Tensor,
        group: Tensor,
        *,
        n_groups: int,
        weight: Tensor | None,
        signed: bool,
        own: bool = False,
        estimates: GroupEstimates | None = None,
    ) -> Decisions:
        """Bias and performance at every threshold.

        Args:
            scores: Class scores, (N, K) or a single logit (N, 1).
            target: Labels, (N,).
            group: Sensitive groups, (N,).
            n_groups: G.
            weight: Sample weights, (N,), or None.
            signed: Group 0 minus group 1 instead of the largest difference.
            own: Only what scores decide by themselves: the largest one, or the logit's sign. More than two classes
                have nothing else.
            estimates: How far differences are believed; None takes them as they are.

        Returns:
            One row a threshold; a single row for what scores decide by themselves.
        """
        scores, target, group, weight = (
            scores.cpu(),
            target.cpu(),
            group.cpu(),
            None if weight is None else weight.cpu(),
        )
        if own or scores.shape[1] > 2:
            threshold = torch.zeros(1, dtype=torch.float64, device="cpu")
            counts, constant = _of_own(scores, target, group, n_groups, weight)
        else:
            sweep = ThresholdSweep.of(positive_margin(scores), target, group, n_groups=n_groups, weight=weight)
            threshold, counts = sweep.threshold, sweep.counts
            selected = (counts.true_positive + counts.false_positive).sum((-2, -1))
            constant = (selected == 0) | (selected >= selected[-1])  # by weight: people without any don't count
        useful = performance(self.performance, counts)
        measured = (
            torch.full_like(useful, torch.nan)
            if self.measure in COUNTERFACTUAL_MEASURES
            else bias(self.measure, counts, signed=signed)
        )
        size = measured.abs() if estimates is None else estimates.size(counts)
        seen = size if estimates is None else estimates.measured(counts)
        if estimates is not None and not signed:
            measured = seen
        within = (size < self.bound) & ((seen < self.epsilon) | (self.epsilon >= 1))
        return Decisions(threshold, measured, useful, constant, ~constant, size, within)

    def best(self, decisions: Decisions) -> int:
        """Position of the decisions with the largest φ; if none is within the bound, of those with the least bias.

        Args:
            decisions: All there are.

        Returns:
            Position in 0 … T − 1. Ties go to the smaller bias, then to the higher performance.
        """
        size, useful = decisions.size, decisions.performance
        phi = useful * (decisions.within & decisions.eligible)
        if bool((phi > 0).any()):
            at_best = phi == phi.max()
            return int(torch.where(at_best, size, torch.inf).argmin())
        size = size.masked_fill(~decisions.eligible, torch.inf)
        least = size == size.min()
        return int(torch.where(least, useful, -torch.inf).argmax())

    def least_biased(self, decisions: Decisions, performance_floor: float) -> int:
        """Position of the decisions with the least bias among those that perform well enough.

        Args:
            decisions: All there are.
            performance_floor: Least performance.

        Returns:
            Position in 0 … T − 1; if none performs well enough, that of the best performance.
        """
        size, useful = decisions.size, decisions.performance
        enough = decisions.eligible & (useful >= performance_floor)
        if not bool(enough.any()):
            return int(torch.where(decisions.eligible, useful, -torch.inf).argmax())
        least = enough & (size == size[enough].min())
        return int(torch.where(least, useful, -torch.inf).argmax())
