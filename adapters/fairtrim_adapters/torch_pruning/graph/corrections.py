"""Where Torch-Pruning 1.6's graph or its pruning functions are wrong, put right on the graph of one pruner.

Nothing of Torch-Pruning is patched globally: what is replaced belongs to one dependency graph.
``docs/torch_pruning.md`` lists the faults.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch_pruning as tp
from torch import nn
from torch_pruning.dependency import index_mapping, shape_infer

__all__ = ["PruningFunction", "correct_graph", "correct_group", "correct_pruner", "output_shape"]

_FAR = 100  # Torch-Pruning's own bound: axes from the back are saved as huge unsigned numbers


def correct_graph(graph: tp.DependencyGraph) -> bool:
    """Bring a graph in order; after each step again.

    Gives whether channels are mapped differently now, so that groups made before are wrong.
    """
    changed = _order_splits(graph)
    for node in graph.module2node.values():
        if node.type == tp.ops.OPTYPE.SPLIT:
            changed |= _map_split(graph, node)
            if node.module.split_sizes is not None:
                # Torch-Pruning updates the sizes after a step, and sets the offsets on the wrong object
                offsets = [0, *np.cumsum(node.module.split_sizes).tolist()]
                changed |= node.module.offsets != offsets
                node.module.offsets = offsets
        elif node.type == tp.ops.OPTYPE.CONCAT:
            changed |= _map_concatenation(graph, node)
        elif node.type == tp.ops.OPTYPE.RESHAPE:
            changed |= _map_flatten(graph, node)
        elif node.type == tp.ops.OPTYPE.ELEMENTWISE:
            changed |= _map_as_told(node)
    _replace_functions(graph)
    return changed


def correct_pruner(pruner: tp.pruner.BasePruner) -> None:
    """Count heads from those that there were at first, as is done for channels, and for heads in global pruning.

    Torch-Pruning 1.6 takes the share that should be gone by a step from the heads that are still there, so that of 8
    heads 4 steps to a ratio of .5 leave 1. Changed on this pruner only.
    """
    if not isinstance(pruner.get_target_head_pruning_ratio, _RatioOfHeads):
        pruner.get_target_head_pruning_ratio = _RatioOfHeads(pruner)


class _RatioOfHeads:
    """The share of the present heads that leaves the number that the step asks for."""

    def __init__(self, pruner: tp.pruner.BasePruner) -> None:
        self._pruner, self._of_host = pruner, pruner.get_target_head_pruning_ratio

    def __call__(self, module: nn.Module) -> float:
        ratio = float(self._of_host(module))
        present = int(self._pruner.num_heads[module])
        if self._pruner.global_pruning or present < 1:
            return ratio
        first = int(self._pruner.init_num_heads.get(module, present))
        surplus = present - (first - math.ceil(ratio * first - 1e-9))
        return max(0.0, (surplus - 1e-6) / present)  # Torch-Pruning rounds up


# Maps of channels ---------------------------------------------------------------------------------------------


def _order_splits(graph: tp.DependencyGraph) -> bool:
    """Put the outputs of a split in the order of its parts.

    Torch-Pruning 1.6 lists them as its walk from the network's output meets them, so that the channels of one part were
    mapped to the consumers of another. Left alone where a consumer takes several parts.
    """
    changed = False
    for node in graph.module2node.values():
        if node.type != tp.ops.OPTYPE.SPLIT:
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


class _PartOfSplit:
    """Maps channels into or out of one part of a split, by its sizes at the time of the call."""

    def __init__(self, node: Any, part: int, *, reverse: bool) -> None:
        self._node, self._part, self._reverse = node, part, reverse

    def __call__(self, idxs: Any) -> Any:
        offsets = [0, *np.cumsum(self._node.module.split_sizes).tolist()]
        mapping = index_mapping._SplitIndexMapping(offsets[self._part : self._part + 2], reverse=self._reverse)
        return mapping(idxs)


class _PartOfConcatenation:
    """Maps channels into or out of one part of a concatenation that also holds tensors that no layer makes."""

    def __init__(self, graph: tp.DependencyGraph, node: Any, part: int, *, before: int, reverse: bool) -> None:
        self._graph, self._node, self._part = graph, node, part
        self._before, self._reverse = before, reverse

    def __call__(self, idxs: Any) -> Any:
        inputs = self._node.inputs
        sizes = [shape_infer.infer_channels_between(self._graph, entry, self._node) for entry in inputs]
        start = self._before + sum(sizes[: self._part])
        offset = [start, start + sizes[self._part]]
        return index_mapping._ConcatIndexMapping(offset, reverse=self._reverse)(idxs)


def output_shape(grad_fn: Any, number: int = 0) -> tuple[int, ...] | None:
    """Shape of what an operation gave out in the trace, where this torch tells."""
    metadata = getattr(grad_fn, "_input_metadata", None)
    return tuple(metadata[number].shape) if metadata else None


def _is_channel_axis_of_tokens(axis: int, shape: tuple[int, ...] | None) -> bool:
    """Whether an axis is that of the channels of (N, T, C), counted from the front; known are axes 1 and −1."""
    return shape is not None and len(shape) == 3 and axis == 2


def _map_split(graph: tp.DependencyGraph, node: Any) -> bool:
    """A split of tokens along axis 2, which Torch-Pruning takes for an elementwise operation."""
    function = node.grad_fn
    shape: tuple[int, ...] = getattr(function, "_saved_self_sym_sizes", ())
    if getattr(node.module, "own_map", False) or not _is_channel_axis_of_tokens(
        getattr(function, "_saved_dim", 1), shape
    ):
        return False
    sizes = getattr(function, "_saved_split_sizes", None)
    if sizes is None:
        size = function._saved_split_size
        sizes = [min(size, shape[2] - start) for start in range(0, shape[2], size)]
    if len(sizes) != len(node.outputs):
        return False
    node.module.split_sizes, node.module.own_map = list(sizes), True
    for part, output in enumerate(node.outputs):
        _set_mapping(node, output, 0, _PartOfSplit(node, part, reverse=False))
        _set_mapping(output, node, 0, _PartOfSplit(node, part, reverse=True))
    return True


def _map_concatenation(graph: tp.DependencyGraph, node: Any) -> bool:
    """A concatenation along axis 2 of tokens, or with a tensor that no layer makes, such as the network's input."""
    function = node.grad_fn
    shape, axis = output_shape(function), getattr(function, "_saved_dim", 1)
    if shape is None or not node.enable_index_mapping or getattr(node.module, "own_map", False):
        return False
    of_tokens = _is_channel_axis_of_tokens(axis, shape)
    edges = [entry for entry, _ in function.next_functions]
    gaps = [k for k, entry in enumerate(edges) if entry is None]
    if not of_tokens and (not gaps or not (axis == 1 or axis >= _FAR)):
        return False
    sizes = [shape_infer.infer_channels_between(graph, entry, node) for entry in node.inputs]
    outside = shape[2 if of_tokens else 1 if axis == 1 else -1] - sum(size or 0 for size in sizes)
    together = not gaps or gaps == list(range(gaps[0], gaps[0] + len(gaps)))  # else their sizes can't be told apart
    if None in sizes or outside < 0 or (outside == 0) != (not gaps) or not together:
        return False
    if len(node.inputs) != len(edges) - len(gaps):
        return False
    for part, entry in enumerate(node.inputs):
        before = outside if gaps and gaps[0] <= part else 0
        for source, target, reverse in ((node, entry, True), (entry, node, False)):
            mapping = _PartOfConcatenation(graph, node, part, before=before, reverse=reverse)
            _set_mapping(source, target, 1, mapping)
    node.module.own_map = True
    return True


