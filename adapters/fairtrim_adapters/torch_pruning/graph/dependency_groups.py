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
from fairtrim.selection.ranking import Floor

from .layers import description_of, parameter_axes, sample_axis_of

__all__ = [
    "Root",
    "channel_group_of",
    "consumers",
    "group_name",
    "head_layers",
    "is_consumed",
    "mapped",
    "module_expression",
    "part_floors",
    "passes_on",
    "producers_of",
    "prunes_heads",
    "root_of",
    "shared_evenly",
    "units_of",
]


@dataclass(frozen=True)
class Root:
    """Where Torch-Pruning starts when it removes channels of a dependency group: layer and function.

    ``units`` has for each of its channels the channel of the channel group, (root channels,).
    """

    module: nn.Module
    pruning_fn: Callable[..., Any]
    units: npt.NDArray[np.int64]


def _is_consumer(graph: tp.DependencyGraph, item: Any) -> bool:
    """Whether an item of a group takes channels in and gives others out; norms pass theirs on.

    To Torch-Pruning attention passes its channels on too, but it consumes its inputs.
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


def mapped(item: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Channels of an item and the root channels they belong to, (n,) each.

    What Torch-Pruning couldn't map (None) is left out.
    """
    pairs = [(i, r) for i, r in zip(item.idxs, item.root_idxs, strict=True) if r is not None]
    channels, roots = (
        np.asarray(values, dtype=np.int64) for values in (zip(*pairs, strict=True) if pairs else ((), ()))
    )
    return channels, roots


