"""People by their margins, labels and sensitive groups, for the tests of measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fairlearn import metrics as fairlearn_metrics
from torch import Tensor

from fairtrim.measures.threshold_sweep import ThresholdSweep

# The oracle: what each name means, written once more for one set of decisions, group by group and label by label.


@dataclass(frozen=True)
class People:
    """Margins, labels, sensitive groups and weights of N people."""

    margin: Tensor
    target: Tensor
    group: Tensor
    n_groups: int
    weight: Tensor | None

    def sweep(self) -> ThresholdSweep:
        return ThresholdSweep.of(self.margin, self.target, self.group, n_groups=self.n_groups, weight=self.weight)

    @property
    def columns(self) -> dict[str, Any]:
        weight = None if self.weight is None else self.weight.numpy()
        return {"n_groups": self.n_groups, "weight": weight}


def people_with(
    n_samples: int,
    n_groups: int,
    *,
    seed: int = 0,
    decimals: int | None = None,
    weighted: bool = False,
    n_present: int | None = None,
) -> People:
    generator = torch.Generator().manual_seed(seed)
    margin = torch.randn(n_samples, dtype=torch.float64, generator=generator)
    group = torch.arange(n_samples) % (n_present or n_groups)
    return People(
        margin=margin if decimals is None else margin.round(decimals=decimals),
        target=torch.randint(0, 2, (n_samples,), generator=generator),
        group=group[torch.randperm(n_samples, generator=generator)],
        n_groups=n_groups,
        weight=torch.rand(n_samples, dtype=torch.float64, generator=generator) * 3 + 0.1 if weighted else None,
    )


CASES: dict[str, Callable[[], People]] = {
    "two groups": lambda: people_with(37, 2),
    "two groups, weights": lambda: people_with(31, 2, seed=1, weighted=True),
    "five groups": lambda: people_with(43, 5, seed=2),
    "three groups, ties, weights": lambda: people_with(41, 3, seed=3, decimals=0, weighted=True),
    "two groups, ties": lambda: people_with(29, 2, seed=4, decimals=1),
    "an absent group": lambda: people_with(19, 4, seed=5, n_present=3),
    "a group of one": lambda: people_with(4, 3, seed=6),
    "one sample": lambda: people_with(1, 2, seed=7),
    "all alike": lambda: People(torch.full((13,), 0.3), torch.arange(13) % 2, torch.arange(13) // 8, 2, None),
}


FAIRLEARN = {
    "demographic_parity_difference": fairlearn_metrics.demographic_parity_difference,
    "equalized_odds_difference": fairlearn_metrics.equalized_odds_difference,
    "equal_opportunity_difference": fairlearn_metrics.equal_opportunity_difference,
}
