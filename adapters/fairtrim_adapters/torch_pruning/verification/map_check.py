"""Is Torch-Pruning's map of channels that of the network? One forward pass tells, before anything is pruned."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, UnsupportedModelError
from fairtrim.damage.gates import map_consumed
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import undisturbed
from fairtrim_adapters.torch_pruning.graph.dependency_groups import module_expression, passes_on
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

__all__ = ["check_map"]


def check_map(
    graph: tp.DependencyGraph, plan: PruningPlan, batch: Batch, network: ScoredNetwork, names: Collection[str]
) -> None:
    """Make some channels of each group not-a-number where they are produced, and look where they are consumed.

    Half of the channels, drawn for each group, are spoilt. Every one of them that Torch-Pruning maps to a consumer must
    arrive there; and where a consumer still has clean channels of the group, no other may. Consumers then go on with
    zeros, so that one pass tells about all groups; layers that pass channels on (norms) are looked at like consumers,
    and spoil their outputs anew. A channel that Torch-Pruning takes for another (a channel shuffle, a concatenation
    along an axis that it misreads) would be scored, and removed, in place of it. Where nothing arrives, or everything
    does (behind an operation that mixes channels), nothing is learned, and nothing refused: ``rehearsal`` finds out.
    """
    model = graph.model
    modules = dict(model.named_modules(remove_duplicate=False))
    groups = {group.name: _with_norms(graph, plan, group) for group in plan.groups if group.name in names}
    groups = {name: group for name, group in groups.items() if plan.producers.get(name)}
    spoilt_units = {group.name: _half(group) for group in groups.values()}
    arrived: dict[str, Tensor] = {}
    with undisturbed(model), torch.enable_grad(), ExitStack() as stack:
        for name in groups:
            for place in plan.producers[name]:
                hook = _spoil(place, _channels(place, spoilt_units[name]))
                stack.callback(modules[place.module].register_forward_hook(hook).remove)
        readers = {p.module: p for group in groups.values() for p in group.places if p.side == "input"}
        for name, place in readers.items():
            note = _note(place, arrived)
            stack.callback(modules[name].register_forward_pre_hook(note, with_kwargs=True).remove)
        for name, module in modules.items():
            norm = getattr(nn, "RMSNorm", ())
            if isinstance(module, norm) and module.weight is None and type(module) not in graph.CUSTOMIZED_PRUNERS:
                stack.callback(module.register_forward_pre_hook(_refuse_norm(name)).remove)
        try:
            network.scores(batch, positions=True)
        except (AssertionError, FloatingPointError, ValueError):
            return  # a network that refuses not-a-number can't be asked; any other fault shows again when it is scored
    _compare(groups, spoilt_units, arrived)


def _with_norms(graph: tp.DependencyGraph, plan: PruningPlan, group: ChannelGroup) -> ChannelGroup:
    """The group with the layers that pass its channels on, as if they consumed them."""
    modules = dict(graph.model.named_modules(remove_duplicate=False))
    norms = (place for place in plan.producers.get(group.name, ()) if passes_on(graph, modules[place.module]))
    return replace(group, places=(*group.places, *(replace(norm, side="input") for norm in norms)))


def _half(group: ChannelGroup) -> set[int]:
    """Half of the channels, without a pattern that a permutation could keep."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    return set(torch.randperm(group.size, generator=generator, device="cpu")[: group.size // 2].tolist())


def _channels(place: ChannelPlace, units: set[int]) -> list[int]:
    return [c for c, unit in zip(place.channels, place.group_channels, strict=True) if unit in units]


def _spoil(place: ChannelPlace, channels: list[int]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        if not channels or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return None
        index = torch.tensor(channels, device=tensor.device)
        tensor = tensor.index_fill(place.channel_axis, index, float("nan"))
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    return hook


def _note(place: ChannelPlace, arrived: dict[str, Tensor]) -> Callable[..., Any]:
    """Note which input channels of a layer have become not-a-number, and let it see zeros there."""

    def clean(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 2:
            return value
        spoilt = value.isnan()
        if -value.ndim <= place.channel_axis < value.ndim:
            found = spoilt.movedim(place.channel_axis, 0).flatten(1).any(1)
            before = arrived.get(place.module)
            arrived[place.module] = found if before is None or before.shape != found.shape else before | found
        return value.masked_fill(spoilt, 0)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return map_consumed(module, args, kwargs, clean)

    return hook


def _refuse_norm(name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        spoilt = args[0].isnan()
        if bool(spoilt.any() & ~spoilt.all()):
            raise UnsupportedModelError(
                f"{name!r} is an nn.RMSNorm without weight over channels that would be pruned, and Torch-Pruning "
                "doesn't know it; make the pruner inside `with traceable(model) as pruners:` "
                "(fairtrim_adapters.torch_pruning.traceable), with customized_pruners=pruners"
            )

    return hook


def _members(arrived: Mapping[str, Tensor]) -> dict[str, set[int]]:
    """The places of what is true, of all readers in one wait."""
    if not arrived:
        return {}
    flags = torch.split(torch.cat(list(arrived.values())).cpu(), [len(which) for which in arrived.values()])
    return {name: set(which.nonzero().flatten().tolist()) for name, which in zip(arrived, flags, strict=True)}


def _compare(
    groups: Mapping[str, ChannelGroup], spoilt_units: Mapping[str, set[int]], arrived: Mapping[str, Tensor]
) -> None:
    places = [
        (name, place)
        for name, group in groups.items()
        for place in group.places
        if place.side == "input" and max(place.channels) < len(arrived.get(place.module, ()))
    ]
    found = _members(arrived)
    explained: dict[str, set[int]] = {}  # spoilt on purpose, or all at once by an operation that mixes channels
    for name, place in places:
        mine = set(place.channels)
        whole = mine if mine <= found[place.module] else set(_channels(place, spoilt_units[name]))
        explained.setdefault(place.module, set()).update(whole)
    for name, place in places:
        here, mine = found[place.module], set(place.channels)
        wanted = set(_channels(place, spoilt_units[name]))
        strays, missing = here - explained[place.module], wanted - here
        if missing and not strays and not here & mine:
            continue  # nothing arrives: an activation made numbers of all of them
        if missing or (strays and mine - here):
            raise UnsupportedModelError(
                f"Torch-Pruning maps the channels of {name!r} to the wrong inputs of {place.module!r}: when the "
                f"channels {sorted(wanted)[:8]} of it should change, {sorted(missing)[:8]} of them don't, and "
                f"{sorted(strays)[:8]} do besides. An operation between them moves channels (a channel shuffle, a "
                "flatten, a concatenation along an axis that Torch-Pruning misreads); add the layers that produce them "
                f"to ignored_layers, e.g. {module_expression(name)}"
            )
