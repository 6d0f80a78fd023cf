"""Criteria: functions from the damages of all sensitive groups to one number, smaller = remove first.

A criterion is bound to a damage table and then maps any (G, ...) tensor of damages, single channels or sets of
channels, to (...). The same criterion therefore scores channels one by one and steers joint selection.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fairtrim.damage.table import DamageTable
from fairtrim.data.sensitive_groups import EVERYONE, match_groups

from .arguments import require_number
from .errors import InputError

__all__ = [
    "BalancedDamage",
    "BoundCriterion",
    "Criterion",
    "GapDrivenDamage",
    "GroupSaliency",
    "MeanDamage",
    "PairDamage",
    "TailRisk",
    "WorstGroup",
    "require_sensitive_groups",
]

BoundCriterion = Callable[[Tensor], Tensor]
"""(G, ...) damages -> (...) values."""


def require_sensitive_groups(table: DamageTable, asking: str) -> None:
    """Refuse a table of everybody as one group.

    Args:
        table: The damage table.
        asking: What needs the groups, for the message.

    Raises:
        InputError: The loader gave no sensitive features.
    """
    if table.sensitive_groups == (EVERYONE,):
        raise InputError(
            f"{asking} compares sensitive groups, but the loader gives none; expected (inputs, target, sensitive), or "
            "a dict with 'sensitive_features', or use MeanDamage"
        )
    if len(table.sensitive_groups) == 1:
        warnings.warn(
            f"{asking} compares sensitive groups, and the data hold only one: {table.sensitive_groups[0]!r}; check the "
            "sensitive features",
            stacklevel=2,
        )


class Criterion(ABC):
    """What a removal is worth, given what it does to each sensitive group.

    Subclasses implement ``bind``. ``needs_sensitive_groups`` says whether the criterion means anything without
    sensitive features.
    """

    needs_sensitive_groups: ClassVar[bool] = True

    @abstractmethod
    def bind(self, table: DamageTable) -> BoundCriterion:
        """Fix names, counts and scales of one table.

        Args:
            table: The damage table.

        Returns:
            The function (G, ...) -> (...).
        """

    def check(self, table: DamageTable) -> None:
        """Refuse a table without sensitive groups where the criterion needs them.

        Args:
            table: The damage table.

        """
        if self.needs_sensitive_groups:
            require_sensitive_groups(table, type(self).__name__)

    def score(self, table: DamageTable) -> Tensor:
        """Score of every channel by itself.

        Args:
            table: The damage table.

        Returns:
            (C,) in float64; smaller = remove first.
        """
        self.check(table)
        return self.bind(table)(table.damage)


@dataclass(frozen=True)
class MeanDamage(Criterion):
    """Mean over all people: Σ_g (n_g / n) Δ_g. Blind to who is hurt; needs no sensitive features."""

    needs_sensitive_groups: ClassVar[bool] = False

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the shares of the groups; see ``Criterion.bind``."""
        shares = table.shares
        return lambda damage: torch.tensordot(shares, damage, dims=1)


@dataclass(frozen=True)
class GroupSaliency(Criterion):
    """FairPrune's score Δ_unprivileged − β Δ_privileged (Wu et al., MICCAI 2022, arXiv 2203.02110).

    The published score is of single weights, ½θ²h, as in ``prune_by_group_saliency``; for channels Δ comes from the
    damage table (or from sums of those saliencies with ``level="weight"``). The score is signed: a channel that serves
    the privileged group alone is negative and goes first.

    Args:
        privileged: The privileged sensitive groups; in the paper those with the higher accuracy, which need not be
            those with the better outcomes (on Adult women have the higher accuracy). A value, a crossing as a tuple, a
            dict feature -> value, or a list of them.
        unprivileged: The unprivileged ones; by default all others, pooled by their numbers of people.
        beta: β in (0, 1); the paper uses 0.33, at 0.7 and above its gap closes by losing accuracy.

    Raises:
        InputError: β is not in (0, 1).

    Example:
        >>> GroupSaliency(privileged="Male", beta=0.3).beta
        0.3
    """

    privileged: Any
    unprivileged: Any = None
    beta: float = 0.3

    def __post_init__(self) -> None:
        if not isinstance(self.beta, int | float) or not 0 < self.beta < 1:
            raise InputError(f"beta={self.beta!r}; expected a number between 0 and 1, both excluded")

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the positions of the named groups; see ``Criterion.bind``."""
        groups, features = table.sensitive_groups, table.features
        privileged = match_groups(self.privileged, groups, features, "privileged")
        if self.unprivileged is None:
            unprivileged = [g for g in range(len(groups)) if g not in privileged]
            if not unprivileged:
                raise InputError(f"privileged={self.privileged!r} takes in every sensitive group: {list(groups)}")
        else:
            unprivileged = match_groups(self.unprivileged, groups, features, "unprivileged")
            if set(unprivileged) & set(privileged):
                raise InputError(
                    f"privileged={self.privileged!r} and unprivileged={self.unprivileged!r} overlap in "
                    f"{[groups[g] for g in sorted(set(unprivileged) & set(privileged))]}"
                )
        weights = torch.zeros_like(table.counts)
        weights[unprivileged] = table.counts[unprivileged] / table.counts[unprivileged].sum()
        weights[privileged] = -self.beta * table.counts[privileged] / table.counts[privileged].sum()
        return lambda damage: torch.tensordot(weights, damage, dims=1)


@dataclass(frozen=True)
class WorstGroup(Criterion):
    """Damage of the group that is hurt most: max_g Δ_g. Ours."""

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the table; see ``Criterion.bind``."""
        return lambda damage: damage.amax(0)


