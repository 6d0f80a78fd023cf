"""Joint selection: channels go one by one, each judged together with those already gone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fairtrim.criteria import Criterion
from fairtrim.damage.table import DamageTable
from fairtrim.errors import InputError

from .ranking import Allowance, Floor, Pool, Selection

__all__ = ["joint_selection"]


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
    allowance = Allowance(table.columns, floors)

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