def _set_mapping(source: Any, target: Any, place: int, mapping: Callable[[Any], Any]) -> None:
    """Set the map of the edge between two nodes; of several edges the one that has none yet."""
    for dep in source.dependencies:
        if dep.target is target and not isinstance(dep.index_mapping[place], _PartOfSplit | _PartOfConcatenation):
            dep.index_mapping[place] = mapping
            return


def _map_as_told(node: Any) -> bool:
    """An operation of an adapter's that says itself how its input's channels become its outputs', and back."""
    maps = getattr(node.grad_fn, "maps_of_outputs", None)
    if maps is None or getattr(node.module, "own_map", False):
        return False
    forth, back = maps
    for output in node.outputs:
        for source, target, mapping in ((node, output, forth), (output, node, back)):
            for dep in source.dependencies:
                if dep.target is target:
                    dep.index_mapping[0] = mapping
    node.module.own_map = True
    return True


def _map_flatten(graph: tp.DependencyGraph, node: Any) -> bool:
    """A flattened convolution in a network in which any linear layer gives out three axes: then none is mapped."""
    before, after = getattr(node.grad_fn, "_saved_self_sym_sizes", None), output_shape(node.grad_fn)
    if graph._2d_4d or before is None or after is None or len(before) < 3 or len(after) != 2:
        return False
    stride = math.prod(before[2:])
    channels = [shape_infer.infer_out_channels_recursively(graph, entry, [0]) for entry in node.inputs]
    if stride == 1 or channels != [before[1]] or after[1] != before[1] * stride:
        return False
    if isinstance(node.dependencies[0].index_mapping[0], index_mapping._FlattenIndexMapping):
        return False
    entry = node.inputs[0]
    for source, target, reverse in ((node, entry, True), (entry, node, False)):
        for dep in source.dependencies:
            if dep.target is target:
                dep.index_mapping[0] = index_mapping._FlattenIndexMapping(stride=stride, reverse=reverse)
    return True


