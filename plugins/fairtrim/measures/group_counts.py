"""Confusion counts of every sensitive group, and the bias and performance measures that are read off them.

The same formulas serve hard decisions, where counts are whole numbers of people, and probabilities, where they are
differentiable proxies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fairtrim.errors import InputError

from .measure_names import canonical_measure

__all__ = [
    "BIAS_MEASURES",
    "PERFORMANCE_MEASURES",
    "GroupCounts",
    "bias",
    "canonical_measure",
    "needs_labels",
    "performance",
    "rate_covariances",
    "rate_variances",
    "rates",
]


@dataclass(frozen=True)
class GroupCounts:
    """Weighted numbers of people, by sensitive group, whom a classifier gives a label.

    Two classes are told by label 1 alone (one entry on the class axis); K > 2 classes one against the rest.

    Attributes:
        true_positive: Of the label, and given it, (..., K, G) or (..., 1, G).
        false_positive: Given the label without having it, same shape.
        positive: Of the label, (K, G) or (1, G).
        negative: Not of it, same shape.
    """

    true_positive: Tensor
    false_positive: Tensor
    positive: Tensor
    negative: Tensor

    @classmethod
    def of(
        cls, given: Tensor, target: Tensor, group: Tensor, *, n_groups: int, weight: Tensor | None = None
    ) -> GroupCounts:
        """Counts of one set of decisions.

        Args:
            given: Whether each label is given, or its probability, (N, K) or (N, 1) for label 1 of two.
            target: Labels, (N,) int64.
            group: Sensitive group of each sample, (N,) int64 below G.
            n_groups: G.
            weight: Sample weights, (N,), or None for 1 each.

        Returns:
            The counts, differentiable in ``given``.

        Example:
            >>> counts = GroupCounts.of(
            ...     torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1]), n_groups=2
            ... )
            >>> counts.true_positive.tolist(), counts.false_positive.tolist()
            ([[1.0, 0.0]], [[0.0, 1.0]])
        """
        member = torch.nn.functional.one_hot(group, n_groups).to(given.dtype)
        member = member if weight is None else member * weight.to(given.dtype)[:, None]
        n_classes = given.shape[1]
        labels = (target == 1)[:, None] if n_classes == 1 else torch.nn.functional.one_hot(target, n_classes)
        of_label = labels.to(given.dtype)
        return cls(
            true_positive=(given * of_label).T @ member,
            false_positive=(given * (1 - of_label)).T @ member,
            positive=of_label.T @ member,
            negative=(1 - of_label).T @ member,
        )

    @property
    def n_groups(self) -> int:
        """G."""
        return int(self.positive.shape[1])

    @property
    def n_labels(self) -> int:
        """Length of the class axis: 1 for two classes, else K."""
        return int(self.positive.shape[0])

    def pooled(self) -> GroupCounts:
        """Counts over everybody, as one group."""
        # column by column: a reduction over a short last axis costs several times as much
        return GroupCounts(*(sum(getattr(self, name).unbind(-1)).unsqueeze(-1) for name in self.__dataclass_fields__))


_Fraction = Callable[[GroupCounts], tuple[Tensor, Tensor]]
"""People whom something is true of, and people among whom they are counted."""


def _selection(counts: GroupCounts) -> tuple[Tensor, Tensor]:
    return counts.true_positive + counts.false_positive, counts.positive + counts.negative


def _true_positive(counts: GroupCounts) -> tuple[Tensor, Tensor]:
    return counts.true_positive, counts.positive


def _false_positive(counts: GroupCounts) -> tuple[Tensor, Tensor]:
    return counts.false_positive, counts.negative


def _accuracy(counts: GroupCounts) -> tuple[Tensor, Tensor]:
    """(..., 1, G)."""
    right = counts.true_positive
    if counts.n_labels == 1:
        return right + counts.negative - counts.false_positive, counts.positive + counts.negative
    return right.sum(-2, keepdim=True), counts.positive.sum(-2, keepdim=True)


def _rate(*fractions: _Fraction) -> Callable[[GroupCounts], Tensor]:
    """The mean of some fractions."""

    def rate(counts: GroupCounts) -> Tensor:
        parts = [given / among for given, among in (fraction(counts) for fraction in fractions)]
        return parts[0] if len(parts) == 1 else sum(parts) / len(parts)  # type: ignore[return-value]

    return rate


_FRACTIONS: dict[str, tuple[tuple[_Fraction, ...], ...]] = {
    "demographic_parity_difference": ((_selection,),),
    "equal_opportunity_difference": ((_true_positive,),),
    "average_odds_difference": ((_true_positive, _false_positive),),
    "equalized_odds_difference": ((_true_positive,), (_false_positive,)),
    "accuracy_score_difference": ((_accuracy,),),
}

BIAS_MEASURES: dict[str, tuple[Callable[[GroupCounts], Tensor], ...]] = {
    name: tuple(_rate(*fractions) for fractions in of_rates) for name, of_rates in _FRACTIONS.items()
}
"""The group rates whose differences are the bias, by the name of the measure.

