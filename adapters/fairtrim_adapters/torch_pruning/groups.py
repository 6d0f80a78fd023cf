"""What Torch-Pruning's dependency graph says, as fairtrim's plain channel groups and pools."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch_pruning as tp
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, InputError, ParameterPlace, UnsupportedModelError
from fairtrim.selection import Floor, Pool

__all__ = [
    "PruningPlan",
    "Root",
    "calling_pruner",
    "consumers",
    "plan_of_graph",
    "plan_of_pruner",
    "repair_split_offsets",
]


@dataclass(frozen=True)
class Root:
    """Where the host starts when it removes channels of a dependency group.

    Attributes:
        module: The root layer.
        pruning_fn: The host's function for its outputs (or inputs).
        units: For each of its channels, the channel of the channel group, (root channels,).
    """

    module: nn.Module
    pruning_fn: Callable[..., Any]
    units: npt.NDArray[np.int64]


@dataclass(frozen=True)
class PruningPlan:
    """What a pruner will ask an importance for in its next step.

    Attributes:
        groups: Its dependency groups as channel groups; a channel here is what the host removes as one.
        pools: Groups that are ranked against each other, with the number of channels the host will take.
        floors: Channels that stay: the host skips a group whole rather than empty a layer.
        roots: Where the host starts when it removes channels of a group.
    """

    groups: tuple[ChannelGroup, ...]
    pools: tuple[Pool, ...]
    floors: tuple[Floor, ...]
    roots: dict[str, Root]

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
    repair_split_offsets(pruner.DG)
    step = pruner.current_step if inside_step else pruner.current_step + 1
    if step > pruner.iterative_steps:
        raise InputError(
            f"the pruner has done all its {pruner.iterative_steps} steps; fit before a step, or call pruner.reset()"
        )
    groups = _groups_asked_for(pruner, step)
    if not groups:
        raise InputError(
            "nothing in this network can be pruned: the host finds no dependency group outside ignored_layers; "
            "check ignored_layers, root_module_types and max_pruning_ratio"
        )
    channel_groups = tuple(_channel_group(group, pruner) for group in groups)
    pools, floors = _pools(pruner, groups, channel_groups, step)
    return PruningPlan(channel_groups, pools, floors, _roots(groups, pruner))


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
    found = [group for group in graph.get_all_groups(root_module_types=types) if _consumed(group, graph)]
    if not found:
        raise InputError("nothing in this network can be pruned: no layer's output is consumed by another layer")
    groups = tuple(_channel_group(group, None) for group in found)
    return PruningPlan(groups, tuple(Pool((group.name,)) for group in groups), (), _roots(found, None))


def _roots(groups: Sequence[tp.Group], pruner: tp.pruner.BasePruner | None) -> dict[str, Root]:
    return {
        _group_name(group): Root(
            group[0].dep.target.module, group[0].dep.handler, _units(group, pruner)[1](np.arange(len(group[0].idxs)))
        )
        for group in groups
    }


def repair_split_offsets(graph: tp.DependencyGraph) -> bool:
    """Bring the graph's splits up to date after a step.

    Torch-Pruning 1.6 updates the sizes of a split but not the offsets that map its channels (``SplitPruner`` sets
    them on itself), so that a second step would map channels to the wrong layers or out of range.

    Args:
        graph: The host's dependency graph.

    Returns:
        Whether anything was out of date.
    """
    changed = False
    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.SPLIT and node.module.split_sizes is not None:
            offsets = [0, *np.cumsum(node.module.split_sizes).tolist()]
            changed |= node.module.offsets != offsets
            node.module.offsets = offsets
    return changed


class _Listener:
    """An importance that notes each group and declines to score it, so that the host prunes nothing."""

    def __init__(self) -> None:
        self.groups: list[tp.Group] = []

    def __call__(self, group: tp.Group) -> None:
        self.groups.append(group)


def _groups_asked_for(pruner: tp.pruner.BasePruner, step: int) -> list[tp.Group]:
    listener = _Listener()
    importance, current_step = pruner.importance, pruner.current_step
    pruner.importance, pruner.current_step = listener, step - 1
    try:
        for _ in pruner.step(interactive=True):
            raise AssertionError("the host pruned a group that was not scored")
    finally:
        pruner.importance, pruner.current_step = importance, current_step
    return listener.groups


# From a dependency group to a channel group ---------------------------------------------------------------


def _is_consumer(graph: tp.DependencyGraph, item: Any) -> bool:
    """Whether an item of a group takes channels in and gives others out; norms pass theirs on."""
    handler = item.dep.handler
    return bool(
        isinstance(item.dep.target.module, nn.Module)
        and graph.is_in_channel_pruning_fn(handler)
        and not graph.is_out_channel_pruning_fn(handler)
    )


def _mapped(item: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Channels of an item and the root channels they belong to; what the host couldn't map (None) is left out."""
    pairs = [(i, r) for i, r in zip(item.idxs, item.root_idxs, strict=True) if r is not None]
    channels, roots = (
        np.asarray(values, dtype=np.int64) for values in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    present = getattr(item.dep.target.module, "in_channels", getattr(item.dep.target.module, "in_features", None))
    if (
        len(channels)
        and present is not None
        and item.dep.handler.__name__ == "prune_in_channels"
        and channels.max() >= present
    ):
        raise UnsupportedModelError(
            f"the host maps channel {channels.max()} to {item.dep.target.name}, which has {present} inputs: its graph "
            "does not follow the network any more. Build a new pruner for the pruned network"
        )
    return channels, roots


def consumers(group: tp.Group) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The layers of a dependency group that consume its channels.

    Args:
        group: A dependency group of the host, full or partial.

    Yields:
        Module name, its input channels, and the root channel of each.
    """
    graph = group._DG
    for item in group:
        if _is_consumer(graph, item):
            channels, roots = _mapped(item)
            if len(channels):
                yield graph._module2name[item.dep.target.module], channels, roots


def _consumed(group: tp.Group, graph: tp.DependencyGraph) -> bool:
    return any(_is_consumer(graph, item) for item in group)


def _heads(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> list[nn.Module]:
    """Query, key and value layers of an attention group."""
    if pruner is None:
        return []
    graph = group._DG
    return [
        item.dep.target.module
        for item in group
        if isinstance(item.dep.target.module, nn.Module)
        and item.dep.target.module in pruner.num_heads
        and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]


def _units(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> tuple[int, Callable[[Any], Any]]:
    """How many things the host removes as one, and which of them a root channel belongs to.

    With convolution or norm groups the host removes the same channel of every group; with attention heads the
    same dimension of every head, or a whole head.
    """
    n_channels = len(group[0].idxs)
    if pruner is None:
        return n_channels, lambda roots: roots
    graph = group._DG
    repeats = 1
    for item in group:
        of_side = (
            pruner.out_channel_groups if graph.is_out_channel_pruning_fn(item.dep.handler) else pruner.in_channel_groups
        )
        if isinstance(item.dep.target.module, nn.Module):
            repeats = max(repeats, of_side.get(item.dep.target.module, 1))
    attention = _heads(group, pruner)
    if attention and pruner.prune_num_heads and pruner.get_target_head_pruning_ratio(attention[0]) > 0:
        if pruner.prune_head_dims:
            return n_channels, lambda roots: roots  # both ways at once: no unit but the channel fits
        head_size = n_channels // max(pruner.num_heads[layer] for layer in attention)
        return n_channels // head_size, lambda roots: roots // head_size
    size = n_channels // repeats
    return size, lambda roots: roots % size


def _group_name(group: tp.Group) -> str:
    graph, first = group._DG, group[0].dep
    name = str(graph._module2name[first.target.module])
    return name if graph.is_out_channel_pruning_fn(first.handler) else f"{name} (input)"


def _channel_group(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> ChannelGroup:
    name, (size, unit_of) = _group_name(group), _units(group, pruner)
    attention = _heads(group, pruner)
    # every path through attention meets two places: query and key, or value and output projection
    weight = 0.5 if attention else 1.0
    places = []
    for item in group:
        module = item.dep.target.module
        produces_heads = any(module is layer for layer in attention)
        if not (_is_consumer(group._DG, item) or produces_heads):
            continue
        channels, roots = _mapped(item)
        if not len(channels):
            continue
        places.append(
            ChannelPlace(
                module=group._DG._module2name[module],
                side="output" if produces_heads else "input",
                channels=tuple(channels.tolist()),
                group_channels=tuple(unit_of(roots).tolist()),
                channel_axis=_channel_axis(module),
                sample_axis=_sample_axis(module),
                weight=weight,
            )
        )
    if not places:
        raise UnsupportedModelError(
            f"the channels of {name!r} are consumed by no layer: they are outputs of the network, and removing "
            f"them would remove its scores. Add the layer to ignored_layers=[model.{name}] of the pruner"
        )
    return ChannelGroup(name, size, tuple(places), tuple(_parameter_places(group, unit_of)))


def _channel_axis(module: nn.Module) -> int:
    return 1 if isinstance(module, nn.modules.conv._ConvNd) else -1


def _sample_axis(module: nn.Module) -> int:
    return 0 if getattr(module, "batch_first", True) else 1


def _parameter_places(group: tp.Group, unit_of: Callable[[Any], Any]) -> Iterator[ParameterPlace]:
    graph = group._DG
    names = {id(parameter): name for name, parameter in graph.model.named_parameters()}
    for item in group:
        module = item.dep.target.module
        channels, roots = _mapped(item)
        if not len(channels):
            continue
        units = tuple(unit_of(roots).tolist())
        if isinstance(module, nn.Parameter):
            yield ParameterPlace(names[id(module)], item.dep.target.pruning_dim, tuple(channels.tolist()), units)
            continue
        for parameter, axis in _axes(module, _is_consumer(graph, item)):
            if parameter is not None:
                # a grouped convolution stores the inputs of one group only
                stored = tuple((channels % parameter.shape[axis]).tolist())
                yield ParameterPlace(names[id(parameter)], axis, stored, units)


def _axes(module: nn.Module, consumer: bool) -> list[tuple[Any, int]]:
    """Parameters that lose slices with the channels, and along which axis."""
    if isinstance(module, nn.modules.conv._ConvNd):
        output_axis = 1 if module.transposed else 0
        return [(module.weight, 1 - output_axis)] if consumer else [(module.weight, output_axis), (module.bias, 0)]
    if isinstance(module, nn.Linear):
        return [(module.weight, 1)] if consumer else [(module.weight, 0), (module.bias, 0)]
    if isinstance(module, nn.Embedding):
        return [(module.weight, 1)]
    if isinstance(module, nn.LayerNorm):
        return [(module.weight, -1), (module.bias, -1)]
    if isinstance(module, nn.PReLU):
        return [(module.weight, 0)] if module.num_parameters > 1 else []
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return [(module.weight, 0), (module.bias, 0)]
    return []


# Pools ----------------------------------------------------------------------------------------------------


def _pools(
    pruner: tp.pruner.BasePruner, groups: Sequence[tp.Group], channel_groups: Sequence[ChannelGroup], step: int
) -> tuple[tuple[Pool, ...], tuple[Floor, ...]]:
    members: dict[Any, list[ChannelGroup]] = {}
    targets: dict[Any, float] = {}
    initial: dict[Any, int] = {}
    floors: list[Floor] = []
    for group, channel_group in zip(groups, channel_groups, strict=True):
        scope, ratio = _scope(pruner, group, step)
        members.setdefault(scope, []).append(channel_group)
        targets.setdefault(scope, ratio)  # the host takes the first record's ratio for the whole scope
        before = _initial_size(pruner, group, channel_group)
        initial[scope] = initial.get(scope, 0) + before
        kept = max(1, math.ceil(before * (1 - pruner.max_pruning_ratio) - 1e-9), pruner.round_to or 1)
        floors.append(Floor(channel_group.name, kept))
        floors.extend(_parts(channel_group))
    pools = []
    for scope, layers in members.items():
        present = sum(layer.size for layer in layers)
        quota = max(0, present - int(initial[scope] * (1 - targets[scope])))
        pools.append(Pool(tuple(layer.name for layer in layers), quota))
    return tuple(pools), tuple(floors)


def _parts(channel_group: ChannelGroup) -> Iterator[Floor]:
    """Behind a split each layer consumes a part of the channels, and must keep one of them."""
    for place in channel_group.places:
        part = tuple(sorted(set(place.group_channels)))
        if place.side == "input" and len(part) < channel_group.size:
            yield Floor(channel_group.name, 1, part)


def _scope(pruner: tp.pruner.BasePruner, group: tp.Group, step: int) -> tuple[Any, float]:
    """Which groups the host ranks together, and the ratio it prunes there at this step."""
    graph = group._DG
    for item in group:
        dep = item.dep
        for module, pruning_fn in ((dep.source.module, dep.trigger), (dep.target.module, dep.handler)):
            if module in pruner._layer_to_scope and graph.is_out_channel_pruning_fn(pruning_fn):
                return ("user", pruner._layer_to_scope[module][0]), pruner.get_target_pruning_ratio(module, step=step)
    ratio = pruner.per_step_pruning_ratio[step]
    if pruner.isomorphic:
        pattern = tuple(
            (type(dep.source.module), type(dep.target.module), graph.is_out_channel_pruning_fn(dep.handler))
            for dep, _ in group
        )
        return ("isomorphic", pattern), ratio
    if pruner.global_pruning:
        return ("global",), ratio
    return ("local", _group_name(group)), ratio


def _initial_size(pruner: tp.pruner.BasePruner, group: tp.Group, channel_group: ChannelGroup) -> int:
    """C of a group before the first step, in units that the host removes as one."""
    dep = group[0].dep
    outwards = group._DG.is_out_channel_pruning_fn(dep.handler)
    initial = (pruner.layer_init_out_ch if outwards else pruner.layer_init_in_ch)[dep.target.module]
    return max(channel_group.size, int(initial) * channel_group.size // len(group[0].idxs))