# Pruning functions --------------------------------------------------------------------------------------------


class PruningFunction:
    """Stands for a pruning function of Torch-Pruning, equal to it, and does it right.

    ``function`` is what to do in its place: (layer, idxs) -> layer.
    """

    def __init__(self, of_host: Any, function: Callable[[Any, Sequence[int]], Any]) -> None:
        self.__self__, self.__name__, self.__qualname__ = of_host.__self__, of_host.__name__, of_host.__qualname__
        self._of_host, self._function = of_host, function

    def __call__(self, layer: Any, idxs: Sequence[int]) -> Any:
        """Prune."""
        return self._function(layer, idxs)

    def __eq__(self, other: object) -> bool:
        return bool(self._of_host == (other._of_host if isinstance(other, PruningFunction) else other))

    def __hash__(self) -> int:
        return hash(self._of_host)


def correct_group(group: tp.Group) -> None:
    """Give the items of a group the corrected functions; its root is made by Torch-Pruning for each group."""
    owners = _owners_of_parameters(group._DG.model)
    for item in group:
        _correct(item.dep, owners)


def _replace_functions(graph: tp.DependencyGraph) -> None:
    owners = _owners_of_parameters(graph.model)
    for node in graph.module2node.values():
        for dep in node.dependencies:
            _correct(dep, owners)
        slices = [entry.module for entry in node.outputs if entry.type == tp.ops.OPTYPE.SLICE]
        slices.sort(key=lambda part: part.start)
        if len(slices) > 1 and all(a.end == b.start and b.step == 1 for a, b in pairwise(slices)):
            readers = [dep for entry in node.outputs for reader in entry.outputs for dep in reader.dependencies]
            for dep in (*node.dependencies, *readers):
                if any(dep.target.module is part for part in slices) and not isinstance(dep.handler, PruningFunction):
                    dep.handler = PruningFunction(dep.handler, partial(_prune_slice, slices))


def _prune_slice(slices: Sequence[Any], part: Any, idxs: Sequence[int]) -> Any:
    """Slices that follow each other move up; Torch-Pruning moves each by the channels that it has lost itself."""
    for other in slices[next(k for k, entry in enumerate(slices) if entry is part) :]:
        other.start -= 0 if other is part else len(idxs)
        other.end -= len(idxs)
    return part


