"""What Torch-Pruning will ask an importance for in its next step, and how it ranks the answers."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, InputError, UnsupportedModelError
from fairtrim.damage.channel_groups import ChannelColumns
from fairtrim.selection.ranking import Floor, Pool

from .corrections import correct_graph, correct_group, correct_pruner
from .dependency_groups import (
    Root,
    channel_group_of,
    group_name,
    head_layers,
    is_consumed,
    part_floors,
    producers_of,
    prunes_heads,
    root_of,
    shared_evenly,
)
from .obstacles import fewest_units, obstacle
from .pruner_options import check_ratios
from .undoing import Held, undone

__all__ = [
    "PruningPlan",
    "caller_of",
    "groups_of_next_step",
    "plan_of_graph",
    "plan_of_pruner",
    "removed_units",
    "warn_of_left",
]


@dataclass(frozen=True)
class PruningPlan:
    """What a pruner will ask an importance for in its next step.

    Attributes:
        groups: Its dependency groups as channel groups; a channel here is what Torch-Pruning removes as one.
        pools: Groups that are ranked against each other, with the number of channels Torch-Pruning will take.
        heads: Attention groups of which Torch-Pruning removes whole heads, if anything; their single channels count in
            its ranking of all channels, but are not removed there.
        round_to: What Torch-Pruning rounds the channels of a layer to, or 1.
        floors: Channels that stay: Torch-Pruning skips a group whole rather than empty a layer.
        roots: Where Torch-Pruning starts when it removes channels of a group.
        unscored: Groups that gates can't describe, with the reason; they are not pruned.
        step: Number of Torch-Pruning's step, or 0 where no pruner is known.
        producers: Where the channels of a group come from; none where a layer is not described.
        untried: Attention groups of which no draw of channels is like what Torch-Pruning removes: it takes whole heads
            and dimensions of heads at once, or nothing, or as many query heads from each head of keys and values.
    """

    groups: tuple[ChannelGroup, ...]
    pools: tuple[Pool, ...]
    floors: tuple[Floor, ...]
    roots: dict[str, Root]
    unscored: dict[str, str]
    step: int = 0
    heads: frozenset[str] = frozenset()
    round_to: int = 1
    producers: dict[str, tuple[ChannelPlace, ...]] = field(default_factory=dict)
    untried: frozenset[str] = frozenset()

    @property
    def columns(self) -> ChannelColumns:
        """The channels of all groups side by side."""
        return ChannelColumns({group.name: group.size for group in self.groups})

    @property
    def shared_ranking(self) -> bool:
        """Whether any pool holds more than one group (global or isomorphic pruning)."""
        return any(len(pool.layers) > 1 for pool in self.pools)


@dataclass(frozen=True)
class Caller:
    """The pruner that asks for a score, if any, and whether a step of it is running, which it has counted already."""

    pruner: tp.pruner.BasePruner | None
    in_step: bool = False


def caller_of(graph: tp.DependencyGraph) -> Caller:
    """The pruner that is asking for the score of a group.

    Torch-Pruning hands an importance one dependency group at a time and nothing else, but an order over the whole
    network depends on what else will be removed: ignored layers, ratios and scopes. Those are the caller's.
    """
    pruner: tp.pruner.BasePruner | None = None
    functions: set[str] = set()
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, tp.pruner.BasePruner) and caller.DG is graph:
            pruner = caller
            functions.add(frame.f_code.co_name)
        frame = frame.f_back
    penalties = functions & {"regularize", "update_reg", "update_regularizer"}
    if penalties:
        raise InputError(
            f"{type(pruner).__name__}.{penalties.pop()} takes scores for the weights of a penalty, once an iteration; "
            "these scores are signed, or places in an order: give that pruner one of Torch-Pruning's own importances"
        )
    return Caller(pruner, "_prune" in functions)


def plan_of_pruner(
    pruner: tp.pruner.BasePruner, *, inside_step: bool = False, left: Mapping[str, str] | None = None
) -> PruningPlan:
    """Ask Torch-Pruning itself which groups its next step will score, without pruning anything.

    ``inside_step``: whether that step is running (Torch-Pruning counts it before it asks). ``left``: groups that are to
    be left as they are, each with the reason; then nothing is told in a warning.
    """
    check_ratios(pruner)
    if pruner.isomorphic and not pruner.global_pruning:
        raise InputError(
            "isomorphic=True without global_pruning=True makes Torch-Pruning remove channels by the wrong indices; "
            "pass both"
        )
    step = pruner.current_step if inside_step else pruner.current_step + 1
    if step > pruner.iterative_steps:
        raise InputError(
            f"the pruner has done all its {pruner.iterative_steps} steps; fit before a step, or call pruner.reset()"
        )
    with _listening(pruner, step) as groups:
        if not groups and _prunable(pruner):
            warnings.warn(
                "no channel is scored: every layer has reached max_pruning_ratio or its last channel, so this step "
                "removes nothing",
                stacklevel=3,
            )
            return PruningPlan((), (), (), {}, {}, step)
        return _told(_plan(groups, pruner, step, left or {}), left)


@contextmanager
def _listening(pruner: tp.pruner.BasePruner, step: int) -> Iterator[list[tp.Group]]:
    """The groups that Torch-Pruning asks for at a step; nothing is pruned, and the step doesn't count."""
    correct_graph(pruner.DG)
    correct_pruner(pruner)
    listener = _Listener()
    with undone(Held(pruner.DG, pruner)):
        pruner.importance, pruner.current_step = listener, step - 1
        for _ in pruner.step(interactive=True):
            raise AssertionError("Torch-Pruning pruned a group that was not scored")
        yield listener.groups


