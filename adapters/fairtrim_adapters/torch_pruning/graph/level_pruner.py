"""A pruner of Torch-Pruning whose steps lead a copy of a network from level to level."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from fairtrim import InputError, UnsupportedModelError
from fairtrim.data.batches import Batch, slice_samples
from fairtrim.network.output_layer import FeatureTap
from fairtrim.network.scored_network import ScoredNetwork
from fairtrim.preservation import preserved_model, preserved_random_state

from .dependency_groups import group_name, is_consumed
from .plan import groups_of_next_step
from .pruner_options import PrunerOptions, check_ignored_layers, check_pruner_options, check_ratios, options_for

__all__ = ["freeze", "frozen_parameters", "pruner_of_levels"]


def pruner_of_levels(
    network: ScoredNetwork,
    batch: Batch,
    levels: Sequence[float],
    importance: tp.importance.Importance | None,
    *,
    ignored_layers: Sequence[str] = (),
    pruner_options: PrunerOptions = None,
    whole_layers: bool = False,
) -> tp.pruner.BasePruner:
    """A pruner of Torch-Pruning whose steps lead from level to level.

    Levels are shares of the channels, increasing, one step each. With ``whole_layers`` they may be too high for a
    layer, because something else decides. The network is a copy of the caller's.
    """
    model = network.model
    modules = dict(model.named_modules())
    options = options_for(pruner_options, model)
    tracing = {"forward_fn": network.forward_fn, "output_transform": network.output_transform}
    if callable(pruner_options):  # which may say how Torch-Pruning can trace the network
        tracing |= {name: options.pop(name) for name in tracing if name in options}
    check_pruner_options(options)
    ignored = _ignored(network, batch, modules, ignored_layers, options.pop("ignored_layers", ()))
    few = isinstance(batch.inputs, Tensor | Mapping)  # the graph of a trace keeps the activations of every sample
    inputs = slice_samples(batch.inputs, slice(0, 2)) if few else batch.inputs
    with preserved_random_state(), preserved_model(model):
        model.requires_grad_(True)  # or the trace has no graph; the flags come back with preserved_model
        pruner = tp.pruner.BasePruner(
            model,
            inputs,
            importance=importance,
            pruning_ratio=levels[-1],
            iterative_steps=len(levels),
            # other ratios than the whole network's, of single layers, are reached in proportion
            iterative_pruning_ratio_scheduler=lambda ratio, _: [0.0, *(k * (ratio / levels[-1]) for k in levels)],
            ignored_layers=ignored,
            **tracing,
            **{"in_channel_groups": {}, "out_channel_groups": {}, "num_heads": {}, **_by_layer(options, modules)},
        )
    check_ratios(pruner)
    small = _too_small(pruner, levels[-1])
    if small and not pruner.global_pruning and not whole_layers:
        raise InputError(
            f"level {levels[-1]} leaves no channel of the layers {small} (name: channels); expected a lower ratio (or "
            "lower levels= of AccumulatedConfidence), global_pruning=True, or those layers in ignored_layers"
        )
    return pruner


def _ignored(
    network: ScoredNetwork,
    batch: Batch,
    modules: Mapping[str, nn.Module],
    ignored_layers: Sequence[str],
    of_options: Sequence[Any],
) -> list[nn.Module]:
    """The layers whose outputs stay: those named, those of the options, and the layer that gives the scores."""
    check_ignored_layers(ignored_layers)
    names = {module: name for name, module in modules.items()}
    asked = [names.get(layer, layer) for layer in (*ignored_layers, *of_options)]
    unknown = [name if isinstance(name, str) else type(name).__name__ for name in asked if name not in modules]
    if unknown:
        raise InputError(
            f"ignored_layers holds {unknown}; expected names of the network's layers, e.g. 'blocks.2', because a copy "
            "of the network is pruned"
        )
    tap = FeatureTap(network.model)
    with preserved_random_state(), preserved_model(network.model), torch.no_grad(), tap.attached():
        head = tap.head(network.scores(batch, positions=True))
    return [modules[name] for name in dict.fromkeys([*asked, *([head] if head else [])])]


def _too_small(pruner: tp.pruner.BasePruner, level: float) -> dict[str, int]:
    """Channels of the layers of which a level leaves none; channels that nothing consumes are refused."""
    small = {}
    groups = list(groups_of_next_step(pruner))
    if not groups:
        raise InputError("no layer is left that could be pruned; expected fewer names in ignored_layers")
    for group in groups:
        name = group_name(group)
        if not is_consumed(group, pruner.DG):
            raise UnsupportedModelError(
                f"the channels of {name!r} are consumed by no layer: they are outputs of the network, and removing "
                f"them would remove its scores; add {name!r} to ignored_layers"
            )
        size = len(group[0].idxs) // pruner._get_channel_groups(group)
        if int(size * (1 - level)) < 1:
            small[name] = size
    return small


def frozen_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters without ``requires_grad``; Torch-Pruning makes those that it prunes trainable."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def freeze(model: nn.Module, names: Collection[str]) -> None:
    """Freeze parameters by name, and let the others be trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in names)


def _by_layer(options: Mapping[str, Any], modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Options, names of layers replaced by the layers."""
    own = set(modules.values())

    def layer(option: str, name: Any) -> Any:
        if isinstance(name, tuple):
            return tuple(layer(option, entry) for entry in name)
        if isinstance(name, type) or (isinstance(name, nn.Module) and name in own):  # a kind of layer, or a layer
            return name
        if name not in modules:
            got = type(name).__name__ if isinstance(name, nn.Module) else repr(name)
            raise InputError(
                f"pruner_options: {option} has the key {got}; expected names of the network's layers, e.g. 'blocks.2', "
                "because a copy of the network is pruned"
            )
        return modules[name]

    return {
        option: {layer(option, name): entry for name, entry in value.items()} if isinstance(value, Mapping) else value
        for option, value in options.items()
    }
