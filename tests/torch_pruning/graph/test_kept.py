"""Which channels layers still have: against weights that carry their own positions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import UnsupportedModelError
from fairtrim_adapters.torch_pruning.graph.kept import KeptChannels, corrected, readers_of_removed
from fairtrim_adapters.torch_pruning.graph.undoing import Held
from tests.networks import CASES
from tests.torch_pruning.reconstruction.refit_cases import Quota, held
from tests.zoo import ALL, Network
from tests.zoo_tokens import TransposedLinear, TransposedLinearPruner

MODES: dict[str, dict[str, Any]] = {
    "local": {},
    "global": {"global_pruning": True},
    "in two steps": {"iterative_steps": 2, "pruning_ratio": 0.5},
}


def _axes(layer: nn.Module) -> tuple[int, int] | None:
    """Axes of the inputs and of the outputs in the weight, said anew."""
    if isinstance(layer, nn.modules.conv._ConvNd):
        depthwise = layer.groups == layer.in_channels == layer.out_channels
        return None if depthwise else (0, 1) if layer.transposed else (1, 0)
    if isinstance(layer, TransposedLinear):
        return 0, 1
    return (1, 0) if isinstance(layer, nn.Linear) else None


def _tag(model: nn.Module) -> None:
    """Give every number of every weight a value that no other of it has."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.arange(parameter.numel()).double() + 1).view(parameter.shape) / 1024)


def _slices(pruned: Tensor, dense: Tensor, axis: int) -> list[int]:
    """Where the slices of a weight that is left lie in the tagged one, each found by its first value."""
    firsts = pruned.movedim(axis, 0).reshape(pruned.shape[axis], -1)[:, 0]
    return [int((dense == value).nonzero()[0, axis]) for value in firsts]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_kept_channels_are_those_of_tagged_weights(name: str, mode: str) -> None:
    case = ALL[name]
    model = case.model()
    _tag(model)
    dense = copy.deepcopy(model)
    pruner = case.pruner(model, Quota(), **MODES[mode])
    before = Held(pruner.DG, pruner)
    with corrected(pruner.DG):
        for _ in range(MODES[mode].get("iterative_steps", 1)):
            pruner.step()
    found = held(model)
    kept = {entry.module: entry for entry in readers_of_removed(pruner.DG, pruner, before, 0)}
    assert held(model) == found
    modules = dict(model.named_modules())
    attention = [name for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)]
    for layer, module in dense.named_modules():
        axes = _axes(module)
        if axes is None or any(layer.startswith(f"{parent}.") for parent in attention):
            continue
        now: Tensor = modules[layer].weight  # type: ignore[assignment]
        if now.shape[axes[0]] == module.weight.shape[axes[0]]:  # type: ignore[union-attr, operator]
            assert layer not in kept
            continue
        inputs, outputs = (tuple(_slices(now, module.weight, axis)) for axis in axes)  # type: ignore[arg-type]
        if getattr(module, "bias", None) is not None:  # which has one number for each output, whatever the groups
            outputs = tuple(_slices(modules[layer].bias, module.bias, 0))  # type: ignore[arg-type]
        assert kept[layer] == KeptChannels(layer, inputs, outputs, axes[0])


def test_attention_of_torch_gives_out_what_it_reads() -> None:
    """Its width goes with what it reads; told by its name, it can be left with a reason."""
    case = ALL["attention of torch"]
    model = case.model()
    pruner = case.pruner(model, Quota())
    (name,) = (name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention))
    width = model.get_submodule(name).embed_dim
    before = Held(pruner.DG, pruner)
    with corrected(pruner.DG):
        pruner.step()
    kept = readers_of_removed(pruner.DG, pruner, before, 0)
    (entry,) = (entry for entry in kept if entry.module.startswith(name))
    assert entry.inputs == entry.outputs
    assert len(entry.inputs) == model.get_submodule(name).embed_dim < width


def test_layers_of_other_packages_by_their_description() -> None:
    """A weight of (inputs, outputs), as in Hugging Face's Conv1D."""
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), TransposedLinear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    magnitude = tp.importance.GroupMagnitudeImportance()
    pruner = tp.pruner.BasePruner(
        model,
        torch.ones(1, 3),
        importance=magnitude,
        ignored_layers=[model[4]],
        customized_pruners={TransposedLinear: TransposedLinearPruner()},
    )
    before = Held(pruner.DG, pruner)
    for layer, idxs in ((model[0], [1, 4]), (model[2], [0])):
        functions = pruner.DG.get_pruner_of_module(layer)
        pruner.DG.get_pruning_group(layer, functions.prune_out_channels, idxs).prune()
    assert readers_of_removed(pruner.DG, pruner, before, 0) == [
        KeptChannels("2", (0, 2, 3, 5), (1, 2, 3), 0),
        KeptChannels("4", (1, 2, 3), (0, 1), 1),
    ]


def test_weights_that_were_trained_meanwhile_are_refused() -> None:
    case = Network(**vars(CASES["mlp"]))
    model = case.model()
    pruner = case.pruner(model, Quota())
    before = Held(pruner.DG, pruner)
    pruner.step()
    with torch.no_grad():
        model[2].weight.mul_(1.5)  # type: ignore[index, union-attr, operator]
    with pytest.raises(UnsupportedModelError, match="the weight of '2' is another one than what"):
        readers_of_removed(pruner.DG, pruner, before, 0)


def test_nothing_removed_is_nothing_read() -> None:
    case = Network(**vars(CASES["mlp"]))
    pruner = case.pruner(case.model(), Quota())
    assert readers_of_removed(pruner.DG, pruner, Held(pruner.DG, pruner), 0) == []