def _owners_of_parameters(model: nn.Module) -> dict[int, nn.Module]:
    norm = getattr(nn, "RMSNorm", ())
    return {
        id(module.weight): module
        for module in model.modules()
        if isinstance(module, norm) and module.weight is not None
    }


def _correct(dep: Any, owners: dict[int, nn.Module]) -> None:
    if isinstance(dep.handler, PruningFunction):
        return
    module, pruner = dep.target.module, getattr(dep.handler, "__self__", None)
    function: Callable[[Any, Sequence[int]], Any] | None = None
    functions = tp.pruner.function
    if isinstance(pruner, functions.LayernormPruner):
        function = _prune_layer_norm
    elif isinstance(pruner, functions.InstanceNormPruner):
        function = _prune_instance_norm
    elif isinstance(pruner, functions.ParameterPruner) and id(module) in owners:
        function = _prune_weight_of(owners[id(module)], dep.handler)
    elif type(pruner) is functions.ConvPruner and module.transposed and module.groups > 1:
        outwards = dep.handler.__name__ == "prune_out_channels"
        function = _prune_outputs_of_transposed if outwards else _prune_inputs_of_transposed
    if function is not None:
        dep.handler = PruningFunction(dep.handler, function)


def _slice(layer: nn.Module, names: Sequence[str], keep: Sequence[int], axis: int) -> None:
    pruner = tp.prune_linear_out_channels.__self__
    for name in names:
        if getattr(layer, name, None) is not None:
            setattr(layer, name, pruner._prune_parameter_and_grad(getattr(layer, name), list(keep), axis))


def _kept(size: int, idxs: Sequence[int]) -> list[int]:
    removed = set(idxs)
    return [k for k in range(size) if k not in removed]


def _prune_layer_norm(layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.LayerNorm:
    """Torch-Pruning keeps the channels in the order of a set, which is not theirs where few are left."""
    keep = _kept(layer.normalized_shape[-1], idxs)
    _slice(layer, ("weight", "bias"), keep, -1)
    layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
    return layer


def _prune_instance_norm(layer: Any, idxs: Sequence[int]) -> Any:
    """Torch-Pruning leaves the running statistics as they are."""
    keep = _kept(layer.num_features, idxs)
    _slice(layer, ("weight", "bias"), keep, 0)
    for name in ("running_mean", "running_var"):
        if getattr(layer, name) is not None:
            setattr(layer, name, getattr(layer, name)[keep])
    layer.num_features = len(keep)
    return layer


def _prune_outputs_of_transposed(layer: Any, idxs: Sequence[int]) -> Any:
    """The weight is (in, out / groups, ...): Torch-Pruning takes channels of all groups for its second axis."""
    per_group = layer.out_channels // layer.groups
    _slice(layer, ("weight",), _kept(per_group, [k for k in idxs if k < per_group]), 1)
    _slice(layer, ("bias",), _kept(layer.out_channels, idxs), 0)
    layer.out_channels -= len(idxs)
    return layer


def _prune_inputs_of_transposed(layer: Any, idxs: Sequence[int]) -> Any:
    """The first axis of the weight holds the inputs of all groups: Torch-Pruning keeps those of one."""
    _slice(layer, ("weight",), _kept(layer.in_channels, idxs), 0)
    layer.in_channels -= len(idxs)
    return layer


def _prune_weight_of(norm: nn.Module, of_host: Any) -> Callable[[Any, Sequence[int]], Any]:
    """An RMSNorm is to Torch-Pruning a bare parameter: it leaves ``normalized_shape`` as it is."""

    def prune(weight: Any, idxs: Sequence[int]) -> Any:
        of_host.__self__.pruning_dim = -1
        pruned = of_host(weight, idxs)
        norm.normalized_shape = tuple(pruned.shape)  # type: ignore[assignment]
        return pruned

    return prune
