"""FairPrune's bias measures for K classes: differences of one-vs-rest rates between groups, summed over classes.

Eopp0, Eopp1 and Eodd of Wu, Zeng, Xu, Shi and Hu (MICCAI 2022, arXiv 2203.02110).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .group_counts import GroupCounts, rates

__all__ = ["CLASS_SUMS", "class_sum"]

CLASS_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eopp0": lambda true_positive, false_positive: 1 - false_positive,
    "eopp1": lambda true_positive, false_positive: true_positive,
    "eodd": lambda true_positive, false_positive: true_positive + false_positive,
}
"""The group rate of each class whose differences are summed, of true and false positive rates, by the paper's name."""


def class_sum(measure: str, counts: GroupCounts) -> Tensor:
    """Σ_k |r_k^g − r_k^h|, the largest over pairs of sensitive groups g, h (the paper has two).

    The rate r_k of class k against the rest is the true negative rate (Eopp0), the true positive rate (Eopp1), or the
    sum of true and false positive rate (Eodd, in which the two can cancel each other: a group of whom everything said
    is wrong has none beside one of whom everything is right).

    Args:
        measure: One of ``CLASS_SUMS``.
        counts: Of G groups; two classes told by label 1 alone are both counted here.

    Returns:
        (...): in 0 … K (Eodd 0 … 2 K); NaN where a group has nobody that a rate is defined for.

    Example:
        >>> given, target, group = torch.eye(2)[[0, 1, 1, 1]], torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> counts = GroupCounts.of(given, target, group, n_groups=2)
        >>> {measure: float(class_sum(measure, counts)) for measure in CLASS_SUMS}
        {'eopp0': 1.0, 'eopp1': 1.0, 'eodd': 2.0}
    """
    counts = _of_every_class(counts)
    true_positive, false_positive = rates("equalized_odds_difference", counts).tensor_split(2, dim=-2)
    rate = CLASS_SUMS[measure](true_positive, false_positive)
    return (rate.unsqueeze(-1) - rate.unsqueeze(-2)).abs().sum(-3).amax((-2, -1))


def _of_every_class(counts: GroupCounts) -> GroupCounts:
    """Two classes told by label 1 alone, with label 0 before it."""
    if counts.n_labels > 1:
        return counts
    of_label_0 = (
        counts.negative - counts.false_positive,
        counts.positive - counts.true_positive,
        counts.negative,
        counts.positive,
    )
    of_label_1 = (counts.true_positive, counts.false_positive, counts.positive, counts.negative)
    return GroupCounts(*(torch.cat(pair, -2) for pair in zip(of_label_0, of_label_1, strict=True)))