def groups_of_next_step(pruner: tp.pruner.BasePruner) -> list[tp.Group]:
    """Torch-Pruning's dependency groups that its next step may touch."""
    with _listening(pruner, pruner.current_step + 1) as groups:
        return groups


def _prunable(pruner: tp.pruner.BasePruner) -> bool:
    groups = pruner.DG.get_all_groups(ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types)
    return any(True for _ in groups)


def plan_of_graph(graph: tp.DependencyGraph, *, left: Mapping[str, str] | None = None) -> PruningPlan:
    """The plan when only a dependency graph is known: every group that doesn't end in the network's output.

    Each group is ranked by itself. ``left`` is as for ``plan_of_pruner``.
    """
    types = (nn.modules.conv._ConvNd, nn.Linear)
    correct_graph(graph)
    groups = [group for group in graph.get_all_groups(root_module_types=types) if is_consumed(group, graph)]
    for group in groups:
        correct_group(group)
    return _told(_plan(groups, None, 0, left or {}), left)


def warn_of_left(left: Mapping[str, str]) -> None:
    """Say which groups are left as they are, and why."""
    if left:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
        warnings.warn(f"fairtrim leaves these dependency groups as they are: {reasons}", stacklevel=5)


def _told(plan: PruningPlan, left: Mapping[str, str] | None) -> PruningPlan:
    if left is None:
        warn_of_left(plan.unscored)
    return plan


def _plan(
    groups: Sequence[tp.Group], pruner: tp.pruner.BasePruner | None, step: int, left: Mapping[str, str]
) -> PruningPlan:
    scored: list[tuple[tp.Group, ChannelGroup]] = []
    unscored: dict[str, str] = {}
    for group in groups:
        name = group_name(group)
        if name in left:
            unscored[name] = left[name]
            continue
        try:
            channel_group = channel_group_of(group, pruner)
        except UnsupportedModelError as error:
            unscored[name] = str(error)
            continue
        reason = obstacle(group, channel_group, pruner) or _unreached(group, pruner, step)
        if reason:
            unscored[name] = reason
        else:
            scored.append((group, channel_group))
    pools, floors, heads = _pools(pruner, scored, step)
    emptied = _left_with_too_few(scored, pools) if pruner and step < pruner.iterative_steps else {}
    if emptied:
        unscored |= emptied
        scored = [(group, channel_group) for group, channel_group in scored if channel_group.name not in emptied]
        pools, floors, heads = _pools(pruner, scored, step)
    if not scored and unscored:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in unscored.items())
        raise UnsupportedModelError(f"no dependency group of this network can be scored and pruned: {reasons}")
    if not scored:
        raise InputError(
            "nothing in this network can be pruned: Torch-Pruning finds no dependency group that it may touch; check "
            "ignored_layers, root_module_types and max_pruning_ratio" + (_frozen(pruner.model) if pruner else "")
        )
    return PruningPlan(
        groups=tuple(channel_group for _, channel_group in scored),
        pools=pools,
        floors=floors,
        roots={channel_group.name: root_of(group, pruner) for group, channel_group in scored},
        unscored=unscored,
        step=step,
        heads=heads,
        round_to=(pruner.round_to or 1) if pruner else 1,
        producers={channel_group.name: producers_of(group, pruner) for group, channel_group in scored},
        untried=frozenset(channel_group.name for group, channel_group in scored if _both_or_neither(group, pruner)),
    )


