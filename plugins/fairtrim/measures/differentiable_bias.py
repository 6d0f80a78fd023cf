"""Differentiable proxies of bias: the same group rates, of probabilities instead of decisions."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import torch
from numpy.polynomial.legendre import legvander
from torch import Tensor

from .group_counts import GroupCounts, bias, rate_covariances, rates

__all__ = ["balancing_weights", "dependence", "differences", "proxy_bias", "rank_polynomials"]


def proxy_bias(measure: str, counts: GroupCounts) -> Tensor:
    """The bias of probabilities; for demographic parity Marcinkevics et al.'s μ_SPD (MLHC 2022).

    Args:
        measure: The bias measure.
        counts: Confusion counts of probabilities, of G groups.

    Returns:
        A scalar: group 0 minus group 1 for two groups, else the largest difference; differentiable.

    Example:
        >>> of_label_1 = torch.tensor([[0.5], [0.5]])
        >>> counts = GroupCounts.of(of_label_1, torch.tensor([0, 1]), torch.tensor([0, 1]), n_groups=2)
        >>> float(proxy_bias("demographic_parity_difference", counts))
        0.0
    """
    return bias(measure, counts, signed=counts.n_groups == 2)


def differences(measure: str, counts: GroupCounts, shares: Tensor | None = None) -> Tensor:
    """Differences of every rate between every two sensitive groups, of probabilities.

    Args:
        measure: The bias measure.
        counts: Confusion counts of probabilities, of G groups.
        shares: Which share of its distance from the mean rate each group keeps, (R, G); None for all of it.

    Returns:
        One entry a rate and pair of groups, without those that are undefined here (not on the CPU: zeros in their
        place, for leaving some out would wait for the device); differentiable.
    """
    undefined = rates(measure, counts).detach().isnan()
    # a missing cell divides 0 by 0, whose gradient is NaN even where the value is left out
    spoilt = undefined.any(0)
    counts = replace(
        counts,
        positive=counts.positive.where(~spoilt | (counts.positive > 0), 1.0),
        negative=counts.negative.where(~spoilt | (counts.negative > 0), 1.0),
    )
    of_groups = rates(measure, counts)
    if shares is not None:
        known = ~undefined
        mean = (of_groups * known).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp_min(1)
        of_groups = mean + shares.to(of_groups) * (of_groups - mean)
    pairs = list(combinations(range(counts.n_groups), 2))
    return _defined(
        torch.cat([of_groups[:, g] - of_groups[:, h] for g, h in pairs]),
        torch.cat([~(undefined[:, g] | undefined[:, h]) for g, h in pairs]),
    )


def _defined(values: Tensor, defined: Tensor) -> Tensor:
    return values[defined] if values.device.type == "cpu" else values.where(defined, 0.0)


def rank_polynomials(values: Tensor, degree: int = 2) -> Tensor:
    """Legendre polynomials of the ranks of a continuous feature, which extreme values don't move.

    Args:
        values: (N,).
        degree: Of the last polynomial J.

    Returns:
        (N, J) float64: the ranks themselves, from −1 to 1, for what rises or falls; then for what peaks in the middle.

    Example:
        >>> rank_polynomials(torch.tensor([18.0, 90.0, 30.0])).tolist()
        [[-1.0, 1.0], [1.0, 1.0], [0.0, -0.5]]
    """
    _, place, number = torch.unique(values.cpu().double(), return_inverse=True, return_counts=True)
    middle = number.cumsum(0) - (number.double() + 1) / 2  # equal values share the mean of their places
    rank = (2 * middle / max(1, len(values) - 1) - 1)[place]
    return torch.from_numpy(legvander(rank.numpy(), degree)[:, 1:].copy())


def dependence(measure: str, given: Tensor, target: Tensor, basis: Tensor, weight: Tensor | None = None) -> Tensor:
    """Twice the covariance of every rate with functions of a continuous sensitive feature.

    The sum of their squares is four times the Hilbert-Schmidt independence criterion (Gretton et al., 2005) of a linear
    kernel on what the rate counts and the kernel of these functions on the feature. Twice, so that a feature of two
    values which half of the people have each gives the difference between two groups.

    Args:
        measure: The bias measure.
        given: Probability of each label, (N, K) or (N, 1).
        target: Labels, (N,).
        basis: Functions of the feature, (N, J).
        weight: Sample weights, (N,), or None.

    Returns:
        One entry a rate and function, without those of rates about nobody (not on the CPU: zeros in their place);
        differentiable in ``given``.

    Example:
        >>> halves = torch.tensor([[-1.0], [1.0]])
        >>> dependence("demographic_parity_difference", torch.tensor([[0.2], [0.7]]), torch.tensor([0, 1]), halves)
        tensor([0.5000])
    """
    own = torch.ones_like(target, dtype=given.dtype) if weight is None else weight.to(given)
    everybody = torch.zeros_like(target)

    def counts(weight: Tensor) -> GroupCounts:
        return GroupCounts.of(given, target, everybody, n_groups=1, weight=weight)

    plain = counts(own)
    found = [
        rate_covariances(measure, plain, counts(own * column), counts(own * column.square()))
        for column in basis.to(given).unbind(1)
    ]
    together = 2 * torch.cat(found)
    return _defined(together, ~together.detach().isnan())


def balancing_weights(target: Tensor, n_classes: int, weight: Tensor | None) -> Tensor:
    """Weights with mean 1 under which every class is as heavy, times the samples' own.

    Args:
        target: (N,).
        n_classes: K.
        weight: (N,), or None.

    Returns:
        (N,) float64.

    Example:
        >>> balancing_weights(torch.tensor([0, 0, 0, 1]), 2, None).tolist()
        [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 2.0]
    """
    own = torch.ones(len(target), dtype=torch.float64, device="cpu") if weight is None else weight.double()
    mass = torch.zeros(n_classes, dtype=torch.float64, device="cpu").index_add_(0, target, own)
    balanced = own / mass[target]
    return balanced * len(target) / balanced.sum()