The names are Fairlearn's; ``average_odds_difference`` is AIF360's. Where two sides are named the sign is AIF360's,
unprivileged minus privileged."""

_NEEDED_LABELS = {
    "equal_opportunity_difference": (True, False),
    "average_odds_difference": (True, True),
    "equalized_odds_difference": (True, True),
    "eopp0": (False, True),
    "eopp1": (True, False),
    "eodd": (True, True),
}


def needs_labels(measure: str) -> tuple[bool, bool]:
    """Whether a measure needs people with the label, and people without it, of every group.

    Args:
        measure: Its name.

    Returns:
        The two answers.
    """
    return _NEEDED_LABELS.get(measure, (False, False))


def rates(measure: str, counts: GroupCounts) -> Tensor:
    """The group rates that a bias measure compares.

    Args:
        measure: One of ``BIAS_MEASURES``, under any of its names.
        counts: The counts.

    Returns:
        (..., R, G): R rates, among them one for each label, of G groups.
    """
    parts = [rate(counts) for rate in BIAS_MEASURES[canonical_measure(measure)]]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)


def rate_variances(measure: str, counts: GroupCounts, squares: GroupCounts) -> tuple[Tensor, Tensor]:
    """Variances of the group rates by chance, p (1 − p) / n with everybody's p, and the fewest people of each.

    Args:
        measure: One of ``BIAS_MEASURES``, under any of its names.
        counts: The counts.
        squares: Counts of the same people with the squares of their weights.

    Returns:
        Two tensors as of ``rates``; the people are effective numbers n = (Σ w)² / Σ w², and infinite variances those of
        nobody.

    Example:
        >>> counts = GroupCounts(*(torch.tensor([row]) for row in ([2.0, 8.0], [0.0, 0.0], [4.0, 16.0], [1.0, 1.0])))
        >>> rate_variances("equal_opportunity_difference", counts, counts)[0].tolist()  # of weights 1
        [[0.0625, 0.015625]]
    """
    variances: list[Tensor] = []
    people: list[Tensor] = []
    for fractions in _FRACTIONS[canonical_measure(measure)]:
        of_parts: list[tuple[Tensor, Tensor]] = []
        for fraction in fractions:
            (given, among), (_, squared) = fraction(counts), fraction(squares)
            share = torch.stack(given.unbind(-1)).sum(0) / among.sum(-1)
            effective = (among.square() / squared.where(among > 0, 1.0)).expand_as(given)
            variance = (share * (1 - share)).unsqueeze(-1) / effective
            of_parts.append((variance.where(effective > 0, torch.inf), effective))
        variances.append(torch.stack([v for v, _ in of_parts]).sum(0) / len(of_parts) ** 2)
        people.append(torch.stack([n for _, n in of_parts]).amin(0))
    return torch.cat(variances, -2), torch.cat(people, -2)


def rate_covariances(measure: str, counts: GroupCounts, by_value: GroupCounts, by_square: GroupCounts) -> Tensor:
    """Covariances of what a rate counts with a standardised value of each person, such as the age.

    How much the rate changes with a standard deviation of the value, if it changes evenly (Zafar et al., AISTATS 2017,
    arXiv 1507.05259, take the decision's margin in place of the rate): 0 where they have nothing to do with each other.

    Args:
        measure: One of ``BIAS_MEASURES``, under any of its names.
        counts: Of everybody, as one group.
        by_value: The same with the people's weights times their values.
        by_square: The same with the weights times the squares of the values.

    Returns:
        (R,): each over the people whom its rate is about, NaN where these are none; 0 where their values are the same.

    Example:
        >>> decided, target, value = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), torch.tensor([-1.0, 1.0])
        >>> everybody = torch.zeros(2, dtype=torch.int64)
        >>> of = [GroupCounts.of(decided, target, everybody, n_groups=1, weight=value**power) for power in (0, 1, 2)]
        >>> rate_covariances("demographic_parity_difference", *of).tolist()
        [0.5]
    """
    found = []
    for fractions in _FRACTIONS[canonical_measure(measure)]:
        parts = []
        for fraction in fractions:
            (given, among), (given_value, among_value), (_, among_square) = map(fraction, (counts, by_value, by_square))
            people = among.where(among > 0, 1.0)  # the gradient of 0 / 0 would spoil all others
            mean, square = among_value / people, among_square / people
            variance = square - mean.square()
            spread = variance.where(variance > 1e-9 * square, torch.inf).sqrt()
            covariance = (given_value - mean * given) / people / spread
            parts.append(covariance.where(among > 0, torch.nan).squeeze(-1))
        found.append(torch.stack(parts).mean(0))
    return torch.cat(found)


def bias(measure: str, counts: GroupCounts, *, signed: bool = False) -> Tensor:
    """The bias of decisions: the largest difference of a rate between two sensitive groups.

    Args:
        measure: One of ``BIAS_MEASURES``.
        counts: Of G groups.
        signed: For two groups: group 0 (unprivileged) minus group 1 (privileged), as AIF360 has it; of several rates
            the one that differs most.

    Returns:
        (...): at least 0 unless ``signed``; NaN where a group has nobody that a rate is defined for.

    Raises:
        InputError: ``signed``, and there are not two groups.

    Example:
        >>> counts = GroupCounts.of(
        ...     torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([1, 0, 1]), torch.tensor([0, 1, 1]), n_groups=2
        ... )
        >>> float(bias("demographic_parity_difference", counts, signed=True))
        0.5
    """
    of_groups = rates(measure, counts)
    if not signed:
        return (of_groups.amax(-1) - of_groups.amin(-1)).amax(-1)
    if of_groups.shape[-1] != 2:
        raise InputError(f"a signed difference of {of_groups.shape[-1]} sensitive groups; expected 2")
    difference = of_groups[..., 0] - of_groups[..., 1]
    if difference.shape[-1] == 1:
        return difference[..., 0]
    largest = difference.abs().argmax(-1, keepdim=True)
    return difference.gather(-1, largest).squeeze(-1)


def _balanced_accuracy(counts: GroupCounts) -> Tensor:
    recall = _rate(_true_positive)(counts)
    if counts.n_labels == 1:
        recall = (recall + 1 - _rate(_false_positive)(counts)) / 2
    return recall.mean(-2)


def _f1(counts: GroupCounts) -> Tensor:
    """Of label 1, or the mean over classes."""
    score = 2 * counts.true_positive / (counts.true_positive + counts.false_positive + counts.positive)
    return score.mean(-2)


PERFORMANCE_MEASURES: dict[str, Callable[[GroupCounts], Tensor]] = {
    "balanced_accuracy": _balanced_accuracy,
    "accuracy": lambda counts: _rate(_accuracy)(counts).squeeze(-2),
    "f1": _f1,
}
"""Performance over everybody by name, from counts (..., K, 1)."""


def performance(measure: str, counts: GroupCounts) -> Tensor:
    """The performance of decisions over everybody.

    Args:
        measure: One of ``PERFORMANCE_MEASURES``.
        counts: Of G groups, which are pooled.

    Returns:
        (...).

    Raises:
        InputError: There is no such measure.
    """
    if measure not in PERFORMANCE_MEASURES:
        raise InputError(
            f"performance={measure!r} is not a performance measure; expected one of {list(PERFORMANCE_MEASURES)}"
        )
    return PERFORMANCE_MEASURES[measure](counts.pooled()).squeeze(-1)
