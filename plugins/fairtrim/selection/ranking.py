"""From one value a channel to an order of removal, within what a pruner takes and what must stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fairtrim.criteria import Criterion
from fairtrim.damage.channel_costs import ChannelCosts
from fairtrim.damage.channel_groups import ChannelColumns
from fairtrim.damage.table import DamageTable
from fairtrim.errors import InputError

__all__ = [
    "Allowance",
    "Floor",
    "Pool",
    "Selection",
    "break_ties",
    "finite",
    "negative_columns",
    "ranked",
    "single_selection",
]


@dataclass(frozen=True)
class Pool:
    """Channel groups that a pruner ranks against each other, and how many channels it will take from them.

    Attributes:
        layers: Names of the channel groups.
        quota: Number of channels to remove from the pool, or None for no limit.
    """

    layers: tuple[str, ...]
    quota: int | None = None


@dataclass(frozen=True)
class Floor:
    """Channels of which some must stay. Every layer keeps one even without a floor of its own.

    Attributes:
        layer: Name of the channel group.
        minimum: How many stay.
        channels: Which channels it is about, e.g. the part behind a split that one layer consumes; None for all.
    """

    layer: str
    minimum: int = 1
    channels: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Selection:
    """An order of removal.

    Attributes:
        order: Columns of the table, first removed first, (C,).
        scores: What a pruner ranks by, (C,): the place in the order for joint selection, the criterion's value
            for single channels; ties broken, every score finite.
        change: What removing each channel, in its turn, adds to the criterion, (C,) by column.
        shares: Of compensated selection: which share of each channel's damage those that were left at its turn can't
            make up for, (C,) by column.
    """

    order: Tensor
    scores: Tensor
    change: Tensor
    shares: Tensor | None = None

    @classmethod
    def of_order(cls, order: Sequence[int], change: Tensor, shares: Tensor | None = None) -> Selection:
        """Scores that are places in an order.

        Args:
            order: Columns of the table, first removed first.
            change: What removing each channel, in its turn, adds to the criterion.
            shares: What is left of each channel's damage in its turn.

        Returns:
            The selection.
        """
        places = torch.full((len(order),), torch.nan, dtype=torch.float64, device="cpu")
        places[list(order)] = torch.arange(len(order), dtype=torch.float64, device="cpu")
        return cls(torch.tensor(list(order), device="cpu"), places, change, shares)


def finite(values: Tensor) -> Tensor:
    """The values of a criterion, looked at.

    Args:
        values: One a channel.

    Returns:
        The same.

    Raises:
        InputError: One is not finite.

    Example:
        >>> finite(torch.tensor([torch.nan]))
        Traceback (most recent call last):
        fairtrim.errors.InputError: the criterion gave values that are not finite; expected one finite value a channel
    """
    # one look at their sum is enough, but for an overflow
    if not math.isfinite(float(values.sum())) and not bool(torch.isfinite(values).all()):
        raise InputError("the criterion gave values that are not finite; expected one finite value a channel")
    return values


def break_ties(scores: Tensor) -> Tensor:
    """Make equal scores differ by the smallest step, in order of appearance.

    Torch-Pruning removes every score up to a threshold: many equal ones would all go at once.

    Args:
        scores: (C,) float64.

    Returns:
        (C,) distinct scores in the same order as before.

    Example:
        >>> distinct = break_ties(torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
        >>> bool(distinct[0] < distinct[2] < distinct[1])
        True
    """
    order = torch.argsort(scores, stable=True)
    values = scores[order].tolist()
    upward = torch.tensor(torch.inf, dtype=torch.float64, device="cpu")
    for i in range(1, len(values)):
        if values[i] <= values[i - 1]:
            values[i] = float(torch.nextafter(torch.tensor(values[i - 1], dtype=torch.float64, device="cpu"), upward))
    distinct = torch.empty_like(scores)
    distinct[order] = torch.tensor(values, dtype=torch.float64, device="cpu")
    return distinct


class Allowance:
    """How many channels may still go before a floor is reached.

    Floors are given up in stages when a pruner asks for more than they allow: first the tentative ones, then those of
    more than one channel, then the last channel of a layer or of a part behind a split.

    Every layer keeps one channel, whatever the floors.

    Example:
        >>> allowance = Allowance(ChannelColumns({"a": 2}), [])
        >>> allowance.take(1)
        >>> allowance.allows(0)
        False
    """

    def __init__(self, columns: ChannelColumns, floors: Sequence[Floor], tentative: Sequence[Floor] = ()) -> None:
        for floor in (*floors, *tentative):
            if floor.layer not in columns:
                raise InputError(f"a floor names {floor.layer!r}; the channel groups are {list(columns.sizes)}")
        every = [*(Floor(name) for name in columns.sizes), *floors, *tentative]
        self._n_tentative = len(tentative)
        self.columns = [columns.selected({f.layer: f.channels or range(columns.sizes[f.layer])}) for f in every]
        self._minimum = [floor.minimum for floor in every]
        self._gone = [0] * len(every)
        self._of_column: list[list[int]] = [[] for _ in range(len(columns))]
        for number, columns_of_floor in enumerate(self.columns):
            for column in columns_of_floor.tolist():
                self._of_column[column].append(number)

    def _left(self, number: int) -> int:
        return max(0, len(self.columns[number]) - self._gone[number] - self._minimum[number])

    def allows(self, column: int) -> bool:
        """Whether a channel may go."""
        return all(self._left(number) > 0 for number in self._of_column[column])

    def take(self, column: int) -> None:
        """Count a channel that goes."""
        for number in self._of_column[column]:
            self._gone[number] += 1

    def protected(self, column: int | None = None) -> list[Tensor]:
        """Columns that must stay, floor by floor: of all floors, or of those that a column belongs to."""
        numbers = range(len(self.columns)) if column is None else self._of_column[column]
        return [self.columns[number] for number in numbers if self._left(number) == 0]

    @property
    def tentative(self) -> bool:
        """Whether the tentative floors still hold."""
        return self._n_tentative > 0

    def lift(self) -> None:
        """Give up the next stage of floors."""
        if self._n_tentative:
            self._minimum[-self._n_tentative :] = [0] * self._n_tentative
            self._n_tentative = 0
            return
        lowest = 1 if any(minimum > 1 for minimum in self._minimum) else 0
        self._minimum = [min(minimum, lowest) for minimum in self._minimum]


def single_selection(
    table: DamageTable,
    criterion: Criterion,
    *,
    pools: Sequence[Pool] | None = None,
    floors: Sequence[Floor] = (),
    costs: ChannelCosts | None = None,
) -> Selection:
    """Rank channels by their damage when each is removed alone.

    Args:
        table: The damage table.
        criterion: The criterion.
        pools: See ``ranked``.
        floors: Channels that stay; every layer keeps one.
        costs: What each channel costs, to divide by; None for one each.

    Returns:
        The selection; its scores are the criterion's values.

    Raises:
        InputError: The criterion gives a score that is not finite, or a floor names an unknown layer.
    """
    values = criterion.score(table)
    return ranked(values if costs is None else values / costs.each, table.columns, pools=pools, floors=floors)


def ranked(
    values: Tensor, columns: ChannelColumns, *, pools: Sequence[Pool] | None = None, floors: Sequence[Floor] = ()
) -> Selection:
    """Rank channels by one value each, smaller = removed first.

    Args:
        values: (C,) float64.
        columns: Which column belongs to which channel group.
        pools: Channel groups that are ranked against each other; in a pool of several, the best channels of
            each layer are put beyond all others, because a pruner that is told to remove a whole layer skips it.
        floors: Channels that stay; every layer keeps one.

    Returns:
        The selection; its scores are the values, made distinct.

    Raises:
        InputError: A value is not finite, or a floor names an unknown layer.
    """
    if not bool(torch.isfinite(values).all()):
        raise InputError("the criterion gave scores that are not finite; expected one finite score a channel")
    scores = break_ties(values)
    competing = {name for pool in pools or [] if len(pool.layers) > 1 for name in pool.layers}
    competing |= {floor.layer for floor in floors if floor.channels is not None}
    waiting = [c for c in scores.argsort(stable=True).tolist() if columns.layer_of(c) in competing]
    allowance = Allowance(columns, floors)
    highest = scores.max()
    step = highest.abs().clamp_min(1.0)
    place = 0
    while waiting:
        stays = []
        for column in waiting:
            if not allowance.allows(column):
                stays.append(column)
                continue
            allowance.take(column)
            if place:  # only a given-up floor lets it go: after everything else
                scores[column] = highest + step * place
                place += 1
        place = place or 1
        waiting = stays
        allowance.lift()
    return Selection(torch.argsort(scores, stable=True), scores, values)


def negative_columns(columns: ChannelColumns, selection: Selection, floors: Sequence[Floor], *, joint: bool) -> Tensor:
    """What a rule "remove only what lowers the criterion" removes, floors respected.

    Args:
        columns: Which column belongs to which channel group.
        selection: Over one pool without a quota.
        floors: Channels that stay.
        joint: Whether the changes depend on what went before, so that the first rise ends the rule.

    Returns:
        Columns of the table.
    """
    allowance = Allowance(columns, floors)
    removed = []
    for column in selection.order.tolist():
        if selection.change[column] >= 0 and joint:
            break
        if selection.change[column] < 0 and allowance.allows(column):
            allowance.take(column)
            removed.append(column)
    return torch.tensor(removed, dtype=torch.int64, device="cpu")
