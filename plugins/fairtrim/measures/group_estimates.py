"""Group rates of a sample of people: how far differences between them are believed, and how far they may be off."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .group_counts import GroupCounts, rate_variances, rates

__all__ = ["GroupEstimates", "believed_shares"]

_TINY = 1e-12


def believed_shares(rate: Tensor, variance: Tensor, compared: Tensor) -> Tensor:
    """Empirical Bayes: which share of its own distance from everybody's rate each group keeps. Ours.

    τ² / (τ² + v_g): v_g the variance of a group's rate by chance, τ² that between groups beyond chance (DerSimonian and
    Laird, 1986).

    Args:
        rate: (..., R, G).
        variance: Of each by chance, same shape.
        compared: Which groups take part, (R, G) bool; the others keep nothing.

    Returns:
        (..., R, G) in [0, 1].

    Example:
        >>> rate, everybody = torch.tensor([[0.2, 0.4]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
        >>> believed_shares(rate, torch.full((1, 2), 1e-4, dtype=torch.float64), everybody).round(decimals=3).tolist()
        [[0.995, 0.995]]
        >>> believed_shares(rate, torch.full((1, 2), 0.1, dtype=torch.float64), everybody).tolist()  # may be chance
        [[0.0, 0.0]]
    """
    variance = variance.clamp_min(_TINY)
    precision = compared / variance
    total = precision.sum(-1, keepdim=True).clamp_min(_TINY)
    rate = rate.nan_to_num()  # of groups that aren't compared
    centre = (precision * rate).sum(-1, keepdim=True) / total
    spread = (precision * (rate - centre).square()).sum(-1, keepdim=True)
    free = (compared.sum(-1, keepdim=True) - 1).clamp_min(0)
    scale = total - precision.square().sum(-1, keepdim=True) / total
    between = ((spread - free) / scale.clamp_min(_TINY)).clamp_min(0) * (free > 0)
    return compared * between / (between + variance)


@dataclass(frozen=True)
class GroupEstimates:
    """How far differences between group rates are read off the counts of a sample of people. Ours.

    A rate of few people is off by chance, and of many groups two always differ. So each group's rate is drawn towards
    everybody's by what chance explains: it keeps the share τ² / (τ² + v_g) of its distance, of the network as it was
    given or of the decisions at hand, whichever is larger. What is compared with a bound is the largest difference of
    two such rates, plus what the difference of the two may be off by, beyond the margin.

    Attributes:
        measure: The bias measure.
        squares: Counts of the people with the squares of their weights, (K, G) or (1, G).
        compared: Which groups have enough people for each rate, (R, G) bool.
        shares: Of the network as it was given, (R, G).
        variances: Of its rates by chance, (R, G).
        margin: That the bound is lowered by anyway.
        errors: How many standard errors of a difference are added.
        most: And at most how much.
    """

    measure: str
    squares: GroupCounts
    compared: Tensor
    shares: Tensor
    variances: Tensor
    margin: float
    errors: float
    most: float

    @classmethod
    def of(
        cls,
        measure: str,
        counts: GroupCounts,
        squares: GroupCounts,
        *,
        min_people: int,
        margin: float,
        errors: float,
        most: float,
    ) -> GroupEstimates:
        """Take the decisions of the network as it was given.

        Args:
            measure: The bias measure.
            counts: Of those decisions, (K, G) or (1, G).
            squares: Of the same people with the squares of their weights.
            min_people: Groups of fewer are not compared, as long as two are left.
            margin: See above.
            errors: See above.
            most: See above.

        Returns:
            The estimates.
        """
        rate, (variance, people) = rates(measure, counts), rate_variances(measure, counts, squares)
        enough = people >= min_people
        compared = torch.where(enough.sum(1, keepdim=True) >= 2, enough, people > 0)
        shares = believed_shares(rate, variance, compared)
        return cls(measure, squares, compared, shares, variance, margin, errors, most)

    def believed(self, counts: GroupCounts) -> tuple[Tensor, Tensor]:
        """Rates drawn towards everybody's, and variances of the rates as measured.

        Args:
            counts: Of decisions, or of decisions at T thresholds.

        Returns:
            The two, each (..., R, G). Groups that are left out have everybody's rate, and no variance.
        """
        rate, (variance, _) = rates(self.measure, counts), rate_variances(self.measure, counts, self.squares)
        shares = torch.maximum(self.shares, believed_shares(rate, variance, self.compared))
        precision = self.compared / variance.clamp_min(_TINY)
        rate = rate.nan_to_num()
        centre = (precision * rate).sum(-1, keepdim=True) / precision.sum(-1, keepdim=True).clamp_min(_TINY)
        return centre + shares * (rate - centre), variance.where(self.compared, 0.0)

    def measured(self, counts: GroupCounts) -> Tensor:
        """The largest difference of two rates as measured, of the groups that are compared.

        Args:
            counts: Of decisions, or of decisions at T thresholds.

        Returns:
            (...).
        """
        rate = rates(self.measure, counts)
        highest = rate.masked_fill(~self.compared, -torch.inf).amax(-1)
        return (highest - rate.masked_fill(~self.compared, torch.inf).amin(-1)).amax(-1)

    def size(self, counts: GroupCounts) -> Tensor:
        """What is compared with the bound ε − margin.

        Args:
            counts: Of decisions, or of decisions at T thresholds.

        Returns:
            (...): the largest difference of two believed rates plus what it may be off by beyond the margin.
        """
        rate, variance = self.believed(counts)
        if not self.errors:
            return (rate.amax(-1) - rate.amin(-1)).amax(-1)
        largest = torch.zeros_like(rate[..., 0])
        for g in range(rate.shape[-1] - 1):  # not all pairs at once: there may be many groups and thresholds
            apart = (rate[..., g + 1 :] - rate[..., g : g + 1]).abs()
            error = self.errors * (variance[..., g + 1 :] + variance[..., g : g + 1]).sqrt()
            error = error * (self.compared[:, g + 1 :] & self.compared[:, g : g + 1])
            worst = apart + (error.clamp_max(self.most) - self.margin).clamp_min(0)
            largest = torch.maximum(largest, worst.amax(-1))
        return largest.amax(-1)
