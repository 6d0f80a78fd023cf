"""Is the host's map of channels that of the network? One forward pass tells, before anything is pruned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import ChannelGroup, ChannelPlace, UnsupportedModelError
from fairtrim.batches import class_scores, iterate_batches, model_device
from fairtrim.preservation import preserved_model, preserved_random_state

from .plan import PruningPlan

__all__ = ["check_map"]


def check_map(graph: tp.DependencyGraph, plan: PruningPlan, loader: Iterable[Any], options: Mapping[str, Any]) -> None:
    """Make every other channel of each group not-a-number where it is produced, and look where it is consumed.

    Every channel that the host maps to a consumer must have become not-a-number there; and where a consumer still has
    clean channels of the group, no other may have. Consumers then go on with zeros, so that one pass tells about all
    groups. A channel that the host takes for another (a channel shuffle, a concatenation along an axis that it
    misreads) would be scored, and removed, in place of it.

    Args:
        graph: The host's dependency graph; its network is left as it was.
        plan: What the host is going to ask for.
        loader: Batches of (inputs, target[, sensitive]); an iterator, which would lose its first, is left alone.
        options: ``forward_fn`` and ``output_transform``.

    Raises:
        UnsupportedModelError: The host's map is wrong.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Iterator):
        return  # the collector refuses the one; the other would lose its first batch
    model = graph.model
    modules = dict(model.named_modules(remove_duplicate=False))
    groups = {group.name: group for group in plan.groups if plan.producers.get(group.name)}
    tainted: dict[str, Tensor] = {}
    forward = {key: options.get(key) for key in ("forward_fn", "output_transform")}
    with preserved_random_state(loader), preserved_model(model), torch.no_grad(), ExitStack() as stack:
        batch = next(iter(iterate_batches(loader, model_device(model), max_batches=1, progress=False)))
        for name in groups:
            for place in plan.producers[name]:
                stack.callback(modules[place.module].register_forward_hook(_taint(place)).remove)
        readers = {p.module: p for group in groups.values() for p in group.places if p.side == "input"}
        for name, place in readers.items():
            hook = _clean(place, tainted)
            stack.callback(modules[name].register_forward_pre_hook(hook, with_kwargs=True).remove)
        for name, module in modules.items():
            norm = getattr(nn, "RMSNorm", ())
            if isinstance(module, norm) and module.weight is None and type(module) not in graph.CUSTOMIZED_PRUNERS:
                stack.callback(module.register_forward_pre_hook(_refuse_norm(name)).remove)
        try:
            class_scores(model, batch, forward["forward_fn"], forward["output_transform"], positions=True)
        except (AssertionError, FloatingPointError, ValueError):
            return  # a network that refuses not-a-number can't be asked; any other fault shows again when it is scored
    chosen: dict[str, set[int]] = {}
    for group in groups.values():
        for place in group.places:
            chosen.setdefault(place.module, set()).update(_chosen(place))
    for group in groups.values():
        _check_group(group, tainted, chosen)


def _chosen(place: ChannelPlace) -> list[int]:
    """Channels of every other unit."""
    return [c for c, unit in zip(place.channels, place.group_channels, strict=True) if unit % 2]


def _taint(place: ChannelPlace) -> Callable[..., Any]:
    channels = _chosen(place)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        if not channels or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            return None
        index = torch.tensor(channels, device=tensor.device)
        tensor = tensor.index_fill(place.channel_axis, index, float("nan"))
        return (tensor, *output[1:]) if isinstance(output, tuple) else tensor

    return hook


def _clean(place: ChannelPlace, tainted: dict[str, Tensor]) -> Callable[..., Any]:
    """Note which input channels of a layer have become not-a-number, and let it see zeros there."""

    def clean(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        spoilt = value.isnan()
        if -value.ndim <= place.channel_axis < value.ndim:
            found = spoilt.movedim(place.channel_axis, 0).flatten(1).any(1)
            before = tainted.get(place.module)
            tainted[place.module] = found if before is None or before.shape != found.shape else before | found
        return value.masked_fill(spoilt, 0)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(map(clean, args)), {key: clean(value) for key, value in kwargs.items()}

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


def _check_group(group: ChannelGroup, tainted: Mapping[str, Tensor], of_all: Mapping[str, set[int]]) -> None:
    for place in group.places:
        spoilt = tainted.get(place.module)
        if place.side != "input" or spoilt is None or max(place.channels) >= len(spoilt):
            continue
        found, chosen = set(spoilt.nonzero().flatten().tolist()), set(_chosen(place))
        # a norm over channels spoils them all, and an activation may turn all into numbers, which tells nothing
        if not found:
            continue
        if chosen - found or (found - of_all[place.module] and set(place.channels) - found):
            raise UnsupportedModelError(
                f"the host maps the channels of {group.name!r} to the wrong inputs of {place.module!r}: when "
                f"channels {sorted(chosen)[:8]} of it should change, {sorted(found)[:8]} do. An "
                "operation between them moves channels (a channel shuffle, a flatten, a concatenation along an axis "
                f"that the host misreads); add the layers that produce them to ignored_layers, e.g. model.{group.name}"
            )
