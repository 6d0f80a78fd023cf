"""Joint selection: channels go one by one, each judged together with those already gone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fairtrim.criteria import BoundCriterion, Criterion
from fairtrim.damage.channel_costs import ChannelCosts
from fairtrim.damage.sample_sketch import SampleSketch
from fairtrim.damage.table import DamageTable
from fairtrim.errors import InputError
from fairtrim.progress import progress_bar

from .ranking import Floor, Pool, Selection, finite
from .turns import Turns

__all__ = ["joint_selection"]

_LONGEST_BLOCK, _SHORTEST_BLOCK = 256, 2
"""Rows of interactions that are computed at once; fewer while the wrong ones are."""

_MAX_NUMBERS = 2**24  # that the rows may hold


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
    With a sketch, what lies beyond the quotas is ranked as it stands when the last of them is met. Ours, after the
    global second-order interactions of SOSP (Nonnenmacher et al., ICLR 2022).

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
    rows = _Rows(table, value_of)
    current = torch.zeros(len(table.sensitive_groups), 1, dtype=torch.float64, device="cpu")
    # −a_gc + ½ M_gcc + Σ_{r∈R} M_grc, updated by one row of M_g a pick
    addition = table.damage.clone()
    order: list[int] = []
    change = torch.zeros(n_columns, dtype=torch.float64, device="cpu")
    value = value_of(current)
    candidates = finite(value_of(current + addition))
    bar = progress_bar(description="joint selection", total=n_columns, shown=progress, unit="channel")
    sketched = isinstance(table.interactions, SampleSketch)
    while len(order) < n_columns:
        cost = None if costs is None else costs.each
        ranked_by = candidates if cost is None else (candidates - value) / cost
        if sketched and turns.beyond:
            # only rounding may still ask for these, and rows of a sketch have to be computed
            rest = list(turns.rest(ranked_by))
            change[rest] = candidates[rest] - value
            order += rest
            break
        ranked_by = ranked_by.masked_fill(turns.closed(), torch.inf)
        pick = int(torch.argmin(ranked_by))
        change[pick] = candidates[pick] - value
        turns.take(pick)
        order.append(pick)
        bar.update()
        row = rows.of(pick, current, addition, ranked_by, cost)
        value = candidates[pick : pick + 1]
        current = current + addition[:, pick : pick + 1]
        addition += row
        if costs is not None:
            costs.take(pick)
        candidates = finite(value_of(current + addition))
    bar.close()
    return Selection.of_order(order, change)


class _Rows:
    """Rows of interactions, of a sketch computed in blocks, as one product of matrices, before they are asked for.

    Which are asked for next is guessed by going on within a short list of the channels that are best now. A wrong guess
    costs time alone.

    Args:
        table: The damage table.
        value_of: The criterion.
    """

    def __init__(self, table: DamageTable, value_of: BoundCriterion) -> None:
        self._table, self._value_of = table, value_of
        self._ready: dict[int, Tensor] = {}
        n_groups = len(table.interactions.selection) if isinstance(table.interactions, SampleSketch) else 1
        self._longest = max(1, min(_LONGEST_BLOCK, _MAX_NUMBERS // (n_groups * table.slope.shape[1])))
        self._length, self._hits = min(8, self._longest), 0

    def of(self, pick: int, current: Tensor, addition: Tensor, ranked_by: Tensor, costs: Tensor | None) -> Tensor:
        """The row of a channel, with those that are likely to be asked for next.

        Args:
            pick: Which.
            current: Damage of what is gone without it, (G, 1).
            addition: What each channel would add, (G, C).
            ranked_by: What it was chosen by, (C,); infinite for those that must wait.
            costs: What each costs, (C,); None for one each.

        Returns:
            (G, C).
        """
        if isinstance(self._table.interactions, Tensor):
            return self._table.interactions[:, pick]  # nothing to compute
        if pick in self._ready:
            self._hits += 1
            return self._ready.pop(pick)
        guessed = self._hits >= self._length - 1
        self._length = min(self._longest, 2 * self._length if guessed else max(_SHORTEST_BLOCK, 2 * self._hits))
        self._hits = 0
        wanted = dict.fromkeys([pick, *self._guess(current, addition, ranked_by, costs)])
        crowded = len(self._ready) > self._longest
        stays = wanted if crowded else {column for column in self._ready if ranked_by[column] < torch.inf}
        self._ready = {column: row for column, row in self._ready.items() if column in stays}
        missing = [column for column in wanted if column not in self._ready]
        found = self._table.interactions_between(torch.tensor(missing, device="cpu"))
        # copies, or the last row of a block would keep all of it
        self._ready.update((column, found[:, k].clone()) for k, column in enumerate(missing))
        return self._ready.pop(pick)

    def _guess(self, current: Tensor, addition: Tensor, ranked_by: Tensor, costs: Tensor | None) -> list[int]:
        """The next picks if nobody but the best of now had a chance, and nobody's turn or cost changed."""
        if self._length == 1:
            return []
        n_best = math.isqrt(self._length * len(ranked_by) // 4)  # their pairs cost a quarter of the rows
        best = ranked_by.topk(n_best, largest=False).indices.sort().values  # of equals the first is taken
        best = best[ranked_by[best].isfinite()]
        rows = self._table.interactions_between(best, best)
        addition, cost = addition[:, best], None if costs is None else costs[best]
        gone, value = torch.zeros(len(best), device="cpu"), self._value_of(current)
        picks: list[int] = []
        for _ in range(min(self._length, len(best))):
            candidates = self._value_of(current + addition)
            ranked_by = candidates if cost is None else (candidates - value) / cost
            at = int((ranked_by + gone).argmin())
            gone[at], value = torch.inf, candidates[at : at + 1]
            current, addition = current + addition[:, at : at + 1], addition + rows[:, at]
            picks.append(int(best[at]))
        return picks
