"""Differentiable proxies of bias: the same group rates, of probabilities instead of decisions."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from fairtrim.measures.scores import probabilities

from .group_counts import GroupCounts, bias, rates

__all__ = ["balancing_weights", "differences", "proxy_bias"]


def proxy_bias(
    measure: str, scores: Tensor, target: Tensor, group: Tensor, *, n_groups: int, weight: Tensor | None = None
) -> Tensor:
    """The bias of probabilities; for statistical parity Marcinkevics et al.'s μ_SPD (MLHC 2022).

    Args:
        measure: The bias measure.
        scores: (N, K).
        target: (N,).
        group: (N,).
        n_groups: G.
        weight: (N,), or None.

    Returns:
        A scalar: group 0 minus group 1 for two groups, else the largest difference; differentiable.

    Example:
        >>> scores, target, group = torch.tensor([[0.0], [0.0]]), torch.tensor([0, 1]), torch.tensor([0, 1])
        >>> float(proxy_bias("statistical_parity_difference", scores, target, group, n_groups=2))
        0.0
    """
    counts = GroupCounts.of(probabilities(scores), target, group, n_groups=n_groups, weight=weight)
    return bias(measure, counts, signed=n_groups == 2)


def differences(
    measure: str, scores: Tensor, target: Tensor, group: Tensor, *, n_groups: int, weight: Tensor | None = None
) -> Tensor:
    """Differences of every rate between every two sensitive groups, of probabilities.

    Args:
        measure: The bias measure.
        scores: (N, K).
        target: (N,).
        group: (N,).
        n_groups: G.
        weight: (N,), or None.

    Returns:
        One entry a rate and pair of groups, without those that are undefined here; differentiable.
    """
    counts = GroupCounts.of(probabilities(scores), target, group, n_groups=n_groups, weight=weight)
    undefined = rates(measure, counts).detach().isnan()
    # a missing cell divides 0 by 0, whose gradient is NaN even where the value is left out
    spoilt = undefined.any(0)
    counts = replace(
        counts,
        positive=counts.positive.where(~spoilt | (counts.positive > 0), 1.0),
        negative=counts.negative.where(~spoilt | (counts.negative > 0), 1.0),
    )
    of_groups = rates(measure, counts)
    return torch.cat(
        [
            (of_groups[:, g] - of_groups[:, h])[~(undefined[:, g] | undefined[:, h])]
            for g, h in combinations(range(n_groups), 2)
        ]
    )


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
    own = torch.ones(len(target), dtype=torch.float64) if weight is None else weight.double()
    mass = torch.zeros(n_classes, dtype=torch.float64).index_add_(0, target, own)
    balanced = own / mass[target]
    return balanced * len(target) / balanced.sum()
