"""Why a dependency group is left as it is: gates can't describe it, or Torch-Pruning prunes it wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch_pruning as tp
from torch import nn

from fairtrim import ChannelGroup

from .corrections import output_shape
from .dependency_groups import head_layers, mapped, module_expression, shared_evenly, units_of
from .head_counts import HEAD_SIZES, HEADS
from .layers import parameter_axes
from .shared_heads import is_shared

__all__ = ["fewest_units", "obstacle"]


def obstacle(of_host: tp.Group, group: ChannelGroup, pruner: tp.pruner.BasePruner | None) -> str:
    """The first reason why a group can't be scored or pruned, with what can be done; else an empty string."""
    unit_of = units_of(of_host, pruner)[1]
    for reasons in (
        _unmapped(of_host, pruner),
        _unknown_heads(of_host, pruner),
        _padded(of_host),
        _wrong_for_the_host(of_host),
        _unequal_parts(of_host, group.name, unit_of),
        _uneven_patterns(of_host, unit_of),
        _uncovered(of_host, group),
    ):
        for reason in reasons:
            return reason
    return ""


_PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin", "c_attn", "qkv")
"""Names by which attention is known where Torch-Pruning is not told of its heads: those of timm and Hugging Face."""

_PARTS = tp.ops.OPTYPE.CONCAT, tp.ops.OPTYPE.SPLIT, tp.ops.OPTYPE.SLICE, tp.ops.OPTYPE.UNBIND


def _name(group: tp.Group, layer: Any) -> str:
    return str(group._DG._module2name[layer])


