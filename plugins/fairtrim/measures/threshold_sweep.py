"""Every decision threshold at once: one sort of the scores and cumulative sums give the exact counts at all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fairtrim.errors import InputError

from .group_counts import GroupCounts

__all__ = ["ThresholdSweep"]


@dataclass(frozen=True)
class ThresholdSweep:
    """What every threshold on the margin of label 1 decides.

    People whose margin is *above* the threshold get label 1. T = (number of different margins) + 1 thresholds cover all
    decisions there are; each lies midway between two neighbouring margins, so that rounding can't move anybody.

    Attributes:
        threshold: Thresholds on the margin, decreasing, (T,) float64. The first gives nobody label 1, the last
            everybody.
        counts: Confusion counts at each, (T, 1, G).

    Example:
        >>> margin, target = torch.tensor([0.0, 2.0, 1.0]), torch.tensor([0, 1, 1])
        >>> sweep = ThresholdSweep.of(margin, target, torch.tensor([0, 0, 1]), n_groups=2)
        >>> sweep.threshold.tolist()
        [3.0, 1.5, 0.5, -1.0]
        >>> sweep.counts.true_positive[:, 0].tolist()
        [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    """

    threshold: Tensor
    counts: GroupCounts

    @classmethod
    def of(
        cls, margin: Tensor, target: Tensor, group: Tensor, *, n_groups: int, weight: Tensor | None = None
    ) -> ThresholdSweep:
        """Sort margins of label 1, (N,), once and add up; ``weight`` is (N,), or None for 1 each."""
        margins = margin.detach().cpu().double().numpy()
        if len(margins) == 0 or not np.isfinite(margins).all():
            bad = int((~np.isfinite(margins)).sum())
            raise InputError(f"{bad} of {len(margins)} scores are not finite; expected some, all of them finite")
        order = np.argsort(-margins)
        ordered = margins[order]
        cell = (2 * group.cpu() + (target.cpu() == 1)).numpy()[order]
        people = np.zeros(
            (2 * n_groups, len(ordered) + 1)
        )  # a row for each group and label; the first column is nobody
        people[cell, np.arange(1, people.shape[1])] = 1.0 if weight is None else weight.cpu().double().numpy()[order]
        np.cumsum(people, axis=1, out=people)
        # of each run of equal margins the last, and nobody
        last = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1], [True]]))
        sums = torch.from_numpy(people if len(last) == people.shape[1] else np.take(people, last, axis=1))
        true_positive, false_positive = sums[1::2].T, sums[::2].T
        distinct = ordered[last[1:] - 1]
        middle = (distinct[1:] + distinct[:-1]) / 2
        middle = np.where(middle < distinct[:-1], middle, distinct[1:])  # between neighbouring numbers there is none
        threshold = torch.from_numpy(np.concatenate([distinct[:1] + 1, middle, distinct[-1:] - 1]))
        counts = GroupCounts(
            true_positive=true_positive[:, None],
            false_positive=false_positive[:, None],
            positive=true_positive[-1:],
            negative=false_positive[-1:],
        )
        return cls(threshold, counts)