def consumers(group: tp.Group) -> Iterator[tuple[str, npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """The layers that consume a group's channels: name, input channels, and the root channel of each."""
    graph = group._DG
    for item in group:
        if _is_consumer(graph, item):
            channels, roots = mapped(item)
            if len(channels):
                yield graph._module2name[item.dep.target.module], channels, roots


def is_consumed(group: tp.Group, graph: tp.DependencyGraph) -> bool:
    """Whether any layer consumes the channels, so that they are not outputs of the network."""
    return any(_is_consumer(graph, item) for item in group)


def passes_on(graph: tp.DependencyGraph, module: nn.Module) -> bool:
    """Whether channels pass through a layer, so that Torch-Pruning prunes its inputs and outputs as one.

    So for norms and depthwise convolutions, but neither for attention, which reads its inputs, nor for embeddings,
    whose inputs are no channels.
    """
    pruner, description = graph.get_pruner_of_module(module), description_of(module)
    other = isinstance(module, nn.Embedding | nn.EmbeddingBag) or (description is not None and description.mixes)
    return bool(pruner is not None and pruner.prune_in_channels == pruner.prune_out_channels and not other)


def module_expression(name: str) -> str:
    """How to write a layer of the network ``model``, or a group's name, in Python.

    Example:
        >>> module_expression("body"), module_expression("blocks.2.a"), module_expression("4")
        ('model.body', 'model.get_submodule("blocks.2.a")', 'model.get_submodule("4")')
    """
    name = name.removesuffix(" (input)")
    plain = all(part.isidentifier() for part in name.split("."))
    return f"model.{name}" if plain else f'model.get_submodule("{name}")'


def head_layers(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> list[nn.Module]:
    """Query, key and value layers of an attention group, those of the most heads first.

    Gives none where no pruner knows about heads.
    """
    if pruner is None:
        return []
    graph = group._DG
    layers = [
        item.dep.target.module
        for item in group
        if isinstance(item.dep.target.module, nn.Module)
        and item.dep.target.module in pruner.num_heads
        and graph.is_out_channel_pruning_fn(item.dep.handler)
    ]
    return sorted(layers, key=lambda layer: -pruner.num_heads[layer])


def shared_evenly(attention: Sequence[nn.Module], pruner: tp.pruner.BasePruner | None) -> int:
    """From how many heads of keys and values Torch-Pruning takes the same number of query heads each; else 0."""
    counts = {int(pruner.num_heads[layer]) for layer in attention} if pruner is not None else set()
    return min(counts) if len(counts) > 1 else 0


def units_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> tuple[int, Callable[[Any], Any]]:
    """How many things Torch-Pruning removes as one, and which of them a root channel belongs to.

    With convolution or norm groups Torch-Pruning removes the same channel of every group; with attention heads the
    same dimension of every head, or a whole head.

    Gives the number of units, and the function from root channels to units.
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
    if prunes_heads(attention, pruner) and pruner.prune_head_dims:
        return n_channels, lambda roots: roots  # both ways at once: no unit but the channel fits
    if attention and not pruner.prune_head_dims:
        head_size = n_channels // max(pruner.num_heads[layer] for layer in attention)
        return n_channels // head_size, lambda roots: roots // head_size
    size = n_channels // repeats
    return size, lambda roots: roots % size


def _convolution_groups(module: Any) -> int:
    if isinstance(module, nn.modules.conv._ConvNd):
        return 1 if module.groups == module.out_channels else int(module.groups)
    return int(module.num_groups) if isinstance(module, nn.GroupNorm) else 1


def prunes_heads(attention: Sequence[nn.Module], pruner: tp.pruner.BasePruner) -> bool:
    """Whether Torch-Pruning will remove whole heads of these layers."""
    return bool(attention and pruner.prune_num_heads and pruner.get_target_head_pruning_ratio(attention[0]) > 0)


def group_name(group: tp.Group) -> str:
    """Name of the root layer; with "(input)" where Torch-Pruning starts at its inputs, as it does for attention."""
    graph, first = group._DG, group[0].dep
    name = str(graph._module2name[first.target.module])
    return name if graph.is_out_channel_pruning_fn(first.handler) else f"{name} (input)"


def channel_group_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> ChannelGroup:
    """Where the channels of a full dependency group are consumed, and which parameters go with them.

    One channel is what Torch-Pruning removes as one. Refused where no layer consumes them, or one whose axis of
    channels is not known.
    """
    name, (size, unit_of) = group_name(group), units_of(group, pruner)
    attention = head_layers(group, pruner)
    # every path through attention meets two places: query and key, or value and output projection; where keys and
    # values stay, one
    weight = 0.5 if attention and not shared_evenly(attention, pruner) else 1.0
    places = []
    unknown = []
    for item in group:
        module = item.dep.target.module
        produces_heads = any(module is layer for layer in attention)
        if not (_is_consumer(group._DG, item) or produces_heads):
            continue
        channels, roots = mapped(item)
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
            f"them would remove its scores. Add the layer to ignored_layers=[{module_expression(name)}] of the pruner"
        )
    return ChannelGroup(name, size, tuple(places), tuple(_parameter_places(group, unit_of)))


def producers_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> tuple[ChannelPlace, ...]:
    """Where the channels of a group come from, and which layers they pass.

    Gives none where one of its layers is not described.
    """
    unit_of = units_of(group, pruner)[1]
    places = []
    for item in group:
        module = item.dep.target.module
        if not isinstance(module, nn.Module) or not group._DG.is_out_channel_pruning_fn(item.dep.handler):
            continue
        if module not in group._DG._module2name:
            continue  # an operation, not a layer
        description, (channels, roots) = description_of(module), mapped(item)
        if description is None:
            return ()
        if len(channels):
            units = tuple(unit_of(roots).tolist())
            name = group._DG._module2name[module]
            places.append(ChannelPlace(name, "output", tuple(channels.tolist()), units, description.channel_axis))
    return tuple(places)


def _parameter_places(group: tp.Group, unit_of: Callable[[Any], Any]) -> Iterator[ParameterPlace]:
    graph = group._DG
    names = {id(parameter): name for name, parameter in graph.model.named_parameters()}
    for item in group:
        module = item.dep.target.module
        channels, roots = mapped(item)
        if not len(channels):
            continue
        units = tuple(unit_of(roots).tolist())
        if isinstance(module, nn.Parameter):
            yield ParameterPlace(names[id(module)], item.dep.target.pruning_dim, tuple(channels.tolist()), units)
            continue
        for parameter, axis, blocks in parameter_axes(module, consumer=_is_consumer(graph, item)):
            if id(parameter) not in names:
                continue  # computed from others: see obstacle
            size = parameter.shape[axis] // blocks
            for block in range(blocks):
                # a grouped convolution stores the inputs of one group only: each slice counts once
                slices = (channels % size + block * size).tolist()
                stored, of_units = zip(*dict.fromkeys(zip(slices, units, strict=True)), strict=True)
                yield ParameterPlace(names[id(parameter)], axis, stored, of_units)


def root_of(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> Root:
    """Where Torch-Pruning starts when it removes channels of this group."""
    dep = group[0].dep
    return Root(dep.target.module, dep.handler, units_of(group, pruner)[1](np.arange(len(group[0].idxs))))


def part_floors(channel_group: ChannelGroup) -> Iterator[Floor]:
    """Behind a split each layer consumes a part of the channels, and must keep one of them."""
    for place in channel_group.places:
        part = tuple(sorted(set(place.group_channels)))
        if place.side == "input" and len(part) < channel_group.size:
            yield Floor(channel_group.name, 1, part)