@dataclass(frozen=True)
class TailRisk(Criterion):
    """Conditional value at risk over sensitive groups: the mean of the worst share α of the G groups. Ours.

    α = 1 is the plain mean over groups, each counted once; α ≤ 1/G is the worst group.

    Args:
        alpha: α in (0, 1].

    Raises:
        InputError: α is not in (0, 1].
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha <= 1:
            raise InputError(f"alpha={self.alpha!r}; expected a share of the groups in (0, 1]")

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the number of groups; see ``Criterion.bind``."""
        n_groups = len(table.sensitive_groups)
        worst = max(1.0, self.alpha * n_groups)
        weights = table.counts.new_tensor([min(1.0, max(0.0, worst - g)) for g in range(n_groups)]) / worst
        used = math.ceil(worst - 1e-12)
        return lambda damage: torch.tensordot(weights[:used], damage.topk(used, 0).values, dims=1)


@dataclass(frozen=True)
class BalancedDamage(Criterion):
    """Worst group after each group's damages are scaled to its own total: max_g Δ_gc / Σ_c |Δ_gc|. Ours."""

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the groups' totals; see ``Criterion.bind``."""
        totals = table.damage.abs().sum(1).clamp_min(torch.finfo(torch.float64).tiny)
        return lambda damage: (damage / totals.view(-1, *[1] * (damage.ndim - 1))).amax(0)


@dataclass(frozen=True)
class GapDrivenDamage(Criterion):
    """Mean over groups with more weight on those whose loss is above the average. Ours.

    w_g = 1 + λ (L_g − L̄) / max_g |L_g − L̄|, L_g the group's loss before pruning.

    Args:
        strength: λ in [0, 1], so that no weight is negative.

    Raises:
        InputError: λ is not in [0, 1].
    """

    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InputError(f"strength={self.strength}; expected a number in [0, 1]")

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the groups' losses; see ``Criterion.bind``."""
        excess = table.loss - table.loss.mean()
        scale = excess.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
        weights = (1 + self.strength * excess / scale) / len(excess)
        return lambda damage: torch.tensordot(weights, damage, dims=1)


@dataclass(frozen=True)
class PairDamage(Criterion):
    """Mean square of ΔLL over pairs of sentences, under a bound on the perplexity. Ours.

    For a table of the groups ("pairs", fold) and ("texts", ...); see ``fairtrim.damage.side_by_side``. With L_k the
    mean square of ΔLL in fold k, Δ_k and Δ_t the predicted changes there and of the texts' mean cross-entropy,

        q_a({Δ_k / L_k}) + price · Δ_t⁺ / ln(1 + ρ) + 100 · (Δ_t / ln(1 + ρ) − 1)⁺,

    q_a the a-quantile over the folds: what at least the share a of them gains. Channels are many and pairs few, so that
    the best mean over all pairs is mostly chance; a = 0.5 is a median of means, which single pairs can't move either.

    Args:
        perplexity_rise: ρ, by which the perplexity may rise: 0.05 is 5 %.
        agreeing: a, in (0, 1].
        price: What using all of the bound must be worth, as a share of the mean square.

    Raises:
        InputError: An argument is out of range.

    Example:
        >>> PairDamage(perplexity_rise=0.02).agreeing
        0.75
    """

    needs_sensitive_groups: ClassVar[bool] = False
    perplexity_rise: float = 0.05
    agreeing: float = 0.75
    price: float = 0.1

    def __post_init__(self) -> None:
        require_number("perplexity_rise", self.perplexity_rise, above=0, remedy=", such as 0.05 for 5 %")
        require_number("agreeing", self.agreeing, above=0, below=1 + 1e-9, remedy=", a share of the folds up to 1")
        require_number("price", self.price, at_least=0)

    def bind(self, table: DamageTable) -> BoundCriterion:
        """Bind to the folds of pairs and to the texts; see ``Criterion.bind``."""
        kinds = [group[0] if isinstance(group, tuple) else group for group in table.sensitive_groups]
        pairs = [g for g, kind in enumerate(kinds) if kind == "pairs"]
        texts = [g for g, kind in enumerate(kinds) if kind == "texts"]
        if not pairs or not texts:
            raise InputError(
                f"PairDamage needs the groups of pairs and texts, and got {list(table.sensitive_groups)}; expected "
                'side_by_side({"pairs": ..., "texts": ...})'
            )
        before = table.loss[pairs]
        if not bool((before > 0).all()):
            raise InputError("a fold of the pairs has ΔLL = 0 throughout; expected fewer folds, or pairs that differ")
        shares = table.counts[texts] / table.counts[texts].sum()
        bound = math.log1p(self.perplexity_rise)

        def value(damage: Tensor) -> Tensor:
            rise = torch.tensordot(shares, damage[texts], dims=1) / bound
            relative = damage[pairs] / before.view(-1, *[1] * (damage.ndim - 1))
            ordered = relative.sort(0).values  # torch.quantile refuses large tensors
            place = self.agreeing * (len(pairs) - 1)
            low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
            gain = low + (place - math.floor(place)) * (high - low)
            total: Tensor = gain + self.price * rise.clamp_min(0) + 100 * (rise - 1).clamp_min(0)
            return total

        return value