def _unknown_heads(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> Iterator[str]:
    """Without ``num_heads`` other dimensions would go from each head, and what is left would be cut into heads anew."""
    if pruner is None:
        return
    graph = group._DG
    modules = dict(graph.model.named_modules())
    names = {module: name for name, module in modules.items()}
    for item in group:
        layer = item.dep.target.module
        if layer not in names or not graph.is_out_channel_pruning_fn(item.dep.handler):
            continue
        parent, _, name = names[layer].rpartition(".")
        if name not in _PROJECTIONS or layer in pruner.num_heads or layer in pruner.out_channel_groups:
            continue
        if any(hasattr(modules.get(parent), attribute) for attribute in (*HEADS, *HEAD_SIZES)):
            yield (
                f"{names[layer]!r} makes the heads of {parent or 'the network'}, of which Torch-Pruning is not told; "
                "give the pruner num_heads={layer: number of heads} for query, key and value "
                "(fairtrim_adapters.huggingface.pruning_options finds them)"
            )


def _unmapped(group: tp.Group, pruner: tp.pruner.BasePruner | None) -> Iterator[str]:
    attention = head_layers(group, pruner)
    layers = [
        item.dep.target.module
        for item in group
        if any(item.dep.target.module is layer for layer in attention) and None in item.root_idxs
    ]
    if names := [_name(group, layer) for layer in layers if not is_shared(group._DG, layer)]:
        yield (
            f"Torch-Pruning doesn't map the channels of {names} (attention in which heads share keys and values; "
            "fairtrim_adapters.huggingface.pruning_options maps those of Hugging Face)"
        )
    if pruner is not None and pruner.global_pruning and shared_evenly(attention, pruner):
        yield (
            "Torch-Pruning takes other query heads than those that rank last, where they share keys and values and all "
            "layers are ranked together; leave global_pruning out, or prune 'heads' in place of 'query_heads'"
        )


def _padded(group: tp.Group) -> Iterator[str]:
    """Channels of zeros that Torch-Pruning takes for an elementwise operation: it maps the others to wrong places."""
    for item in group:
        function = item.dep.target.grad_fn
        pad: Sequence[int] = getattr(function, "_saved_pad", ())
        shape = output_shape(function) if pad else None
        if shape is None or not item.dep.target.name.startswith("_ElementWiseOp"):
            continue
        for axis in (1, len(shape) - 1):
            place = 2 * (len(shape) - 1 - axis)  # pads are listed from the last axis
            added = sum(pad[place : place + 2])
            if added and len(item.idxs) in (shape[axis], shape[axis] - added):
                yield (
                    f"zeros are added beside its channels (F.pad with {added} channels, as in shortcuts of residual "
                    "networks), and Torch-Pruning doesn't know where they lie; make the shortcut a convolution of size "
                    "1, or add these layers to ignored_layers"
                )


def _wrong_for_the_host(group: tp.Group) -> Iterator[str]:
    """Layers that Torch-Pruning prunes into something else, or not at all."""
    graph = group._DG
    known = {id(parameter) for parameter in graph.model.parameters()}
    in_parts = any(item.dep.target.type in _PARTS for item in group)
    for item in group:
        module = item.dep.target.module
        channels, _ = mapped(item)
        if isinstance(module, nn.Parameter):
            size, axis = module.shape[item.dep.target.pruning_dim], item.dep.target.pruning_dim
            if len(channels) and channels.max() >= size:
                yield (
                    f"Torch-Pruning maps channel {channels.max()} to axis {axis} of the parameter "
                    f"{graph._param_to_name[module]!r}, which has {size} entries there; tell Torch-Pruning the axis of "
                    "its channels: unwrapped_parameters=[(parameter, axis)]"
                )
            continue
        if module not in graph._module2name or not len(channels):
            continue
        name, inwards = _name(group, module), item.dep.handler.__name__ == "prune_in_channels"
        sizes = [getattr(module, k) for k in ("in_channels", "in_features", "input_size") if hasattr(module, k)]
        present = sizes[0] if sizes else None
        if inwards and present is not None and channels.max() >= present:
            yield (
                f"Torch-Pruning maps channel {channels.max()} to {name!r}, which has {present} inputs: it takes an "
                "operation between them (a pixel shuffle, a transpose, a reshape) for one that leaves channels where "
                "they are, or the network has changed since the pruner was made"
            )
        elif inwards and present is not None and len(set(channels.tolist())) < present and not in_parts:
            yield (
                f"Torch-Pruning maps {len(channels)} channels to the {present} inputs of {name!r}: an operation "
                "between them (a product with a bare matrix, a reshape) makes others of them"
            )
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
            yield (
                f"{name!r} normalises {len(module.normalized_shape)} axes, and Torch-Pruning prunes the last of them, "
                "whichever holds the channels"
            )
        if isinstance(module, nn.RNNBase) and not inwards:
            yield (
                f"{name!r} feeds its outputs back to itself, which gates at its readers don't see, and Torch-Pruning "
                "prunes its recurrent weights along wrong axes; add it to ignored_layers"
            )
        convolution = isinstance(module, nn.modules.conv._ConvNd)
        if convolution and 1 < module.groups == module.out_channels < module.in_channels:
            yield (
                f"{name!r} has one output for each of its {module.groups} convolution groups and several inputs, and "
                "Torch-Pruning takes it for a depthwise convolution"
            )
        computed = [p for p, _, _ in parameter_axes(module, consumer=inwards) if id(p) not in known]
        if computed:
            yield (
                f"a weight of {name!r} is computed from other parameters (weight_norm, a parametrization, a mask), "
                "which Torch-Pruning doesn't prune; make it plain first, e.g. by "
                "torch.nn.utils.parametrize.remove_parametrizations, or torch.nn.utils.prune.remove(layer, 'weight')"
            )


def _unequal_parts(group: tp.Group, name: str, unit_of: Callable[[Any], Any]) -> Iterator[str]:
    """A chunk makes equal parts, whatever is left; its readers must lose as many channels each."""
    for item in group:
        node = item.dep.target
        if (
            node.type != tp.ops.OPTYPE.SPLIT
            or not node.module.split_sizes
            or hasattr(node.grad_fn, "_saved_split_sizes")
        ):
            continue
        sizes = node.module.split_sizes
        units = _units_by_channel(item, unit_of, sum(sizes))
        parts = np.split(units, np.cumsum(sizes)[:-1])
        if any(not np.array_equal(part, parts[0]) for part in parts[1:]) and (units >= 0).all():
            yield (
                f"chunk() cuts its channels into {len(sizes)} equal parts, and Torch-Pruning would take a different "
                "number from each; take the same ones from each with "
                f"out_channel_groups={{{module_expression(name)}: {len(sizes)}}}, or cut by the sizes of the readers: "
                "x.split([a.in_channels, b.in_channels], 1)"
            )


def _units_by_channel(item: Any, unit_of: Callable[[Any], Any], size: int) -> npt.NDArray[np.int64]:
    """Unit of each channel of an item, −1 where it belongs to another group."""
    channels, roots = mapped(item)
    units = np.full(max(size, int(channels.max(initial=-1)) + 1), -1, dtype=np.int64)
    units[channels] = unit_of(roots)
    return units


def _uneven_patterns(group: tp.Group, unit_of: Callable[[Any], Any]) -> Iterator[str]:
    """Layers with groups of channels must lose the same channels of every group."""
    for item in group:
        module = item.dep.target.module
        repeats, size, kind, remedy = 1, 0, "", ""
        if (
            isinstance(module, nn.modules.conv._ConvNd)
            and not module.groups == module.in_channels == module.out_channels
        ):
            inwards = item.dep.handler.__name__ == "prune_in_channels"
            repeats, size = module.groups, module.in_channels if inwards else module.out_channels
            kind = "convolution groups"
        elif isinstance(module, nn.GroupNorm):
            repeats, size, kind = module.num_groups, module.num_channels, "groups of channels"
        elif isinstance(module, nn.MultiheadAttention):
            repeats, size, kind = module.num_heads, module.embed_dim, "heads"
            remedy = (
                f"; tell Torch-Pruning with out_channel_groups={{{module_expression(_name(group, module))}: {repeats}}}"
            )
        if repeats == 1:
            continue
        rows = _units_by_channel(item, unit_of, size)
        if len(rows) % repeats or (rows.reshape(repeats, -1) != rows[: len(rows) // repeats]).any():
            yield (
                f"{_name(group, module)!r} has {repeats} {kind}, and Torch-Pruning would not take the same channels "
                f"from each{remedy}"
            )


def _uncovered(of_host: tp.Group, group: ChannelGroup) -> Iterator[str]:
    covered: set[int] = set()
    for place in group.places:
        if len(set(place.channels)) < len(place.channels):
            yield f"several of its channels share one input channel of {place.module!r} (a reshape in between)"
        covered.update(place.group_channels)
    if len(covered) < group.size:
        reason = f"Torch-Pruning doesn't map {group.size - len(covered)} of its {group.size} channels to any consumer"
        if any(item.dep.target.type == tp.ops.OPTYPE.SPLIT for item in of_host):
            reason += (
                "; where the parts of a chunk meet again, say that they go together: "
                f"out_channel_groups={{{module_expression(group.name)}: number of parts}}"
            )
        yield reason


def fewest_units(group: tp.Group) -> int:
    """How many units a group must keep: a grouped convolution of one output each is depthwise to Torch-Pruning."""
    grouped = (
        item.dep.target.module
        for item in group
        if item.dep.handler.__name__ == "prune_out_channels"
        and isinstance(item.dep.target.module, nn.modules.conv._ConvNd)
    )
    return 2 if any(1 < layer.groups < layer.out_channels for layer in grouped) else 1