def _unreached(group: tp.Group, pruner: tp.pruner.BasePruner | None, step: int) -> str:
    """Torch-Pruning comes to whole heads only where it would remove something by its ratio for channels."""
    attention = head_layers(group, pruner)
    if pruner is None or not prunes_heads(attention, pruner) or _scope(pruner, group, step)[1] > 0:
        return ""
    return (
        "Torch-Pruning removes no heads where pruning_ratio is 0, whatever head_pruning_ratio is; give it any ratio "
        "above, and leave what shall stay out of prune=, or add it to ignored_layers"
    )


def _frozen(model: nn.Module) -> str:
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if not frozen:
        return ""
    return (
        f". Torch-Pruning doesn't see what is frozen, as {len(frozen)} parameters are, such as {frozen[0]!r} (adapters "
        "of PEFT leave them so): call model.requires_grad_(True) before the pruner is made"
    )


def _both_or_neither(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> bool:
    """Whether whole heads and single dimensions of heads go from attention, or neither, or heads evenly."""
    attention = head_layers(group, pruner)
    if pruner is None or not attention:
        return False
    return prunes_heads(attention, pruner) == bool(pruner.prune_head_dims) or bool(shared_evenly(attention, pruner))


def _left_with_too_few(scored: Sequence[tuple[tp.Group, ChannelGroup]], pools: Sequence[Pool]) -> dict[str, str]:
    """Groups that the quota would leave with channels that Torch-Pruning mistakes for depthwise ones afterwards."""
    quotas = {pool.layers[0]: pool.quota for pool in pools if len(pool.layers) == 1 and pool.quota is not None}
    reasons = {}
    for of_host, group in scored:
        quota = quotas.get(group.name, 0)
        if quota and fewest_units(of_host) == 2 > group.size - quota:
            reasons[group.name] = (
                f"{quota} of {group.size} channels of each convolution group should go, and Torch-Pruning takes what "
                "would be left for a depthwise convolution in its next step; lower pruning_ratio, or add it to "
                "ignored_layers"
            )
    return reasons


def removed_units(plan: PruningPlan, history: Iterable[Sequence[Any]]) -> dict[str, set[int]]:
    """The channels of the plan's groups in Torch-Pruning's history: [module name, of outputs, channels]."""
    removed: dict[str, set[int]] = {}
    for module, of_outputs, channels in history:
        name = module if of_outputs else f"{module} (input)"
        if name in plan.roots:
            units = plan.roots[name].units[np.asarray(channels, dtype=np.int64)].tolist()
            removed.setdefault(name, set()).update(units)
    return removed


class _Listener:
    """An importance that notes each group and declines to score it, so that Torch-Pruning prunes nothing."""

    def __init__(self) -> None:
        self.groups: list[tp.Group] = []

    def __call__(self, group: tp.Group) -> None:
        correct_group(group)
        self.groups.append(group)


def _pools(
    pruner: tp.pruner.BasePruner | None, scored: Sequence[tuple[tp.Group, ChannelGroup]], step: int
) -> tuple[tuple[Pool, ...], tuple[Floor, ...], frozenset[str]]:
    parts = [floor for _, channel_group in scored for floor in part_floors(channel_group)]
    if pruner is None:
        return tuple(Pool((channel_group.name,)) for _, channel_group in scored), tuple(parts), frozenset()
    members: dict[str, list[ChannelGroup]] = {}
    targets: dict[str, float] = {}
    present: dict[str, int] = {}
    initial: dict[str, int] = {}
    heads: dict[str, tuple[int, float]] = {}
    untouched: list[str] = []
    floors: list[Floor] = []
    for group, channel_group in scored:
        attention = head_layers(group, pruner)
        scope, ratio = _scope(pruner, group, step)
        targets.setdefault(scope, ratio)  # Torch-Pruning takes the first record's ratio for the whole scope
        # what Torch-Pruning ranks there: one of each group of channels, of attention the dimensions of a head
        ranked = len(group[0].idxs) // pruner._get_channel_groups(group)
        present[scope] = present.get(scope, 0) + ranked
        before = _initial_size(pruner, group, ranked)
        initial[scope] = initial.get(scope, 0) + before
        if attention and not pruner.prune_head_dims:
            if prunes_heads(attention, pruner):
                ratio = pruner.get_target_head_pruning_ratio(attention[0])
                if n_shared := shared_evenly(attention, pruner):
                    sharing = channel_group.size // n_shared
                    each = math.ceil(math.ceil(ratio * channel_group.size) / n_shared)
                    ratio = each * n_shared / channel_group.size - 1e-9
                    floors.extend(
                        Floor(channel_group.name, max(1, sharing - each), tuple(range(first, first + sharing)))
                        for first in range(0, channel_group.size, sharing)
                    )
                heads[channel_group.name] = channel_group.size, ratio
            else:
                untouched.append(channel_group.name)
            continue
        members.setdefault(scope, []).append(channel_group)
        fewest = fewest_units(group) if step < pruner.iterative_steps else 1
        kept = max(fewest, math.ceil(before * (1 - pruner.max_pruning_ratio) - 1e-9), pruner.round_to or 1)
        floors.append(Floor(channel_group.name, kept))
    roots = {channel_group.name: len(group[0].idxs) for group, channel_group in scored}
    pools = []
    for scope, layers in members.items():
        # Torch-Pruning remembers the size of a scope from its first step, groups that it gave up since included
        first = pruner._scope_initial_channels.get(scope, initial[scope])
        quota = max(0, present[scope] - int(first * (1 - targets[scope])))
        if not pruner.global_pruning:
            quota = rounded_quota(quota, roots[layers[0].name], pruner.round_to or 1)
        pools.append(Pool(tuple(layer.name for layer in layers), min(quota, sum(layer.size for layer in layers))))
    if heads and pruner.global_pruning:
        n_heads = sum(size for size, _ in heads.values())
        kept = int(pruner.initial_total_heads * (1 - pruner.per_step_head_pruning_ratio[step]))
        pools.append(Pool(tuple(heads), max(0, n_heads - kept)))
    else:
        pools.extend(Pool((name,), math.ceil(ratio * size)) for name, (size, ratio) in heads.items())
    pools.extend(Pool((name,), 0) for name in untouched)
    return tuple(pools), (*floors, *parts), frozenset({*heads, *untouched})


def rounded_quota(quota: int, present: int, round_to: int) -> int:
    """How many channels Torch-Pruning removes from a layer when it rounds what is left to a multiple.

    For a quota of none it rounds nothing.
    """
    left = present - quota
    return quota + left % round_to if quota else 0


def _scope(pruner: tp.pruner.BasePruner, group: tp.Group, step: int) -> tuple[str, float]:
    """Torch-Pruning's name for the groups that it ranks together, and the ratio it prunes there at this step."""
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


def _initial_size(pruner: tp.pruner.BasePruner, group: tp.Group, ranked: int) -> int:
    """How many channels of a group Torch-Pruning ranked before the first step, given how many it ranks now."""
    dep = group[0].dep
    outwards = group._DG.is_out_channel_pruning_fn(dep.handler)
    initial = (pruner.layer_init_out_ch if outwards else pruner.layer_init_in_ch)[dep.target.module]
    return max(ranked, int(initial) * ranked // len(group[0].idxs))
