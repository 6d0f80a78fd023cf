"""One ranking of a network's channels, and the networks of any size that it leads to."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import nn

from fairtrim.damage.reading_options import Reading
from fairtrim.data.batches import Batch
from fairtrim.errors import InputError
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import seeded
from fairtrim.selection.ranking import Allowance, Floor
from fairtrim_adapters.torch_pruning.graph.corrections import correct_graph
from fairtrim_adapters.torch_pruning.graph.head_counts import tell_heads
from fairtrim_adapters.torch_pruning.graph.level_pruner import freeze, frozen_parameters, pruner_of_levels
from fairtrim_adapters.torch_pruning.graph.pruner_options import PrunerOptions, options_for
from fairtrim_adapters.torch_pruning.graph.removing import Removal, remove_units
from fairtrim_adapters.torch_pruning.graph.undoing import Held, undone
from fairtrim_adapters.torch_pruning.importances.channel_importance import ChannelImportance
from fairtrim_adapters.torch_pruning.importances.host_importance import scored
from fairtrim_adapters.torch_pruning.reconstruction.wrap import reconstructed

from .sizes import Cost, Counter, Shares

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Candidates", "Refitted", "Task"]

_LEVEL = 0.9
"""Up to this share of the channels is ranked; what is left is the floor against layers that let nothing through."""

_RATIOS = 2048
"""So many ratios of Torch-Pruning's pruner are told apart."""

