"""Joint selection: channels go one by one, each judged together with those already gone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tqdm.auto import tqdm

from fairtrim.criteria import Criterion
from fairtrim.damage.channel_costs import ChannelCosts
from fairtrim.damage.table import DamageTable
from fairtrim.errors import InputError

from .ranking import Floor, Pool, Selection
from .turns import Turns

__all__ = ["joint_selection"]


def joint_selection(
    table: DamageTable,
    criterion: Criterion,
    *,
    pools: Sequence[Pool] | None = None,
    floors: Sequence[Floor] = (),
    costs: ChannelCosts | None = None,
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
        costs: What each channel costs, so that the one is taken that hurts least for what it saves; None for one
            each.
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
    turns = Turns(table.columns, pools, floors)
    costs = None if costs is None else costs.copy()
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
        ranked_by = candidates if costs is None else (candidates - value) / costs.each
        pick = int(torch.argmin(ranked_by.masked_fill(turns.closed(), torch.inf)))
        change[pick] = float(candidates[pick]) - value
        value = float(candidates[pick])
        current = current + addition[:, pick : pick + 1]
        addition += table.interactions_with(pick)
        if costs is not None:
            costs.take(pick)
        turns.take(pick)
        order.append(pick)
        bar.update()
    bar.close()
    return Selection.of_order(order, change)
