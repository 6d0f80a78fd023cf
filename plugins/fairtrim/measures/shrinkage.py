"""How much of its own estimate a sensitive group keeps, given how far that may be off."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["own_shares"]


def own_shares(damage: Tensor, standard_error: Tensor, people: Tensor) -> Tensor:
    """Empirical Bayes: the share of its own damages that each group keeps, the rest being everybody's. Ours.

    With the variance τ² between groups beyond noise and the noise v_g of a group, both summed over the channels, group
    g keeps τ² / (τ² + v_g). One share for all channels leaves the damage of a set the sum that it is, so that joint
    selection stays what it was. τ² is the estimate of DerSimonian and Laird (1986), with weights 1 / v_g, and
    v_g = σ² / n_g with the variance σ² within the group, or within all groups where that is larger: a few people who
    happen to be alike don't prove that their group is.

    Args:
        damage: Δ_gc, (G, C).
        standard_error: Of Δ_gc, (G, C); NaN for a group of one person.
        people: Number of people of equal weight, (G,).

    Returns:
        (G,) in [0, 1]; 1 where there is no noise, 0 for all where nothing beyond noise tells the groups apart.

    Example:
        >>> damage = torch.tensor([[0.0, 2.0], [2.0, 0.0], [9.0, 9.0]], dtype=torch.float64)
        >>> error = torch.tensor([[0.1, 0.1], [0.1, 0.1], [5.0, 5.0]], dtype=torch.float64)
        >>> own_shares(damage, error, torch.tensor([900.0, 900.0, 4.0], dtype=torch.float64)).round(decimals=2).tolist()
        [0.99, 0.99, 0.07]
    """
    others = (people - 1).clamp_min(0)
    within = (standard_error.square().sum(1) * people).nan_to_num(0)  # a person alone tells nothing of it
    if len(people) < 2 or not bool(others.any()):
        return torch.ones_like(people) if len(people) < 2 else torch.zeros_like(people)
    pooled = (others * within).sum() / others.sum()
    noise = within.clamp_min(float(pooled)) / people
    if float(pooled) <= 0:
        return torch.ones_like(people)
    weights = 1 / noise
    total = weights.sum()
    centre = weights @ damage / total
    spread = weights @ (damage - centre).square().sum(1)
    between = ((spread - (len(people) - 1)) / (total - weights.square().sum() / total)).clamp_min(0)
    return between / (between + noise)