_COARSE = range(_RATIOS // 16, _RATIOS, _RATIOS // 16)


@dataclass(frozen=True)
class Task:
    """What stays the same for all networks of one call: data, importance and how both are used."""

    loader: Iterable[Any]
    importance: tp.importance.Importance
    counter: Counter
    batch: Batch
    reading: Reading
    ignored_layers: Sequence[str] = ()
    pruner_options: PrunerOptions = None
    reconstruct: bool = True
    seed: int = 0

    @property
    def ours(self) -> bool:
        """Whether the importance gives an order of all channels."""
        return isinstance(self.importance, ChannelImportance)

    @property
    def predicted_of(self) -> str:
        """Of which network the importance predicts the change."""
        return "after the refit" if getattr(self.importance, "compensated", False) else "without a refit"

    @property
    def calling(self) -> dict[str, Any]:
        """How networks are called and losses computed."""
        reading = self.reading
        options = {
            "forward_fn": reading.forward_fn,
            "output_transform": reading.output_transform,
            "sensitive_names": reading.sensitive_names,
            "progress": reading.progress,
        }
        return options if reading.loss_fn is F.cross_entropy else {**options, "loss_fn": reading.loss_fn}

    def pruner(
        self, network: ScoredNetwork, level: float, importance: tp.importance.Importance | None
    ) -> tp.pruner.BasePruner:
        """A pruner whose one step leads to a share of the channels.

        Args:
            network: To prune.
            level: The share to remove.
            importance: Or None, where something else says which.

        Returns:
            The pruner.
        """
        options = self.pruner_options
        if self.ours:  # whose order is one over all layers, unless the caller wants it otherwise
            options = _ranked_together(options) if callable(options) else {"global_pruning": True, **(options or {})}
        return pruner_of_levels(
            network,
            self.batch,
            [level],
            importance,
            ignored_layers=self.ignored_layers,
            pruner_options=options,
            whole_layers=True,
        )


def _ranked_together(options: Callable[[nn.Module], Mapping[str, Any]]) -> Callable[[nn.Module], Mapping[str, Any]]:
    return lambda model: {"global_pruning": True, **options_for(options, model)}


@dataclass
class Refitted:
    """What a refit did; filled when it is done."""

    reconstruction: Any = None


@dataclass(frozen=True)
class _Trial:
    removal: Removal
    shares: Shares


class Candidates:
    """Networks of every size that one ranking of the channels gives.

    An amount says how much goes: a number of channels for fairtrim's importances, which give one order, and a step of
    the pruning ratio for Torch-Pruning's. The network that is ranked stays as it is.

    Args:
        network: The network.
        task: What stays the same.
        fewest: How many channels each dependency group keeps at least; default a tenth.

    Raises:
        InputError: The data, or an option, is wrong, or nothing can be pruned.
        UnsupportedModelError: The network can't be scored or pruned.
    """

    def __init__(self, network: ScoredNetwork, task: Task, fewest: Mapping[str, int] | None = None) -> None:
        self.network, self._task = network, task
        self._scratch = network.of(copy.deepcopy(network.model))
        self._trials: dict[int, _Trial] = {}
        importance = task.importance
        with seeded(torch.Generator().manual_seed(task.seed)):
            self._pruner = task.pruner(self._scratch, _LEVEL, importance)
            correct_graph(self._pruner.DG)
            if isinstance(importance, ChannelImportance):
                self._rank(importance, fewest)
            else:
                self.fewest: dict[str, int] = {}
                scored(importance, self._pruner, task.loader, **task.calling)
        self._held = Held(self._pruner.DG, self._pruner)

    def _rank(self, importance: ChannelImportance, fewest: Mapping[str, int] | None) -> None:
        with warnings.catch_warnings():
            # most of what is ranked here will stay
            warnings.filterwarnings("ignore", message=r"the \d+ channels to be removed are beyond the reach")
            scored(importance, self._pruner, self._task.loader, **self._task.calling)
        if not hasattr(importance, "selection_") or importance._graph is not self._pruner.DG:
            raise InputError(
                "no layer may lose a channel: all are at max_pruning_ratio or their last channel; expected a network "
                "that can be pruned"
            )
        plan = self._plan = importance.plan_
        both = [name for pool in plan.pools if pool.quota for name in pool.layers if name in plan.untried]
        if both:
            raise InputError(
                f"{both} may lose whole heads and dimensions of heads at once, or as many query heads from each head "
                "of keys and values, which no one order of channels says; expected prune_head_dims=False beside "
                "prune_num_heads=True in pruner_options, 'heads' in place of 'query_heads', or one of Torch-Pruning's "
                "importances"
            )
        asked = {group.name: math.ceil(group.size * (1 - _LEVEL)) for group in plan.groups}
        for floor in plan.floors:
            if floor.channels is None:
                asked[floor.layer] = max(asked[floor.layer], min(floor.minimum, plan.columns.sizes[floor.layer]))
        known = fewest or {}
        self.fewest = {name: known.get(name, number) for name, number in asked.items()}
        self._order = importance.selection_.order.tolist()
        self._quotas = [pool.quota or 0 for pool in plan.pools]
        self._pool_of = {name: k for k, pool in enumerate(plan.pools) for name in pool.layers}

    # Sizes ------------------------------------------------------------------------------------------------

    def shares(self, amount: int) -> Shares:
        """What the network costs without so much.

        Args:
            amount: From 0, nothing, to ``most``.

        Returns:
            Shares of what the dense network costs.
        """
        return self._trial(amount).shares

    @cached_property
    def most(self) -> int:
        """The amount after which the network is smallest."""
        if self._task.ours:
            return sum(self._quotas)
        return min(_COARSE, key=lambda amount: self.shares(amount).macs)

    def reached(self, cost: Cost, share: float) -> tuple[int, bool]:
        """The least amount after which the network is within a budget.

        Args:
            cost: Of what.
            share: The budget.

        Returns:
            The amount, and whether it is within; if nothing is, that of the smallest network.
        """
        lowest = 0
        if self._task.ours:
            highest, within = self.most, self.shares(self.most).of(cost) <= share
        else:  # which skip a layer that they would empty, so that a higher ratio may remove less
            found = (amount for amount in _COARSE if self.shares(amount).of(cost) <= share)
            highest, within = next(((amount, True) for amount in found), (self.most, False))
            lowest = max([0, *(amount for amount in _COARSE if amount < highest)])
        if not within:
            return self.most, False
        coarse = max(1, self.most // 128) if cost == "latency" else 1  # of which single channels can't be told apart
        while highest - lowest > coarse:
            middle = (lowest + highest) // 2
            if self.shares(middle).of(cost) <= share:
                highest = middle
            else:
                lowest = middle
        return highest, True

    def _trial(self, amount: int) -> _Trial:
        if amount not in self._trials:
            self._trials[amount] = self._ordered(amount) if self._task.ours else self._by_ratio(amount)
        return self._trials[amount]

    def _ordered(self, amount: int) -> _Trial:
        with self._without(amount) as removal:
            return _Trial(removal, self._task.counter.shares(self._scratch.model))

    @contextmanager
    def _without(self, amount: int) -> Iterator[Removal]:
        """The ranked network without the first channels of the order, for the length of the block."""
        graph = self._pruner.DG
        with undone(self._held):
            known = len(graph.pruning_history())
            for name, units in self._units(amount).items():
                remove_units(graph, self._pruner, self._plan, name, units)
            tell_heads(self._scratch.model, self._pruner)
            yield Removal.since(self._pruner, known)

    def _by_ratio(self, amount: int) -> _Trial:
        if not amount:
            return _Trial(Removal((), {}), self._task.counter.shares(self._scratch.model))
        with seeded(torch.Generator().manual_seed(self._task.seed)):  # or random scores would be others each time
            pruner = self._task.pruner(self._scratch, amount / _RATIOS, self._task.importance)
            correct_graph(pruner.DG)
            with undone(Held(pruner.DG, pruner)):
                pruner.step()
                tell_heads(self._scratch.model, pruner)
                return _Trial(Removal.since(pruner, 0), self._task.counter.shares(self._scratch.model))

    def _units(self, amount: int) -> dict[str, list[int]]:
        """The first channels of the order, each pool its share, as far as floors and rounding let them go."""
        plan, columns = self._plan, self._plan.columns
        floors = [Floor(name, number) for name, number in self.fewest.items()]
        allowance = Allowance(columns, [*plan.floors, *floors])
        left = [round(amount * quota / sum(self._quotas)) for quota in self._quotas]
        starts = {name: columns.section(name).start for name in columns.sizes}
        units: dict[str, list[int]] = {}
        for column in self._order:
            name = columns.layer_of(column)
            pool = self._pool_of[name]
            if left[pool] and allowance.allows(column):
                allowance.take(column)
                left[pool] -= 1
                units.setdefault(name, []).append(column - starts[name])
        rounded = {name: self._rounded(name, chosen) for name, chosen in units.items()}
        return {name: chosen for name, chosen in rounded.items() if chosen}

    def _rounded(self, name: str, units: list[int]) -> list[int]:
        if name in self._plan.heads:
            return units
        of_root = self._plan.roots[name].units
        while units and (len(of_root) - int(np.isin(of_root, units).sum())) % self._plan.round_to:
            units = units[:-1]
        return units

    # Networks ---------------------------------------------------------------------------------------------

    def predicted(self, amount: int) -> pd.DataFrame:
        """What the importance predicts for each sensitive group.

        Args:
            amount: How much goes.

        Returns:
            Columns ``sensitive_group`` and ``predicted change`` of the mean loss; empty where it predicts nothing.
        """
        import pandas as pd

        table = pd.DataFrame()
        if isinstance(self._task.importance, ChannelImportance):
            with self._without(amount):
                table = self._task.importance.report(measure=False).predicted
        names = [name for name in table if str(name).startswith("predicted change")]
        if not names:
            return pd.DataFrame({"sensitive_group": [], "predicted change": []})
        groups = [group if isinstance(group, str) else ", ".join(group) for group in table["sensitive_group"]]
        return pd.DataFrame({"sensitive_group": groups, "predicted change": table[names[0]]})

    def pruned(self, amount: int) -> tuple[ScoredNetwork, Refitted]:
        """A copy of the network without so much, refitted if the task wants that.

        Args:
            amount: How much goes.

        Returns:
            The network, and what the refit did.
        """
        removal = self._trial(amount).removal
        network = self.network.of(copy.deepcopy(self.network.model))
        pruner = self._task.pruner(network, _LEVEL, None)
        frozen = frozen_parameters(network.model)
        with self._refitted(pruner) as refitted:
            removal.repeat(pruner)
        freeze(network.model, frozen)
        network.model.zero_grad()
        network.model.eval()
        return network, refitted

    @contextmanager
    def _refitted(self, pruner: tp.pruner.BasePruner) -> Iterator[Refitted]:
        done = Refitted()
        if not self._task.reconstruct:
            yield done
            return
        reading = self._task.reading
        calling: Any = {"forward_fn": reading.forward_fn, "output_transform": reading.output_transform}
        calling |= {"random_state": self._task.seed, "measure": False, "progress": reading.progress}
        with reconstructed(pruner, self._task.loader, **calling) as refit:
            yield done
        done.reconstruction = refit.reconstruction
