"""One sentence on who pays for a compression: the largest loss of a sensitive group, said only beyond chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from fairtrim.printing import figure

__all__ = ["GroupChange", "clause_of", "verdict_of", "verdict_of_one", "worst_of"]

_LISTED = 3  # networks that a sentence names each
_NAMED = 2  # groups that lose the same
_TAIL = 0.025  # of the intervals
_ROUNDING = 1e-12  # of sums of weights in another order


@dataclass(frozen=True)
class GroupChange:
    """What a network does to the accuracy of a sensitive group.

    Attributes:
        group: Its name.
        change: Of its accuracy, against the reference; NaN for a group of nobody.
        low: Lower end of the 95 % interval of the change; NaN where there is none.
        high: Upper end.
    """

    group: str
    change: float
    low: float = math.nan
    high: float = math.nan

    @property
    def points(self) -> str:
        """The size of the change in points of accuracy."""
        size = 100 * abs(self.change)
        return f"{size:.1f}" if size >= 0.05 else f"{size:.1g}"

    def is_beyond_chance(self, n_groups: int) -> bool:
        """Whether it is a loss still if the interval pays for having chosen the group (Bonferroni)."""
        wider = NormalDist().inv_cdf(1 - _TAIL / n_groups) / NormalDist().inv_cdf(1 - _TAIL)
        return (self.low + self.high) / 2 + (self.high - self.low) / 2 * wider < 0


@dataclass(frozen=True)
class _Finding:
    """What can be said of one network; ``rank`` 0: a loss, 1: a loss that may be chance, 2: none, 3: nothing known."""

    name: str
    rank: int
    largest: GroupChange | None = None
    who: str = ""
    aside: str = ""
    measured_only: bool = False

    @property
    def order(self) -> tuple[int, float]:
        return self.rank, 0.0 if self.largest is None else self.largest.change

    def clause(self, *, word: str = "costs") -> str:
        """On its own."""
        if self.largest is not None and self.rank == 0:
            return f"{self.name} {word} {self.who} {self.largest.points} points of accuracy{self.aside}"
        if self.largest is not None and self.rank == 1:
            return f"a loss by {self.name} can't be told from chance (largest: {self.who} {self.largest.points} points)"
        return (
            f"{self.name} costs no group accuracy among these people"
            if self.rank == 2
            else f"what {self.name} costs isn't known, for no group has an accuracy"
        )

    def short(self) -> str:
        """After the clause of another loss."""
        assert self.largest is not None
        return f"{self.name} {self.largest.points} ({self.who}){self.aside}"


def worst_of(groups: Sequence[GroupChange]) -> tuple[GroupChange, str] | None:
    """Who pays most.

    Args:
        groups: What becomes of each; NaN where it isn't known.

    Returns:
        Of the losses beyond chance the largest, and no remark; if there are none the largest of all losses, with the
        remark that it may be chance; if nobody loses the least gain. Without any interval, as measured. None if nothing
        is known.

    Example:
        >>> few, many = GroupChange("few", -0.1, -0.26, 0.06), GroupChange("many", -0.06, -0.07, -0.05)
        >>> worst_of([few, many])[0].group, worst_of([few])[1]
        ('many', ', which may be chance')
    """
    known = _known(groups)
    if not known:
        return None
    lost, told = _losses(known)
    worst = (told or known)[0]
    if told or not lost:
        return worst, ""
    return worst, ", which may be chance" + (f" among {len(known)} groups" if worst.high < 0 else "")


def _known(groups: Sequence[GroupChange]) -> list[GroupChange]:
    return sorted((group for group in groups if not math.isnan(group.change)), key=lambda group: group.change)


def _losses(known: Sequence[GroupChange]) -> tuple[list[GroupChange], list[GroupChange]]:
    """All, and those beyond chance: without any interval all of them."""
    lost = [group for group in known if group.change < -_ROUNDING]
    as_measured = all(math.isnan(group.high) for group in known)
    return lost, [group for group in lost if as_measured or group.is_beyond_chance(len(known))]


def _finding(name: str, groups: Sequence[GroupChange]) -> _Finding:
    known = _known(groups)
    lost, told = _losses(known)
    if not lost:
        return _Finding(name, 2 if known else 3)
    largest = (told or lost)[0]
    equal = [group.group for group in (told or lost) if group.points == largest.points]
    who = " and ".join(equal) if len(equal) <= _NAMED else f"each of {len(equal)} groups"
    if not told:
        return _Finding(name, 1, largest, who)
    aside = "" if lost[0].change >= largest.change else f" ({lost[0].group}'s {lost[0].points} may be chance)"
    return _Finding(name, 0, largest, who, aside, math.isnan(largest.high))


def clause_of(name: str, groups: Sequence[GroupChange]) -> str:
    """What one network costs, as part of a sentence.

    Args:
        name: The network.
        groups: What it does to each sensitive group.

    Returns:
        Text.

    Example:
        >>> clause_of("pruned", [GroupChange("Male", -0.058, -0.064, -0.052)])
        'pruned costs Male 5.8 points of accuracy'
    """
    return _finding(name, groups).clause()


def verdict_of_one(name: str, accuracy: Mapping[str, float]) -> str:
    """Say of a network that nothing is compared with whom it serves worst.

    Args:
        name: The network.
        accuracy: Of each sensitive group; NaN for a group of nobody.

    Returns:
        A sentence.

    Example:
        >>> verdict_of_one("dense", {"a": 0.9, "b": 0.8})
        "One network, 'dense': its accuracy is lowest for b, 0.800."
    """
    known = {group: float(value) for group, value in accuracy.items() if not math.isnan(value)}
    if not known:
        return f"One network, {name!r}: no group has an accuracy."
    lowest = min(known, key=known.__getitem__)
    whom = lowest if len(known) > 1 else f"the only group, {lowest}"
    return f"One network, {name!r}: its accuracy is lowest for {whom}, {figure(known[lowest])}."


def verdict_of(reference: str, changes: Mapping[str, Sequence[GroupChange]], at: str = "") -> str:
    """Say what compressions cost.

    Args:
        reference: Name of the network that changes are measured from.
        changes: Of each other network, of each sensitive group.
        at: What they have in common, e.g. "50 % of the MACs".

    Returns:
        A sentence. Of up to three networks each is named, of more the one that costs most and the one that costs least.

    Example:
        >>> male = GroupChange("Male", -0.058, -0.064, -0.052), GroupChange("Male", -0.001, -0.003, 0.001)
        >>> print(verdict_of("dense", {"magnitude": male[:1], "worst group": male[1:]}))
        Against 'dense', magnitude costs Male 5.8 points of accuracy; a loss by worst group can't be told from chance
        (largest: Male 0.1 points).
        >>> print(verdict_of("dense", {"magnitude": male[:1]}, at="50 % of the MACs"))
        At 50 % of the MACs, against 'dense', magnitude costs Male 5.8 points of accuracy.
    """
    findings = [_finding(name, groups) for name, groups in changes.items()]
    begin = f"At {at}, against {reference!r}, " if at else f"Against {reference!r}, "
    end = ""
    if any(finding.measured_only for finding in findings):
        end = " (as measured: without intervals it can't be told from chance)"
    body = _each(findings) if len(findings) <= _LISTED else _ends(sorted(findings, key=lambda finding: finding.order))
    return f"{begin}{body}{end}."


def _each(findings: Sequence[_Finding]) -> str:
    first, *rest = findings
    if rest and all(finding.rank == 0 for finding in findings):
        *others, last = [finding.short() for finding in rest]
        return ", ".join([first.clause(), *others]) + f" and {last}"
    return "; ".join(finding.clause() for finding in findings)


def _ends(ordered: Sequence[_Finding]) -> str:
    """The first and the last, and how many are between."""
    worst, best = ordered[0], ordered[-1]
    if worst.rank == 1 and worst.largest is not None:
        largest = f"{worst.name}, {worst.who} {worst.largest.points} points"
        return f"a loss by none of {len(ordered)} networks can be told from chance (largest: {largest})"
    if worst.rank == 2:
        return f"none of {len(ordered)} networks costs a group accuracy among these people"
    if worst.rank == 3:
        return f"what {len(ordered)} networks cost isn't known, for no group has an accuracy"
    least = f"least: {best.short()}" if best.rank == 0 else best.clause()
    return f"of {len(ordered)} networks {worst.clause(word='costs most:')}; {least}; {len(ordered) - 2} are between"
