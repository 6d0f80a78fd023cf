"""From a criterion to an order of removal: joint selection, and FairGRAPE's order of shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fairtrim.criteria import Criterion, require_sensitive_groups
from fairtrim.damage.channel_groups import ChannelColumns
from fairtrim.damage.table import DamageTable
from fairtrim.errors import InputError

__all__ = [
    "Floor",
    "Pool",
    "Selection",
    "break_ties",
    "joint_selection",
    "negative_columns",
    "ranked",
    "share_balanced_order",
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
    """

    order: Tensor
    scores: Tensor
    change: Tensor


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
    upward = torch.tensor(torch.inf, dtype=torch.float64)
    for i in range(1, len(values)):
        if values[i] <= values[i - 1]:
            values[i] = float(torch.nextafter(torch.tensor(values[i - 1], dtype=torch.float64), upward))
    distinct = torch.empty_like(scores)
    distinct[order] = torch.tensor(values, dtype=torch.float64)
    return distinct


class _Allowance:
    """How many channels may still go before a floor is reached.

    Floors are given up in two stages when a pruner asks for more than they allow: first those of more than one
    channel, then the last channel of a layer or of a part behind a split.
    """

    def __init__(self, columns: ChannelColumns, floors: Sequence[Floor]) -> None:
        for floor in floors:
            if floor.layer not in columns:
                raise InputError(f"a floor names {floor.layer!r}; the channel groups are {list(columns.sizes)}")
        every = [Floor(name) for name in columns.sizes] + list(floors)
        self.columns = [columns.selected({f.layer: f.channels or range(columns.sizes[f.layer])}) for f in every]
        self._minimum = [floor.minimum for floor in every]
        self._gone = [0] * len(every)
        self._of_column: list[list[int]] = [[] for _ in range(len(columns))]
        for number, columns_of_floor in enumerate(self.columns):
            for column in columns_of_floor.tolist():
                self._of_column[column].append(number)

    def left(self, number: int) -> int:
        return max(0, len(self.columns[number]) - self._gone[number] - self._minimum[number])

    def allows(self, column: int) -> bool:
        return all(self.left(number) > 0 for number in self._of_column[column])

    def take(self, column: int) -> None:
        for number in self._of_column[column]:
            self._gone[number] += 1

    def protected(self, column: int | None = None) -> list[Tensor]:
        """Columns that must stay: all of them, or those of the floors that one column belongs to."""
        numbers = range(len(self.columns)) if column is None else self._of_column[column]
        return [self.columns[number] for number in numbers if self.left(number) == 0]

    def lift(self) -> None:
        """Give up the next stage of floors."""
        lowest = 1 if any(minimum > 1 for minimum in self._minimum) else 0
        self._minimum = [min(minimum, lowest) for minimum in self._minimum]


def single_selection(
    table: DamageTable,
    criterion: Criterion,
    *,
    pools: Sequence[Pool] | None = None,
    floors: Sequence[Floor] = (),
) -> Selection:
    """Rank channels by their damage when each is removed alone.

    Args:
        table: The damage table.
        criterion: The criterion.
        pools: See ``ranked``.
        floors: Channels that stay; every layer keeps one.

    Returns:
        The selection; its scores are the criterion's values.

    Raises:
        InputError: The criterion gives a score that is not finite, or a floor names an unknown layer.
    """
    return ranked(criterion.score(table), table.columns, pools=pools, floors=floors)


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
    allowance = _Allowance(columns, floors)
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


