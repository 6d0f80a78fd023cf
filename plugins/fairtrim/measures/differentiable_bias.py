"""Differentiable proxies of bias: the same group rates, of probabilities instead of decisions."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from .group_counts import GroupCounts, bias, rates

__all__ = ["balancing_weights", "differences", "proxy_bias"]


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
        One entry a rate and pair of groups, without those that are undefined here; differentiable.
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
    return torch.cat(
        [
            (of_groups[:, g] - of_groups[:, h])[~(undefined[:, g] | undefined[:, h])]
            for g, h in combinations(range(counts.n_groups), 2)
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
