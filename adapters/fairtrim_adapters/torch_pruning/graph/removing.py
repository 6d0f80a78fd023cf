"""Removal of chosen channels, without a ratio, and the same removal from another copy of the network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch_pruning as tp

from .corrections import correct_group
from .dependency_groups import head_layers
from .head_counts import tell_heads
from .kept import remove_again
from .plan import PruningPlan
from .shared_heads import recounted

__all__ = ["Removal", "remove_units"]


def remove_units(
    graph: tp.DependencyGraph,
    pruner: tp.pruner.BasePruner | None,
    plan: PruningPlan,
    name: str,
    units: Collection[int],
) -> None:
    """Remove channels of one group of a plan, and count the heads that go with them."""
    root = plan.roots[name]
    idxs = np.flatnonzero(np.isin(root.units, list(units))).tolist()
    group = graph.get_pruning_group(root.module, root.pruning_fn, idxs)
    correct_group(group)
    if pruner is not None and name in plan.heads:
        for layer in head_layers(group, pruner):  # which Torch-Pruning counts in its step
            pruner.num_heads[layer] -= len(units)
            pruner.out_channel_groups[layer] = pruner.num_heads[layer]
    group.prune()


@dataclass(frozen=True)
class Removal:
    """What was removed from a network.

    Attributes:
        history: Torch-Pruning's entries in their order: module, whether of its outputs, channels.
        heads: How many heads layers of attention have afterwards, by name.
    """

    history: tuple[tuple[str, bool, tuple[int, ...]], ...]
    heads: dict[str, int]

    @classmethod
    def since(cls, pruner: tp.pruner.BasePruner, known: int) -> Removal:
        """What a pruner removed after the first ``known`` entries of its history."""
        entries = pruner.DG.pruning_history()[known:]
        names = {module: name for name, module in pruner.model.named_modules()}
        heads = {names[layer]: int(n) for layer, n in pruner.num_heads.items() if layer in names}
        return cls(tuple((str(m), bool(out), tuple(map(int, idxs))) for m, out, idxs in entries), heads)

    def repeat(self, pruner: tp.pruner.BasePruner) -> None:
        """Remove the same from the network of another pruner, which is as the first one was before."""
        layers = dict(pruner.model.named_modules())
        for name, n_heads in self.heads.items():
            layer = layers[name]
            known = pruner.num_heads.get(layer)
            if known != n_heads:
                pruner.num_heads[layer] = pruner.out_channel_groups[layer] = recounted(known, n_heads)
        remove_again(pruner.DG, self.history, record=True)
        tell_heads(pruner.model, pruner)
