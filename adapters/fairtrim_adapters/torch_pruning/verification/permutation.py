"""Does it matter in which order channels stand? To a norm over them it does not; to a Fourier transform it does.

The channels of a group are permuted where layers give them out, and put in order again where layers read them. If the
scores are as before, all that happens between treats channels alike (activations, norms, softmax, means); what does not
(a transform, a cumulative sum, a matrix) makes of the channels something that gates can't describe.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import ChannelGroup
from fairtrim.damage.gates import map_consumed
from fairtrim_adapters.torch_pruning.graph.dependency_groups import passes_on
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

__all__ = ["permuted_channels"]


@contextmanager
def permuted_channels(graph: tp.DependencyGraph, plan: PruningPlan, group: ChannelGroup) -> Iterator[None]:
    """Permute the channels of a group between the layers that give them out and those that read them."""
    modules = dict(graph.model.named_modules(remove_duplicate=False))
    moved = _permutation(group, plan)
    owners: list[tuple[dict[str, Any], str, Any]] = []
    with ExitStack() as stack:
        for place in plan.producers[group.name]:
            module = modules[place.module]
            there = _places_after(moved, place.channels, place.group_channels)
            if passes_on(graph, module):
                back = module.register_forward_pre_hook(_before(_inverse(there), place.channel_axis), with_kwargs=True)
                stack.callback(back.remove)
            stack.callback(module.register_forward_hook(_after(there, place.channel_axis)).remove)
        for place in group.places:
            if place.side == "input":
                back = _inverse(_places_after(moved, place.channels, place.group_channels))
                hook = _before(back, place.channel_axis)
                handle = modules[place.module].register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        bare = set(graph._param_to_name.values())
        for of_parameter in group.parameters:
            if of_parameter.parameter in bare:
                owner, _, name = of_parameter.parameter.rpartition(".")
                held = modules[owner]._parameters
                value = held[name]
                assert value is not None
                there = _places_after(moved, of_parameter.channels, of_parameter.group_channels)
                owners.append((held, name, value))
                held[name] = nn.Parameter(_permuted(value.detach(), there, of_parameter.axis), value.requires_grad)
        try:
            yield
        finally:
            for held, name, value in owners:
                held[name] = value


def _permutation(group: ChannelGroup, plan: PruningPlan) -> list[int]:
    """Where each channel goes: anywhere among those that the same layers read."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    parts = [set(f.channels) for f in plan.floors if f.layer == group.name and f.channels is not None]
    alike: dict[tuple[bool, ...], list[int]] = {}
    for unit in range(group.size):
        alike.setdefault(tuple(unit in part for part in parts), []).append(unit)
    moved = list(range(group.size))
    for units in alike.values():
        order = torch.randperm(len(units), generator=generator, device="cpu").tolist()
        if order == sorted(order):
            order = order[1:] + order[:1]
        for unit, k in zip(units, order, strict=True):
            moved[unit] = units[k]
    return moved


def _places_after(moved: Sequence[int], channels: Sequence[int], units: Sequence[int]) -> dict[int, int]:
    """Channel -> channel: the k-th channel of a unit goes where the k-th of the other one stands."""
    of_unit: dict[int, list[int]] = {}
    for channel, unit in zip(channels, units, strict=True):
        of_unit.setdefault(unit, []).append(channel)
    return {
        channel: other
        for unit, own in of_unit.items()
        for channel, other in zip(own, of_unit.get(moved[unit], own), strict=True)
    }


def _inverse(there: dict[int, int]) -> dict[int, int]:
    return {other: channel for channel, other in there.items()}


def _permuted(value: Tensor, there: dict[int, int], axis: int) -> Tensor:
    source = list(range(value.shape[axis]))
    for channel, other in there.items():
        source[other] = channel
    return value.index_select(axis, torch.tensor(source, device=value.device))


def _before(there: dict[int, int], axis: int) -> Callable[..., Any]:
    def move(value: Any) -> Any:
        wide = isinstance(value, Tensor) and value.ndim > 1 and max(there) < value.shape[axis]
        return _permuted(value, there, axis) if wide else value

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return map_consumed(module, args, kwargs, move)

    return hook


def _after(there: dict[int, int], axis: int) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        moved = _permuted(first, there, axis)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
