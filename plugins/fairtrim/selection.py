"""From a criterion to an order of removal: joint selection, and FairGRAPE's order of shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .criteria import Criterion, require_sensitive_groups
from .damage import DamageTable
from .errors import InputError

__all__ = ["Pool", "Selection", "break_ties", "joint_selection", "share_balanced_order", "single_selection"]


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


def _layer_numbers(table: DamageTable) -> tuple[Tensor, Tensor]:
    sizes = torch.tensor(list(table.sizes.values()))
    return torch.repeat_interleave(torch.arange(len(sizes)), sizes), sizes


def _removable(table: DamageTable, minimum_kept: Mapping[str, int] | None) -> Tensor:
    """How many channels each layer may lose; at least one stays."""
    minimum_kept = minimum_kept or {}
    unknown = [name for name in minimum_kept if name not in table]
    if unknown:
        raise InputError(f"minimum_kept names {unknown}; the table has {list(table.sizes)}")
    return torch.tensor([max(0, size - max(1, minimum_kept.get(name, 1))) for name, size in table.sizes.items()])


def single_selection(
    table: DamageTable,
    criterion: Criterion,
    *,
    pools: Sequence[Pool] | None = None,
    minimum_kept: Mapping[str, int] | None = None,
) -> Selection:
    """Rank channels by their damage when each is removed alone.

    Args:
        table: The damage table.
        criterion: The criterion.
        pools: Channel groups that are ranked against each other; in a pool of several, the best channels of
            each layer are put beyond all others, because a pruner that is told to remove a whole layer skips it.
        minimum_kept: How many channels each layer keeps at least (default 1).

    Returns:
        The selection; its scores are the criterion's values.
    """
    scores = break_ties(criterion.score(table))
    change = scores.clone()
    removable = _removable(table, minimum_kept)
    shared = {name for pool in pools or [] if len(pool.layers) > 1 for name in pool.layers}
    highest = scores.max()
    step = highest.abs().clamp_min(1.0)
    kept = []
    for layer, name in enumerate(table.sizes):
        if name in shared:
            section = table.columns(name)
            order = torch.argsort(scores[section], stable=True)
            kept.extend((section.start + order[int(removable[layer]) :]).tolist())
    for place, column in enumerate(sorted(kept, key=lambda c: float(scores[c]))):
        scores[column] = highest + step * (place + 1)
    return Selection(torch.argsort(scores, stable=True), scores, change)


def joint_selection(
    table: DamageTable,
    criterion: Criterion,
    *,
    pools: Sequence[Pool] | None = None,
    minimum_kept: Mapping[str, int] | None = None,
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
        minimum_kept: How many channels each layer keeps at least (default 1); they come last.

    Returns:
        The selection; its scores are the places in the order, comparable across layers.

    Raises:
        InputError: The table has no interactions, or a pool names an unknown or a shared layer.
    """
    criterion.check(table)
    if table.interactions is None:
        raise InputError("joint selection needs the table's interactions; collect it with interactions=True")
    value_of = criterion.bind(table)
    layer_of, sizes = _layer_numbers(table)
    n_columns = len(layer_of)
    removable = _removable(table, minimum_kept).tolist()
    pool_of, quotas = _pools(table, pools)
    columns_of_layer = torch.split(torch.arange(n_columns), sizes.tolist())
    layers_of_pool: list[list[int]] = [[] for _ in quotas]
    for layer, pool in enumerate(pool_of):
        layers_of_pool[pool].append(layer)

    closed = torch.zeros(n_columns, dtype=torch.float64)  # added to the criterion: 0 or infinity
    gone = torch.zeros(n_columns, dtype=torch.bool)
    current = torch.zeros(len(table.sensitive_groups), 1, dtype=torch.float64)
    # −a_gc + ½ M_gcc + Σ_{r∈R} M_grc, updated by one row of M_g a pick
    addition = table.damage.clone()
    order: list[int] = []
    change = torch.zeros(n_columns, dtype=torch.float64)
    value = float(value_of(current)[0])

    def reopen(layers: Sequence[int]) -> None:
        for layer in layers:
            closed[columns_of_layer[layer]] = 0.0
        closed[gone] = torch.inf

    def close(layers: Sequence[int]) -> None:
        for layer in layers:
            closed[columns_of_layer[layer]] = torch.inf

    close([layer for layer, pool in enumerate(pool_of) if quotas[pool] == 0 or removable[layer] == 0])
    while len(order) < n_columns:
        candidates = value_of(current + addition) + closed
        pick = int(torch.argmin(candidates))
        if float(candidates[pick]) == torch.inf:
            # every pool has its quota: rank what a pruner may still ask for, then what each layer should keep
            if not any(quota is not None for quota in quotas):
                removable = sizes.tolist()
            quotas = [None] * len(quotas)
            reopen([layer for layer, left in enumerate(removable) if left > 0])
            continue
        change[pick] = float(candidates[pick]) - value
        value = float(candidates[pick])
        current = current + addition[:, pick : pick + 1]
        addition += table.interactions[:, pick]
        gone[pick], closed[pick] = True, torch.inf
        order.append(pick)
        layer = int(layer_of[pick])
        removable[layer] -= 1
        if removable[layer] == 0:
            close([layer])
        pool = pool_of[layer]
        if (quota := quotas[pool]) is not None:
            quotas[pool] = quota - 1
            if quota == 1:
                close(layers_of_pool[pool])
    places = torch.empty(n_columns, dtype=torch.float64)
    places[order] = torch.arange(n_columns, dtype=torch.float64)
    return Selection(torch.tensor(order), places, change)


def _pools(table: DamageTable, pools: Sequence[Pool] | None) -> tuple[list[int], list[int | None]]:
    if pools is None:
        return [0] * len(table.sizes), [None]
    pool_of: dict[str, int] = {}
    for number, pool in enumerate(pools):
        for name in pool.layers:
            if name not in table:
                raise InputError(f"a pool names {name!r}; the table has {list(table.sizes)}")
            if name in pool_of:
                raise InputError(f"channel group {name!r} lies in two pools; expected one")
            pool_of[name] = number
    missing = [name for name in table.sizes if name not in pool_of]
    if missing:
        raise InputError(f"channel groups {missing} lie in no pool; expected each in one")
    return [pool_of[name] for name in table.sizes], [pool.quota for pool in pools]


def share_balanced_order(table: DamageTable) -> Selection:
    """FairGRAPE: within each layer, keep every sensitive group's share of the total importance.

    With I_gc = E_g[s_nc²], the next channel to keep is the one with the largest I_gc for the group whose share
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
        section = table.columns(name)
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

