"""Which channels layers still have after a removal: read off, not guessed.

What Torch-Pruning wrote into its history is done again on the network as it was, with every weight replaced by its own
position; the positions that are left tell what was kept, for grouped, depthwise and transposed convolutions, flattened
maps, concatenations, splits and layers of other packages alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import UnsupportedModelError
from fairtrim.preservation import insist

from .corrections import correct_graph, correct_group
from .dependency_groups import passes_on
from .layers import ParameterAxis, description_of
from .undoing import Held

__all__ = ["KeptChannels", "corrected", "readers_of_removed", "remove_again"]

_EXACT_IN_FLOAT32 = 2**24


@dataclass(frozen=True)
class KeptChannels:
    """What a layer that reads removed channels still has.

    Attributes:
        module: Its qualified name.
        inputs: Which inputs it still reads, in its order, as its weight stores them: of one group for a convolution of
            several.
        outputs: Which outputs it still gives, in its order.
        input_axis: Axis of its weight along which the inputs lie.
    """

    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    input_axis: int


@contextmanager
def corrected(graph: tp.DependencyGraph) -> Iterator[None]:
    """Inside of the block every group that is asked of a graph is mapped and removed right, whoever asks.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> graph = tp.DependencyGraph().build_dependency(model, torch.ones(1, 3))
        >>> with corrected(graph):
        ...     graph.get_pruning_group(model[0], tp.prune_linear_out_channels, [1]).prune()
        >>> model[2].in_features, "get_pruning_group" in vars(graph)
        (3, False)
    """
    of_host = graph.get_pruning_group

    def get_pruning_group(*args: Any, **kwargs: Any) -> tp.Group:
        correct_graph(graph)
        group = of_host(*args, **kwargs)
        correct_group(group)
        return group

    before = vars(graph).get("get_pruning_group")
    vars(graph)["get_pruning_group"] = get_pruning_group
    try:
        yield
    finally:
        vars(graph).pop("get_pruning_group", None)
        if before is not None:
            vars(graph)["get_pruning_group"] = before


def remove_again(graph: tp.DependencyGraph, history: Iterable[Sequence[Any]], *, record: bool) -> None:
    """Do what a history tells, on a network that is as it was before that.

    Args:
        graph: The graph of the network.
        history: Torch-Pruning's entries: module or parameter, whether of its outputs, channels.
        record: Whether the graph writes it into its own history.
    """
    modules = dict(graph.model.named_modules())
    with corrected(graph):
        for name, of_outputs, idxs in history:
            module: Any = modules.get(name)
            if module is None:
                module = graph.model.get_parameter(name)
            functions = graph.get_pruner_of_module(module)
            function = functions.prune_out_channels if of_outputs else functions.prune_in_channels
            graph.get_pruning_group(module, function, list(idxs)).prune(record_history=record)


def readers_of_removed(
    graph: tp.DependencyGraph, pruner: tp.pruner.BasePruner, before: Held, known: int
) -> list[KeptChannels]:
    """The layers that read channels that are gone, and what they still have.

    ``before``: what was held when Torch-Pruning's history had ``known`` entries. The network, the graph and the pruner
    are left as they are, the very tensors. For the time of the call there is one number more for each weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> magnitude = tp.importance.GroupMagnitudeImportance()
        >>> pruner = tp.pruner.BasePruner(model, torch.ones(1, 3), importance=magnitude, ignored_layers=[model[2]])
        >>> held = Held(pruner.DG, pruner)
        >>> pruner.DG.get_pruning_group(model[0], tp.prune_linear_out_channels, [1, 2]).prune()
        >>> readers_of_removed(pruner.DG, pruner, held, 0)
        [KeptChannels(module='2', inputs=(0, 3), outputs=(0, 1), input_axis=1)]
    """
    history = list(graph.pruning_history()[known:])
    if not history:
        return []
    after = Held(graph, pruner)
    weights: dict[str, tuple[ParameterAxis, int, Tensor]] = {}
    codes: dict[str, Tensor] = {}
    try:
        before.restore()
        modules = dict(graph.model.named_modules())
        attention = [name for name, module in modules.items() if (what := description_of(module)) and what.mixes]
        for name, module in modules.items():
            axes = _axes(graph, module)
            inside = any(name.startswith(f"{parent}.") for parent in attention)
            if axes is not None and not inside:
                entry, output_axis = axes
                owner, _, own_name = entry.name.rpartition(".")
                parameters = module.get_submodule(owner)._parameters
                weight = parameters.get(own_name)
                if weight is None:  # computed from others
                    continue
                weights[name] = (entry, output_axis, weight.detach())
                parameters[own_name] = _coded(weight)
        remove_again(graph, history, record=False)
        for name, (entry, _, _) in weights.items():
            codes[name] = modules[name].get_parameter(entry.name).detach()
    finally:
        insist(after.restore)
    kept = []
    modules = dict(graph.model.named_modules())
    for name, (entry, output_axis, dense) in weights.items():
        _check_same(name, dense, codes[name], modules[name].get_parameter(entry.name).detach())
        if codes[name].shape[entry.axis] == dense.shape[entry.axis]:
            continue
        inputs = _coordinates(codes[name], dense.shape, entry.axis)
        outputs = _coordinates(codes[name], dense.shape, output_axis)
        if getattr(modules[name], "transposed", False):  # its weight stores the outputs of one group
            size = dense.shape[output_axis]
            outputs = [group * size + k for group in range(modules[name].groups) for k in outputs]
        kept.append(KeptChannels(name, tuple(inputs), tuple(outputs), entry.axis))
    return kept


def _axes(graph: tp.DependencyGraph, module: nn.Module) -> tuple[ParameterAxis, int] | None:
    """The weight by which a layer reads its inputs, with their axis, and the axis of its outputs there.

    None where it reads no channels, or passes them on. To Torch-Pruning attention gives out what it reads: its outputs
    are those that go with its inputs.
    """
    description = description_of(module)
    if description is None or passes_on(graph, module) or isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return None
    entries = [entry for entry in description.axes(module, True) if entry.blocks == 1]
    if not entries:
        return None
    entry = entries[0]
    if description.mixes:
        return entry, entry.axis
    owner = module.get_submodule(entry.name.rpartition(".")[0])
    weight = getattr(owner, entry.name.rpartition(".")[2], None)
    if not isinstance(weight, Tensor):
        return None
    axes = [other.axis for other in description.axes(module, False) if other.name == entry.name]
    axes = axes or [axis for axis in range(weight.ndim) if axis != entry.axis % weight.ndim]
    return ParameterAxis(entry.name, entry.axis % weight.ndim), axes[0] % weight.ndim


def _coded(weight: Tensor) -> nn.Parameter:
    """Each number's position in place of the number; exact."""
    if weight.numel() <= _EXACT_IN_FLOAT32:
        positions = torch.arange(weight.numel(), dtype=torch.float32, device=weight.device)
    else:  # on the CPU: other devices may have no float64
        positions = torch.arange(weight.numel(), dtype=torch.float64, device="cpu")
    return nn.Parameter(positions.view(weight.shape), requires_grad=False)


def _check_same(name: str, dense: Tensor, codes: Tensor, pruned: Tensor) -> None:
    """Refuse weights that came to be otherwise than by removal."""
    positions = codes.reshape(-1).long()
    same = codes.shape == pruned.shape and torch.equal(dense.reshape(-1)[positions].view(codes.shape), pruned)
    if not same:
        raise UnsupportedModelError(
            f"the weight of {name!r} is another one than what Torch-Pruning's history leaves of it: it was trained or "
            "replaced inside of the block, or channels were removed that the history doesn't have. Expected only "
            "pruner.step() or group.prune() there; train behind the block, and open another one for the next step"
        )


def _coordinates(codes: Tensor, shape: torch.Size, axis: int) -> list[int]:
    """Which slices along an axis the positions that are left come from, in their order."""
    along = codes.movedim(axis, 0).reshape(codes.shape[axis], -1)[:, 0].long().cpu()
    stride = 1
    for size in shape[axis + 1 :]:
        stride *= size
    return ((along // stride) % shape[axis]).tolist()
