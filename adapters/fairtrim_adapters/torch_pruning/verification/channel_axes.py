"""Where a layer with a forward pass of its own keeps its channels: one class may serve several layouts.

A LayerNorm over images may permute its input, normalise the last axis and permute back; to Torch-Pruning, and by its
class, its channels lie on the last axis. One pass through the layer tells: a single number of its weight or bias is
changed, and the place where its output changes is the axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.func import functional_call

from fairtrim import ChannelPlace, UnsupportedModelError
from fairtrim.data.batches import Batch
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.precision import full_precision
from fairtrim.preservation import undisturbed
from fairtrim_adapters.torch_pruning.graph.dependency_groups import passes_on
from fairtrim_adapters.torch_pruning.graph.layers import describing_type, parameter_axes
from fairtrim_adapters.torch_pruning.graph.plan import PruningPlan

__all__ = ["observed_axes", "with_axes"]

Axes = Mapping[tuple[str, str], int]
"""(layer, "input" or "output") -> axis of the channels."""


def observed_axes(
    graph: tp.DependencyGraph, plan: PruningPlan, batch: Batch, network: ScoredNetwork
) -> dict[tuple[str, str], int]:
    """Look at every layer of the plan whose class has a forward pass of its own.

    Gives the axes of these layers: −1 for the last, else counted from the front. The network is left as it was.
    """
    modules = dict(graph.model.named_modules(remove_duplicate=False))
    places = {(place.module, place.side): place for place in _places(plan)}
    names = dict.fromkeys(name for name, _ in places if _has_own_forward(modules[name]))
    seen: dict[str, tuple[Any, ...]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                seen.setdefault(name, (tuple(map(_detached, args)), output.detach()))

        return hook

    if not names:
        return {}
    with undisturbed(graph.model), torch.enable_grad(), full_precision(), ExitStack() as stack:
        for name in names:
            stack.callback(modules[name].register_forward_hook(note(name)).remove)
        network.output(batch.inputs, index=batch.index)
    axes = {}
    with undisturbed(graph.model), torch.no_grad(), full_precision():
        for name, (args, output) in seen.items():
            module = modules[name]
            through = passes_on(graph, module)
            for side in ("input", "output"):
                place = places.get((name, side))
                if place is None:
                    continue
                size = (graph.get_out_channels if side == "output" or through else graph.get_in_channels)(module)
                found = _axis(module, args, output, int(size), consumed=side == "input" and not through)
                if found is None:
                    if _size_at(args[0] if side == "input" else output, place.channel_axis) == size:
                        continue
                    raise UnsupportedModelError(
                        f"{name!r} is a {type(module).__name__} with a forward pass of its own, and which axis of its "
                        f"{side}, {tuple((args[0] if side == 'input' else output).shape)}, is that of its {size} "
                        "channels can't be told; say it with fairtrim_adapters.torch_pruning.describe_layer("
                        f"{type(module).__name__}, channel_axis=...), or ignore the layers that produce them"
                    )
                axes[name, side] = -1 if found == (output if side == "output" else args[0]).ndim - 1 else found
    return axes


def with_axes(plan: PruningPlan, axes: Axes) -> PruningPlan:
    """A plan whose layers keep their channels where they were seen."""

    def moved(places: Iterable[ChannelPlace]) -> tuple[ChannelPlace, ...]:
        return tuple(replace(p, channel_axis=axes.get((p.module, p.side), p.channel_axis)) for p in places)

    if not axes:
        return plan
    return replace(
        plan,
        groups=tuple(replace(group, places=moved(group.places)) for group in plan.groups),
        producers={name: moved(places) for name, places in plan.producers.items()},
    )


def _places(plan: PruningPlan) -> Iterable[ChannelPlace]:
    for group in plan.groups:
        yield from group.places
    for places in plan.producers.values():
        yield from places


def _has_own_forward(module: nn.Module) -> bool:
    described = describing_type(module)
    defining = next(base for base in type(module).__mro__ if "forward" in vars(base))
    of_torch = defining.__module__.startswith("torch.nn")
    return described is not None and issubclass(defining, described) and defining is not described and not of_torch


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _size_at(tensor: Tensor, axis: int) -> int | None:
    return tensor.shape[axis] if -tensor.ndim <= axis < tensor.ndim else None


def _axis(module: nn.Module, args: tuple[Any, ...], output: Tensor, size: int, *, consumed: bool) -> int | None:
    """The axis of the channels, or None where the layer's parameters don't tell."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter, axis, blocks in reversed(parameter_axes(module, consumer=consumed)):  # a bias tells most plainly
        if blocks > 1 or id(parameter) not in names or parameter.shape[axis] != size:
            continue
        far = 1 + float(output.abs().max())  # beside what rounding does elsewhere
        for channel in dict.fromkeys((size - 1, 0, size // 2)):
            changed = parameter.detach().clone()
            changed.select(axis, channel).mul_(0) if consumed else changed.select(axis, channel).add_(far)
            other = functional_call(module, {names[id(parameter)]: changed}, args)
            if consumed:
                found = _axes_of_input(module, args, other, size, channel)
            else:
                found = _axes_of_change((other - output).abs() > _half_of_the_digits(output) * far, size, channel)
            if len(found) == 1:
                return found[0]
    return None


def _half_of_the_digits(tensor: Tensor) -> float:
    return math.sqrt(torch.finfo(tensor.dtype).eps)


def _axes_of_change(changed: Tensor, size: int, channel: int) -> list[int]:
    """Axes along which one channel has changed and no other."""
    found = []
    for axis in range(1, changed.ndim):
        along = changed.movedim(axis, 0).flatten(1).any(1)
        if len(along) == size and along.nonzero().flatten().tolist() == [channel]:
            found.append(axis)
    return found


def _axes_of_input(module: nn.Module, args: tuple[Any, ...], wanted: Tensor, size: int, channel: int) -> list[int]:
    """Axes on which a channel of zeros does what zeros for its weights do."""
    found = []
    tolerance = _half_of_the_digits(wanted)
    for axis in range(1, args[0].ndim):
        if args[0].shape[axis] != size:
            continue
        closed = args[0].index_fill(axis, torch.tensor([channel], device=args[0].device), 0)
        output = module(closed, *args[1:])
        if torch.allclose(output, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max())):
            found.append(axis)
    return found
