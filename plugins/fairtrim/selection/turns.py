"""Whose turn it is when channels go one by one: quotas of pools, and floors of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fairtrim.damage.channel_groups import ChannelColumns
from fairtrim.errors import InputError

from .ranking import Allowance, Floor, Pool

__all__ = ["Turns"]


class Turns:
    """Which channels may go next.

    Each pool closes when its quota is reached, until all have reached theirs; what a floor keeps comes last.

    Args:
        columns: Which column belongs to which channel group.
        pools: What a pruner ranks together; None lets every channel compete with every other.
        floors: Channels that stay; every layer keeps one.
        tentative: Floors that are given up before any other.

    Raises:
        InputError: A pool or floor names an unknown layer, or a layer lies in no pool or in two.

    Example:
        >>> turns = Turns(ChannelColumns({"a": 2, "b": 2}), [Pool(("a", "b"), quota=2)], [])
        >>> turns.take(1)
        >>> turns.closed().tolist()  # "a" keeps its last channel
        [True, True, False, False]
    """

    def __init__(
        self,
        columns: ChannelColumns,
        pools: Sequence[Pool] | None,
        floors: Sequence[Floor],
        tentative: Sequence[Floor] = (),
    ) -> None:
        self._pool_of, self._columns_of, self._quotas = _pools(columns, pools)
        self._limited = any(quota is not None for quota in self._quotas)
        self._asked = [quota or 0 for quota in self._quotas]  # goes on counting where a quota is given up for a floor
        self._allowance = Allowance(columns, floors, tentative)
        self._gone = torch.zeros(len(columns), dtype=torch.bool, device="cpu")
        self._n_left, self._stage = len(columns), 0
        self._open()
        self._go_on()

    @property
    def beyond(self) -> bool:
        """Whether all that the quotas ask for is gone, floors or not: what follows is for rounding."""
        return self._limited and not any(self._asked) and all(quota is None for quota in self._quotas)

    def closed(self) -> Tensor:
        """Which columns must wait or are gone, (C,) bool; at least one isn't, as long as any is left."""
        return self._closed

    def take(self, column: int) -> None:
        """Count a channel that goes."""
        self._gone[column] = self._closed[column] = True
        self._n_left -= 1
        self._n_open -= 1
        self._allowance.take(column)
        for columns in self._allowance.protected(column):
            self._shut(columns)
        pool = self._pool_of[column]
        self._asked[pool] = max(0, self._asked[pool] - 1)
        if (quota := self._quotas[pool]) is not None:
            self._quotas[pool] = quota - 1
            if quota == 1:
                self._shut(self._columns_of[pool])
        self._go_on()

    def rest(self, ranked_by: Tensor) -> Iterator[int]:
        """Take all that are left by values that don't change any more, smallest first, each in its turn.

        Args:
            ranked_by: (C,).

        Yields:
            Columns.
        """
        order = ranked_by.argsort(stable=True).tolist()
        while self._n_left:
            stage, stays = self._stage, []
            for place, column in enumerate(order):
                if self._closed[column]:
                    stays.append(column)
                    continue
                self.take(column)
                yield column
                if self._stage != stage:  # some that had to wait are better than what comes next
                    stays += order[place + 1 :]
                    break
            order = [column for column in stays if not self._gone[column]]

    def _go_on(self) -> None:
        """Where everything must wait, give up quotas that are met and floors, one after the other."""
        while not self._n_open and self._n_left:
            # a quota that is still open outweighs a tentative floor
            if self._allowance.tentative and any(self._quotas):
                self._allowance.lift()
            else:
                # every pool has its quota: rank what a pruner may still ask for, then what should stay
                if all(quota is None for quota in self._quotas):
                    self._allowance.lift()
                self._quotas = [None] * len(self._quotas)
            self._open()

    def _open(self) -> None:
        """Close what must wait, and nothing else."""
        self._stage += 1
        self._closed, self._n_open = self._gone.clone(), self._n_left
        full = (columns for columns, quota in zip(self._columns_of, self._quotas, strict=True) if quota == 0)
        for columns in (*full, *self._allowance.protected()):
            self._shut(columns)

    def _shut(self, columns: Tensor) -> None:
        self._n_open -= int((~self._closed[columns]).sum())
        self._closed[columns] = True


def _pools(columns: ChannelColumns, pools: Sequence[Pool] | None) -> tuple[list[int], list[Tensor], list[int | None]]:
    """Pool of each column, columns of each pool, and quotas."""
    pools = [Pool(tuple(columns.sizes))] if pools is None else pools
    pool_of = [-1] * len(columns)
    columns_of = []
    for number, pool in enumerate(pools):
        unknown = [name for name in pool.layers if name not in columns]
        if unknown:
            raise InputError(f"a pool names {unknown}; the table has {list(columns.sizes)}")
        members = columns.selected({name: range(columns.sizes[name]) for name in pool.layers})
        for column in members.tolist():
            if pool_of[column] >= 0:
                raise InputError(f"a channel group of {list(pool.layers)} lies in two pools; expected one")
            pool_of[column] = number
        columns_of.append(members)
    missing = [name for name in columns.sizes if pool_of[columns.section(name).start] < 0]
    if missing:
        raise InputError(f"channel groups {missing} lie in no pool; expected each in one")
    return pool_of, columns_of, [pool.quota for pool in pools]
