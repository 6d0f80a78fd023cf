"""What Torch-Pruning will ask an importance for in its next step, and how it ranks the answers."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch_pruning as tp
from torch import nn

from fairtrim import ChannelGroup, InputError
from fairtrim.selection import Floor, Pool

from .groups import (
    Root,
    channel_group_of,
    head_layers,
    is_consumed,
    obstacle,
    part_floors,
    prunes_heads,
    repair_split_offsets,
    root_of,
)

__all__ = ["PruningPlan", "calling_pruner", "plan_of_graph", "plan_of_pruner"]


@dataclass(frozen=True)
class PruningPlan:
    """What a pruner will ask an importance for in its next step.

    Attributes:
        groups: Its dependency groups as channel groups; a channel here is what the host removes as one.
        pools: Groups that are ranked against each other, with the number of channels the host will take.
        floors: Channels that stay: the host skips a group whole rather than empty a layer.
        roots: Where the host starts when it removes channels of a group.
        unscored: Groups that gates can't describe, with the reason; they are not pruned.
        step: Number of the host's step, or 0 where no pruner is known.
    """

    groups: tuple[ChannelGroup, ...]
    pools: tuple[Pool, ...]
    floors: tuple[Floor, ...]
    roots: dict[str, Root]
    unscored: dict[str, str]
    step: int = 0

    @property
    def shared_ranking(self) -> bool:
        """Whether any pool holds more than one group (global or isomorphic pruning)."""
        return any(len(pool.layers) > 1 for pool in self.pools)


def calling_pruner(importance: object) -> tp.pruner.BasePruner | None:
    """The pruner that is asking this importance for a score.

    The host hands an importance one dependency group at a time and nothing else, but an order over the whole
    network depends on what else will be removed: ignored layers, ratios and scopes. Those are the caller's.

    Args:
        importance: The importance that is being called.

    Returns:
        The pruner on the call stack that holds it, or None when a script calls it directly.
    """
    frame = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, tp.pruner.BasePruner) and caller.importance is importance:
            return caller
        frame = frame.f_back  # type: ignore[assignment]
    return None


def plan_of_pruner(pruner: tp.pruner.BasePruner, *, inside_step: bool = False) -> PruningPlan:
    """Ask the host itself which groups its next step will score, without pruning anything.

    Args:
        pruner: Any pruner that is derived from ``BasePruner``.
        inside_step: Whether that step is running (the host counts it before it asks).

    Returns:
        The plan.

    Raises:
        InputError: The pruner has done all its steps, or nothing in the network can be pruned.
    """
    step = pruner.current_step if inside_step else pruner.current_step + 1
    if step > pruner.iterative_steps:
        raise InputError(
            f"the pruner has done all its {pruner.iterative_steps} steps; fit before a step, or call pruner.reset()"
        )
    repair_split_offsets(pruner.DG)
    importance, current_step = pruner.importance, pruner.current_step
    listener = _Listener()
    try:
        pruner.importance, pruner.current_step = listener, step - 1
        for _ in pruner.step(interactive=True):
            raise AssertionError("the host pruned a group that was not scored")
        return _plan(listener.groups, pruner, step)
    finally:
        pruner.importance, pruner.current_step = importance, current_step


def plan_of_graph(graph: tp.DependencyGraph) -> PruningPlan:
    """The plan when only a dependency graph is known: every group that doesn't end in the network's output.

    Args:
        graph: The host's dependency graph.

    Returns:
        A plan in which each group is ranked by itself.

    Raises:
        InputError: Every group ends in the output.
    """
    types = (nn.modules.conv._ConvNd, nn.Linear)
    return _plan([g for g in graph.get_all_groups(root_module_types=types) if is_consumed(g, graph)], None, 0)


def _plan(groups: Sequence[tp.Group], pruner: tp.pruner.BasePruner | None, step: int) -> PruningPlan:
    scored: list[tuple[tp.Group, ChannelGroup]] = []
    unscored: dict[str, str] = {}
    for group in groups:
        channel_group = channel_group_of(group, pruner)
        reason = obstacle(channel_group)
        if reason:
            unscored[channel_group.name] = reason
        else:
            scored.append((group, channel_group))
    if unscored:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unscored.items())
        warnings.warn(f"fairtrim leaves these dependency groups as they are: {reasons}", stacklevel=4)
    if not scored:
        raise InputError(
            "nothing in this network can be pruned: the host finds no dependency group that it may touch; check "
            "ignored_layers, root_module_types, max_pruning_ratio, and that parameters have requires_grad=True"
        )
    pools, floors = _pools(pruner, scored, step)
    return PruningPlan(
        groups=tuple(channel_group for _, channel_group in scored),
        pools=pools,
        floors=floors,
        roots={channel_group.name: root_of(group, pruner) for group, channel_group in scored},
        unscored=unscored,
        step=step,
    )


class _Listener:
    """An importance that notes each group and declines to score it, so that the host prunes nothing."""

    def __init__(self) -> None:
        self.groups: list[tp.Group] = []

    def __call__(self, group: tp.Group) -> None:
        self.groups.append(group)


def _pools(
    pruner: tp.pruner.BasePruner | None, scored: Sequence[tuple[tp.Group, ChannelGroup]], step: int
) -> tuple[tuple[Pool, ...], tuple[Floor, ...]]:
    parts = [floor for _, channel_group in scored for floor in part_floors(channel_group)]
    if pruner is None:
        return tuple(Pool((channel_group.name,)) for _, channel_group in scored), tuple(parts)
    members: dict[str, list[ChannelGroup]] = {}
    targets: dict[str, float] = {}
    initial: dict[str, int] = {}
    heads: dict[str, int] = {}
    floors = []
    for group, channel_group in scored:
        attention = head_layers(group, pruner)
        if prunes_heads(attention, pruner) and not pruner.prune_head_dims:
            heads[channel_group.name] = channel_group.size
            targets[channel_group.name] = pruner.get_target_head_pruning_ratio(attention[0])
            continue
        scope, ratio = _scope(pruner, group, step)
        members.setdefault(scope, []).append(channel_group)
        targets.setdefault(scope, ratio)  # the host takes the first record's ratio for the whole scope
        before = _initial_size(pruner, group, channel_group)
        initial[scope] = initial.get(scope, 0) + before
        kept = max(1, math.ceil(before * (1 - pruner.max_pruning_ratio) - 1e-9), pruner.round_to or 1)
        floors.append(Floor(channel_group.name, kept))
    pools = []
    for scope, layers in members.items():
        present = sum(layer.size for layer in layers)
        # the host remembers the size of a scope from its first step, groups that it gave up since included
        first = pruner._scope_initial_channels.get(scope, initial[scope])
        quota = max(0, present - int(first * (1 - targets[scope])))
        pools.append(Pool(tuple(layer.name for layer in layers), quota))
    if heads and pruner.global_pruning:
        ratio = pruner.per_step_head_pruning_ratio[step]
        pools.append(Pool(tuple(heads), max(0, sum(heads.values()) - int(pruner.initial_total_heads * (1 - ratio)))))
    else:
        pools.extend(Pool((name,), math.ceil(targets[name] * size)) for name, size in heads.items())
    return tuple(pools), (*floors, *parts)


def _scope(pruner: tp.pruner.BasePruner, group: tp.Group, step: int) -> tuple[str, float]:
    """The host's name for the groups that it ranks together, and the ratio it prunes there at this step."""
    graph = group._DG
    for item in group:
        dep = item.dep
        for module, pruning_fn in ((dep.source.module, dep.trigger), (dep.target.module, dep.handler)):
            if module in pruner._layer_to_scope and graph.is_out_channel_pruning_fn(pruning_fn):
                return pruner._layer_to_scope[module][0], pruner.get_target_pruning_ratio(module, step=step)
    ratio = pruner.per_step_pruning_ratio[step]
    if pruner.isomorphic:
        side = {True: "out", False: "in"}
        ends = [
            (type(d.source.module), type(d.target.module), graph.is_out_channel_pruning_fn(d.handler)) for d, _ in group
        ]
        return "Isomorphic_" + "".join(f"{s}_{side[out]}_{t}_{side[out]}" for s, t, out in ends), ratio
    if pruner.global_pruning:
        return "DEFAULT_SCOPE", ratio
    return str(graph._module2name[group[0].dep.source.module]), ratio


def _initial_size(pruner: tp.pruner.BasePruner, group: tp.Group, channel_group: ChannelGroup) -> int:
    """C of a group before the first step, in units that the host removes as one."""
    dep = group[0].dep
    outwards = group._DG.is_out_channel_pruning_fn(dep.handler)
    initial = (pruner.layer_init_out_ch if outwards else pruner.layer_init_in_ch)[dep.target.module]
    return max(channel_group.size, int(initial) * channel_group.size // len(group[0].idxs))
