"""One dependency group of Torch-Pruning as fairtrim's plain channel group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch_pruning as tp
from torch import nn

from fairtrim import ChannelGroup, ChannelPlace, ParameterPlace, UnsupportedModelError
from fairtrim.selection import Floor

from .layers import description_of, parameter_axes, sample_axis_of

__all__ = [
    "Root",
    "channel_group_of",
    "consumers",
    "group_name",
    "head_layers",
    "is_consumed",
    "obstacle",
    "part_floors",
    "prunes_heads",
    "repair_split_offsets",
    "root_of",
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


def repair_split_offsets(graph: tp.DependencyGraph) -> bool:
    """Bring the graph's splits in order, and up to date after a step.

    Torch-Pruning 1.6 updates the sizes of a split but not the offsets that map its channels (``SplitPruner`` sets
    them on itself), so that a second step would map channels to the wrong layers or out of range.

    Args:
        graph: The host's dependency graph.

    Returns:
        Whether anything was out of date.
    """
    changed = _order_splits(graph)
    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.SPLIT and node.module.split_sizes is not None:
            offsets = [0, *np.cumsum(node.module.split_sizes).tolist()]
            changed |= node.module.offsets != offsets
            node.module.offsets = offsets
    return changed


def _order_splits(graph: tp.DependencyGraph) -> bool:
    """Put the outputs of a split in the order of its parts.

    Torch-Pruning 1.6 lists them as its walk from the network's output meets them, so that the channels of one part were
    mapped to the consumers of another. Left alone where a consumer takes several parts.
    """
    changed = False
    for node in graph.module2node.values():
        if node.type != tp.ops.OPTYPE.SPLIT or node.module.split_sizes is None:
            continue
        parts: list[int | None] = []
        for output in node.outputs:
            edges = getattr(output.grad_fn, "next_functions", ())
            numbers = [number for function, number in edges if function is node.grad_fn]
            parts.append(numbers[0] if len(numbers) == 1 else None)
        if None in parts or parts == sorted(parts):  # type: ignore[type-var]
            continue
        node.outputs[:] = [node.outputs[k] for k in np.argsort(np.array(parts, dtype=np.int64))]
        changed = True
    return changed


def _is_consumer(graph: tp.DependencyGraph, item: Any) -> bool:
    """Whether an item of a group takes channels in and gives others out; norms pass theirs on.

    To the host attention passes its channels on too, but it consumes its inputs.
    """
    module, handler = item.dep.target.module, item.dep.handler
    description = description_of(module)
    if description is not None and description.mixes:
        return True
    return bool(
        isinstance(module, nn.Module)
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


def is_consumed(group: tp.Group, graph: tp.DependencyGraph) -> bool:
    """Whether any layer consumes the channels, so that they are not outputs of the network."""
    return any(_is_consumer(graph, item) for item in group)


def head_layers(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> list[nn.Module]:
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


def units_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> tuple[int, Callable[[Any], Any]]:
    """How many things the host removes as one, and which of them a root channel belongs to.

    With convolution or norm groups the host removes the same channel of every group; with attention heads the
    same dimension of every head, or a whole head.
    """
    n_channels = len(group[0].idxs)
    graph = group._DG
    if pruner is None:
        size = n_channels // max(_convolution_groups(item.dep.target.module) for item in group)
        return size, lambda roots: roots % size
    repeats = 1
    for item in group:
        of_side = (
            pruner.out_channel_groups if graph.is_out_channel_pruning_fn(item.dep.handler) else pruner.in_channel_groups
        )
        if isinstance(item.dep.target.module, nn.Module):
            repeats = max(repeats, of_side.get(item.dep.target.module, 1))
    attention = head_layers(group, pruner)
    if prunes_heads(attention, pruner):
        if pruner.prune_head_dims:
            return n_channels, lambda roots: roots  # both ways at once: no unit but the channel fits
        head_size = n_channels // max(pruner.num_heads[layer] for layer in attention)
        return n_channels // head_size, lambda roots: roots // head_size
    size = n_channels // repeats
    return size, lambda roots: roots % size


def _convolution_groups(module: Any) -> int:
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1 if module.groups == module.out_channels else int(module.groups)
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else 1


def prunes_heads(attention: Sequence[nn.Module], pruner: tp.pruner.BasePruner) -> bool:
    """Whether the host will remove whole heads of these layers."""
    return bool(attention and pruner.prune_num_heads and pruner.get_target_head_pruning_ratio(attention[0]) > 0)


def group_name(group: tp.Group) -> str:
    """Name of the root layer; with "(input)" where the host starts at its inputs, as it does for attention."""
    graph, first = group._DG, group[0].dep
    name = str(graph._module2name[first.target.module])
    return name if graph.is_out_channel_pruning_fn(first.handler) else f"{name} (input)"


def channel_group_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> ChannelGroup:
    """Where the channels of a dependency group are consumed, and which parameters go with them.

    Args:
        group: A full dependency group of the host.
        pruner: The pruner, which knows about heads and groups; None for a bare dependency graph.

    Returns:
        The channel group; one channel is what the host removes as one.

    Raises:
        UnsupportedModelError: No layer consumes them, or one whose axis of channels is not known.
    """
    name, (size, unit_of) = group_name(group), units_of(group, pruner)
    attention = head_layers(group, pruner)
    # every path through attention meets two places: query and key, or value and output projection
    weight = 0.5 if attention else 1.0
    places = []
    unknown = []
    for item in group:
        module = item.dep.target.module
        produces_heads = any(module is layer for layer in attention)
        if not (_is_consumer(group._DG, item) or produces_heads):
            continue
        channels, roots = _mapped(item)
        if not len(channels):
            continue
        description = description_of(module)
        if description is None:
            unknown.append(f"{group._DG._module2name[module]} ({type(module).__name__})")
            continue
        places.append(
            ChannelPlace(
                module=group._DG._module2name[module],
                side="output" if produces_heads else "input",
                channels=tuple(channels.tolist()),
                group_channels=tuple(unit_of(roots).tolist()),
                channel_axis=description.channel_axis,
                sample_axis=sample_axis_of(module),
                weight=weight,
            )
        )
    if unknown:
        raise UnsupportedModelError(
            f"the channels of {name!r} are consumed by {sorted(unknown)}, layers whose axis of channels is not known; "
            "say it with fairtrim_adapters.torch_pruning.describe_layer(type, channel_axis=...), or add the layers "
            "that produce the channels to ignored_layers"
        )
    if not places:
        raise UnsupportedModelError(
            f"the channels of {name!r} are consumed by no layer: they are outputs of the network, and removing "
            f"them would remove its scores. Add the layer to ignored_layers=[model.{name}] of the pruner"
        )
    return ChannelGroup(name, size, tuple(places), tuple(_parameter_places(group, unit_of)))


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
        for parameter, axis, blocks in parameter_axes(module, consumer=_is_consumer(graph, item)):
            size = parameter.shape[axis] // blocks
            for block in range(blocks):
                # a grouped convolution stores the inputs of one group only: each slice counts once
                slices = (channels % size + block * size).tolist()
                stored, of_units = zip(*dict.fromkeys(zip(slices, units, strict=True)), strict=True)
                yield ParameterPlace(names[id(parameter)], axis, stored, of_units)


def obstacle(of_host: tp.Group, group: ChannelGroup, pruner: tp.pruner.BasePruner | None) -> str:
    """Why gates can't describe a group, or nothing."""
    unmapped = [
        str(of_host._DG._module2name[layer])
        for item in of_host
        if (layer := item.dep.target.module) in head_layers(of_host, pruner) and None in item.root_idxs
    ]
    if unmapped:
        return f"the host doesn't map the channels of {unmapped} (attention in which heads share keys and values)"
    covered: set[int] = set()
    for place in group.places:
        if len(set(place.channels)) < len(place.channels):
            return f"several of its channels share one input channel of {place.module!r} (a reshape in between)"
        covered.update(place.group_channels)
    if len(covered) < group.size:
        return f"the host doesn't map {group.size - len(covered)} of its {group.size} channels to any consumer"
    return ""


def root_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> Root:
    """Where the host starts when it removes channels of this group."""
    dep = group[0].dep
    return Root(dep.target.module, dep.handler, units_of(group, pruner)[1](np.arange(len(group[0].idxs))))


def part_floors(channel_group: ChannelGroup) -> Iterator[Floor]:
    """Behind a split each layer consumes a part of the channels, and must keep one of them."""
    for place in channel_group.places:
        part = tuple(sorted(set(place.group_channels)))
        if place.side == "input" and len(part) < channel_group.size:
            yield Floor(channel_group.name, 1, part)
