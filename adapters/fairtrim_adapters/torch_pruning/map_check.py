"""Is the host's map of channels that of the network? One forward pass tells, before anything is pruned."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from fairtrim import ChannelGroup, ChannelPlace, UnsupportedModelError
from fairtrim.batches import class_scores, iterate_batches, model_device
from fairtrim.gates import map_consumed
from fairtrim.preservation import preserved_model, preserved_random_state

from .plan import PruningPlan

__all__ = ["check_map", "is_stream"]


def check_map(graph: tp.DependencyGraph, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]) -> None:
    """Make some channels of each group not-a-number where they are produced, and look where they are consumed.

    Half of the channels, drawn for each group, are spoilt. Every one of them that the host maps to a consumer must
    arrive there; and where a consumer still has clean channels of the group, no other may. Consumers then go on with
    zeros, so that one pass tells about all groups. A channel that the host takes for another (a channel shuffle, a
    concatenation along an axis that it misreads) would be scored, and removed, in place of it. Where nothing arrives,
    or everything does (behind a norm over channels), nothing is learned, and nothing refused.

    Args:
        graph: The host's dependency graph; its network is left as it was.
        plan: What the host is going to ask for.
        loader: Batches of (inputs, target[, sensitive]); a stream, which would lose its first, is left alone.
        options: ``forward_fn`` and ``output_transform``.

    Raises:
        UnsupportedModelError: The host's map is wrong.
    """
    if is_stream(loader):
        return
    model = graph.model
    modules = dict(model.named_modules(remove_duplicate=False))
    groups = {group.name: group for group in plan.groups if plan.producers.get(group.name)}
    spoilt_units = {group.name: _half(group) for group in groups.values()}
    arrived: dict[str, Tensor] = {}
    calling = {key: options.get(key) for key in ("forward_fn", "output_transform")}
    with preserved_random_state(loader), preserved_model(model), _preserved_attributes(model), ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        batches = iterate_batches(loader, model_device(model), max_batches=1, progress=False, allow_empty=True)
        batch = next(iter(batches), None)
        if batch is None:
            return  # the collector tells, unless other processes have samples
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
            class_scores(model, batch, calling["forward_fn"], calling["output_transform"], positions=True)
        except (AssertionError, FloatingPointError, ValueError):
            return  # a network that refuses not-a-number can't be asked; any other fault shows again when it is scored
    _compare(groups, spoilt_units, arrived)


def is_stream(loader: Any) -> bool:
    """Whether looking at the first batch would take it away.

    Args:
        loader: Any.

    Returns:
        True also where it can't be known.
    """
    if isinstance(loader, DataLoader):
        return isinstance(loader.dataset, IterableDataset)
    try:
        len(loader)
    except TypeError:  # also what the collector refuses, and a bar around a generator
        return True
    return isinstance(loader, Iterator) or iter(loader) is iter(loader)


def _half(group: ChannelGroup) -> set[int]:
    """Half of the channels, without a pattern that a permutation could keep."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    return set(torch.randperm(group.size, generator=generator)[: group.size // 2].tolist())


def _channels(place: ChannelPlace, units: set[int]) -> list[int]:
    return [c for c, unit in zip(place.channels, place.group_channels, strict=True) if unit in units]


@contextmanager
def _preserved_attributes(model: nn.Module) -> Iterator[None]:
    """Give modules back what they keep outside of buffers, such as a running mean in a plain attribute."""
    machinery = vars(nn.Module()).keys()
    before = []
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in machinery}
        tensors = [(t, t._version, t.detach().clone()) for t in own.values() if isinstance(t, Tensor)]
        before.append((module, own, tensors))
    try:
        yield
    finally:
        for module, own, tensors in before:
            for name in [name for name in vars(module) if name not in machinery and name not in own]:
                del vars(module)[name]
            vars(module).update(own)
            for tensor, version, value in tensors:
                if tensor._version != version:
                    with torch.no_grad():
                        tensor.copy_(value)


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
        if bool(args[0].isnan().any()) and not bool(args[0].isnan().all()):
            raise UnsupportedModelError(
                f"{name!r} is an nn.RMSNorm without weight over channels that would be pruned, and the host doesn't "
                "know it; make the pruner inside `with traceable(model) as pruners:` "
                "(fairtrim_adapters.torch_pruning.traceable), with customized_pruners=pruners"
            )

    return hook


def _compare(
    groups: Mapping[str, ChannelGroup], spoilt_units: Mapping[str, set[int]], arrived: Mapping[str, Tensor]
) -> None:
    places = [
        (name, place)
        for name, group in groups.items()
        for place in group.places
        if place.side == "input" and max(place.channels) < len(arrived.get(place.module, ()))
    ]
    found = {reader: set(which.nonzero().flatten().tolist()) for reader, which in arrived.items()}
    explained: dict[str, set[int]] = {}  # spoilt on purpose, or all at once by a norm over a group's channels
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
                f"the host maps the channels of {name!r} to the wrong inputs of {place.module!r}: when the channels "
                f"{sorted(wanted)[:8]} of it should change, {sorted(missing)[:8]} of them don't, and "
                f"{sorted(strays)[:8]} do besides. An operation between them moves channels (a channel shuffle, a "
                "flatten, a concatenation along an axis that the host misreads); add the layers that produce them to "
                f"ignored_layers, e.g. model.{name}"
            )
