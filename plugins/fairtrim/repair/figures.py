"""What a repair did to the people who judge it, before and after, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from fairtrim.arguments import few_of
from fairtrim.data.sensitive_groups import GroupName
from fairtrim.data.validation_set import ValidationSet
from fairtrim.measures.group_counts import GroupCounts, performance, rates
from fairtrim.measures.objective import COUNTERFACTUAL_MEASURES, Objective

__all__ = ["Figure", "compared_groups", "figures_of", "group_label", "moved", "size_of_bias"]

_Z = NormalDist().inv_cdf(0.975)

Statistic = Callable[[GroupCounts], Tensor]


class Figure(NamedTuple):
    """One figure of the decisions about the selection people, with 95 % intervals.

    Standard errors are the infinitesimal jackknife's (Jaeckel, 1972): the derivatives by the people's weights. The
    change is of the same people, each against itself. What one person makes is added, or nothing seen would be nothing
    possible.

    Attributes:
        name: ``selection rate``, ``accuracy``, the name of a measure, ...
        sensitive_group: Of whom; None for everybody.
        people: How many.
        before: Of the network as it was given.
        before_low: End of its interval.
        before_high: The other.
        after: Of the repaired network.
        after_low: End of its interval.
        after_high: The other.
        change: After minus before.
        change_low: End of its interval.
        change_high: The other.
    """

    name: str
    sensitive_group: GroupName | None
    people: int
    before: float
    before_low: float
    before_high: float
    after: float
    after_low: float
    after_high: float
    change: float
    change_low: float
    change_high: float

    @property
    def moved(self) -> bool:
        """Whether it changed by more than its error."""
        return self.change_low > 0 or self.change_high < 0


def figures_of(
    objective: Objective, people: ValidationSet, before: Tensor, after: Tensor, compared: Tensor | None = None
) -> tuple[Figure, ...]:
    """Compare two sets of decisions about the same people.

    Args:
        objective: Names the bias and the performance measure.
        people: The people, N.
        before: Whether each label was given, (N, K), or label 1 of two, (N, 1).
        after: The same now.
        compared: Groups that make the bias, for each of its rates, (R, G) bool; None for all.

    Returns:
        Of everybody: bias, performance, accuracy and the selection rate. Of each sensitive group: accuracy, the
        selection rate and the rates that the measure compares. For more than two classes rates are of the class, or
        classes, that make the bias before and after, against the rest, and their names say so.
    """
    labels = _told_labels(objective, people, before, after, compared)
    found = []
    if objective.measure not in COUNTERFACTUAL_MEASURES and people.n_groups > 1:

        def gap(counts: GroupCounts) -> Tensor:
            return _gap(objective.measure, counts, compared, signed=people.sides)

        lowest = -1.0 if people.sides else 0.0
        groups = compared_groups(people, compared)
        found.append(_figure(objective.measure, None, gap, people, before, after, lowest=lowest, groups=groups))
    of_all = dict.fromkeys([objective.performance, "accuracy"])
    statistics: dict[str, Statistic] = {
        name: lambda counts, name=name: performance(name, counts)  # type: ignore[misc]
        for name in of_all
    }
    for label, of in labels.items():
        statistics[f"selection rate{of}"] = lambda counts, label=label: rates(  # type: ignore[misc]
            "demographic_parity_difference", counts.pooled()
        )[label]
    found += [_figure(name, None, statistic, people, before, after) for name, statistic in statistics.items()]
    if people.n_groups > 1:
        for g, group in enumerate(people.groups):
            if not bool((people.mass[people.group == g] > 0).any()):
                continue
            for name, statistic in _of_group(objective.measure, labels, g):
                found.append(_figure(name, group, statistic, people, before, after, among=people.group == g))
    return tuple(found)


def size_of_bias(
    objective: Objective, people: ValidationSet, before: Tensor, after: Tensor, compared: Tensor | None = None
) -> Figure | None:
    """What becomes of the size of the bias, whichever side it favours.

    Args:
        objective: Names the measure.
        people: The people, N.
        before: Whether each label was given, (N, K), or label 1 of two, (N, 1).
        after: The same now.
        compared: Groups that make the bias, for each of its rates, (R, G) bool; None for all.

    Returns:
        The figure; None for a measure of counterfactual pairs, and of a single group.
    """
    if objective.measure in COUNTERFACTUAL_MEASURES or people.n_groups < 2:
        return None
    gap: Statistic = lambda counts: _gap(objective.measure, counts, compared, signed=False)  # noqa: E731
    groups = compared_groups(people, compared)
    return _figure(objective.measure, None, gap, people, before, after, groups=groups)


def compared_groups(people: ValidationSet, compared: Tensor | None) -> list[int]:
    """Groups that make the bias for some rate; of ``compared=None`` all that anybody is in."""
    if compared is not None:
        chosen: list[int] = compared.any(0).nonzero().flatten().tolist()
        return chosen
    return [g for g in range(people.n_groups) if bool((people.mass[people.group == g] > 0).any())]


def _gap(measure: str, counts: GroupCounts, compared: Tensor | None, *, signed: bool) -> Tensor:
    """The bias, as the difference of two rates even where several are alike: its slope is that of their difference."""
    rate = rates(measure, counts)
    known = rate.detach() if compared is None or signed else rate.detach().where(compared, torch.nan)
    if signed:
        apart = rate[:, 0] - rate[:, 1]
        return apart[known[:, 0].sub(known[:, 1]).abs().nan_to_num().argmax()]
    known = known.nan_to_num(nan=-1.0)
    first = known.argmax(1)
    rows = torch.arange(len(rate), device="cpu")
    others = known.masked_fill(known < 0, torch.inf)
    others[rows, first] = torch.inf
    apart = rate[rows, first] - rate[rows, others.argmin(1)]
    return apart[apart.detach().nan_to_num(nan=-1.0).argmax()]


def _told_labels(
    objective: Objective, people: ValidationSet, before: Tensor, after: Tensor, compared: Tensor | None
) -> dict[int, str]:
    """Labels whose rates are told, by place on the class axis, and how names say so."""
    n_labels = before.shape[1]
    if n_labels == 1:
        return {0: ""}
    if objective.measure in COUNTERFACTUAL_MEASURES or objective.measure == "accuracy_score_difference":
        return {}
    found = set()
    for given in (before, after):
        counts = GroupCounts.of(given, people.target, people.group, n_groups=people.n_groups, weight=people.mass)
        rate = rates(objective.measure, counts)
        left = torch.zeros_like(rate, dtype=torch.bool) if compared is None else ~compared
        apart = rate.masked_fill(left, -torch.inf).amax(-1) - rate.masked_fill(left, torch.inf).amin(-1)
        found.add(int(apart.nan_to_num(nan=-1.0, neginf=-1.0).argmax()) % n_labels)
    return {label: f" of {label}" for label in sorted(found)}


def _of_group(measure: str, labels: Mapping[int, str], g: int) -> Iterator[tuple[str, Statistic]]:
    def own(counts: GroupCounts) -> GroupCounts:
        return GroupCounts(*(getattr(counts, name)[..., g : g + 1] for name in counts.__dataclass_fields__))

    def of_label(measure: str, label: int, *, second: bool = False) -> Statistic:
        return lambda counts: rates(measure, own(counts))[label + second * counts.n_labels]

    for label, of in labels.items():
        yield f"selection rate{of}", of_label("demographic_parity_difference", label)
    yield "accuracy", lambda counts: performance("accuracy", own(counts))
    for label, of in labels.items():
        if "odds" in measure or "opportunity" in measure:
            yield f"true positive rate{of}", of_label("equal_opportunity_difference", label)
        if "odds" in measure:  # after the true positive rates of all labels
            yield f"false positive rate{of}", of_label("equalized_odds_difference", label, second=True)


def _figure(
    name: str,
    group: GroupName | None,
    statistic: Statistic,
    people: ValidationSet,
    before: Tensor,
    after: Tensor,
    *,
    among: Tensor | None = None,
    lowest: float = 0.0,
    groups: Sequence[int] = (),
) -> Figure:
    mass = people.mass
    values, influences = zip(*(_influence(statistic, people, given) for given in (before, after)), strict=True)
    chosen = mass > 0 if among is None else (mass > 0) & among
    own = mass[chosen]
    one = float(own.square().sum() / own.sum().square()) if len(own) else 1.0  # one over the effective number
    if groups:  # a difference of two of them
        of_groups = [mass[people.group == g] for g in groups]
        one = max(float(w.square().sum() / w.sum().square()) for w in of_groups if float(w.sum()) > 0)

    def half(influence: Tensor) -> float:
        return _Z * float((influence.square().sum() + one**2).sqrt())

    def ends(value: float, influence: Tensor) -> tuple[float, float, float]:
        off = half(influence)
        return value, max(lowest, value - off) if value == value else value, min(value + off, max(1.0, value))

    first, second = (ends(value, influence) for value, influence in zip(values, influences, strict=True))
    change, off = values[1] - values[0], half(influences[1] - influences[0])
    widest = 1.0 - lowest
    low, high = max(-widest, change - off), min(widest, change + off)
    return Figure._make((name, group, int(chosen.sum()), *first, *second, change, low, high))


def _influence(statistic: Statistic, people: ValidationSet, given: Tensor) -> tuple[float, Tensor]:
    """A statistic and each person's influence on it: weight times the derivative by it, (N,)."""
    weight = people.mass.clone().requires_grad_(True)
    with torch.enable_grad():
        counts = GroupCounts.of(given, people.target, people.group, n_groups=people.n_groups, weight=weight)
        value = statistic(counts).sum()
        if not value.requires_grad:
            return float(value), torch.zeros_like(weight)
        (slope,) = torch.autograd.grad(value, weight)
    return float(value.detach()), (weight.detach() * slope).nan_to_num()


def moved(figures: tuple[Figure, ...]) -> list[str]:
    """Flags for a selection rate, or accuracies of everybody or of sensitive groups, that changed beyond their error.

    Args:
        figures: From ``figures_of``.

    Returns:
        At most three sentences.
    """
    found = [
        f"the selection rate moved from {f.before:.3f} to {f.after:.3f} "
        f"({f.change:+.3f} [{f.change_low:+.3f}, {f.change_high:+.3f}])"
        for f in figures
        if f.name == "selection rate" and f.sensitive_group is None and f.moved
    ]
    changed = [f for f in figures if f.name == "accuracy" and f.moved]
    for verb, some in (("fell", [f for f in changed if f.change < 0]), ("rose", [f for f in changed if f.change > 0])):
        some.sort(key=lambda figure: -abs(figure.change))
        told = [f"{group_label(f.sensitive_group)} ({f.change:+.3f})" for f in some]
        if told:
            found.append(f"accuracy {verb} by more than its error for {few_of(told, most=4)}")
    return found


def group_label(group: GroupName | None) -> str:
    """The name of a group in a sentence."""
    return "everybody" if group is None else group if isinstance(group, str) else ", ".join(map(str, group))