def joint_selection(
    table: DamageTable,
    criterion: Criterion,
    *,
    pools: Sequence[Pool] | None = None,
    floors: Sequence[Floor] = (),
    progress: bool = False,
) -> Selection:
    """Remove channels greedily, each time the one whose loss together with those already gone hurts least.

    With a_g = E_g[s] and the Gram matrices M_g = E_g E_y[s sᵀ], the damage of the removed set with one more
    channel is Δ_g(R ∪ c) = Δ_g(R) − a_gc + Σ_{r∈R} M_grc + ½ M_gcc; the running sums make a pick cost O(G·C).
    Ours, after the global second-order interactions of SOSP (Nonnenmacher et al., ICLR 2022).

    Args:
        table: A table with interactions.
        criterion: Maps the groups' damages to one value.
        pools: What a pruner ranks together and how much it takes: each pool closes when its quota is reached,
            until all have reached theirs. None lets every channel compete with every other.
        floors: Channels that stay, so that they come last; every layer keeps one.
        progress: Show a progress bar if it takes more than two seconds.

    Returns:
        The selection; its scores are the places in the order, comparable across layers.

    Raises:
        InputError: The table has no interactions, the criterion gives a value that is not finite, or a pool or
            floor names an unknown or a shared layer.
    """
    criterion.check(table)
    if table.interactions is None:
        raise InputError("joint selection needs the table's interactions; collect it with interactions=True")
    value_of = criterion.bind(table)
    n_columns = table.slope.shape[1]
    pool_of, columns_of, quotas = _pools(table, pools)
    allowance = _Allowance(table.columns, floors)

    gone = torch.zeros(n_columns, dtype=torch.bool)
    closed = torch.zeros(n_columns, dtype=torch.bool)

    def close_what_is_full() -> None:
        for columns in (
            *(c for c, quota in zip(columns_of, quotas, strict=True) if quota == 0),
            *allowance.protected(),
        ):
            closed[columns] = True

    close_what_is_full()
    current = torch.zeros(len(table.sensitive_groups), 1, dtype=torch.float64)
    # −a_gc + ½ M_gcc + Σ_{r∈R} M_grc, updated by one row of M_g a pick
    addition = table.damage.clone()
    order: list[int] = []
    change = torch.zeros(n_columns, dtype=torch.float64)
    value = float(value_of(current)[0])
    bar = tqdm(total=n_columns, desc="joint selection", disable=not progress, leave=False, unit="channel", delay=2)
    while len(order) < n_columns:
        candidates = value_of(current + addition)
        if not bool(torch.isfinite(candidates).all()):
            raise InputError("the criterion gave values that are not finite; expected one finite value a channel")
        if bool(closed.all()):
            # every pool has its quota: rank what a pruner may still ask for, then what should stay
            if all(quota is None for quota in quotas):
                allowance.lift()
            quotas = [None] * len(quotas)
            closed = gone.clone()
            close_what_is_full()
            continue
        pick = int(torch.argmin(candidates.masked_fill(closed, torch.inf)))
        change[pick] = float(candidates[pick]) - value
        value = float(candidates[pick])
        current = current + addition[:, pick : pick + 1]
        addition += table.interactions_with(pick)
        gone[pick] = closed[pick] = True
        order.append(pick)
        bar.update()
        allowance.take(pick)
        for columns in allowance.protected(pick):
            closed[columns] = True
        pool = pool_of[pick]
        if (quota := quotas[pool]) is not None:
            quotas[pool] = quota - 1
            if quota == 1:
                closed[columns_of[pool]] = True
    bar.close()
    places = torch.full((n_columns,), torch.nan, dtype=torch.float64)
    places[order] = torch.arange(n_columns, dtype=torch.float64)
    return Selection(torch.tensor(order), places, change)


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
    allowance = _Allowance(columns, floors)
    removed = []
    for column in selection.order.tolist():
        if selection.change[column] >= 0 and joint:
            break
        if selection.change[column] < 0 and allowance.allows(column):
            allowance.take(column)
            removed.append(column)
    return torch.tensor(removed, dtype=torch.int64)


def _pools(table: DamageTable, pools: Sequence[Pool] | None) -> tuple[list[int], list[Tensor], list[int | None]]:
    """Pool of each column, columns of each pool, and quotas."""
    pools = [Pool(tuple(table.sizes))] if pools is None else pools
    pool_of = [-1] * table.slope.shape[1]
    columns_of = []
    for number, pool in enumerate(pools):
        unknown = [name for name in pool.layers if name not in table]
        if unknown:
            raise InputError(f"a pool names {unknown}; the table has {list(table.sizes)}")
        columns = table.columns.selected({name: range(table.sizes[name]) for name in pool.layers})
        for column in columns.tolist():
            if pool_of[column] >= 0:
                raise InputError(f"a channel group of {list(pool.layers)} lies in two pools; expected one")
            pool_of[column] = number
        columns_of.append(columns)
    missing = [name for name in table.sizes if pool_of[table.columns.section(name).start] < 0]
    if missing:
        raise InputError(f"channel groups {missing} lie in no pool; expected each in one")
    return pool_of, columns_of, [pool.quota for pool in pools]


def share_balanced_order(table: DamageTable) -> Selection:
    """FairGRAPE: within each layer, keep every sensitive group's share of the total importance.

    With the importance I_gc = E_g E_y[s_nc(y)²] (labels y from the network's own p(y|x), or the true ones with the
    empirical curvature), the next channel to keep is the one with the largest I_gc for the group whose share
    Σ_kept I_g / Σ_kept Σ_g I_g is furthest below its share in the whole layer (Lin, Kim and Joo, ECCV 2022,
    at the level of channels). The order means something within a layer only.

    Args:
        table: The damage table; its curvature is the importance.

    Returns:
        The selection; scores are the places in each layer's own order.

    Raises:
        InputError: There are no sensitive groups to balance.
    """
    require_sensitive_groups(table, "FairGRAPE's order of shares")
    scores = torch.empty(table.curvature.shape[1], dtype=torch.float64)
    for name in table.sizes:
        section = table.columns.section(name)
        importance = table.curvature[:, section]
        total = importance.sum(1)
        target = total / total.sum().clamp_min(torch.finfo(torch.float64).tiny)
        kept = torch.zeros_like(total)
        left = torch.ones(importance.shape[1], dtype=torch.bool)
        for place in range(importance.shape[1] - 1, -1, -1):
            share = kept / kept.sum() if kept.sum() > 0 else torch.zeros_like(kept)
            group = int(torch.argmax(target - share))
            channel = int(torch.argmax(torch.where(left, importance[group], -torch.inf)))
            kept += importance[:, channel]
            left[channel] = False
            scores[section.start + channel] = place
    return Selection(torch.argsort(scores, stable=True), scores, table.curvature.mean(0))
